"""Operators of onnxruntime's own domain that converters write and ONNX does not define.

Enter: an operator of the domain "com.microsoft", its inputs already nodes, and its attributes.
Leave: nodes that mean the same. What onnxruntime's quantiser writes is the plain operator between
DequantizeLinear and QuantizeLinear; skl2onnx's Tokenizer is `whitebox.Tokenize`. Attributes that
are not known are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from whitebox.errors import InvalidModel, UnsupportedOperator
from whitebox.ir import ops
from whitebox.ir.graph import Node
from whitebox.ir.types import ONNX_DTYPES

DOMAIN = "com.microsoft"

Inputs: TypeAlias = "Sequence[Node | None]"
Expand: TypeAlias = Callable[[Inputs, dict[str, Any]], Node]
CONTRIB: dict[str, Expand] = {}


def expand(name: str, inputs: Inputs, attrs: Mapping[str, Any]) -> Node:
    """The result of an operator of `CONTRIB`. Raises UnsupportedOperator for unknown attributes."""
    left = dict(attrs)
    try:
        result = CONTRIB[name](inputs, left)
    except IndexError as error:
        raise InvalidModel(f"{name} lacks inputs; correct the model") from error
    if left:
        raise UnsupportedOperator(
            f"{name} with the attribute {next(iter(left))!r} is not supported; "
            "export the model with standard ONNX operators"
        )
    return result


def _expansion(*names: str) -> Callable[[Expand], Expand]:
    def register(function: Expand) -> Expand:
        CONTRIB.update(dict.fromkeys(names, function))
        return function

    return register


def _real(inputs: Inputs, at: int) -> Node:
    """The number that the data, scale and zero point from input `at` on stand for."""
    return ops.node("DequantizeLinear", *inputs[at : at + 3])


def _rounded(x: Node, inputs: Inputs, at: int) -> Node:
    """x in the scale and zero point from input `at` on."""
    scale, zero = (*inputs[at:], None)[:2]
    return ops.node("QuantizeLinear", x, scale, zero)


@_expansion("QLinearAdd")
def _add(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    return _rounded(ops.node("Add", _real(inputs, 0), _real(inputs, 3)), inputs, 6)


@_expansion("QLinearMul")
def _mul(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    return _rounded(ops.node("Mul", _real(inputs, 0), _real(inputs, 3)), inputs, 6)


@_expansion("QLinearSigmoid")
def _sigmoid(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    return _rounded(ops.node("Sigmoid", _real(inputs, 0)), inputs, 3)


@_expansion("QLinearLeakyRelu")
def _leaky_relu(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    x = ops.node("LeakyRelu", _real(inputs, 0), alpha=attrs.pop("alpha", 0.01))
    return _rounded(x, inputs, 3)


@_expansion("QLinearSoftmax")
def _softmax(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    """Of the opset that its attribute `opset` names: before 13 over all axes from `axis` on."""
    version, axis = attrs.pop("opset"), attrs.pop("axis", -1)
    x = _real(inputs, 0)
    if version < 13 and axis not in (-1, x.tensor.rank - 1):
        attrs["axis"] = axis
    return _rounded(ops.node("Softmax", x, axis=axis), inputs, 3)


@_expansion("QLinearGlobalAveragePool")
def _global_pool(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    if not attrs.get("channels_last", 0):
        attrs.pop("channels_last", None)
    return _rounded(ops.node("GlobalAveragePool", _real(inputs, 0)), inputs, 3)


@_expansion("QLinearAveragePool")
def _average_pool(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    if not attrs.get("channels_last", 0):
        attrs.pop("channels_last", None)
    names = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad")
    taken = {name: attrs.pop(name) for name in names if name in attrs}
    return _rounded(ops.make("AveragePool", (_real(inputs, 0),), taken), inputs, 3)


@_expansion("QLinearConcat")
def _concat(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    """Scale and zero point of the result come first."""
    parts = [_real(inputs, at) for at in range(2, len(inputs), 3)]
    return _rounded(ops.node("Concat", *parts, axis=attrs.pop("axis")), inputs, 0)


@_expansion("QGemm")
def _gemm(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    """The bias counts in steps of both scales; without a scale of its own the result is float32."""
    a, b = _real(inputs, 0), _real(inputs, 3)
    if attrs.pop("transA", 0):
        a = ops.node("Transpose", a, perm=(1, 0))
    if (b_scale := inputs[4]) is not None and b_scale.tensor.size > 1:
        b = ops.node("DequantizeLinear", *inputs[3:6], axis=0 if attrs.get("transB", 0) else 1)
    if attrs.pop("transB", 0):
        b = ops.node("Transpose", b, perm=(1, 0))
    if attrs.get("alpha", 1.0) == 1.0:
        attrs.pop("alpha", None)
    result = ops.node("MatMul", a, b)
    bias = inputs[6] if len(inputs) > 6 else None
    if bias is not None:
        step = ops.node("Mul", inputs[1], b_scale)
        number = ops.node("Cast", bias, to=ONNX_DTYPES.index("float32"))
        result = ops.node("Add", result, ops.node("Mul", number, step))
    return _rounded(result, inputs, 7) if len(inputs) > 7 and inputs[7] is not None else result


@_expansion("Tokenizer")
def _tokenizer(inputs: Inputs, attrs: dict[str, Any]) -> Node:
    """Texts as rows of tokens, padded to the longest row."""
    expression = attrs.pop("tokenexp", "")
    separators = tuple(attrs.pop("separators", ()))
    if bool(expression) == bool(separators):
        raise InvalidModel("Tokenizer needs separators or an expression, one of them")
    return ops.node(
        "whitebox.Tokenize",
        inputs[0],
        expression=expression,
        separators=separators,
        pad=attrs.pop("pad_value"),
        mark=attrs.pop("mark"),
        min_chars=attrs.pop("mincharnum"),
    )
