"""Float32 matrix products, of sizes known when the kernel is made or only when it runs.

What enters: the extents (numbers or sizes), how they are cut (see `blocking`), where elements of A
and rows of B's panels are, and what to do with a finished vector of the result. What leaves: TIR
statements. Whole register tiles come first and test no bound; the rows that are left are a tile of
their own, or tiles of 4, 2 and 1 rows where their number is a symbol.

    for item in parallel(batch × N/columns × M/rows):
        for block of K: for panel: for tile: for k: mt × nt multiply-adds    sums wait in a strip
        for row: vectors of the result through the epilogue

While a block is multiplied, the next one is fetched from memory. A product with one block of K
writes each tile out as soon as it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent, product
from whitebox.kernels.cpu.affine import Index, Loop, expression
from whitebox.kernels.cpu.blocking import Blocking
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
from whitebox.kernels.cpu.register_tile import LINE_BYTES, Sums, prefetch

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
class Product:
    """`batch` products of `m`×`k` by `k`×`n`, in panels of `nt` columns.

    `groups` and `chunks` are the numbers of items along the panels and along the rows. In blocks of
    K only where panels lie in memory one after the other.
    """

    batch: tuple[Extent, ...]
    m: Extent
    k: Extent
    n: Extent
    panels: Extent
    groups: Extent
    chunks: Extent
    nt: int
    lanes: int
    threads: int
    blocking: Blocking

    def statements(self, a: Left, b: Panel, write: Write) -> Any:
        """The whole product; `write` stores a vector of it."""
        sizes = (*self.batch, self.groups, self.chunks)
        item, registers = new_var("item"), Registers()
        places = registers.places(item, sizes)
        *batch, group, chunk = (
            Index.of(Loop(size, "b", fixed=True, var=at))
            for size, at in zip(sizes, places, strict=True)
        )
        body = _Item(self, tuple(batch), group, chunk, a, b, write).statement()
        work = product((*self.batch, self.m, self.n, self.k))
        parallel = worth(work, _PARALLEL_WORK, self.threads)
        return share(item, product(sizes), sequence([*registers.statements, body]), parallel)


@dataclass(frozen=True)
class _Item:
    """The rows of one chunk in the panels of one group."""

    own: Product
    batch: Axes
    group: Index
    chunk: Index
    a: Left
    b: Panel
    write: Write

    @property
    def _width(self) -> int:
        """Columns of an item."""
        return self.own.nt * self.own.blocking.panels

    def statement(self) -> Any:
        own, cut = self.own, self.own.blocking
        registers = Registers()
        size, step = tirx.const(cut.rows, "int32"), tirx.const(cut.mt, "int32")
        start = registers.keep(self.chunk.expr * size)
        left = registers.keep(tirx.min(size, expression(own.m) - start))
        rest = registers.keep(tirx.truncmod(left, step))
        first = self.group * cut.panels
        count = _const(cut.panels)
        if not isinstance(own.panels, int) or own.panels % cut.panels:
            count = registers.keep(tirx.min(count, expression(own.panels) - first.expr))
        part = _Part(self, start, left, rest, first, count)
        return sequence([*registers.statements, *part.statements()])


@dataclass(frozen=True)
class _Part:
    """`left` rows from `start` on, `rest` of them no whole tile; `count` panels from `first` on."""

    item: _Item
    start: Any
    left: Any
    rest: Any
    first: Index
    count: Any

    def statements(self) -> list[Any]:
        own, cut = self.item.own, self.item.own.blocking
        panel = Loop(cut.panels, "p", fixed=True)
        if cut.depth is None:
            return [loop_over(panel.var, self.count, self._tiles(self._whole_tile(panel)))]
        assert isinstance(own.k, int)
        steps, width = -(-own.k // cut.depth), self.item._width
        strip = tirx.decl_buffer((cut.rows * width,), "float32", name="strip", scope="local")
        block, vector, row = Loop(steps, "block", fixed=True), new_var("v"), new_var("row")
        lanes = own.lanes
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        clear = tirx.BufferStore(strip, zero, [tirx.Ramp(vector * lanes, 1, lanes)])
        tiles = self._tiles(self._block_tile(panel, block, strip))
        column = self.first.expr * own.nt
        return [
            tirx.AllocBuffer(strip),
            loop_over(vector, self.left * (width // lanes), clear),
            loop_over(block.var, steps, loop_over(panel.var, self.count, tiles)),
            loop_over(row, self.left, self._write_row(self.start + row, column, strip, row, width)),
        ]

    def _tiles(self, tile: Callable[[Any, int, Any], Any]) -> Any:
        """All tiles of rows; `tile(first, rows, number)` starts at row `first` of the item."""
        own, height = self.item.own, self.item.own.blocking.mt
        number, step = new_var("t"), _const(self.item.own.blocking.mt)
        whole = tile(number * step, height, number)
        statements = [loop_over(number, tirx.truncdiv(self.left, step), whole)]
        done = self.left - self.rest
        if isinstance(own.m, int):
            # `rows` is a number of whole tiles: only the last chunk has a rest, always the same.
            some = self.rest > _const(0)
            if own.m % height:
                statements.append(tirx.IfThenElse(some, tile(done, own.m % height, None), None))
            return sequence(statements)
        count = 1 << (height.bit_length() - 1)
        while count:
            if count < height:
                first = done + tirx.bitwise_and(self.rest, _const(-2 * count))
                some = tirx.bitwise_and(self.rest, _const(count)) > _const(0)
                statements.append(tirx.IfThenElse(some, tile(first, count, None), None))
            count //= 2
        return sequence(statements)

    def _whole_tile(self, panel: Loop) -> Callable[[Any, int, Any], Any]:
        """Tiles whose sums are in registers over all of K, and then are written out."""
        own = self.item.own
        at = self.first + Index.of(panel)

        def tile(first: Any, rows: int, number: Any) -> Any:
            held = tirx.decl_buffer((rows * own.nt,), "float32", name="tile", scope="local")
            k, row = Loop(own.k, "k", fixed=True), new_var("i")
            sums = Sums(rows, own.nt, own.lanes)
            zero = tirx.Broadcast(tirx.const(0, "float32"), own.lanes)
            write = self._write_row(self.start + first + row, at.expr * own.nt, held, row, own.nt)
            return sequence(
                [
                    tirx.AllocBuffer(held),
                    *sums.start(lambda i, v: zero),
                    loop_over(k.var, own.k, self._added(sums, rows, first, at, [Index.of(k)])),
                    *sums.store(held, lambda i, v: _const(i * own.nt + v * own.lanes)),
                    loop_over(row, rows, write),
                ]
            )

        return tile

    def _block_tile(self, panel: Loop, block: Loop, strip: Any) -> Callable[[Any, int, Any], Any]:
        """Tiles whose sums over a block of K are added to those of the blocks before."""
        own, depth = self.item.own, self.item.own.blocking.depth
        assert depth is not None and isinstance(own.k, int)
        at = self.first + Index.of(panel)
        unroll = 2 if own.k % depth == 0 and depth % 2 == 0 else 1
        extent: Any = depth // unroll
        if own.k % depth:
            extent = tirx.min(_const(depth), _const(own.k) - block.var * depth)

        def tile(first: Any, rows: int, number: Any) -> Any:
            k = Loop(depth // unroll, "k", fixed=True)
            from_block = Index.of(block) * depth + Index.of(k) * unroll
            sums = Sums(rows, own.nt, own.lanes)

            def place(i: int, v: int) -> Any:
                return (first + i) * self.item._width + (panel.var * own.nt + v * own.lanes)

            def load(i: int, v: int) -> Any:
                return tirx.BufferLoad(strip, [tirx.Ramp(place(i, v), 1, own.lanes)])

            steps = [from_block + u for u in range(unroll)]
            body = [
                *sums.start(load),
                loop_over(k.var, extent, self._added(sums, rows, first, at, steps)),
                *sums.store(strip, place),
            ]
            if number is not None:
                body.insert(0, self._fetch_rows(panel, block, number))
                body.insert(0, self._fetch(panel, block, number))
            return sequence(body)

        return tile

    def _added(
        self, sums: Sums, rows: int, first: Any, panel: Index, steps: Sequence[Index]
    ) -> Any:
        """Products at some positions along K, for the rows of a tile from `first` on."""
        own, scope, statements = self.item.own, Scope(), []
        for k in steps:
            lefts = []
            for i in range(rows):
                row = Loop(own.m, "r", fixed=True)
                row.bind(self.start + first + _const(i))
                lefts.append(self.item.a(scope, self.item.batch, Index.of(row), k))
            statements += sums.add(lefts, *self.item.b(self.item.batch, panel, k))
        return sequence(statements)

    def _fetch(self, panel: Loop, block: Loop, number: Any) -> Any:
        """Have a tile's share of the next block on its way: it will be read tile after tile."""
        own, depth = self.item.own, self.item.own.blocking.depth
        assert depth is not None and isinstance(own.k, int)
        where = self.first + Index.of(panel)
        buffer, begin = self.item.b(self.item.batch, where, Index.of(block) * depth)
        per_line = LINE_BYTES // buffer.dtype.itemsize
        tiles = own.blocking.rows // own.blocking.mt
        share_of_tile = -(-depth * own.nt // (per_line * tiles))
        line = new_var("line")
        # The next panel; after the last one of the item, its first one further down K; after the
        # last block of K, the next item's first panel.
        down = _const(depth) - (self.count - _const(1)) * own.k
        on = _const(own.k) - block.var * depth
        last = block.var == _const(-(-own.k // depth) - 1)
        wrapped = tirx.Select(last, on, down)
        ahead = tirx.Select(panel.var == self.count - _const(1), wrapped, _const(own.k))
        offset = begin.expr + ahead * own.nt + (number * share_of_tile + line) * per_line
        return loop_over(line, share_of_tile, prefetch(tirx.BufferLoad(buffer, [offset])))

    def _fetch_rows(self, panel: Loop, block: Loop, number: Any) -> Any:
        """Have A's rows of the next tile on their way, where a block of them is read first."""
        own, depth = self.item.own, self.item.own.blocking.depth
        assert depth is not None and isinstance(own.k, int)
        line, scope = Loop(-(-depth * 4 // LINE_BYTES), "line", fixed=True), Scope()
        k = Index.of(block) * depth + Index.of(line) * (LINE_BYTES // 4)
        fetches = []
        for i in range(own.blocking.mt):
            row = Loop(own.m, "r", fixed=True)
            row.bind(self.start + (number + _const(1)) * own.blocking.mt + _const(i))
            fetches.append(prefetch(self.item.a(scope, self.item.batch, Index.of(row), k)))
        loop = loop_over(line.var, line.extent, sequence(fetches))
        return tirx.IfThenElse(panel.var == _const(0), loop, None)

    def _write_row(self, row: Any, column: Any, held: Any, held_row: Any, width: int) -> Any:
        """A finished row, from `column` on, through the epilogue, vector by vector."""
        own = self.item.own
        row_loop, column_loop = Loop(own.m, "r", fixed=True), Loop(own.n, "j", fixed=True)
        row_loop.bind(row)
        axes = (*self.item.batch, Index.of(row_loop), Index.of(column_loop))

        def piece(at: Any, lanes: int) -> Any:
            lane = new_var("v") if lanes > 1 else _const(0)
            column_loop.bind(column + at + lane)
            value = tirx.BufferLoad(held, [held_row * _const(width) + at + lane])
            scope = TileScope(lane, lanes, axes, value)
            return scope.loop(self.item.write(scope, axes))

        lanes = _const(own.lanes)
        vector, one = new_var("v"), new_var("j")
        whole = piece(vector * lanes, own.lanes)
        if isinstance(own.n, int) and own.n % width == 0:
            return loop_over(vector, width // own.lanes, whole)
        count = tirx.min(_const(width), expression(own.n) - column)
        pieces = [loop_over(vector, tirx.truncdiv(count, lanes), whole)]
        if not isinstance(own.n, int) or own.n % own.lanes:
            rest = tirx.truncmod(count, lanes)
            pieces.append(loop_over(one, rest, piece(count - rest + one, 1)))
        return sequence(pieces)


def _const(value: int) -> Any:
    return tirx.const(value, "int32")
