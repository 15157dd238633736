"""Joining and cutting without copying: a value may lie inside the memory of another.

A part of a Concat whose outer dimensions are 1 is a range of bytes of the result: it is computed
into its place, and the Concat costs nothing. A Slice of such a range is the range itself. What
enters: the computed nodes of a fused graph, in order. What leaves: which of them need no step, and
for each value the buffer that it lies in and where.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, Graph, Node
from whitebox.ir.types import TensorType
from whitebox.kernels.host.interpreter import ALIGNMENT
from whitebox.passes.fuse import is_view


def origin(node: Node) -> Node:
    """The value whose bytes `node` shows: a view has those of its operand."""
    while is_view(node) and not node.is_constant_expression:
        source = node.inputs[0]
        assert source is not None
        node = source
    return node


class InPlace:
    """Which values lie inside others.

    `fixed` are values that others decide the place of, like a model's outputs: they take part in
    nothing.
    """

    def __init__(self, computed: Sequence[Node], fixed: Collection[Node]) -> None:
        self.free: set[Node] = set()
        self._inside: dict[Node, tuple[Node, int]] = {}
        self._fixed = fixed
        self._computed = set(computed)
        for node in computed:
            if node not in fixed and self._take(node):
                self.free.add(node)

    def buffer(self, value: Node) -> tuple[Node, int]:
        """(the value whose memory it lies in, offset in bytes), after views and places."""
        value, offset = origin(value), 0
        while value in self._inside:
            outer, start = self._inside[value]
            value, offset = origin(outer), offset + start
        return value, offset

    def _take(self, node: Node) -> bool:
        """Whether a node was found to need no step; its operands then have their places."""
        only = _only_operator(node)
        if only is None:
            return False
        if only.op == "Slice":
            return self._cut(node, only)
        return only.op == "Concat" and self._join(node, only)

    def _cut(self, node: Node, piece: Node) -> bool:
        source = node.inputs[0]
        start = _range_start(piece)
        if source is None or start is None or not self._movable(self.buffer(source)[0]):
            return False
        self._inside[node] = (source, start)
        return True

    def _join(self, node: Node, joined: Node) -> bool:
        axis = joined.attr("axis") % joined.tensor.rank
        if math.prod(joined.tensor.dims[:axis]) != 1:
            return False
        places: dict[Node, int] = {}
        end = 0
        for part in _operands(node, joined):
            buffer, offset = self.buffer(part)
            start = end - offset
            if part.is_constant_expression or places.setdefault(buffer, start) != start:
                return False
            end += part.tensor.nbytes
        ranges = sorted((start, start + b.tensor.nbytes) for b, start in places.items())
        apart = all(left[1] <= right[0] for left, right in pairwise(ranges))
        if not apart or ranges[0][0] < 0 or ranges[-1][1] > end:
            return False
        if any(start % ALIGNMENT or not self._movable(b) for b, start in places.items()):
            return False
        self._inside.update((buffer, (node, start)) for buffer, start in places.items())
        return True

    def _movable(self, buffer: Node) -> bool:
        """Whether a buffer holds a result of this plan that may lie anywhere."""
        owner = buffer.inputs[0] if buffer.op == OUTPUT else buffer
        return owner in self._computed and buffer not in self._fixed


def _only_operator(node: Node) -> Node | None:
    """The operator of a fused group of one."""
    if node.op != "whitebox.Fused":
        return None
    inner = [n for n in node.attr("body").nodes if n.op not in (INPUT, CONSTANT, OUTPUT)]
    return inner[0] if len(inner) == 1 and _is_plain(inner[0]) else None


def _is_plain(node: Node) -> bool:
    types = [node.type, *(source.type for source in node.inputs if source is not None)]
    return all(isinstance(t, TensorType) and t.is_static and t.dtype != "string" for t in types)


def _operands(node: Node, joined: Node) -> list[Node]:
    """The operands of a group of one in the order in which its operator takes them."""
    body: Graph = node.attr("body")
    outside = {inner: node.inputs[k] for k, (_, inner) in enumerate(body.model.inputs)}
    found = [outside.get(source) for source in joined.inputs if source is not None]
    assert all(source is not None for source in found)
    return found  # type: ignore[return-value]


def _range_start(piece: Node) -> int | None:
    """Where the bytes of a Slice begin in its operand; None when they are not one aligned range."""
    source, *bounds = piece.inputs
    if source is None or not all(each is None or each.is_constant for each in bounds):
        return None
    values = [None if each is None else each.value.reshape(-1) for each in bounds]
    if values[0] is None or (len(values) > 3 and values[3] is not None and any(values[3] != 1)):
        return None
    before, after = source.tensor.dims, piece.tensor.dims
    cut = [axis for axis, dim in enumerate(before) if dim != after[axis]]
    axes = values[2] if len(values) > 2 and values[2] is not None else range(len(values[0]))
    named = zip(axes, values[0], strict=True)
    starts = {int(axis) % len(before): int(start) for axis, start in named}
    if len(cut) != 1 or math.prod(after[: cut[0]]) != 1:
        return None
    (axis,) = cut
    start = slice(starts[axis], None).indices(before[axis])[0]
    size = piece.tensor.nbytes // max(piece.tensor.size or 1, 1)
    offset = start * math.prod(before[axis + 1 :]) * size
    return None if offset % ALIGNMENT else offset
