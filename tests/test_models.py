"""Real models agree with onnxruntime. The quick ones always; the rest with `-m slow`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whitebox
from benchmarks.agreement import LIMIT, worst_error
from benchmarks.catalogue import GROUPS, MODELS, Model
from benchmarks.models import ModelUnavailable, with_weights

onnxruntime = pytest.importorskip("onnxruntime")

QUICK = (
    "orientation",
    "magika",
    "mtcnn-pnet",
    "mtcnn-rnet",
    "mtcnn-onet",
    "ppocr-cls",
    "light_squeezenet",
)
SLOW = (
    "ppocr4-det",
    "ppocr4-rec",
    "ppocr6-det",
    "ppocr6-rec",
    "nudenet",
    "opennsfw-yahoo",
    "minilm-int8",
    "light_bvlc_alexnet",
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_shufflenet",
    "light_vgg19",
    "light_zfnet512",
    *GROUPS["exports"],
)
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
FREE = [
    name
    for name in ALL
    if len(MODELS[name if isinstance(name, str) else str(name.values[0])].variants) > 1
]


@pytest.fixture(scope="module")
def sessions(request: pytest.FixtureRequest) -> Any:
    """Name → (Whitebox's session, onnxruntime's), made once for the tests on that model."""
    kept: dict[str, tuple[Any, Any]] = {}

    def open_both(name: str) -> tuple[Any, Any]:
        if name not in kept:
            kept.clear()  # one model's weights in memory at a time
            try:
                with with_weights(MODELS[name]) as file:
                    kept[name] = (whitebox.InferenceSession(str(file)), _peer(file))
            except ModelUnavailable as error:
                pytest.skip(str(error))
        return kept[name]

    return open_both


def _peer(file: Path) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _check(ours: Any, theirs: Any, model: Model, sizes: dict[str, int]) -> None:
    feeds = model.feeds(seed=1, **sizes)
    error = worst_error(ours.run(None, feeds), theirs.run(None, feeds))
    assert error < LIMIT, f"{model.name} at {sizes}: relative error {error:.1e}"


@pytest.mark.parametrize("name", ALL)
def test_agrees_with_onnxruntime(sessions: Any, name: str) -> None:
    ours, theirs = sessions(name)
    _check(ours, theirs, MODELS[name], {})


@pytest.mark.parametrize("name", FREE)
def test_free_dimensions_are_free(sessions: Any, name: str) -> None:
    """One session answers at every size."""
    ours, theirs = sessions(name)
    for sizes in MODELS[name].variants:
        _check(ours, theirs, MODELS[name], dict(sizes))


@pytest.mark.parametrize("name", ["orientation", "magika", "mtcnn-onet", "light_squeezenet"])
def test_answers_are_bit_identical_from_run_to_run(sessions: Any, name: str) -> None:
    """Alone and with other callers, a hundred times: no sum depends on which thread is faster."""
    ours, _ = sessions(name)
    feeds = MODELS[name].feeds()

    def answers(_: int) -> list[bytes]:
        return [array.tobytes() for array in ours.run(None, feeds)]

    expected = answers(0)
    assert all(answers(k) == expected for k in range(50))
    with ThreadPoolExecutor(2) as callers:
        assert all(answer == expected for answer in callers.map(answers, range(50)))


@pytest.mark.parametrize("name", ["magika", "mtcnn-onet", "ppocr-cls"])
def test_looks_like_an_onnxruntime_session(sessions: Any, name: str) -> None:
    ours, theirs = sessions(name)
    for mine, peer in (
        (ours.get_inputs(), theirs.get_inputs()),
        (ours.get_outputs(), theirs.get_outputs()),
    ):
        assert [(each.name, each.type) for each in mine] == [(e.name, e.type) for e in peer]
        assert [len(each.shape) for each in mine] == [len(each.shape) for each in peer]
    asked = [theirs.get_outputs()[-1].name]
    feeds = MODELS[name].feeds()
    (got,), (want,) = ours.run(asked, feeds), theirs.run(asked, feeds)
    assert got.dtype == want.dtype
    assert worst_error([got], [want]) < LIMIT


def test_the_light_models_answer_as_shipped(real_model: Any) -> None:
    """Their weights are nodes (ConstantOfShape) that fold to constants."""
    file, feeds = real_model("light_squeezenet"), MODELS["light_squeezenet"].feeds()
    ours = whitebox.InferenceSession(str(file)).run(None, feeds)
    assert worst_error(ours, _peer(file).run(None, feeds)) < LIMIT


def _unaligned(array: np.ndarray) -> np.ndarray:
    room = np.empty(array.nbytes + 1, np.uint8)
    moved = room[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def _strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def _read_only(array: np.ndarray) -> np.ndarray:
    kept = array.copy()
    kept.flags.writeable = False
    return kept


@pytest.mark.parametrize(
    "disguise",
    [
        _unaligned,
        _strided,
        _read_only,
        np.asfortranarray,
        lambda array: array.astype(array.dtype.newbyteorder(">")),
    ],
    ids=["unaligned", "strided", "read-only", "column-major", "big-endian"],
)
def test_any_numpy_layout_gives_the_same_answer(sessions: Any, disguise: Any) -> None:
    ours, theirs = sessions("mtcnn-pnet")
    feeds = MODELS["mtcnn-pnet"].feeds()
    disguised = {name: disguise(array) for name, array in feeds.items()}
    assert worst_error(ours.run(None, disguised), theirs.run(None, feeds)) < LIMIT
