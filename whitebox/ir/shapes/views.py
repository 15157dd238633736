"""Types of operators that give the same elements another shape or order."""

from __future__ import annotations

import math
from collections import Counter

from whitebox.ir.shapes.rule import Call, Misfit, Shape, all_ints, normal_axes, rule, unknown
from whitebox.ir.types import Dim, TensorType


@rule("Reshape")
def _reshape(call: Call) -> TensorType:
    type = call.tensor(0)
    wanted = call.ints(1) if call.has(1) else call.attrs.get("shape")
    if wanted is None:
        count = call.length(1)
        return TensorType(type.dtype, None if count is None else unknown(count))
    return TensorType(
        type.dtype, reshaped(type.shape, tuple(wanted), bool(call.attrs.get("allowzero")))
    )


def reshaped(shape: Shape, wanted: tuple[int, ...], allow_zero: bool = False) -> tuple[Dim, ...]:
    """Reshape's result: 0 keeps a dimension, one -1 takes what is left."""
    dims: list[Dim] = []
    for axis, size in enumerate(wanted):
        if size == 0 and not allow_zero:
            if shape is not None and axis >= len(shape):
                raise Misfit(f"target {list(wanted)} keeps axis {axis}, which is not there")
            dims.append(None if shape is None else shape[axis])
        else:
            dims.append(size)
    if wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise Misfit(f"{list(wanted)} is not a shape")
    if shape is None:
        return tuple(None if dim == -1 else dim for dim in dims)
    if -1 in dims:
        at = dims.index(-1)
        dims[at] = _quotient(shape, (*dims[:at], *dims[at + 1 :]))
        return tuple(dims)
    if all_ints(shape) and all_ints(dims) and math.prod(shape) != math.prod(dims):
        raise Misfit(f"{list(shape)} does not fill {dims}")
    return tuple(dims)


def _quotient(shape: tuple[Dim, ...], others: tuple[Dim, ...]) -> Dim:
    """What is left of `shape`'s elements for one dimension beside `others`."""
    symbols = Counter(dim for dim in shape if not isinstance(dim, int))
    symbols.subtract(dim for dim in others if not isinstance(dim, int))
    rest = [symbol for symbol, count in symbols.items() for _ in range(count)]
    cut_short = any(count < 0 for count in symbols.values())
    have = math.prod(dim for dim in shape if isinstance(dim, int))
    used = math.prod(dim for dim in others if isinstance(dim, int))
    if not rest and not cut_short and None not in others:
        if used == 0 or have % used:
            raise Misfit(f"{list(shape)} does not divide into {list(others)}")
        return have // used
    if len(rest) == 1 and not cut_short and None not in others and have == used and have:
        return rest[0]
    return None


@rule("Flatten")
def _flatten(call: Call) -> TensorType:
    type, axis = call.tensor(0), call.attrs["axis"]
    if type.shape is None:
        return TensorType(type.dtype, (None, None))
    if not -type.rank <= axis <= type.rank:
        raise Misfit(f"axis {axis} is out of range for rank {type.rank}")
    at = axis + type.rank if axis < 0 else axis
    halves = (product(type.shape[:at]), product(type.shape[at:]))
    return TensorType(type.dtype, halves)


def product(dims: tuple[Dim, ...]) -> Dim:
    """The number of elements, when numbers (and at most one symbol times one) tell it."""
    free = [dim for dim in dims if not isinstance(dim, int)]
    known = math.prod(dim for dim in dims if isinstance(dim, int))
    if not free or known == 0:
        return known
    return free[0] if len(free) == 1 and known == 1 else None


@rule("Squeeze")
def _squeeze(call: Call) -> TensorType:
    type = call.tensor(0)
    axes = call.ints(1) if call.has(1) else call.attrs.get("axes")
    if type.shape is None:
        return type
    if axes is None and call.has(1):
        count = call.length(1)
        return TensorType(type.dtype, None if count is None else unknown(type.rank - count))
    if axes is None:
        if not all(isinstance(dim, int) for dim in type.shape):
            return TensorType(type.dtype, None)
        return TensorType(type.dtype, tuple(dim for dim in type.shape if dim != 1))
    gone = normal_axes(tuple(axes), type.rank)
    for axis in gone:
        if isinstance(type.shape[axis], int) and type.shape[axis] != 1:
            raise Misfit(f"axis {axis} has {type.shape[axis]} elements, not 1")
    return TensorType(
        type.dtype, tuple(dim for axis, dim in enumerate(type.shape) if axis not in gone)
    )


@rule("Unsqueeze")
def _unsqueeze(call: Call) -> TensorType:
    type = call.tensor(0)
    axes = call.ints(1) if call.has(1) else call.attrs.get("axes")
    if type.shape is None:
        return type
    if axes is None:
        count = call.length(1)
        return TensorType(type.dtype, None if count is None else unknown(type.rank + count))
    rank = type.rank + len(axes)
    new, old = set(normal_axes(tuple(axes), rank)), iter(type.shape)
    return TensorType(type.dtype, tuple(1 if i in new else next(old) for i in range(rank)))


@rule("Transpose")
def _transpose(call: Call) -> TensorType:
    type, perm = call.tensor(0), call.attrs.get("perm")
    if type.shape is None:
        return TensorType(type.dtype, None if perm is None else unknown(len(perm)))
    if perm is None:
        return TensorType(type.dtype, type.shape[::-1])
    if sorted(perm) != list(range(type.rank)):
        raise Misfit(f"{list(perm)} is not an order of {type.rank} axes")
    return TensorType(type.dtype, tuple(type.shape[axis] for axis in perm))
