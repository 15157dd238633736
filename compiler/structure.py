"""structure: a graph with its weights taken out.

Two models of one architecture have the same structure: equal graphs once each large constant is
replaced by a numbered placeholder. Passes, plans and kernels are made for the structure, so the
second model of an architecture runs no pass and compiles nothing. Scalars, small integer tensors
(shapes, axes) and ranges (positions, classes) stay: passes decide by their values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from whitebox.errors import InvalidInput
from whitebox.ir.graph import CONSTANT, WEIGHT, Graph, Node, Tensor, constant, weight_node
from whitebox.ir.types import PRECISIONS, TensorType

# Up to here, a constant is part of the structure.
SMALL_FLOAT_ELEMENTS = 16
SMALL_BYTES = 1024
# Up to here, a range of integers is.
RANGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Structured:
    """A model as the compiler sees it: its structure, the weights to fill in, and a precision."""

    structure: Graph
    weights: tuple[Tensor, ...] = field(repr=False)
    precision: str

    @classmethod
    def of(cls, graph: Graph, precision: str) -> Structured:
        """Raises InvalidInput when there is no such precision."""
        if precision not in PRECISIONS:
            raise InvalidInput(
                f"precision {precision!r} is not available; use one of {', '.join(PRECISIONS)}"
            )
        return cls(*take_weights(graph), precision)

    @property
    def digest(self) -> str:
        """That of the structure."""
        return self.structure.digest


def take_weights(graph: Graph) -> tuple[Graph, tuple[Tensor, ...]]:
    """(structure, weights): the graph over Weight placeholders, and what they stand for.

    Equal weights get one placeholder: weights that are tied in one model and not in another are
    different structures.
    """
    weights: list[Tensor] = []

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if node.op == CONSTANT and _is_weight(node):
            weights.append(node.attr("value"))
            return weight_node(len(weights) - 1, node.type)
        return node.with_inputs(inputs)

    return graph.map(build), tuple(weights)


def give_weights(graph: Graph, weights: tuple[Tensor, ...]) -> Graph:
    """The inverse of `take_weights` for any graph over the same placeholders."""

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if node.op == WEIGHT:
            return constant(weights[node.attr("position")])
        return node.with_inputs(inputs)

    return graph.map(build)


def _is_weight(node: Node) -> bool:
    type = node.type
    if not isinstance(type, TensorType) or type.dtype == "string":
        return False
    floating = "float" in type.dtype or "complex" in type.dtype
    if floating:
        return type.nbytes > SMALL_BYTES or type.size > SMALL_FLOAT_ELEMENTS
    return type.nbytes > SMALL_BYTES and not _is_range(node, type)


def _is_range(node: Node, type: TensorType) -> bool:
    """Whether a tensor counts 0, 1, 2, … : nothing that training could have changed."""
    if type.nbytes > RANGE_BYTES or "int" not in type.dtype:
        return False
    return np.array_equal(node.value.reshape(-1), np.arange(type.size))
