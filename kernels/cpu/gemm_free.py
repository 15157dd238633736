"""Matrix products whose extents are known only when the kernel runs.

What enters: the extents (numbers or sizes), where elements of A and rows of B's panels are, and
what to do with a finished vector of the result. What leaves: TIR statements. The register tile is
that of `gemm_tiles`; nothing of it depends on a symbol. Whole tiles come first and test no bound;
the rows that are left are taken in tiles of 4, 2 and 1 rows.

    for item in parallel(N/nt × batch × M/chunk):       a panel of B stays in cache over its rows
        for tile in chunk: for k: rows × nt multiply-adds
        tile → stack → for rows: vectors of the result through the epilogue
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent, product
from whitebox.kernels.cpu.affine import Index, Loop, expression
from whitebox.kernels.cpu.gemm_tiles import choose_mt
from whitebox.kernels.cpu.nest import (
    Axes,
    Registers,
    Scope,
    loop_over,
    new_var,
    sequence,
    share,
    worth,
)

# Tiles of rows that one thread takes at a time.
_CHUNK = 8
# Multiply-adds from which a parallel launch pays.
_PARALLEL_WORK = 400_000


class TileScope(Scope):
    """The scope of a vector of a result that is in registers: `value` at the indices `axes`."""

    def __init__(self, lane: Any, lanes: int, axes: Axes, value: Any) -> None:
        super().__init__(lane, lanes)
        self.axes = axes
        self.value = value


Write = Callable[[TileScope, Axes], list[Any]]
# (batch, row, k) → the element of A; (batch, panel, k) → B's buffer and where `nt` columns begin.
Left = Callable[[Scope, Axes, Index, Index], Any]
Panel = Callable[[Axes, Index, Index], tuple[Any, Index]]


@dataclass(frozen=True)
class FreeProduct:
    """`batch` products of `m`×`k` by `k`×`n`, in panels of `nt` columns.

    `panels` and `chunks` are the numbers of panels and of chunks of `chunk_rows` rows, rounded up.
    """

    batch: tuple[Extent, ...]
    m: Extent
    k: Extent
    n: Extent
    panels: Extent
    chunks: Extent
    nt: int
    lanes: int
    threads: int

    @staticmethod
    def chunk_rows(nt: int, lanes: int) -> int:
        """How many rows make a chunk."""
        return _CHUNK * _tile_rows(nt, lanes)

    def statements(self, a: Left, b: Panel, write: Write) -> Any:
        """The whole product; `write` stores a vector of it."""
        sizes = (*self.batch, self.panels, self.chunks)
        item, registers = new_var("item"), Registers()
        places = registers.places(item, sizes)
        *batch, panel, chunk = (
            Index.of(Loop(size, "b", fixed=True, var=at))
            for size, at in zip(sizes, places, strict=True)
        )
        body = self._chunk(tuple(batch), panel, chunk, a, b, write)
        work = product((*self.batch, self.m, self.n, self.k))
        parallel = worth(work, _PARALLEL_WORK, self.threads)
        return share(item, product(sizes), sequence([*registers.statements, body]), parallel)

    def _chunk(
        self, batch: Axes, panel: Index, chunk: Index, a: Left, b: Panel, write: Write
    ) -> Any:
        """The rows of one chunk in one panel."""
        height = _tile_rows(self.nt, self.lanes)
        size = tirx.const(self.chunk_rows(self.nt, self.lanes), "int32")
        step = tirx.const(height, "int32")
        registers, tile = Registers(), new_var("t")
        start = registers.keep(chunk.expr * size)
        left = registers.keep(tirx.min(size, expression(self.m) - start))
        rest = registers.keep(tirx.truncmod(left, step))
        done = registers.keep(start + left - rest)

        def rows(first: Any, count: int) -> Any:
            return self._tile(batch, panel, first, count, a, b, write)

        whole = rows(start + tile * step, height)
        statements = [*registers.statements, loop_over(tile, tirx.truncdiv(left, step), whole)]
        count = 1 << (height.bit_length() - 1)
        while count:
            if count < height:
                mask = tirx.const(-2 * count, "int32")
                first = done + tirx.bitwise_and(rest, mask)
                some = tirx.bitwise_and(rest, tirx.const(count, "int32"))
                statements.append(
                    tirx.IfThenElse(some > tirx.const(0, "int32"), rows(first, count), None)
                )
            count //= 2
        return sequence(statements)

    def _tile(
        self, batch: Axes, panel: Index, first: Any, rows: int, a: Left, b: Panel, write: Write
    ) -> Any:
        """`rows` × `nt` results: sums in registers over the whole of K, then on the stack."""
        lanes, vectors = self.lanes, self.nt // self.lanes
        sums = tirx.decl_buffer((rows * self.nt,), "float32", name="sums", scope="local")
        held = tirx.decl_buffer((rows * self.nt,), "float32", name="tile", scope="local")

        def slot(i: int, v: int) -> Any:
            return tirx.Ramp(i * self.nt + v * lanes, 1, lanes)

        places = [(i, v) for i in range(rows) for v in range(vectors)]
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        step = Loop(self.k, "k", fixed=True)
        buffer, begin = b(batch, panel, Index.of(step))
        scope = Scope()
        lefts = []
        for i in range(rows):
            row = Loop(self.m, "r", fixed=True)
            row.bind(first + tirx.const(i, "int32"))
            lefts.append(a(scope, batch, Index.of(row), Index.of(step)))
        rights = [
            tirx.BufferLoad(buffer, [tirx.Ramp((begin + v * lanes).expr, 1, lanes)])
            for v in range(vectors)
        ]
        added = [
            tirx.BufferStore(
                sums,
                tirx.BufferLoad(sums, [slot(i, v)]) + tirx.Broadcast(lefts[i], lanes) * rights[v],
                [slot(i, v)],
            )
            for i, v in places
        ]
        return sequence(
            [
                tirx.AllocBuffer(sums),
                tirx.AllocBuffer(held),
                *(tirx.BufferStore(sums, zero, [slot(i, v)]) for i, v in places),
                loop_over(step.var, self.k, sequence(added)),
                *(
                    tirx.BufferStore(held, tirx.BufferLoad(sums, [slot(i, v)]), [slot(i, v)])
                    for i, v in places
                ),
                self._write_out(batch, panel, first, rows, held, write),
            ]
        )

    def _write_out(
        self, batch: Axes, panel: Index, first: Any, rows: int, held: Any, write: Write
    ) -> Any:
        """The finished tile through the epilogue, one vector at a time in a rolled loop."""
        i = new_var("i")
        row, column = Loop(self.m, "r", fixed=True), Loop(self.n, "j", fixed=True)
        row.bind(first + i)
        axes = (*batch, Index.of(row), Index.of(column))
        start = panel.expr * tirx.const(self.nt, "int32")

        def piece(at: Any, width: int) -> Any:
            lane = new_var("v") if width > 1 else tirx.const(0, "int32")
            column.bind(start + at + lane)
            value = tirx.BufferLoad(held, [i * tirx.const(self.nt, "int32") + at + lane])
            scope = TileScope(lane, width, axes, value)
            return scope.loop(write(scope, axes))

        lanes = tirx.const(self.lanes, "int32")
        vector, one = new_var("v"), new_var("j")
        whole = piece(vector * lanes, self.lanes)
        if isinstance(self.n, int) and self.n % self.nt == 0:
            return loop_over(i, rows, loop_over(vector, self.nt // self.lanes, whole))
        count = tirx.min(tirx.const(self.nt, "int32"), expression(self.n) - start)
        pieces = [loop_over(vector, tirx.truncdiv(count, lanes), whole)]
        if not isinstance(self.n, int) or self.n % self.lanes:
            rest = tirx.truncmod(count, lanes)
            pieces.append(loop_over(one, rest, piece(count - rest + one, 1)))
        return loop_over(i, rows, sequence(pieces))


def _tile_rows(nt: int, lanes: int) -> int:
    """Rows of the register tile: the most, which suits every longer product."""
    return choose_mt(1 << 12, 1, nt, lanes, columns=1, threads=1)
