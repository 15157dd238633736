"""Types of reductions, normalisations and selections along axes."""

from __future__ import annotations

from whitebox.ir.shapes.rule import Call, Misfit, normal_axes, normal_axis, rule, unknown
from whitebox.ir.types import Dim, TensorType

REDUCTIONS = tuple(
    (
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare"
    ).split()
)


@rule(*REDUCTIONS)
def _reduce(call: Call) -> TensorType:
    type, keep = call.tensor(0), call.attrs["keepdims"]
    # Older forms name the axes by an attribute.
    axes: tuple[int, ...] | None = call.attrs.get("axes")
    if call.has(1):
        axes = call.ints(1)
        if axes is None:
            return _reduce_unknown_axes(call)
    if not axes and call.attrs.get("noop_with_empty_axes"):
        return type
    if type.shape is None:
        return TensorType(type.dtype, () if not axes and not keep else None)
    gone = set(normal_axes(axes, type.rank)) if axes else set(range(type.rank))
    return TensorType(type.dtype, _without(type.shape, gone, keep))


def _reduce_unknown_axes(call: Call) -> TensorType:
    type, count = call.tensor(0), call.length(1)
    if type.shape is None:
        return TensorType(type.dtype, None)
    if call.attrs["keepdims"]:
        return TensorType(type.dtype, unknown(type.rank))
    # No axis at all means all of them (or none), so only a positive count tells the rank.
    return TensorType(type.dtype, unknown(type.rank - count) if count else None)


def _without(shape: tuple[Dim, ...], gone: set[int], keep: int) -> tuple[Dim, ...]:
    if keep:
        return tuple(1 if axis in gone else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in gone)


@rule("ArgMax", "ArgMin")
def _arg(call: Call) -> TensorType:
    shape = call.shape(0)
    if shape is None:
        return TensorType("int64", None)
    axis = normal_axis(call.attrs["axis"], len(shape))
    return TensorType("int64", _without(shape, {axis}, call.attrs["keepdims"]))


@rule("TopK")
def _top_k(call: Call) -> tuple[TensorType, TensorType]:
    type, k = call.tensor(0), call.ints(1)
    if type.shape is None:
        return type, TensorType("int64", None)
    axis = normal_axis(call.attrs["axis"], type.rank)
    size = type.shape[axis]
    if k is not None and isinstance(size, int) and not 0 <= k[0] <= size:
        raise Misfit(f"k = {k[0]} is not within the {size} elements of axis {axis}")
    dims = (*type.shape[:axis], k[0] if k is not None else None, *type.shape[axis + 1 :])
    return TensorType(type.dtype, dims), TensorType("int64", dims)


@rule("BatchNormalization")
def _batch_normalization(call: Call) -> tuple[TensorType, ...] | None:
    if call.n_outputs > 1 or call.attrs.get("training_mode"):
        return None
    shape, scale = call.shape(0), call.shape(1)
    if shape is not None and scale is not None and len(shape) > 1:
        channels, count = shape[1], scale[0] if len(scale) == 1 else None
        if isinstance(channels, int) and isinstance(count, int) and channels != count:
            raise Misfit(f"{count} scales for {channels} channels")
    return (call.tensor(0),)


@rule("LayerNormalization")
def _layer_normalization(call: Call) -> tuple[TensorType, ...]:
    type = call.tensor(0)
    if type.shape is None:
        return (type, *[TensorType("float32", None)] * 2)[: call.n_outputs]
    axis = normal_axis(call.attrs["axis"], type.rank)
    statistic = TensorType("float32", type.shape[:axis] + (1,) * (type.rank - axis))
    return (type, statistic, statistic)[: call.n_outputs]


@rule("RMSNormalization")
def _rms_normalization(call: Call) -> TensorType:
    return TensorType(call.dtype(1), call.shape(0))


@rule("whitebox.Vote")
def _vote(call: Call) -> TensorType:
    type = call.tensor(0)
    return TensorType(type.dtype, None if type.shape is None else type.shape[:-1])
