"""Between plain and channel-blocked data: NCHW and NCHWc = [N, ⌈C/c⌉, H, W, c]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whitebox.compiler.lower.value import Axes, Body, Scope, Value, const, emitter, moved
from whitebox.ir.graph import Node


@emitter("whitebox.Pack")
def _pack(node: Node, args: Sequence[Value], body: Body) -> Value:
    (source,) = args
    channels, block = source.shape[1], node.attr("block")

    def element(scope: Scope, axes: Axes) -> Any:
        n, outer, h, w, inner = axes
        channel = outer * block + inner
        return scope.choose(
            scope.less(channel, channels),
            lambda: source.at(scope, (n, channel, h, w)),
            lambda: const(0, source.dtype),
        )

    return Value(source.dtype, node.tensor.extents, element)


@emitter("whitebox.Unpack")
def _unpack(node: Node, args: Sequence[Value], body: Body) -> Value:
    block = args[0].shape[-1]

    def where(axes: Axes) -> Axes:
        n, channel, h, w = axes
        return (n, channel // block, h, w, channel % block)

    return moved(node, args[0], where)
