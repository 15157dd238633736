"""Loop nests: from "element at these indices" to loops that a CPU runs well.

What enters: the extents of a nest and a function that builds its body from symbolic indices. What
leaves: boxes (rectangular parts of the iteration space) in which every index is as simple as it
gets, then TIR statements. The body is built several times with different indices; it must not
have side effects beyond its `Scope`. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tvm import tirx
from tvm.tirx.analysis import undefined_vars

from whitebox.ir.sizes import Extent, Size, at_least, product
from whitebox.kernels.cpu.affine import Index, Loop, Refine, expression, flatten

# How often one nest is refined before the remaining indices are left as they are.
_MAX_BOXES = 96

Result = TypeVar("Result")
Axes = tuple[Index, ...]


class Scope:
    """What one build of a loop body did: memory it touched, values it kept, work it does.

    The body runs at each `lane` of a vector of `lanes`.
    """

    def __init__(self, lane: Any = None, lanes: int = 1) -> None:
        self.accesses: list[Index] = []
        self.lane = tirx.const(0, "int32") if lane is None else lane
        self.lanes = lanes
        self.kept: list[tuple[Any, Any]] = []
        self.memo: dict[Any, Any] = {}
        self.widest = 1
        self.work = 1
        self._guards = 0
        self._alive: list[Axes] = []

    def load(self, buffer: Any, offset: Index) -> Any:
        """The element of a flat buffer at `offset`."""
        self.accesses.append(offset)
        self.widest = max(self.widest, buffer.dtype.itemsize)
        self.work += 1
        return tirx.BufferLoad(buffer, [offset.expr])

    def number(self, index: Index) -> Any:
        """An index as a value (int32)."""
        self.accesses.append(index)
        return index.expr

    def less(self, index: Index, limit: Extent) -> Any:
        """Whether `index < limit`: a bool where known, else a condition."""
        condition = index.less_than(limit)
        if not isinstance(condition, bool):
            self.accesses.append(index)
        return condition

    def choose(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """`then()` where the condition holds, `otherwise()` elsewhere; never evaluates both."""
        if isinstance(condition, bool):
            return then() if condition else otherwise()
        self._guards += 1
        try:
            return tirx.if_then_else(condition, then(), otherwise())
        finally:
            self._guards -= 1

    def keep(self, value: Any) -> Any:
        """A value that is used more than once, computed once and kept in a register.

        Not bound to a name: TVM expands names when it simplifies, so that a chain of them takes
        exponential time to compile.
        """
        # Under a condition the value may not be computable (out of bounds) elsewhere.
        if self._guards or isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
            return value
        is_bool = str(value.ty.dtype) == "bool"
        # TVM's vectoriser does not take local arrays of booleans.
        dtype = "int8" if is_bool else value.ty.dtype
        # What is equal at all lanes is a scalar: a row looked up is then read as a vector.
        varies = any(var.same_as(self.lane) for var in undefined_vars(value))
        size = self.lanes if varies else 1
        buffer = tirx.decl_buffer((size,), dtype, name=f"t{len(self.kept)}", scope="local")
        self.kept.append((buffer, tirx.Cast(dtype, value) if is_bool else value))
        load = tirx.BufferLoad(buffer, [self._place(buffer)])
        return tirx.NE(load, tirx.const(0, dtype)) if is_bool else load

    def remember(self, key: Any, value: Any, axes: Axes) -> None:
        """Keep a value for a later request of the same one."""
        if not self._guards:
            self.memo[key] = value
            # The key names loops and numbers by identity: they must outlive it.
            self._alive.append(axes)

    def loop(self, statements: Sequence[Any]) -> Any:
        """The statements, after the values they need, at all lanes."""
        stores = [
            (buffer, tirx.BufferStore(buffer, value, [self._place(buffer)]))
            for buffer, value in self.kept
        ]
        once = [store for buffer, store in stores if self._is_scalar(buffer)]
        body = sequence([*(s for b, s in stores if not self._is_scalar(b)), *statements])
        if self.lanes > 1:
            body = loop_over(self.lane, self.lanes, body, "VECTORIZED")
        return sequence([*(tirx.AllocBuffer(buffer) for buffer, _ in self.kept), *once, body])

    def _is_scalar(self, buffer: Any) -> bool:
        """Whether a buffer of `keep` holds one value for all lanes of a vector."""
        return self.lanes > 1 and int(buffer.shape[0]) == 1

    def _place(self, buffer: Any) -> Any:
        return tirx.const(0, "int32") if self._is_scalar(buffer) else self.lane


class Registers:
    """Integers that are computed once, in order, each kept in a register.

    Not bound to names: see `Scope.keep`.
    """

    def __init__(self) -> None:
        self.statements: list[Any] = []

    def keep(self, value: Any) -> Any:
        """The value as it is read from now on."""
        name = f"x{len(self.statements) // 2}"
        buffer = tirx.decl_buffer((1,), "int32", name=name, scope="local")
        zero = tirx.const(0, "int32")
        store = tirx.BufferStore(buffer, value, [zero])
        self.statements += [tirx.AllocBuffer(buffer), store]
        return tirx.BufferLoad(buffer, [zero])

    def places(self, item: Any, sizes: Sequence[Extent]) -> list[Any]:
        """The indices of element `item` of a nest of `sizes`."""
        indices = []
        for size in reversed(sizes):
            indices.append(self.keep(tirx.truncmod(item, expression(size))))
            item = self.keep(tirx.truncdiv(item, expression(size)))
        return indices[::-1]


Element = Callable[[Scope, Axes], Any]


@dataclass(frozen=True, eq=False)
class Array:
    """A compact array in memory: its shape and a one-dimensional buffer over it."""

    shape: tuple[Extent, ...]
    buffer: Any

    def __call__(self, scope: Scope, axes: Axes) -> Any:
        return scope.load(self.buffer, flatten(axes, self.shape))

    def store(self, scope: Scope, axes: Axes, value: Any) -> Any:
        """A statement that stores `value` at the indices."""
        offset = flatten(axes, self.shape)
        scope.accesses.append(offset)
        scope.widest = max(scope.widest, self.buffer.dtype.itemsize)
        return tirx.BufferStore(self.buffer, value, [offset.expr])


def allocate(shape: Sequence[Extent], dtype: str, name: str, scope: str = "") -> tuple[Array, Any]:
    """A new array and the statement that allocates it."""
    buffer = tirx.decl_buffer(flat_shape(shape), dtype, name=name, scope=scope)
    return Array(tuple(shape), buffer), tirx.AllocBuffer(buffer)


def flat_shape(shape: Sequence[Extent]) -> tuple[Any]:
    """The shape of a one-dimensional buffer that holds an array of `shape`."""
    size = product(shape)
    return (expression(size) if isinstance(size, Size) else max(size, 1),)


def sequence(statements: Sequence[Any]) -> Any:
    """Statements in order, as one."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def refine(
    extents: Sequence[Extent], build: Callable[[Axes], Result], name: str = "i"
) -> list[tuple[list[Loop], Axes, Result]]:
    """Cut and split a nest until `build` asks no more; each box's loops, axes and result."""
    loops = [Loop(extent, f"{name}{k}") for k, extent in enumerate(extents)]
    pending: list[tuple[list[Loop], Axes]] = [(loops, tuple(map(Index.of, loops)))]
    done: list[tuple[list[Loop], Axes, Result]] = []
    while pending:
        loops, axes = pending.pop(0)
        if len(pending) + len(done) >= _MAX_BOXES:
            for loop in loops:
                loop.fixed = True
        try:
            done.append((loops, axes, build(axes)))
        except Refine as request:
            if request.loop not in loops:
                raise
            pending[:0] = _apply(request, loops, axes)
    return done


