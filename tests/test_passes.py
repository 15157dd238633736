"""Passes: before/after pairs in ONNX's own text form, evaluated as well; and random DAGs."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whitebox.errors import VerifyError
from whitebox.ir import onnx_schema, ops
from whitebox.ir.graph import Graph, Model, Node, constant, input_node
from whitebox.ir.text import parse_graph_text
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.passes import PASSES, Pass, optimize, pass_name, recording
from whitebox.passes.fold import fold
from whitebox.passes.fuse import fuse, label
from whitebox.passes.layout import layout
from whitebox.passes.lower_precision import lower_precision
from whitebox.passes.rewrite import rewrite, rule
from whitebox.passes.share import share
from whitebox.passes.verify import verify

FIXTURES = Path(__file__).parent / "fixtures" / "passes"
BY_NAME: dict[str, Pass] = {
    **{pass_name(each): each for each in (share, *PASSES)},
    "lower_precision": functools.partial(lower_precision, precision="bf16"),
    **{
        f"lower_precision_{kind}": functools.partial(
            lower_precision, precision="bf16", instructions=kind
        )
        for kind in ("pairs", "tiles")
    },
}


def pairs() -> list[object]:
    """(pass, before, after) of every fixture; the first line of a case names it."""
    found: list[object] = []
    for path in sorted(FIXTURES.glob("*.txt")):
        for case in path.read_text().split("==="):
            title, _, text = case.strip().partition("\n")
            before, after = text.split("---")
            name = f"{path.stem}-{title.lstrip('# ')}"
            found.append(pytest.param(BY_NAME[path.stem], before, after, id=name))
    return found


def seeded(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Random values for the inputs of a graph with one model; free dimensions are 3."""
    random = np.random.default_rng(seed)
    arrays = []
    for _, node in graph.model.inputs:
        dtype = numpy_dtype(node.tensor.dtype)
        dims = tuple(dim if isinstance(dim, int) else 3 for dim in node.tensor.shape or ())
        if dtype.kind == "f":
            arrays.append(random.standard_normal(dims).astype(dtype))
        else:
            arrays.append(random.integers(-9, 9, dims).astype(dtype))
    return arrays


def assert_same_values(graph: Graph, other: Graph, tolerance: float = 2e-4) -> None:
    feeds = seeded(graph)
    expected = onnx_schema.evaluate_graph(graph, feeds)
    actual = onnx_schema.evaluate_graph(other, feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("function", "before", "after"), pairs())
def test_pair(function: Pass, before: str, after: str) -> None:
    graph = parse_graph_text(before)
    expected = fold(parse_graph_text(after))
    result = function(graph)
    assert fold(result) == expected, f"\n{result}\n  is not\n{expected}"
    verify(result)
    # bf16 keeps 8 bits of an operand.
    lowered = isinstance(function, functools.partial)
    assert_same_values(graph, result, 5e-2 if lowered else 2e-4)


def test_every_pass_with_rules_has_fixtures() -> None:
    assert {path.stem for path in FIXTURES.glob("*.txt")} >= {
        "share", "fold", "simplify", "layout", "lower_precision",
    }  # fmt: skip


def conv_chain() -> Graph:
    """x → Conv → Relu → DepthwiseConv → HardSwish → Conv → + x, with odd channel counts."""
    random = np.random.default_rng(1)
    x = input_node(0, TensorType("float32", (1, 24, 9, 7)))

    def conv(source: Node, oc: int, ic: int, k: int, group: int = 1) -> Node:
        weight = constant(random.standard_normal((oc, ic, k, k)).astype(np.float32))
        bias = constant(random.standard_normal(oc).astype(np.float32))
        pad = k // 2
        return ops.node(
            "Conv", source, weight, bias, kernel_shape=(k, k), pads=(pad,) * 4, group=group
        )

    a = ops.node("Relu", conv(x, 40, 24, 3))
    b = ops.node("HardSwish", conv(a, 40, 1, 5, group=40))
    y = ops.node("Add", conv(b, 24, 40, 1), x)
    return Graph([Model("chain", (("x", x),), (("y", y),))])


def test_layout_keeps_values_and_meets_in_the_middle() -> None:
    graph = conv_chain()
    blocked = optimize(graph, PASSES[:4])
    counts = [node.op for node in blocked.nodes]
    assert counts.count("whitebox.WinogradConv") == 1
    assert counts.count("whitebox.Conv") == 1
    assert counts.count("whitebox.DepthwiseConv") == 1
    assert counts.count("whitebox.Pack") == 1  # x, once for both of its readers
    assert counts.count("whitebox.Unpack") == 1  # y
    assert_same_values(graph, blocked)


def test_fuse_makes_a_kernel_of_each_convolution_and_what_follows() -> None:
    fused = optimize(conv_chain())
    bodies = [node.attr("body") for node in fused.nodes if node.op == "whitebox.Fused"]
    operators = [[n.op.removeprefix("whitebox.") for n in body.nodes] for body in bodies]
    assert [[op for op in found if op not in ("Input", "Constant")] for found in operators] == [
        ["Pack"],
        ["WinogradConv", "Relu"],
        ["DepthwiseConv", "HardSwish"],
        ["Conv", "Add"],
        ["Unpack"],
    ]
    assert_same_values(conv_chain(), fused)


def test_fuse_takes_a_view_between_moves() -> None:
    x = input_node(0, TensorType("float32", (1, 4, 3, 2, 2)))
    turned = ops.node("Transpose", x, perm=(0, 2, 1, 3, 4))
    shape = constant(np.array([1, 12, 2, 2], np.int64))
    y = ops.node("whitebox.Pack", ops.node("Reshape", turned, shape), block=16)
    graph = Graph([Model("m", (("x", x),), (("y", y),))])
    fused = fuse(graph)
    assert [label(node) for node in fused.nodes if node.op == "whitebox.Fused"] == [
        "Transpose+Reshape+Pack"
    ]
    assert_same_values(graph, fused)


