"""The template for MatMul in bf16 with packed weights, for CPUs with instructions for it.

Enters: shapes, then TE tensors. Leaves: a TE tensor named "matmul", float32, and a schedule for a
function that holds it, optional producers of A, and an elementwise epilogue. Nothing here knows a
Graph.

    A → bfloat16, padded to whole tiles                        once, in parallel
    for item in parallel(N/nt × batch × M/mt):
        tile = A[mt, K] · W[K, nt]                             instructions of kernels/cpu/bf16
        result = epilogue(tile)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import bf16, stages
from whitebox.kernels.cpu.gemm_operands import output_loops, ravel, split_rows, unravel
from whitebox.kernels.cpu.gemm_tiles import RESULT, ROWS, TILE, Tiles, choose_mt

# Fewer rows would leave most of a tile empty.
_FEWEST_TILE_ROWS = 5
_PARTITION = "pragma_loop_partition_hint"


@dataclass(frozen=True)
class Bf16MatMul:
    """`A[..., M, K]`, rounded to bf16, × `W[⌈N/nt⌉, pairs, nt, 2]` → float32 `[..., M, N]`.

    `pairs` counts the padded pairs along K: whole steps of a tile's.
    """

    a_shape: tuple[int, ...]
    tiles: Tiles
    pairs: int
    kind: str

    @classmethod
    def default(
        cls, a_shape: tuple[int, ...], n: int, nt: int, pairs: int, threads: int, kind: str
    ) -> Bf16MatMul:
        """The template for `a_shape`; `kind` is the best that the target has."""
        batch_dims, m = split_rows(a_shape[:-1])
        batch, k = math.prod(batch_dims), a_shape[-1]
        if m < _FEWEST_TILE_ROWS:
            kind = bf16.PAIRS
        mt = choose_rows(m, k, nt, kind, columns=batch * -(-n // nt), threads=threads)
        return cls(tuple(a_shape), Tiles(batch, m, k, n, mt, nt, bf16.LANES, threads), pairs, kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.a_shape[:-1], self.tiles.n)

    def compute(self, a: Any, w: Any) -> Any:
        from tvm import te

        lead = self.a_shape[:-1]
        batch_dims, _ = split_rows(lead)
        row_axis, units = len(batch_dims), [0] * (len(lead) - len(batch_dims) - 1)

        def element(f: Any, r: Any, k: Any) -> Any:
            return a(*[*unravel(f, batch_dims), r, *units][: len(lead)], k)

        rows = rounded_rows(self.tiles, self.pairs, element)
        tile = tile_product(
            self.tiles, rows, lambda f, p, pair, j, half: w[p, pair, j, half].astype("float32")
        )

        def untile(*index: Any) -> Any:
            f = ravel(index[:row_axis], batch_dims)
            return self.tiles.element(tile, f, index[row_axis] if lead else 0, index[-1])

        return te.compute(self.shape, untile, name=RESULT)

    def schedule(self, sch: Any) -> None:
        stages.inline_all(sch, {TILE, ROWS})
        batch_dims, _ = split_rows(self.a_shape[:-1])
        loops = output_loops(sch, len(batch_dims), True)
        schedule_product(sch, self.tiles, self.pairs, self.kind, loops, shared=True)


def choose_rows(m: int, k: int, nt: int, kind: str, *, columns: int, threads: int) -> int:
    """Rows of a tile of sums, given that `columns` tiles lie side by side."""
    if kind == bf16.TILES:
        return tile_rows(m)
    return choose_mt(m, k // 2, nt, bf16.LANES, columns=columns, threads=threads)


def tile_rows(m: int) -> int:
    """Rows of one or two tile registers, such that the last tile has few rows too many."""
    if m <= bf16.TILE_ROWS:
        return m
    stacks = -(-m // (2 * bf16.TILE_ROWS))
    return 2 * -(-m // (2 * stacks))


def rounded_rows(tiles: Tiles, pairs: int, element: Callable[..., Any]) -> Any:
    """The bfloat16 bits of A, `element(f, r, k)`, with rows for whole tiles, each zero past K."""
    from tvm import te, tirx

    padded = tiles.row_tiles * tiles.mt

    def bits(f: Any, r: Any, k: Any) -> Any:
        if padded > tiles.m:
            r = tirx.min(r, tirx.const(tiles.m - 1, "int32"))
        value = element(f, r, k)
        if tiles.k < 2 * pairs:
            value = tirx.if_then_else(k < tiles.k, value, tirx.const(0, "float32"))
        return bf16.rounded(value)

    return te.compute((tiles.batch, padded, 2 * pairs), bits, name=ROWS)


def tile_product(tiles: Tiles, rows: Any, right: Callable[..., Any]) -> Any:
    """The TE tensor of tiles; `right(f, panel, pair, column, half)` is an element of B."""
    from tvm import te

    pair = te.reduce_axis((0, int(rows.shape[2]) // 2), name="pair")
    half = te.reduce_axis((0, 2), name="half")

    def product(f: Any, p: Any, t: Any, i: Any, j: Any) -> Any:
        left = bf16.widened(rows[f, t * tiles.mt + i, pair * 2 + half])
        return te.sum(left * right(f, p, pair, j, half), axis=[pair, half])

    shape = (tiles.batch, tiles.panels, tiles.row_tiles, tiles.mt, tiles.nt)
    return te.compute(shape, product, name=TILE)


def schedule_product(
    sch: Any, tiles: Tiles, pairs: int, kind: str, loops: list[Any], *, shared: bool
) -> None:
    """Schedule tiles, write-out and rows; `loops` are the output's over batch, rows and columns.

    `shared` says that all products have the same B, whose panels then lead.
    """
    batch, row, column = loops
    row_tile, i = sch.split(row, [None, tiles.mt])
    panel, j = sch.split(column, [None, tiles.nt])
    outer = (panel, batch) if shared else (batch, panel)
    sch.reorder(*outer, row_tile, i, j)
    item = sch.fuse(*outer, row_tile)
    if tiles.parallel:
        sch.parallel(item)
    tile, rows = sch.get_sblock(TILE), sch.get_sblock(ROWS)
    sch.compute_at(tile, item, preserve_unit_loops=True)
    sch.set_scope(tile, 0, "local")
    stages.vectorize_rows(sch, [j], tiles.nt, tiles.lanes)
    if tiles.n % tiles.nt:
        sch.annotate(sch.get_loops(stages.output_block(sch))[-2], _PARTITION, 1)
    nest = sch.get_loops(tile)[-4]
    extents = (tiles.mt, tiles.nt)
    bf16.write_out(
        sch, nest, kind, extents, lambda *regions: _instructions(tiles, pairs, kind, *regions)
    )
    stages.schedule_stage(sch, rows, tiles.lanes, tiles.threads)
    if tiles.k < 2 * pairs:
        sch.annotate(sch.get_loops(rows)[-2], _PARTITION, 1)


def _instructions(
    tiles: Tiles, pairs: int, kind: str, reads: Sequence[Any], writes: Sequence[Any]
) -> bf16.TileProduct:
    rows, right = reads
    (out,) = writes
    first = [each.min for each in out.region]
    # Of B, a pair is two bfloat16 or one word that holds both.
    inside = [0] * (int(right.region[-1].extent) == 2 < tiles.nt)

    def start(at: Sequence[Any]) -> Any:
        return at[0] * bf16.STEP_PAIRS if at else 0

    return bf16.TileProduct(
        tiles.mt,
        tiles.nt,
        1 if tiles.mt <= bf16.TILE_ROWS else 2,
        (-(-pairs // bf16.STEP_PAIRS),) if kind == bf16.TILES else (pairs,),
        lambda i, at, pair: bf16.address(rows, i, (start(at) + pair) * 2),
        4 * pairs,
        lambda at, pair, column: bf16.address(right, start(at) + pair, column, *inside),
        out.source,
        lambda i, j: [*first[:-2], first[-2] + i, first[-1] + j],
    )
