"""Types of operators that cut, join, repeat, look up or make elements."""

from __future__ import annotations

import math

from whitebox.ir.shapes.elementwise import dtype_of_number
from whitebox.ir.shapes.rule import (
    Call,
    Misfit,
    all_ints,
    broadcast,
    normal_axes,
    normal_axis,
    rule,
    unify,
    unknown,
)
from whitebox.ir.types import Dim, TensorType


@rule("Concat")
def _concat(call: Call) -> TensorType:
    dtype = call.dtype(0)
    shapes = [call.shape(index) for index in range(len(call.inputs))]
    if any(call.dtype(index) != dtype for index in range(len(shapes))):
        raise Misfit("the dtypes differ")
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return TensorType(dtype, None)
    rank = len(known[0])
    if any(len(shape) != rank for shape in known):
        raise Misfit("the ranks differ")
    axis = normal_axis(call.attrs["axis"], rank)
    dims = list(known[0])
    for shape in known[1:]:
        dims = [
            unify(dim, other) if i != axis else dim
            for i, (dim, other) in enumerate(zip(dims, shape, strict=True))
        ]
    parts = [shape[axis] if shape is not None else None for shape in shapes]
    if all_ints(parts):
        dims[axis] = sum(parts)
    else:
        dims[axis] = parts[0] if len(parts) == 1 else None
    return TensorType(dtype, tuple(dims))


@rule("Split")
def _split(call: Call) -> tuple[TensorType, ...]:
    type, n = call.tensor(0), call.n_outputs
    if type.shape is None:
        return (type,) * n
    axis = normal_axis(call.attrs["axis"], type.rank)
    sizes: tuple[Dim, ...] = _split_sizes(call, type.shape[axis])
    return tuple(
        TensorType(type.dtype, (*type.shape[:axis], size, *type.shape[axis + 1 :]))
        for size in sizes
    )


