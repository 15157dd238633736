"""Products in bf16 for CPUs with instructions for it: what the passes make of a model is compiled
as for such a CPU, with its instructions emulated, and compared with the reference.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from whitebox.compiler.supported import lowerable
from whitebox.compiler.target import Target, host_target
from whitebox.compiler.worker import tvm_target
from whitebox.ir import onnx_schema, ops
from whitebox.ir.graph import Graph, Node, constant, input_node
from whitebox.ir.reference.bf16 import rounded
from whitebox.ir.types import TensorType
from whitebox.passes import passes_for, recording

tvm = pytest.importorskip("tvm")
from tests.emulated import emulated  # noqa: E402
from tests.fused import bodies, built, fused, model_of, operators, run  # noqa: E402

TILES = Target("cpu", "x86_64", "sapphirerapids", 16, 2)
PAIRS = Target("cpu", "x86_64", "cooperlake", 16, 2)
RNG = np.random.default_rng(11)
SHORT = np.float32(1 / 16)  # sums stay near 1


def known(*shape: int) -> Node:
    return constant(RNG.standard_normal(shape).astype(np.float32) * SHORT)


def lowered(target: Target, x: Node, y: Node) -> Graph:
    """What the passes make of a model in bf16."""
    return fused(model_of(y, x), target, "bf16")


def emulate(graph: Graph, target: Target, *feeds: np.ndarray) -> np.ndarray:
    """The output of a fused graph, instructions that this machine may lack emulated."""
    inputs = [node for _, node in graph.model.inputs]
    given = dict(zip(inputs, feeds, strict=True))
    return run(graph, target, given, tvm_target(host_target(2)), emulated)


MATMULS = [
    ((40, 70), 50),
    ((3, 100), 64),
    ((2, 7, 33), 30),
    ((2, 3, 17, 48), 16),
    ((1, 40), 200),
    ((33, 64), 33),
    ((64, 32), 32),
    ((40, 16), 10),
    ((17, 32), 20),
]


@pytest.mark.parametrize("target", [TILES, PAIRS], ids=["tiles", "pairs"])
@pytest.mark.parametrize(("shape", "n"), MATMULS)
def test_matmul(target: Target, shape: tuple[int, ...], n: int) -> None:
    x, weight, bias = input_node(0, TensorType("float32", shape)), known(shape[-1], n), known(n)
    y = ops.node("Relu", ops.node("Add", ops.node("MatMul", x, weight), bias))
    graph = lowered(target, x, y)
    assert operators(graph).count("whitebox.MatMulBf16") == 1
    a = RNG.standard_normal(shape).astype(np.float32)
    expected = np.maximum(rounded(a) @ rounded(weight.value) + bias.value, 0)
    np.testing.assert_allclose(emulate(graph, target, a), expected, rtol=1e-5, atol=1e-5)


PRODUCTS = [
    ((2, 19, 40), (2, 40, 33), False),
    ((2, 3, 16, 24), (2, 3, 50, 24), True),
    ((40, 16), (16, 12), False),
    ((1, 2, 33, 64), (1, 2, 64, 64), False),
    ((3, 17, 16), (3, 5, 16), True),
]


@pytest.mark.parametrize("target", [TILES, PAIRS], ids=["tiles", "pairs"])
@pytest.mark.parametrize(("left", "right", "transposed"), PRODUCTS)
def test_products_of_computed_operands(
    target: Target, left: tuple[int, ...], right: tuple[int, ...], transposed: bool
) -> None:
    a, b = (input_node(i, TensorType("float32", dims)) for i, dims in enumerate((left, right)))
    perm = (*range(len(right) - 2), len(right) - 1, len(right) - 2)
    product = ops.node("MatMul", a, ops.node("Transpose", b, perm=perm) if transposed else b)
    scaled = ops.node("Mul", product, constant(np.float32(0.125)))
    graph = fused(model_of(scaled, a, b), target, "bf16")
    assert operators(graph).count("whitebox.BatchMatMulBf16") == 1
    x, y = (RNG.standard_normal(dims).astype(np.float32) for dims in (left, right))
    second = np.swapaxes(rounded(y), -1, -2) if transposed else rounded(y)
    expected = rounded(x) @ second * np.float32(0.125)
    np.testing.assert_allclose(emulate(graph, target, x, y), expected, rtol=1e-5, atol=1e-5)


def test_products_that_do_not_pay_for_packing_stay_in_float32() -> None:
    for left, right in (((2, 3, 40), (2, 40, 33)), ((2, 19, 40), (1, 40, 33))):
        a, b = (input_node(i, TensorType("float32", dims)) for i, dims in enumerate((left, right)))
        graph = fused(model_of(ops.node("MatMul", a, b), a, b), TILES, "bf16")
        assert "MatMul" in operators(graph)


CONVOLUTIONS: list[tuple[tuple[int, ...], int, int, dict[str, Any]]] = [
    ((1, 32, 5, 7), 48, 3, {"pads": (1, 1, 1, 1)}),
    ((2, 64, 7, 7), 32, 1, {}),
    ((1, 48, 9, 20), 16, 3, {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 32, 6, 5), 32, 3, {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((1, 40, 8, 40), 64, 1, {"strides": (2, 2)}),
    ((1, 96, 3, 35), 24, 3, {"pads": (1, 0, 0, 1)}),
    ((1, 32, 1, 9), 16, 5, {"pads": (2, 2, 2, 2)}),
    ((1, 32, 3, 17), 48, 1, {"strides": (2, 1)}),
]


@pytest.mark.parametrize("target", [TILES, PAIRS], ids=["tiles", "pairs"])
@pytest.mark.parametrize(("shape", "channels", "size", "attrs"), CONVOLUTIONS)
def test_convolution(
    target: Target, shape: tuple[int, ...], channels: int, size: int, attrs: dict[str, Any]
) -> None:
    x = input_node(0, TensorType("float32", shape))
    weight, bias = known(channels, shape[1], size, size), known(channels)
    conv = ops.node("Conv", x, weight, bias, kernel_shape=(size, size), **attrs)
    graph = lowered(target, x, ops.node("Relu", conv))
    assert (
        operators(graph).count("whitebox.ConvBf16")
        + operators(graph).count("whitebox.WinogradConv")
        == 1
    )
    a = RNG.standard_normal(shape).astype(np.float32)
    operands = [rounded(a), rounded(weight.value), bias.value]
    (expected,) = onnx_schema.evaluate(conv, operands)
    tolerance = 1e-4 if operators(graph).count("whitebox.ConvBf16") else 0.05
    np.testing.assert_allclose(
        emulate(graph, target, a), np.maximum(expected, 0), rtol=tolerance, atol=tolerance
    )


def test_tiles_take_the_place_of_winograd() -> None:
    x = input_node(0, TensorType("float32", (1, 64, 28, 28)))
    y = ops.node("Conv", x, known(64, 64, 3, 3), kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    assert operators(lowered(TILES, x, y)).count("whitebox.ConvBf16") == 1
    assert operators(lowered(PAIRS, x, y)).count("whitebox.WinogradConv") == 1


def test_what_stays_in_float32_is_recorded() -> None:
    x = input_node(0, TensorType("float32", (1, 3, 9, 9)))
    y = ops.node("Conv", x, known(16, 3, 3, 3), kernel_shape=(3, 3))
    with recording() as decisions:
        graph = model_of(y, x)
        for each in passes_for(TILES, lowerable, "bf16"):
            graph = each(graph)
    assert any(d.action == "left in float32" and "3 input channels" in d.reason for d in decisions)


@pytest.mark.parametrize(
    ("target", "instructions"),
    [
        (TILES, "ldtilecfg tilezero tileloadd tdpbf16ps tilestored tilerelease"),
        (PAIRS, "vdpbf16ps"),
    ],
    ids=["tiles", "pairs"],
)
@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_kernels_consist_of_the_instructions(target: Target, instructions: str, op: str) -> None:
    x = input_node(0, TensorType("float32", (64, 64) if op == "MatMul" else (1, 64, 7, 7)))
    if op == "MatMul":
        y = ops.node(op, x, known(64, 64))
    else:
        y = ops.node(op, x, known(64, 64, 1, 1), kernel_shape=(1, 1))
    graph = lowered(target, x, y)
    (body,) = (body for body in bodies(graph) if "Bf16" in str(body))
    assembly = built(body, target).mod.inspect_source("asm")
    for instruction in instructions.split():
        assert re.search(rf"\b{instruction}\b", assembly), instruction


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_rounding_is_to_nearest_even_and_keeps_what_is_no_number() -> None:
    from tvm import te

    from whitebox.kernels.cpu import bf16

    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -0.0, np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    patterns = RNG.integers(0, 1 << 32, 10_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, patterns])
    x = te.placeholder(values.shape, "float32", name="x")
    y = te.compute(values.shape, lambda i: bf16.widened(bf16.rounded(x[i])), name="y")
    function = te.create_prim_func([x, y]).with_attr("global_symbol", "main")
    kernel = tvm.compile(
        tvm.IRModule({"main": function}), tvm_target(host_target(1)), tir_pipeline="s_tir"
    )
    found = tvm.runtime.tensor(np.zeros_like(values))
    kernel["main"](tvm.runtime.tensor(values), found)
    np.testing.assert_array_equal(found.numpy(), rounded(values))
