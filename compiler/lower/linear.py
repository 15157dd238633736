"""Matrix products and convolutions as reductions, for what no template takes.

What enters: nodes of any numeric dtype and the values of their inputs. What leaves: values held in
arrays. Correct for every shape and vectorised along the result's rows; the templates are several
times faster where they apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from whitebox.compiler.lower.templates import window
from whitebox.compiler.lower.tiled import separate
from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Reduction,
    Scope,
    States,
    Value,
    compute_dtype,
    const,
    convert,
    emitter,
    reshaped,
)
from whitebox.errors import CompileError
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, Size, all_known, known


def _summed(
    body: Body, shape: Sequence[Extent], extents: Sequence[Extent], term: Any, dtype: str, wide: str
) -> Value:
    reduction = Reduction(
        tuple(extents),
        term,
        lambda a, b: [a[0] + b[0]],
        (const(0, wide),),
        (wide,),
        lambda scope, kept, states: convert(states[0], dtype),
    )
    return body.reduce(shape, dtype, reduction)


def multiplied(body: Body, a: Value, b: Value, dtype: str) -> Value:
    """The matrix product in numpy's meaning: vectors, and stacks that broadcast."""
    left = reshaped(a, (1, *a.shape)) if len(a.shape) == 1 else a
    right = reshaped(b, (*b.shape, 1)) if len(b.shape) == 1 else b
    # Operands are read once for each element of the result.
    left, right = body.materialize(left), body.materialize(right)
    rank = max(len(left.shape), len(right.shape))
    stacks = [(1,) * (rank - len(v.shape)) + v.shape[:-2] for v in (left, right)]
    stack = tuple(b if a == 1 else a for a, b in zip(*stacks, strict=True))
    shape = (*stack, left.shape[-2], right.shape[-1])
    wide = compute_dtype(dtype)

    def term(scope: Scope, kept: Axes, reduced: Axes) -> States:
        *outer, row, column = kept
        x = left.broadcast(scope, (*outer, row, reduced[0]))
        y = right.broadcast(scope, (*outer, reduced[0], column))
        return [convert(x, wide) * convert(y, wide)]

    product = _summed(body, shape, (left.shape[-1],), term, dtype, wide)
    squeezed = list(shape)
    if len(b.shape) == 1:
        squeezed.pop(-1)
    if len(a.shape) == 1:
        squeezed.pop(-1 if len(b.shape) == 1 else -2)
    return reshaped(product, squeezed)


@emitter("MatMul")
def _matmul(node: Node, args: Sequence[Value], body: Body) -> Value:
    if node.tensor.dtype == "float32" and any(isinstance(d, Size) for d in node.tensor.extents):
        return separate(node, args, body)
    return multiplied(body, args[0], args[1], node.tensor.dtype)


def _transposed(value: Value) -> Value:
    return Value(
        value.dtype, value.shape[::-1], lambda scope, axes: value.at(scope, (axes[1], axes[0]))
    )


@emitter("Gemm")
def _gemm(node: Node, args: Sequence[Value], body: Body) -> Value:
    a = _transposed(args[0]) if node.attr("transA", 0) else args[0]
    b = _transposed(args[1]) if node.attr("transB", 0) else args[1]
    dtype = node.tensor.dtype
    wide = compute_dtype(dtype)
    product = multiplied(body, a, b, wide)
    alpha, beta = (const(node.attr(name, 1.0), wide) for name in ("alpha", "beta"))
    bias = args[2] if len(args) > 2 else None

    def element(scope: Scope, axes: Axes) -> Any:
        result = product.at(scope, axes) * alpha
        if bias is not None:
            result = result + convert(bias.broadcast(scope, axes), wide) * beta
        return convert(result, dtype)

    return Value(dtype, product.shape, element)


def _inside(scope: Scope, source: Value, axes: Axes, first: int, otherwise: Any, wide: str) -> Any:
    """An element of `source`, or `otherwise` where one of the axes from `first` lies outside."""

    def check(k: int) -> Any:
        if k == len(axes):
            return convert(source.at(scope, axes), wide)
        return scope.choose(
            scope.less(axes[k], 0),
            lambda: otherwise,
            lambda: scope.choose(
                scope.less(axes[k], source.shape[k]), lambda: check(k + 1), lambda: otherwise
            ),
        )

    return check(first)


