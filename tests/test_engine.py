"""Who runs when, and on how many cores: the scheduler's policy, and lanes that keep to it."""

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
from whitebox.runtime.engine import Engine
from whitebox.runtime.scheduler import Request, Scheduler


def request() -> Request:
    return Request(lambda: None)


def started(scheduler: Scheduler) -> list[Request]:
    return list(iter(scheduler.next, None))


def test_a_lone_request_gets_all_cores() -> None:
    scheduler = Scheduler(8)
    for _ in range(3):
        scheduler.add(alone := request())
        assert started(scheduler) == [alone] and alone.cores == 8
        scheduler.done(alone)


@pytest.mark.parametrize(
    ("cores", "requests", "share"), [(2, 2, 1), (8, 2, 4), (8, 3, 2), (2, 5, 1)]
)
def test_requests_at_once_share(cores: int, requests: int, share: int) -> None:
    """Clients that ask again as soon as they are answered."""
    scheduler = Scheduler(cores)
    running: list[Request] = []
    for _ in range(requests):
        scheduler.add(request())
        running += started(scheduler)
    for turn in range(20):
        scheduler.done(running.pop(0))
        scheduler.add(request())
        running += started(scheduler)
        assert sum(each.cores for each in running) <= cores
        if turn >= requests:
            assert {each.cores for each in running} == {share}
            assert len(running) == min(requests, cores)


def test_requests_start_in_order_of_arrival_and_within_the_bound() -> None:
    scheduler = Scheduler(1, max_queued=3)
    scheduler.add(first := request())
    assert started(scheduler) == [first]
    waiting = [request() for _ in range(3)]
    for each in waiting:
        scheduler.add(each)
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        scheduler.add(request())
    assert len(scheduler) == 3 and not started(scheduler)
    assert scheduler.withdraw(waiting[1]) and not scheduler.withdraw(first)
    order = []
    current = first
    while scheduler.done(current) is None and (after := scheduler.next()) is not None:
        order.append(current := after)
    assert order == [waiting[0], waiting[2]]
    scheduler.add(last := request())
    assert started(scheduler) == [last]


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
