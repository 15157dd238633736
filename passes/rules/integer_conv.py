"""Convolutions of 8-bit integers on channel-blocked data and packed weights.

Two forms, by what the target adds up fastest without rounding (kernels/cpu/dot_product): words,
int16 data less its zero point, two products a step; and bytes, where the target has an instruction
for them, uint8 data and int8 weights, four products a step. In words padding is zero and no zero
point is left to correct for; whoever else reads the data then reads it less its zero point as well,
so that it is stored once. In bytes padding holds the zero point, whose share of each sum is a
constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.shapes.integer import GROUPS
from whitebox.ir.types import ONNX_DTYPES
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.packing import known, pack, pack_vector, pad_to, unpack

_FLOAT32, _INT32 = ONNX_DTYPES.index("float32"), ONNX_DTYPES.index("int32")
BYTES = ("int8", "uint8")
_MOVEMENT = ("Reshape", "Transpose", "Slice", "MaxPool", "whitebox.MaxPool")


def integer_conv_rules(lanes: int, group: int) -> tuple[Rule, ...]:
    """The rules, for vectors of `lanes` 32-bit sums, each of `group` products at a time."""

    @rule("ConvInteger")
    def conv_integer_to_blocked(node: Node) -> Node | None:
        """ConvInteger(x, W) = Unpack(whitebox.ConvInteger(Pack(x), packed W)), W known"""
        return _blocked(node, lanes, group) if takes_integers(node) else None

    if group == GROUPS["int8"]:
        return (conv_integer_to_blocked,)
    return (
        conv_integer_to_blocked,
        dequantize_centred,
        centre_before_movement,
        depthwise_of_integers,
    )


def takes_integers(conv: Node) -> bool:
    """Whether there is a kernel for a ConvInteger."""
    x, weight, x_zero, w_zero = (*conv.inputs, None, None)[:4]
    if x is None or weight is None or known(x) or not known(weight):
        return False
    if not all(zero is None or known(zero) for zero in (x_zero, w_zero)):
        return False
    static = conv.tensor.is_static and conv.tensor.rank == 4 and 0 not in conv.tensor.dims
    plain = conv.attr("group", 1) == 1 and conv.attr("auto_pad", "NOTSET") == "NOTSET"
    return static and plain and x.tensor.dtype in BYTES and weight.tensor.dtype in BYTES


def _blocked(node: Node, lanes: int, group: int) -> Node:
    x, weight, x_zero, w_zero = (*node.inputs, None, None)[:4]
    assert x is not None and weight is not None
    attrs: dict[str, Any] = {
        "kernel_shape": weight.tensor.dims[2:],
        "strides": tuple(node.attr("strides", (1, 1))),
        "pads": tuple(node.attr("pads", (0, 0, 0, 0))),
        "dilations": tuple(node.attr("dilations", (1, 1))),
        "in_channels": weight.tensor.dims[1],
    }
    rest: tuple[Node, ...] = ()
    # A weight's own zero point takes more than a byte.
    if group == GROUPS["int8"] and weight.tensor.dtype == "int8" and _is_zero(w_zero):
        x, border = _as_unsigned(x, x_zero)
        rest = (pack_vector(_share_of_zero(border, weight), lanes), border)
    else:
        x, weight = centre(x, x_zero), centre(weight, _along_filters(w_zero))
    packed = _pack_filters(weight, lanes)
    made = ops.node("whitebox.ConvInteger", pack(x, lanes), packed, *rest, **attrs)
    return unpack(made, weight.tensor.dims[0])


def _is_zero(zero: Node | None) -> bool:
    return zero is None or (zero.is_constant and not np.any(zero.value))


def _along_filters(zero: Node | None) -> Node | None:
    """Zero points of filters, to broadcast against OIHW."""
    if zero is None:
        return None
    size = zero.tensor.size
    return reshape(zero, () if size == 1 else (size, 1, 1, 1))


def centre(x: Node, zero: Node | None, to: str = "int16") -> Node:
    """x - zero, in a dtype that holds it."""
    if zero is None:
        zero = constant(np.array(0, x.tensor.dtype))
    if zero.tensor.size == 1:
        zero = reshape(zero, ())
    return ops.node("whitebox.Centre", x, zero, to=ONNX_DTYPES.index(to))


def _as_unsigned(x: Node, zero: Node | None) -> tuple[Node, Node]:
    """Data and its zero point as uint8: signed ones are moved up by 128."""
    if zero is None:
        zero = constant(np.array(0, x.tensor.dtype))
    zero = reshape(zero, ())
    if x.tensor.dtype == "uint8":
        return x, zero
    least = constant(np.array(-128, np.int8))
    return centre(x, least, "uint8"), centre(zero, least, "uint8")


def _share_of_zero(zero: Node, weight: Node) -> Node:
    """-zero · Σ W for each filter: what the sums have too much."""
    wide = ops.node("Cast", weight, to=_INT32)
    axes = constant(np.array([1, 2, 3], np.int64))
    sums = ops.node("ReduceSum", wide, axes, keepdims=0)
    return ops.node("Neg", ops.node("Mul", sums, ops.node("Cast", zero, to=_INT32)))


def _pack_filters(weight: Node, lanes: int) -> Node:
    """OIHW → [O/c, I/c, H, W, c/g, c·g], g neighbouring input channels innermost."""
    group = GROUPS[weight.tensor.dtype]
    oc, ic, kh, kw = weight.tensor.dims
    outer, inner = -(-oc // lanes), -(-ic // lanes)
    padded = pad_to(weight, (outer * lanes, inner * lanes, kh, kw))
    split = reshape(padded, (outer, lanes, inner, lanes // group, group, kh, kw))
    turned = ops.node("Transpose", split, perm=(0, 2, 5, 6, 3, 1, 4))
    return reshape(turned, (outer, inner, kh, kw, lanes // group, lanes * group))


@rule("DequantizeLinear")
def dequantize_centred(node: Node) -> Node | None:
    """Dequantize(x, s, a) = Centre(x, a) · s, so that all readers of x read the same integers"""
    x, scale, zero = (*node.inputs, None)[:3]
    if x is None or scale is None or known(x) or x.tensor.dtype not in BYTES:
        return None
    if node.tensor.dtype != "float32" or scale.tensor.size != 1:
        return None
    centred = ops.node("Cast", centre(x, zero), to=_FLOAT32)
    return ops.node("Mul", centred, reshape(scale, ()))


@rule("whitebox.Centre")
def centre_before_movement(node: Node) -> Node | None:
    """Centre(T(x), a) = T(Centre(x, a)) for T that moves elements or takes the greatest"""
    source, zero = node.inputs
    if source is None or zero is None or zero.tensor.size != 1 or known(source):
        return None
    if source.op in _MOVEMENT and len(source.types) == 1:
        moved = ops.rebuild(node, (source.inputs[0], zero))
        return ops.rebuild(source, (moved, *source.inputs[1:]))
    if source.op == "Concat":
        return ops.rebuild(source, [ops.rebuild(node, (x, zero)) for x in source.inputs])
    return None


@rule("whitebox.DepthwiseConv")
def depthwise_of_integers(node: Node) -> Node | None:
    """DepthwiseConv(Cast(x) · s, W, b) = DepthwiseConv(x, W · s, b), which reads int16 data"""
    source, weight, *bias = node.inputs
    if source is None or source.op != "Mul" or weight is None:
        return None
    data, scale = source.inputs
    if data is None or scale is None or data.op != "Cast" or scale.tensor.size != 1:
        return None
    if not known(scale) or data.inputs[0] is None or data.inputs[0].tensor.dtype != "int16":
        return None
    scaled = ops.node("Mul", weight, reshape(scale, ()))
    return ops.rebuild(node, (data.inputs[0], scaled, *bias))
