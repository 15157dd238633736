"""lower_precision: store weights in 16 bits and, when asked for bf16, multiply in it.

Under "bf16" the operands of products lose the last 16 bits of their mantissa; sums, and all that is
not a product, stay float32. Weights that a file stores in float16 are read in that form under every
precision: that changes no result. Nothing is lowered that would not be faster: each product that
stays in float32 is recorded with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

from whitebox.ir.graph import Graph, Node
from whitebox.passes.record import decide
from whitebox.passes.rewrite import Rule, rewrite
from whitebox.passes.rules import bf16, narrow


def lower_precision(
    graph: Graph,
    precision: str = "f32",
    lanes: int = 16,
    half: bool = True,
    instructions: str = "",
) -> Graph:
    """The graph with its products in `precision`, for vectors of `lanes` float32 elements.

    `half` says that the target has an instruction that widens float16; `instructions` which ones it
    has for products in bf16: "tiles", "pairs", or none.
    """
    rules: tuple[Rule, ...] = narrow.half_rules(lanes) if half else ()
    refusal: Callable[[Node], str | None] = bf16.refusal
    if precision == "bf16":
        if instructions:
            rules = (*bf16.bf16_rules(instructions == "tiles"), *rules)
        else:
            rules = (*rules, *narrow.widening_rules(lanes))

            def refusal(node: Node) -> str | None:
                return narrow.refusal(node, lanes)

    lowered = rewrite(graph, rules)
    if precision == "bf16":
        _record_the_rest(lowered, refusal)
    return lowered


def _record_the_rest(graph: Graph, refusal: Callable[[Node], str | None]) -> None:
    """Say of each product that stays in float32 why it does."""
    for node in graph.nodes:
        if node.is_constant_expression:
            continue
        if node.op in _PRODUCTS:
            if narrow.weight_of(node).tensor.dtype == "float32":
                reason = refusal(node) or "each weight serves many positions"
                decide("left in float32", node, reason)
        elif node.op in _FLOAT32_ONLY and node.tensor.dtype == "float32":
            decide("left in float32", node, _FLOAT32_ONLY[node.op])


_PRODUCTS = ("MatMul", "whitebox.Conv", "whitebox.MatMul", "whitebox.MatMulTransposed")
_FLOAT32_ONLY = {
    "Gemm": "both operands are computed",
    "whitebox.WinogradConv": "rounded, transformed weights would be ten times as wrong",
    "whitebox.DepthwiseConv": "few weights serve many positions",
    "Conv": "no blocked form",
    "ConvTranspose": "no blocked form",
    "whitebox.LSTM": "errors of a state add up over the steps",
    "whitebox.GRU": "errors of a state add up over the steps",
    "whitebox.RNN": "errors of a state add up over the steps",
}
