"""The engine: lanes that keep to what the scheduler says, with real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx.parser
import pytest

import whitebox
from whitebox.errors import Overloaded
from whitebox.runtime import native
from whitebox.runtime.device import Arena
from whitebox.runtime.engine import Engine, Runnable


class Call:
    """Something to run that counts how many run at once."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        self.wait = wait
        self.running = self.most = 0
        self.arenas: set[int] = set()
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[Any]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            assert id(arena) not in self.arenas
            self.arenas.add(id(arena))
        self.wait()
        with self._lock:
            self.running -= 1
            self.arenas.remove(id(arena))
        if inputs[0] is None:
            raise ValueError("no input")
        return [inputs[0] + 1]


def test_as_many_run_at_once_as_there_are_cores() -> None:
    engine = Engine(3)
    gate = threading.Event()
    engine.submit(Call(gate.wait), [0])  # holds all cores until the others have come
    meeting = threading.Barrier(3, timeout=30)  # passes only when three meet
    call = Call(meeting.wait)
    replies = [engine.submit(call, [number]) for number in range(6)]
    answers: list[int] = []
    callers = [
        threading.Thread(target=lambda n=n: answers.extend(engine.run(call, [n])))  # type: ignore[misc]
        for n in range(10, 16)
    ]
    for caller in callers:
        caller.start()
    while engine.queued < 12:
        time.sleep(0.001)
    gate.set()
    for caller in callers:
        caller.join()
    assert [reply.result(30) for reply in replies] == [[n + 1] for n in range(6)]
    assert sorted(answers) == list(range(11, 17)) and call.most == 3
    engine.close()


def test_what_fails_gives_its_lane_back() -> None:
    engine = Engine(2)
    call = Call(lambda: None)
    for _ in range(5):
        with pytest.raises(ValueError, match="no input"):
            engine.run(call, [None])
        with pytest.raises(ValueError, match="no input"):
            engine.submit(call, [None]).result(30)
    assert engine.run(call, [1]) == [2]
    engine.close()


def test_closing_answers_all_that_are_queued() -> None:
    engine = Engine(2)
    call = Call(lambda: time.sleep(0.01))
    replies = [engine.submit(call, [n]) for n in range(20)]
    cancelled = replies[-1].cancel()
    engine.close()
    assert engine.queued == 0 and all(reply.done() for reply in replies)
    assert [reply.result() for reply in replies[:-1]] == [[n + 1] for n in range(19)]
    assert cancelled and replies[-1].cancelled()
    with pytest.raises(Overloaded, match="shutting down"):
        engine.submit(call, [0])


