"""What a type inference rule sees, and the table that rules register in.

A rule is a function from a `Call` (one operator applied to inputs) to its result types; it returns
None when the general inference of `onnx_schema` should answer instead. Rules raise `Misfit` when
the inputs cannot go together; `ops.infer` turns that into an error that names operator and types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np

from whitebox.ir.graph import CONSTANT, Node
from whitebox.ir.types import Dim, TensorType, Type

Shape: TypeAlias = "tuple[Dim, ...] | None"


class Misfit(ValueError):
    """Inputs or attributes that do not go together, said in a few words."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operator applied to inputs: all that its result types depend on."""

    op: str
    version: int
    inputs: tuple[Node | None, ...]
    attrs: Mapping[str, Any]
    n_outputs: int

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> TensorType:
        """The type of input `index`, which must be there and be a tensor."""
        node = self.inputs[index] if index < len(self.inputs) else None
        if node is None:
            raise Misfit(f"input {index} is missing")
        type = node.types[0]
        if not isinstance(type, TensorType):
            raise Misfit(f"input {index} must be a tensor")
        return type

    def dtype(self, index: int) -> str:
        return self.tensor(index).dtype

    def shape(self, index: int) -> Shape:
        return self.tensor(index).shape

    def array(self, index: int) -> np.ndarray | None:
        """The value of input `index` when it is a constant."""
        node = self.inputs[index] if index < len(self.inputs) else None
        return node.value if node is not None and node.op == CONSTANT else None

    def ints(self, index: int) -> tuple[int, ...] | None:
        """The value of a constant input as a flat tuple of numbers."""
        value = self.array(index)
        return None if value is None else tuple(value.reshape(-1).tolist())

    def length(self, index: int) -> int | None:
        """How many elements a one-dimensional input has, when known."""
        shape = self.shape(index)
        return shape[0] if shape is not None and len(shape) == 1 and type(shape[0]) is int else None


Rule: TypeAlias = Callable[[Call], "Type | tuple[Type, ...] | None"]

RULES: dict[str, Rule] = {}

# numpy's limit; a damaged file may ask for more than memory holds.
_MAX_RANK = 64


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the operators named."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def unify(a: Dim, b: Dim) -> Dim:
    """The dimension that two equal sizes have; the one that says more."""
    if a == b or b is None:
        return a
    if a is None or isinstance(a, str):
        return b
    if isinstance(b, int):
        raise Misfit(f"dimensions {a} and {b} differ")
    return a


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The size of two dimensions broadcast together."""
    if a == b:
        return a
    if a == 1:
        return b
    if b == 1:
        return a
    if isinstance(a, int):
        if isinstance(b, int):
            raise Misfit(f"dimensions {a} and {b} do not broadcast")
        return a
    # Of a symbol (or unknown) and another one, either may turn out to be 1.
    return b if isinstance(b, int) else None


def broadcast(*shapes: Shape) -> Shape:
    """numpy's broadcasting, with symbols."""
    result: tuple[Dim, ...] = ()
    for shape in shapes:
        if shape is None:
            return None
        if shape == result:
            continue
        rank = max(len(result), len(shape))
        wide_a = (1,) * (rank - len(result)) + result
        wide_b = (1,) * (rank - len(shape)) + shape
        result = tuple(map(broadcast_dim, wide_a, wide_b))
    return result


def normal_axis(axis: int, rank: int, *, what: str = "axis") -> int:
    """A possibly negative axis counted from the front, checked against the rank."""
    if not -rank <= axis < rank:
        raise Misfit(f"{what} {axis} is out of range for rank {rank}")
    return axis % rank if rank else 0


def normal_axes(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Possibly negative axes counted from the front; each may be named once."""
    normal = tuple(normal_axis(axis, rank) for axis in axes)
    if len(set(normal)) != len(normal):
        raise Misfit(f"axes {axes} repeat")
    return normal


def all_ints(dims: Sequence[Dim]) -> TypeGuard[Sequence[int]]:
    """Whether every dimension is a known number."""
    return all(isinstance(dim, int) for dim in dims)


def unknown(rank: int) -> tuple[Dim, ...]:
    """A shape of which only the rank is known."""
    if rank > _MAX_RANK:
        raise Misfit(f"{rank} dimensions are more than the {_MAX_RANK} that arrays can have")
    return (None,) * rank
