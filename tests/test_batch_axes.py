"""batch_axes: every claim is checked by changing one row and by exchanging rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whitebox.errors import WhiteboxError
from whitebox.ir import onnx_io, onnx_schema, ops
from whitebox.ir.graph import Graph, Model, Node, constant, input_node, output
from whitebox.ir.types import TensorType
from whitebox.passes import specialize
from whitebox.passes.batch_axes import RowsMix, batch_axes

ROWS = 3


def graph_of(*outputs: Node, inputs: tuple[Node, ...]) -> Graph:
    named = tuple((f"y{i}", node) for i, node in enumerate(outputs))
    return Graph([Model("m", tuple((f"x{i}", n) for i, n in enumerate(inputs)), named)])


def blocks(value: np.ndarray, axis: int | None) -> list[np.ndarray]:
    return [value] * ROWS if axis is None else np.split(value, ROWS, axis)


def assert_independent(
    graph: Graph, axes: tuple[int | None, ...], inputs: list[np.ndarray]
) -> None:
    """Row i of the outputs changes with row i of the inputs, and moves where that moves."""
    plain = list(onnx_schema.evaluate_graph(graph, inputs).values())
    changed = [np.concatenate([x[:1], x[1:2][:, ...] * 0 + x[2:3], x[2:]]) for x in inputs]
    other = list(onnx_schema.evaluate_graph(graph, changed).values())
    order = [2, 0, 1]
    moved = list(onnx_schema.evaluate_graph(graph, [x[order] for x in inputs]).values())
    for axis, one, two, three in zip(axes, plain, other, moved, strict=True):
        ones, twos, threes = (blocks(value, axis) for value in (one, two, three))
        for row in (0, 2):
            np.testing.assert_array_equal(ones[row], twos[row])
        for place, row in enumerate(order):
            np.testing.assert_array_equal(threes[place], ones[row])


SHAPE = (ROWS, 4, 6)
X = input_node(0, TensorType("float32", SHAPE))
Y = input_node(1, TensorType("float32", SHAPE))


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Node:
    return constant(np.array(values, np.int64))


@st.composite
def next_node(draw: st.DrawFn, nodes: list[Node]) -> Node:
    """A node over those there are; most keep the rows apart, some mix them."""
    source = draw(st.sampled_from(nodes[-4:]))
    dims = source.tensor.dims
    axis = draw(st.integers(0, len(dims) - 1))
    match draw(st.sampled_from(KINDS)):
        case "unary":
            return ops.node(draw(st.sampled_from(("Relu", "Tanh", "Neg"))), source)
        case "binary":
            return ops.node("Add", source, draw(st.sampled_from(nodes)))
        case "constant":
            shape = tuple(draw(st.sampled_from((1, d))) for d in dims)
            value = random(shape) if draw(st.booleans()) else np.ones(shape, np.float32)
            return ops.node("Mul", source, constant(value))
        case "product":
            return ops.node("MatMul", source, constant(random((dims[-1], 5))))
        case "both":
            other = draw(st.sampled_from(nodes))
            perm = (*range(len(other.tensor.dims) - 2), -1, -2)
            turned = tuple(p % len(other.tensor.dims) for p in perm)
            return ops.node("MatMul", source, ops.node("Transpose", other, perm=turned))
        case "transpose":
            perm = draw(st.permutations(range(len(dims))))
            return ops.node("Transpose", source, perm=tuple(perm))
        case "reshape":
            size = int(np.prod(dims))
            first = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
            return ops.node("Reshape", source, ints(first, size // first))
        case "softmax":
            return ops.node("Softmax", source, axis=axis)
        case "reduce":
            keep = draw(st.integers(0, 1))
            return ops.node("ReduceMean", source, ints(axis), keepdims=keep)
        case "concat":
            return ops.node("Concat", source, draw(st.sampled_from(nodes)), axis=axis)
        case "slice":
            return ops.node("Slice", source, ints(0), ints(max(dims[axis] - 1, 1)), ints(axis))
        case "gather":
            return ops.node("Gather", source, ints(0, dims[axis] - 1), axis=axis)
        case "split":
            halves = ops.node("Split", source, outputs=2, axis=axis, num_outputs=2)
            return output(halves, draw(st.integers(0, 1)))
        case "unsqueeze":
            return ops.node("Unsqueeze", source, ints(axis))
        case "pad":
            pads = [0] * len(dims) * 2
            pads[axis] = 1
            return ops.node("Pad", source, ints(*pads))
        case "norm":
            scale = constant(random(dims[-1:]))
            return ops.node("LayerNormalization", source, scale, axis=-1)
        case "cumulative":
            return ops.node("CumSum", source, constant(np.array(axis, np.int64)))
    return ops.node("Expand", source, ints(2, *dims))


KINDS = (
    "unary binary constant product both transpose reshape softmax reduce concat slice gather split "
    "unsqueeze pad norm cumulative expand"
).split()


@st.composite
def random_graph(draw: st.DrawFn) -> Graph:
    nodes: list[Node] = [X, Y]
    for _ in range(draw(st.integers(1, 6))):
        try:
            made = draw(next_node(nodes))
        except WhiteboxError:
            continue  # shapes that do not fit
        if made.tensor.size <= 4000 and len(made.tensor.dims) > 1:
            nodes.append(made)
    return graph_of(nodes[-1], inputs=(X, Y))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graph())
def test_no_claim_is_false(graph: Graph) -> None:
    try:
        axes = batch_axes(graph, ROWS)
    except RowsMix:
        return
    assert_independent(graph, axes, [random(SHAPE, 1), random(SHAPE, 2)])


@pytest.mark.parametrize(
    ("text", "shape", "axes"),
    [
        ("y = Softmax <axis = -1> (x)", (3, 4), (0,)),
        ("t = Transpose <perm = [1, 0]> (x) y = Relu(t)", (3, 4), (1,)),
        ("s = Shape(x) y = Reshape(x, s)", (3, 4), (0,)),
        ("y = GlobalAveragePool(x)", (3, 2, 4, 4), (0,)),
    ],
)
def test_usual_operators_keep_rows_apart(
    text: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    dims = ", ".join(["N", *map(str, shape[1:])])
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> m (float[{dims}] x) => (float y) {{ {text} }}'
    )
    graph = specialize(onnx_io.load(model, "m"), {"x": shape})
    assert batch_axes(graph, 3) == axes
    assert_independent(graph, axes, [random(shape)])


def test_recurrent_layers_keep_rows_apart() -> None:
    steps = ops.node("Transpose", X, perm=(1, 0, 2))
    weights = [constant(random((1, 8, size), size)) for size in (6, 2)]
    layer = ops.node("LSTM", steps, *weights, outputs=3, hidden_size=2)
    graph = graph_of(*(output(layer, i) for i in range(3)), inputs=(X,))
    axes = batch_axes(graph, ROWS)
    assert axes == (2, 1, 1)
    assert_independent(graph, axes, [random(SHAPE)])


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        ("y = Softmax <axis = 0> (x)", (3, 4), "works along the batch"),
        ("y = ReduceMean(x)", (3, 4), "works along the batch"),
        ("t = Transpose <perm = [1, 0]> (x) y = MatMul(t, x)", (3, 4), "sums over the batch"),
        ("t = Transpose <perm = [1, 0]> (x) y = MatMul(x, t)", (3, 4), "different axes"),
        ("s = Shape(x) t = Transpose <perm = [1, 0]> (x) y = Reshape(t, s)", (3, 4), "puts rows"),
        ("a, b, c = DynamicQuantizeLinear(x) y = Cast <to = 1> (a)", (3, 4), "may mix rows"),
        ("y = Unique(x)", (3, 4), "no fixed shape"),
        ("y, i = MaxPool <kernel_shape = [2]> (x)", (3, 1, 4), "whole batch"),
    ],
)
def test_what_mixes_rows_is_named(text: str, shape: tuple[int, ...], reason: str) -> None:
    dims = ", ".join(["N", *map(str, shape[1:])])
    outputs = "float y, int64 i" if "MaxPool" in text else "float y"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> m (float[{dims}] x) => ({outputs}) {{ {text} }}'
    )
    graph = specialize(onnx_io.load(model, "m"), {"x": shape})
    with pytest.raises(RowsMix, match=reason):
        batch_axes(graph, shape[0])


@pytest.mark.parametrize("name", ["minilm-int8", "ppocr-cls", "slovorez-fp16", "nsnet2"])
def test_real_models_keep_rows_apart(real_model: Callable[[str], Path], name: str) -> None:
    graph = onnx_io.load(real_model(name), name)
    shapes = {
        each: (3, *(d if isinstance(d, int) else 48 for d in node.tensor.shape[1:]))  # type: ignore[index]
        for each, node in graph.model.inputs
    }
    assert set(batch_axes(specialize(graph, shapes), 3)) == {0}
