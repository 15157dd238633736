"""The template for products of 8-bit integers with packed weights, for CPUs with AVX2 or better.

Enters: shapes, then TE tensors. Leaves: a TE tensor named "matmul", int32, and a schedule for a
function that holds it, optional producers of A, and an elementwise epilogue (often the scaling
to float32). The packing of weights needs no TVM. Nothing here knows a Graph.

    A → as the instruction takes it, padded to whole tiles and groups
    for item in parallel(N/nt × batch × M/mt):
        for group along K: mt × nt/lanes instructions               TIR written out
    result = epilogue(sums - zero points)                           over whole rows

With VNNI, an instruction multiplies unsigned by signed bytes and adds groups of four into 32 bits.
Without it, both are widened to 16 bits, and groups are of two. AVX2 can multiply bytes as well, but
adds pairs of them in 16 bits, where 255 · 127 · 2 does not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from whitebox.kernels.cpu import stages
from whitebox.kernels.cpu.gemm_operands import ravel, split_rows, unravel
from whitebox.kernels.cpu.gemm_tiles import RESULT, ROWS, TILE, Tiles, choose_mt

_SUMS = "row_sums"
_BYTES = {16: "llvm.x86.avx512.vpdpbusd.512"}
_WORDS = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}


def pack_integer_panels(weight: np.ndarray, nt: int, group: int) -> np.ndarray:
    """int8 `[K, N]` → `[ceil(N/nt), ceil(K/group), nt · group]`, zero-padded.

    Unsigned weights are to be shifted by -128 first, and their zero point with them.
    """
    k, n = weight.shape
    groups, panels = -(-k // group), -(-n // nt)
    padded = np.zeros((groups * group, panels * nt), np.int8)
    padded[:k, :n] = weight
    split = padded.reshape(groups, group, panels, nt)
    return np.ascontiguousarray(split.transpose(2, 0, 3, 1)).reshape(panels, groups, nt * group)


@dataclass(frozen=True)
class IntegerMatMul:
    """`(A - a_zero) · (W - w_zero)`: A[..., M, K] uint8 or int8, W packed int8 → int32 [..., M, N].

    The zero points are taken out of the sums afterwards: by the columns' sums of W, which are
    constants, and the rows' sums of A. `group` is 4 with VNNI, and 2 without.
    """

    a_shape: tuple[int, ...]
    signed: bool
    group: int
    tiles: Tiles

    @classmethod
    def default(
        cls,
        a_shape: tuple[int, ...],
        n: int,
        nt: int,
        lanes: int,
        threads: int,
        *,
        group: int,
        signed: bool,
    ) -> IntegerMatMul:
        """The template for `a_shape` with tiles from the cost model; `signed` says A is int8."""
        batch_dims, m = split_rows(a_shape[:-1])
        batch, k = math.prod(batch_dims), a_shape[-1]
        columns = batch * -(-n // nt)
        mt = choose_mt(m, k // group, nt, lanes, columns=columns, threads=threads)
        return cls(tuple(a_shape), signed, group, Tiles(batch, m, k, n, mt, nt, lanes, threads))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.a_shape[:-1], self.tiles.n)

    @property
    def _groups(self) -> int:
        return -(-self.tiles.k // self.group)

    @property
    def _unsigned(self) -> bool:
        """Whether the instruction takes A as unsigned bytes, and not as 16-bit integers."""
        return self.group == 4

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
        """`column_sums` is int32 [N], the sums of W over K.

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
        shift = tirx.const(128 if self.signed and self._unsigned else 0, "int32")

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
        """A for the instruction, rows padded to whole groups and their number to whole tiles."""
        from tvm import te, tirx

        tiles, lead = self.tiles, self.a_shape[:-1]
        batch_dims, _ = split_rows(lead)
        units = [0] * (len(lead) - len(batch_dims) - 1)

        def element(f: Any, r: Any, k: Any) -> Any:
            if self._padded_rows:
                r = tirx.min(r, tirx.const(tiles.m - 1, "int32"))
            value = a(*[*unravel(f, batch_dims), r, *units][: len(lead)], k)
            if not self._unsigned:
                value = value.astype("int16")
            elif self.signed:
                value = tirx.bitwise_xor(tirx.reinterpret("uint8", value), tirx.const(128, "uint8"))
            if tiles.k % self.group == 0:
                return value
            return tirx.if_then_else(k < tiles.k, value, tirx.const(0, value.ty.dtype))

        shape = (tiles.batch, tiles.row_tiles * tiles.mt, self._groups * self.group)
        return te.compute(shape, element, name=ROWS)

    def _product(self, rows: Any, w: Any) -> Any:
        """The sums of products, padded like the rows and the panels."""
        from tvm import te

        tiles = self.tiles
        shape = (tiles.batch, tiles.row_tiles * tiles.mt, tiles.panels * tiles.nt)
        return te.extern(
            [shape],
            [rows, w],
            lambda ins, outs: self._tile_loop(ins[0], ins[1], outs[0]),
            name=TILE,
            dtype=["int32"],
        )

    def _row_sums(self, rows: Any) -> Any:
        from tvm import te

        k = te.reduce_axis((0, self._groups * self.group))
        return te.compute(
            (self.tiles.batch, self.tiles.m),
            lambda f, r: te.sum(rows[f, r, k].astype("int32"), axis=k),
            name=_SUMS,
        )

    def schedule(self, sch: Any) -> None:
        tiles = self.tiles
        names = {stages.block_name(sch, block) for block in stages.blocks(sch)}
        stages.inline_all(sch, {TILE, ROWS, _SUMS})
        stages.schedule_stage(sch, sch.get_sblock(ROWS), self.group * tiles.lanes, tiles.threads)
        if _SUMS in names and tiles.parallel:
            sums = sch.get_sblock(_SUMS)
            sch.parallel(sch.fuse(*sch.get_loops(sums)[:2]))
        stages.schedule_stage(sch, stages.output_block(sch), tiles.lanes, tiles.threads)

    def _tile_loop(self, rows: Any, w: Any, out: Any) -> Any:
        """The loop over tiles, as TIR."""
        from tvm import tirx

        from whitebox.kernels.cpu.nest import sequence

        tiles, lanes = self.tiles, self.tiles.lanes
        item, group = tirx.Var("item", "int32"), tirx.Var("group", "int32")
        stacks = tiles.batch * tiles.row_tiles
        panel, f = item // stacks, item % stacks // tiles.row_tiles
        first = item % tiles.row_tiles * tiles.mt
        places = [(i, v) for i in range(tiles.mt) for v in range(tiles.nt // lanes)]
        sums = tirx.decl_buffer((len(places) * lanes,), "int32", name="sums", scope="local")

        def at(number: int) -> Any:
            return [tirx.Ramp(tirx.const(number * lanes, "int32"), 1, lanes)]

        def step(number: int, i: int, v: int) -> Any:
            few = tirx.Ramp(group * self.group, 1, self.group)
            left = tirx.BufferLoad(rows, [f, first + i, few])
            many = tirx.Ramp(tirx.const(v * lanes * self.group, "int32"), 1, lanes * self.group)
            right = tirx.BufferLoad(w, [panel, group, many])
            total = self._add_products(tirx.BufferLoad(sums, at(number)), left, right)
            return tirx.BufferStore(sums, total, at(number))

        def write(number: int, i: int, v: int) -> Any:
            column = tirx.Ramp(panel * tiles.nt + v * lanes, 1, lanes)
            total = tirx.BufferLoad(sums, at(number))
            return tirx.BufferStore(out, total, [f, first + i, column])

        zero = tirx.Broadcast(tirx.const(0, "int32"), lanes)
        steps = [step(number, *place) for number, place in enumerate(places)]
        body = [
            tirx.AllocBuffer(sums),
            *(tirx.BufferStore(sums, zero, at(number)) for number in range(len(places))),
            tirx.For(group, 0, self._groups, tirx.ForKind.SERIAL, sequence(steps)),
            *(write(number, *place) for number, place in enumerate(places)),
        ]
        kind = tirx.ForKind.PARALLEL if tiles.parallel else tirx.ForKind.SERIAL
        return tirx.For(item, 0, stacks * tiles.panels, kind, sequence(body))

    def _add_products(self, total: Any, left: Any, right: Any) -> Any:
        """`total` and in each lane the sum of a group of products: `left` is the same for all."""
        from tvm import tirx

        lanes = self.tiles.lanes
        word = tirx.Broadcast(tirx.reinterpret("int32", left), lanes)
        sums = f"int32x{lanes}"
        if self._unsigned:
            left = tirx.reinterpret(f"int8x{4 * lanes}", word)
            return tirx.call_llvm_pure_intrin(sums, _BYTES[lanes], total, left, right)
        wide = f"int16x{2 * lanes}"
        left, right = tirx.reinterpret(wide, word), tirx.Cast(wide, right)
        return total + tirx.call_llvm_pure_intrin(sums, _WORDS[lanes], left, right)