def resolved_pads(node: Node, size: Sequence[Extent], kernel: Sequence[int]) -> tuple[int, ...]:
    """Leading pads of a sliding window; those of `auto_pad` follow from the declared result."""
    strides, pads, dilations = window(node, len(size))
    mode = node.attr("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return tuple(pads[: len(size)])
    leading = []
    for dim, out, k, s, d in zip(
        size, node.tensor.extents[2:], kernel, strides, dilations, strict=True
    ):
        total = max((known(out) - 1) * s + (k - 1) * d + 1 - known(dim), 0)
        leading.append((total + (mode == "SAME_LOWER")) // 2)
    return tuple(leading)


@emitter("Conv")
def _conv(node: Node, args: Sequence[Value], body: Body) -> Value:
    source, weight = args[:2]
    return convolved(node, body, source, weight, args[2] if len(args) > 2 else None)


def convolved(
    node: Node,
    body: Body,
    source: Value,
    weight: Value,
    bias: Value | None,
    into: str | None = None,
) -> Value:
    """A convolution over any number of axes, its window summed as one reduction."""
    rank = len(source.shape) - 2
    strides, _, dilations = window(node, rank)
    pads = resolved_pads(node, source.shape[2:], all_known(weight.shape[2:]))
    dtype = into or node.tensor.dtype
    wide = compute_dtype(dtype)
    outputs = weight.shape[0] // node.attr("group", 1)
    # The group is an axis of its own, so that no index is a quotient.
    n, _, *space = node.tensor.extents
    shape = (n, node.attr("group", 1), outputs, *space)
    source, weight = body.materialize(source), body.materialize(weight)

    def term(scope: Scope, kept: Axes, reduced: Axes) -> States:
        batch, group, output, *at = kept
        channel, *taps = reduced
        places = tuple(
            o * s + k * d - p
            for o, k, s, d, p in zip(at, taps, strides, dilations, pads, strict=True)
        )
        axes = (batch, group * weight.shape[1] + channel, *places)
        x = _inside(scope, source, axes, 2, const(0, wide), wide)
        w = weight.at(scope, (group * outputs + output, channel, *taps))
        return [x * convert(w, wide)]

    total = reshaped(_summed(body, shape, weight.shape[1:], term, wide, wide), node.tensor.extents)

    def element(scope: Scope, axes: Axes) -> Any:
        result = total.at(scope, axes)
        if bias is not None:
            result = result + convert(bias.at(scope, (axes[1],)), wide)
        return convert(result, dtype)

    return Value(dtype, total.shape, element)


@emitter("MaxPool", "AveragePool")
def _pool(node: Node, args: Sequence[Value], body: Body) -> Value:
    from whitebox.compiler.lower.reduction import lowest

    source, kernel = args[0], node.attr("kernel_shape")
    if len(node.types) > 1 or (node.op == "AveragePool" and node.attr("ceil_mode", 0)):
        raise CompileError(f"{node.op} with indices or a rounded-up average runs on the host")
    rank = len(kernel)
    strides, _, dilations = window(node, rank)
    pads = resolved_pads(node, source.shape[2:], kernel)
    wide = compute_dtype(source.dtype)
    greatest = node.op == "MaxPool"
    counted = bool(node.attr("count_include_pad", 0))
    outside = lowest(wide) if greatest else const(0, wide)

    def term(scope: Scope, kept: Axes, reduced: Axes) -> States:
        places = tuple(
            o * s + k * d - p
            for o, k, s, d, p in zip(kept[2:], reduced, strides, dilations, pads, strict=True)
        )
        axes = (*kept[:2], *places)
        x = _inside(scope, source, axes, 2, outside, wide)
        if greatest:
            return [x]
        one = const(1, wide)
        return [x, one if counted else _inside(scope, _ones(source), axes, 2, outside, wide)]

    def combine(a: States, b: States) -> States:
        return [tirx.max(a[0], b[0])] if greatest else [x + y for x, y in zip(a, b, strict=True)]

    reduction = Reduction(
        tuple(kernel),
        term,
        combine,
        (outside,) if greatest else (outside, outside),
        (wide,) if greatest else (wide, wide),
        lambda scope, kept, s: convert(s[0] if greatest else s[0] / s[1], source.dtype),
    )
    return body.reduce(node.tensor.extents, node.tensor.dtype, reduction)


def _ones(like: Value) -> Value:
    dtype = compute_dtype(like.dtype)
    return Value(dtype, like.shape, lambda scope, axes: const(1, dtype))
