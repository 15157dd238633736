"""The template for MatMul with packed weights, and the packing.

Enters: shapes, then TE tensors. Leaves: a TE tensor named "matmul" and a schedule for a function
that holds it, optional producers of A, and an elementwise epilogue. The tile choice and the
packing of weights need no TVM. Nothing here knows a Graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whitebox.kernels.cpu import stages
from whitebox.kernels.cpu.gemm_batched import BatchMatMul, Gemm
from whitebox.kernels.cpu.gemm_operands import (
    output_loops,
    prepare_operands,
    ravel,
    split_rows,
    unravel,
)
from whitebox.kernels.cpu.gemm_tiles import (
    RESULT,
    ROWS,
    Tiles,
    choose_mt,
    choose_nt,
    most_rows,
    schedule_tiles,
    tile_product,
)

__all__ = ["BatchMatMul", "Gemm", "MatMul", "pack_panels", "pack_width"]


def pack_width(m: int, k: int, n: int, lanes: int) -> int:
    """Columns of a packed panel; a function of `n` and `lanes`, so that shapes share a packing."""
    del m, k
    return choose_nt(n, lanes)


def pack_panels(weight: np.ndarray, nt: int) -> np.ndarray:
    """`[K, N]` → `[ceil(N/nt), K, nt]`, zero-padded along N."""
    k, n = weight.shape
    panels = -(-n // nt)
    padded = np.zeros((k, panels * nt), weight.dtype)
    padded[:, :n] = weight
    return np.ascontiguousarray(padded.reshape(k, panels, nt).transpose(1, 0, 2))


@dataclass(frozen=True)
class MatMul:
    """whitebox.MatMul: `A[..., M, K]` × packed constant `W[ceil(N/nt), K, nt]` → `[..., M, N]`.

    Panels of W are read once each, and stay in cache over all tiles of rows. Takes every size; `A`
    may also be a vector `[K]`. W may be stored in 16 bits, and is widened as it is read.
    """

    a_shape: tuple[int, ...]
    tiles: Tiles

    @classmethod
    def default(cls, a_shape: tuple[int, ...], n: int, nt: int, lanes: int, threads: int) -> MatMul:
        """The template for `a_shape` with tiles from the cost model."""
        batch_dims, m = split_rows(a_shape[:-1])
        batch, k = math.prod(batch_dims), a_shape[-1]
        mt = choose_mt(m, k, nt, lanes, columns=batch * -(-n // nt), threads=threads)
        return cls(tuple(a_shape), Tiles(batch, m, k, n, mt, nt, lanes, threads))

    def alternatives(self) -> tuple[MatMul, ...]:
        """The templates with tiles of other heights, for measuring which is really the best."""
        heights = range(1, most_rows(self.tiles.nt, self.tiles.lanes, self.tiles.m) + 1)
        return tuple(
            replace(self, tiles=replace(self.tiles, mt=mt))
            for mt in reversed(heights)
            if mt != self.tiles.mt
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.a_shape[:-1], self.tiles.n)

    def compute(self, a: Any, w: Any) -> Any:
        from tvm import te

        tiles, lead = self.tiles, self.a_shape[:-1]
        batch_dims, _ = split_rows(lead)
        units = [0] * (len(lead) - len(batch_dims) - 1)

        def element(f: Any, r: Any, k: Any) -> Any:
            return a(*[*unravel(f, batch_dims), r, *units][: len(lead)], k)

        rows = te.compute((tiles.batch, tiles.m, tiles.k), element, name=ROWS)
        product = tile_product(
            tiles, lambda f, r, k: rows[f, r, k], lambda f, p, k, j: w[p, k, j].astype("float32")
        )
        row_axis = len(batch_dims)

        def untile(*index: Any) -> Any:
            f = ravel(index[:row_axis], batch_dims)
            return tiles.element(product, f, index[row_axis] if lead else 0, index[-1])

        return te.compute(self.shape, untile, name=RESULT)

    def schedule(self, sch: Any) -> None:
        staged = prepare_operands(sch, {ROWS})
        batch_dims, _ = split_rows(self.a_shape[:-1])
        loops = output_loops(sch, len(batch_dims), True)
        schedule_tiles(sch, self.tiles, loops, shared=True)
        for name in staged:
            stages.schedule_stage(sch, sch.get_sblock(name), self.tiles.lanes, self.tiles.threads)
