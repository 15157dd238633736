"""A graph said in standard ONNX operators only, for other tools.

Enter: a Graph, optimized or not. Leave: an equal Graph in which fused groups are their operators
again and the operators on blocked data and packed weights are ordinary ones between transposes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from whitebox.errors import UnsupportedOperator
from whitebox.ir import ops
from whitebox.ir.combine import vote_of_integers
from whitebox.ir.graph import INPUT, OUTPUT, Graph, Node, constant, output, topological
from whitebox.ir.types import ONNX_DTYPES
from whitebox.ir.winograd import weight_inverse

_INT64 = ONNX_DTYPES.index("int64")

Expansion: TypeAlias = Callable[[Node, "tuple[Node | None, ...]"], Node]


def standard(graph: Graph) -> Graph:
    """The same models in standard operators."""
    declared = [node for model in graph.models.values() for _, node in model.inputs]
    new: dict[Node, Node] = {}
    # Nodes whose several results are no longer those of one node.
    split: dict[Node, list[Node]] = {}
    _extend(topological([*declared, *graph.roots]), new, split)
    models = [
        replace(
            model,
            inputs=tuple((name, new[node]) for name, node in model.inputs),
            outputs=tuple((name, new[node]) for name, node in model.outputs),
        )
        for model in graph.models.values()
    ]
    names = {new[node]: name for node, name in graph.names.items() if node in new}
    return Graph(models, names)


def _extend(order: Sequence[Node], new: dict[Node, Node], split: dict[Node, list[Node]]) -> None:
    """Give each node of `order` its replacement, inputs before users."""
    for node in order:
        if node in new or node in split:
            continue
        source = node.inputs[0] if node.inputs else None
        if node.op == OUTPUT and source in split:
            new[node] = split[source][node.attrs["index"]]  # type: ignore[index]
            continue
        inputs = tuple(None if each is None else new[each] for each in node.inputs)
        if node.op == "whitebox.Fused":
            results = _inlined(node.attrs["body"], inputs)  # type: ignore[arg-type]
            if len(results) == 1:
                new[node] = results[0]
            else:
                split[node] = results
        elif node.op in _EXPANSIONS:
            new[node] = _EXPANSIONS[node.op](node, inputs)
        elif node.op.startswith(ops.WHITEBOX):
            raise UnsupportedOperator(f"{node.op} has no form in standard ONNX operators")
        else:
            new[node] = _with_standard_bodies(node, inputs)


def _inlined(body: Graph, inputs: Sequence[Node | None]) -> list[Node]:
    """The results of a fused group's body on these inputs."""
    new: dict[Node, Node] = {}
    for (_, formal), given in zip(body.model.inputs, inputs, strict=True):
        if given is not None:
            new[formal] = given
    order = [node for node in topological(body.roots) if node.op != INPUT]
    _extend(order, new, {})
    return [new[root] for root in body.roots]


