"""Kernels in which every result element is a function of a few input elements.

What enters: results (arrays to fill) and, for each, the function that gives an element. What
leaves: TIR statements. Loops run over the results' own axes, cut and split until no division is
left inside (`nest.refine`), neighbouring axes collapse where memory allows, the innermost is
vectorised, the outermost is parallel where the work is worth a launch. A row that is no multiple of
the vector length ends in a vector that overlaps the one before it: recomputing a few elements is
cheaper than a scalar tail. A row whose length is a symbol decides that when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent, Size, at_least, exact_quotient
from whitebox.kernels.cpu.affine import Loop, expression
from whitebox.kernels.cpu.nest import (
    Array,
    Axes,
    Element,
    Scope,
    bind_group,
    collapse,
    extent_of,
    loop_over,
    nest_groups,
    new_var,
    refine,
    sequence,
    share,
    worth,
)

# Element operations (about 0.1 ns each in a vector) from which a parallel launch (7 µs) pays.
PARALLEL_WORK = 1 << 18
# What an element costs that is read or written in strides, next to one in a row.
_STRIDED_COST = 2

# Rows that share the cache lines of a strided read.
_STRIDED_TILE = 16


def store(
    results: Sequence[tuple[Array, Element]],
    vector_bytes: int,
    threads: int,
    *,
    in_place: bool = False,
) -> list[Any]:
    """Statements that fill arrays of one shared shape.

    `in_place` says that elements are computed from what the results hold: each exactly once.
    """
    shape = results[0][0].shape

    def build(axes: Axes, scope: Scope) -> list[Any]:
        return [array.store(scope, axes, element(scope, axes)) for array, element in results]

    def survey(axes: Axes) -> Scope:
        scope = Scope()
        build(axes, scope)
        return scope

    if 0 in shape:
        return []
    return [
        _Box(partial(build, axes), in_place).emit(loops, scope, vector_bytes, threads)
        for loops, axes, scope in refine(shape, survey)
    ]


@dataclass(frozen=True)
class _Box:
    """One box: `rebuild` makes its stores for the positions that the loops are bound to."""

    rebuild: Callable[[Scope], list[Any]]
    in_place: bool

    def emit(self, loops: list[Loop], scope: Scope, vector_bytes: int, threads: int) -> Any:
        """The loops of the box, outermost first in the order of the result's memory."""
        for loop in loops:
            loop.bind(tirx.const(0, "int32"))
        groups = collapse(loops, scope.accesses)
        if not groups:
            single = Scope()
            return single.loop(self.rebuild(single))
        *outer, inner = groups
        lanes, extent = vector_bytes // scope.widest, extent_of(inner)
        if isinstance(extent, int):
            lanes = min(extent, lanes)
        total = extent_of([loop for group in groups for loop in group])
        tiled = _transposed(outer, inner, scope)
        work = total * scope.work * (1 if tiled is None else _STRIDED_COST)
        parallel = worth(work, PARALLEL_WORK, threads)
        if not outer:
            return sequence(self._row(inner, lanes, parallel))
        if tiled is None:
            wrap = nest_groups(outer, parallel, threads)
            return wrap(sequence(self._row(inner, lanes)))
        # The tile's own loop goes inside of that over vectors; what remains of it stays outside.
        tile, whole = tiled
        wrap = nest_groups([[whole] if g is tile else g for g in outer], parallel, threads)
        return wrap(sequence(self._row(inner, lanes, tile=tiled)))

    def _row(
        self,
        group: list[Loop],
        lanes: int,
        parallel: Any = False,
        tile: tuple[list[Loop], Loop] | None = None,
    ) -> list[Any]:
        """One row: whole vectors, then one that overlaps them up to the end.

        With a `tile`, that many rows: each vector is made for all of them before the next.
        """
        extent = extent_of(group)
        if isinstance(extent, Size) and exact_quotient(extent, lanes) is None:
            return self._free_row(group, extent, lanes, parallel, tile)
        count = exact_quotient(extent - _tail(extent, lanes), lanes)
        chunk = new_var("c")
        many = count != 1
        start = chunk * tirx.const(lanes, "int32") if many else tirx.const(0, "int32")
        body = self._vectors(group, start, lanes, tile)
        statements = [share(chunk, count, body, parallel) if many else body]
        if tail := _tail(extent, lanes):
            width = tail if self.in_place else lanes
            last = expression(extent - width)
            statements.append(self._vectors(group, last, width, tile))
        return statements

    def _free_row(
        self,
        group: list[Loop],
        extent: Size,
        lanes: int,
        parallel: Any,
        tile: tuple[list[Loop], Loop] | None,
    ) -> list[Any]:
        """A row of any length: one shorter than a vector is made element by element."""
        size, width = expression(extent), tirx.const(lanes, "int32")
        chunk, one = new_var("c"), new_var("c")
        body = self._vectors(group, chunk * width, lanes, tile)
        rest = tirx.truncmod(size, width)
        single = self._vectors(group, size - rest + one, 1, tile)
        singles = loop_over(one, rest, single)
        if not self.in_place:
            last = self._vectors(group, size - width, lanes, tile)
            some = tirx.IfThenElse(rest > tirx.const(0, "int32"), last, None)
            singles = tirx.IfThenElse(size >= width, some, singles)
        return [share(chunk, tirx.truncdiv(size, width), body, parallel), singles]

    def _vectors(
        self, group: list[Loop], start: Any, lanes: int, tile: tuple[list[Loop], Loop] | None
    ) -> Any:
        """The body at `lanes` positions from `start`, in each row of the tile."""
        scope = Scope(new_var("v"), lanes) if lanes > 1 else Scope()
        bind_group(group, start + scope.lane)
        if tile is None:
            return scope.loop(self.rebuild(scope))
        rows, whole = tile
        row = new_var("w")
        bind_group(rows, whole.var * tirx.const(_STRIDED_TILE, "int32") + row)
        return loop_over(row, _STRIDED_TILE, scope.loop(self.rebuild(scope)))


def _tail(extent: Extent, lanes: int) -> int:
    """What whole vectors leave of a row; nothing of a symbolic one that is a multiple of them."""
    return extent % lanes if isinstance(extent, int) else 0


def _transposed(
    outer: list[list[Loop]], inner: list[Loop], scope: Scope
) -> tuple[list[Loop], Loop] | None:
    """The group along which memory is read contiguously, where the innermost is read in strides.

    And a loop over tiles of it.
    """
    for group in outer:
        tiles = exact_quotient(extent_of(group), _STRIDED_TILE)
        if tiles is not None and any(
            index.terms.get(group[-1], 0) == 1 and at_least(index.terms.get(inner[-1], 0), 2)
            for index in scope.accesses
        ):
            return group, Loop(tiles, "tile")
    return None
