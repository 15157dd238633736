"""Known weights stored in 16 bits and widened as they are read, where that is faster."""

from __future__ import annotations

import math

from whitebox.ir import ops
from whitebox.ir.graph import Node
from whitebox.ir.types import ONNX_DTYPES
from whitebox.passes.rewrite import Rule, rule

# Smaller weights stay in a core's cache, where reading half as many bytes gains nothing.
SMALL_BYTES = 1 << 17
# Rows that read each weight, up to which waiting for weights costs more than widening them. Where
# a core has more ports than its multiply-adds take (AVX2), widening is free.
_MOST_ROWS = {8: None, 16: 4, 4: 4}

# Give other places to the same numbers.
_MOVES = frozenset("Identity Pad Reshape Slice Squeeze Transpose Unsqueeze".split())


def half_rules(lanes: int) -> tuple[Rule, ...]:
    """The rules for weights that a file stores in float16: they change no result."""

    @rule("whitebox.Conv", "whitebox.MatMul")
    def weights_in_half(node: Node) -> Node | None:
        """f(x, W) = f(x, W in f16), W exact in f16"""
        if not is_half(weight_of(node)) or refusal(node, lanes) is not None:
            return None
        return with_weight(node, "float16")

    return (weights_in_half,)


def widening_rules(lanes: int) -> tuple[Rule, ...]:
    """The rules for bf16 on a CPU that multiplies in float32 only."""

    @rule("whitebox.MatMul")
    def weights_in_bf16(node: Node) -> Node | None:
        """A · W = A · (W in bf16), computed in float32"""
        if weight_of(node).tensor.dtype != "float32" or refusal(node, lanes) is not None:
            return None
        return with_weight(node, "bfloat16")

    return (weights_in_bf16,)


def refusal(node: Node, lanes: int) -> str | None:
    """Why 16-bit weights would not make a product faster; None if they do."""
    if not weight_of(node).is_constant_expression:
        return "both operands are computed: nothing is read in 16 bits"
    if weight_of(node).tensor.size * 4 < SMALL_BYTES:
        return "the weights stay in a core's cache"
    most = _MOST_ROWS.get(lanes, 0)
    if most is not None and rows_of(node) > most:
        return f"each weight serves {rows_of(node)} rows: widening it costs more than reading it"
    return None


def is_half(node: Node) -> bool:
    """Whether a known float32 tensor holds the numbers of a float16 one, moved about."""
    while node.op in _MOVES and node.inputs[0] is not None and node.is_constant_expression:
        node = node.inputs[0]
    source = node.inputs[0] if node.op == "Cast" else None
    return source is not None and source.tensor.dtype == "float16"


def weight_of(node: Node) -> Node:
    """The second operand of a product."""
    weight = node.inputs[1]
    assert weight is not None
    return weight


def rows_of(node: Node) -> int:
    """How many sums each weight goes into."""
    dims = node.tensor.dims
    return math.prod(dims[:-1]) if node.op == "whitebox.MatMul" else dims[0] * dims[2] * dims[3]


def with_weight(node: Node, dtype: str) -> Node:
    """The product with its weights stored as `dtype`."""
    narrow = ops.node("Cast", weight_of(node), to=ONNX_DTYPES.index(dtype))
    return ops.rebuild(node, (node.inputs[0], narrow, *node.inputs[2:]))
