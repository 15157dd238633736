"""whitebox.NgramSum: what enters is the node and the values of its inputs, the texts as pairs of
an address and a length; what leaves is its result, held in an array."""

from __future__ import annotations

from collections.abc import Sequence

from whitebox.compiler.lower.value import Body, Value, emitter, from_array
from whitebox.ir.graph import Node
from whitebox.kernels.cpu.ngrams import Buffers, NgramSums, Part


@emitter("whitebox.NgramSum")
def _ngram_sum(node: Node, args: Sequence[Value], body: Body) -> Value:
    texts, table, slots, pool = (body.buffer(value) for value in args)
    rows, width = node.tensor.extents
    result = body.array((rows, width), "float32")
    parts = [
        Part(number, bool(words), least, most)
        for number, (words, least, most) in enumerate(node.attr("parts"))
    ]
    buffers = Buffers(texts, table, slots, pool, result.buffer)
    size = args[2].shape[0]
    assert isinstance(width, int) and isinstance(size, int)
    sums = NgramSums(buffers, rows, width, size, parts, node.attr("case"))
    body.statements += sums.statements()
    return from_array(result, "float32")