def _split_sizes(call: Call, size: Dim) -> tuple[Dim, ...]:
    n = call.n_outputs
    given = call.ints(1) if call.has(1) else call.attrs.get("split")
    if given is not None:
        if len(given) != n or (isinstance(size, int) and sum(given) != size):
            raise Misfit(f"split {list(given)} does not cut {size} elements into {n} results")
        return tuple(given)
    if call.has(1) or not isinstance(size, int):
        return (None,) * n
    if call.attrs.get("num_outputs", n) != n:
        raise Misfit(f"num_outputs is {call.attrs['num_outputs']} and there are {n} results")
    part = -(-size // n)
    return tuple(max(min(part, size - i * part), 0) for i in range(n))


@rule("Slice")
def _slice(call: Call) -> TensorType | None:
    type = call.tensor(0)
    if call.version < 10 or type.shape is None:
        return None if call.version < 10 else type
    starts, ends, steps = call.ints(1), call.ints(2), call.ints(4)
    axes = call.ints(3) if call.has(3) else tuple(range(len(starts or ())))
    dims = list(type.shape)
    if axes is None or (starts is None and not call.has(3)):
        return TensorType(type.dtype, unknown(type.rank))
    axes = normal_axes(axes, type.rank)
    if steps is None and not call.has(4):
        steps = (1,) * len(axes)
    for i, axis in enumerate(axes):
        if starts is None or ends is None or steps is None:
            dims[axis] = None
        else:
            dims[axis] = sliced_dim(dims[axis], starts[i], ends[i], steps[i])
    return TensorType(type.dtype, tuple(dims))


def sliced_dim(dim: Dim, start: int, end: int, step: int) -> Dim:
    """How many elements `start:end:step` leaves of a dimension."""
    if step == 0:
        raise Misfit("a step of 0")
    if isinstance(dim, int):
        return len(range(*slice(start, end, step).indices(dim)))
    whole = step == 1 and start == 0 and end >= 2**31 - 1
    return dim if whole else None


@rule("Gather")
def _gather(call: Call) -> TensorType:
    type, indices = call.tensor(0), call.shape(1)
    if type.shape is None or indices is None:
        return TensorType(type.dtype, None)
    axis = normal_axis(call.attrs["axis"], type.rank)
    return TensorType(type.dtype, type.shape[:axis] + indices + type.shape[axis + 1 :])


@rule("GatherElements")
def _gather_elements(call: Call) -> TensorType:
    return TensorType(call.dtype(0), call.shape(1))


@rule("Shape")
def _shape(call: Call) -> TensorType:
    shape = call.shape(0)
    if shape is None:
        return TensorType("int64", (None,))
    part = shape[slice(call.attrs.get("start", 0), call.attrs.get("end"))]
    return TensorType("int64", (len(part),))


@rule("Size")
def _size(call: Call) -> TensorType:
    call.tensor(0)
    return TensorType("int64", ())


@rule("Pad")
def _pad(call: Call) -> TensorType | None:
    type, pads = call.tensor(0), call.ints(1)
    if call.version < 11:
        return None
    if type.shape is None or pads is None or (call.has(3) and call.ints(3) is None):
        return TensorType(type.dtype, None if type.shape is None else unknown(type.rank))
    axes = normal_axes(call.ints(3) or tuple(range(type.rank)), type.rank)
    if len(pads) != 2 * len(axes):
        raise Misfit(f"{len(pads)} pads for {len(axes)} axes")
    dims = list(type.shape)
    for i, axis in enumerate(axes):
        extra, dim = pads[i] + pads[len(axes) + i], dims[axis]
        if isinstance(dim, int):
            if dim + extra < 0:
                raise Misfit(f"pads cut more than the {dim} elements of axis {axis}")
            dims[axis] = dim + extra
        elif extra:
            dims[axis] = None
    return TensorType(type.dtype, tuple(dims))


@rule("Expand")
def _expand(call: Call) -> TensorType:
    type, wanted = call.tensor(0), call.ints(1)
    if wanted is not None:
        return TensorType(type.dtype, broadcast(type.shape, wanted))
    count = call.length(1)
    if type.shape is None or count is None:
        return TensorType(type.dtype, None)
    return TensorType(type.dtype, unknown(max(type.rank, count)))


@rule("Tile")
def _tile(call: Call) -> TensorType | None:
    type, repeats = call.tensor(0), call.ints(1)
    if call.version < 6:
        return None
    if type.shape is None or repeats is None:
        return TensorType(type.dtype, None if type.shape is None else unknown(type.rank))
    if len(repeats) != type.rank:
        raise Misfit(f"{len(repeats)} repeats for rank {type.rank}")
    dims = tuple(
        dim * count if isinstance(dim, int) else dim if count == 1 else None
        for dim, count in zip(type.shape, repeats, strict=True)
    )
    return TensorType(type.dtype, dims)


@rule("ConstantOfShape")
def _constant_of_shape(call: Call) -> TensorType:
    value, shape = call.attrs.get("value"), call.ints(0)
    dtype = value.type.dtype if value is not None else "float32"
    if shape is not None:
        if min(shape, default=0) < 0:
            raise Misfit(f"{list(shape)} is not a shape")
        return TensorType(dtype, shape)
    count = call.length(0)
    return TensorType(dtype, None if count is None else unknown(count))


@rule("Range")
def _range(call: Call) -> TensorType:
    bounds = [call.array(index) for index in range(3)]
    dtype = call.dtype(0)
    if any(bound is None for bound in bounds):
        return TensorType(dtype, (None,))
    start, limit, delta = (bound.reshape(-1)[0].item() for bound in bounds)  # type: ignore[union-attr]
    if delta == 0:
        raise Misfit("a step of 0")
    return TensorType(dtype, (max(math.ceil((limit - start) / delta), 0),))


@rule("OneHot")
def _one_hot(call: Call) -> TensorType:
    indices, depth = call.shape(0), call.ints(1)
    if indices is None:
        return TensorType(call.dtype(2), None)
    axis = normal_axis(call.attrs["axis"], len(indices) + 1)
    size = int(depth[0]) if depth is not None else None
    return TensorType(call.dtype(2), (*indices[:axis], size, *indices[axis:]))


@rule("EyeLike")
def _eye_like(call: Call) -> TensorType:
    number = call.attrs.get("dtype")
    return TensorType(call.dtype(0) if number is None else dtype_of_number(number), call.shape(0))


@rule("NonZero")
def _non_zero(call: Call) -> TensorType:
    shape = call.shape(0)
    return TensorType("int64", (None if shape is None else len(shape), None))