def test_weights_are_arguments_of_fused_bodies() -> None:
    for node in optimize(conv_chain()).nodes:
        if node.op == "whitebox.Fused":
            inside = node.attr("body").nodes
            assert all(n.tensor.size < 8 for n in inside if n.is_constant)


def test_an_unsupported_node_is_left_to_the_host_with_its_reason() -> None:
    x = input_node(0, TensorType("float32", (4,)))
    y = ops.node("Relu", ops.node("Exp", x))
    graph = Graph([Model("m", (("x", x),), (("y", y),))])
    with recording() as decisions:
        result = fuse(graph, lambda node: "no kernel" if node.op == "Exp" else None)
    assert [node.op for node in result.nodes] == ["Input", "Exp", "whitebox.Fused"]
    assert any(d.action == "left on the host" and d.reason == "no kernel" for d in decisions)


def test_an_output_inside_a_chain_is_kept() -> None:
    x = input_node(0, TensorType("float32", (4,)))
    a = ops.node("Exp", x)
    b = ops.node("Relu", a)
    graph = Graph([Model("m", (("x", x),), (("a", a), ("b", b)))])
    fused = optimize(graph)
    assert sum(node.op == "whitebox.Fused" for node in fused.nodes) == 2
    assert_same_values(graph, fused)


def test_rules_that_undo_each_other_are_an_error() -> None:
    @rule("Exp")
    def forth(node: Node) -> Node | None:
        """Exp(x) = Relu(x), which is wrong"""
        return ops.node("Relu", node.inputs[0])

    @rule("Relu")
    def back(node: Node) -> Node | None:
        """Relu(x) = Exp(Neg(x)), which is wrong as well"""
        return ops.node("Exp", ops.node("Neg", node.inputs[0]))

    x = input_node(0, TensorType("float32", (4,)))
    graph = Graph([Model("m", (("x", x),), (("y", ops.node("Exp", x)),))])
    with pytest.raises(VerifyError, match="undo each other"):
        rewrite(graph, (forth, back))


def test_a_pass_that_changes_a_type_is_named() -> None:
    def shorten(graph: Graph) -> Graph:
        (name, node) = graph.model.outputs[0]
        flat = ops.node("Reshape", node, constant(np.array([-1])))
        return Graph([Model(graph.model.name, graph.model.inputs, ((name, flat),))])

    with pytest.raises(VerifyError, match="pass shorten"):
        optimize(conv_chain(), (shorten,))


UNARY = ("Relu", "Sigmoid", "Neg", "Abs", "Tanh", "HardSwish")
BINARY = ("Add", "Mul", "Sub", "Max")
SHAPES = ((2, 3, 4, 4), (2, 3, 1, 1), (1, 3, 4, 4), (4, 4), (1,))


@st.composite
def random_graph(draw: st.DrawFn) -> Graph:
    """A DAG of elementwise nodes, transposes, convolutions and pools on 4-D data."""
    x = input_node(0, TensorType("float32", SHAPES[0]))
    nodes = [x]
    random = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    for _ in range(draw(st.integers(1, 12))):
        source = draw(st.sampled_from(nodes[-4:]))
        match draw(st.sampled_from(("unary", "binary", "constant", "conv", "twice", "reduce"))):
            case "unary":
                made = ops.node(draw(st.sampled_from(UNARY)), source)
            case "binary":
                made = ops.node(draw(st.sampled_from(BINARY)), source, draw(st.sampled_from(nodes)))
            case "constant":
                shape = draw(st.sampled_from(SHAPES))
                operand = constant(random.standard_normal(shape).astype(np.float32))
                made = ops.node(draw(st.sampled_from(BINARY)), source, operand)
            case "conv":
                weight = constant(random.standard_normal((3, 3, 3, 3)).astype(np.float32) / 5)
                made = ops.node("Conv", source, weight, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
            case "twice":
                swapped = ops.node("Transpose", source, perm=(0, 2, 3, 1))
                made = ops.node("Transpose", ops.node("Relu", swapped), perm=(0, 3, 1, 2))
            case _:
                axes = constant(np.array([2, 3]))
                made = ops.node("Add", source, ops.node("ReduceMean", source, axes))
        nodes.append(made)
    outputs = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
    named = tuple((f"y{index}", node) for index, node in enumerate(outputs))
    return Graph([Model("random", (("x", x),), named)])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graph())
def test_optimized_random_dags_compute_the_same(graph: Graph) -> None:
    assert_same_values(graph, optimize(graph, (*PASSES[:4], functools.partial(fuse), verify)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("zero", [None, 0, 3])
@pytest.mark.parametrize("group", [2, 4])
def test_integer_products_are_packed_exactly(dtype: type, zero: int | None, group: int) -> None:
    random = np.random.default_rng(2)
    a = input_node(0, TensorType("uint8", (5, 7)))
    weight = constant(random.integers(0, 100, (7, 18)).astype(dtype))
    zeros = (constant(np.array(9, np.uint8)), constant(np.array(zero or 0, dtype)))
    node = ops.node("MatMulInteger", a, weight, *(zeros if zero is not None else ()))
    graph = Graph([Model("m", (("a", a),), (("y", node),))])
    packed = layout(graph, integer_group=group)
    assert any(node.op == "whitebox.MatMulInteger" for node in packed.nodes)
    values = random.integers(0, 255, (5, 7)).astype(np.uint8)
    expected = onnx_schema.evaluate_graph(graph, [values])["y"]
    np.testing.assert_array_equal(onnx_schema.evaluate_graph(packed, [values])["y"], expected)
