"""Elementwise operators, reductions and products in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means
from whitebox.ir.types import ONNX_DTYPES, numpy_dtype

# Since opset 7 for those that broadcast; the others have always meant this.
_UFUNCS: dict[str, Any] = {
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


_BROADCASTING = "Add Sub Mul And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual".split()


@means(*(name for name in _UFUNCS if name not in _BROADCASTING))
@means(*_BROADCASTING, since=7)
def _ufunc(node: Node, values: Values) -> Any:
    with np.errstate(all="ignore"):
        return _UFUNCS[node.op](*values)


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
        return np.power(values[0], values[1])


@means("Reciprocal", since=6)
def _reciprocal(node: Node, values: Values) -> Any:
    with np.errstate(all="ignore"):
        return np.divide(np.ones((), values[0].dtype), values[0])


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


def is_plain(dtype: np.dtype) -> bool:
    """Whether numpy itself has the dtype (and not ml_dtypes, with ONNX's own ways to round)."""
    return dtype.isbuiltin == 1 and dtype.kind in "biufc"


@means("Cast", since=6)
def _cast(node: Node, values: Values) -> Any:
    x, dtype = values[0], numpy_dtype(ONNX_DTYPES[node.attr("to")])
    if not is_plain(x.dtype) or not is_plain(dtype):
        return NotImplemented
    with np.errstate(all="ignore"):
        return x.astype(dtype)


_REDUCTIONS: dict[str, Any] = {
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
