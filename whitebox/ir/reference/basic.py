"""Elementwise operators, movement of data, reductions and products in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means
from whitebox.ir.types import ONNX_DTYPES, numpy_dtype

_UFUNCS = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Tanh": np.tanh,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Not": np.logical_not,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "MatMul": np.matmul,
}


@means(*_UFUNCS, since=7)
def _ufunc(node: Node, values: Values) -> Any:
    with np.errstate(all="ignore"):
        return _UFUNCS[node.op](*values)


# These four were settled before opset 7, or came with opset 1 only.
for _name in ("Not", "And", "Or", "Xor"):
    means(_name, since=1 if _name == "Not" else 7)(_ufunc)
for _name in ("Neg", "Abs", "Sqrt", "Exp", "Log", "Floor", "Ceil", "Tanh", "MatMul"):
    means(_name, since=1)(_ufunc)


@means("Div", since=7)
def _div(node: Node, values: Values) -> Any:
    a, b = values
    with np.errstate(all="ignore"):
        if np.issubdtype(a.dtype, np.integer):
            # Integers truncate toward zero, as in C.
            return (a - np.fmod(a, b)) // b
        return np.divide(a, b)


@means("Pow", since=7)
def _pow(node: Node, values: Values) -> Any:
    with np.errstate(all="ignore"):
        return np.power(values[0], values[1]).astype(values[0].dtype)


@means("Reciprocal", since=6)
def _reciprocal(node: Node, values: Values) -> Any:
    with np.errstate(all="ignore"):
        return np.divide(1, values[0], dtype=values[0].dtype)


@means("Max", "Min", "Sum", since=8)
def _variadic(node: Node, values: Values) -> Any:
    combine = {"Max": np.maximum, "Min": np.minimum, "Sum": np.add}[node.op]
    result = values[0]
    for value in values[1:]:
        result = combine(result, value)
    return result


@means("Relu", since=6)
def _relu(node: Node, values: Values) -> Any:
    return np.maximum(values[0], np.zeros((), values[0].dtype))


@means("Sigmoid", since=6)
def _sigmoid(node: Node, values: Values) -> Any:
    x = values[0]
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x))).astype(x.dtype)


@means("Clip", since=11)
def _clip(node: Node, values: Values) -> Any:
    low, high = (*values[1:], None, None)[:2]
    x = values[0]
    # min(max(x, low), high): when low > high the result is high.
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


@means("Where", since=9)
def _where(node: Node, values: Values) -> Any:
    return np.where(*values)


def _is_plain(dtype: np.dtype) -> bool:
    """Whether numpy itself has the dtype (and not ml_dtypes, with ONNX's own ways to round)."""
    return dtype.isbuiltin == 1 and dtype.kind in "biufc"


@means("Cast", since=6)
def _cast(node: Node, values: Values) -> Any:
    x, dtype = values[0], numpy_dtype(ONNX_DTYPES[node.attrs["to"]])  # type: ignore[index]
    if not _is_plain(x.dtype) or not _is_plain(dtype):
        return NotImplemented
    with np.errstate(all="ignore"):
        return x.astype(dtype)


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


@means("Gather")
def _gather(node: Node, values: Values) -> Any:
    return np.take(values[0], values[1].astype(np.int64), axis=node.attr("axis", 0))


@means("Concat", since=4)
def _concat(node: Node, values: Values) -> Any:
    return np.concatenate(values, axis=node.attrs["axis"])  # type: ignore[call-overload]


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
    if mode != "constant" or (pads < 0).any() or not _is_plain(x.dtype):
        return NotImplemented
    at = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(at):
        widths[axis] = (int(pads[i]), int(pads[len(at) + i]))
    fill = np.zeros((), x.dtype) if value is None else value.reshape(-1)[0]
    return np.pad(x, widths, constant_values=fill)


_REDUCTIONS = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
}


@means(*_REDUCTIONS, since=18)
def _reduce(node: Node, values: Values) -> Any:
    x, axes = (*values, None)[:2]
    if x.size == 0 or x.dtype.kind != "f":
        return NotImplemented
    if axes is None or axes.size == 0:
        if node.attr("noop_with_empty_axes", 0):
            return x
        at = None
    else:
        at = tuple(int(axis) for axis in axes)
    result = _REDUCTIONS[node.op](x, axis=at, keepdims=bool(node.attr("keepdims", 1)))
    return np.asarray(result, x.dtype)


means("ReduceSum", since=13)(_reduce)


@means("Softmax", "LogSoftmax", since=13)
def _softmax(node: Node, values: Values) -> Any:
    x, axis = values[0], node.attr("axis", -1)
    shifted = x - x.max(axis, keepdims=True)
    exponents = np.exp(shifted)
    total = exponents.sum(axis, keepdims=True)
    return exponents / total if node.op == "Softmax" else shifted - np.log(total)


@means("Gemm", since=7)
def _gemm(node: Node, values: Values) -> Any:
    a, b, c = (*values, None)[:3]
    a, b = a.T if node.attr("transA", 0) else a, b.T if node.attr("transB", 0) else b
    product = a @ b
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    if alpha != 1:
        product = (product * alpha).astype(a.dtype)
    if c is not None:
        product = (product + (c if beta == 1 else c * beta)).astype(a.dtype)
    return product
