"""Scans whose states never change: the body maps slices, so it can map all of them at once."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, Graph, Node, constant, topological
from whitebox.ir.types import TensorType
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape

# All slices at once take memory that one after the other does not.
_MOST_ELEMENTS = 1 << 27


@rule("Scan", "Output")
def scan_to_map(node: Node) -> Node | None:
    """Scan(states, x) with states that stay = body(states, [all slices of x])"""
    scan = node if node.op == "Scan" else node.inputs[0]
    if scan is None or scan.op != "Scan" or (node is scan and len(scan.types) > 1):
        return None
    scanned, body = scan.attr("num_scan_inputs"), scan.attr("body")
    states = len(scan.inputs) - scanned - scan.attr("n_captured", 0)
    index = node.attr("index") if node.op == OUTPUT else 0
    if not _plain(scan, states, scanned):
        return None
    if index < states:
        return scan.inputs[index]
    return _mapped(scan.inputs, body, range(states, states + scanned), body.roots[index])


def _plain(scan: Node, states: int, scanned: int) -> bool:
    """Whether states stay, and slices are taken and stacked along the first axis, in order."""
    orders = ("input_axes", "input_directions", "output_axes", "output_directions")
    if any(any(scan.attr(f"scan_{name}") or ()) for name in orders):
        return False
    body = scan.attr("body")
    formal = [node for _, node in body.model.inputs]
    return all(body.roots[k] is formal[k] for k in range(states)) and all(
        source is not None and isinstance(source.type, TensorType) and source.type.is_static
        for source in scan.inputs[: states + scanned]
    )


def _mapped(
    inputs: tuple[Node | None, ...], body: Graph, scanned: range, root: Node
) -> Node | None:
    """`root` of the body for all slices of the `scanned` inputs; None when that is not plain."""
    new: dict[Node, Node] = {}
    many: set[Node] = set()
    for position, (_, formal) in enumerate(body.model.inputs):
        given = inputs[position]
        if given is None:
            return None
        new[formal] = given
        if position in scanned:
            many.add(formal)
    for node in topological([root]):
        if node.op in (INPUT, CONSTANT):
            new.setdefault(node, node)
            continue
        operands = [source for source in node.inputs if source is not None]
        if not many.intersection(operands):
            new[node] = ops.rebuild(node, [None if s is None else new[s] for s in node.inputs])
            continue
        built = _lifted(node, new, many)
        if built is None or not isinstance(built.type, TensorType) or not built.type.is_static:
            return None
        if built.type.size > _MOST_ELEMENTS:
            return None
        new[node] = built
        many.add(node)
    return new[root] if root in many else None


def _lifted(node: Node, new: dict[Node, Node], many: set[Node]) -> Node | None:
    """An elementwise operator or a reduction with a leading axis more, that of the slices."""
    if len(node.types) != 1:
        return None
    if ops.traits(node.op).elementwise:
        ranks = [
            new[source].tensor.rank - (source in many)
            for source in node.inputs
            if source is not None
        ]
        inputs = [
            None
            if source is None
            else _aligned(new[source], max(ranks))
            if source in many
            else new[source]
            for source in node.inputs
        ]
        return ops.rebuild(node, inputs)
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if not node.op.startswith("Reduce") or axes is None or not axes.is_constant:
        return None
    moved = constant(np.where(axes.value < 0, axes.value, axes.value + 1))
    source = node.inputs[0]
    return ops.rebuild(node, (new[source], moved)) if source in many else None


def _aligned(x: Node, rank: int) -> Node:
    """Slices of a lower rank, so that they broadcast as each one alone does."""
    lead, *dims = x.tensor.dims
    return reshape(x, (lead, *(1,) * (rank - len(dims)), *dims))


SCAN: tuple[Rule, ...] = (scan_to_map,)
