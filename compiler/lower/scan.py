"""Operators whose elements depend on one another in order: running sums, scattered updates.

What enters: nodes and the values of their inputs. What leaves: values held in arrays. Steps run one
after the other; what is independent within a step is vectorised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from whitebox.compiler.lower import functions as fn
from whitebox.compiler.lower.movement import looked_up
from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Index,
    Scope,
    Value,
    compute_dtype,
    const,
    convert,
    emitter,
    from_array,
    ints,
)
from whitebox.ir.graph import Node
from whitebox.ir.sizes import known
from whitebox.kernels.cpu import injective
from whitebox.kernels.cpu.affine import Loop
from whitebox.kernels.cpu.nest import Array, loop_over, new_var, sequence


class _Slice:
    """An array at a fixed position of one axis, as something to fill."""

    def __init__(self, array: Array, axis: int, position: Index) -> None:
        self.array, self.axis, self.position = array, axis, position
        self.shape = (*array.shape[:axis], *array.shape[axis + 1 :])

    def place(self, axes: Axes) -> Axes:
        return (*axes[: self.axis], self.position, *axes[self.axis :])

    def store(self, scope: Scope, axes: Axes, value: Any) -> Any:
        return self.array.store(scope, self.place(axes), value)


@emitter("CumSum")
def _cumulative_sum(node: Node, args: Sequence[Value], body: Body) -> Value:
    """One running sum for each position of the other axes, a step of the axis at a time."""
    source = args[0]
    axis = ints(node, 1)[0] % len(source.shape)
    wide = compute_dtype(source.dtype)
    result = body.array(source.shape, source.dtype)
    others = (*source.shape[:axis], *source.shape[axis + 1 :])
    total = body.array(others, wide)
    body.store([(total, Value(wide, others, lambda scope, axes: const(0, wide)))])
    steps = source.shape[axis]
    var = new_var("t")
    time = Loop(steps, "t", fixed=True)
    time.bind(tirx.const(steps - 1, "int32") - var if node.attr("reverse", 0) else var)
    part: Any = _Slice(result, axis, Index.of(time))

    def sums(scope: Scope, axes: Axes) -> tuple[Any, Any]:
        """The sum before and after this step, read before either is stored."""
        key = ("sums", *(axis.key for axis in axes))
        known = scope.memo.get(key)
        if known is None:
            before = scope.keep(total(scope, axes))
            step = convert(source.at(scope, part.place(axes)), wide)
            known = before, scope.keep(before + step)
            scope.remember(key, known, axes)
        return known

    written = 0 if node.attr("exclusive", 0) else 1
    fills = [
        (part, lambda scope, axes: convert(sums(scope, axes)[written], source.dtype)),
        (total, lambda scope, axes: sums(scope, axes)[1]),
    ]
    step = injective.store(fills, body.vector_bytes, threads=1, in_place=True)
    body.statements.append(loop_over(var, steps, sequence(step)))
    return from_array(result, source.dtype)


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": fn.maximum,
    "min": fn.minimum,
}


def _scattered(
    node: Node, body: Body, data: Value, updates: Value, where: Callable[[Scope, Axes], Axes]
) -> Value:
    """A copy of `data` with each update applied in order."""
    result = body.array(data.shape, data.dtype)
    body.store([(result, data)])
    loops = [Loop(dim, f"u{k}", fixed=True) for k, dim in enumerate(updates.shape)]
    axes = tuple(map(Index.of, loops))
    for loop in loops:
        loop.bind(new_var(loop.name))
    scope = Scope()
    place = where(scope, axes)
    wide = compute_dtype(data.dtype)
    old, new = (convert(v, wide) for v in (result(scope, place), updates.at(scope, axes)))
    value = convert(_COMBINE[node.attr("reduction", "none")](old, new), data.dtype)
    statement = scope.loop([result.store(scope, place, value)])
    for loop in reversed(loops):
        statement = loop_over(loop.var, loop.extent, statement)
    body.statements.append(statement)
    return from_array(result, data.dtype)


@emitter("ScatterElements")
def _scatter_elements(node: Node, args: Sequence[Value], body: Body) -> Value:
    data, indices, updates = args
    axis = node.attr("axis", 0) % len(data.shape)

    def where(scope: Scope, axes: Axes) -> Axes:
        place = looked_up(scope, indices, axes, data.shape[axis])
        return (*axes[:axis], place, *axes[axis + 1 :])

    return _scattered(node, body, data, updates, where)


@emitter("ScatterND")
def _scatter_nd(node: Node, args: Sequence[Value], body: Body) -> Value:
    data, indices, updates = args
    depth, outer = indices.shape[-1], len(indices.shape) - 1

    def where(scope: Scope, axes: Axes) -> Axes:
        places = tuple(
            looked_up(scope, indices, (*axes[:outer], Index({}, k)), data.shape[k])
            for k in range(known(depth))
        )
        return (*places, *axes[outer:])

    return _scattered(node, body, data, updates, where)
