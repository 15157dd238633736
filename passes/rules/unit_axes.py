"""Views that only add, drop or move axes of size 1, brought out of the way of what computes.

Exporters squeeze and unsqueeze around operators that want another rank; such a view between a
convolution and its bias, activation or reduction would keep them from being fused.
"""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.transpose import ELEMENTWISE_BINARY, permutation, transpose


def _wide(dims: tuple[int, ...]) -> list[int]:
    """The axes that have more than one element."""
    return [axis for axis, dim in enumerate(dims) if dim != 1]


def _unit_view(node: Node | None) -> tuple[Node, dict[int, int]] | None:
    """(x, axis of the view → axis of x), when node = Reshape(x) changes axes of size 1 only."""
    source = node.inputs[0] if node is not None and node.op == "Reshape" else None
    if node is None or source is None or source.is_constant_expression:
        return None
    if not source.tensor.is_static or not node.tensor.is_static:
        return None
    before, after = source.tensor.dims, node.tensor.dims
    if [before[axis] for axis in _wide(before)] != [after[axis] for axis in _wide(after)]:
        return None
    return source, dict(zip(_wide(after), _wide(before), strict=True))


@rule(*ELEMENTWISE_BINARY)
def unit_view_below_binary(node: Node) -> Node | None:
    """f(View(x), c) = View(f(x, c')), c known, the view one of axes of size 1"""
    view = next((o for o in node.inputs if _unit_view(o) is not None), None)
    found = _unit_view(view)
    if found is None or len(node.inputs) != 2 or view.tensor.shape != node.tensor.shape:  # type: ignore[union-attr]
        return None
    source, place = found
    operands = []
    for operand in node.inputs:
        if operand is view:
            operands.append(source)
            continue
        if operand is None or not operand.is_constant_expression:
            return None
        dims = [1] * source.tensor.rank
        shift = node.tensor.rank - operand.tensor.rank
        for axis in _wide(operand.tensor.dims):
            dims[place[axis + shift]] = operand.tensor.dims[axis]
        operands.append(reshape(operand, tuple(dims)))
    return reshape(ops.rebuild(node, tuple(operands)), node.tensor.dims)


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def unit_view_below_reduce(node: Node) -> Node | None:
    """Reduce(View(x), axes) = View(Reduce(x, axes')), the view one of axes of size 1"""
    found = _unit_view(node.inputs[0])
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if found is None or axes is None or not axes.is_constant:
        return None
    source, place = found
    rank = node.inputs[0].tensor.rank  # type: ignore[union-attr]
    reduced = {int(axis) % rank for axis in axes.value}
    if not reduced or not reduced <= place.keys():
        return None
    moved = constant(np.array(sorted(place[axis] for axis in reduced), np.int64))
    return reshape(ops.node(node.op, source, moved, keepdims=1), node.tensor.dims)


@rule("Reshape")
def unit_view_above_transpose(node: Node) -> Node | None:
    """View(Transpose(x)) = Transpose(View(x)), the view one of axes of size 1"""
    found = _unit_view(node)
    if found is None or found[0].op != "Transpose":
        return None
    turned, place = found
    source = turned.inputs[0]
    if source is None or not source.tensor.is_static:
        return None
    perm, wide, rank = permutation(turned), _wide(source.tensor.dims), node.tensor.rank
    # The others come first: what a matrix product reads are the last two.
    first = rank - len(wide)
    units = iter(range(first))
    order = [
        first + wide.index(perm[place[axis]]) if axis in place else next(units)
        for axis in range(rank)
    ]
    dims = [source.tensor.dims[axis] for axis in wide]
    return transpose(reshape(source, (*[1] * first, *dims)), tuple(order))


@rule("Conv")
def column_conv_to_row(node: Node) -> Node | None:
    """Conv(x, W) over columns, one wide = the same over rows, one high: rows lie in memory"""
    x, weight, *bias = node.inputs
    if x is None or weight is None or not node.tensor.is_static or node.tensor.rank != 4:
        return None
    top, left, bottom, right = node.attr("pads", (0, 0, 0, 0))
    if node.attr("auto_pad", "NOTSET") != "NOTSET" or left or right:
        return None
    if x.tensor.dims[3] != 1 or weight.tensor.dims[3] != 1 or x.tensor.dims[2] == 1:
        return None

    def turned(source: Node) -> Node:
        n, c, h, w = source.tensor.dims
        return reshape(source, (n, c, w, h))

    attrs = {
        "kernel_shape": (1, weight.tensor.dims[2]),
        "strides": (1, node.attr("strides", (1, 1))[0]),
        "pads": (0, top, 0, bottom),
        "dilations": (1, node.attr("dilations", (1, 1))[0]),
        "group": node.attr("group", 1),
    }
    return turned(ops.node("Conv", turned(x), turned(weight), *bias, **attrs))


UNIT_AXES: tuple[Rule, ...] = (
    unit_view_below_binary,
    unit_view_below_reduce,
    unit_view_above_transpose,
    column_conv_to_row,
)
