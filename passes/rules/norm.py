"""Spelled-out normalisations, recognised."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.passes.rewrite import Rule, is_shared, rule
from whitebox.passes.rules.algebra import scalar


def _mean_over_last(node: Node | None) -> Node | None:
    """x, when node = ReduceMean(x) over the last axis with the axis kept."""
    if node is None or node.op != "ReduceMean" or not node.attr("keepdims", 1):
        return None
    source, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if source is None or axes is None or not axes.is_constant:
        return None
    last = source.tensor.rank - 1
    return source if [int(axis) % (last + 1) for axis in axes.value] == [last] else None


@rule("Div")
def layer_norm(node: Node) -> Node | None:
    """d / √(mean(d²) + ε), d = x - mean(x), means over the last axis = LayerNormalization(x, 1)"""
    centered, deviation = node.inputs
    if centered is None or deviation is None or deviation.op != "Sqrt" or centered.op != "Sub":
        return None
    x = centered.inputs[0]
    if x is None or _mean_over_last(centered.inputs[1]) is not x or x.tensor.dtype != "float32":
        return None
    variance = deviation.inputs[0]
    if variance is None or variance.op != "Add":
        return None
    mean, epsilon = variance.inputs
    if scalar(epsilon) is None:
        mean, epsilon = epsilon, mean
    square = _mean_over_last(mean)
    if scalar(epsilon) is None or square is None:
        return None
    if square.op != "Mul" or square.inputs != (centered, centered):
        return None
    ones = np.ones(x.tensor.dims[-1:], numpy_dtype(x.tensor.dtype))
    return ops.node("LayerNormalization", x, constant(ones), axis=-1, epsilon=scalar(epsilon))


def _vector_operand(node: Node) -> tuple[Node, Node] | None:
    """(norm, vector) of a binary node on a LayerNormalization and a known vector."""
    for norm, vector in (node.inputs, node.inputs[::-1]):
        if norm is None or vector is None or norm.op != "LayerNormalization":
            continue
        if len(norm.types) != 1 or is_shared(norm) or not isinstance(vector.type, TensorType):
            continue
        if vector.is_constant_expression and vector.type.shape == norm.tensor.shape[-1:]:  # type: ignore[index]
            return norm, vector
    return None


@rule("Mul")
def layer_norm_scale(node: Node) -> Node | None:
    """LayerNormalization(x, 1) · s = LayerNormalization(x, s)"""
    found = _vector_operand(node)
    if found is None:
        return None
    norm, vector = found
    scale = norm.inputs[1]
    if len(norm.inputs) != 2 or scale is None or not scale.is_constant or np.any(scale.value != 1):
        return None
    return ops.rebuild(norm, (norm.inputs[0], vector))


@rule("Add")
def layer_norm_bias(node: Node) -> Node | None:
    """LayerNormalization(x, s) + b = LayerNormalization(x, s, b)"""
    found = _vector_operand(node)
    if found is None or len(found[0].inputs) != 2:
        return None
    norm, vector = found
    return ops.rebuild(norm, (*norm.inputs, vector))


NORM: tuple[Rule, ...] = (layer_norm, layer_norm_scale, layer_norm_bias)
