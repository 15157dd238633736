"""Templates for products of two run-time operands: numpy's matmul, and ONNX Gemm.

Enters: shapes, then TE tensors. Leaves: a TE tensor named "matmul" (or "gemm") and a schedule for a
function that holds it, optional producers of both operands, and an elementwise epilogue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from whitebox.kernels.cpu import stages
from whitebox.kernels.cpu.gemm_operands import (
    broadcast,
    output_loops,
    prepare_operands,
    ravel,
    split_rows,
    unravel,
)
from whitebox.kernels.cpu.gemm_tiles import (
    PANELS,
    RESULT,
    ROWS,
    Tiles,
    choose_mt,
    choose_nt,
    schedule_packing,
    schedule_tiles,
    tile_product,
)


@dataclass(frozen=True)
class BatchMatMul:
    """`A[a..., M, K] × B[b..., K, N]`, both at run time, `a` and `b` broadcast.

    `transpose_a` and `transpose_b` say that A is `[..., K, M]` and B is `[..., N, K]`, so that a
    Transpose is never carried out. B is packed into panels: in the loop over panels where each
    is used by one product only, else as a stage of its own. Vectors are taken as numpy does.
    """

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    tiles: Tiles
    transpose_a: bool = False
    transpose_b: bool = False

    @classmethod
    def default(
        cls,
        a_shape: tuple[int, ...],
        b_shape: tuple[int, ...],
        lanes: int,
        threads: int,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> BatchMatMul:
        """The template for these operands with tiles from the cost model."""
        a2 = a_shape[-2:] if len(a_shape) > 1 else (1, a_shape[0])
        b2 = b_shape[-2:] if len(b_shape) > 1 else (b_shape[0], 1)
        m, k = reversed(a2) if transpose_a else a2
        n = b2[0] if transpose_b else b2[1]
        lead = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
        batch = math.prod(lead)
        if not transpose_a and math.prod(b_shape[:-2]) == 1:
            batch_dims, m = split_rows((*lead, m))
            batch = math.prod(batch_dims)
        nt = choose_nt(n, lanes)
        mt = choose_mt(m, k, nt, lanes, columns=batch * -(-n // nt), threads=threads)
        tiles = Tiles(batch, m, k, n, mt, nt, lanes, threads)
        return cls(tuple(a_shape), tuple(b_shape), tiles, transpose_a, transpose_b)

    @property
    def lead(self) -> tuple[int, ...]:
        """The batch dimensions of the result."""
        return tuple(int(d) for d in np.broadcast_shapes(self.a_shape[:-2], self.b_shape[:-2]))

    @property
    def shared(self) -> bool:
        """Whether all products have the same B."""
        return math.prod(self.b_shape[:-2]) == 1

    @property
    def batch_dims(self) -> tuple[int, ...]:
        """The dimensions of the result that number the products; rows follow them."""
        if self.shared and not self.transpose_a:
            return split_rows((*self.lead, *self._rows))[0]
        return self.lead

    @property
    def _rows(self) -> tuple[int, ...]:
        """A's own row dimension, if it is not a vector."""
        if len(self.a_shape) == 1:
            return ()
        return (self.a_shape[-1 if self.transpose_a else -2],)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.lead, *self._rows, *(() if len(self.b_shape) == 1 else (self.tiles.n,)))

    @property
    def packs_in_loop(self) -> bool:
        """Whether B's panels are packed where they are used, by the thread that uses them."""
        tiles = self.tiles
        enough = tiles.batch * tiles.panels >= 2 * tiles.threads or not tiles.parallel
        own = tiles.batch == 1 or math.prod(self.b_shape[:-2]) == tiles.batch
        return own and enough

    def _a(self, a: Any, f: Any, r: Any, k: Any) -> Any:
        """A's element in row `r` of product `f`."""
        if len(self.a_shape) == 1:
            return a(k)
        dims = (*self.lead, *self._rows)
        index = [*unravel(f, self.batch_dims), r]
        index += [0] * (len(dims) - len(index))
        *batch, row = index
        batch = broadcast(batch, self.a_shape[:-2])
        return a(*batch, k, row) if self.transpose_a else a(*batch, row, k)

    def _panels(self, b: Any) -> Any:
        """B in panels `[batch of B, ceil(N/nt), K, nt]`, zero past column N."""
        from tvm import te, tirx

        tiles, lead = self.tiles, self.b_shape[:-2]

        def element(f: Any, p: Any, k: Any, j: Any) -> Any:
            n, batch = p * tiles.nt + j, unravel(f, lead)
            if len(self.b_shape) == 1:
                value = b(k)
            else:
                value = b(*batch, n, k) if self.transpose_b else b(*batch, k, n)
            if tiles.n % tiles.nt == 0:
                return value
            return tirx.if_then_else(n < tiles.n, value, 0.0)

        shape = (math.prod(lead), tiles.panels, tiles.k, tiles.nt)
        return te.compute(shape, element, name=PANELS)

    def compute(self, a: Any, b: Any) -> Any:
        from tvm import te

        tiles, dims = self.tiles, self.batch_dims
        panels = self._panels(b)
        rows = te.compute(
            (tiles.batch, tiles.m, tiles.k), lambda f, r, k: self._a(a, f, r, k), name=ROWS
        )

        def panel(f: Any, p: Any, k: Any, j: Any) -> Any:
            own = self.b_shape[:-2]
            f = 0 if self.shared else ravel(broadcast(unravel(f, dims), own), own)
            return panels[f, p, k, j]

        product = tile_product(tiles, lambda f, r, k: rows[f, r, k], panel)
        row_axis, has_rows = len(dims), bool(self.lead or self._rows)

        def untile(*index: Any) -> Any:
            f = ravel(index[:row_axis], dims)
            column = 0 if len(self.b_shape) == 1 else index[-1]
            return tiles.element(product, f, index[row_axis] if has_rows else 0, column)

        return te.compute(self.shape, untile, name=RESULT)

    def schedule(self, sch: Any) -> None:
        tiles = self.tiles
        direct = not self.transpose_b and tiles.n % tiles.nt == 0 and tiles.row_tiles <= 2
        above_b = stages.upstream(sch, sch.get_sblock(PANELS))
        packed = not direct or any(stages.computes(sch, block) for block in above_b)
        staged = prepare_operands(sch, {ROWS}, frozenset({PANELS} if packed else ()))
        loops = output_loops(sch, len(self.batch_dims), len(self.b_shape) > 1)
        panels = sch.get_sblock(PANELS) if packed else None
        in_loop = panels is not None and self.packs_in_loop
        schedule_tiles(sch, tiles, loops, shared=self.shared, panels=panels if in_loop else None)
        if panels is not None:
            schedule_packing(sch, tiles, panels, parallel=not in_loop)
        for name in staged:
            stages.schedule_stage(sch, sch.get_sblock(name), tiles.lanes, tiles.threads)


