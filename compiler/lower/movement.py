"""Operators that only move elements: shapes, slices, joins, padding, gathering.

What enters: nodes and the values of their inputs; axes, bounds and pads are constants. What leaves:
values whose indices are arithmetic on the indices of the result. Indices that come as data are
clamped into range, so that no input can make a kernel read outside its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tvm import tirx

from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Index,
    Scope,
    Value,
    const,
    convert,
    emitter,
    ints,
    moved,
    reshaped,
)
from whitebox.errors import CompileError
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, known
from whitebox.kernels.cpu.affine import Opaque


@emitter("Identity", "Dropout")
def _identity(node: Node, args: Sequence[Value], body: Body) -> Value:
    return args[0]


@emitter("Reshape", "Squeeze", "Unsqueeze", "Flatten")
def _reshape(node: Node, args: Sequence[Value], body: Body) -> Value:
    return reshaped(args[0], node.tensor.extents)


@emitter("Transpose")
def _transpose(node: Node, args: Sequence[Value], body: Body) -> Value:
    rank = len(args[0].shape)
    perm = node.attr("perm") or tuple(reversed(range(rank)))
    position = {int(axis): k for k, axis in enumerate(perm)}
    return moved(node, args[0], lambda axes: tuple(axes[position[k]] for k in range(rank)))


@emitter("Expand")
def _expand(node: Node, args: Sequence[Value], body: Body) -> Value:
    return Value(node.tensor.dtype, node.tensor.extents, args[0].broadcast)


@emitter("Tile")
def _tile(node: Node, args: Sequence[Value], body: Body) -> Value:
    shape = args[0].shape
    return moved(
        node,
        args[0],
        lambda axes: tuple(axis % dim for axis, dim in zip(axes, shape, strict=True)),
    )


@emitter("Slice")
def _slice(node: Node, args: Sequence[Value], body: Body) -> Value:
    shape = args[0].shape
    starts = ints(node, 1)
    axes_given = ints(node, 3, range(len(starts)))
    steps = ints(node, 4, [1] * len(starts))
    first, stride = [0] * len(shape), [1] * len(shape)
    for axis, start, step in zip(axes_given, starts, steps, strict=True):
        stride[axis] = step
        if start >= 0 and step > 0:
            first[axis] = start  # it lies inside, since something is left
            continue
        dim = known(shape[axis])
        start = start + dim if start < 0 else start
        first[axis] = min(max(start, 0), dim if step > 0 else dim - 1)
    return moved(
        node,
        args[0],
        lambda axes: tuple(a * s + f for a, s, f in zip(axes, stride, first, strict=True)),
    )


@emitter("Split")
def _split(node: Node, args: Sequence[Value], body: Body) -> tuple[Value, ...]:
    axis = node.attr("axis", 0) % len(args[0].shape)
    sizes = [type.extents[axis] for type in node.types]  # type: ignore[union-attr]
    starts = [0, *accumulate(sizes)][:-1]

    def part(index: int) -> Value:
        start, shape = starts[index], node.types[index].extents  # type: ignore[union-attr]

        def element(scope: Scope, axes: Axes) -> Any:
            return args[0].at(scope, (*axes[:axis], axes[axis] + start, *axes[axis + 1 :]))

        return Value(args[0].dtype, shape, element)

    return tuple(part(index) for index in range(len(sizes)))


@emitter("Concat")
def _concat(node: Node, args: Sequence[Value], body: Body) -> Value:
    axis = node.attr("axis") % len(node.tensor.extents)
    parts = [arg for arg in args if arg.shape[axis]]
    ends = list(accumulate(part.shape[axis] for part in parts))

    def element(scope: Scope, axes: Axes) -> Any:
        def pick(k: int) -> Any:
            start = ends[k] - parts[k].shape[axis]
            own = (*axes[:axis], axes[axis] - start, *axes[axis + 1 :])
            if k == len(parts) - 1:
                return parts[k].at(scope, own)
            inside = scope.less(axes[axis], ends[k])
            return scope.choose(inside, lambda: parts[k].at(scope, own), lambda: pick(k + 1))

        return pick(0)

    return Value(node.tensor.dtype, node.tensor.extents, element)


@emitter("DepthToSpace")
def _depth_to_space(node: Node, args: Sequence[Value], body: Body) -> Value:
    size = node.attr("blocksize")
    channels = node.tensor.extents[1]
    depth_first = node.attr("mode", "DCR") == "DCR"

    def where(axes: Axes) -> Axes:
        n, c, h, w = axes
        (row, dy), (column, dx) = h.divmod(size), w.divmod(size)
        inner = dy * size + dx
        channel = inner * channels + c if depth_first else c * (size * size) + inner
        return n, channel, row, column

    return moved(node, args[0], where)


@emitter("SpaceToDepth")
def _space_to_depth(node: Node, args: Sequence[Value], body: Body) -> Value:
    size = node.attr("blocksize")
    channels = args[0].shape[1]
    depth_first = node.attr("mode", "DCR") == "DCR"

    def where(axes: Axes) -> Axes:
        n, c, h, w = axes
        if depth_first:
            inner, channel = c.divmod(channels)
        else:
            channel, inner = c.divmod(size * size)
        dy, dx = inner.divmod(size)
        return n, channel, h * size + dy, w * size + dx

    return moved(node, args[0], where)


@emitter("Pad")
def _pad(node: Node, args: Sequence[Value], body: Body) -> Value:
    shape = args[0].shape
    pads = ints(node, 1)
    axes_given = [axis % len(shape) for axis in ints(node, 3, range(len(shape)))]
    before = [0] * len(shape)
    for k, axis in enumerate(axes_given):
        before[axis] = pads[k]
    mode = node.attr("mode", "constant")
    if mode == "constant":
        return _pad_constant(node, args[0], before, args[2] if len(args) > 2 else None)

    def element(scope: Scope, axes: Axes) -> Any:
        return _pad_from_inside(scope, args[0], mode, axes, before, 0)

    return Value(node.tensor.dtype, node.tensor.extents, element)


def _pad_constant(node: Node, source: Value, before: list[int], fill: Value | None) -> Value:
    dtype = node.tensor.dtype

    def outside(scope: Scope) -> Any:
        if fill is None:
            return const(0, dtype)
        return fill.at(scope, (Index({}),) * len(fill.shape))

    def element(scope: Scope, axes: Axes) -> Any:
        own = tuple(axis - start for axis, start in zip(axes, before, strict=True))

        def check(k: int) -> Any:
            if k == len(own):
                return source.at(scope, own)
            low = scope.less(own[k], 0)
            high = scope.less(own[k], source.shape[k])
            return scope.choose(
                low,
                lambda: outside(scope),
                lambda: scope.choose(high, lambda: check(k + 1), lambda: outside(scope)),
            )

        return check(0)

    return Value(dtype, node.tensor.extents, element)


def _pad_from_inside(
    scope: Scope, source: Value, mode: str, axes: Axes, before: list[int], k: int
) -> Any:
    """The element for padding by repeating (edge), mirroring (reflect) or wrapping around."""
    if k == len(axes):
        return source.at(scope, axes)
    dim = source.shape[k]
    own = axes[k] - before[k]

    def at(index: Index) -> Any:
        placed = (*axes[:k], index, *axes[k + 1 :])
        return _pad_from_inside(scope, source, mode, placed, before, k + 1)

    if mode == "wrap":
        return at(own % dim)
    if mode == "reflect" and dim != 1:
        own = own % (2 * (dim - 1))
    low = scope.less(own, 0)
    high = scope.less(own, dim)
    below = Index({}) if mode == "edge" else own * -1
    above = Index({}, dim - 1) if mode == "edge" else Index({}, 2 * (dim - 1)) - own
    return scope.choose(
        low,
        lambda: at(below),
        lambda: scope.choose(high, lambda: at(own), lambda: at(above)),
    )


def looked_up(scope: Scope, indices: Value, axes: Axes, dim: Extent) -> Index:
    """An index that comes as data: negative ones count from the end, all are kept in range."""
    raw = convert(indices.at(scope, axes), "int32")
    zero, size = const(0, "int32"), const(dim, "int32")
    if not indices.dtype.startswith("uint"):
        raw = tirx.Select(raw < zero, raw + size, raw)
    raw = tirx.max(tirx.min(raw, const(dim - 1, "int32")), zero)
    loops = frozenset().union(*(axis.loops for axis in axes)) if axes else frozenset()
    return Index({Opaque(scope.keep(raw), 0, dim - 1, loops): 1})


@emitter("Gather")
def _gather(node: Node, args: Sequence[Value], body: Body) -> Value:
    data, indices = args
    axis = node.attr("axis", 0) % len(data.shape)
    rank = len(indices.shape)

    def element(scope: Scope, axes: Axes) -> Any:
        place = looked_up(scope, indices, axes[axis : axis + rank], data.shape[axis])
        return data.at(scope, (*axes[:axis], place, *axes[axis + rank :]))

    return Value(node.tensor.dtype, node.tensor.extents, element)


@emitter("GatherElements")
def _gather_elements(node: Node, args: Sequence[Value], body: Body) -> Value:
    data, indices = args
    axis = node.attr("axis", 0) % len(data.shape)

    def element(scope: Scope, axes: Axes) -> Any:
        place = looked_up(scope, indices, axes, data.shape[axis])
        return data.at(scope, (*axes[:axis], place, *axes[axis + 1 :]))

    return Value(node.tensor.dtype, node.tensor.extents, element)


@emitter("GatherND")
def _gather_nd(node: Node, args: Sequence[Value], body: Body) -> Value:
    data, indices = args
    batch = node.attr("batch_dims", 0)
    depth = indices.shape[-1]
    outer = len(indices.shape) - 1

    def element(scope: Scope, axes: Axes) -> Any:
        places = tuple(
            looked_up(scope, indices, (*axes[:outer], Index({}, k)), data.shape[batch + k])
            for k in range(known(depth))
        )
        return data.at(scope, (*axes[:batch], *places, *axes[outer:]))

    return Value(node.tensor.dtype, node.tensor.extents, element)


@emitter("OneHot")
def _one_hot(node: Node, args: Sequence[Value], body: Body) -> Value:
    indices, values = args[0], args[2]
    shape = node.tensor.extents
    axis = node.attr("axis", -1) % len(shape)
    depth = shape[axis]

    def element(scope: Scope, axes: Axes) -> Any:
        raw = convert(indices.at(scope, (*axes[:axis], *axes[axis + 1 :])), "int64")
        wrapped = tirx.Select(raw < const(0, "int64"), raw + const(depth, "int64"), raw)
        hit = tirx.EQ(wrapped, convert(scope.number(axes[axis]), "int64"))
        off, on = (values.at(scope, (Index({}, k),)) for k in (0, 1))
        return tirx.Select(hit, on, off)

    return Value(node.tensor.dtype, shape, element)


@emitter("Trilu")
def _trilu(node: Node, args: Sequence[Value], body: Body) -> Value:
    upper = bool(node.attr("upper", 1))
    k = ints(node, 1, [0])[0]

    def element(scope: Scope, axes: Axes) -> Any:
        row, column = (scope.number(axis) for axis in axes[-2:])
        diagonal = row + const(k, "int32")
        keep = column >= diagonal if upper else column <= diagonal
        return tirx.Select(keep, args[0].at(scope, axes), const(0, node.tensor.dtype))

    return Value(node.tensor.dtype, node.tensor.extents, element)


@emitter("EyeLike")
def _eye_like(node: Node, args: Sequence[Value], body: Body) -> Value:
    k, dtype = node.attr("k", 0), node.tensor.dtype

    def element(scope: Scope, axes: Axes) -> Any:
        row, column = (scope.number(axis) for axis in axes)
        hit = tirx.EQ(row + const(k, "int32"), column)
        return tirx.Select(hit, const(1, dtype), const(0, dtype))

    return Value(dtype, node.tensor.extents, element)


@emitter("ReverseSequence")
def _reverse_sequence(node: Node, args: Sequence[Value], body: Body) -> Value:
    data, lengths = args
    batch, time = node.attr("batch_axis", 1), node.attr("time_axis", 0)
    steps = data.shape[time]

    def element(scope: Scope, axes: Axes) -> Any:
        length = convert(lengths.at(scope, (axes[batch],)), "int32")
        step = scope.number(axes[time])
        mirrored = tirx.max(length - const(1, "int32") - step, const(0, "int32"))
        place = tirx.min(tirx.Select(step < length, mirrored, step), const(steps - 1, "int32"))
        loops = axes[batch].loops | axes[time].loops
        index = Index({Opaque(scope.keep(place), 0, steps - 1, loops): 1})
        return data.at(scope, (*axes[:time], index, *axes[time + 1 :]))

    return Value(node.tensor.dtype, node.tensor.extents, element)


@emitter("ConstantOfShape")
def _constant_of_shape(node: Node, args: Sequence[Value], body: Body) -> Value:
    given = node.attr("value")
    fill = given.array.reshape(-1)[0].item() if given is not None else 0.0
    dtype = node.tensor.dtype
    return Value(dtype, node.tensor.extents, lambda scope, axes: const(fill, dtype))


@emitter("Shape", "Size")
def _static(node: Node, args: Sequence[Value], body: Body) -> Value:
    raise CompileError(f"{node.op} of a static shape is a constant: fold it before lowering")
