"""Reductions: every result element combines many input elements.

What enters: the array to fill, the extents to reduce over, the function that gives a term, how
terms combine, and what is stored in the end. What leaves: TIR statements. Vectors run over the
innermost kept axis where memory is contiguous along it (several independent rows of partial
results), else over the innermost reduced axis (several partial results, combined at the end), else
the loop is scalar. Partial results live in registers. Rounding differs from a sequential sum, for
the better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bound
from functools import reduce as fold
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent, Size
from whitebox.kernels.cpu.affine import Index, Loop, expression
from whitebox.kernels.cpu.injective import PARALLEL_WORK
from whitebox.kernels.cpu.nest import (
    Array,
    Axes,
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

# Independent vectors of partial results: enough to hide the latency of an addition.
_VECTORS = 4

States = list[Any]


@dataclass(frozen=True)
class Reduction:
    """How terms combine. Several states (a value and its position) are combined together.

    `term(scope, kept, reduced)` gives the states of one element; `finish(scope, kept, states)`
    what is stored. `identity` and `dtypes` are those of the states.
    """

    extents: tuple[Extent, ...]
    term: Callable[[Scope, Axes, Axes], States]
    combine: Callable[[States, States], States]
    identity: tuple[Any, ...]
    dtypes: tuple[str, ...]
    finish: Callable[[Scope, Axes, States], Any]


@dataclass(frozen=True)
class _Part:
    """A box of the reduced space, its loops grouped."""

    axes: Axes
    loops: tuple[Loop, ...]
    scope: Scope


def store(result: Array, reduction: Reduction, vector_bytes: int, threads: int) -> list[Any]:
    """Statements that fill `result` with the reduction."""
    if 0 in result.shape:
        return []

    def build(kept: Axes) -> tuple[list[_Part], Scope]:
        def inner(reduced: Axes) -> Scope:
            scope = Scope()
            reduction.term(scope, kept, reduced)
            return scope

        parts = [
            _Part(axes, tuple(loops), scope)
            for loops, axes, scope in refine(reduction.extents, inner, "r")
        ]
        scope = Scope()
        states = [tirx.const(0, dtype) for dtype in reduction.dtypes]
        result.store(scope, kept, reduction.finish(scope, kept, states))
        return parts, scope

    boxes = refine(result.shape, build)
    return [
        _Nest(result, reduction, kept, parts, vector_bytes, threads).emit(loops, scope)
        for loops, kept, (parts, scope) in boxes
    ]


@dataclass(frozen=True)
class _Nest:
    """One box of the kept space with the parts of the reduced space that feed it."""

    result: Array
    reduction: Reduction
    kept: Axes
    parts: list[_Part]
    vector_bytes: int
    threads: int

    def emit(self, loops: list[Loop], scope: Scope) -> Any:
        """All loops of this box."""
        terms = [index for part in self.parts for index in part.scope.accesses]
        widest = max([scope.widest, *(part.scope.widest for part in self.parts)])
        widest = max(widest, *(buffer.dtype.itemsize for buffer in self._partials(1)))
        lanes = self.vector_bytes // widest
        for loop in loops:
            loop.bind(tirx.const(0, "int32"))
        groups = collapse(loops, [*scope.accesses, *terms])
        parallel = worth(self._work(groups), PARALLEL_WORK, self.threads)
        if groups and _fills(groups[-1], lanes) and _unit_stride(groups[-1], terms):
            return self._over_kept(groups, lanes, parallel)
        wrap = nest_groups(groups, parallel, self.threads)
        return wrap(self._over_reduced(lanes))

    def _work(self, groups: list[list[Loop]]) -> Extent:
        kept = extent_of([loop for group in groups for loop in group])
        return sum((kept * extent_of(p.loops) * p.scope.work for p in self.parts), start=0)

    def _over_kept(self, groups: list[list[Loop]], lanes: int, parallel: Any) -> Any:
        """Vectors along the innermost kept group: a tile of them at a time."""
        *outer, inner = groups
        extent, tile = extent_of(inner), lanes * _VECTORS
        wrap = nest_groups(outer, parallel, self.threads)
        if isinstance(extent, Size):
            return wrap(self._free_row(inner, extent, lanes, parallel if not outer else False))
        count, rest = divmod(extent, tile)
        chunk = new_var("c")
        tiles: list[Any] = []
        if count:
            start = chunk * tirx.const(tile, "int32")
            body = self._tile(inner, [start + k * lanes for k in range(_VECTORS)], lanes)
            # A nest without outer loops shares its tiles among the threads.
            tiles.append(share(chunk, count, body, parallel if not outer else False))
        if rest:
            starts = list(range(extent - rest, extent - lanes + 1, lanes))
            if rest % lanes:
                starts.append(extent - lanes)
            tiles.append(self._tile(inner, [tirx.const(k, "int32") for k in starts], lanes))
        return wrap(sequence(tiles))

    def _free_row(self, inner: list[Loop], extent: Size, lanes: int, parallel: Any) -> Any:
        """A row of any length: tiles, then vectors, then one that overlaps (or single results)."""
        size, width = expression(extent), tirx.const(lanes, "int32")
        tile = tirx.const(lanes * _VECTORS, "int32")
        chunk, vector, one = new_var("c"), new_var("c"), new_var("c")
        first = [chunk * tile + k * lanes for k in range(_VECTORS)]
        rest, last = tirx.truncmod(size, tile), tirx.truncmod(size, width)
        overlap = self._tile(inner, [size - width], lanes)
        singles = loop_over(one, last, self._tile(inner, [size - last + one], 1))
        return sequence(
            [
                share(chunk, tirx.truncdiv(size, tile), self._tile(inner, first, lanes), parallel),
                loop_over(
                    vector,
                    tirx.truncdiv(rest, width),
                    self._tile(inner, [size - rest + vector * width], lanes),
                ),
                tirx.IfThenElse(
                    size >= width,
                    tirx.IfThenElse(last > tirx.const(0, "int32"), overlap, None),
                    singles,
                ),
            ]
        )

    def _tile(self, group: list[Loop], starts: list[Any], lanes: int) -> Any:
        """Rows of `lanes` results, each starting at one of `starts`."""
        partial = self._partials(lanes * len(starts))

        def rows(body: Callable[[Scope, Any], list[Any]]) -> list[Any]:
            made = []
            for row, start in enumerate(starts):
                scope = Scope(new_var("v"), lanes) if lanes > 1 else Scope()
                bind_group(group, start + scope.lane)
                made.append(scope.loop(body(scope, scope.lane + row * lanes)))
            return made

        statements = [tirx.AllocBuffer(buffer) for buffer in partial]
        statements += rows(lambda scope, at: _write(partial, at, self._identity()))
        for part in self.parts:
            wrap = nest_groups(collapse(part.loops, part.scope.accesses), False, 1)
            steps = rows(bound(self._step, part, partial))
            statements.append(wrap(sequence(steps)))
        statements += rows(lambda scope, at: self._finish(scope, _read(partial, at)))
        return sequence(statements)

    def _over_reduced(self, lanes: int) -> Any:
        """One result: vectors along the innermost reduced group where memory allows."""
        grouped = [collapse(part.loops, part.scope.accesses) for part in self.parts]
        single = len(self.reduction.dtypes) == 1
        vectorised = single and all(
            groups and _fills(groups[-1], lanes) and _unit_stride(groups[-1], part.scope.accesses)
            for groups, part in zip(grouped, self.parts, strict=True)
        )
        if not vectorised:
            return self._scalar(grouped)
        vectors = _VECTORS if _fills(grouped[0][-1], 2 * lanes * _VECTORS) else 1
        partial = self._partials(lanes * vectors)
        statements = [*map(tirx.AllocBuffer, partial)]
        for row in range(vectors):
            lane = new_var("v")
            clear = sequence(_write(partial, lane + row * lanes, self._identity()))
            statements.append(loop_over(lane, lanes, clear, "VECTORIZED"))
        for part, groups in zip(self.parts, grouped, strict=True):
            wrap = nest_groups(groups[:-1], False, 1)
            statements.append(
                wrap(sequence(self._sweep(part, groups[-1], partial, lanes, vectors)))
            )
        total = _combine_lanes(
            partial[0], lanes * vectors, lanes, self.reduction.combine, statements
        )
        scope = Scope()
        statements.append(scope.loop(self._finish(scope, [total])))
        return sequence(statements)

    def _sweep(
        self, part: _Part, group: list[Loop], partial: list[Any], lanes: int, vectors: int
    ) -> list[Any]:
        """All terms along one contiguous group, spread over the partial results."""
        extent = extent_of(group)
        chunk = new_var("k")

        def vector(start: Any, row: int, width: int) -> Any:
            scope = Scope(new_var("v"), width) if width > 1 else Scope()
            bind_group(group, start + scope.lane)
            return scope.loop(self._step(part, partial, scope, scope.lane + row * lanes))

        start = chunk * tirx.const(lanes * vectors, "int32")
        body = sequence([vector(start + k * lanes, k, lanes) for k in range(vectors)])
        if isinstance(extent, Size):
            size, width = expression(extent), tirx.const(lanes, "int32")
            tile = tirx.const(lanes * vectors, "int32")
            rest, last = tirx.truncmod(size, tile), tirx.truncmod(size, width)
            more, one = new_var("k"), new_var("k")
            return [
                loop_over(chunk, tirx.truncdiv(size, tile), body),
                loop_over(
                    more,
                    tirx.truncdiv(rest, width),
                    vector(size - rest + more * width, 0, lanes),
                ),
                loop_over(one, last, vector(size - last + one, 0, 1)),
            ]
        count, rest = divmod(extent, lanes * vectors)
        statements = [loop_over(chunk, count, body)]
        for row, at in enumerate(range(extent - rest, extent, lanes)):
            width = min(lanes, extent - at)
            statements.append(vector(tirx.const(at, "int32"), row, width))
        return statements

    def _scalar(self, grouped: list[list[list[Loop]]]) -> Any:
        partial = self._partials(1)
        zero = tirx.const(0, "int32")
        statements = [*map(tirx.AllocBuffer, partial), *_write(partial, zero, self._identity())]
        for part, groups in zip(self.parts, grouped, strict=True):
            wrap = nest_groups(groups, False, 1)
            scope = Scope()
            statements.append(wrap(scope.loop(self._step(part, partial, scope, zero))))
        scope = Scope()
        statements.append(scope.loop(self._finish(scope, _read(partial, zero))))
        return sequence(statements)

    def _partials(self, size: int) -> list[Any]:
        """Buffers for the partial results, one a state."""
        return [
            tirx.decl_buffer((size,), dtype, name=f"s{k}", scope="local")
            for k, dtype in enumerate(self.reduction.dtypes)
        ]

    def _identity(self) -> States:
        return list(self.reduction.identity)

    def _step(self, part: _Part, partial: list[Any], scope: Scope, at: Any) -> list[Any]:
        """Combine one term into the partial results."""
        term = self.reduction.term(scope, self.kept, part.axes)
        states = self.reduction.combine(_read(partial, at), term)
        if len(states) > 1:
            # All of them, before the first is overwritten.
            states = [scope.keep(state) for state in states]
        return _write(partial, at, states)

    def _finish(self, scope: Scope, states: States) -> list[Any]:
        value = self.reduction.finish(scope, self.kept, states)
        return [self.result.store(scope, self.kept, value)]


def _fills(group: Sequence[Loop], lanes: int) -> bool:
    """Whether a group is worth vectors of `lanes`: one over a symbol is taken to be."""
    extent = extent_of(group)
    return isinstance(extent, Size) or extent >= lanes


def _unit_stride(group: Sequence[Loop], accesses: Sequence[Index]) -> bool:
    """Whether memory is read contiguously (or not at all) along a group."""
    inner = group[-1]
    strides = {index.terms.get(inner, 0) for index in accesses}
    opaque = any(inner in index.opaque_loops for index in accesses)
    return not opaque and strides <= {0, 1} and 1 in strides


def _read(partial: Sequence[Any], at: Any) -> States:
    return [tirx.BufferLoad(buffer, [at]) for buffer in partial]


def _write(partial: Sequence[Any], at: Any, values: States) -> list[Any]:
    return [tirx.BufferStore(b, value, [at]) for b, value in zip(partial, values, strict=True)]


def _combine_lanes(
    buffer: Any,
    size: int,
    lanes: int,
    combine: Callable[[States, States], States],
    statements: list[Any],
) -> Any:
    """All elements of a buffer combined: vectors first, then halves of the last one."""
    vectors = [tirx.BufferLoad(buffer, [tirx.Ramp(k, 1, lanes)]) for k in range(0, size, lanes)]
    value = fold(lambda a, b: combine([a], [b])[0], vectors)
    while lanes > 1:
        whole = tirx.Var("h", value.ty)
        statements.append(tirx.Bind(whole, value))
        half = lanes // 2
        low, high = (tirx.Shuffle([whole], list(range(k, k + half))) for k in (0, half))
        value = combine([low], [high])[0]
        lanes = half
    return value