@dataclass(frozen=True)
class Gemm:
    """ONNX Gemm with a B known only at run time: `alpha · A' B' + beta · C`."""

    product: BatchMatMul
    alpha: float = 1.0
    beta: float = 1.0

    @classmethod
    def default(
        cls,
        a_shape: tuple[int, ...],
        b_shape: tuple[int, ...],
        lanes: int,
        threads: int,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        alpha: float = 1.0,
        beta: float = 1.0,
    ) -> Gemm:
        """The template for these operands with tiles from the cost model."""
        product = BatchMatMul.default(
            a_shape, b_shape, lanes, threads, transpose_a=transpose_a, transpose_b=transpose_b
        )
        return cls(product, alpha, beta)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.product.shape

    def compute(self, a: Any, b: Any, c: Any | None = None) -> Any:
        from tvm import te, tirx

        product = self.product.compute(a, b)
        if c is None and self.alpha == 1.0:
            return product

        def combine(i: Any, j: Any) -> Any:
            value = product[i, j] * tirx.const(self.alpha, "float32")
            if c is None:
                return value
            index = broadcast([i, j], tuple(int(size) for size in c.shape))
            return value + c(*index) * tirx.const(self.beta, "float32")

        return te.compute(self.shape, combine, name="gemm")

    def schedule(self, sch: Any) -> None:
        self.product.schedule(sch)
