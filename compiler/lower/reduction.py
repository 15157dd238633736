"""Operators that combine elements along axes: Reduce*, ArgMax/ArgMin, global pooling.

What enters: nodes and the values of their inputs. What leaves: values held in arrays that a
reduction fills. 16-bit floats are summed in float32; small integers in their own dtype, as in ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.compiler.lower import functions as fn
from whitebox.compiler.lower.value import (
    EMITTERS,
    Axes,
    Body,
    Reduction,
    Scope,
    States,
    Value,
    compute_dtype,
    const,
    convert,
    dtype_of,
    emitter,
    ints,
    reshaped,
)
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, product

Function = Callable[..., Any]


def lowest(dtype: str) -> Any:
    """The identity of max."""
    return const(False, dtype) if dtype == "bool" else _extreme(dtype, -1)


def highest(dtype: str) -> Any:
    """The identity of min."""
    return const(True, dtype) if dtype == "bool" else _extreme(dtype, 1)


def _extreme(dtype: str, sign: int) -> Any:
    if "float" in dtype:
        return const(sign * math.inf, dtype)
    return tirx.max_value(dtype) if sign > 0 else tirx.min_value(dtype)


@dataclass(frozen=True)
class Fold:
    """What one kind of reduction does to a term, to two partial results, and in the end."""

    combine: Function
    identity: Callable[[str], Any]
    before: Function = lambda x: x
    after: Callable[[Any, Extent], Any] = lambda total, count: total


def _zero(dtype: str) -> Any:
    return const(0, dtype)


def _add(a: Any, b: Any) -> Any:
    return a + b


def _mean(total: Any, count: Extent) -> Any:
    divisor = const(count, dtype_of(total))
    return fn.divide_integers(total, divisor) if fn.is_integer(total) else total / divisor


def _integral_root(total: Any, count: Extent) -> Any:
    if not fn.is_integer(total):
        return tirx.sqrt(total)
    return tirx.Cast(dtype_of(total), tirx.sqrt(convert(total, "float64")))


def _either(a: Any, b: Any) -> Any:
    return tirx.Or(a, b) if dtype_of(a) == "bool" else tirx.max(a, b)


def _both(a: Any, b: Any) -> Any:
    return tirx.And(a, b) if dtype_of(a) == "bool" else tirx.min(a, b)


FOLDS: dict[str, Fold] = {
    "Sum": Fold(_add, _zero),
    "Mean": Fold(_add, _zero, after=_mean),
    "Max": Fold(_either, lowest),
    "Min": Fold(_both, highest),
    "Prod": Fold(lambda a, b: a * b, lambda dtype: const(1, dtype)),
    "L1": Fold(_add, _zero, before=lambda x: x if fn.is_unsigned(x) else tirx.abs(x)),
    "L2": Fold(_add, _zero, before=lambda x: x * x, after=_integral_root),
    "SumSquare": Fold(_add, _zero, before=lambda x: x * x),
    "LogSum": Fold(_add, _zero, after=lambda total, count: fn.log(total)),
}


def folded(
    body: Body, source: Value, axes: Sequence[int], fold: Fold, *, into: str | None = None
) -> Value:
    """`source` folded over `axes`; the kept axes remain, in order."""
    reduced = [axis for axis in range(len(source.shape)) if axis in axes]
    kept = [axis for axis in range(len(source.shape)) if axis not in axes]
    extents = tuple(source.shape[axis] for axis in reduced)
    dtype = compute_dtype(source.dtype)
    result = into or source.dtype

    def term(scope: Scope, outer: Axes, inner: Axes) -> States:
        place = {**dict(zip(kept, outer, strict=True)), **dict(zip(reduced, inner, strict=True))}
        element = source.at(scope, tuple(place[axis] for axis in range(len(source.shape))))
        return [fold.before(convert(element, dtype))]

    def finish(scope: Scope, outer: Axes, states: States) -> Any:
        return convert(fold.after(states[0], product(extents)), result)

    reduction = Reduction(
        extents,
        term,
        lambda a, b: [fold.combine(a[0], b[0])],
        (fold.identity(dtype),),
        (dtype,),
        finish,
    )
    return body.reduce(tuple(source.shape[axis] for axis in kept), result, reduction)


def _axes(node: Node, rank: int) -> list[int]:
    """The axes that a Reduce* names in its second input; all of them by default."""
    given = ints(node, 1, ())
    if not given and node.attr("noop_with_empty_axes", 0):
        return []
    return [axis % rank for axis in given] if given else list(range(rank))


def _register(name: str, fold: Fold) -> None:
    def emit(node: Node, args: Sequence[Value], body: Body) -> Value:
        axes = _axes(node, len(args[0].shape))
        return reshaped(folded(body, args[0], axes, fold), node.tensor.extents)

    EMITTERS[name] = emit


for _name, _fold in FOLDS.items():
    _register(f"Reduce{_name}", _fold)


@emitter("ReduceLogSumExp")
def _log_sum_exp(node: Node, args: Sequence[Value], body: Body) -> Value:
    """log(sum(exp(x))), about the greatest element so that nothing overflows."""
    source = args[0]
    axes = _axes(node, len(source.shape))
    kept = tuple(1 if axis in axes else dim for axis, dim in enumerate(source.shape))
    peak = reshaped(folded(body, source, axes, FOLDS["Max"]), kept)

    def shifted(scope: Scope, at: Axes) -> Any:
        return fn.exp(_finite_difference(source.at(scope, at), peak.broadcast(scope, at)))

    total = folded(body, Value(source.dtype, source.shape, shifted), axes, FOLDS["Sum"])
    total = reshaped(total, kept)

    def element(scope: Scope, at: Axes) -> Any:
        top = peak.at(scope, at)
        infinite = tirx.EQ(tirx.abs(top), const(math.inf, dtype_of(top)))
        return tirx.Select(infinite, top, fn.log(total.at(scope, at)) + top)

    return reshaped(Value(source.dtype, kept, element), node.tensor.extents)


def _finite_difference(x: Any, peak: Any) -> Any:
    return x - peak


@emitter("ArgMax", "ArgMin")
def _arg(node: Node, args: Sequence[Value], body: Body) -> Value:
    """The position of the greatest (least) element; the first or the last among equals."""
    source = args[0]
    axis = node.attr("axis", 0) % len(source.shape)
    last = bool(node.attr("select_last_index", 0))
    greatest = node.op == "ArgMax"
    dtype = compute_dtype(source.dtype)

    def term(scope: Scope, outer: Axes, inner: Axes) -> States:
        at = (*outer[:axis], inner[0], *outer[axis:])
        return [convert(source.at(scope, at), dtype), scope.number(inner[0])]

    def combine(held: States, new: States) -> States:
        better = new[0] > held[0] if greatest else new[0] < held[0]
        equal = tirx.EQ(new[0], held[0])
        order = new[1] > held[1] if last else tirx.Or(new[1] < held[1], held[1] < const(0, "int32"))
        take = tirx.Or(better, tirx.And(equal, order))
        return [tirx.Select(take, n, h) for n, h in zip(new, held, strict=True)]

    worst = lowest(dtype) if greatest else highest(dtype)
    reduction = Reduction(
        (source.shape[axis],),
        term,
        combine,
        (worst, const(-1, "int32")),
        (dtype, "int32"),
        lambda scope, outer, states: convert(states[1], "int64"),
    )
    kept = (*source.shape[:axis], *source.shape[axis + 1 :])
    return reshaped(body.reduce(kept, "int64", reduction), node.tensor.extents)


@emitter("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node, args: Sequence[Value], body: Body) -> Value:
    fold = FOLDS["Mean" if node.op == "GlobalAveragePool" else "Max"]
    axes = range(2, len(args[0].shape))
    return reshaped(folded(body, args[0], axes, fold), node.tensor.extents)
