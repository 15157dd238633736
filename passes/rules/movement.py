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


@rule("AveragePool", "MaxPool")
def whole_window(node: Node) -> Node | None:
    """AveragePool(x) = GlobalAveragePool(x), MaxPool(x) = GlobalMaxPool(x): one window over all"""
    source = node.inputs[0]
    if source is None or len(node.types) != 1 or not source.tensor.is_static:
        return None
    kernel = node.attr("kernel_shape")
    if any(node.attr("pads", (1,))) or any(d != 1 for d in node.attr("dilations", ())):
        return None
    if any(size != 1 for size in node.tensor.dims[2:]):
        return None
    if any(k < size for k, size in zip(kernel, source.tensor.dims[2:], strict=True)):
        return None
    return ops.node(f"Global{node.op}", source)


MOVEMENT: tuple[Rule, ...] = (split_to_slice, whole_window, global_pool_to_reduce)
