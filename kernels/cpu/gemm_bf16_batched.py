"""The template for products of two computed operands in bf16, as in attention.

Enters: shapes, then TE tensors. Leaves: a TE tensor named "matmul", float32, and a schedule for a
function that holds it, optional producers of both operands, and an elementwise epilogue. As for
known weights (gemm_bf16), but that B is packed first: into words of two bfloat16, that lie one
below the other in B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import bf16, stages
from whitebox.kernels.cpu.gemm_bf16 import (
    choose_rows,
    rounded_rows,
    schedule_product,
    tile_product,
)
from whitebox.kernels.cpu.gemm_operands import output_loops, ravel, unravel
from whitebox.kernels.cpu.gemm_tiles import PANELS, RESULT, ROWS, TILE, Tiles, choose_nt

_TILE_COLUMNS = 2 * bf16.LANES


@dataclass(frozen=True)
class Bf16BatchMatMul:
    """`A[*lead, M, K]` × `B[*lead, K, N]`, or `[*lead, N, K]`, → float32 `[*lead, M, N]`."""

    a_shape: tuple[int, ...]
    tiles: Tiles
    pairs: int
    kind: str
    transpose_b: bool

    @classmethod
    def default(
        cls,
        a_shape: tuple[int, ...],
        b_shape: tuple[int, ...],
        threads: int,
        kind: str,
        transpose_b: bool,
    ) -> Bf16BatchMatMul:
        """The template for these operands; `kind` is what the target has."""
        (*lead, m, k), n = a_shape, b_shape[-2 if transpose_b else -1]
        batch, pairs = math.prod(lead), -(-k // 2)
        nt = choose_nt(n, bf16.LANES)
        if kind == bf16.TILES:
            nt = _TILE_COLUMNS if n > bf16.LANES else bf16.LANES
            pairs = -(-pairs // bf16.STEP_PAIRS) * bf16.STEP_PAIRS
        mt = choose_rows(m, k, nt, kind, columns=batch * -(-n // nt), threads=threads)
        tiles = Tiles(batch, m, k, n, mt, nt, bf16.LANES, threads)
        return cls(tuple(a_shape), tiles, pairs, kind, transpose_b)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.a_shape[:-1], self.tiles.n)

    def compute(self, a: Any, b: Any) -> Any:
        from tvm import te, tirx

        lead = self.a_shape[:-2]
        rows = rounded_rows(self.tiles, self.pairs, lambda f, r, k: a(*unravel(f, lead), r, k))
        words = self._packed(b)

        def right(f: Any, p: Any, pair: Any, j: Any, half: Any) -> Any:
            places = (half * 16).astype("uint32")
            bits = tirx.shift_right(words[f, p, pair, j], places).astype("uint16")
            return bf16.widened(bits)

        tile = tile_product(self.tiles, rows, right)

        def untile(*index: Any) -> Any:
            *batch, row, column = index
            return self.tiles.element(tile, ravel(batch, lead), row, column)

        return te.compute(self.shape, untile, name=RESULT)

    def _packed(self, b: Any) -> Any:
        """B as words `[batch, ⌈N/nt⌉, pairs, nt]`, zero past K and N."""
        from tvm import te, tirx

        tiles, lead = self.tiles, self.a_shape[:-2]

        def bits(f: Any, k: Any, n: Any) -> Any:
            batch = unravel(f, lead)
            value = b(*batch, n, k) if self.transpose_b else b(*batch, k, n)
            inside = []
            if tiles.k < 2 * self.pairs:
                inside.append(k < tiles.k)
            if tiles.n % tiles.nt:
                inside.append(n < tiles.n)
            if inside:
                value = tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, "float32"))
            return bf16.rounded(value).astype("uint32")

        def word(f: Any, p: Any, pair: Any, j: Any) -> Any:
            low, high = (bits(f, pair * 2 + half, p * tiles.nt + j) for half in (0, 1))
            return tirx.bitwise_or(low, tirx.shift_left(high, tirx.const(16, "uint32")))

        return te.compute((tiles.batch, tiles.panels, self.pairs, tiles.nt), word, name=PANELS)

    def schedule(self, sch: Any) -> None:
        tiles = self.tiles
        stages.inline_all(sch, {TILE, ROWS, PANELS})
        loops = output_loops(sch, len(self.a_shape) - 2, True)
        schedule_product(sch, tiles, self.pairs, self.kind, loops, shared=False)
        stages.schedule_stage(sch, sch.get_sblock(PANELS), tiles.lanes, tiles.threads)
