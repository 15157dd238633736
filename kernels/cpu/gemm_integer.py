"""The template for products of 8-bit integers with packed weights, for CPUs with AVX-512 VNNI.

Enters: shapes, then TE tensors. Leaves: a TE tensor named "matmul", int32, and a schedule for a
function that holds it, optional producers of A, and an elementwise epilogue (often the scaling
to float32). The packing of weights needs no TVM. Nothing here knows a Graph.

    A → unsigned bytes, padded to whole tiles and groups of four
    for item in parallel(N/nt × batch × M/mt):
        for group in K/4: mt × nt/16 instructions of 64 products    TIR written out
    result = epilogue(sums - zero points)                           over whole rows
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from whitebox.kernels.cpu import stages
from whitebox.kernels.cpu.gemm_operands import ravel, split_rows, unravel
from whitebox.kernels.cpu.gemm_tiles import RESULT, ROWS, TILE, Tiles, choose_mt

# How many products along K one instruction adds into a sum.
GROUP = 4
LANES = 16
_SUMS = "row_sums"
_DOT = "llvm.x86.avx512.vpdpbusd.512"
_CPUS = ("cascadelake", "cooperlake", "sapphirerapids")


def has_dot_product(mcpu: str) -> bool:
    """Whether code for this LLVM CPU name may use the instruction that the template is made of."""
    return mcpu in _CPUS


def pack_integer_panels(weight: np.ndarray, nt: int) -> np.ndarray:
    """int8 `[K, N]` → `[ceil(N/nt), ceil(K/4), nt · 4]`, zero-padded.

    Unsigned weights are to be shifted by -128 first, and their zero point with them.
    """
    k, n = weight.shape
    groups, panels = -(-k // GROUP), -(-n // nt)
    padded = np.zeros((groups * GROUP, panels * nt), np.int8)
    padded[:k, :n] = weight
    split = padded.reshape(groups, GROUP, panels, nt)
    return np.ascontiguousarray(split.transpose(2, 0, 3, 1)).reshape(panels, groups, nt * GROUP)


@dataclass(frozen=True)
class IntegerMatMul:
    """`(A - a_zero) · (W - w_zero)`: A[..., M, K] uint8 or int8, W packed int8 → int32 [..., M, N].

    The zero points are taken out of the sums afterwards: by the columns' sums of W, which are
    constants, and the rows' sums of A.
    """

    a_shape: tuple[int, ...]
    signed: bool
    tiles: Tiles

    @classmethod
    def default(
        cls, a_shape: tuple[int, ...], n: int, nt: int, threads: int, *, signed: bool
    ) -> IntegerMatMul:
        """The template for `a_shape` with tiles from the cost model; `signed` says A is int8."""
        batch_dims, m = split_rows(a_shape[:-1])
        batch, k = math.prod(batch_dims), a_shape[-1]
        columns = batch * -(-n // nt)
        mt = choose_mt(m, k // GROUP, nt, LANES, columns=columns, threads=threads)
        return cls(tuple(a_shape), signed, Tiles(batch, m, k, n, mt, nt, LANES, threads))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.a_shape[:-1], self.tiles.n)

    @property
    def _groups(self) -> int:
        return -(-self.tiles.k // GROUP)

    @property
    def _padded_rows(self) -> bool:
        return self.tiles.m % self.tiles.mt != 0

    def compute(
        self,
        a: Any,
        w: Any,
        column_sums: Any | None = None,
        a_zero: Any | None = None,
        w_zero: Any | None = None,
    ) -> Any:
        """`column_sums` is int32 [N], the sums of W over K: needed with `a_zero` or a signed A.

        `a_zero` is a scalar or [1] of A's dtype; `w_zero` int8, a scalar, [1] or [N].
        """
        from tvm import te, tirx

        tiles, lead = self.tiles, self.a_shape[:-1]
        batch_dims, _ = split_rows(lead)
        row_axis = len(batch_dims)
        rows = self._rows(a)
        product = self._product(rows, w)
        sums = None if w_zero is None else self._row_sums(rows)
        # A signed A is shifted by 128 to be unsigned, and so is its zero point.
        shift = tirx.const(128 if self.signed else 0, "int32")

        def scalar(tensor: Any, n: Any) -> Any:
            wide = len(tensor.shape) > 0 and int(tensor.shape[0]) > 1
            return tensor(*[n if wide else 0][: len(tensor.shape)]).astype("int32")

        def untile(*index: Any) -> Any:
            f, n = ravel(index[:row_axis], batch_dims), index[-1]
            r = index[row_axis] if lead else 0
            value = product[f, r, n]
            zero = shift if a_zero is None else shift + scalar(a_zero, n)
            if column_sums is not None:
                value = value - zero * column_sums(n)
            if sums is not None:
                value = value - scalar(w_zero, n) * (sums(f, r) - zero * tiles.k)
            return value

        return te.compute(self.shape, untile, name=RESULT)

    def _rows(self, a: Any) -> Any:
        """A as unsigned bytes, its rows padded to whole groups and their number to whole tiles."""
        from tvm import te, tirx

        tiles, lead = self.tiles, self.a_shape[:-1]
        batch_dims, _ = split_rows(lead)
        units = [0] * (len(lead) - len(batch_dims) - 1)

        def element(f: Any, r: Any, k: Any) -> Any:
            if self._padded_rows:
                r = tirx.min(r, tirx.const(tiles.m - 1, "int32"))
            value = a(*[*unravel(f, batch_dims), r, *units][: len(lead)], k)
            if self.signed:
                value = tirx.bitwise_xor(tirx.reinterpret("uint8", value), tirx.const(128, "uint8"))
            if tiles.k % GROUP == 0:
                return value
            return tirx.if_then_else(k < tiles.k, value, tirx.const(0, "uint8"))

        shape = (tiles.batch, tiles.row_tiles * tiles.mt, self._groups * GROUP)
        return te.compute(shape, element, name=ROWS)

    def _product(self, rows: Any, w: Any) -> Any:
        """The sums of products, padded like the rows and the panels."""
        from tvm import te

        tiles = self.tiles
        shape = (tiles.batch, tiles.row_tiles * tiles.mt, tiles.panels * tiles.nt)
        return te.extern(
            [shape],
            [rows, w],
            lambda ins, outs: _tile_loop(tiles, self._groups, ins[0], ins[1], outs[0]),
            name=TILE,
            dtype=["int32"],
        )

    def _row_sums(self, rows: Any) -> Any:
        from tvm import te

        k = te.reduce_axis((0, self._groups * GROUP))
        return te.compute(
            (self.tiles.batch, self.tiles.m),
            lambda f, r: te.sum(rows[f, r, k].astype("int32"), axis=k),
            name=_SUMS,
        )

    def schedule(self, sch: Any) -> None:
        tiles = self.tiles
        names = {stages.block_name(sch, block) for block in stages.blocks(sch)}
        stages.inline_all(sch, {TILE, ROWS, _SUMS})
        stages.schedule_stage(sch, sch.get_sblock(ROWS), GROUP * LANES, tiles.threads)
        if _SUMS in names and tiles.parallel:
            sums = sch.get_sblock(_SUMS)
            sch.parallel(sch.fuse(*sch.get_loops(sums)[:2]))
        stages.schedule_stage(sch, stages.output_block(sch), LANES, tiles.threads)


def _tile_loop(tiles: Tiles, groups: int, rows: Any, w: Any, out: Any) -> Any:
    """The loop over tiles, as TIR."""
    from tvm import tirx

    item = tirx.Var("item", "int32")
    stacks = tiles.batch * tiles.row_tiles
    panel, f = item // stacks, item % stacks // tiles.row_tiles
    first = item % tiles.row_tiles * tiles.mt
    vectors = tiles.nt // LANES
    sums = tirx.decl_buffer((tiles.mt * vectors * LANES,), "int32", name="sums", scope="local")

    def lanes(start: Any, count: int) -> Any:
        return tirx.Ramp(start, 1, count)

    def at(i: int, v: int) -> Any:
        return [lanes(tirx.const((i * vectors + v) * LANES, "int32"), LANES)]

    def step(group: Any) -> Any:
        statements = []
        for i in range(tiles.mt):
            four = tirx.BufferLoad(rows, [f, first + i, lanes(group * GROUP, GROUP)])
            word = tirx.Broadcast(tirx.reinterpret("int32", four), LANES)
            left = tirx.reinterpret("int8x64", word)
            for v in range(vectors):
                start = tirx.const(v * LANES * GROUP, "int32")
                right = tirx.BufferLoad(w, [panel, group, lanes(start, LANES * GROUP)])
                total = tirx.BufferLoad(sums, at(i, v))
                dot = tirx.call_llvm_pure_intrin("int32x16", _DOT, total, left, right)
                statements.append(tirx.BufferStore(sums, dot, at(i, v)))
        return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]

    zero = tirx.Broadcast(tirx.const(0, "int32"), LANES)
    each = [(i, v) for i in range(tiles.mt) for v in range(vectors)]
    group = tirx.Var("group", "int32")
    body = [
        tirx.AllocBuffer(sums),
        *(tirx.BufferStore(sums, zero, at(i, v)) for i, v in each),
        tirx.For(group, 0, groups, tirx.ForKind.SERIAL, step(group)),
    ]
    for i, v in each:
        column = lanes(panel * tiles.nt + v * LANES, LANES)
        body.append(tirx.BufferStore(out, tirx.BufferLoad(sums, at(i, v)), [f, first + i, column]))
    kind = tirx.ForKind.PARALLEL if tiles.parallel else tirx.ForKind.SERIAL
    return tirx.For(item, 0, stacks * tiles.panels, kind, tirx.SeqStmt(body))
