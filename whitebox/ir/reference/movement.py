"""Operators that move, cut, repeat or make elements, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.elementwise import is_plain
from whitebox.ir.reference.table import Values, means


@means("Identity")
def _identity(node: Node, values: Values) -> Any:
    return values[0]


@means("Shape")
def _shape(node: Node, values: Values) -> Any:
    part = slice(node.attr("start", 0), node.attr("end"))
    return np.array(values[0].shape[part], np.int64)


@means("Size")
def _size(node: Node, values: Values) -> Any:
    return np.array(values[0].size, np.int64)


@means("GatherElements")
def _gather_elements(node: Node, values: Values) -> Any:
    data, indices = values
    axis = node.attr("axis", 0) % data.ndim
    # onnx's own reference fails where a dimension of the indices has size 1.
    places = list(np.ogrid[tuple(slice(dim) for dim in indices.shape)])
    places[axis] = indices
    return data[tuple(places)]


@means("Gather")
def _gather(node: Node, values: Values) -> Any:
    return np.take(values[0], values[1].astype(np.int64), axis=node.attr("axis", 0))


@means("Concat", since=4)
def _concat(node: Node, values: Values) -> Any:
    return np.concatenate(values, axis=node.attr("axis"))


@means("Unsqueeze", since=13)
def _unsqueeze(node: Node, values: Values) -> Any:
    x, axes = values
    rank = x.ndim + axes.size
    new = {int(axis) % rank for axis in axes.reshape(-1)}
    old = iter(x.shape)
    return x.reshape([1 if axis in new else next(old) for axis in range(rank)])


@means("Squeeze", since=13)
def _squeeze(node: Node, values: Values) -> Any:
    axes = values[1] if len(values) > 1 else None
    if axes is None:
        return values[0].squeeze()
    return values[0].squeeze(tuple(int(axis) for axis in axes.reshape(-1)))


@means("Reshape", since=5)
def _reshape(node: Node, values: Values) -> Any:
    x, wanted = values[0], values[1].tolist()
    if not node.attr("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


@means("Flatten")
def _flatten(node: Node, values: Values) -> Any:
    x, axis = values[0], node.attr("axis", 1)
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:at])), int(np.prod(x.shape[at:])))


@means("Transpose")
def _transpose(node: Node, values: Values) -> Any:
    return np.transpose(values[0], node.attr("perm"))


@means("Slice", since=10)
def _slice(node: Node, values: Values) -> Any:
    x, starts, ends, axes, steps = (*values, None, None)[:5]
    count = len(starts)
    at = range(count) if axes is None else axes.tolist()
    by = [1] * count if steps is None else steps.tolist()
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(at, starts.tolist(), ends.tolist(), by, strict=True):
        bounds = slice(start, end, step).indices(x.shape[axis])
        # A negative end in `indices` means "through element 0", which a slice spells None.
        index[axis] = slice(bounds[0], None if bounds[1] < 0 else bounds[1], step)
    return x[tuple(index)]


@means("Split", since=13)
def _split(node: Node, values: Values) -> Any:
    x, axis = values[0], node.attr("axis", 0)
    if len(values) > 1 and values[1] is not None:
        ends = np.cumsum(values[1])[:-1]
    else:
        part = -(-x.shape[axis] // len(node.types))
        ends = np.minimum(np.arange(1, len(node.types)) * part, x.shape[axis])
    return list(np.split(x, ends, axis))


@means("Expand")
def _expand(node: Node, values: Values) -> Any:
    x, wanted = values[0], tuple(values[1].tolist())
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, wanted))


@means("Tile", since=6)
def _tile(node: Node, values: Values) -> Any:
    return np.tile(values[0], values[1])


@means("ConstantOfShape")
def _constant_of_shape(node: Node, values: Values) -> Any:
    value = node.attr("value")
    fill = np.zeros(1, np.float32) if value is None else value.array.reshape(-1)
    return np.full(tuple(values[0].tolist()), fill[0], fill.dtype)


@means("Range")
def _range(node: Node, values: Values) -> Any:
    start, limit, delta = (value.reshape(-1)[0].item() for value in values)
    count = max(int(np.ceil((limit - start) / delta)), 0)
    return (start + np.arange(count) * delta).astype(values[0].dtype)


@means("Pad", since=11)
def _pad(node: Node, values: Values) -> Any:
    x, pads, value, axes = (*values, None, None)[:4]
    mode = node.attr("mode", "constant")
    if mode != "constant" or (pads < 0).any() or not is_plain(x.dtype):
        return NotImplemented
    at = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(at):
        widths[axis] = (int(pads[i]), int(pads[len(at) + i]))
    fill = np.zeros((), x.dtype) if value is None else value.reshape(-1)[0]
    return np.pad(x, widths, constant_values=fill)
