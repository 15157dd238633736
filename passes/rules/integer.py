"""Products of 8-bit integers, for CPUs that add a group of them at a time into a 32-bit sum."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import ONNX_DTYPES
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape, scalar
from whitebox.passes.rules.blocked import panel_width
from whitebox.passes.rules.packing import pad_to

# Of 16 registers, the sums of products of integers leave one for the products themselves.
_NARROW_PANEL_COSTS = {2: 1.0, 1: 1.25}

_INT8, _INT32 = ONNX_DTYPES.index("int8"), ONNX_DTYPES.index("int32")


def integer_rules(lanes: int, group: int) -> tuple[Rule, ...]:
    """The rules, for vectors of `lanes` 32-bit sums, each of `group` products at a time."""

    @rule("MatMulInteger")
    def matmul_integer_to_panels(node: Node) -> Node | None:
        """(A - a₀) · (W - w₀) = whitebox.MatMulInteger(A, W in panels, Σ W, a₀, w₀), W known"""
        return _matmul_integer(node, lanes, group)

    return (matmul_integer_to_panels,)


def _matmul_integer(node: Node, lanes: int, group: int) -> Node | None:
    a, weight, a_zero, w_zero = (*node.inputs, None, None)[:4]
    if a is None or weight is None or not weight.is_constant_expression:
        return None
    if a.is_constant_expression or weight.tensor.rank != 2 or a.tensor.rank < 2:
        return None
    if not node.tensor.is_static or 0 in node.tensor.dims or 0 in weight.tensor.dims:
        return None
    if a_zero is not None and a_zero.tensor.size != 1:
        return None
    if w_zero is not None and not w_zero.is_constant_expression:
        return None
    weight, w_zero = _as_signed(weight, w_zero)
    if w_zero is not None and scalar(w_zero) == 0.0:
        w_zero = None
    k, n = weight.tensor.dims
    width = panel_width(n, lanes, _NARROW_PANEL_COSTS)
    panels, groups = -(-n // width), -(-k // group)
    padded = pad_to(weight, (groups * group, panels * width))
    split = reshape(padded, (groups, group, panels, width))
    packed = ops.node("Transpose", split, perm=(2, 0, 3, 1))
    axis = constant(np.array([0], np.int64))
    sums = ops.node("ReduceSum", ops.node("Cast", weight, to=_INT32), axis, keepdims=0)
    panel = reshape(packed, (panels, groups, width * group))
    inputs = (a, panel, sums, a_zero, w_zero)
    return ops.node("whitebox.MatMulInteger", *inputs, n=n, nt=width)


def _as_signed(weight: Node, zero: Node | None) -> tuple[Node, Node | None]:
    """Unsigned weights and their zero point, both moved down by 128; signed ones as they are."""
    if weight.tensor.dtype == "int8":
        return weight, zero
    if zero is None:
        return _shifted(weight), constant(np.array(-128, np.int8))
    return _shifted(weight), _shifted(zero)


def _shifted(node: Node) -> Node:
    wide = ops.node("Cast", node, to=_INT32)
    moved = ops.node("Sub", wide, constant(np.array(128, np.int32)))
    return ops.node("Cast", moved, to=_INT8)
