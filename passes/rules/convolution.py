"""Convolutions with known weights in blocked form, for the `layout` pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.winograd import KERNELS, weight_transform
from whitebox.passes.rewrite import rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.packing import known, pack, pack_vector, pad_to, unpack

# Images have so few channels that padding them to a block would waste most of the work.
FEW_CHANNELS = 4
# Groups of whole blocks are convolutions of their own; with more of them, copies would dominate.
_GROUP_CHANNELS, _MOST_GROUPS = 16, 8
# Winograd's weights are four times as large: that many more bytes cost as much to read as the
# multiplications saved, unless each weight meets this many positions, or all stay in the cache.
_WINOGRAD_POSITIONS = 96
_WINOGRAD_CACHED_POSITIONS = 36
_WINOGRAD_CACHED_BYTES = 2 * 1024 * 1024
# Below this, padding to whole channel blocks and whole tiles undoes what it saves.
_WINOGRAD_CHANNELS = 12
_WINOGRAD_ROWS = 5


def blocked_conv(node: Node, lanes: int, winograd: bool) -> Node | None:
    x, weight = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or weight is None or not known(weight) or not (bias is None or known(bias)):
        return None
    if node.tensor.dtype != "float32" or not node.tensor.is_static or node.tensor.rank != 4:
        return None
    if node.attr("auto_pad", "NOTSET") != "NOTSET" or 0 in node.tensor.dims:
        return None
    oc, ic, kh, kw = weight.tensor.dims
    group = node.attr("group", 1)
    depthwise = group > 1 and ic == 1 and oc == group
    if group != 1 and not depthwise:
        return None
    few = group == 1 and ic <= FEW_CHANNELS and x.op != "whitebox.Unpack"
    attrs: dict[str, Any] = {
        "kernel_shape": (kh, kw),
        "strides": tuple(node.attr("strides", (1, 1))),
        "pads": tuple(node.attr("pads", (0, 0, 0, 0))),
        "dilations": tuple(node.attr("dilations", (1, 1))),
        "group": 1,
        "block": lanes,
        "data_layout": "NCHW" if few else "NCHWc",
        "in_channels": x.tensor.dims[1],
    }
    if depthwise:
        op, packed = "whitebox.DepthwiseConv", _pack_depthwise_weight(weight, lanes)
    elif winograd and not few and _worth_winograd(node, weight):
        op, packed = "whitebox.WinogradConv", _pack_winograd_weight(weight, lanes)
    else:
        op, packed = "whitebox.Conv", _pack_conv_weight(weight, lanes, few)
    inputs = [x if few else pack(x, lanes), packed]
    if bias is not None:
        inputs.append(pack_vector(bias, lanes))
    return unpack(ops.node(op, *inputs, **attrs), oc)


@rule("Conv")
def conv_of_groups(node: Node) -> Node | None:
    """Conv(x, W), g groups = Concat of Conv(xᵢ, Wᵢ), i < g, for channels xᵢ in whole blocks"""
    x, weight = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    group = node.attr("group", 1)
    if x is None or weight is None or not 1 < group <= _MOST_GROUPS or weight.tensor.rank != 4:
        return None
    channels = (weight.tensor.dims[1], weight.tensor.dims[0] // group)
    if any(each % _GROUP_CHANNELS for each in channels) or not known(weight):
        return None
    parts = []
    for index in range(group):
        operands = [_part(x, 1, index, group), _part(weight, 0, index, group)]
        if bias is not None:
            operands.append(_part(bias, 0, index, group))
        parts.append(ops.make("Conv", tuple(operands), {**node.attrs, "group": 1}))
    return ops.node("Concat", *parts, axis=1)


def _part(x: Node, axis: int, index: int, count: int) -> Node:
    """Slice `index` of `count` equal ones."""
    size = x.tensor.dims[axis] // count
    bounds = (index * size, (index + 1) * size, axis, 1)
    return ops.node("Slice", x, *(constant(np.array([b], np.int64)) for b in bounds))


def _worth_winograd(node: Node, weight: Node) -> bool:
    """Whether a convolution of group 1 is faster by tiles of results."""
    oc, ic, *kernel = weight.tensor.dims
    steps = (*node.attr("strides", (1, 1)), *node.attr("dilations", (1, 1)))
    if tuple(kernel) not in KERNELS or set(steps) != {1}:
        return False
    batch, _, height, width = node.tensor.dims
    if min(oc, ic) < _WINOGRAD_CHANNELS or min(height, width) < _WINOGRAD_ROWS:
        return False
    cached = oc * ic * 36 * 4 <= _WINOGRAD_CACHED_BYTES
    fewest = _WINOGRAD_CACHED_POSITIONS if cached else _WINOGRAD_POSITIONS
    return batch * height * width >= fewest


def _pack_winograd_weight(weight: Node, lanes: int) -> Node:
    """OIHW, H = W → transformed [O/c, 6, 6, I/c, c_in, c_out]."""
    oc, ic, size, _ = weight.tensor.dims
    outer, inner = -(-oc // lanes), -(-ic // lanes)
    rows = reshape(weight, (oc * ic, size * size))
    transformed = ops.node("MatMul", rows, constant(weight_transform(size)))
    padded = pad_to(reshape(transformed, (oc, ic, 6, 6)), (outer * lanes, inner * lanes, 6, 6))
    split = reshape(padded, (outer, lanes, inner, lanes, 6, 6))
    return ops.node("Transpose", split, perm=(0, 4, 5, 2, 3, 1))


def _pack_conv_weight(weight: Node, lanes: int, few: bool) -> Node:
    """OIHW → [O/c, I/c, H, W, c_in, c_out], or [O/c, I, H, W, c_out] for few input channels."""
    oc, ic, kh, kw = weight.tensor.dims
    outer = -(-oc // lanes)
    if few:
        padded = pad_to(weight, (outer * lanes, ic, kh, kw))
        split = reshape(padded, (outer, lanes, ic, kh, kw))
        return ops.node("Transpose", split, perm=(0, 2, 3, 4, 1))
    inner = -(-ic // lanes)
    padded = pad_to(weight, (outer * lanes, inner * lanes, kh, kw))
    split = reshape(padded, (outer, lanes, inner, lanes, kh, kw))
    return ops.node("Transpose", split, perm=(0, 2, 4, 5, 3, 1))


def _pack_depthwise_weight(weight: Node, lanes: int) -> Node:
    """[C, 1, H, W] → [C/c, H, W, c]."""
    channels, _, kh, kw = weight.tensor.dims
    outer = -(-channels // lanes)
    padded = pad_to(weight, (outer * lanes, 1, kh, kw))
    return ops.node("Transpose", reshape(padded, (outer, lanes, kh, kw)), perm=(0, 2, 3, 1))
