"""Thousands of variants of one small model: a classifier of handwritten digits.

What enters: how many. What leaves: what registering each took. The variants differ in weights
alone, which are seeded.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from benchmarks.many import proto
from benchmarks.many.engines import Engine, Whitebox
from benchmarks.many.recipes import Feeds

_WIDTHS = (64, 32, 10)


def name(number: int) -> str:
    """The name of a variant."""
    return f"digits-{number:05}"


def feeds() -> Feeds:
    """A request that every variant takes."""
    return {"x": np.random.default_rng(7).random((1, _WIDTHS[0]), np.float32)}


def register(engine: Whitebox, count: int) -> list[tuple[float, int]]:
    """Register so many: seconds of each, and how many kernels were compiled for it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.onnx"
        _write(file)
        model = onnx.load(file)
    given = feeds()
    return [
        engine.register(_variant(model, number), name(number), given) for number in range(count)
    ]


def first_answers(engine: Engine, count: int, asked: int) -> list[float]:
    """Seconds of the first answer of so many variants, drawn from all."""
    chosen = np.random.default_rng(9).choice(count, min(asked, count), replace=False)
    given, times = feeds(), []
    for number in chosen.tolist():
        start = time.perf_counter()
        engine.ask(name(number), given)
        times.append(time.perf_counter() - start)
    return times


def _write(file: Path) -> None:
    inner, hidden, outer = _WIDTHS
    shapes = {"w0": (inner, hidden), "b0": (hidden,), "w1": (hidden, outer), "b1": (outer,)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w1", "b1"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"], axis=1),
    ]
    stored = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    proto.save(file, nodes, (proto.FLOAT, ["N", inner]), ["N", outer], stored)


def _variant(model: onnx.ModelProto, number: int) -> bytes:
    rng = np.random.default_rng([8, number])
    for tensor in model.graph.initializer:
        weights = rng.normal(0, 0.2, tuple(tensor.dims)).astype(np.float32)
        tensor.raw_data = weights.tobytes()
    return model.SerializeToString()
