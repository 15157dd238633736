"""lower_precision: store weights in 16 bits and, when asked for bf16, multiply in it.

Under "bf16" the operands of products lose the last 16 bits of their mantissa; sums, and all that is
not a product, stay float32. Weights that a file stores in float16 are read in that form under every
precision: that changes no result. Nothing is lowered that would not be faster: each product that
stays in float32 is recorded with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from whitebox.ir import ops
from whitebox.ir.graph import Graph, Node
from whitebox.ir.types import ONNX_DTYPES
from whitebox.passes.record import decide
from whitebox.passes.rewrite import Rule, rewrite, rule

PRECISIONS = ("f32", "bf16")

# Smaller weights stay in a core's cache, where reading half as many bytes gains nothing.
SMALL_BYTES = 1 << 17
# Rows that read each weight, up to which waiting for weights costs more than widening them. Where
# a core has more ports than two vector multiply-adds a cycle take, widening is free.
_MOST_ROWS = {8: None, 16: 4, 4: 4}

# Give other places to the same numbers.
_MOVES = frozenset("Identity Pad Reshape Slice Squeeze Transpose Unsqueeze".split())

Refusal = Callable[[Node], "str | None"]


def lower_precision(
    graph: Graph, precision: str = "f32", lanes: int = 16, half: bool = True
) -> Graph:
    """The graph with its products in `precision`, for vectors of `lanes` float32 elements.

    `half` says that the target has an instruction that widens float16.
    """

    @rule("whitebox.Conv", "whitebox.MatMul")
    def weights_in_half(node: Node) -> Node | None:
        """f(x, W) = f(x, W in f16), W exact in f16"""
        if not is_half(_weight(node)) or refusal(node, lanes) is not None:
            return None
        return _with_weight(node, "float16")

    @rule("whitebox.MatMul")
    def matmul_in_bf16(node: Node) -> Node | None:
        """A · W = whitebox.MatMul(A, W in bf16), computed in float32"""
        if _weight(node).tensor.dtype != "float32" or refusal(node, lanes) is not None:
            return None
        return _with_weight(node, "bfloat16")

    rules: list[Rule] = [weights_in_half] if half else []
    if precision == "bf16":
        rules.append(matmul_in_bf16)
    lowered = rewrite(graph, rules)
    if precision == "bf16":
        _record_the_rest(lowered, lambda node: refusal(node, lanes))
    return lowered


def refusal(node: Node, lanes: int) -> str | None:
    """Why narrow weights would not make a product with known weights faster; None if they do."""
    if _weight(node).tensor.size * 4 < SMALL_BYTES:
        return "the weights stay in a core's cache"
    most = _MOST_ROWS.get(lanes, 0)
    if most is not None and _rows(node) > most:
        return f"each weight serves {_rows(node)} rows: widening it costs more than reading it"
    return None


def is_half(node: Node) -> bool:
    """Whether a known float32 tensor holds the numbers of a float16 one, moved about."""
    while node.op in _MOVES and node.inputs[0] is not None and node.is_constant_expression:
        node = node.inputs[0]
    source = node.inputs[0] if node.op == "Cast" else None
    return source is not None and source.tensor.dtype == "float16"


def _record_the_rest(graph: Graph, refused: Refusal) -> None:
    """Say of each product that stays in float32 why it does."""
    for node in graph.nodes:
        if node.op in ("whitebox.MatMul", "whitebox.Conv"):
            if _weight(node).tensor.dtype == "float32":
                decide("left in float32", node, refused(node) or "no faster in bf16 here")
        elif node.op in _FLOAT32_ONLY and node.tensor.dtype == "float32":
            decide("left in float32", node, _FLOAT32_ONLY[node.op])


_NO_WEIGHTS = "both operands are computed: nothing is read in 16 bits"
_FLOAT32_ONLY = {
    "MatMul": _NO_WEIGHTS,
    "Gemm": _NO_WEIGHTS,
    "whitebox.MatMulTransposed": _NO_WEIGHTS,
    "whitebox.WinogradConv": "rounded, transformed weights would be ten times as wrong",
    "whitebox.DepthwiseConv": "few weights serve many positions",
    "Conv": "no blocked form",
    "ConvTranspose": "no blocked form",
    "LSTM": "weights are read as ONNX stores them",
    "GRU": "weights are read as ONNX stores them",
    "RNN": "weights are read as ONNX stores them",
}


def _weight(node: Node) -> Node:
    weight = node.inputs[1]
    assert weight is not None
    return weight


def _rows(node: Node) -> int:
    """How many sums each weight goes into."""
    dims = node.tensor.dims
    return math.prod(dims[:-1]) if node.op == "whitebox.MatMul" else dims[0] * dims[2] * dims[3]


def _with_weight(node: Node, dtype: str) -> Node:
    """The product with its weights stored as `dtype`."""
    narrow = ops.node("Cast", _weight(node), to=ONNX_DTYPES.index(dtype))
    return ops.rebuild(node, (node.inputs[0], narrow, *node.inputs[2:]))
