"""Convolutions, pools and normalisation of images in numpy, fast enough for whole networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means
from whitebox.ir.shapes.spatial import resolve_window, window_dims


def convolve(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, attrs: Mapping[str, Any]
) -> np.ndarray:
    """ONNX's Conv on any number of spatial axes; attributes resolved."""
    group, out = attrs.get("group", 1), _out_dims(x, attrs)
    n, channels = x.shape[:2]
    padded = _padded(x, attrs["pads"], 0)
    result = np.zeros((n, group, w.shape[0] // group, int(np.prod(out))), x.dtype)
    # One matrix per group and position in the kernel.
    matrices = w.reshape(group, w.shape[0] // group, w.shape[1], -1)
    for tap, part in enumerate(_taps(padded, out, attrs)):
        result += matrices[..., tap] @ part.reshape(n, group, channels // group, result.shape[-1])
    result = result.reshape(n, w.shape[0], *out)
    return result if bias is None else result + bias.reshape(-1, *(1,) * len(out))


def _out_dims(x: np.ndarray, attrs: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(dim for dim in window_dims(x.shape[2:], attrs) if isinstance(dim, int))


def _padded(x: np.ndarray, pads: Sequence[int], fill: Any) -> np.ndarray:
    rank = len(pads) // 2
    widths = [(0, 0)] * (x.ndim - rank) + [(pads[i], pads[rank + i]) for i in range(rank)]
    return np.pad(x, widths, constant_values=fill) if any(pads) else x


def _taps(
    padded: np.ndarray, out: tuple[int, ...], attrs: Mapping[str, Any]
) -> Iterator[np.ndarray]:
    """For each position in the kernel, in C order, the data that it meets."""
    strides, dilations = attrs["strides"], attrs.get("dilations", (1,) * len(out))
    for tap in itertools.product(*map(range, attrs["kernel_shape"])):
        starts = [t * dilation for t, dilation in zip(tap, dilations, strict=True)]
        index: list[Any] = [
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(starts, out, strides, strict=True)
        ]
        yield padded[(..., *index)]


@means("Conv")
def _conv(node: Node, values: Values) -> Any:
    x, w, bias = (*values, None)[:3]
    return convolve(x, w, bias, resolve_window("Conv", x.shape, w.shape, node.attrs))


def pool(op: str, x: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """ONNX's MaxPool or AveragePool; attributes resolved."""
    out, pads, beyond = _out_dims(x, attrs), attrs["pads"], _overhang(x, attrs)
    if op == "MaxPool":
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        data = _padded(_padded(x, pads, lowest), beyond, lowest)
        return np.max(list(_taps(data, out, attrs)), axis=0)  # type: ignore[no-any-return]
    data = _padded(_padded(x, pads, 0), beyond, 0)
    counted = _padded(np.ones(x.shape[2:], x.dtype), pads, attrs.get("count_include_pad", 0))
    count = np.sum(list(_taps(_padded(counted, beyond, 0), out, attrs)), axis=0)
    return np.asarray(np.sum(list(_taps(data, out, attrs)), axis=0) / count, x.dtype)


def _overhang(x: np.ndarray, attrs: Mapping[str, Any]) -> list[int]:
    """Pads for how far the last windows of `ceil_mode` reach beyond the padding."""
    rank, ends = x.ndim - 2, []
    dilations = attrs.get("dilations", (1,) * rank)
    for i, count in enumerate(_out_dims(x, attrs)):
        reach = (attrs["kernel_shape"][i] - 1) * dilations[i] + 1
        extent = x.shape[2 + i] + attrs["pads"][i] + attrs["pads"][rank + i]
        ends.append(max((count - 1) * attrs["strides"][i] + reach - extent, 0))
    return [0] * rank + ends


@means("MaxPool", "AveragePool")
def _pool(node: Node, values: Values) -> Any:
    x = values[0]
    if len(node.types) > 1 or x.dtype.kind not in "fiu":
        return NotImplemented
    return pool(node.op, x, resolve_window(node.op, x.shape, None, node.attrs))


@means("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node, values: Values) -> Any:
    x = values[0]
    combine: Any = np.mean if node.op == "GlobalAveragePool" else np.max
    return combine(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@means("BatchNormalization", since=9)
def _batch_normalization(node: Node, values: Values) -> Any:
    if node.attr("training_mode", 0):
        return NotImplemented
    x, scale, bias, mean, variance = values
    factor = scale / np.sqrt(variance + np.asarray(node.attr("epsilon"), variance.dtype))
    along = (1, -1, *(1,) * (x.ndim - 2))
    return (x - mean.reshape(along)) * factor.reshape(along) + bias.reshape(along)


@means("LRN")
def _lrn(node: Node, values: Values) -> Any:
    x, size = values[0], node.attr("size")
    widths = [(0, 0), ((size - 1) // 2, size // 2)] + [(0, 0)] * (x.ndim - 2)
    squares = np.pad(x * x, widths)
    total = np.sum([squares[:, i : i + x.shape[1]] for i in range(size)], axis=0)
    return x / (node.attr("bias") + node.attr("alpha") / size * total) ** node.attr("beta")
