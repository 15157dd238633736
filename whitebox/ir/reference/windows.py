"""Convolutions, pools and normalisation of images in numpy, fast enough for whole networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means
from whitebox.ir.shapes.spatial import resolve_window, window_dims


def convolve(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, attrs: Mapping[str, Any]
) -> np.ndarray:
    """ONNX's Conv on any number of spatial axes; attributes resolved."""
    group, out = attrs.get("group", 1), window_dims(x.shape[2:], attrs)
    n, channels = x.shape[:2]
    padded = _padded(x, attrs["pads"], 0)
    spatial = tuple(int(dim) for dim in out)  # type: ignore[arg-type]
    result = np.zeros((n, group, w.shape[0] // group, int(np.prod(spatial))), x.dtype)
    grouped = w.reshape(group, w.shape[0] // group, *w.shape[1:])
    for tap, index in _taps(spatial, attrs):
        part = padded[(..., *index)].reshape(n, group, channels // group, -1)
        result += grouped[(..., *tap)] @ part
    result = result.reshape(n, w.shape[0], *spatial)
    return result if bias is None else result + bias.reshape(-1, *(1,) * len(spatial))


def _padded(x: np.ndarray, pads: tuple[int, ...], fill: Any) -> np.ndarray:
    rank = len(pads) // 2
    widths = [(0, 0)] * (x.ndim - rank) + [(pads[i], pads[rank + i]) for i in range(rank)]
    return np.pad(x, widths, constant_values=fill) if any(pads) else x


def _taps(
    out: tuple[int, ...], attrs: Mapping[str, Any]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Each position in the kernel, and the slices of the data that it meets."""
    strides, dilations = attrs["strides"], attrs.get("dilations", (1,) * len(out))
    for tap in itertools.product(*map(range, attrs["kernel_shape"])):
        starts = [t * dilation for t, dilation in zip(tap, dilations, strict=True)]
        yield tap, tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(starts, out, strides, strict=True)
        )


@means("Conv")
def _conv(node: Node, values: Values) -> Any:
    x, w, bias = (*values, None)[:3]
    return convolve(x, w, bias, resolve_window("Conv", x.shape, w.shape, node.attrs))


def pool(op: str, x: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """ONNX's MaxPool or AveragePool; attributes resolved."""
    out = tuple(int(dim) for dim in window_dims(x.shape[2:], attrs))  # type: ignore[arg-type]
    pads, largest = attrs["pads"], op == "MaxPool"
    overhang = (0,) * len(out) + tuple(
        # How far the last window of ceil_mode reaches beyond the padding.
        max(0, max(index[axis].stop for _, index in _taps(out, attrs)) - extent)
        for axis, extent in enumerate(_padded(x[:1, :1], pads, 0).shape[2:])
    )
    if largest:
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        data = _padded(_padded(x, pads, lowest), overhang, lowest)
        return np.max([data[(..., *index)] for _, index in _taps(out, attrs)], axis=0)
    data = _padded(_padded(x, pads, 0), overhang, 0)
    counted = np.ones(x.shape[2:], x.dtype)
    counted = _padded(_padded(counted, pads, attrs.get("count_include_pad", 0)), overhang, 0)
    total = sum(data[(..., *index)] for _, index in _taps(out, attrs))
    return np.asarray(total / sum(counted[index] for _, index in _taps(out, attrs)), x.dtype)


@means("MaxPool", "AveragePool")
def _pool(node: Node, values: Values) -> Any:
    x = values[0]
    if len(node.types) > 1 or x.dtype.kind not in "fiu":
        return NotImplemented
    return pool(node.op, x, resolve_window(node.op, x.shape, None, node.attrs))


@means("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node, values: Values) -> Any:
    x = values[0]
    combine = np.mean if node.op == "GlobalAveragePool" else np.max
    return combine(x, axis=tuple(range(2, x.ndim)), keepdims=True).astype(x.dtype)


@means("BatchNormalization", since=9)
def _batch_normalization(node: Node, values: Values) -> Any:
    if node.attr("training_mode", 0):
        return NotImplemented
    x, scale, bias, mean, variance = values
    factor = scale / np.sqrt(variance + np.asarray(node.attrs["epsilon"], variance.dtype))
    along = (1, -1, *(1,) * (x.ndim - 2))
    shifted = (x - mean.reshape(along)) * factor.reshape(along) + bias.reshape(along)
    return shifted.astype(x.dtype)


@means("LRN")
def _lrn(node: Node, values: Values) -> Any:
    x, size = values[0], int(node.attrs["size"])  # type: ignore[arg-type]
    before, after = (size - 1) // 2, size // 2
    squares = np.pad(x * x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    scale = node.attrs["bias"] + node.attrs["alpha"] / size * total  # type: ignore[operator]
    return (x / scale ** node.attrs["beta"]).astype(x.dtype)
