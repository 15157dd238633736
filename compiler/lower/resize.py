"""Resize: each result element is interpolated between a few source elements an axis.

What enters: nodes with static sizes or scales. What leaves: values. Source coordinates are exact
fractions of the result's index, so that the position is integer arithmetic (and, for whole factors,
no arithmetic at all), and only the weights are floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import product
from typing import Any

from tvm import tirx

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
)
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, Size, known
from whitebox.kernels.cpu.affine import Opaque

# Scales are read as fractions of at most this denominator: exact for any ratio of sizes.
_DENOMINATOR = 1 << 12


@dataclass(frozen=True)
class Coordinate:
    """The source coordinate `(slope * index + offset) / denominator` of a result index."""

    slope: int
    offset: int
    denominator: int

    @classmethod
    def of(cls, slope: Fraction, offset: Fraction) -> Coordinate:
        common = slope.denominator * offset.denominator
        reduced = Fraction(1, common)
        return cls(int(slope / reduced), int(offset / reduced), common)

    def shifted(self, by: Fraction) -> Coordinate:
        return Coordinate.of(
            Fraction(self.slope, self.denominator), Fraction(self.offset, self.denominator) + by
        )

    def floor(self, index: Index) -> tuple[Index, Index]:
        """The coordinate rounded down, and what is left in units of 1 / denominator."""
        return (index * self.slope + self.offset).divmod(self.denominator)

    def ceil(self, index: Index) -> Index:
        return (index * -self.slope - self.offset).divmod(self.denominator)[0] * -1


def _fraction(value: float) -> Fraction:
    return Fraction(value).limit_denominator(_DENOMINATOR)


def _scale(node: Node, position: int, size: Extent, out: Extent) -> Fraction:
    """The scale of one axis, given by the third input or by the sizes."""
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if scales is not None and scales.value.size:
        return _fraction(float(scales.value[position]))
    sizes = node.inputs[3]
    assert sizes is not None
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return Fraction(known(out), known(size))
    source = node.inputs[0].tensor.extents  # type: ignore[union-attr]
    named = _axes(node, len(source))
    ratios = [Fraction(int(n), known(source[a])) for n, a in zip(sizes.value, named, strict=True)]
    return min(ratios) if policy == "not_larger" else max(ratios)


def _axes(node: Node, rank: int) -> list[int]:
    return [axis % rank for axis in node.attr("axes") or range(rank)]


def _coordinate(mode: str, scale: Fraction, size: Extent, out: Extent) -> Coordinate:
    half = Fraction(1, 2)
    slope = 1 / scale
    if mode == "asymmetric":
        return Coordinate.of(slope, Fraction(0))
    if mode == "align_corners":
        # By the exact size, which is not always the whole number of elements that it is cut to.
        exact = scale * known(size)
        slope = (known(size) - 1) / (exact - 1) if exact > 1 else Fraction(0)
        return Coordinate.of(slope, Fraction(0))
    if mode == "pytorch_half_pixel" and known(out) == 1:
        return Coordinate.of(Fraction(0), Fraction(0))
    offset = half * slope - half
    if mode == "half_pixel_symmetric":
        offset += Fraction(known(size), 2) * (1 - known(out) / (scale * known(size)))
    return Coordinate.of(slope, offset)


Taps = list[tuple[Index, Any]]


def _clamped(scope: Scope, index: Index, size: Extent, use: Callable[[Index], Any]) -> Any:
    """`use` of an index moved into range."""
    if isinstance(size, Size):
        last = const(size - 1, "int32")
        place = tirx.max(tirx.min(scope.number(index), last), const(0, "int32"))
        return use(Index({Opaque(place, 0, size - 1, index.loops): 1}))
    return scope.choose(
        scope.less(index, 0),
        lambda: use(Index({})),
        lambda: scope.choose(
            scope.less(index, size), lambda: use(index), lambda: use(Index({}, size - 1))
        ),
    )


def _nearest(coordinate: Coordinate, mode: str, index: Index) -> Index:
    half = Fraction(1, 2)
    if mode == "floor":
        return coordinate.floor(index)[0]
    if mode == "ceil":
        return coordinate.ceil(index)
    if mode == "round_prefer_ceil":
        return coordinate.shifted(half).floor(index)[0]
    return coordinate.shifted(-half).ceil(index)


def _linear(scope: Scope, coordinate: Coordinate, index: Index, dtype: str) -> Taps:
    first, rest = coordinate.floor(index)
    if rest.is_const and rest.const == 0:
        return [(first, const(1, dtype))]
    share = convert(scope.number(rest), dtype) * const(1 / coordinate.denominator, dtype)
    return [(first, const(1, dtype) - share), (first + 1, share)]


def _cubic(
    scope: Scope,
    coordinate: Coordinate,
    index: Index,
    dtype: str,
    a: float,
    size: int,
    exclude: bool,
) -> Taps:
    first, rest = coordinate.floor(index)
    s = convert(scope.number(rest), dtype) * const(1 / coordinate.denominator, dtype)

    def c(value: float) -> Any:
        return const(value, dtype)

    def near(x: Any) -> Any:
        return (c(a + 2) * x - c(a + 3)) * x * x + c(1)

    def far(x: Any) -> Any:
        return ((c(a) * x - c(5 * a)) * x + c(8 * a)) * x - c(4 * a)

    weights = [far(s + c(1)), near(s), near(c(1) - s), far(c(2) - s)]
    taps = [(first + k - 1, weight) for k, weight in enumerate(weights)]
    if not exclude:
        return taps

    def inside(place: Index, weight: Any) -> Any:
        at = scope.number(place)
        valid = tirx.And(at >= const(0, "int32"), at < const(size, "int32"))
        return tirx.Select(valid, weight, c(0))

    kept = [(place, inside(place, weight)) for place, weight in taps]
    total = reduce(lambda x, y: x + y, (weight for _, weight in kept))
    return [(place, weight / total) for place, weight in kept]


def _read(scope: Scope, source: Value, axes: Axes, todo: Sequence[int]) -> Any:
    """An element of the source with the axes `todo` moved into range."""
    if not todo:
        return source.at(scope, axes)
    axis, *rest = todo
    return _clamped(
        scope,
        axes[axis],
        source.shape[axis],
        lambda place: _read(scope, source, (*axes[:axis], place, *axes[axis + 1 :]), rest),
    )


@emitter("Resize")
def _resize(node: Node, args: Sequence[Value], body: Body) -> Value:
    source, shape = args[0], node.tensor.extents
    mode = node.attr("coordinate_transformation_mode", "half_pixel")
    method = node.attr("mode", "nearest")
    wide = compute_dtype(source.dtype)
    wide = wide if "float" in wide else "float32"
    coordinates: dict[int, Coordinate] = {}
    for position, axis in enumerate(_axes(node, len(shape))):
        dim, result = source.shape[axis], shape[axis]
        scale = _scale(node, position, dim, result)
        if scale != 1 or dim != result:
            coordinates[axis] = _coordinate(mode, scale, dim, result)
    todo = list(coordinates)

    def nearest(scope: Scope, axes: Axes) -> Any:
        rounding = node.attr("nearest_mode", "round_prefer_floor")
        places = list(axes)
        for axis, coordinate in coordinates.items():
            places[axis] = _nearest(coordinate, rounding, axes[axis])
        return _read(scope, source, tuple(places), todo)

    def taps(scope: Scope, axis: int, index: Index) -> Taps:
        if method == "linear":
            return _linear(scope, coordinates[axis], index, wide)
        return _cubic(
            scope, coordinates[axis], index, wide,
            node.attr("cubic_coeff_a", -0.75), known(source.shape[axis]),
            bool(node.attr("exclude_outside", 0)),
        )  # fmt: skip

    def interpolated(scope: Scope, axes: Axes) -> Any:
        choices = [taps(scope, axis, axes[axis]) for axis in todo]
        total: Any = None
        for combination in product(*choices):
            places, weight = list(axes), None
            for axis, (place, share) in zip(todo, combination, strict=True):
                places[axis] = place
                weight = share if weight is None else weight * share
            x = convert(_read(scope, source, tuple(places), todo), wide)
            term = x if weight is None else x * weight
            total = term if total is None else total + term
        return convert(total, source.dtype)

    return Value(source.dtype, shape, nearest if method == "nearest" else interpolated)
