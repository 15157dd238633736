"""Products with packed weights against numpy: every way to cut one, and what may surround it."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("tvm")

from tests.fused import built
from tests.test_lower import TARGET, aligned, body_of, placeholder
from whitebox.compiler.lower import lower
from whitebox.errors import NoSuchVariant
from whitebox.ir import ops
from whitebox.ir.graph import Graph
from whitebox.kernels.cpu import blocking
from whitebox.kernels.cpu.gemm_tiles import choose_nt, most_rows
from whitebox.kernels.cpu.scratch import STACK_BYTES
from whitebox.passes.rules.blocked import panel_width

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def packed(weight: np.ndarray, nt: int) -> np.ndarray:
    """`[K, N]` → `[⌈N/nt⌉, K, nt]`, zeros past column N."""
    k, n = weight.shape
    wide = np.zeros((k, -(-n // nt) * nt), weight.dtype)
    wide[:, :n] = weight
    return np.ascontiguousarray(wide.reshape(k, -1, nt).transpose(1, 0, 2))


def layer(a_shape: tuple[int, ...], n: int, nt: int, dtype: str = "float32") -> Graph:
    """max(A · W + bias + residual, 0)"""
    weights = (-(-n // nt), a_shape[-1], nt)
    inputs = [
        placeholder(0, *a_shape),
        placeholder(1, *weights, dtype=dtype),
        placeholder(2, n),
        placeholder(3, *a_shape[:-1], n),
    ]
    product = ops.make("whitebox.MatMul", inputs[:2], {"n": n, "nt": nt})
    added = ops.node("Add", ops.node("Add", product, inputs[2]), inputs[3])
    return body_of(inputs, ops.node("Relu", added))


def check(body: Graph, a: np.ndarray, w: np.ndarray, nt: int, variant: int = 0) -> None:
    n = w.shape[1]
    bias, rest = normal(n), normal(*a.shape[:-1], n)
    kernel = built(body, TARGET, variant=variant)["main"]
    result = aligned(np.full((*a.shape[:-1], n), 77, np.float32))
    kernel(*map(aligned, (a, packed(w, nt), bias, rest)), result)
    expected = np.maximum(a @ w.astype(np.float32) + bias + rest, 0)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


SHAPES = [
    ((1, 64, 384), 384),
    ((49, 33), 10),
    ((2, 3, 49, 40), 70),
    ((5, 7), 2),
    ((3, 1, 5, 1), 1),
    ((1, 40, 120), 6625),
    ((300,), 50),
    ((1, 2048), 1000),
    ((197, 96), 96),
    ((4, 1, 1, 24), 16),
    ((9, 1024), 100),
    # These are cut along K on AVX2: rows, columns and K that are no whole number of parts.
    ((64, 768), 768),
    ((2, 7, 14, 400), 331),
    ((27, 1021), 130),
    ((250, 512), 257),
]


@pytest.mark.parametrize("a_shape, n", SHAPES)
def test_product_with_an_epilogue(a_shape: tuple[int, ...], n: int) -> None:
    nt = panel_width(n, TARGET.lanes)
    check(layer(a_shape, n, nt), normal(*a_shape), normal(a_shape[-1], n), nt)


@pytest.mark.parametrize("a_shape, n", [((26, 660), 200), ((7, 40), 30)])
def test_every_schedule_answers_alike(a_shape: tuple[int, ...], n: int) -> None:
    nt = panel_width(n, TARGET.lanes)
    body, a, w = layer(a_shape, n, nt), normal(*a_shape), normal(a_shape[-1], n)
    variant = 1
    while True:
        try:
            lower(body, TARGET, "main", variant)
        except NoSuchVariant:
            break
        check(body, a, w, nt, variant)
        variant += 1
    assert variant > 2


@pytest.mark.parametrize("a_shape, n", [((5, 40), 30), ((32, 512), 512)])
def test_weights_of_16_bits(a_shape: tuple[int, ...], n: int) -> None:
    nt = panel_width(n, TARGET.lanes)
    w = normal(a_shape[-1], n).astype(np.float16)
    check(layer(a_shape, n, nt, "float16"), normal(*a_shape), w, nt)


def test_the_left_operand_may_be_computed() -> None:
    x, w = placeholder(0, 9, 2, 40), placeholder(1, 2, 40, 16)
    moved = ops.node("Transpose", ops.node("Exp", x), perm=(1, 0, 2))
    body = body_of([x, w], ops.make("whitebox.MatMul", (moved, w), {"n": 24, "nt": 16}))
    a, weight = normal(9, 2, 40), normal(40, 24)
    result = aligned(np.zeros((2, 9, 24), np.float32))
    built(body, TARGET)["main"](aligned(a), aligned(packed(weight, 16)), result)
    expected = np.exp(a).swapaxes(0, 1) @ weight
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


def test_the_packing_depends_on_columns_and_lanes_alone() -> None:
    for lanes in (4, 8, 16):
        for n in (1, 2, 10, 49, 96, 1000, 6625, 18710):
            assert panel_width(n, lanes) == choose_nt(n, lanes)
            assert panel_width(n, lanes) % lanes == 0


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_the_parts_of_a_product_fit_registers_and_stack(lanes: int) -> None:
    for m, k, n in [(1, 64, 10), (49, 3072, 768), (197, 768, 3072), (4096, 4096, 4096)]:
        nt = choose_nt(n, lanes)
        cut = blocking.choose(m, k, n, nt, batch=1, lanes=lanes, threads=2, deep=True)
        for each in (cut, *blocking.alternatives(cut, nt, lanes)):
            assert 1 <= each.mt <= most_rows(nt, lanes, m)
            assert each.rows % each.mt == 0
            if each.depth is not None:
                assert each.rows * each.panels * nt * 4 <= STACK_BYTES
                assert math.ceil(k / each.depth) > 1
