"""Neural network operators made of reductions and arithmetic: normalisation, softmax.

What enters: nodes and the values of their inputs. What leaves: values. Statistics are float32 (or
float64 for float64 data), as ONNX's `stash_type` has them. Templates in `kernels/` do the common
forms of some of these in one pass; what is here takes every form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from whitebox.compiler.lower import functions as fn
from whitebox.compiler.lower.reduction import FOLDS, folded
from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Index,
    Reduction,
    Scope,
    Value,
    compute_dtype,
    const,
    convert,
    dtype_of,
    emitter,
    reshaped,
)
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent


def _keeping(shape: Sequence[Extent], axes: Sequence[int]) -> tuple[Extent, ...]:
    return tuple(1 if axis in axes else dim for axis, dim in enumerate(shape))


def _reduced(body: Body, source: Value, axes: Sequence[int], fold: str, dtype: str) -> Value:
    """`source` folded over `axes`, which stay as ones."""
    result = folded(body, source, axes, FOLDS[fold], into=dtype)
    return reshaped(result, _keeping(source.shape, axes))


def _derived(source: Value, dtype: str, function: Callable[..., Any], *others: Value) -> Value:
    """A value of the shape of `source`, computed in `dtype` from it and what broadcasts to it."""

    def element(scope: Scope, axes: Axes) -> Any:
        args = (value.broadcast(scope, axes) for value in (source, *others))
        return function(*(convert(arg, dtype) for arg in args))

    return Value(dtype, source.shape, element)


def _rounded(value: Value, dtype: str) -> Value:
    return _derived(value, dtype, lambda x: x)


@emitter("Softmax", "LogSoftmax")
def _softmax(node: Node, args: Sequence[Value], body: Body) -> Value:
    source = args[0]
    axis = node.attr("axis", -1) % len(source.shape)
    dtype = compute_dtype(source.dtype)
    peak = _reduced(body, source, [axis], "Max", dtype)
    shifted = _derived(source, dtype, lambda x, top: x - top, peak)
    powers = _derived(shifted, dtype, fn.exp)
    if node.op == "Softmax":
        powers = body.materialize(powers)
    total = _reduced(body, powers, [axis], "Sum", dtype)
    if node.op == "LogSoftmax":
        return _rounded(_derived(shifted, dtype, lambda x, s: x - fn.log(s), total), source.dtype)
    return _rounded(_derived(powers, dtype, lambda x, s: x / s, total), source.dtype)


def _standardised(
    body: Body, source: Value, axes: Sequence[int], epsilon: float
) -> tuple[Value, Value, Value]:
    """(source - mean) / sqrt(variance + epsilon) over axes; also the mean and 1 / deviation."""
    dtype = compute_dtype(source.dtype)
    mean = _reduced(body, source, axes, "Mean", dtype)
    squares = _derived(source, dtype, lambda x, m: (x - m) * (x - m), mean)
    variance = _reduced(body, squares, axes, "Mean", dtype)
    small = const(epsilon, dtype)
    scale = body.materialize(
        _derived(variance, dtype, lambda v: const(1, dtype) / tirx.sqrt(v + small))
    )
    normal = _derived(source, dtype, lambda x, m, s: (x - m) * s, mean, scale)
    return normal, mean, scale


@emitter("LayerNormalization")
def _layer_norm(node: Node, args: Sequence[Value], body: Body) -> Any:
    source = args[0]
    rank = len(source.shape)
    axes = range(node.attr("axis", -1) % rank, rank)
    normal, mean, scale = _standardised(body, source, axes, node.attr("epsilon", 1e-5))
    bias = args[2] if len(args) > 2 and args[2] is not None else None
    result = _derived(normal, normal.dtype, lambda x, w: x * w, args[1])
    if bias is not None:
        result = _derived(result, normal.dtype, lambda x, b: x + b, bias)
    result = _rounded(result, source.dtype)
    return (result, mean, scale)[: len(node.types)] if len(node.types) > 1 else result


@emitter("RMSNormalization")
def _rms_norm(node: Node, args: Sequence[Value], body: Body) -> Value:
    source = args[0]
    rank, dtype = len(source.shape), compute_dtype(source.dtype)
    axes = range(node.attr("axis", -1) % rank, rank)
    small = const(node.attr("epsilon", 1e-5), dtype)
    squares = _derived(source, dtype, lambda x: x * x)
    mean = _reduced(body, squares, axes, "Mean", dtype)
    scale = body.materialize(
        _derived(mean, dtype, lambda v: const(1, dtype) / tirx.sqrt(v + small))
    )
    normal = _rounded(_derived(source, dtype, lambda x, s: x * s, scale), source.dtype)
    return _rounded(_derived(normal, dtype, lambda x, w: x * w, args[1]), node.tensor.dtype)


def _per_channel(value: Value, rank: int) -> Value:
    """A vector over channels, so that it broadcasts to [N, C, …]."""
    return reshaped(value, (*value.shape, *[1] * (rank - 2)))


@emitter("InstanceNormalization")
def _instance_norm(node: Node, args: Sequence[Value], body: Body) -> Value:
    source = args[0]
    rank = len(source.shape)
    normal, _, _ = _standardised(body, source, range(2, rank), node.attr("epsilon", 1e-5))
    scale, bias = (_per_channel(arg, rank) for arg in args[1:3])
    result = _derived(normal, normal.dtype, lambda x, s, b: x * s + b, scale, bias)
    return _rounded(result, source.dtype)


@emitter("GroupNormalization")
def _group_norm(node: Node, args: Sequence[Value], body: Body) -> Value:
    source, groups = args[0], node.attr("num_groups")
    n, channels, *space = source.shape
    grouped = reshaped(source, (n, groups, channels // groups, *space))
    axes = range(2, len(grouped.shape))
    normal, _, _ = _standardised(body, grouped, axes, node.attr("epsilon", 1e-5))
    normal = reshaped(normal, source.shape)
    scale, bias = (_per_channel(arg, len(source.shape)) for arg in args[1:3])
    result = _derived(normal, normal.dtype, lambda x, s, b: x * s + b, scale, bias)
    return _rounded(result, source.dtype)


@emitter("BatchNormalization")
def _batch_norm(node: Node, args: Sequence[Value], body: Body) -> Value:
    """The inference form: statistics are given."""
    source = args[0]
    rank, dtype = len(source.shape), compute_dtype(source.dtype)
    scale, bias, mean, variance = (_per_channel(arg, rank) for arg in args[1:5])
    small = const(node.attr("epsilon", 1e-5), dtype)

    def normalise(x: Any, s: Any, b: Any, m: Any, v: Any) -> Any:
        return (x - m) * (s / tirx.sqrt(v + small)) + b

    return _rounded(_derived(source, dtype, normalise, scale, bias, mean, variance), source.dtype)


@emitter("LpNormalization")
def _lp_norm(node: Node, args: Sequence[Value], body: Body) -> Value:
    source = args[0]
    axis = node.attr("axis", -1) % len(source.shape)
    norm = _reduced(body, source, [axis], "L1" if node.attr("p", 2) == 1 else "L2", source.dtype)

    def divide(x: Any, n: Any) -> Any:
        zero = const(0, dtype_of(x))
        return tirx.Select(tirx.EQ(n, zero), zero, x / n)

    return _derived(source, source.dtype, divide, norm)


@emitter("MeanVarianceNormalization")
def _mean_variance_norm(node: Node, args: Sequence[Value], body: Body) -> Value:
    source = args[0]
    axes = [axis % len(source.shape) for axis in node.attr("axes", (0, 2, 3))]
    dtype = compute_dtype(source.dtype)
    mean = _reduced(body, source, axes, "Mean", dtype)
    square = _derived(source, dtype, lambda x: x * x)
    second = _reduced(body, square, axes, "Mean", dtype)

    def normalise(x: Any, m: Any, s: Any) -> Any:
        return (x - m) / (tirx.sqrt(s - m * m) + const(1e-9, dtype))

    return _rounded(_derived(source, dtype, normalise, mean, second), source.dtype)


@emitter("LRN")
def _lrn(node: Node, args: Sequence[Value], body: Body) -> Value:
    """Local response normalisation: divide by a power of the squares of nearby channels."""
    source, size = args[0], node.attr("size")
    dtype = compute_dtype(source.dtype)
    channels, before = source.shape[1], (size - 1) // 2

    def term(scope: Scope, outer: Axes, inner: Axes) -> list[Any]:
        channel = outer[1] + inner[0] - before
        zero = const(0, dtype)

        def square() -> Any:
            x = convert(source.at(scope, (outer[0], channel, *outer[2:])), dtype)
            return x * x

        low, high = scope.less(channel, 0), scope.less(channel, channels)
        return [scope.choose(low, lambda: zero, lambda: scope.choose(high, square, lambda: zero))]

    reduction = Reduction(
        (size,),
        term,
        lambda a, b: [a[0] + b[0]],
        (const(0, dtype),),
        (dtype,),
        lambda scope, outer, states: states[0],
    )
    total = body.reduce(source.shape, dtype, reduction)
    alpha, beta = node.attr("alpha", 1e-4) / size, node.attr("beta", 0.75)
    bias = const(node.attr("bias", 1.0), dtype)

    def divide(x: Any, squares: Any) -> Any:
        base = bias + const(alpha, dtype) * squares
        if beta == 0.75:
            root = tirx.sqrt(base)
            return x / (root * tirx.sqrt(root))
        return x / tirx.power(base, const(beta, dtype))

    return _rounded(_derived(source, dtype, divide, total), source.dtype)


__all__ = ["Index"]
