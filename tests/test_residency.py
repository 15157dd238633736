"""What stays in memory: the budget, what leaves, and that no answer suffers from it."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import whitebox
from whitebox.config import parse_size
from whitebox.errors import InvalidInput, ModelNotFound
from whitebox.runtime.executable import Executable
from whitebox.runtime.materialize import Key, Materialized, digest_of
from whitebox.runtime.residency import Residency

SIZE = 256
X = np.random.default_rng(0).random((1, SIZE), dtype=np.float32)


@dataclass(eq=False)
class Model:
    name: str
    used: bool = False


def test_the_least_recently_used_leaves_first() -> None:
    residency: Residency[Model] = Residency(30)
    a, b, c, d = map(Model, "abcd")
    for model in (a, b, c):
        residency.hold(model, {model.name: 10})
    a.used = True
    residency.hold(d, {"d": 10})
    assert residency.make_room(d) == ([b], {"b"})
    assert (residency.nbytes, residency.evictions) == (30, 1)
    assert residency.make_room(d, others=15) == ([c, a], {"c", "a"})
    assert residency.make_room(d, others=100) == ([], set())  # it stays, alone
    assert residency.excess(100) == 80


def test_what_several_hold_counts_once() -> None:
    residency: Residency[Model] = Residency(None)
    a, b = Model("a"), Model("b")
    residency.hold(a, {"shared": 100, "a": 1})
    residency.hold(b, {"shared": 100, "b": 2})
    assert residency.nbytes == 103
    assert residency.hold(a, {"shared": 100, "more": 5}) == {"a"}
    assert residency.drop(a) == {"more"}
    assert residency.drop(a) == set()
    assert residency.drop(b) == {"shared", "b"}
    assert residency.nbytes == 0


@pytest.mark.parametrize("seed", range(50))
def test_what_is_held_is_what_is_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    budget = int(rng.integers(1, 80))
    residency: Residency[Model] = Residency(budget)
    models = [Model(str(number)) for number in range(8)]
    held: dict[Model, dict[int, int]] = {}
    for number, use in rng.integers(0, 8, (40, 2)):
        parts = dict.fromkeys(rng.integers(0, 10, int(rng.integers(5))).tolist(), 7)
        models[use].used = True
        residency.hold(models[number], parts)
        held[models[number]] = parts
        left, freed = residency.make_room(models[number])
        for model in left:
            del held[model]
        everything = {part for parts in held.values() for part in parts}
        assert not freed & everything
        assert residency.nbytes == 7 * len(everything)
        assert residency.nbytes <= budget or list(held) == [models[number]]


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512m", 512 << 20), ("1g", 1 << 30), ("1.5GiB", 3 << 29), ("20 KB", 20480)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1g", "1e9", "nan", "m", "1gg", "0.1", "9" * 99, "１g"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a size"):
        parse_size(text)


def variant(seed: int) -> onnx.ModelProto:
    """One layer with weights of its own: a quarter of a megabyte."""
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    m (float[N, {SIZE}] x) => (float[N, {SIZE}] y) {{ y = MatMul(x, w) }}"""
    model = onnx.parser.parse_model(text)
    weights = np.random.default_rng(seed).random((SIZE, SIZE), dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return model


MODELS = 24
BUDGET = 2 << 20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("residency")
    with whitebox.Runtime(folder) as runtime:
        for seed in range(MODELS):
            runtime.register(variant(seed), f"m{seed}")
    return folder


@pytest.fixture(scope="module")
def answers(home: Path) -> list[np.ndarray]:
    with whitebox.Runtime(home) as runtime:
        return [runtime.predict(f"m{seed}", {"x": X})["y"] for seed in range(MODELS)]


def test_a_budget_holds_and_changes_no_answer(home: Path, answers: list[np.ndarray]) -> None:
    with whitebox.Runtime(home, memory_budget=BUDGET) as runtime:
        runtime.warm()
        assert 1 <= runtime.stats()["models_loaded"] < MODELS
        for seed in (*range(MODELS), 0, 0, 5):
            np.testing.assert_array_equal(runtime.predict(f"m{seed}", {"x": X})["y"], answers[seed])
            assert runtime.stats()["model_bytes"] <= BUDGET
        stats = runtime.stats()
        assert stats["models_evicted"] >= MODELS - BUDGET / X.nbytes / SIZE
        assert stats["kernels_compiled"] == 0
        together = runtime.predict_together([f"m{seed}" for seed in range(MODELS)], {"x": X})
        for seed, answer in enumerate(together):
            np.testing.assert_allclose(answer["y"], answers[seed], rtol=1e-5)


def test_what_leaves_is_free(home: Path) -> None:
    with whitebox.Runtime(home, memory_budget=BUDGET) as runtime:
        for seed in range(MODELS):
            runtime.predict(f"m{seed}", {"x": X})
        gc.collect()
        # (arrays over mapped pages; what was derived before it was written is on the heap)
        alive = runtime.preparer.parameters.nbytes
        assert 0 < alive <= BUDGET


def test_threads_that_ask_for_more_than_fits(home: Path, answers: list[np.ndarray]) -> None:
    with whitebox.Runtime(home, memory_budget=BUDGET) as runtime:

        def ask(worker: int) -> int:
            order = np.random.default_rng(worker).integers(0, MODELS, 150)
            wrong = 0
            for seed in order:
                if worker % 2:
                    y = runtime.predict(f"m{seed}", {"x": X})["y"]
                else:
                    y = runtime.submit(f"m{seed}", {"x": X}).result(300)["y"]
                wrong += not np.array_equal(y, answers[seed])
            return wrong

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == [0] * 4
        assert runtime.stats()["models_evicted"] > 0
        assert runtime.stats()["model_bytes"] <= BUDGET


def test_a_model_larger_than_the_budget_runs_alone(
    home: Path, answers: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    with whitebox.Runtime(home, memory_budget=1000) as runtime:
        for seed in (0, 1, 0):
            np.testing.assert_array_equal(runtime.predict(f"m{seed}", {"x": X})["y"], answers[seed])
            runtime.predict(f"m{seed}", {"x": np.repeat(X, 2, 0)})
            assert runtime.stats()["models_loaded"] == 1
    assert [r.args[0] for r in caplog.records if "alone" in r.message] == ["m0", "m1"]  # type: ignore[index]


@pytest.mark.parametrize("budget", [0, -1])
def test_budgets_that_hold_nothing(home: Path, budget: int) -> None:
    with pytest.raises(InvalidInput, match="holds nothing"):
        whitebox.Runtime(home, memory_budget=budget)


def test_the_budget_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHITEBOX_MEMORY_BUDGET", "64m")
    with whitebox.Runtime(home) as runtime:
        assert runtime.stats()["memory_budget"] == 64 << 20
    monkeypatch.setenv("WHITEBOX_MEMORY_BUDGET", "lots")
    with pytest.raises(InvalidInput, match="'lots' is not a size"):
        whitebox.Runtime(home)


def test_a_model_that_is_removed_while_it_is_asked_for(tmp_path: Path) -> None:
    """Answered, or said not to be there; never anything else."""
    with whitebox.Runtime(tmp_path) as runtime:
        models = [variant(seed) for seed in range(2)]
        right = [X @ onnx.numpy_helper.to_array(model.graph.initializer[0]) for model in models]
        stop = threading.Event()
        runtime.register(models[0], "m")

        def ask(_: int) -> int:
            answered = 0
            while not stop.is_set():
                try:
                    y = runtime.predict("m", {"x": X})["y"]
                except ModelNotFound:
                    continue
                assert any(np.allclose(y, each, rtol=1e-4) for each in right)
                answered += 1
            return answered

        with ThreadPoolExecutor(3) as pool:
            asking = pool.map(ask, range(3))
            try:
                for turn in range(30):
                    runtime.unregister("m")
                    runtime.register(models[turn % 2], "m")
            finally:
                stop.set()
            assert min(asking) > 0
        assert runtime.stats()["models_loaded"] <= 1


def test_a_model_with_host_steps_is_free_once_it_is_removed(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    m (float[3, 3] x) => (float y) { z = Add(x, x) y = Det(z) }""")
    with whitebox.Runtime(tmp_path) as runtime:
        runtime.register(model, "m")
        assert runtime.predict("m", {"x": np.eye(3, dtype=np.float32)})["y"] == 8
        (executable,) = runtime.residents.find("m").executables
        assert isinstance(executable, Executable)
        frames = [weakref.ref(frame) for frame in executable._frames.values()]
        assert len(frames) == 1
        del executable
        runtime.unregister("m")
        gc.collect()
        assert frames[0]() is None


def key(number: int) -> Key:
    return Key("model", bytes([number]))


def test_kept_results_are_bounded_and_the_oldest_go_first() -> None:
    kept = Materialized(10_000)
    arrays = [np.full(1000, number, np.float32) for number in range(4)]
    kept.put(key(0), [arrays[0]])
    kept.put(key(1), [arrays[1]])
    assert kept.get(key(0)) is not None
    kept.put(key(2), [arrays[2]])
    assert kept.get(key(1)) is None
    kept.put(key(3), [np.zeros(10_000, np.float32)])  # would push out all others
    kept.put(key(3), [{"a": 1.0}])
    assert kept.get(key(3)) is None
    assert (len(kept), kept.hits, kept.misses) == (2, 1, 2)
    assert 8000 < kept.nbytes <= 10_000


def test_what_is_kept_cannot_be_changed() -> None:
    kept = Materialized(10_000)
    given = np.arange(3)
    kept.put(key(0), [given])
    given[:] = 7
    first = kept.get(key(0))
    assert first is not None
    first[0][:] = 9
    np.testing.assert_array_equal(kept.get(key(0)) or [], [[0, 1, 2]])


def test_digests_tell_types_shapes_and_strings_apart() -> None:
    zeros = [
        [np.zeros(4, np.float32)],
        [np.zeros(4, np.int32)],
        [np.zeros((2, 2), np.float32)],
        [np.zeros(2, np.float32), np.zeros(2, np.float32)],
        [np.array(["ab", "c"], object)],
        [np.array(["a", "bc"], object)],
        [-np.zeros(4, np.float32)],
    ]
    assert len(set(map(digest_of, zeros))) == len(zeros)
    strided = np.arange(8, dtype=np.float32)[::2]
    assert digest_of([strided]) == digest_of([strided.copy()])
    assert digest_of([[1, 2]]) is None


def test_answers_are_given_again(home: Path, answers: list[np.ndarray]) -> None:
    with whitebox.Runtime(home, cache={"m0": 1 << 20}) as runtime:
        for turn in range(3):
            for y in (
                runtime.predict("m0", {"x": X})["y"],
                runtime.submit("m0", {"x": X}).result(60)["y"],
            ):
                np.testing.assert_array_equal(y, answers[0])
                y[:] = turn
        other = runtime.predict("m0", {"x": X + 1})["y"]
        assert not np.array_equal(other, answers[0])
        np.testing.assert_array_equal(runtime.predict("m1", {"x": X})["y"], answers[1])
        counts = runtime.stats()["caches"]
        assert {key: counts["m0"][key] for key in ("hits", "misses")} == {"hits": 5, "misses": 2}
        assert list(counts) == ["m0"]


def test_a_new_version_is_not_answered_by_an_old_one(tmp_path: Path) -> None:
    with whitebox.Runtime(tmp_path, cache={"m": 1 << 20}) as runtime:
        for seed in range(2):
            model = variant(seed)
            runtime.register(model, "m")
            weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
            for _ in range(2):
                y = runtime.predict("m", {"x": X})["y"]
                np.testing.assert_allclose(y, X @ weights, rtol=1e-4)


def test_random_answers_are_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    m (float[4] x) => (float[4] y) { r = RandomUniformLike(x) y = Add(x, r) }""")
    with whitebox.Runtime(tmp_path, cache={"m": 1 << 20}) as runtime:
        runtime.register(model, "m")
        feeds = {"x": np.zeros(4, np.float32)}
        first = runtime.predict("m", feeds)["y"]
        assert not np.array_equal(runtime.predict("m", feeds)["y"], first)
        assert runtime.stats()["caches"]["m"] == {"bytes": 0, "hits": 0, "misses": 0}
    assert "draws random numbers" in caplog.text
