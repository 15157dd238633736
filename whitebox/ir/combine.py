"""What a pipeline computes on top of its models: averages, votes, stacks, routers.

Enter: a combiner and the nodes that it reads, tensors all of them. Leave: one node, in ONNX's
operators (but for votes over strings, which ONNX cannot order). `fit` says beforehand which sizes
must be equal. Whatever chooses does so row by row: a batch may take all ways at once, so every way
is computed, and Where picks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from whitebox.ir import ops
from whitebox.ir.dims import Dims, shown
from whitebox.ir.graph import Node, constant
from whitebox.ir.pipeline import (
    Average,
    Combiner,
    Concat,
    LabelRouter,
    Stack,
    ThresholdRouter,
    Vote,
    Weighted,
)
from whitebox.ir.shapes.rule import Misfit, normal_axis
from whitebox.ir.types import ONNX_DTYPES, TensorType, numpy_dtype


def fit(step: Combiner, types: Sequence[TensorType], dims: Dims) -> None:
    """Equate the sizes that must be equal. Raises Misfit naming what is read and does not fit."""
    unknown = [name for name, type in zip(step.reads, types, strict=True) if type.shape is None]
    if unknown:
        raise Misfit(f"{unknown[0]!r} has no known rank")
    if isinstance(step, Stack | Concat):
        normal_axis(step.axis, types[0].rank + isinstance(step, Stack))
    first = 0
    if isinstance(step, LabelRouter | ThresholdRouter):
        _check_router(step, types[0], types[1], dims)
        first = 1
    for name, type in zip(step.reads[first + 1 :], types[first + 1 :], strict=True):
        expected = types[first]
        if isinstance(step, Concat):
            expected = _but_for(expected, type, normal_axis(step.axis, expected.rank))
        try:
            dims.flow(type, expected)
        except Misfit as misfit:
            raise Misfit(f"{name!r} {misfit} as {step.reads[first]!r}") from misfit
    _check_dtype(step, types[first])


def combined(step: Combiner, operands: Sequence[Node]) -> Node:
    """The node that computes a combiner. Raises Misfit."""
    match step:
        case Average():
            return ops.node("Mean", *operands)
        case Weighted():
            return _weighted(operands, step.weights)
        case Vote():
            return _vote(operands)
        case Stack():
            axis = normal_axis(step.axis, operands[0].tensor.rank + 1)
            rows = [ops.node("Unsqueeze", operand, _ints(axis)) for operand in operands]
            return ops.node("Concat", *rows, axis=axis)
        case Concat():
            return ops.node("Concat", *operands, axis=step.axis)
        case LabelRouter():
            return _by_label(step, *operands)
        case ThresholdRouter():
            by, above, below = operands
            by = _rows(by, above.tensor.rank)
            bound = constant(np.array(step.threshold, numpy_dtype(by.tensor.dtype)))
            return ops.node("Where", ops.node("GreaterOrEqual", by, bound), above, below)


def _weighted(operands: Sequence[Node], weights: Sequence[float]) -> Node:
    dtype = numpy_dtype(operands[0].tensor.dtype)
    terms = [
        ops.node("Mul", operand, constant(np.array(weight, dtype)))
        for operand, weight in zip(operands, weights, strict=True)
    ]
    return reduce(lambda a, b: ops.node("Add", a, b), terms)


def _vote(operands: Sequence[Node]) -> Node:
    last = operands[0].tensor.rank
    ballots = [ops.node("Unsqueeze", operand, _ints(last)) for operand in operands]
    labels = ops.node("Concat", *ballots, axis=last)
    if labels.tensor.dtype == "string":
        return ops.node("whitebox.Vote", labels)
    return vote_of_integers(labels)


def vote_of_integers(labels: Node) -> Node:
    """The commonest of the integers along the last axis; of equally common ones the smallest."""
    last = labels.tensor.rank - 1
    same = ops.node(
        "Equal",
        ops.node("Unsqueeze", labels, _ints(last + 1)),
        ops.node("Unsqueeze", labels, _ints(last)),
    )
    ones = ops.node("Cast", same, to=ONNX_DTYPES.index("int32"))
    votes = ops.node("ReduceSum", ones, _ints(last + 1), keepdims=0)
    most = ops.node("ReduceMax", votes, _ints(last), keepdims=1)
    dtype = numpy_dtype(labels.tensor.dtype)
    largest = constant(np.array(np.iinfo(dtype).max, dtype))
    winners = ops.node("Where", ops.node("Equal", votes, most), labels, largest)
    return ops.node("ReduceMin", winners, _ints(last), keepdims=0)


def _by_label(step: LabelRouter, by: Node, *ways: Node) -> Node:
    by = _rows(by, ways[0].tensor.rank)
    parse = _PARSERS.get(by.tensor.dtype) or int
    result = ways[-1]
    for text, way in reversed([*zip(step.cases, ways, strict=False)]):
        label = constant(np.array(parse(text), numpy_dtype(by.tensor.dtype)))
        result = ops.node("Where", ops.node("Equal", by, label), way, result)
    return result


def _rows(by: Node, rank: int) -> Node:
    """What a router reads, with an axis for each of what it chooses among."""
    extra = by.tensor.rank - rank
    if extra > 0:
        return ops.node("Squeeze", by, _ints(*range(rank, by.tensor.rank)))
    return ops.node("Unsqueeze", by, _ints(*range(by.tensor.rank, rank))) if extra else by


def _check_router(
    step: LabelRouter | ThresholdRouter, by: TensorType, way: TensorType, dims: Dims
) -> None:
    """What a router reads has one label or number a row of what it chooses among."""
    shape, name = dims.resolved(by).shape or (), step.router  # type: ignore[union-attr]
    if any(dim != 1 for dim in shape[1:]):
        raise Misfit(f"{name!r} is {shown(dims.resolved(by))}: a router reads one value a row")
    if shape:
        if not way.shape:
            raise Misfit(f"{step.reads[1]!r} has no rows to choose")
        try:
            dims.equate(way.shape[0], shape[0])
        except Misfit as misfit:
            raise Misfit(f"the rows of {name!r} and {step.reads[1]!r}: {misfit}") from misfit
    if isinstance(step, ThresholdRouter):
        if "int" not in by.dtype and "float" not in by.dtype:
            raise Misfit(f"a threshold is for numbers, and {name!r} is {by.dtype}")
        return
    parse = _PARSERS.get(by.dtype) or (int if "int" in by.dtype else None)
    if parse is None:
        raise Misfit(f"cases are labels, and {name!r} is {by.dtype}; give a threshold")
    for text in step.cases:
        try:
            np.array(parse(text), numpy_dtype(by.dtype))
        except (ValueError, KeyError, OverflowError):
            raise Misfit(f"the case {text!r} is no {by.dtype}, which {name!r} is") from None


# Labels as cases spell them; those of other dtypes are integers.
_PARSERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "bool": {"true": True, "false": False}.__getitem__,
}


def _check_dtype(step: Combiner, type: TensorType) -> None:
    if isinstance(step, Average | Weighted) and "float" not in type.dtype:
        raise Misfit(f"{step.reads[0]!r} is {type.dtype}: only floats have a mean; vote on labels")
    if isinstance(step, Vote) and "int" not in type.dtype and type.dtype != "string":
        raise Misfit(f"{step.reads[0]!r} is {type.dtype}: a vote is on labels; average scores")


def _but_for(expected: TensorType, type: TensorType, axis: int) -> TensorType:
    """The expected type with the size along an axis that the other has."""
    if type.shape is None or expected.shape is None or axis >= len(type.shape):
        return expected
    shape = (*expected.shape[:axis], type.shape[axis], *expected.shape[axis + 1 :])
    return TensorType(expected.dtype, shape)


def _ints(*values: int) -> Node:
    return constant(np.array(values, np.int64))
