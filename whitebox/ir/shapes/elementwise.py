"""Types of elementwise operators, and of others that keep the shape of their first input."""

from __future__ import annotations

from whitebox.ir.shapes.rule import Call, Misfit, broadcast, normal_axis, rule
from whitebox.ir.types import ONNX_DTYPES, TensorType, Type

UNARY = tuple(
    (
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
        "HardSigmoid HardSwish LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
        "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
    ).split()
)
PREDICATES = ("IsInf", "IsNaN")
BINARY = tuple(
    "Add Sub Mul Div Mod BitShift BitwiseAnd BitwiseOr BitwiseXor And Or Xor Pow".split()
)
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
VARIADIC = ("Max", "Min", "Mean", "Sum")
ELEMENTWISE = (*UNARY, *PREDICATES, *BINARY, *COMPARISONS, *VARIADIC)
ELEMENTWISE += ("Where", "Clip", "PRelu", "Cast", "CastLike", "Identity")
# Scales and zero points may vary along an axis of the data, or in blocks of it.
ELEMENTWISE += ("QuantizeLinear", "DequantizeLinear", "whitebox.Centre")
ELEMENTWISE += ("whitebox.Saturate",)

_SAME_TYPE = (
    "CumProd CumSum GroupNormalization InstanceNormalization LpNormalization LRN "
    "MeanVarianceNormalization ReverseSequence RotaryEmbedding ScatterElements ScatterND "
    "TensorScatter Trilu"
).split()
_ALONG_AXIS = ("Softmax", "LogSoftmax", "Hardmax")


def dtype_of_number(number: int) -> str:
    """The dtype that ONNX numbers so."""
    if not 0 < number < len(ONNX_DTYPES):
        raise Misfit(f"{number} is not the number of a dtype")
    return ONNX_DTYPES[number]


@rule(*UNARY, *_SAME_TYPE, "Clip")
def _same_type(call: Call) -> TensorType:
    return call.tensor(0)


@rule("Identity")
def _identity(call: Call) -> Type:
    node = call.inputs[0]
    assert node is not None
    return node.types[0]


@rule(*_ALONG_AXIS)
def _along_axis(call: Call) -> TensorType:
    type = call.tensor(0)
    if type.shape is not None:
        normal_axis(call.attrs["axis"], len(type.shape))
    return type


@rule(*PREDICATES)
def _predicate(call: Call) -> TensorType:
    return TensorType("bool", call.shape(0))


def _same_dtype(call: Call, start: int = 0) -> str:
    """The dtype that all inputs from `start` share."""
    dtype = call.dtype(start)
    for index in range(start + 1, len(call.inputs)):
        if call.dtype(index) != dtype:
            raise Misfit(f"dtypes {dtype} and {call.dtype(index)} differ")
    return dtype


@rule(*BINARY[:-1])
def _binary(call: Call) -> TensorType:
    a, b = call.tensor(0), call.tensor(1)
    if a.dtype != b.dtype:
        raise Misfit(f"dtypes {a.dtype} and {b.dtype} differ")
    return a if a.shape == b.shape else TensorType(a.dtype, broadcast(a.shape, b.shape))


@rule("Pow")
def _pow(call: Call) -> TensorType:
    return TensorType(call.dtype(0), broadcast(call.shape(0), call.shape(1)))


@rule(*COMPARISONS)
def _comparison(call: Call) -> TensorType:
    _same_dtype(call)
    return TensorType("bool", broadcast(call.shape(0), call.shape(1)))


@rule(*VARIADIC)
def _variadic(call: Call) -> TensorType:
    shapes = (call.shape(index) for index in range(len(call.inputs)))
    return TensorType(_same_dtype(call), broadcast(*shapes))


@rule("Where")
def _where(call: Call) -> TensorType:
    if call.dtype(0) != "bool":
        raise Misfit(f"the condition must be bool, not {call.dtype(0)}")
    shape = broadcast(call.shape(0), call.shape(1), call.shape(2))
    return TensorType(_same_dtype(call, 1), shape)


@rule("PRelu")
def _prelu(call: Call) -> TensorType:
    # The slope broadcasts to X and never the other way.
    broadcast(call.shape(0), call.shape(1))
    return call.tensor(0)


@rule("Cast")
def _cast(call: Call) -> TensorType:
    return TensorType(dtype_of_number(call.attrs["to"]), call.shape(0))


@rule("CastLike")
def _cast_like(call: Call) -> TensorType:
    return TensorType(call.dtype(1), call.shape(0))


@rule("QuantizeLinear")
def _quantize(call: Call) -> TensorType:
    if call.has(2):
        return TensorType(call.dtype(2), call.shape(0))
    number = call.attrs.get("output_dtype", 0)
    return TensorType(dtype_of_number(number) if number else "uint8", call.shape(0))


@rule("DequantizeLinear")
def _dequantize(call: Call) -> TensorType:
    number = call.attrs.get("output_dtype", 0)
    return TensorType(dtype_of_number(number) if number else call.dtype(1), call.shape(0))


@rule("DynamicQuantizeLinear")
def _dynamic_quantize(call: Call) -> tuple[TensorType, ...]:
    scalar = TensorType("float32", ()), TensorType("uint8", ())
    return (TensorType("uint8", call.shape(0)), *scalar)


@rule("Dropout")
def _dropout(call: Call) -> tuple[TensorType, ...]:
    return (call.tensor(0), TensorType("bool", call.shape(0)))[: call.n_outputs]
