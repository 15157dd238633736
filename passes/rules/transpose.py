"""Transposes: cancelled, or moved towards the outputs until they meet their inverse."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import TensorType
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape

ELEMENTWISE_UNARY = tuple(
    """Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu""".split()
)
ELEMENTWISE_BINARY = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Mod",
    "And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
)  # fmt: skip


def permutation(node: Node) -> tuple[int, ...]:
    """The permutation of a Transpose; ONNX's default reverses the axes."""
    rank = node.tensor.rank
    return tuple(node.attr("perm") or range(rank - 1, -1, -1))


def transpose(node: Node, perm: tuple[int, ...]) -> Node:
    """`node` with its axes permuted; `node` itself when nothing moves."""
    if perm == tuple(range(len(perm))):
        return node
    return ops.node("Transpose", node, perm=perm)


def inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(perm))


@rule("Transpose")
def merge_transposes(node: Node) -> Node | None:
    """Transpose(Transpose(x, p), q) = Transpose(x, p∘q);  Transpose(x, identity) = x"""
    source = node.inputs[0]
    if source is None or not isinstance(node.type, TensorType) or node.type.shape is None:
        return None
    perm = permutation(node)
    if perm == tuple(range(len(perm))):
        return source
    if source.op != "Transpose":
        return None
    first = permutation(source)
    assert source.inputs[0] is not None
    return transpose(source.inputs[0], tuple(first[axis] for axis in perm))


@rule("Transpose")
def transpose_is_reshape(node: Node) -> Node | None:
    """Transpose(x) that moves only axes of size 1 = Reshape(x)"""
    source = node.inputs[0]
    if source is None or not isinstance(source.type, TensorType) or not source.type.is_static:
        return None
    dims = source.type.dims
    moved = [axis for axis in permutation(node) if dims[axis] != 1]
    return reshape(source, node.tensor.dims) if moved == sorted(moved) else None


@rule(*ELEMENTWISE_UNARY)
def sink_below_unary(node: Node) -> Node | None:
    """f(Transpose(x)) = Transpose(f(x))"""
    source = node.inputs[0]
    if source is None or source.op != "Transpose" or source.is_constant_expression:
        return None
    if any(operand is not None and operand.tensor.size != 1 for operand in node.inputs[1:]):
        return None
    inner = ops.rebuild(node, (source.inputs[0], *node.inputs[1:]))
    return transpose(inner, permutation(source))


@rule(*ELEMENTWISE_UNARY, *ELEMENTWISE_BINARY)
def view_below_elementwise(node: Node) -> Node | None:
    """f(Reshape(x), Reshape(y)) = Reshape(f(x, y)), x and y alike;  y may be a known scalar"""
    views = [o for o in node.inputs if o is not None and o.op == "Reshape"]
    views = [o for o in views if not o.is_constant_expression]
    rest = [o for o in node.inputs if o is not None and o not in views]
    if not views or len(node.types) != 1 or not node.tensor.is_static:
        return None
    if any(view.tensor.shape != node.tensor.shape for view in views):
        return None
    shapes = {view.inputs[0].tensor.shape for view in views}  # type: ignore[union-attr]
    if len(shapes) != 1 or not all(o.is_constant_expression and o.tensor.size == 1 for o in rest):
        return None
    operands = [
        None if o is None else o.inputs[0] if o in views else reshape(o, ()) for o in node.inputs
    ]
    return reshape(ops.rebuild(node, tuple(operands)), node.tensor.dims)


@rule(*ELEMENTWISE_BINARY)
def sink_below_binary(node: Node) -> Node | None:
    """f(Transpose(x, p), Transpose(y, p)) = Transpose(f(x, y), p), a known y transposed back"""
    perm = next(
        (
            permutation(source)
            for source in node.inputs
            if source is not None
            and source.op == "Transpose"
            and not source.is_constant_expression
            and source.tensor.shape == node.tensor.shape
        ),
        None,
    )
    if perm is None:
        return None
    operands = [_untransposed(source, perm) for source in node.inputs]
    if any(operand is None for operand in operands):
        return None
    return transpose(ops.rebuild(node, tuple(operands)), perm)


def _untransposed(source: Node | None, perm: tuple[int, ...]) -> Node | None:
    """x where source = Transpose(x, perm), without adding work for a request; else None."""
    if source is None or not isinstance(source.type, TensorType) or not source.type.is_static:
        return None
    if source.op == "Transpose" and permutation(source) == perm:
        return source.inputs[0]
    if source.type.size == 1:
        return reshape(source, ())
    if source.is_constant_expression and source.type.rank <= len(perm):
        dims = (1,) * (len(perm) - source.type.rank) + source.type.dims
        return transpose(reshape(source, dims), inverse(perm))
    return None


@rule("Pad")
def sink_below_pad(node: Node) -> Node | None:
    """Pad(Transpose(x, p), pads) = Transpose(Pad(x, pads permuted), p)"""
    source, pads = node.inputs[:2]
    if source is None or source.op != "Transpose" or pads is None or not pads.is_constant:
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    perm = permutation(source)
    back = list(inverse(perm))
    begin, end = pads.value[: len(perm)], pads.value[len(perm) :]
    moved = constant(np.concatenate([begin[back], end[back]]))
    return transpose(ops.rebuild(node, (source.inputs[0], moved, *node.inputs[2:])), perm)


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def sink_below_reduce(node: Node) -> Node | None:
    """Reduce(Transpose(x, p), axes) = Transpose(Reduce(x, p[axes]), p), axes kept"""
    source = node.inputs[0]
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if source is None or source.op != "Transpose" or axes is None or not axes.is_constant:
        return None
    if not node.attr("keepdims", 1):
        return None
    perm = permutation(source)
    moved = constant(np.array(sorted(perm[int(axis)] for axis in axes.value), np.int64))
    return transpose(ops.rebuild(node, (source.inputs[0], moved)), perm)


TRANSPOSE: tuple[Rule, ...] = (
    merge_transposes,
    transpose_is_reshape,
    sink_below_unary,
    view_below_elementwise,
    sink_below_binary,
    sink_below_pad,
    sink_below_reduce,
)
