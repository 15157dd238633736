"""Products of two operands or of integers, softmax and normalisation templates against numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from whitebox.compiler.target import host_target
from whitebox.kernels.cpu import vector_math
from whitebox.kernels.cpu.gemm_batched import BatchMatMul, Gemm
from whitebox.kernels.cpu.gemm_integer import IntegerMatMul, pack_integer_panels
from whitebox.kernels.cpu.gemm_tiles import choose_mt, choose_nt
from whitebox.kernels.cpu.norm import Normalization
from whitebox.kernels.cpu.scratch import register_pipeline
from whitebox.kernels.cpu.softmax import Softmax

tvm = pytest.importorskip("tvm")
from tvm import s_tir, te  # noqa: E402

TARGET = host_target(2)
LANES = TARGET.lanes
RNG = np.random.default_rng(7)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that kernels may read: 64-byte aligned."""
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def normal(*shape: int) -> np.ndarray:
    return aligned(RNG.standard_normal(shape).astype(np.float32))


def compiled(tensors: Sequence[Any], schedule: Callable[[Any], None]) -> Any:
    function = te.create_prim_func(list(tensors)).with_attr("global_symbol", "main")
    sch = s_tir.Schedule(tvm.IRModule({"main": function}))
    schedule(sch)
    target = tvm.target.Target({"kind": "llvm", "mcpu": TARGET.mcpu})
    return tvm.compile(sch.mod, target, tir_pipeline=register_pipeline())["main"]


def run(template: Any, operands: Sequence[np.ndarray], compute: Callable[..., Any]) -> np.ndarray:
    """Compile `compute(*placeholders)` with the template's schedule and run it."""
    inputs = [te.placeholder(x.shape, str(x.dtype), name=f"x{i}") for i, x in enumerate(operands)]
    result = compute(*inputs)
    kernel = compiled([*inputs, result], template.schedule)
    out = aligned(np.full([int(d) for d in result.shape], 77, np.dtype(str(result.dtype))))
    kernel(*(tvm.runtime.from_dlpack(x) for x in [*operands, out]))
    return out


def each(tensor: Any, value: Callable[..., Any], name: str) -> Any:
    return te.compute(tensor.shape, value, name=name)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * 20)


BATCHED = [
    ((12, 64, 32), (12, 32, 64), False, False),
    ((1, 12, 49, 32), (1, 12, 49, 32), False, True),
    ((2, 3, 49, 50), (3, 50, 33), False, False),
    ((2, 1, 5, 7), (3, 7, 200), False, False),
    ((4, 5, 7), (5, 9), True, False),
    ((5, 7), (9, 5), True, True),
    ((4, 5, 7), (7, 9), False, False),
    ((1, 300), (300, 128), False, False),
    ((300, 200), (70, 200), False, True),
    ((7,), (7, 9), False, False),
    ((3, 4, 7), (7,), False, False),
    ((7,), (7,), False, False),
    ((6, 1, 40), (6, 33, 40), False, True),
]


@pytest.mark.parametrize("a_shape, b_shape, transpose_a, transpose_b", BATCHED)
@pytest.mark.parametrize("computed", [False, True])
def test_batched_matmul(
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    transpose_a: bool,
    transpose_b: bool,
    computed: bool,
) -> None:
    template = BatchMatMul.default(
        a_shape, b_shape, LANES, 2, transpose_a=transpose_a, transpose_b=transpose_b
    )
    a, b = normal(*a_shape), normal(*b_shape)

    def compute(a: Any, b: Any) -> Any:
        if not computed:
            return template.compute(a, b)
        doubled = each(a, lambda *i: a(*i) * 2.0, "doubled")
        shifted = each(b, lambda *i: b(*i) + 1.0, "shifted")
        y = template.compute(doubled, shifted)
        return each(y, lambda *i: y(*i) * 0.5, "halved")

    out = run(template, [a, b], compute)
    x, y = (a * 2, b + 1) if computed else (a, b)
    x = x.swapaxes(-1, -2) if transpose_a else x
    y = y.swapaxes(-1, -2) if transpose_b else y
    close(out, np.asarray(np.matmul(x, y) * np.float32(0.5 if computed else 1)))


@pytest.mark.parametrize("c_shape", [None, (19,), (6, 1), (6, 19), (1,)])
def test_gemm(c_shape: tuple[int, ...] | None) -> None:
    template = Gemm.default(
        (10, 6), (19, 10), LANES, 2, transpose_a=True, transpose_b=True, alpha=0.5, beta=2.0
    )
    operands = [normal(10, 6), normal(19, 10), *([] if c_shape is None else [normal(*c_shape)])]
    out = run(template, operands, template.compute)
    expected = 0.5 * (operands[0].T @ operands[1].T)
    close(out, expected if c_shape is None else expected + 2.0 * operands[2])


@pytest.mark.skipif(not TARGET.integer_group, reason="this CPU adds no groups of products")
@pytest.mark.parametrize("group", sorted({2, TARGET.integer_group} - {0}))
@pytest.mark.parametrize("a_shape, n", [((1, 64, 384), 384), ((5, 7), 10), ((2, 3, 9, 30), 70)])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("zeros", [False, True])
def test_integer_matmul(
    a_shape: tuple[int, ...], n: int, dtype: str, zeros: bool, group: int
) -> None:
    k = a_shape[-1]
    nt = choose_nt(n, LANES)
    template = IntegerMatMul.default(a_shape, n, nt, LANES, 2, group=group, signed=dtype == "int8")
    limits = np.iinfo(dtype)
    a = aligned(RNG.integers(limits.min, limits.max + 1, a_shape).astype(dtype))
    w = RNG.integers(-128, 128, (k, n)).astype(np.int8)
    sums = aligned(w.sum(0, dtype=np.int32))
    operands = [a, aligned(pack_integer_panels(w, nt, group)), sums]
    expected = a.astype(np.int32) @ w.astype(np.int32)
    if zeros:
        a_zero = aligned(np.array([limits.max], dtype))
        w_zero = aligned(RNG.integers(-128, 128, n).astype(np.int8))
        operands += [a_zero, w_zero]
        expected = (a.astype(np.int32) - int(limits.max)) @ (w.astype(np.int32) - w_zero)
    np.testing.assert_array_equal(run(template, operands, template.compute), expected)


