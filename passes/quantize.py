"""quantize: compute quantised regions on integers.

Convolutions and matrix products between DequantizeLinear and QuantizeLinear, and those in the
QLinear operators, become sums of integers: ConvInteger and MatMulInteger. Scales, biases and
rounding follow as elementwise nodes, for `fuse` to put into the product's kernel. It never
quantises what the model does not.
"""

from __future__ import annotations

from whitebox.ir.graph import Graph
from whitebox.passes.rewrite import rewrite
from whitebox.passes.rules.algebra import ALGEBRA
from whitebox.passes.rules.quantized import QUANTIZED


def quantize(graph: Graph, integer_group: int = 2) -> Graph:
    """Apply the rules, unless the target has no instruction that adds up products of integers."""
    return rewrite(graph, (*QUANTIZED, *ALGEBRA)) if integer_group else graph
