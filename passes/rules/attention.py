"""Attention as its spelled-out products and softmax write it."""

from __future__ import annotations

from dataclasses import dataclass

from whitebox.ir import ops
from whitebox.ir.graph import Node
from whitebox.passes.rewrite import Rule, is_shared, rule
from whitebox.passes.rules.algebra import scalar

# The scores of a row tile have to fit a stack.
_MOST_KEYS = 4096
# Scores of a head that stay in a core's own cache are multiplied faster by the products' templates.
_LEAST_SCORES = 1 << 16


@dataclass(frozen=True)
class _Weights:
    """softmax(scale · Q Kᵀ + mask), rows of nothing but NaN as zeros where `nan_to_zero`."""

    q: Node
    k: Node
    mask: Node | None
    scale: float
    nan_to_zero: bool


def attention_rules(lanes: int) -> tuple[Rule, ...]:
    """The rules, for heads whose size is a multiple of `lanes`."""

    @rule("MatMul")
    def attention(node: Node) -> Node | None:
        """Softmax(s · whitebox.MatMulTransposed(Q, K) + M) · V = whitebox.Attention(Q, K, V, M)"""
        weights, v = node.inputs
        found = _weights(weights) if weights is not None and not is_shared(weights) else None
        if found is None or v is None or not _fits(found, v, lanes):
            return None
        return ops.node(
            "whitebox.Attention", found.q, found.k, v,
            *(() if found.mask is None else (found.mask,)),
            scale=found.scale, nan_to_zero=int(found.nan_to_zero),
        )  # fmt: skip

    return (attention,)


def _fits(found: _Weights, v: Node, lanes: int) -> bool:
    q, k = found.q.tensor, found.k.tensor
    if any(type.dtype != "float32" or not type.is_static for type in (q, k, v.tensor)):
        return False
    if q.rank < 3 or not q.dims[:-2] == k.dims[:-2] == v.tensor.dims[:-2]:
        return False
    if found.mask is not None and not _is_mask(found.mask, (*q.dims[:-1], k.dims[-2])):
        return False
    sizes = q.dims[-1], v.tensor.dims[-1]
    whole = all(size % lanes == 0 for size in sizes)
    scores = q.dims[-2] * k.dims[-2]
    return whole and scores >= _LEAST_SCORES and k.dims[-2] <= _MOST_KEYS


def _is_mask(mask: Node, scores: tuple[int, ...]) -> bool:
    """Whether a mask broadcasts to the scores, and not the other way."""
    type = mask.tensor
    if type.dtype != "float32" or not type.is_static or type.rank > len(scores) or not type.rank:
        return False
    last = scores[len(scores) - type.rank :]
    return all(dim in (1, size) for dim, size in zip(type.dims, last, strict=True))


def _weights(node: Node) -> _Weights | None:
    """The parts of attention weights, when nothing else reads what is between them."""
    nan_to_zero = False
    if node.op == "Where":
        condition, zero, source = node.inputs
        if condition is None or condition.op != "IsNaN" or condition.inputs[0] is not source:
            return None
        if source is None or scalar(zero) != 0.0:
            return None
        node, nan_to_zero = source, True  # read twice: by IsNaN and by Where
    elif is_shared(node):
        return None
    if node.op != "Softmax" or node.attr("axis", -1) not in (-1, node.tensor.rank - 1):
        return None
    scores, mask, scale = node.inputs[0], None, 1.0
    if scores is not None and scores.op == "Add" and not is_shared(scores):
        for source, other in (scores.inputs, scores.inputs[::-1]):
            if source is not None and source.op in ("Mul", "whitebox.MatMulTransposed"):
                scores, mask = source, other
                break
    if scores is not None and scores.op == "Mul" and not is_shared(scores):
        for source, other in (scores.inputs, scores.inputs[::-1]):
            factor = scalar(other)
            if factor is not None and source is not None:
                scores, scale = source, factor
                break
    if scores is None or scores.op != "whitebox.MatMulTransposed" or is_shared(scores):
        return None
    q, k = scores.inputs
    assert q is not None and k is not None
    return _Weights(q, k, mask, scale, nan_to_zero)
