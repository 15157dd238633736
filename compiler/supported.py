"""Which nodes can be compiled. Imports no TVM, so that the serving process can ask.

What enters: a node. What leaves: None, or in a few words why it must run on the host.
"""

from __future__ import annotations

from collections.abc import Callable

from whitebox.ir.graph import INPUT, Graph, Node
from whitebox.ir.ops import traits
from whitebox.ir.types import TensorType, Type

_DTYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)

# Only by a template, with one result; in float32, but for the products of integers.
TEMPLATE_OPS = frozenset(
    """
    ConvTranspose whitebox.AveragePool whitebox.BatchMatMulBf16 whitebox.Conv whitebox.ConvBf16
    whitebox.ConvInteger whitebox.DepthwiseConv whitebox.MatMulBf16 whitebox.MatMulInteger
    whitebox.MatMulTransposed whitebox.MaxPool whitebox.WinogradConv
    """.split()
)

# Products whose weights, the second input, may be stored in 16 bits.
NARROW_WEIGHTS = frozenset(
    {"whitebox.Conv", "whitebox.ConvBf16", "whitebox.MatMul", "whitebox.MatMulBf16"}
)

# Templates that take integers as well, or nothing else.
INTEGER_OPS = frozenset(
    """
    whitebox.ConvInteger whitebox.DepthwiseConv whitebox.MatMulInteger whitebox.MaxPool
    """.split()
)

# Take texts, given by the caller.
TEXT_OPS = frozenset({"whitebox.NgramSum"})

OPS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat
    ConstantOfShape Conv ConvInteger Cos Cosh CumSum DepthToSpace DequantizeLinear Div
    DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu
    Less LessOrEqual Log LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QLinearConv
    QLinearMatMul QuantizeLinear RMSNormalization Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence Round ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin
    Sinh Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh
    ThresholdedRelu Tile Transpose Trilu Unsqueeze Where Xor whitebox.Attention whitebox.Centre
    whitebox.GRU whitebox.LSTM whitebox.MatMul whitebox.NgramSum whitebox.Pack whitebox.RNN
    whitebox.Saturate whitebox.TreeScan whitebox.TreeWalk whitebox.Unpack
    """.split()
)


# Those that have a kernel for free sizes as well, in float32.
_FREE_OPS = frozenset(
    """
    whitebox.AveragePool whitebox.Conv whitebox.DepthwiseConv whitebox.MatMul
    whitebox.MatMulTransposed whitebox.MaxPool whitebox.WinogradConv
    """.split()
)
# Fast through a template only, which is made for numbers.
_FIXED_OPS = (TEMPLATE_OPS - _FREE_OPS) | frozenset("AveragePool Conv Gemm MaxPool".split())
# Over a free number of steps only: rows of the batch are held in registers.
_RECURRENT_OPS = frozenset("whitebox.GRU whitebox.LSTM whitebox.RNN".split())


def serves_free_sizes(body: Graph) -> bool:
    """Whether a body can have one kernel for every value of its symbols."""
    return all(map(_serves_free_sizes, body.nodes))


def _serves_free_sizes(node: Node) -> bool:
    if node.op in _RECURRENT_OPS:
        return all(isinstance(dim, int) for dim in (node.tensor.shape or (None,))[1:])
    if node.op in _FREE_OPS:
        return all(s is None or s.tensor.dtype == "float32" for s in node.inputs)
    return node.op not in _FIXED_OPS


def lowerable(node: Node) -> str | None:
    """None when the node can be compiled, else the reason why not."""
    if node.op in ("GRU", "LSTM", "RNN"):
        return f"{node.op} with lengths, peepholes, clip, layout or activations of its own"
    if node.op not in OPS and node.op not in TEMPLATE_OPS:
        return f"no lowering for {node.op}"
    static = traits(node.op).static_inputs
    for position, source in enumerate(node.inputs):
        if source is None:
            continue
        if position in static:
            if not source.is_constant:
                return f"input {position} is not a constant"
        elif position == 1 and node.op in NARROW_WEIGHTS:
            continue
        elif position == 0 and node.op in TEXT_OPS and source.op == INPUT:
            if not source.tensor.is_static or not source.tensor.size:
                return f"{source.tensor} is empty or not known"
        elif (reason := _unsupported_type(source.types[0])) is not None:
            return reason
    for type in node.types:
        reason = _unsupported_type(type)
        if reason is not None:
            return reason
    check = _CHECKS.get(node.op)
    return check(node) if check is not None else None


def _unsupported_type(type: Type) -> str | None:
    if not isinstance(type, TensorType):
        return f"{type} is not a tensor"
    if type.dtype not in _DTYPES:
        return f"no kernels for {type.dtype}"
    if not type.is_static:
        return f"the shape {type} is not known"
    if type.size == 0:
        return f"{type} is empty"
    if type.size >= 1 << 31:
        return f"{type} has more elements than kernels index"
    return None


def computes_float32(node: Node) -> bool:
    """Whether all tensors are float32; weights of some products may be stored in 16 bits."""
    narrow = ("float16", "bfloat16") if node.op in NARROW_WEIGHTS else ()
    return node.tensor.dtype == "float32" and all(
        source.tensor.dtype == "float32" or (position == 1 and source.tensor.dtype in narrow)
        for position, source in enumerate(node.inputs)
        if source is not None
    )


def _float32_only(node: Node) -> str | None:
    if not computes_float32(node):
        return f"{node.op} is compiled for float32 only"
    if len(node.types) > 1:
        return f"{node.op} with several results"
    if node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{node.op} with auto_pad"
    return None


def _pool(node: Node) -> str | None:
    if len(node.types) > 1:
        return f"{node.op} with indices"
    if _float32_only(node) is not None and node.attr("ceil_mode", 0):
        return f"{node.op} with ceil_mode is compiled for float32 only"
    return None


def _resize(node: Node) -> str | None:
    if node.attr("antialias", 0):
        return "Resize with antialiasing"
    if node.attr("coordinate_transformation_mode", "half_pixel") in (
        "tf_crop_and_resize",
        "tf_half_pixel_for_nn",
    ):
        return "Resize of a region"
    return None


def _quantized(node: Node) -> str | None:
    wide = ("int8", "uint8", "int16", "uint16")
    return None if node.tensor.dtype in wide else f"{node.op} to {node.tensor.dtype}"


def _inference_only(node: Node) -> str | None:
    return f"{node.op} in training mode" if node.attr("training_mode", 0) else None


_CHECKS: dict[str, Callable[[Node], str | None]] = {
    **dict.fromkeys((TEMPLATE_OPS - INTEGER_OPS) | {"whitebox.MatMul"}, _float32_only),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    "Resize": _resize,
    "QuantizeLinear": _quantized,
    "BatchNormalization": _inference_only,
}
