"""Batches of one model and across models: the same answers to the last bit, or no batches."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from tests.test_together import head
from whitebox.runtime.batching import WAITS, BatchStage
from whitebox.runtime.device import Arena, CpuDevice
from whitebox.runtime.executable import Executable
from whitebox.runtime.runtime import Runtime

ITEM = {"x": (1, 32)}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("home")) as runtime:
        yield runtime


def crowd(runtime: Runtime, name: str, shapes: dict[str, tuple[int, ...]] = ITEM) -> Executable:
    """The model's executable, after so many requests have waited that batches are worth it."""
    model = runtime._serve(name, None)
    work = model.ready(shapes, runtime.preparer, runtime.engine)
    assert isinstance(work, Executable)
    work.stage = None  # as if it were not light
    for _ in range(WAITS):
        runtime.batcher.waited(model, shapes, work)
    assert runtime.preparer.background.wait(600)
    return work


def item(seed: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).standard_normal((1, 32)).astype(np.float32)]


def assert_as_alone(stage: Any, pairs: list[tuple[Executable, list[np.ndarray]]]) -> None:
    arena = Arena(CpuDevice())
    for (work, inputs), answer in zip(pairs, stage.run(pairs, arena), strict=True):
        alone = work.run(inputs, arena)
        for value, other in zip(answer, alone, strict=True):
            np.testing.assert_array_equal(value, other, strict=True)


def test_models_on_one_encoder_ride_one_batch(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = []
    for number, classes in enumerate((3, 3, 5, 3)):
        runtime.register(head(number, classes), f"head{number}")
        works.append(crowd(runtime, f"head{number}"))
    stage = works[0].stage
    assert isinstance(stage, BatchStage)
    assert all(work.stage is stage for work in works)
    assert (stage.max_batch, stage.reason) == (2, "")
    assert_as_alone(stage, [(works[0], item(0)), (works[2], item(1))])
    # It grows when batches are full and others wait.
    monkeypatch.setattr(type(runtime.engine), "queued", 1)
    for _ in range(WAITS):
        stage.run([(works[0], item(0)), (works[1], item(1))], Arena(CpuDevice()))
    assert runtime.preparer.background.wait(600)
    assert stage.max_batch == 4
    assert_as_alone(stage, [(works[i], item(i)) for i in (1, 2, 3)])
    assert_as_alone(stage, [(works[i], item(i)) for i in (1, 1, 3, 1)])
    # What a size has no room for, and who is no member, goes alone.
    assert_as_alone(stage, [(works[0], item(i)) for i in range(6)])


def test_a_crowd_of_requests_to_several_models_is_batched_and_answered_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whitebox.runtime.executable.LIGHT_BYTES", 0)
    with Runtime(tmp_path) as runtime:
        names = [f"head{number}" for number in range(3)]
        for number, name in enumerate(names):
            runtime.register(head(number), name)
        feeds = [{"x": item(number)[0]} for number in range(20)]
        expected = {
            (name, i): runtime.predict(name, feed)["y"]
            for name in names
            for i, feed in enumerate(feeds)
        }
        rounds = 0
        while not runtime.stats()["batched_requests"] and rounds < 20:
            rounds += 1
            lane = runtime.engine.enter()  # what comes meanwhile has to wait
            replies = {
                (name, i): runtime.submit(name, feed)
                for i, feed in enumerate(feeds)
                for name in names
            }
            runtime.engine.leave(lane)
            for key, reply in replies.items():
                np.testing.assert_array_equal(reply.result(60)["y"], expected[key])
            runtime.preparer.background.wait(600)
        assert runtime.stats()["batched_requests"] > 1


def test_light_models_take_one_turn_together(runtime: Runtime) -> None:
    runtime.register(head(50), "light")
    before = runtime.stats()["batched_requests"]
    alone = [runtime.predict("light", {"x": item(i)[0]})["y"] for i in range(200)]
    lane = runtime.engine.enter()
    replies = [runtime.submit("light", {"x": item(i)[0]}) for i in range(200)]
    runtime.engine.leave(lane)
    for reply, value in zip(replies, alone, strict=True):
        np.testing.assert_array_equal(reply.result(60)["y"], value)
    assert runtime.stats()["batched_requests"] > before


def test_a_bad_item_spoils_no_other_answer(runtime: Runtime) -> None:
    runtime.register(head(20), "bad")
    work = crowd(runtime, "bad")
    wrong = [np.zeros((1, 31), np.float32)]
    arena = Arena(CpuDevice())
    answers = work.stage.run([(work, item(0)), (work, wrong)], arena)
    np.testing.assert_array_equal(answers[0][0], work.run(item(0), arena)[0])


def test_members_go_with_their_models(runtime: Runtime) -> None:
    runtime.register(head(30), "gone")
    work = crowd(runtime, "gone")
    stage = work.stage
    before = len(stage._members)
    del work
    runtime.unregister("gone")
    gc.collect()
    assert len(stage._members) == before - 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = Softmax <axis = 0> (x)", "works along the batch"),
        ("m = ReduceMean <keepdims = 1> (x) y = Sub(x, m)", "works along the batch"),
    ],
)
def test_rows_that_mix_are_never_batched(runtime: Runtime, text: str, reason: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> m (float[N, 32] x) => (float[N, 32] y) '
        f"{{ {text} }}"
    )
    runtime.register(model, "mixing")
    stage = crowd(runtime, "mixing").stage
    assert stage.max_batch == 1
    assert reason in stage.reason


def test_inputs_that_are_no_items_are_left_alone(runtime: Runtime) -> None:
    fixed = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> m (float[1, 32] x) => (float[1, 32] y) '
        "{ y = Exp(x) }"
    )
    runtime.register(fixed, "fixed")
    assert crowd(runtime, "fixed").stage is None
    runtime.register(head(40), "rows")
    assert crowd(runtime, "rows", {"x": (3, 32)}).stage is None


@pytest.mark.parametrize("name", ["mtcnn-onet", "nsnet2"])
def test_real_models_are_batched_exactly_or_not_at_all(
    runtime: Runtime, real_model: Callable[[str], Path], name: str
) -> None:
    shape = {"mtcnn-onet": (1, 48, 48, 3), "nsnet2": (1, 20, 161)}[name]
    model = onnx.load(real_model(name))
    given = model.graph.input[0].name
    runtime.register(model, name, shapes={given: shape})
    work = crowd(runtime, name, {given: shape})
    random = np.random.default_rng(0)
    pairs = [(work, [random.standard_normal(shape).astype(np.float32)]) for _ in range(2)]
    assert work.stage.max_batch == 2 or "round in another way" in work.stage.reason
    assert_as_alone(work.stage, pairs)
