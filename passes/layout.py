"""layout: give convolutions the data layout they are fast in, and pack weights once.

A convolution reads and writes NCHWc: channels in blocks of a vector register, [N, ⌈C/c⌉, H, W, c].
Each convolution is wrapped in Pack and Unpack; the rules then push Unpack towards the outputs,
through everything that works on blocked data as well, until it meets a Pack and both vanish.
Matrix products with known weights get them as column panels, [⌈N/n⌉, K, n]. Recurrent layers become
such a product of their input, and a loop over steps whose weights are panels of hidden units.

The lanes of the last block beyond C hold values that no real output reads; they only have to stay
finite, so Unpack passes through ops only that map finite to finite.
"""

from __future__ import annotations

from whitebox.ir.graph import Graph
from whitebox.passes.rewrite import rewrite
from whitebox.passes.rules.algebra import ALGEBRA
from whitebox.passes.rules.attention import attention_rules
from whitebox.passes.rules.blocked import blocked_rules, pack_is_reshape, pack_unpack
from whitebox.passes.rules.integer import integer_rules
from whitebox.passes.rules.integer_conv import integer_conv_rules
from whitebox.passes.rules.recurrent import recurrent_rules
from whitebox.passes.rules.transpose import merge_transposes


def layout(
    graph: Graph,
    lanes: int = 16,
    integer_group: int = 0,
    winograd: bool = True,
    attention: bool = True,
) -> Graph:
    """Blocked layouts for vectors of `lanes` float32 elements.

    `integer_group` is how many products of 8-bit integers an instruction of the target adds up,
    `winograd` says that its multiplications cost enough to be saved by transforms, `attention` that
    attention may be one operator, of fixed sizes and in float32.
    """
    rules = (*blocked_rules(lanes, winograd), *recurrent_rules(lanes))
    if attention:
        rules += attention_rules(lanes)
    if integer_group:
        rules += integer_rules(lanes, integer_group)
        rules += integer_conv_rules(lanes, integer_group)
    blocked = rewrite(graph, (*rules, *ALGEBRA, merge_transposes))
    # Only now: a Reshape would hide from the rules above that data is blocked.
    return rewrite(blocked, (pack_is_reshape, pack_unpack, *ALGEBRA))
