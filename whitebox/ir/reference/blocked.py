"""The operators on channel-blocked data in numpy: unpack, the plain operator, pack again."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means
from whitebox.ir.reference.windows import convolve, pool
from whitebox.ir.winograd import weight_inverse


def to_blocked(x: np.ndarray, block: int) -> np.ndarray:
    """NCHW → [N, ceil(C / block), H, W, block], the channel tail zero."""
    n, c, h, w = x.shape
    padded = np.pad(x, [(0, 0), (0, -c % block), (0, 0), (0, 0)])
    return padded.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2)


def from_blocked(x: np.ndarray) -> np.ndarray:
    """[N, Co, H, W, block] → NCHW with the padded channels kept."""
    n, blocks, h, w, block = x.shape
    return x.transpose(0, 1, 4, 2, 3).reshape(n, blocks * block, h, w)


def _plain_weight(weight: np.ndarray) -> np.ndarray:
    """A packed weight as OIHW, with padded channels kept."""
    if weight.ndim == 6:
        oc, ic, kh, kw, inner, outer = weight.shape
        return weight.transpose(0, 5, 1, 4, 2, 3).reshape(oc * outer, ic * inner, kh, kw)
    oc, channels, kh, kw, outer = weight.shape
    return weight.transpose(0, 4, 1, 2, 3).reshape(oc * outer, channels, kh, kw)


@means("whitebox.Conv")
def _conv(node: Node, values: Values) -> Any:
    x, weight, bias = (*values, None)[:3]
    data = from_blocked(x) if node.attr("data_layout") == "NCHWc" else x
    flat = None if bias is None else bias.reshape(-1)
    plain = convolve(
        data, _plain_weight(weight.astype(np.float32)), flat, {**node.attrs, "group": 1}
    )
    return to_blocked(plain, node.attr("block"))


@means("whitebox.WinogradConv")
def _winograd_conv(node: Node, values: Values) -> Any:
    x, weight, bias = (*values, None)[:3]
    outer, _, _, inner, block, _ = weight.shape
    size = node.attr("kernel_shape")[0]
    rows = weight.transpose(0, 5, 3, 4, 1, 2).reshape(-1, 36) @ weight_inverse(size)
    flat = None if bias is None else bias.reshape(-1)
    plain = rows.reshape(outer * block, inner * block, size, size)
    attrs = {**node.attrs, "group": 1}
    return to_blocked(convolve(from_blocked(x), plain, flat, attrs), block)


@means("whitebox.DepthwiseConv")
def _depthwise_conv(node: Node, values: Values) -> Any:
    x, weight, bias = (*values, None)[:3]
    blocks, kh, kw, block = weight.shape
    plain = weight.transpose(0, 3, 1, 2).reshape(blocks * block, 1, kh, kw)
    flat = None if bias is None else bias.reshape(-1)
    data = from_blocked(x).astype(weight.dtype)
    return to_blocked(convolve(data, plain, flat, {**node.attrs, "group": data.shape[1]}), block)


@means("whitebox.MaxPool", "whitebox.AveragePool")
def _pool(node: Node, values: Values) -> Any:
    op = node.op.removeprefix("whitebox.")
    plain = pool(op, from_blocked(values[0]), node.attrs)
    return to_blocked(plain, node.attr("block"))


@means("whitebox.MatMul")
def _matmul(node: Node, values: Values) -> Any:
    a, weight = values[:2]
    tiles, k, tile = weight.shape
    columns = weight.astype(np.float32).transpose(1, 0, 2).reshape(k, tiles * tile)
    return a @ columns[:, : node.attr("n")]


@means("whitebox.Pack")
def _pack(node: Node, values: Values) -> Any:
    return to_blocked(values[0], node.attr("block"))


@means("whitebox.Unpack")
def _unpack(node: Node, values: Values) -> Any:
    return from_blocked(values[0])[:, : node.attr("channels")]


@means("whitebox.MatMulTransposed")
def _matmul_transposed(node: Node, values: Values) -> Any:
    return values[0] @ np.swapaxes(values[1], -1, -2)


@means("whitebox.MatMulInteger")
def _matmul_integer(node: Node, values: Values) -> Any:
    a, packed, _, a_zero, w_zero = (*values, None, None)[:5]
    panels, groups, width = packed.shape
    group = width // node.attrs["nt"]
    split = packed.reshape(panels, groups, node.attrs["nt"], group).transpose(1, 3, 0, 2)
    weight = split.reshape(groups * group, -1)[: a.shape[-1], : node.attrs["n"]].astype(np.int32)
    left = a.astype(np.int32) - (0 if a_zero is None else np.int32(a_zero))
    return left @ (weight - (0 if w_zero is None else np.int32(w_zero)))


@means("whitebox.Attention")
def _attention(node: Node, values: Values) -> Any:
    q, k, v, mask = (*values, None)[:4]
    scores = q @ np.swapaxes(k, -1, -2) * np.float32(node.attr("scale"))
    scores = scores if mask is None else scores + mask
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights = powers / powers.sum(-1, keepdims=True)
    if node.attr("nan_to_zero"):
        weights = np.where(np.isnan(weights), np.float32(0), weights)
    return weights @ v
