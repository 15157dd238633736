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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import bf16, stages
from whitebox.kernels.cpu.gemm_operands import output_loops, ravel, split_rows, unravel
from whitebox.kernels.cpu.gemm_tiles import RESULT, ROWS, TILE, Tiles, choose_mt

# Fewer rows would leave most of a tile empty.
_FEWEST_TILE_ROWS = 5


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
        if kind == bf16.TILES and m < _FEWEST_TILE_ROWS:
            kind = bf16.PAIRS
        if kind == bf16.TILES:
            mt = tile_rows(m)
        else:
            columns = batch * -(-n // nt)
            mt = choose_mt(m, k // 2, nt, bf16.LANES, columns=columns, threads=threads)
        return cls(tuple(a_shape), Tiles(batch, m, k, n, mt, nt, bf16.LANES, threads), pairs, kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.a_shape[:-1], self.tiles.n)

    def compute(self, a: Any, w: Any) -> Any:
        from tvm import te

        tiles, lead = self.tiles, self.a_shape[:-1]
        batch_dims, _ = split_rows(lead)
        rows = self._rows(a)
        pair = te.reduce_axis((0, self.pairs), name="pair")
        half = te.reduce_axis((0, 2), name="half")

        def product(f: Any, p: Any, t: Any, i: Any, j: Any) -> Any:
            left = bf16.widened(rows[f, t * tiles.mt + i, pair * 2 + half])
            return te.sum(left * w[p, pair, j, half].astype("float32"), axis=[pair, half])

        shape = (tiles.batch, tiles.panels, tiles.row_tiles, tiles.mt, tiles.nt)
        tile = te.compute(shape, product, name=TILE)
        row_axis = len(batch_dims)

        def untile(*index: Any) -> Any:
            f = ravel(index[:row_axis], batch_dims)
            return tiles.element(tile, f, index[row_axis] if lead else 0, index[-1])

        return te.compute(self.shape, untile, name=RESULT)

    def _rows(self, a: Any) -> Any:
        """A in bfloat16, padded: its number of rows to whole tiles, each with zeros."""
        from tvm import te, tirx

        tiles, lead = self.tiles, self.a_shape[:-1]
        batch_dims, _ = split_rows(lead)
        units = [0] * (len(lead) - len(batch_dims) - 1)
        padded = tiles.row_tiles * tiles.mt

        def element(f: Any, r: Any, k: Any) -> Any:
            if padded > tiles.m:
                r = tirx.min(r, tirx.const(tiles.m - 1, "int32"))
            value = a(*[*unravel(f, batch_dims), r, *units][: len(lead)], k)
            if tiles.k < 2 * self.pairs:
                value = tirx.if_then_else(k < tiles.k, value, tirx.const(0, "float32"))
            return bf16.rounded(value)

        return te.compute((tiles.batch, padded, 2 * self.pairs), element, name=ROWS)

    def schedule(self, sch: Any) -> None:
        tiles = self.tiles
        stages.inline_all(sch, {TILE, ROWS})
        batch_dims, _ = split_rows(self.a_shape[:-1])
        batch, row, column = output_loops(sch, len(batch_dims), True)
        row_tile, i = sch.split(row, [None, tiles.mt])
        panel, j = sch.split(column, [None, tiles.nt])
        sch.reorder(panel, batch, row_tile, i, j)
        item = sch.fuse(panel, batch, row_tile)
        if tiles.parallel:
            sch.parallel(item)
        tile = sch.get_sblock(TILE)
        sch.compute_at(tile, item, preserve_unit_loops=True)
        sch.set_scope(tile, 0, "local")
        stages.vectorize_rows(sch, [j], tiles.nt, tiles.lanes)
        if tiles.n % tiles.nt:
            sch.annotate(sch.get_loops(stages.output_block(sch))[-2], _PARTITION, 1)
        bf16.write_out(sch, sch.get_loops(tile)[-4], self.kind, self._product)
        rows = sch.get_sblock(ROWS)
        stages.schedule_stage(sch, rows, tiles.lanes, tiles.threads)
        if tiles.k < 2 * self.pairs:
            sch.annotate(sch.get_loops(rows)[-2], _PARTITION, 1)

    def _product(self, reads: Sequence[Any], writes: Sequence[Any]) -> bf16.TileProduct:
        rows, w = reads
        (out,) = writes
        first = [each.min for each in out.region]
        steps = -(-self.pairs // bf16.STEP_PAIRS)

        def start(at: Sequence[Any]) -> Any:
            return at[0] * bf16.STEP_PAIRS if at else 0

        return bf16.TileProduct(
            self.tiles.mt,
            self.tiles.nt,
            1 if self.tiles.mt <= bf16.TILE_ROWS else 2,
            (steps,) if self.kind == bf16.TILES else (self.pairs,),
            lambda i, at, pair: bf16.address(rows, i, (start(at) + pair) * 2),
            4 * self.pairs,
            lambda at, pair, column: bf16.address(w, start(at) + pair, column, 0),
            out.source,
            lambda i, j: [*first[:-2], first[-2] + i, first[-1] + j],
        )


_PARTITION = "pragma_loop_partition_hint"


def tile_rows(m: int) -> int:
    """Rows of one or two tiles, such that the last row tile has few rows too many."""
    if m <= bf16.TILE_ROWS:
        return m
    stacks = -(-m // (2 * bf16.TILE_ROWS))
    return 2 * -(-m // (2 * stacks))
