"""Ops that only move data, brought to the few forms that have kernels."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import TensorType
from whitebox.passes.rewrite import Rule, rule


@rule("Output")
def split_to_slice(node: Node) -> Node | None:
    """Split(x)ᵢ = Slice(x, from the sizes before i, to the sizes up to i)"""
    split = node.inputs[0]
    if split is None or split.op != "Split":
        return None
    source = split.inputs[0]
    types = split.types
    if source is None or not all(isinstance(t, TensorType) and t.is_static for t in types):
        return None
    axis = split.attr("axis", 0) % source.tensor.rank
    sizes = [t.dims[axis] for t in types]  # type: ignore[union-attr]
    start = sum(sizes[: node.attr("index")])
    bounds = (start, start + sizes[node.attr("index")], axis, 1)
    return ops.node("Slice", source, *(constant(np.array([bound], np.int64)) for bound in bounds))


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool_to_reduce(node: Node) -> Node | None:
    """GlobalAveragePool(x) = ReduceMean(x, spatial axes);  GlobalMaxPool(x) = ReduceMax(…)"""
    source = node.inputs[0]
    if source is None or not isinstance(source.type, TensorType) or source.type.shape is None:
        return None
    axes = constant(np.arange(2, source.type.rank, dtype=np.int64))
    op = "ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax"
    return ops.node(op, source, axes, keepdims=1)


MOVEMENT: tuple[Rule, ...] = (split_to_slice, global_pool_to_reduce)
