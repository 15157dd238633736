"""Blocked channels and padding as nodes: what the rules of the `layout` pass build with."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.passes.rules.algebra import reshape


def pack(x: Node, lanes: int) -> Node:
    """NCHW → NCHWc."""
    return ops.node("whitebox.Pack", x, block=lanes)


def unpack(x: Node, channels: int) -> Node:
    """NCHWc → NCHW, the padding lanes dropped."""
    return ops.node("whitebox.Unpack", x, channels=channels)


def known(node: Node | None) -> bool:
    return node is not None and node.is_constant_expression


def pad_to(node: Node, sizes: tuple[int, ...]) -> Node:
    """A known tensor with zeros appended up to `sizes`."""
    grow = [size - dim for size, dim in zip(sizes, node.tensor.dims, strict=True)]
    if not any(grow):
        return node
    return ops.node("Pad", node, constant(np.array([0] * len(grow) + grow, np.int64)))


def pack_vector(vector: Node, lanes: int) -> Node:
    """A known [C] as [⌈C/c⌉, 1, 1, c], to broadcast against NCHWc."""
    blocks = -(-vector.tensor.dims[0] // lanes)
    return reshape(pad_to(vector, (blocks * lanes,)), (blocks, 1, 1, lanes))