def _with_standard_bodies(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    bodies = {
        name: standard(value) for name, value in node.attrs.items() if isinstance(value, Graph)
    }
    if not bodies:
        return node.with_inputs(inputs)
    return Node.make(node.op, inputs, {**node.attrs, **bodies}, node.types, node.version)


def _ints(*values: int) -> Node:
    return constant(np.array(values, np.int64))


def _reshape(x: Node, *dims: int) -> Node:
    return ops.node("Reshape", x, _ints(*dims))


def _transpose(x: Node, *perm: int) -> Node:
    return ops.node("Transpose", x, perm=perm)


def _given(inputs: tuple[Node | None, ...], index: int) -> Node:
    node = inputs[index]
    assert node is not None
    return node


def _blocked(x: Node, block: int) -> Node:
    """NCHW → NCHWc; the channels are a whole number of blocks."""
    n, c, h, w = x.tensor.dims
    return _transpose(_reshape(x, n, c // block, block, h, w), 0, 1, 3, 4, 2)


def _plain(x: Node) -> Node:
    """NCHWc → NCHW, padded channels kept."""
    n, blocks, h, w, block = x.tensor.dims
    return _reshape(_transpose(x, 0, 1, 4, 2, 3), n, blocks * block, h, w)


def _window_attrs(node: Node, *more: str) -> dict[str, Any]:
    names = ("kernel_shape", "strides", "pads", "dilations", *more)
    return {name: node.attrs[name] for name in names if name in node.attrs}


def _bias(inputs: tuple[Node | None, ...]) -> Node | None:
    bias = inputs[2] if len(inputs) > 2 else None
    return None if bias is None else _reshape(bias, -1)


def _conv(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    x, weight, block = _given(inputs, 0), _given(inputs, 1), node.attr("block")
    dims = weight.tensor.dims
    if node.attr("data_layout") == "NCHWc":
        x = _plain(x)
        weight = _transpose(weight, 0, 5, 1, 4, 2, 3)
        weight = _reshape(weight, dims[0] * dims[5], dims[1] * dims[4], dims[2], dims[3])
    else:
        weight = _transpose(weight, 0, 4, 1, 2, 3)
        weight = _reshape(weight, dims[0] * dims[4], *dims[1:4])
    return _blocked(ops.node("Conv", x, weight, _bias(inputs), **_window_attrs(node)), block)


def _winograd_conv(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    x, weight = _plain(_given(inputs, 0)), _given(inputs, 1)
    outer, _, _, inner, block, _ = weight.tensor.dims
    rows = _reshape(_transpose(weight, 0, 5, 3, 4, 1, 2), -1, 36)
    size = node.attr("kernel_shape")[0]
    weight = ops.node("MatMul", rows, constant(weight_inverse(size)))
    weight = _reshape(weight, outer * block, inner * block, size, size)
    return _blocked(ops.node("Conv", x, weight, _bias(inputs), **_window_attrs(node)), block)


def _depthwise_conv(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    x, weight = _plain(_given(inputs, 0)), _given(inputs, 1)
    blocks, kh, kw, block = weight.tensor.dims
    weight = _reshape(_transpose(weight, 0, 3, 1, 2), blocks * block, 1, kh, kw)
    attrs = {**_window_attrs(node), "group": blocks * block}
    return _blocked(ops.node("Conv", x, weight, _bias(inputs), **attrs), block)


def _pool(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    attrs = _window_attrs(node, "ceil_mode")
    if node.op == "whitebox.AveragePool":
        attrs["count_include_pad"] = node.attr("count_include_pad", 0)
    plain = ops.make(node.op.removeprefix(ops.WHITEBOX), (_plain(_given(inputs, 0)),), attrs)
    return _blocked(plain, node.attr("block"))


def _matmul(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    panels, k, width = _given(inputs, 1).tensor.dims
    columns = _reshape(_transpose(_given(inputs, 1), 1, 0, 2), k, panels * width)
    kept = ops.node("Slice", columns, _ints(0), _ints(node.attr("n")), _ints(1))
    return ops.node("MatMul", inputs[0], kept)


def _matmul_transposed(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    b = _given(inputs, 1)
    rank = b.tensor.rank
    return ops.node("MatMul", inputs[0], _transpose(b, *range(rank - 2), rank - 1, rank - 2))


def _pack(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    x, block = _given(inputs, 0), node.attr("block")
    missing = -x.tensor.dims[1] % block
    if missing:
        x = ops.node("Pad", x, _ints(0, 0, 0, 0, 0, missing, 0, 0))
    return _blocked(x, block)


def _unpack(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    plain, channels = _plain(_given(inputs, 0)), node.attr("channels")
    if plain.tensor.dims[1] == channels:
        return plain
    return ops.node("Slice", plain, _ints(0), _ints(channels), _ints(1))


def _tree_scan(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    x, _, leaf, *nodes, scores = (_given(inputs, index) for index in range(8))
    groups, places, width = nodes[0].tensor.dims
    place = ops.node("Expand", _ints(0), _ints(x.tensor.dims[0], groups * width))
    for k in range(places):
        at = [ops.node("Gather", table, constant(np.array(k)), axis=1) for table in nodes]
        feature, threshold, first, after = (_reshape(table, groups * width) for table in at)
        passed = ops.node("LessOrEqual", ops.node("Gather", x, feature, axis=1), threshold)
        first, after = (ops.node("Cast", each, to=_INT64) for each in (first, after))
        stands = ops.node("Equal", place, first)
        moves = ops.node("And", stands, ops.node("Not", passed))
        place = ops.node("Where", moves, after, place)
    start = ops.node("Cast", _reshape(leaf, groups * width), to=_INT64)
    found = ops.node("Gather", scores, ops.node("Add", place, start))
    return ops.node(f"Reduce{node.attr('combine')}", found, _ints(1), keepdims=0)


def _tree_walk(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    x, start, links, threshold = (_given(inputs, index) for index in range(4))
    feature, yes, no = (
        ops.node("Gather", links, constant(np.array(link)), axis=1) for link in range(3)
    )
    place = ops.node("Expand", start, _ints(x.tensor.dims[0], start.tensor.dims[0]))
    for _ in range(node.attr("depth")):
        value = ops.node("GatherElements", x, ops.node("Gather", feature, place), axis=1)
        passed = ops.node("LessOrEqual", value, ops.node("Gather", threshold, place))
        place = ops.node(
            "Where", passed, ops.node("Gather", yes, place), ops.node("Gather", no, place)
        )
    return _transpose(place, 1, 0) if node.attr("rows_last") else place


def _vote(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    """Strings are put in order by Unique; the vote is then on their places."""
    labels = _given(inputs, 0)
    unique = ops.node("Unique", labels, outputs=3, sorted=1)
    places = ops.node("Reshape", output(unique, 2), ops.node("Shape", labels))
    return ops.node("Gather", output(unique, 0), vote_of_integers(places))


_EXPANSIONS: Mapping[str, Expansion] = {
    "whitebox.Conv": _conv,
    "whitebox.WinogradConv": _winograd_conv,
    "whitebox.DepthwiseConv": _depthwise_conv,
    "whitebox.MaxPool": _pool,
    "whitebox.AveragePool": _pool,
    "whitebox.MatMul": _matmul,
    "whitebox.MatMulTransposed": _matmul_transposed,
    "whitebox.Pack": _pack,
    "whitebox.TreeScan": _tree_scan,
    "whitebox.TreeWalk": _tree_walk,
    "whitebox.Unpack": _unpack,
    "whitebox.Vote": _vote,
}
