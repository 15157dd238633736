"""Rules that bring operators of old opsets into their newest form.

Enter: an operator in an old form, its inputs already nodes. Leave: a node in the newest form that
means the same; or None, and the operator keeps its own version. Nothing here sees protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from whitebox.errors import InvalidModel
from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.shapes.reduction import REDUCTIONS
from whitebox.ir.types import ONNX_DTYPES, numpy_dtype

Inputs: TypeAlias = "tuple[Node | None, ...]"


@dataclass(frozen=True)
class Legacy:
    """An operator in an old form; `attrs` has that form's defaults written out."""

    op: str
    version: int
    inputs: Inputs
    attrs: Mapping[str, Any]
    n_outputs: int

    def input(self, index: int) -> Node:
        node = self.inputs[index] if index < len(self.inputs) else None
        if node is None:
            raise InvalidModel(f"{self.op} lacks input {index}; correct the model")
        return node

    def attrs_but(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in self.attrs.items() if name not in names}


# A rule gives the node in the newest form, a tuple of result nodes, or None to keep the old form.
Rule: TypeAlias = Callable[[Legacy], "Node | tuple[Node, ...] | None"]

# Operator → the version from which the newest form means the same, and the rule below it.
LEGACY: dict[str, tuple[int, Rule]] = {}


