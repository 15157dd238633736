"""Copies of plain-layout inputs that sliding windows read with contiguous vector loads.

In: X `[N, C, D1..Dk]`. Out: `[N, C, rows.., stride, positions]`: padded, with the last dimension
split into the phases of its stride, so that neighbouring outputs read neighbouring elements. Block
`<prefix>_pad` adds the border and block `<prefix>_phases` moves the phases apart; each is there
only where it has something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from whitebox.kernels.cpu import conv_stages

# Reads the copy at (n, c, rows.., phase, position).
Reader = Callable[..., Any]


def phases(
    x: Any, begins: Sequence[int], rows: Sequence[int], across: int, stride: int, **names: Any
) -> Reader:
    """How to read X: `rows` and `across` positions of each phase, after `begins` border elements.

    `names` are `prefix` of the blocks and `border`, the value of the border.
    """
    from tvm import te

    extents = [*rows, across * stride]
    padded = _padded(x, begins, extents, **names)
    if stride == 1:
        return lambda n, c, *at: padded[(n, c, *at[:-2], at[-1])]
    lead = [int(dim) for dim in x.shape[:2]]
    apart: Reader = te.compute(
        (*lead, *rows, stride, across),
        lambda n, c, *at: padded[(n, c, *at[:-2], at[-1] * stride + at[-2])],
        name=f"{names['prefix']}_phases",
    )
    return apart


def _padded(
    x: Any, begins: Sequence[int], extents: Sequence[int], *, prefix: str, border: Any
) -> Any:
    from tvm import te, tirx

    size = [int(dim) for dim in x.shape[2:]]
    inside = not any(begins) and all(e <= d for e, d in zip(extents, size, strict=True))
    if inside and conv_stages.is_input(x):
        return x

    def body(n: Any, c: Any, *at: Any) -> Any:
        known = [tirx.all(i >= b, i < b + d) for i, b, d in zip(at, begins, size, strict=True)]
        value = x[(n, c, *[i - b for i, b in zip(at, begins, strict=True)])]
        return value if inside else te.if_then_else(tirx.all(*known), value, border)

    lead = [int(dim) for dim in x.shape[:2]]
    return te.compute((*lead, *extents), body, name=f"{prefix}_pad")


def copy_blocks(sch: Any, prefix: str) -> list[Any]:
    """The copies that exist, the last to run first."""
    present = conv_stages.blocks(sch)
    names = (f"{prefix}_phases", f"{prefix}_pad")
    return [present[name] for name in names if name in present]