def _apply(request: Refine, loops: list[Loop], axes: Axes) -> list[tuple[list[Loop], Axes]]:
    """The box or boxes that a refinement makes of one."""
    loop, at = request.loop, loops.index(request.loop)
    assert isinstance(loop.extent, int)  # a loop over a symbol is not refined
    if request.factor:
        outer = Loop(loop.extent // request.factor, loop.name + "o")
        inner = Loop(request.factor, loop.name + "i")
        value = Index.of(outer) * request.factor + Index.of(inner)
        split = [*loops[:at], outer, inner, *loops[at + 1 :]]
        return [(split, tuple(axis.substitute({loop: value}) for axis in axes))]
    boxes = []
    for start, extent in ((0, request.cut), (request.cut, loop.extent - request.cut)):
        part = Loop(extent, loop.name)
        # Each box needs loops of its own: a later refinement of one must not reach the other.
        fresh = [part if k is loop else Loop(k.extent, k.name) for k in loops]
        values = {old: Index.of(new) for old, new in zip(loops, fresh, strict=True)}
        values[loop] = values[loop] + start
        boxes.append((fresh, tuple(axis.substitute(values) for axis in axes)))
    return boxes


def collapse(loops: Sequence[Loop], accesses: Sequence[Index]) -> list[list[Loop]]:
    """Group adjacent loops that every access walks through as if they were one."""
    opaque = frozenset().union(*(index.opaque_loops for index in accesses))
    groups: list[list[Loop]] = []
    for loop in loops:
        if loop.extent == 1:
            continue
        if groups and _mergeable(groups[-1][-1], loop, accesses, opaque):
            groups[-1].append(loop)
        else:
            groups.append([loop])
    return groups


def _mergeable(
    outer: Loop, inner: Loop, accesses: Sequence[Index], opaque: frozenset[Loop]
) -> bool:
    return not {outer, inner} & opaque and all(
        index.terms.get(outer, 0) == index.terms.get(inner, 0) * inner.extent for index in accesses
    )


def extent_of(group: Sequence[Loop]) -> Extent:
    """The number of iterations of a group of collapsed loops."""
    return product(loop.extent for loop in group)


def worth(work: Extent, enough: int, threads: int) -> Any:
    """Whether work pays for a parallel launch: a bool where known, else a TVM condition."""
    if threads == 1:
        return False
    if at_least(work, enough) or isinstance(work, int):
        return at_least(work, enough)
    return expression(work, "int64") >= tirx.const(enough, "int64")


def bind_group(group: Sequence[Loop], value: Any) -> None:
    """Let `value` be the position in a collapsed group: all others stay at zero."""
    for loop in group[:-1]:
        loop.bind(tirx.const(0, "int32"))
    group[-1].bind(value)


def new_var(name: str) -> Any:
    """A fresh loop variable."""
    return tirx.Var(name, "int32")


def loop_over(var: Any, extent: Any, body: Any, kind: str = "SERIAL") -> Any:
    """A loop of the given kind: SERIAL, PARALLEL, VECTORIZED or UNROLLED."""
    count = expression(extent) if isinstance(extent, Size) else extent
    return tirx.For(var, 0, count, getattr(tirx.ForKind, kind), body)


def share(var: Any, extent: Any, body: Any, parallel: Any) -> Any:
    """A loop that threads share where `parallel`, a bool or a condition, holds."""
    if isinstance(parallel, bool):
        return loop_over(var, extent, body, "PARALLEL" if parallel else "SERIAL")
    shared = loop_over(var, extent, body, "PARALLEL")
    return tirx.IfThenElse(parallel, shared, loop_over(var, extent, body))


def nest_groups(groups: Sequence[Sequence[Loop]], parallel: Any, threads: int) -> Any:
    """Bind groups to fresh variables; a function that wraps a body in their loops.

    A parallel nest (see `share`) runs its outermost groups as one parallel loop, as many of them as
    it takes to give every thread some iterations.
    """
    count = 0
    fused: Extent = 1
    if parallel is not False:
        while count < len(groups) and not at_least(fused, 4 * threads):
            fused = fused * extent_of(groups[count])
            count += 1
    serial = []
    for group in groups[count:]:
        var = new_var(group[-1].name)
        bind_group(group, var)
        serial.append((var, extent_of(group)))
    shared = new_var("p")
    rest = shared
    for k, group in reversed(list(enumerate(groups[:count]))):
        if k == 0:
            bind_group(group, rest)
        else:
            extent = expression(extent_of(group))
            bind_group(group, tirx.truncmod(rest, extent))
            rest = tirx.truncdiv(rest, extent)

    def wrap(body: Any) -> Any:
        for var, extent in reversed(serial):
            body = loop_over(var, extent, body)
        return share(shared, fused, body, parallel) if count else body

    return wrap
