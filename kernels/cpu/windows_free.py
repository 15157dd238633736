"""Convolution and pooling on channel-blocked data whose extents are known only when they run.

What enters: the geometry of the windows (H, W and the batch may be sizes), what one tap adds to a
tile of results, and what to do with a finished vector. What leaves: TIR statements. Nothing is
copied to be padded: taps above and below the data are left out of the loop over them, and a tile
of columns that reaches over the left or right border, or past the last column, tests its columns
one by one, in code of its own.

    for item in parallel(batch × channel tile × row [× piece of a row]):
        for tile of columns: registers = start
            for channels, rows and columns of the window: registers += tap
            registers → stack → vectors of the result through the epilogue
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent, product
from whitebox.kernels.cpu.affine import Index, Loop, expression
from whitebox.kernels.cpu.conv_tiling import Tile
from whitebox.kernels.cpu.nest import Axes, Registers, loop_over, new_var, sequence, share, worth
from whitebox.kernels.cpu.product import TileScope, Write

# Multiply-adds of vectors from which a parallel launch pays.
_PARALLEL_WORK = 50_000
# Tiles of columns that one thread takes at a time where a row is all of the image.
_PIECE = 16


def number(value: int) -> Any:
    """An int32 constant."""
    return tirx.const(value, "int32")


@dataclass(frozen=True)
class Taps:
    """What a tap reads: one row of the data at the input columns `columns`.

    `inside[t]` says whether column `t` lies in the data, None where all do.
    """

    batch: Any
    row: Any
    columns: list[Any]
    inside: list[Any] | None

    def guarded(self, t: int, value: Any, otherwise: Any) -> Any:
        """A value read at column `t`, or what counts outside of the data."""
        return value if self.inside is None else tirx.Select(self.inside[t], value, otherwise)


# (sums, channel tile, group of input channels, kernel row, kernel column, taps) → statements.
Step = Callable[[Any, Any, Any, Any, Any, Taps], list[Any]]


@dataclass(frozen=True)
class FreeWindows:
    """Windows of `kernel` over data of `size`, for `blocks` channel blocks of results.

    `groups` is how often a tap runs for each position of the window (over input channels), `pieces`
    in how many pieces a row is taken, `start` what registers hold before the first tap.
    """

    batch: Extent
    blocks: int
    size: tuple[Extent, Extent]
    out: tuple[Extent, Extent]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    groups: int
    steps: int
    pieces: Extent
    tile: Tile
    lanes: int
    threads: int
    start: float = 0.0

    @staticmethod
    def piece_columns(tile: Tile) -> int:
        """Columns in a piece of a row."""
        return tile.columns * _PIECE

    def statements(self, step: Step, write: Write) -> Any:
        """All windows; `write` stores a vector of the result at (n, block, row, column, lane)."""
        channel_tiles = -(-self.blocks // self.tile.vectors)
        sizes = (self.batch, channel_tiles, self.out[0], self.pieces)
        item, registers = new_var("item"), Registers()
        n, o, h, piece = registers.places(item, sizes)
        taps = self.kernel[0] * self.kernel[1] * self.groups * self.steps
        work = product((self.batch, self.blocks, *self.out, taps))
        body = sequence([*registers.statements, *self._row(n, o, h, piece, step, write)])
        parallel = worth(work, _PARALLEL_WORK, self.threads)
        return share(item, product(sizes), body, parallel)

    def _row(self, n: Any, o: Any, h: Any, piece: Any, step: Step, write: Write) -> list[Any]:
        """The tiles of one piece of a row."""
        columns = number(self.tile.columns)
        width = expression(self.out[1])
        registers, inner, tile = Registers(), Registers(), new_var("t")
        begin = number(0) if self.pieces == 1 else piece * number(self.piece_columns(self.tile))
        left = width - begin
        if self.pieces != 1:
            left = tirx.min(left, number(self.piece_columns(self.tile)))
        top = registers.keep(h * number(self.strides[0]) - number(self.pads[0]))
        height, dh, rows = expression(self.size[0]), self.dilations[0], number(self.kernel[0])
        before = tirx.truncdiv(tirx.max(number(0) - top, number(0)) + number(dh - 1), number(dh))
        past = tirx.truncdiv(tirx.max(height - top, number(0)) + number(dh - 1), number(dh))
        low = registers.keep(tirx.min(before, rows))
        high = registers.keep(tirx.max(tirx.min(past, rows), low))
        first = inner.keep(begin + tile * columns)
        body = self._tile(n, o, h, (low, high), top, first, step, write)
        tiles = tirx.truncdiv(left + number(self.tile.columns - 1), columns)
        return [
            *registers.statements,
            loop_over(tile, tiles, sequence([*inner.statements, *body])),
        ]

    def _tile(
        self, n: Any, o: Any, h: Any, rows: tuple[Any, Any], top: Any, first: Any,
        step: Step, write: Write,
    ) -> list[Any]:  # fmt: skip
        """One tile: the code for the inside of the data, that for its borders, the write-out."""
        (columns, vectors), lanes = (self.tile.columns, self.tile.vectors), self.lanes
        extent = columns * vectors * lanes
        sums = tirx.decl_buffer((extent,), "float32", name="sums", scope="local")
        held = tirx.decl_buffer((extent,), "float32", name="tile", scope="local")
        slots = [tirx.Ramp(k * lanes, 1, lanes) for k in range(columns * vectors)]
        start = tirx.Broadcast(tirx.const(self.start, "float32"), lanes)

        def computed(border: bool) -> Any:
            return sequence(
                [
                    *(tirx.BufferStore(sums, start, [slot]) for slot in slots),
                    self._reduced(sums, n, o, rows, top, first, step, border),
                    *(
                        tirx.BufferStore(held, tirx.BufferLoad(sums, [slot]), [slot])
                        for slot in slots
                    ),
                ]
            )

        (_, sw), (_, left), (_, dw) = self.strides, self.pads, self.dilations
        reach = (columns - 1) * sw + (self.kernel[1] - 1) * dw - left
        inside = tirx.And(
            first * number(sw) >= number(left),
            tirx.And(
                first * number(sw) + number(reach) < expression(self.size[1]),
                first + number(columns) <= expression(self.out[1]),
            ),
        )
        return [
            tirx.AllocBuffer(sums),
            tirx.AllocBuffer(held),
            tirx.IfThenElse(inside, computed(False), computed(True)),
            self._write_out(n, o, h, first, held, write),
        ]

    def _reduced(
        self, sums: Any, n: Any, o: Any, rows: tuple[Any, Any], top: Any, first: Any,
        step: Step, border: bool,
    ) -> Any:  # fmt: skip
        """The loops over the window and the input channels."""
        (_, sw), (_, left), (dh, dw) = self.strides, self.pads, self.dilations
        group, row, column = new_var("g"), new_var("kh"), new_var("kw")
        last_out = expression(self.out[1]) - number(1)
        last_in = expression(self.size[1]) - number(1)
        columns, inside = [], []
        for t in range(self.tile.columns):
            at = first + number(t)
            if border:
                at = tirx.min(at, last_out)
            at = at * number(sw) + column * number(dw) - number(left)
            if border:
                inside.append(tirx.And(at >= number(0), at <= last_in))
                at = tirx.max(tirx.min(at, last_in), number(0))
            columns.append(at)
        kh = rows[0] + row
        taps = Taps(n, top + kh * number(dh), columns, inside if border else None)
        body = sequence(step(sums, o, group, kh, column, taps))
        body = loop_over(column, self.kernel[1], body)
        body = loop_over(row, rows[1] - rows[0], body)
        return loop_over(group, self.groups, body)

    def _write_out(self, n: Any, o: Any, h: Any, first: Any, held: Any, write: Write) -> Any:
        """The finished columns through the epilogue, a vector of channels at a time."""
        vectors, lanes = self.tile.vectors, self.lanes
        t = new_var("t")
        count = tirx.min(number(self.tile.columns), expression(self.out[1]) - first)
        pieces = []
        for v in range(vectors):
            block = o * number(vectors) + number(v)
            lane = new_var("c")
            axes = self._axes(n, block, h, first + t, lane)
            place = (t * number(vectors) + number(v)) * number(lanes) + lane
            scope = TileScope(lane, lanes, axes, tirx.BufferLoad(held, [place]))
            piece = scope.loop(write(scope, axes))
            if self.blocks % vectors:
                piece = tirx.IfThenElse(block < number(self.blocks), piece, None)
            pieces.append(piece)
        return loop_over(t, count, sequence(pieces))

    def _axes(self, n: Any, block: Any, h: Any, column: Any, lane: Any) -> Axes:
        extents: Sequence[Extent] = (self.batch, self.blocks, *self.out, self.lanes)
        positions = (n, block, h, column, lane)
        loops = [
            Loop(size, "x", fixed=True, var=at) for size, at in zip(extents, positions, strict=True)
        ]
        return tuple(map(Index.of, loops))


def vector_at(buffer: Any, at: Any, lanes: int) -> Any:
    """The vector of `lanes` elements of a buffer that begins at `at`."""
    return tirx.BufferLoad(buffer, [tirx.Ramp(at, 1, lanes)])


def place(indices: Sequence[Any], shape: Sequence[Extent]) -> Any:
    """The position of an element in a compact array."""
    total: Any = None
    for at, size in zip(indices, shape, strict=True):
        total = at if total is None else total * expression(size) + at
    return total
