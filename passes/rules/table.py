"""Rows of a known table, picked by indices: products with one-hot rows, and maps of the rows."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.transpose import ELEMENTWISE_BINARY, ELEMENTWISE_UNARY


@rule("MatMul")
def one_hot_product(node: Node) -> Node | None:
    """Cast(x = [0, 1, … n-1]) · W = Gather(W and a row of zeros, x where 0 ≤ x < n, else n)"""
    hot, table = node.inputs
    if hot is None or table is None or hot.op != "Cast" or not node.tensor.is_static:
        return None
    if not table.is_constant_expression or table.tensor.rank != 2:
        return None
    compared = hot.inputs[0]
    if compared is None or compared.op != "Equal":
        return None
    rows = table.tensor.dims[0]
    index, counted = compared.inputs
    if not _counts_up_to(counted, rows):
        index, counted = counted, index
    if index is None or not _counts_up_to(counted, rows):
        return None
    dims = compared.tensor.dims
    if index.tensor.shape != (*dims[:-1], 1) or "int" not in index.tensor.dtype:
        return None
    index = reshape(index, dims[:-1])
    zero, end = (constant(np.array(v, numpy_dtype(index.tensor.dtype))) for v in (0, rows))
    inside = ops.node("And", ops.node("GreaterOrEqual", index, zero), ops.node("Less", index, end))
    grown = ops.node("Pad", table, constant(np.array([0, 0, 1, 0], np.int64)))
    return ops.node("Gather", grown, ops.node("Where", inside, index, end), axis=0)


def _counts_up_to(node: Node | None, size: int) -> bool:
    """Whether a tensor is the constant 0, 1, … size-1 along its last axis."""
    if node is None or not node.is_constant or node.tensor.dims[-1:] != (size,):
        return False
    return node.tensor.size == size and np.array_equal(node.value.reshape(-1), np.arange(size))


@rule(*ELEMENTWISE_UNARY, *ELEMENTWISE_BINARY)
def map_of_rows(node: Node) -> Node | None:
    """f(Gather(T, i), c) = Gather(f(T, c), i), T and c known, T no larger than what is gathered"""
    if not isinstance(node.type, TensorType) or not node.type.is_static or len(node.types) != 1:
        return None
    found = [o for o in node.inputs if o is not None and _is_lookup(o)]
    if not found or any(o.tensor.shape != node.type.shape for o in found):
        return None
    table, index = found[0].inputs[:2]
    assert table is not None
    if table.tensor.size > node.type.size:
        return None
    operands: list[Node | None] = []
    for operand in node.inputs:
        if operand is None:
            operands.append(None)
        elif operand in found:
            own, place = operand.inputs[:2]
            if own is None or place is not index or own.tensor.shape != table.tensor.shape:
                return None
            operands.append(own)
        else:
            row = _row(operand, node.type.rank, table.tensor.dims[1:])
            if row is None:
                return None
            operands.append(row)
    return ops.node("Gather", ops.rebuild(node, tuple(operands)), index, axis=0)


def _is_lookup(node: Node) -> bool:
    """Whether a node picks rows of a known table."""
    table = node.inputs[0] if node.op == "Gather" else None
    return (
        table is not None
        and table.is_constant_expression
        and not node.is_constant_expression
        and table.tensor.rank > 1
        and node.attr("axis", 0) == 0
    )


def _row(operand: Node, rank: int, dims: tuple[int, ...]) -> Node | None:
    """A known operand that is the same for every row, in the shape of one row at most."""
    if not operand.is_constant_expression or operand.tensor.rank > rank:
        return None
    aligned = (1,) * (rank - operand.tensor.rank) + operand.tensor.dims
    lead = rank - len(dims)
    return None if any(d != 1 for d in aligned[:lead]) else reshape(operand, aligned[lead:])


TABLE: tuple[Rule, ...] = (one_hot_product, map_of_rows)
