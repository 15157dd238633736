"""Small dense products `out[m, n] = sum over k of a[m, k] * w[n, k]`, both operands row by row.

What enters: flat buffers with row offsets. What leaves: TIR statements. It serves the recurrent
operators, whose weights lie as ONNX stores them: vectors run along k in both operands, a tile of
sums stays in registers, and each is added up at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce as fold
from typing import Any

from tvm import tirx

from whitebox.kernels.cpu.nest import loop_over, new_var, sequence


@dataclass(frozen=True)
class Rows:
    """A matrix in a flat buffer: row `i` starts at `start + i * stride`."""

    buffer: Any
    start: Any
    stride: int

    def at(self, row: Any, column: Any) -> Any:
        return self.start + row * tirx.const(self.stride, "int32") + column

    def vector(self, row: Any, column: Any, lanes: int) -> Any:
        return tirx.BufferLoad(self.buffer, [tirx.Ramp(self.at(row, column), 1, lanes)])


@dataclass(frozen=True)
class Product:
    """One product of float32 matrices: `m` rows of `a`, `n` rows of `w`, both `k` long."""

    out: Rows
    a: Rows
    w: Rows
    m: int
    n: int
    k: int
    lanes: int
    parallel: bool = False

    def statements(self) -> list[Any]:
        """The product, in tiles of rows of `w` by rows of `a`."""
        columns = 8 if self.m == 1 else 4
        return list(_tiles(self.n, columns, self._column_tile, self.parallel))

    def _column_tile(self, first: Any, columns: int) -> Any:
        return sequence(
            list(_tiles(self.m, 4, lambda row, rows: self._tile(row, rows, first, columns), False))
        )

    def _tile(self, row: Any, rows: int, column: Any, columns: int) -> Any:
        pairs = [(i, j) for i in range(rows) for j in range(columns)]
        lanes = self.lanes
        sums = tirx.decl_buffer((len(pairs) * lanes,), "float32", name="dot", scope="local")

        def slot(pair: int) -> Any:
            return tirx.Ramp(pair * lanes, 1, lanes)

        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        statements: list[Any] = [tirx.AllocBuffer(sums)]
        statements += [tirx.BufferStore(sums, zero, [slot(p)]) for p in range(len(pairs))]
        step = new_var("k")

        def accumulate(at: Any) -> list[Any]:
            lefts = [self.a.vector(row + i, at, lanes) for i in range(rows)]
            rights = [self.w.vector(column + j, at, lanes) for j in range(columns)]
            return [
                tirx.BufferStore(
                    sums, tirx.BufferLoad(sums, [slot(p)]) + lefts[i] * rights[j], [slot(p)]
                )
                for p, (i, j) in enumerate(pairs)
            ]

        whole = self.k // lanes
        if whole:
            body = sequence(accumulate(step * tirx.const(lanes, "int32")))
            statements.append(loop_over(step, whole, body))
        for p, (i, j) in enumerate(pairs):
            total = _total(tirx.BufferLoad(sums, [slot(p)]), lanes, statements)
            total = self._rest(total, row + i, column + j, whole * lanes)
            place = self.out.at(row + i, column + j)
            statements.append(tirx.BufferStore(self.out.buffer, total, [place]))
        return sequence(statements)

    def _rest(self, total: Any, row: Any, column: Any, done: int) -> Any:
        """The terms past the last whole vector."""
        for at in range(done, self.k):
            left = tirx.BufferLoad(self.a.buffer, [self.a.at(row, at)])
            right = tirx.BufferLoad(self.w.buffer, [self.w.at(column, at)])
            total = total + left * right
        return total


def _tiles(size: int, tile: int, body: Callable[[Any, int], Any], parallel: bool) -> Any:
    """`body(first, count)` over whole tiles, then over what is left."""
    whole, rest = divmod(size, tile)
    if whole:
        var = new_var("j")
        first = var * tirx.const(tile, "int32")
        yield loop_over(var, whole, body(first, tile), "PARALLEL" if parallel else "SERIAL")
    if rest:
        yield body(tirx.const(whole * tile, "int32"), rest)


def _total(vector: Any, lanes: int, statements: list[Any]) -> Any:
    """The sum of a vector's lanes, by halves."""
    while lanes > 1:
        half = lanes // 2
        whole = tirx.Var("h", vector.ty)
        statements.append(tirx.Bind(whole, vector))
        parts = [tirx.Shuffle([whole], list(range(k, k + half))) for k in (0, half)]
        vector = fold(lambda x, y: x + y, parts)
        lanes = half
    return vector
