"""Operators over free sizes that keep a tile of results in registers, and what may follow them.

What enters: a node that has such a kernel, the values of its operands, and what else its body
computes. What leaves: statements in which each vector of the node's result goes through the rest of
the body while it is at hand, or goes to memory where the rest has another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from whitebox.compiler.lower.products import product
from whitebox.compiler.lower.value import Axes, Body, Scope, Value, emitter, from_array
from whitebox.compiler.lower.windows import average_pool, convolution, depthwise, max_pool, winograd
from whitebox.ir.graph import Graph, Node
from whitebox.kernels.cpu.nest import Array
from whitebox.kernels.cpu.product import TileScope, Write

Tiled = Callable[[Node, Sequence[Value], Body, Write], None]

TILED: dict[str, Tiled] = {
    "MatMul": product,
    "whitebox.AveragePool": average_pool,
    "whitebox.Conv": convolution,
    "whitebox.DepthwiseConv": depthwise,
    "whitebox.MatMul": product,
    "whitebox.MatMulTransposed": product,
    "whitebox.MaxPool": max_pool,
    "whitebox.WinogradConv": winograd,
}


class Apart(Exception):
    """What follows a node does not go with it vector by vector."""


def anchor_of(body: Graph) -> Node | None:
    """The one such node of a body whose only result has its shape."""
    anchors = [n for n in body.nodes if n.op in TILED and n.tensor.dtype == "float32"]
    outputs = body.model.outputs
    if len(anchors) != 1 or len(outputs) != 1:
        return None
    same = outputs[0][1].tensor.extents == anchors[0].tensor.extents
    return anchors[0] if same else None


def fused(
    anchor: Node,
    known: dict[Node, tuple[Value, ...]],
    made: Body,
    result: Array,
    rest: Callable[[], Value],
) -> None:
    """Add the anchor's statements; `rest` lowers what follows, and gives what is to be stored.

    Raises Apart when that asks for elements other than those at hand.
    """
    args = [known[source][0] for source in anchor.inputs if source is not None]

    def held(scope: Scope, axes: Axes) -> Any:
        if isinstance(scope, TileScope) and _keys(axes) == _keys(scope.axes):
            return scope.value
        raise Apart

    known[anchor] = (Value(anchor.tensor.dtype, anchor.tensor.extents, held),)
    before = len(made.statements)
    value = rest()
    if len(made.statements) > before:
        raise Apart

    def write(scope: TileScope, axes: Axes) -> list[Any]:
        return [result.store(scope, axes, value.at(scope, axes))]

    TILED[anchor.op](anchor, args, made, write)


def _keys(axes: Axes) -> list[Any]:
    return [axis.key for axis in axes]


def separate(node: Node, args: Sequence[Value], body: Body) -> Value:
    """A node whose result goes to memory before anything else reads it."""
    array = body.array(node.tensor.extents, "float32")

    def write(scope: TileScope, axes: Axes) -> list[Any]:
        return [array.store(scope, axes, scope.value)]

    TILED[node.op](node, args, body, write)
    return from_array(array, "float32")


@emitter(*(op for op in TILED if op.startswith("whitebox.")))
def _separate(node: Node, args: Sequence[Value], body: Body) -> Value:
    return separate(node, args, body)