def test_answers_do_not_depend_on_who_else_asks() -> None:
    """One at a time on all cores, or many at once on one core each: the same bits."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[N, 512] x) => (float[N, 512] y) {
           h = MatMul(x, w)
           y = Softmax(h)
        }""")
    random = np.random.default_rng(0)
    weights = random.standard_normal((512, 512)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    session = whitebox.InferenceSession(model)
    feeds = [random.standard_normal((256, 512)).astype(np.float32) for _ in range(4)]
    alone = [session.run(None, {"x": x})[0] for x in feeds]
    failures: list[int] = []

    def ask(number: int) -> None:
        for _ in range(40):
            (answer,) = session.run(None, {"x": feeds[number]})
            if not np.array_equal(answer, alone[number]):
                failures.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    np.testing.assert_array_equal(session.run(None, {"x": feeds[0]})[0], alone[0])


def test_a_thread_that_ran_on_one_core_runs_on_all_again() -> None:
    native._session(2)
    import tvm_ffi

    threads = tvm_ffi.get_global_func("runtime.NumThreads")
    most = native._Pool.default
    seen: list[int] = []

    def change() -> None:
        for count in (1, most, 1, most):
            native.use_threads(count)
            seen.append(threads())

    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
    assert seen == [1, most, 1, most]


class Squares:
    """A stage that runs batches, and counts them."""

    max_batch = 8

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.broken = False

    def run(
        self, pairs: Sequence[tuple[Runnable, Sequence[Any]]], arena: Arena
    ) -> list[list[Any] | BaseException]:
        self.sizes.append(len(pairs))
        if self.broken:
            raise RuntimeError("the kernel crashed")
        return [_square(inputs) for _, inputs in pairs]


def _square(inputs: Sequence[Any]) -> list[Any] | BaseException:
    return ValueError("no number") if inputs[0] is None else [inputs[0] ** 2]


class Square:
    """A runnable of the stage; each brings one item."""

    items = 1

    def __init__(self, stage: Squares) -> None:
        self.stage = stage

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[Any]:
        answer = _square(inputs)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def held(engine: Engine) -> threading.Event:
    """Something takes all cores until the event is set."""
    gate = threading.Event()
    engine.submit(Call(gate.wait), [0])
    return gate


def test_what_waits_for_one_stage_rides_in_batches() -> None:
    """Sizes are tried from small to large; two models share the batches."""
    engine = Engine(1)
    stage = Squares()
    models = [Square(stage), Square(stage)]
    for _ in range(6):
        gate = held(engine)
        replies = [engine.submit(models[n % 2], [n], model=str(n % 2)) for n in range(32)]
        gate.set()
        assert [reply.result(30) for reply in replies] == [[n * n] for n in range(32)]
    assert stage.sizes and set(stage.sizes) <= set(range(2, 9))
    engine.close()


def test_one_bad_request_does_not_spoil_its_batch() -> None:
    engine = Engine(1)
    stage = Squares()
    gate = held(engine)
    replies = [engine.submit(Square(stage), [n]) for n in (None, 2, 3)]
    gate.set()
    with pytest.raises(ValueError, match="no number"):
        replies[0].result(30)
    assert [reply.result(30) for reply in replies[1:]] == [[4], [9]]
    engine.close()


def test_a_kernel_that_crashes_fails_its_batch_and_nothing_else() -> None:
    engine = Engine(1)
    broken, sound = Squares(), Squares()
    broken.broken = True
    gate = held(engine)
    bad = [engine.submit(Square(broken), [n]) for n in range(2)]
    good = [engine.submit(Square(sound), [n]) for n in range(2)]
    gate.set()
    for reply in bad:
        with pytest.raises(RuntimeError, match="the kernel crashed"):
            reply.result(30)
    assert [reply.result(30) for reply in good] == [[0], [1]]
    engine.close()


def test_to_cancel_takes_a_request_out_of_the_queue() -> None:
    engine = Engine(2)
    gate = held(engine)
    call = Call(lambda: None)
    replies = [engine.submit(call, [n]) for n in range(10)]
    assert all(reply.cancel() for reply in replies[::2]) and engine.queued == 5
    gate.set()
    assert [reply.result(30) for reply in replies[1::2]] == [[n + 1] for n in range(1, 10, 2)]
    assert not replies[1].cancel()
    engine.close()


def test_what_cannot_be_in_time_is_refused_and_the_rest_is_served() -> None:
    engine = Engine(1)
    slow = Call(lambda: time.sleep(0.05))
    for _ in range(4):
        engine.submit(slow, [0]).result(30)
    with pytest.raises(Overloaded, match="takes about"):
        engine.submit(slow, [0], deadline=time.monotonic() + 0.01)
    reply = engine.submit(slow, [1], deadline=time.monotonic() + 30)
    with pytest.raises(Overloaded) as refusal:
        for _ in range(1000):
            engine.submit(slow, [0], deadline=time.monotonic() + 2)
    assert refusal.value.retry_after_s is not None
    assert reply.result(30) == [2]
    engine.close()


def test_a_stalled_kernel_does_not_hold_up_others(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(2)
    stuck = threading.Event()
    call = Call(lambda: None)
    for _ in range(5):
        engine.submit(call, [0]).result(30)
    call.wait = stuck.wait
    stalled = engine.submit(call, [5], model="stuck")
    sound = Call(lambda: None)
    # A lone request has all cores, so that this one has to wait until its stall is noticed.
    assert engine.submit(sound, [1]).result(30) == [2]
    assert engine.run(sound, [2]) == [3]
    assert engine.stalls == 1 and not stalled.done()
    assert "model stuck have been running for" in caplog.text
    stuck.set()
    assert stalled.result(30) == [6]
    assert [engine.submit(sound, [n]).result(30) for n in range(4)] == [[1], [2], [3], [4]]
    engine.close()


def test_closing_leaves_what_has_stalled_behind() -> None:
    engine = Engine(1)
    stuck = threading.Event()
    call = Call(lambda: None)
    for _ in range(5):
        engine.submit(call, [0]).result(30)
    call.wait = stuck.wait
    stalled = engine.submit(call, [5])
    waiting = engine.submit(Call(lambda: None), [1])
    engine.close()
    assert waiting.result(0) == [2] and not stalled.done()
    stuck.set()
    assert stalled.result(30) == [6]
