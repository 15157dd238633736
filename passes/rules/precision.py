"""Half-precision models on a CPU: stored in 16 bits, computed in float32."""

from __future__ import annotations

from whitebox.ir import ops
from whitebox.ir.graph import Node
from whitebox.ir.types import ONNX_DTYPES, TensorType
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.transpose import ELEMENTWISE_BINARY, ELEMENTWISE_UNARY

_NARROW = ("float16", "bfloat16")

_COMPUTING = (
    "Conv", "ConvTranspose", "MatMul", "Gemm", "Softmax", "LogSoftmax", "LayerNormalization",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
    "AveragePool", "GlobalAveragePool", "Resize", "LRN", "LpNormalization",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd",
    "ReduceLogSum", "ReduceLogSumExp", "GRU", "LSTM", "RNN", "Sum", "Mean",
)  # fmt: skip
_EVERY = tuple(
    dict.fromkeys(
        (*_COMPUTING, *(op for op in ELEMENTWISE_UNARY if op != "Cast"), *ELEMENTWISE_BINARY)
    )
)


def cast(node: Node, dtype: str) -> Node:
    """`node` converted to `dtype`."""
    if node.tensor.dtype == dtype:
        return node
    return ops.node("Cast", node, to=ONNX_DTYPES.index(dtype))


@rule(*_EVERY)
def widen(node: Node) -> Node | None:
    """f(x: f16) = Cast(f(Cast(x, f32)), f16);  the same for bf16"""
    narrow = [s for s in node.inputs if s is not None and _is_narrow(s)]
    if not narrow or len(node.types) != 1 or not isinstance(node.type, TensorType):
        return None
    widened = [
        cast(source, "float32") if source is not None and _is_narrow(source) else source
        for source in node.inputs
    ]
    result = ops.rebuild(node, widened)
    return cast(result, node.type.dtype) if _is_narrow(node) else result


@rule("Cast")
def cast_round_trip(node: Node) -> Node | None:
    """Cast(Cast(x: f32, f16), f32) = x: what is dropped is a rounding"""
    source = node.inputs[0]
    if source is None or source.op != "Cast" or not _is_narrow(source):
        return None
    origin = source.inputs[0]
    return origin if origin is not None and origin.types == node.types else None


def _is_narrow(node: Node) -> bool:
    return isinstance(node.type, TensorType) and node.type.dtype in _NARROW


PRECISION: tuple[Rule, ...] = (widen, cast_round_trip)
