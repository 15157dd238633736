"""Free dimensions of several models: which of them are equal, and to what.

Enter: pairs of types of which one flows where the other is expected. Leave: types with each symbol
replaced by the one it equals, or by a number. Symbols of different models must have been renamed
apart.
"""

from __future__ import annotations

from whitebox.ir.shapes.rule import Misfit
from whitebox.ir.types import (
    Dim,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    with_dims,
)


class Dims:
    """What is known of the symbols so far."""

    def __init__(self) -> None:
        self._equal: dict[str, Dim] = {}

    def find(self, dim: Dim) -> Dim:
        """The dimension that stands for all that are equal to `dim`."""
        while isinstance(dim, str) and dim in self._equal:
            dim = self._equal[dim]
        return dim

    def resolved(self, type: Type) -> Type:
        """A type with what is known of its dimensions."""
        return with_dims(type, self.find)

    def equate(self, first: Dim, second: Dim) -> None:
        """Two sizes are equal; of two symbols, the first stays. Raises Misfit."""
        a, b = self.find(first), self.find(second)
        if a is None or b is None or a == b:
            return
        if isinstance(b, str):
            self._equal[b] = a
        elif isinstance(a, str):
            self._equal[a] = b
        else:
            raise Misfit(f"{a} and {b} differ")

    def flow(self, given: Type, expected: Type) -> None:
        """A value of one type goes where the other is expected. Raises Misfit."""
        match given, expected:
            case TensorType(), TensorType():
                self._flow_tensor(given, expected)
            case (SequenceType(a), SequenceType(b)) | (OptionalType(a), OptionalType(b)):
                self.flow(a, b)
            case MapType(key, a), MapType(other, b) if key == other:
                self.flow(a, b)
            case _:
                found, wanted = (shown(self.resolved(type)) for type in (given, expected))
                raise Misfit(f"is {found}, not {wanted}")

    def _flow_tensor(self, given: TensorType, expected: TensorType) -> None:
        a, b = given.shape, expected.shape
        same_rank = a is None or b is None or len(a) == len(b)
        try:
            if given.dtype != expected.dtype or not same_rank:
                raise Misfit
            for x, y in zip(a or (), b or (), strict=False):
                self.equate(x, y)
        except Misfit:
            found, wanted = (shown(self.resolved(type)) for type in (given, expected))
            raise Misfit(f"is {found}, not {wanted}") from None

    def meet(self, first: Type, second: Type) -> Type:
        """Of two types of one value, what both say of it."""
        if not isinstance(first, TensorType) or not isinstance(second, TensorType):
            return first
        if first.shape is None or second.shape is None:
            return second if first.shape is None else first
        pairs = zip(first.shape, second.shape, strict=True)
        return TensorType(first.dtype, tuple(b if a is None else a for a, b in pairs))


# Renamed apart, a symbol is the name of its step (which holds no dot), this, and its own.
APART = "."


def apart(type: Type, owner: str) -> Type:
    """A type whose symbols are no other owner's."""
    return with_dims(type, lambda dim: f"{owner}{APART}{dim}" if isinstance(dim, str) else dim)


def shown(type: Type) -> str:
    """A type as its model would spell it."""
    return str(with_dims(type, lambda d: d.partition(APART)[2] or d if isinstance(d, str) else d))
