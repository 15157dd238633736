"""Identities of arithmetic, casts and views. None changes more than rounding."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import TensorType
from whitebox.passes.rewrite import Rule, rule

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


def scalar(node: Node | None) -> float | None:
    """The value of a constant with one element, else None."""
    if node is None or not node.is_constant:
        return None
    type = node.type
    if not isinstance(type, TensorType) or type.size != 1 or type.dtype == "string":
        return None
    return float(node.value.reshape(()).item())


def same_type(result: Node, node: Node) -> Node | None:
    """`result` when it has exactly the type of `node`: broadcasting did not change it."""
    return result if result.types == node.types else None


@rule("Add")
def add_zero(node: Node) -> Node | None:
    """x + 0 = x"""
    a, b = node.inputs
    if scalar(b) == 0.0:
        return same_type(a, node)  # type: ignore[arg-type]
    if scalar(a) == 0.0:
        return same_type(b, node)  # type: ignore[arg-type]
    return None


@rule("Sub")
def sub_zero(node: Node) -> Node | None:
    """x - 0 = x"""
    a, b = node.inputs
    return same_type(a, node) if scalar(b) == 0.0 else None  # type: ignore[arg-type]


@rule("Mul")
def mul_one(node: Node) -> Node | None:
    """x · 1 = x"""
    a, b = node.inputs
    if scalar(b) == 1.0:
        return same_type(a, node)  # type: ignore[arg-type]
    if scalar(a) == 1.0:
        return same_type(b, node)  # type: ignore[arg-type]
    return None


@rule("Div")
def div_constant(node: Node) -> Node | None:
    """x / c = x · (1/c), x float, c a constant"""
    a, b = node.inputs
    if not isinstance(node.type, TensorType) or node.type.dtype not in _FLOATS:
        return None
    if a is None or b is None or not b.is_constant or a.is_constant_expression:
        return None
    if b.tensor.size > 4096 or not np.all(b.value):
        return None
    if scalar(b) == 1.0:
        return same_type(a, node)
    return ops.node("Mul", a, constant((1.0 / b.value.astype(np.float64)).astype(b.value.dtype)))


@rule("Pow")
def pow_small(node: Node) -> Node | None:
    """x² = x · x;  x³ = x · x · x;  x¹ = x;  x^½ = √x"""
    base, exponent = node.inputs
    if base is None or not isinstance(node.type, TensorType) or node.type.dtype not in _FLOATS:
        return None
    if exponent is None or exponent.tensor.rank > node.type.rank or base.types != node.types:
        return None
    match scalar(exponent):
        case 2.0:
            return ops.node("Mul", base, base)
        case 3.0:
            return ops.node("Mul", ops.node("Mul", base, base), base)
        case 1.0:
            return base
        case 0.5:
            return ops.node("Sqrt", base)
    return None


@rule("Sum", "Max", "Min")
def variadic_to_binary(node: Node) -> Node | None:
    """Sum(a, b, c, …) = ((a + b) + c) + …;  Max and Min alike"""
    op = "Add" if node.op == "Sum" else node.op
    if len(node.inputs) == 1:
        return node.inputs[0]
    if op == node.op and len(node.inputs) == 2:
        return None
    result = node.inputs[0]
    for operand in node.inputs[1:]:
        result = ops.node(op, result, operand)
    return result


@rule("Cast")
def cast_same(node: Node) -> Node | None:
    """Cast(x, dtype of x) = x"""
    return node.inputs[0] if node.inputs[0] and node.inputs[0].types == node.types else None


@rule("Concat")
def concat_one(node: Node) -> Node | None:
    """Concat(x) = x"""
    return node.inputs[0] if len(node.inputs) == 1 else None


@rule("Expand", "Tile", "Slice", "Pad")
def same_shape_movement(node: Node) -> Node | None:
    """Expand, Tile, Pad of x to its own shape = x;  a Slice that keeps everything forwards = x"""
    source = node.inputs[0]
    if source is None or source.types != node.types:
        return None
    if not isinstance(node.type, TensorType) or not node.type.is_named:
        return None
    if node.op == "Slice":
        steps = node.inputs[4] if len(node.inputs) > 4 else None
        if steps is not None and not (steps.is_constant and np.all(steps.value > 0)):
            return None
    if node.op == "Pad" and not (
        node.inputs[1] is not None
        and node.inputs[1].is_constant
        and not np.any(node.inputs[1].value)
    ):
        return None
    return source


VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


@rule(*VIEWS)
def canonical_view(node: Node) -> Node | None:
    """A view = Reshape(x, shape);  Reshape(Reshape(x)) = Reshape(x);  to its own shape = x"""
    source = node.inputs[0]
    if source is None or not isinstance(node.type, TensorType):
        return None
    if source.types == node.types and node.type.is_named:
        return source
    if not node.type.is_static or not isinstance(source.type, TensorType):
        return None
    if not source.type.is_static:
        return None
    if source.op in VIEWS and source.inputs[0] is not None and source.inputs[0].tensor.is_static:
        return reshape(source.inputs[0], node.type.dims)
    if node.op == "Reshape" and not node.attr("allowzero", 0):
        wanted = np.array(node.type.dims, np.int64)
        shape = node.inputs[1]
        if shape is not None and shape.is_constant and np.array_equal(shape.value, wanted):
            return None
    if 0 in node.type.dims:
        return None
    return reshape(source, node.type.dims)


def reshape(source: Node, dims: tuple[int, ...]) -> Node:
    """`source` seen with the shape `dims` (same number of elements)."""
    if source.tensor.shape == dims:
        return source
    shape = constant(np.array(dims, np.int64))
    # Without it, ONNX reads a 0 as "the size that the source has here".
    return ops.node("Reshape", source, shape, **({"allowzero": 1} if 0 in dims else {}))


ALGEBRA: tuple[Rule, ...] = (
    add_zero,
    sub_zero,
    mul_one,
    div_constant,
    pow_small,
    variadic_to_binary,
    cast_same,
    concat_one,
    same_shape_movement,
    canonical_view,
)