def _below(version: int, *names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        LEGACY.update(dict.fromkeys(names, (version, function)))
        return function

    return register


def _ints(values: Sequence[int]) -> Node:
    return constant(np.asarray(values, np.int64))


# Attributes that became inputs.


@_below(13, "Squeeze", "Unsqueeze", "ReduceSum")
@_below(18, *(name for name in REDUCTIONS if name != "ReduceSum"))
def _axes_input(legacy: Legacy) -> Node:
    axes = legacy.attrs.get("axes")
    inputs = (legacy.input(0), _ints(axes) if axes is not None else None)
    return ops.make(legacy.op, inputs, legacy.attrs_but("axes"))


@_below(10, "Slice")
def _slice(legacy: Legacy) -> Node:
    starts, ends = legacy.attrs["starts"], legacy.attrs["ends"]
    axes = legacy.attrs.get("axes") or tuple(range(len(starts)))
    return ops.node("Slice", legacy.input(0), _ints(starts), _ints(ends), _ints(axes))


@_below(11, "Pad")
def _pad(legacy: Legacy) -> Node:
    pads = legacy.attrs["pads" if legacy.version > 1 else "paddings"]
    x, value = legacy.input(0), legacy.attrs.get("value", 0.0)
    fill = constant(np.asarray(value, numpy_dtype(x.tensor.dtype))) if value else None
    return ops.node("Pad", x, _ints(pads), fill, mode=legacy.attrs.get("mode", "constant"))


@_below(11, "Clip")
def _clip(legacy: Legacy) -> Node:
    x = legacy.input(0)
    dtype = numpy_dtype(x.tensor.dtype)
    lowest = float(np.finfo(np.float32).min)

    def bound(name: str, none: float) -> Node | None:
        value = legacy.attrs.get(name, none)
        return constant(np.asarray(value, dtype)) if abs(value) < -lowest else None

    return ops.node("Clip", x, bound("min", lowest), bound("max", -lowest))


@_below(18, "Split")
def _split(legacy: Legacy) -> Node:
    sizes = legacy.attrs.get("split")
    given = legacy.inputs[1] if len(legacy.inputs) > 1 else None
    if sizes is not None:
        given = _ints(sizes)
    attrs: dict[str, Any] = {"axis": legacy.attrs.get("axis", 0)}
    if given is None:
        attrs["num_outputs"] = legacy.n_outputs
    return ops.node("Split", legacy.input(0), given, outputs=legacy.n_outputs, **attrs)


@_below(10, "TopK")
def _top_k(legacy: Legacy) -> Node:
    axis, k = legacy.attrs.get("axis", -1), _ints([legacy.attrs["k"]])
    return ops.node("TopK", legacy.input(0), k, outputs=legacy.n_outputs, axis=axis)


@_below(5, "Reshape")
def _reshape(legacy: Legacy) -> Node:
    return ops.node("Reshape", legacy.input(0), _ints(legacy.attrs.get("shape", ())))


@_below(20, "DFT")
def _dft(legacy: Legacy) -> Node:
    axis = constant(np.asarray(legacy.attrs.get("axis", 1), np.int64))
    length = legacy.inputs[1] if len(legacy.inputs) > 1 else None
    return ops.make("DFT", (legacy.input(0), length, axis), legacy.attrs_but("axis"))


@_below(10, "Upsample")
def _upsample(legacy: Legacy) -> Node:
    x = legacy.input(0)
    scales: Node = (
        legacy.input(1)
        if legacy.version >= 9
        else constant(np.asarray(_legacy_scales(legacy), np.float32))
    )
    return _old_resize(x, scales, legacy.attrs["mode"])


def _legacy_scales(legacy: Legacy) -> Sequence[float]:
    if legacy.version >= 7:
        scales: Sequence[float] = legacy.attrs["scales"]
        return scales
    return (1.0, 1.0, legacy.attrs["height_scale"], legacy.attrs["width_scale"])


def _old_resize(x: Node, scales: Node, mode: str) -> Node:
    return ops.node(
        "Resize",
        x,
        None,
        scales,
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@_below(13, "Resize")
def _resize(legacy: Legacy) -> Node | None:
    if legacy.version == 10:
        return _old_resize(legacy.input(0), legacy.input(1), legacy.attrs["mode"])
    if legacy.attrs["coordinate_transformation_mode"] == "tf_half_pixel_for_nn":
        return None
    return ops.make("Resize", legacy.inputs, legacy.attrs)


# Defaults and meanings that changed.


@_below(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax(legacy: Legacy) -> Node:
    """The old form takes all axes from `axis` on as one; the new one a single axis."""
    x, axis = legacy.input(0), legacy.attrs["axis"]
    shape = x.tensor.shape
    if axis == -1 or (shape is not None and axis == len(shape) - 1):
        return ops.node(legacy.op, x, axis=-1)
    if shape is not None and all(dim == 1 for dim in shape[axis:][1:]):
        return ops.node(legacy.op, x, axis=axis)
    flat = ops.node(legacy.op, ops.node("Flatten", x, axis=axis), axis=-1)
    target = _ints(x.tensor.dims) if x.tensor.is_static else ops.node("Shape", x)
    return ops.node("Reshape", flat, target)


@_below(7, *"Add Sub Mul Div Pow And Or Xor Equal Greater Less".split())
def _broadcast_axis(legacy: Legacy) -> Node:
    """`axis` says where the axes of the second input start among those of the first."""
    a, b = legacy.input(0), legacy.input(1)
    axis = legacy.attrs.get("axis")
    if legacy.attrs.get("broadcast") and axis is not None:
        trailing = a.tensor.rank - axis % a.tensor.rank - b.tensor.rank
        if trailing > 0:
            rank = b.tensor.rank
            b = ops.node("Unsqueeze", b, _ints(range(rank, rank + trailing)))
    return ops.node(legacy.op, a, b)


@_below(7, "PRelu")
def _prelu(legacy: Legacy) -> Node:
    """A slope with one axis is one number a channel."""
    x, slope = legacy.input(0), legacy.input(1)
    rank = x.tensor.rank
    if slope.tensor.shape not in ((1,), ()) and rank > 2:
        slope = ops.node("Unsqueeze", slope, _ints(range(1, rank - 1)))
    return ops.node("PRelu", x, slope)


@_below(6, "Cast")
def _cast(legacy: Legacy) -> Node:
    spelled = str(legacy.attrs["to"]).lower()
    dtype = {"float": "float32", "double": "float64"}.get(spelled, spelled)
    return ops.node("Cast", legacy.input(0), to=ONNX_DTYPES.index(dtype))


@_below(4, "Concat")
def _concat(legacy: Legacy) -> Node:
    return ops.node("Concat", *legacy.inputs, axis=legacy.attrs.get("axis", 1))


@_below(6, "Tile")
def _tile(legacy: Legacy) -> None:
    return None


@_below(2, "GlobalLpPool", "LpPool")
def _float_norm(legacy: Legacy) -> Node:
    attrs = {**legacy.attrs, "p": int(legacy.attrs.get("p", 2))}
    return ops.make(legacy.op, legacy.inputs, attrs)


@_below(20, "GridSample")
def _grid_sample(legacy: Legacy) -> Node:
    modes = {"bilinear": "linear", "bicubic": "cubic"}
    mode = legacy.attrs["mode"]
    return ops.make("GridSample", legacy.inputs, {**legacy.attrs, "mode": modes.get(mode, mode)})


@_below(16, "RoiAlign")
def _roi_align(legacy: Legacy) -> Node:
    mode = {"coordinate_transformation_mode": "output_half_pixel"}
    return ops.make("RoiAlign", legacy.inputs, {**legacy.attrs, **mode})


@_below(21, "GroupNormalization")
def _group_normalization(legacy: Legacy) -> Node | None:
    """One scale a group becomes one a channel."""
    x, groups = legacy.input(0), legacy.attrs["num_groups"]
    type = x.tensor
    channels = type.shape[1] if type.shape is not None and len(type.shape) > 1 else None
    if not isinstance(channels, int) or type.dtype != "float32":
        return None

    def spread(values: Node) -> Node:
        column = ops.node("Unsqueeze", values, _ints([1]))
        wide = ops.node("Expand", column, _ints([groups, channels // groups]))
        return ops.node("Reshape", wide, _ints([channels]))

    scale, bias = spread(legacy.input(1)), spread(legacy.input(2))
    return ops.make("GroupNormalization", (x, scale, bias), legacy.attrs)


@_below(11, "Scatter")
def _scatter(legacy: Legacy) -> Node:
    return ops.make("ScatterElements", legacy.inputs, legacy.attrs)


@_below(25, "Attention")
def _changed_meaning(legacy: Legacy) -> None:
    return None
