"""Types of the operators on channel-blocked data (NCHWc) and packed weights.

Data is [N, ceil(C / block), H, W, block]; the tail of the last channel block is zero.
"""

from __future__ import annotations

import numpy as np

from whitebox.ir.shapes.linear import check_inner
from whitebox.ir.shapes.rule import Call, Misfit, rule
from whitebox.ir.shapes.spatial import window_dims
from whitebox.ir.types import Dim, TensorType


def _blocked(call: Call) -> tuple[Dim, ...]:
    shape = call.shape(0)
    if shape is None or len(shape) != 5 or shape[4] != call.attrs["block"]:
        raise Misfit(f"the data must be blocked by {call.attrs['block']}")
    return shape


@rule("whitebox.Conv")
def _conv(call: Call) -> TensorType:
    weight = call.tensor(1).dims
    if call.attrs["data_layout"] == "NCHWc":
        n, channel_blocks, h, w, _ = _blocked(call)
        if weight[1] != channel_blocks:
            raise Misfit(f"{channel_blocks} blocks of channels meet a weight for {weight[1]}")
    else:
        shape = call.shape(0)
        if shape is None or len(shape) != 4 or shape[1] != weight[1]:
            raise Misfit(f"the data must be NCHW with {weight[1]} channels")
        n, _, h, w = shape
    return TensorType(
        call.dtype(0), (n, weight[0], *window_dims((h, w), call.attrs), call.attrs["block"])
    )


@rule("whitebox.WinogradConv")
def _winograd_conv(call: Call) -> TensorType:
    n, channel_blocks, h, w, block = _blocked(call)
    weight = call.tensor(1).dims
    if weight[1:] != (6, 6, channel_blocks, block, block):
        raise Misfit(f"{channel_blocks} blocks of channels meet a transformed weight {weight}")
    dims = (n, weight[0], *window_dims((h, w), call.attrs), block)
    return TensorType(call.dtype(0), dims)


@rule("whitebox.DepthwiseConv")
def _depthwise_conv(call: Call) -> TensorType:
    n, channel_blocks, h, w, block = _blocked(call)
    if call.tensor(1).dims[0] != channel_blocks:
        raise Misfit(f"{channel_blocks} blocks of channels meet {call.tensor(1).dims[0]} filters")
    dims = (n, channel_blocks, *window_dims((h, w), call.attrs), block)
    return TensorType(call.dtype(1), dims)


@rule("whitebox.MaxPool", "whitebox.AveragePool")
def _pool(call: Call) -> TensorType:
    n, channel_blocks, h, w, block = _blocked(call)
    dims = (n, channel_blocks, *window_dims((h, w), call.attrs), block)
    return TensorType(call.dtype(0), dims)


@rule("whitebox.MatMul")
def _matmul(call: Call) -> TensorType:
    shape, weight = call.shape(0), call.tensor(1).dims
    if shape is None or not shape:
        raise Misfit("the data must be a matrix, or several")
    check_inner(shape[-1], weight[1])
    n, tile = call.attrs["n"], call.attrs["nt"]
    if weight[2] != tile or weight[0] != -(-n // tile):
        raise Misfit(f"the weight is not packed for {n} columns in tiles of {tile}")
    return TensorType(call.dtype(0), (*shape[:-1], n))


@rule("whitebox.MatMulBf16")
def _matmul_bf16(call: Call) -> TensorType:
    shape, weight = call.tensor(0).dims, call.tensor(1).dims
    n, tile = call.attrs["n"], call.attrs["nt"]
    if weight[0] != -(-n // tile) or weight[2:] != (tile, 2) or 2 * weight[1] < shape[-1]:
        raise Misfit(f"the weight is not packed for {shape[-1]} rows and {n} columns")
    return TensorType(call.dtype(0), (*shape[:-1], n))


@rule("whitebox.BatchMatMulBf16")
def _batch_matmul_bf16(call: Call) -> TensorType:
    a, b = call.tensor(0).dims, call.tensor(1).dims
    inner, columns = (b[-1], b[-2]) if call.attrs["transpose_b"] else b[-2:]
    check_inner(a[-1], inner)
    if a[:-2] != b[:-2]:
        raise Misfit(f"products {a[:-2]} meet others, {b[:-2]}")
    return TensorType(call.dtype(0), (*a[:-1], columns))


@rule("whitebox.ConvBf16")
def _conv_bf16(call: Call) -> TensorType:
    n, _, h, w, block = _blocked(call)
    weight = call.tensor(1).dims
    _, steps, _, _, pairs, width, _ = weight
    blocks: int = call.attrs["out_blocks"]
    stored = call.tensor(0).dims[1] * call.attrs["block"]
    if steps != -(-stored // (2 * pairs)) or weight[0] * width < blocks * call.attrs["block"]:
        raise Misfit(f"{stored} channels meet a weight {weight}")
    return TensorType(call.dtype(0), (n, blocks, *window_dims((h, w), call.attrs), block))


@rule("whitebox.Pack")
def _pack(call: Call) -> TensorType:
    n, c, h, w = call.tensor(0).dims
    block = call.attrs["block"]
    return TensorType(call.dtype(0), (n, -(-c // block), h, w, block))


@rule("whitebox.Unpack")
def _unpack(call: Call) -> TensorType:
    n, channel_blocks, h, w, block = call.tensor(0).dims
    channels = call.attrs["channels"]
    if -(-channels // block) != channel_blocks:
        raise Misfit(f"{channel_blocks} blocks of {block} do not hold {channels} channels")
    return TensorType(call.dtype(0), (n, channels, h, w))


@rule("whitebox.MatMulTransposed")
def _matmul_transposed(call: Call) -> TensorType:
    a, b = call.tensor(0).dims, call.tensor(1).dims
    check_inner(a[-1], b[-1])
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    return TensorType(call.dtype(0), (*batch, a[-2], b[-2]))


@rule("whitebox.MatMulInteger")
def _matmul_integer(call: Call) -> TensorType:
    shape, panels = call.tensor(0).dims, call.tensor(1).dims
    n, tile = call.attrs["n"], call.attrs["nt"]
    group = panels[-1] // tile
    if not group or panels != (-(-n // tile), -(-shape[-1] // group), tile * group):
        raise Misfit(f"the weight is not packed for {n} columns in tiles of {tile}")
    return TensorType("int32", (*shape[:-1], n))


@rule("whitebox.GRU", "whitebox.LSTM", "whitebox.RNN")
def _recurrent(call: Call) -> tuple[TensorType, ...]:
    steps, batch, directions, gates, units = call.tensor(0).dims
    panels, hidden = call.tensor(1).dims, call.attrs["hidden_size"]
    lanes = panels[-1]
    if panels != (directions, units // lanes, gates, hidden, lanes):
        raise Misfit(f"the weights are not packed for {hidden} units of {gates} gates")
    dtype, state = call.dtype(0), (directions, batch, hidden)
    states = TensorType(dtype, state)
    return TensorType(dtype, (steps, directions, batch, hidden)), states, states


@rule("whitebox.Attention")
def _attention(call: Call) -> TensorType:
    q, k, v = (call.tensor(position).dims for position in range(3))
    check_inner(q[-1], k[-1])
    check_inner(k[-2], v[-2])
    return TensorType(call.dtype(0), (*q[:-1], v[-1]))