def test_tiles_fit_the_registers_and_avoid_cache_aliasing() -> None:
    for m in (1, 5, 49, 197):
        for nt in (16, 32, 48, 64):
            assert choose_mt(m, 384, nt, 16, columns=1, threads=2) * nt // 16 <= 28
            assert choose_mt(m, 1024, nt, 16, columns=1, threads=2) <= 8


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    power = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


@pytest.mark.parametrize(
    "shape, axis",
    [
        ((3, 8, 64), -1),
        ((2, 49, 49), -1),
        ((3, 6625), -1),
        ((5,), 0),
        ((3, 2), 1),
        ((2, 16, 4, 210), 1),
        ((5, 33), 0),
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_softmax(shape: tuple[int, ...], axis: int, log: bool) -> None:
    template = Softmax.default(shape, axis, LANES, 2, log=log)
    x = normal(*shape) * np.float32(5)

    def compute(x: Any) -> Any:
        scaled = each(x, lambda *i: x(*i) * 0.5, "scaled")
        y = template.compute(scaled)
        return each(y, lambda *i: y(*i) + 1.0, "shifted")

    expected = softmax(x * np.float32(0.5), axis)
    close(run(template, [aligned(x)], compute), (np.log(expected) if log else expected) + 1)


def test_softmax_of_masked_and_large_values() -> None:
    x = np.full((3, 20), -np.inf, np.float32)
    x[0, 3] = 3e38
    x[1, :5] = -1e30
    x[2, :] = np.linspace(-1000, 1000, 20)
    template = Softmax.default(x.shape, -1, LANES, 1)
    close(run(template, [aligned(x)], template.compute), softmax(x, -1))


@pytest.mark.parametrize(
    "shape, axes, kind",
    [
        ((8, 384), 1, "layer"),
        ((2, 5, 49), 1, "layer"),
        ((3, 4, 5), 2, "layer"),
        ((7,), 1, "layer"),
        ((197, 768), 1, "layer"),
        ((9, 100), 1, "rms"),
        ((2, 8, 7, 7), 2, "instance"),
    ],
)
def test_normalization(shape: tuple[int, ...], axes: int, kind: str) -> None:
    template = Normalization.default(shape, axes, LANES, 2, kind=kind, epsilon=1e-5)
    owned = (shape[1],) if kind == "instance" else shape[-axes:]
    x, scale, bias = aligned(normal(*shape) * 3 + 100), normal(*owned), normal(*owned)
    out = run(template, [x, scale, bias], template.compute)

    rows = tuple(range(len(shape) - axes, len(shape)))
    value = x.astype(np.float64)
    if kind != "rms":
        value = value - value.mean(rows, keepdims=True)
    value = value / np.sqrt((value * value).mean(rows, keepdims=True) + 1e-5)
    spread = (slice(None), *[None] * axes) if kind == "instance" else ()
    close(out, value * scale[spread] + bias[spread], 1e-4)


FUNCTIONS = {
    "exp": (vector_math.exp, np.exp, (-87.0, 88.7)),
    "exp_nonpositive": (vector_math.exp_nonpositive, np.exp, (-87.0, 0.0)),
    "tanh": (vector_math.tanh, np.tanh, (-12.0, 12.0)),
    "erf": (vector_math.erf, np.vectorize(math.erf), (-5.0, 5.0)),
    "sigmoid": (vector_math.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (-80.0, 80.0)),
    "log": (vector_math.log, np.log, (1e-30, 1e30)),
}


def evaluate(function: Callable[[Any], Any], values: np.ndarray) -> np.ndarray:
    x = te.placeholder(values.shape, "float32", name="x")
    y = te.compute(values.shape, lambda i: function(x[i]), name="y")

    def vectorize(sch: Any) -> None:
        _, lane = sch.split(sch.get_loops(sch.get_sblock("y"))[0], [None, LANES])
        sch.vectorize(lane)

    out = aligned(np.zeros_like(values))
    kernel = compiled([x, y], vectorize)
    kernel(*(tvm.runtime.from_dlpack(z) for z in (aligned(values), out)))
    return out


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vector_functions_are_accurate(name: str) -> None:
    function, reference, (low, high) = FUNCTIONS[name]
    dense = np.linspace(low, high, 1 << 16)
    small = np.logspace(-30, 0, 1 << 12) * (-1 if name == "exp_nonpositive" else 1)
    values = np.concatenate([dense, small]).astype(np.float32)
    expected = reference(values.astype(np.float64))
    error = np.abs(evaluate(function, values) - expected) / np.abs(expected).clip(1e-37)
    assert error.max() < 5e-7


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "exp_nonpositive"])
def test_vector_functions_at_the_extremes(name: str) -> None:
    function, reference, _ = FUNCTIONS[name]
    values = np.array([np.inf, -np.inf, np.nan, 0, -0.0, 3e38, -3e38, 89.0], np.float32)
    values = np.concatenate([values, np.ones(8, np.float32)])
    with np.errstate(all="ignore"):
        expected = reference(values.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(evaluate(function, values), expected, rtol=5e-7, atol=1e-37)
