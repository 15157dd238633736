"""Quantised operators: to and from 8-bit integers, and products of integers.

What enters: nodes and the values of their inputs. What leaves: values. Scales and zero points are
per tensor, per axis or per block of an axis. Products of 8-bit numbers are summed in int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from whitebox.compiler.lower import functions as fn
from whitebox.compiler.lower.linear import convolved, multiplied
from whitebox.compiler.lower.reduction import FOLDS, folded
from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Index,
    Scope,
    Value,
    compute_dtype,
    const,
    convert,
    dtype_of,
    emitter,
    mapped,
    reshaped,
)
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, known

_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def _parameter(scope: Scope, value: Value, shape: Sequence[Extent], axes: Axes, node: Node) -> Any:
    """The scale or zero point of one element."""
    if not value.shape or value.shape == (1,):
        return value.at(scope, tuple(Index({}) for _ in value.shape))
    axis = node.attr("axis", 1) % len(shape)
    if len(value.shape) == 1:
        return value.at(scope, (axes[axis],))
    block = node.attr("block_size", 0) or -(-known(shape[axis]) // known(value.shape[axis]))
    return value.at(scope, (*axes[:axis], axes[axis] // block, *axes[axis + 1 :]))


def quantized(x: Any, scale: Any, zero: Any, dtype: str) -> Any:
    """round(x / scale) + zero, saturated to `dtype`."""
    return saturated(tirx.nearbyint(x / scale), convert(zero, dtype))


def saturated(x: Any, zero: Any) -> Any:
    """x + zero, saturated to the dtype of `zero`."""
    dtype, wide = dtype_of(zero), dtype_of(x)
    low, high = _LIMITS[dtype]
    bounded = tirx.max(tirx.min(x + convert(zero, wide), const(high, wide)), const(low, wide))
    return fn.cast(bounded, dtype)


@emitter("QuantizeLinear")
def _quantize(node: Node, args: Sequence[Value], body: Body) -> Value:
    source, scale = args[:2]
    zero = args[2] if len(args) > 2 else None
    dtype, shape = node.tensor.dtype, node.tensor.extents

    def element(scope: Scope, axes: Axes) -> Any:
        step = convert(_parameter(scope, scale, shape, axes, node), "float32")
        x = convert(source.at(scope, axes), "float32")
        offset = const(0, dtype)
        if zero is not None:
            offset = _parameter(scope, zero, shape, axes, node)
        return quantized(x, step, offset, dtype)

    return Value(dtype, shape, element)


@emitter("DequantizeLinear")
def _dequantize(node: Node, args: Sequence[Value], body: Body) -> Value:
    source, scale = args[:2]
    zero = args[2] if len(args) > 2 else None
    dtype, shape = node.tensor.dtype, node.tensor.extents
    wide = compute_dtype(dtype)

    def element(scope: Scope, axes: Axes) -> Any:
        x = convert(source.at(scope, axes), "int32")
        if zero is not None:
            x = x - convert(_parameter(scope, zero, shape, axes, node), "int32")
        step = convert(_parameter(scope, scale, shape, axes, node), wide)
        return convert(convert(x, wide) * step, dtype)

    return Value(dtype, shape, element)


@emitter("whitebox.Centre")
def _centre(node: Node, args: Sequence[Value], body: Body) -> Value:
    """Integers less their zero point, in a dtype that holds them."""
    dtype = node.tensor.dtype
    return mapped(
        node, args, lambda x, zero: convert(convert(x, "int32") - convert(zero, "int32"), dtype)
    )


@emitter("whitebox.Saturate")
def _saturate(node: Node, args: Sequence[Value], body: Body) -> Value:
    """The nearest integers plus a zero point, saturated to its dtype."""
    return mapped(node, args, lambda x, zero: saturated(tirx.nearbyint(x), zero))


@emitter("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node, args: Sequence[Value], body: Body) -> tuple[Value, ...]:
    """uint8 with the scale and zero point that just cover the data, and zero."""
    source = args[0]
    axes = range(len(source.shape))
    low, high = (folded(body, source, axes, FOLDS[kind]) for kind in ("Min", "Max"))

    def scale_of(scope: Scope, at: Axes) -> Any:
        zero = const(0, "float32")
        top, bottom = tirx.max(high.at(scope, ()), zero), tirx.min(low.at(scope, ()), zero)
        return (top - bottom) / const(255, "float32")

    scale = body.materialize(Value("float32", (), scale_of))

    def zero_of(scope: Scope, at: Axes) -> Any:
        bottom = tirx.min(low.at(scope, ()), const(0, "float32"))
        place = tirx.nearbyint(const(0, "float32") - bottom / scale.at(scope, ()))
        place = tirx.max(tirx.min(place, const(255, "float32")), const(0, "float32"))
        return fn.cast(place, "uint8")

    zero = body.materialize(Value("uint8", (), zero_of))

    def element(scope: Scope, at: Axes) -> Any:
        return quantized(source.at(scope, at), scale.at(scope, ()), zero.at(scope, ()), "uint8")

    return Value("uint8", source.shape, element), scale, zero


def _centred(value: Value, zero: Value | None, *, rows: bool) -> Value:
    """Integers less their zero point, as int32; a vector of zero points is one a row or column."""
    if zero is None:
        return Value("int32", value.shape, lambda s, a: convert(value.at(s, a), "int32"))
    if len(zero.shape) == 1 and zero.shape != (1,) and rows:
        zero = reshaped(zero, (*zero.shape, 1))

    def element(scope: Scope, axes: Axes) -> Any:
        offset = convert(zero.broadcast(scope, axes), "int32")
        return convert(value.at(scope, axes), "int32") - offset

    return Value("int32", value.shape, element)


def _optional(args: Sequence[Value], position: int) -> Value | None:
    return args[position] if position < len(args) else None


@emitter("MatMulInteger")
def _matmul_integer(node: Node, args: Sequence[Value], body: Body) -> Value:
    a = _centred(args[0], _optional(args, 2), rows=True)
    b = _centred(args[1], _optional(args, 3), rows=False)
    return multiplied(body, a, b, "int32")


@emitter("QLinearMatMul")
def _qlinear_matmul(node: Node, args: Sequence[Value], body: Body) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = args
    left, right = _centred(a, a_zero, rows=True), _centred(b, b_zero, rows=False)
    total = multiplied(body, left, right, "int32")
    dtype = node.tensor.dtype
    if len(a_scale.shape) == 1 and a_scale.shape != (1,):
        a_scale = reshaped(a_scale, (*a_scale.shape, 1))

    def element(scope: Scope, axes: Axes) -> Any:
        scales = (convert(s.broadcast(scope, axes), "float32") for s in (a_scale, b_scale))
        factor = next(scales) * next(scales)
        x = convert(total.at(scope, axes), "float32") * factor
        step, zero = (v.broadcast(scope, axes) for v in (y_scale, y_zero))
        return quantized(x, convert(step, "float32"), zero, dtype)

    return Value(dtype, total.shape, element)


@emitter("ConvInteger")
def _conv_integer(node: Node, args: Sequence[Value], body: Body) -> Value:
    x = _centred(args[0], _optional(args, 2), rows=False)
    w = _centred_filters(args[1], _optional(args, 3))
    return convolved(node, body, x, w, None)


def _centred_filters(weight: Value, zero: Value | None) -> Value:
    """Filters less their zero points, one for all or one a filter."""
    if zero is not None and zero.shape not in ((), (1,)):
        zero = reshaped(zero, (*zero.shape, *[1] * (len(weight.shape) - 1)))
    return _centred(weight, zero, rows=False)


@emitter("QLinearConv")
def _qlinear_conv(node: Node, args: Sequence[Value], body: Body) -> Value:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = args[:8]
    bias = _optional(args, 8)
    filters = _centred_filters(w, w_zero)
    total = convolved(node, body, _centred(x, x_zero, rows=False), filters, bias, "int32")
    dtype = node.tensor.dtype
    if w_scale.shape not in ((), (1,)):
        w_scale = reshaped(w_scale, (*w_scale.shape, *[1] * (len(x.shape) - 2)))

    def element(scope: Scope, axes: Axes) -> Any:
        factor = x_scale.broadcast(scope, axes) * w_scale.broadcast(scope, axes)
        value = convert(total.at(scope, axes), "float32") * factor
        zero = y_zero.broadcast(scope, axes)
        return quantized(value, y_scale.broadcast(scope, axes), zero, dtype)

    return Value(dtype, total.shape, element)
