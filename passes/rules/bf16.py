"""Products in bf16 for CPUs with instructions for it: weights in pairs along the sum.

An instruction adds two (or, in a tile, thirty-two) products to each sum, so the weights that meet
in a sum lie side by side: `[panels, K/2, columns, 2]`, and for a convolution
`[panels, IC/32, KH, KW, 16, columns, 2]`.
"""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import ONNX_DTYPES
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.narrow import weight_of
from whitebox.passes.rules.packing import pad_to

# Channels of a block of data, the rows of a tile of weights, and the columns of two of them.
BLOCK, TILE_PAIRS, TILE_COLUMNS = 16, 16, 32
# Sums of fewer products, or fewer sums, leave most of a tile empty.
LEAST_SUM, LEAST_CHANNELS, LEAST_ROWS = 16, 32, 16
_BFLOAT16 = ONNX_DTYPES.index("bfloat16")


def bf16_rules(tiles: bool) -> tuple[Rule, ...]:
    """The rules, for tile instructions, or for those that add pairs to a vector of sums."""

    @rule("whitebox.MatMul")
    def matmul_in_bf16(node: Node) -> Node | None:
        """A · W = whitebox.MatMulBf16(A, W in pairs along K), operands rounded to bf16"""
        return None if refusal(node) is not None else _matmul(node, tiles)

    @rule("whitebox.Conv")
    def conv_in_bf16(node: Node) -> Node | None:
        """Conv(x, W) = whitebox.ConvBf16(x, W in pairs of channels), operands rounded to bf16"""
        return None if refusal(node) is not None else _conv(node)

    return (matmul_in_bf16, conv_in_bf16, product_in_bf16)


@rule("MatMul", "whitebox.MatMulTransposed")
def product_in_bf16(node: Node) -> Node | None:
    """A · B = whitebox.BatchMatMulBf16(A, B), operands rounded to bf16"""
    if weight_of(node).is_constant_expression or refusal(node) is not None:
        return None
    transposed = node.op == "whitebox.MatMulTransposed"
    return ops.node("whitebox.BatchMatMulBf16", *node.inputs, transpose_b=int(transposed))


def _computed_refusal(node: Node) -> str | None:
    a, b = node.inputs
    assert a is not None and b is not None
    if node.tensor.dtype != "float32" or not (a.tensor.is_static and b.tensor.is_static):
        return "no kernel for its types"
    (*lead, rows, terms), (*other, _, _) = (
        each.tensor.dims if each.tensor.rank > 1 else (0, 0) for each in (a, b)
    )
    if lead != other:
        return "the products share operands"
    if rows < LEAST_ROWS or terms < LEAST_SUM:
        return f"{rows} rows of sums of {terms} do not pay for packing the other operand"
    return None


def refusal(node: Node) -> str | None:
    """Why a product is not faster in bf16; None if it is."""
    if not weight_of(node).is_constant_expression:
        return _computed_refusal(node)
    if node.op == "whitebox.MatMul":
        terms = weight_of(node).tensor.dims[1]
        return f"sums of {terms} products are too short" if terms < LEAST_SUM else None
    if node.attr("data_layout") != "NCHWc" or node.attr("in_channels") < LEAST_CHANNELS:
        return f"{node.attr('in_channels')} input channels fill too little of a tile"
    return None if node.attr("block") == BLOCK else "channels are in other blocks"


def _matmul(node: Node, tiles: bool) -> Node:
    """The weights come in panels, `[panels, K, columns]`."""
    packed, n = weight_of(node), node.attr("n")
    panels, k, width = packed.tensor.dims
    columns = reshape(ops.node("Transpose", packed, perm=(1, 0, 2)), (k, panels * width))
    step = 1
    if tiles:
        step, width = TILE_PAIRS, TILE_COLUMNS if n > BLOCK else BLOCK
    pairs, panels = -(-k // (2 * step)) * step, -(-n // width)
    bounds = (constant(np.array([each], np.int64)) for each in (0, n, 1, 1))
    padded = pad_to(ops.node("Slice", columns, *bounds), (2 * pairs, panels * width))
    split = reshape(padded, (pairs, 2, panels, width))
    weight = _narrow(ops.node("Transpose", split, perm=(2, 0, 3, 1)))
    return ops.node("whitebox.MatMulBf16", node.inputs[0], weight, n=n, nt=width)


def _conv(node: Node) -> Node:
    """The weights come as `[OC/16, IC/16, KH, KW, 16, 16]`."""
    packed = weight_of(node)
    outer, inner, kh, kw, _, _ = packed.tensor.dims
    channels = ops.node("Transpose", packed, perm=(0, 5, 1, 4, 2, 3))
    plain = reshape(channels, (outer * BLOCK, inner * BLOCK, kh, kw))
    width = TILE_COLUMNS if outer > 1 else BLOCK
    panels, steps = -(-outer * BLOCK // width), -(-inner * BLOCK // (2 * TILE_PAIRS))
    padded = pad_to(plain, (panels * width, steps * 2 * TILE_PAIRS, kh, kw))
    split = reshape(padded, (panels, width, steps, TILE_PAIRS, 2, kh, kw))
    weight = _narrow(ops.node("Transpose", split, perm=(0, 2, 5, 6, 3, 1, 4)))
    kept = ("kernel_shape", "strides", "pads", "dilations", "block")
    attrs = {name: node.attr(name) for name in kept}
    return ops.node(
        "whitebox.ConvBf16", node.inputs[0], weight, *node.inputs[2:], out_blocks=outer, **attrs
    )


def _narrow(weight: Node) -> Node:
    return ops.node("Cast", weight, to=_BFLOAT16)
