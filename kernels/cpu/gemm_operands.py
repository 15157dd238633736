"""How the operands and the result of a matrix product relate to its batch, rows and columns.

Enters: shapes and TE indices, or a schedule of a function around a product. Leaves: indices, or the
schedule with all but the product's own blocks inlined and its output's loops in three. Index
arithmetic needs no TVM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from whitebox.kernels.cpu import stages
from whitebox.kernels.cpu.gemm_tiles import TILE


def ravel(index: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Position of a multi-index in an array of `shape`, whose size-1 dims broadcast."""
    flat: Any = 0
    for i, size in zip(index, shape, strict=True):
        flat = flat * size + (i if size > 1 else 0)
    return flat


def unravel(flat: Any, shape: tuple[int, ...]) -> list[Any]:
    """The multi-index of a position in an array of `shape`."""
    index: list[Any] = []
    for axis, size in enumerate(shape):
        stride = math.prod(shape[axis + 1 :])
        outer = flat // stride if stride > 1 else flat
        index.append(outer % size if axis and size > 1 else outer if size > 1 else 0)
    return index


def broadcast(index: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    """The index of the element of an array of `shape` that broadcasts to `index`."""
    last = index[len(index) - len(shape) :]
    return [0 if size == 1 else i for i, size in zip(last, shape, strict=True)]


def split_rows(dims: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Split leading dimensions into a batch and rows: the rows are the last that is not 1.

    Flattening all of them into rows would waste less where the last is tiny, but TVM cannot tell
    that a tile across two of them is contiguous.
    """
    for axis in range(len(dims) - 1, -1, -1):
        if dims[axis] != 1:
            return dims[:axis], dims[axis]
    return (), 1


def output_loops(sch: Any, batch: int, has_columns: bool) -> list[Any]:
    """The output block's loops as three: over the first `batch` dimensions, rows and columns."""
    block = stages.output_block(sch)
    loops = list(sch.get_loops(block))
    column = loops.pop() if has_columns else sch.add_unit_loop(block)
    row = _fuse(sch, loops[batch:], column)
    return [_fuse(sch, loops[:batch], row), row, column]


def _fuse(sch: Any, loops: list[Any], below: Any) -> Any:
    """One loop for `loops`; a new unit loop above `below` where there are none."""
    if not loops:
        return sch.add_unit_loop(below)
    return loops[0] if len(loops) == 1 else sch.fuse(*loops)


def prepare_operands(sch: Any, operands: set[str], keep: frozenset[str] = frozenset()) -> list[str]:
    """Inline all around the tiles, but what computes an operand: that becomes a stage of its own.

    Inlining arithmetic into the micro-kernel would repeat it for each panel of columns.
    """
    staged = []
    for name in sorted(operands):
        above = stages.upstream(sch, sch.get_sblock(name))
        if any(stages.computes(sch, block) for block in above):
            staged.append(name)
    stages.inline_all(sch, {TILE, *staged, *keep})
    return staged
