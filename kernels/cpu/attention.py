"""Attention: softmax(scale · Q Kᵀ + mask) V, the scores of a few rows at a time.

Enters: flat buffers of Q, K, V, the mask and the result. Leaves: TIR statements. Knows no Graph.

    for heads × panels of keys: K → [D, nt]         transposed in registers; then a barrier
    for heads × blocks of rows:                     both loops in parallel, one launch
        scores = scale · Q Kᵀ                       tiles of mt × nt; a block stays in L1
        for row: + mask, maximum, e^(x - maximum), 1 / sum
        result = (scores V) / sum                   tiles of mt × nt

A row tile past the last row repeats that row, and writes it again as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.kernels.cpu import vector_math
from whitebox.kernels.cpu.nest import loop_over, new_var, sequence

# Bytes of scores that a block of rows may have, beside a panel of keys in L1.
_SCORES_BYTES = 24 * 1024
_PARALLEL_WORK = 1 << 18


@dataclass(frozen=True)
class Attention:
    """`batch` dimensions of heads; `rows` queries and `keys` of `size`, values of `width`.

    `mask` is the mask's shape, with as many dimensions as the scores, or None.
    """

    batch: tuple[int, ...]
    rows: int
    keys: int
    size: int
    width: int
    scale: float
    mask: tuple[int, ...] | None
    nan_to_zero: bool
    lanes: int
    threads: int

    @property
    def heads(self) -> int:
        return math.prod(self.batch)

    @property
    def nt(self) -> int:
        """Keys of a panel: two vectors."""
        return 2 * self.lanes

    @property
    def mt(self) -> int:
        """Rows of a tile: with two vectors each, their sums fill the registers."""
        return min(self.rows, 12 if self.lanes == 16 else 6)

    @property
    def panels(self) -> int:
        return -(-self.keys // self.nt)

    @property
    def padded(self) -> int:
        return self.panels * self.nt

    @property
    def tiles(self) -> int:
        """Row tiles of a block: what fits, and leaves the fewest over in the last block."""
        count = -(-self.rows // self.mt)
        fitting = max(1, min(count, _SCORES_BYTES // (self.mt * self.padded * 4)))
        return min(range(fitting, 0, -1), key=lambda tiles: -(-count // tiles) * tiles)

    @property
    def parallel(self) -> bool:
        work = self.heads * self.rows * self.keys * (self.size + self.width)
        return self.threads > 1 and work >= _PARALLEL_WORK

    @property
    def packed_size(self) -> int:
        """Elements of the packed keys."""
        return self.heads * self.panels * self.size * self.nt

    def statements(self, buffers: Buffers) -> list[Any]:
        """Pack the keys, then compute blocks of rows."""
        panel, block = new_var("panel"), new_var("block")
        blocks = -(-self.rows // (self.mt * self.tiles))
        kind = "PARALLEL" if self.parallel else "SERIAL"
        pack = loop_over(panel, self.heads * self.panels, self._pack(buffers, panel), kind)
        whole = _Block(
            self,
            buffers,
            tirx.floordiv(block, tirx.const(blocks, "int32")),
            tirx.floormod(block, tirx.const(blocks, "int32")) * (self.mt * self.tiles),
        )
        compute = loop_over(block, self.heads * blocks, whole.statement(), kind)
        if not self.parallel:
            return [pack, compute]
        pack = _pragma("barrier_when_finish", pack)
        return [_pragma("launch_point", sequence([pack, compute]))]

    def _pack(self, buffers: Buffers, panel: Any) -> Any:
        """One panel of keys, transposed: squares of a vector's size at a time."""
        lanes = self.lanes
        head = tirx.floordiv(panel, tirx.const(self.panels, "int32"))
        first = tirx.floormod(panel, tirx.const(self.panels, "int32")) * self.nt
        column = new_var("d")
        statements: list[Any] = []
        for half in range(2):
            rows = []
            for i in range(lanes):
                key = tirx.min(first + (half * lanes + i), tirx.const(self.keys - 1, "int32"))
                start = (head * self.keys + key) * self.size + column * lanes
                rows.append(tirx.BufferLoad(buffers.k, [tirx.Ramp(start, 1, lanes)]))
            for i, row in enumerate(_transposed(rows, statements)):
                start = (panel * self.size + column * lanes + i) * self.nt + half * lanes
                place = [tirx.Ramp(start, 1, lanes)]
                statements.append(tirx.BufferStore(buffers.packed, row, place))
        return loop_over(column, self.size // lanes, sequence(statements))


@dataclass(frozen=True)
class Buffers:
    """Flat arrays; `packed` holds the keys in panels, `[heads, panels, size, nt]`."""

    q: Any
    k: Any
    v: Any
    mask: Any | None
    packed: Any
    y: Any


@dataclass(frozen=True)
class _Block:
    """`tiles` row tiles of one head, from row `first` on."""

    attention: Attention
    buffers: Buffers
    head: Any
    first: Any

    def statement(self) -> Any:
        own = self.attention
        height = own.mt * own.tiles
        scores = tirx.decl_buffer((height * own.padded,), "float32", name="scores", scope="local")
        scales = tirx.decl_buffer((height,), "float32", name="scales", scope="local")
        row = new_var("row")
        return sequence(
            [
                tirx.AllocBuffer(scores),
                tirx.AllocBuffer(scales),
                self._products(scores),
                loop_over(row, height, self._softmax(scores, scales, row)),
                self._results(scores, scales),
            ]
        )

    def _row(self, row: Any) -> Any:
        """The query at a position of the block."""
        return tirx.min(self.first + row, tirx.const(self.attention.rows - 1, "int32"))

    def _products(self, scores: Any) -> Any:
        own, panel, tile = self.attention, new_var("panel"), new_var("tile")

        def left(i: int, k: Any) -> Any:
            start = (self.head * own.rows + self._row(tile * own.mt + i)) * own.size
            return tirx.BufferLoad(self.buffers.q, [start + k])

        def right(v: int, k: Any) -> Any:
            start = ((self.head * own.panels + panel) * own.size + k) * own.nt + v * own.lanes
            return tirx.BufferLoad(self.buffers.packed, [tirx.Ramp(start, 1, own.lanes)])

        def store(i: int, v: int, total: Any) -> Any:
            start = (tile * own.mt + i) * own.padded + panel * own.nt + v * own.lanes
            if own.scale != 1.0:
                total = total * tirx.Broadcast(tirx.const(own.scale, "float32"), own.lanes)
            return tirx.BufferStore(scores, total, [tirx.Ramp(start, 1, own.lanes)])

        body = self._tile(own.size, 2, left, right, store)
        return loop_over(panel, own.panels, loop_over(tile, own.tiles, body))

    def _results(self, scores: Any, scales: Any) -> Any:
        own, panel, tile = self.attention, new_var("panel"), new_var("tile")
        vectors = 1 if own.width % own.nt else 2

        def left(i: int, k: Any) -> Any:
            return tirx.BufferLoad(scores, [(tile * own.mt + i) * own.padded + k])

        def place(row: Any, v: int) -> Any:
            start = row * own.width + panel * (vectors * own.lanes) + v * own.lanes
            return [tirx.Ramp(start, 1, own.lanes)]

        def right(v: int, k: Any) -> Any:
            return tirx.BufferLoad(self.buffers.v, place(self.head * own.keys + k, v))

        def store(i: int, v: int, total: Any) -> Any:
            scale = tirx.BufferLoad(scales, [tile * own.mt + i])
            total = total * tirx.Broadcast(scale, own.lanes)
            if own.nan_to_zero:
                zero = tirx.Broadcast(tirx.const(0, "float32"), own.lanes)
                # Not for what is NaN. A comparison with itself TVM would take for true.
                valid = tirx.Broadcast(scale > tirx.const(0, "float32"), own.lanes)
                total = tirx.Select(valid, total, zero)
            row = self.head * own.rows + self._row(tile * own.mt + i)
            return tirx.BufferStore(self.buffers.y, total, place(row, v))

        body = self._tile(own.keys, vectors, left, right, store)
        count = own.width // (vectors * own.lanes)
        return loop_over(panel, count, loop_over(tile, own.tiles, body))

    def _tile(
        self,
        depth: int,
        vectors: int,
        left: Callable[[int, Any], Any],
        right: Callable[[int, Any], Any],
        store: Callable[[int, int, Any], Any],
    ) -> Any:
        """A register tile: for k, for row i, for vector v: sums += left(i, k) · right(v, k)."""
        own = self.attention
        lanes, k = own.lanes, new_var("k")
        places = [(i, v) for i in range(own.mt) for v in range(vectors)]
        size = (len(places) * lanes,)
        sums = tirx.decl_buffer(size, "float32", name="sums", scope="local")
        slots = [[tirx.Ramp(n * lanes, 1, lanes)] for n in range(len(places))]
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        adds = []
        for (i, v), slot in zip(places, slots, strict=True):
            product = tirx.Broadcast(left(i, k), lanes) * right(v, k)
            adds.append(tirx.BufferStore(sums, tirx.BufferLoad(sums, slot) + product, slot))
        stores = [
            store(i, v, tirx.BufferLoad(sums, slot))
            for (i, v), slot in zip(places, slots, strict=True)
        ]
        return sequence(
            [
                tirx.AllocBuffer(sums),
                *(tirx.BufferStore(sums, zero, slot) for slot in slots),
                loop_over(k, depth, sequence(adds)),
                *stores,
            ]
        )

    def _softmax(self, scores: Any, scales: Any, row: Any) -> Any:
        """Exponentials of one row in place, and what to multiply them by."""
        own = self.attention
        lanes, start = own.lanes, row * own.padded
        folded = tirx.decl_buffer((own.nt,), "float32", name="folded", scope="local")
        statements: list[Any] = [tirx.AllocBuffer(folded), *self._mask(scores, row, start)]
        if own.padded > own.keys:
            pad = new_var("pad")
            lowest = tirx.const(-math.inf, "float32")
            store = tirx.BufferStore(scores, lowest, [start + own.keys + pad])
            statements.append(loop_over(pad, own.padded - own.keys, store))

        def fold(first: float, combine: Callable[[Any, Any], Any]) -> Any:
            """All elements of the row, combined: two vectors side by side, then by halves."""
            panel = new_var("panel")
            initial = tirx.Broadcast(tirx.const(first, "float32"), lanes)
            slots = [[tirx.Ramp(v * lanes, 1, lanes)] for v in range(2)]
            body = []
            for v, slot in enumerate(slots):
                statements.append(tirx.BufferStore(folded, initial, slot))
                place = [tirx.Ramp(start + panel * own.nt + v * lanes, 1, lanes)]
                total = combine(tirx.BufferLoad(folded, slot), tirx.BufferLoad(scores, place))
                body.append(tirx.BufferStore(folded, total, slot))
            statements.append(loop_over(panel, own.panels, sequence(body)))
            both = combine(*(tirx.BufferLoad(folded, slot) for slot in slots))
            return _folded(both, lanes, combine, statements)

        # In memory: TVM would expand a name, and cannot vectorise what it stands for.
        held = tirx.decl_buffer((1,), "float32", name="largest", scope="local")
        zero = tirx.const(0, "int32")
        statements.insert(0, tirx.AllocBuffer(held))
        statements.append(tirx.BufferStore(held, fold(-math.inf, tirx.max), [zero]))
        largest = tirx.BufferLoad(held, [zero])
        chunk, lane = new_var("c"), new_var("v")
        place = [start + chunk * lanes + lane]
        power = vector_math.exp_nonpositive(tirx.BufferLoad(scores, place) - largest)
        body = loop_over(lane, lanes, tirx.BufferStore(scores, power, place), "VECTORIZED")
        statements.append(loop_over(chunk, own.padded // lanes, body))
        total = fold(0.0, lambda a, b: a + b)
        one = tirx.const(1, "float32")
        statements.append(tirx.BufferStore(scales, one / total, [row]))
        return sequence(statements)

    def _mask(self, scores: Any, row: Any, start: Any) -> list[Any]:
        """The mask added to a row of scores."""
        own = self.attention
        if own.mask is None:
            return []
        *batch, rows, keys = own.mask
        place: Any = tirx.const(0, "int32")
        rest = self.head
        # The head's index in each batch dimension, those of size 1 in the mask left out.
        step = own.heads
        for size, dim in zip(batch, own.batch, strict=True):
            step //= dim
            index = tirx.floormod(tirx.floordiv(rest, tirx.const(step, "int32")), dim)
            place = place * size + (index if size > 1 else 0)
        place = place * rows + (self._row(row) if rows > 1 else 0)

        def add(first: Any, count: int) -> Any:
            lane = new_var("v")
            at = first + lane
            value = tirx.BufferLoad(self.buffers.mask, [place * keys + (at if keys > 1 else 0)])
            store = tirx.BufferStore(
                scores, tirx.BufferLoad(scores, [start + at]) + value, [start + at]
            )
            return loop_over(lane, count, store, "VECTORIZED" if count > 1 else "SERIAL")

        whole, rest_of_row = divmod(own.keys, own.lanes)
        chunk = new_var("c")
        statements = []
        if whole:
            statements.append(loop_over(chunk, whole, add(chunk * own.lanes, own.lanes)))
        if rest_of_row:
            statements.append(add(tirx.const(whole * own.lanes, "int32"), rest_of_row))
        return statements


def _pragma(name: str, body: Any) -> Any:
    return tirx.AttrStmt(tirx.const(0, "int32"), f"pragma_parallel_{name}", 1, body)


def _transposed(rows: list[Any], statements: list[Any]) -> list[Any]:
    """A square of vectors transposed: as often as its size is halved, rows are interleaved."""
    count = len(rows)
    low = [k + j * count for k in range(count // 2) for j in range(2)]
    high = [k + count // 2 for k in low]
    for _ in range(count.bit_length() - 1):
        mixed = []
        for a, b in zip(rows[: count // 2], rows[count // 2 :], strict=True):
            mixed += [tirx.Shuffle([a, b], low), tirx.Shuffle([a, b], high)]
        rows = []
        for value in mixed:
            name = tirx.Var("w", value.ty)
            statements.append(tirx.Bind(name, value))
            rows.append(name)
    return rows


def _folded(
    vector: Any, lanes: int, combine: Callable[[Any, Any], Any], statements: list[Any]
) -> Any:
    """The lanes of a vector combined, by halves."""
    while lanes > 1:
        lanes //= 2
        whole = tirx.Var("h", vector.ty)
        statements.append(tirx.Bind(whole, vector))
        halves = [tirx.Shuffle([whole], list(range(k, k + lanes))) for k in (0, lanes)]
        vector = combine(*halves)
    return vector
