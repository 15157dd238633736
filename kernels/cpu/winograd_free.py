"""Winograd convolution on data whose height, width and batch are known only when it runs.

What enters: the geometry (sizes may be symbols), the data, the transformed weights, and what to do
with a finished vector. What leaves: TIR statements. Tiles of all images are taken in groups of a
fixed number, so that all scratch has a fixed size; the last group repeats its last tile to fill a
register tile, and does not write it again.

    parallel groups of tiles:
        V[6, 6] = transformed 6x6 input tiles, for all input channels
        for channel tile:
            M[6, 6] = V[6, 6] x U[6, 6]                      36 products of matrices in registers
            for tile: results = transformed M, epilogue
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent, product
from whitebox.kernels.cpu.affine import Index, Loop, expression
from whitebox.kernels.cpu.conv_tiling import Tile
from whitebox.kernels.cpu.nest import Registers, loop_over, new_var, sequence, share, worth
from whitebox.kernels.cpu.product import TileScope, Write
from whitebox.kernels.cpu.windows_free import number, place, vector_at
from whitebox.kernels.cpu.winograd_transforms import (
    IN,
    INPUT_TRANSFORM,
    combined,
    output_transform,
)

# A group's transformed input should stay in a core's cache.
_GROUP_BYTES = 512 * 1024
_MOST_TILES = 48
_PARALLEL_WORK = 50_000


@dataclass(frozen=True)
class FreeWinograd:
    """`rows` × `across` tiles an image, in `groups` groups; a register tile is `tile`."""

    batch: Extent
    in_blocks: int
    out_blocks: int
    size: tuple[Extent, Extent]
    out: tuple[Extent, Extent]
    pads: tuple[int, int]
    kernel: int
    rows: Extent
    across: Extent
    groups: Extent
    tile: Tile
    lanes: int
    threads: int

    @staticmethod
    def group_tiles(tile: Tile, in_channels: int) -> int:
        """Tiles in a group: whole register tiles, as many as fit the cache."""
        most = min(_MOST_TILES, _GROUP_BYTES // (IN * IN * in_channels * 4))
        return max(most // tile.columns, 1) * tile.columns

    @property
    def _count(self) -> int:
        return self.group_tiles(self.tile, self.in_blocks * self.lanes)

    @property
    def _step(self) -> int:
        """Rows and columns that a tile writes."""
        return IN + 1 - self.kernel

    def statements(self, data: Any, weights: Any, write: Write) -> Any:
        """All groups."""
        group, lanes = new_var("group"), self.lanes
        channels = self.in_blocks * lanes
        v = _scratch(IN * IN * self._count * channels, "v")
        m = _scratch(IN * IN * self._count * self.tile.vectors * lanes, "m")
        t, o, registers = new_var("t"), new_var("o"), Registers()
        columns = number(self.tile.columns)
        some = self._tiles_in(group) + columns - number(1)
        pieces = registers.keep(tirx.truncdiv(some, columns))
        body = sequence(
            [
                tirx.AllocBuffer(v),
                tirx.AllocBuffer(m),
                *registers.statements,
                loop_over(t, pieces * columns, self._read(data, v, group, t)),
                loop_over(
                    o,
                    -(-self.out_blocks // self.tile.vectors),
                    sequence(
                        [
                            self._products(v, weights, m, o, pieces),
                            self._results(m, group, o, write),
                        ]
                    ),
                ),
            ]
        )
        work = product((self.batch, self.rows, self.across, 36, channels, self.out_blocks))
        parallel = worth(work, _PARALLEL_WORK, self.threads)
        return share(group, self.groups, body, parallel)

    def _where(self, group: Any, t: Any) -> tuple[list[Any], list[Any]]:
        """The image, the tile row and the tile column of a tile of a group."""
        last = expression(product((self.batch, self.rows, self.across))) - number(1)
        registers = Registers()
        at = registers.keep(tirx.min(group * number(self._count) + t, last))
        places = registers.places(at, (self.batch, self.rows, self.across))
        return registers.statements, places

    def _tiles_in(self, group: Any) -> Any:
        """The number of tiles of a group that are not repeated."""
        total = expression(product((self.batch, self.rows, self.across)))
        return tirx.min(number(self._count), total - group * number(self._count))

    def _read(self, data: Any, v: Any, group: Any, t: Any) -> Any:
        """One tile of the input, transformed: rows of it first, then columns."""
        found, (n, row, column) = self._where(group, t)
        lanes, half = self.lanes, _scratch(IN * IN * self.lanes, "half")
        block, i, j = new_var("block"), new_var("i"), new_var("j")
        shape = (self.batch, self.in_blocks, *self.size, lanes)
        height, width = map(expression, self.size)
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        y = row * number(self._step) - number(self.pads[0]) + i
        left = column * number(self._step) - number(self.pads[1])
        values = []
        for k in range(IN):
            x = left + number(k)
            inside = tirx.And(
                tirx.And(y >= number(0), y < height), tirx.And(x >= number(0), x < width)
            )
            safe = [
                tirx.max(tirx.min(a, b - number(1)), number(0))
                for a, b in ((y, height), (x, width))
            ]
            at = place((n, block, *safe, number(0)), shape)
            value = vector_at(data, at, lanes)
            values.append(tirx.Select(tirx.Broadcast(inside, lanes), value, zero))
        first = _transform(
            INPUT_TRANSFORM,
            values,
            half,
            lambda k: (i * number(IN) + number(k)) * number(lanes),
            lanes,
        )
        columns = [vector_at(half, (number(k * IN) + j) * number(lanes), lanes) for k in range(IN)]

        def to(k: int) -> Any:
            matrix = number(k * IN) + j
            return place(
                (matrix, t, block, number(0)), (IN * IN, self._count, self.in_blocks, lanes)
            )

        second = _transform(INPUT_TRANSFORM, columns, v, to, lanes)
        body = [tirx.AllocBuffer(half), loop_over(i, IN, first), loop_over(j, IN, second)]
        return sequence([*found, loop_over(block, self.in_blocks, sequence(body))])

    def _products(self, v: Any, weights: Any, m: Any, o: Any, pieces: Any) -> Any:
        """The products of one channel tile, in register tiles."""
        (columns, vectors), lanes = (self.tile.columns, self.tile.vectors), self.lanes
        matrix, piece, k = new_var("matrix"), new_var("piece"), new_var("k")
        channels = self.in_blocks * lanes
        sums = tirx.decl_buffer((columns * vectors * lanes,), "float32", name="sums", scope="local")
        slots = [tirx.Ramp(s * lanes, 1, lanes) for s in range(columns * vectors)]
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        rights = []
        for vector in range(vectors):
            at = place(
                (self._block(o, vector), matrix, k, number(0)), (1, IN * IN, channels, lanes)
            )
            rights.append(vector_at(weights, at, lanes))
        added, kept = [], []
        waiting = (IN * IN, self._count, vectors, lanes)
        for t in range(columns):
            tile = piece * number(columns) + number(t)
            left = tirx.BufferLoad(v, [place((matrix, tile, k), (IN * IN, self._count, channels))])
            for vector, right in enumerate(rights):
                slot = slots[t * vectors + vector]
                total = tirx.BufferLoad(sums, [slot]) + tirx.Broadcast(left, lanes) * right
                added.append(tirx.BufferStore(sums, total, [slot]))
                at = place((matrix, tile, number(vector), number(0)), waiting)
                kept.append(
                    tirx.BufferStore(m, tirx.BufferLoad(sums, [slot]), [tirx.Ramp(at, 1, lanes)])
                )
        body = sequence(
            [
                tirx.AllocBuffer(sums),
                *(tirx.BufferStore(sums, zero, [slot]) for slot in slots),
                loop_over(k, channels, sequence(added)),
                *kept,
            ]
        )
        body = loop_over(piece, pieces, body)
        return loop_over(matrix, IN * IN, body)

    def _block(self, o: Any, vector: int) -> Any:
        """A channel block of the result; the last one again past the end."""
        block = o * number(self.tile.vectors) + number(vector)
        if self.out_blocks % self.tile.vectors:
            block = tirx.min(block, number(self.out_blocks - 1))
        return block

    def _results(self, m: Any, group: Any, o: Any, write: Write) -> Any:
        """The inverse transform of each tile, and the epilogue."""
        t = new_var("t")
        found, where = self._where(group, t)
        pieces = []
        for vector in range(self.tile.vectors):
            piece = self._result(m, t, o, vector, where, write)
            if self.out_blocks % self.tile.vectors:
                block = o * number(self.tile.vectors) + number(vector)
                piece = tirx.IfThenElse(block < number(self.out_blocks), piece, None)
            pieces.append(piece)
        return loop_over(t, self._tiles_in(group), sequence([*found, *pieces]))

    def _result(self, m: Any, t: Any, o: Any, vector: int, where: list[Any], write: Write) -> Any:
        """One tile of one channel block: columns of it first, then rows, each written at once."""
        lanes, step, vectors = self.lanes, self._step, self.tile.vectors
        n, row, column = where
        matrix = output_transform(step)
        half, held = _scratch(step * IN * lanes, "half"), _scratch(step * lanes, "held")
        j, r, c, lane = new_var("j"), new_var("r"), new_var("c"), new_var("lane")
        values = []
        for k in range(IN):
            at = place(
                (number(k * IN) + j, t, number(vector), number(0)),
                (IN * IN, self._count, vectors, lanes),
            )
            values.append(vector_at(m, at, lanes))
        first = _transform(
            matrix, values, half, lambda k: (number(k * IN) + j) * number(lanes), lanes
        )
        rows = [
            tirx.BufferLoad(
                half, [tirx.Ramp((r * number(IN) + number(k)) * number(lanes), 1, lanes)]
            )
            for k in range(IN)
        ]
        second = _transform(matrix, rows, held, lambda k: number(k * lanes), lanes)
        y, x = row * number(step) + r, column * number(step) + c
        positions = (n, self._block(o, vector), y, x, lane)
        extents: Sequence[Extent] = (self.batch, self.out_blocks, *self.out, lanes)
        axes = tuple(
            Index.of(Loop(size, "x", fixed=True, var=at))
            for size, at in zip(extents, positions, strict=True)
        )
        value = tirx.BufferLoad(held, [c * number(lanes) + lane])
        scope = TileScope(lane, lanes, axes, value)
        stored = scope.loop(write(scope, axes))
        height, width = (
            tirx.min(number(step), expression(size) - at * number(step))
            for size, at in zip(self.out, (row, column), strict=True)
        )
        return sequence(
            [
                tirx.AllocBuffer(half),
                tirx.AllocBuffer(held),
                loop_over(j, IN, first),
                loop_over(r, height, sequence([second, loop_over(c, width, stored)])),
            ]
        )


def _safe(at: Any, size: Any) -> Any:
    """A position moved into the data."""
    return tirx.max(tirx.min(at, size - number(1)), number(0))


def _scratch(size: int, name: str) -> Any:
    return tirx.decl_buffer((size,), "float32", name=name)


def _transform(matrix: Any, values: list[Any], into: Any, to: Any, lanes: int) -> Any:
    """Store the product of a constant matrix with vectors, row `k` of it at `to(k)`."""
    return sequence(
        [
            tirx.BufferStore(into, combined(row, values), [tirx.Ramp(to(k), 1, lanes)])
            for k, row in enumerate(matrix)
        ]
    )
