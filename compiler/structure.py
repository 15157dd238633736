"""structure: a graph with its weights taken out.

Two models of one architecture have the same structure: equal graphs once each weight
(`whitebox.ir.weights`) is replaced by a numbered placeholder, and free dimensions by numbered
symbols. Passes, plans and kernels are made for the structure, so the second model of an
architecture runs no pass and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whitebox.errors import InvalidInput
from whitebox.ir.graph import CONSTANT, WEIGHT, Graph, Node, Tensor, constant, weight_node
from whitebox.ir.types import PRECISIONS, Dim, with_dims
from whitebox.ir.weights import is_weight


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
    symbols = _Symbols()

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if node.op == CONSTANT and is_weight(node):
            weights.append(node.attr("value"))
            return weight_node(len(weights) - 1, node.type)
        return symbols.renamed(node, inputs)

    return graph.map(build), tuple(weights)


class _Symbols:
    """New names for free dimensions, in order of appearance: what they are called is no matter."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def renamed(self, node: Node, inputs: tuple[Node | None, ...]) -> Node:
        """The node on other inputs, symbols in its types and bodies renamed."""
        types = tuple(with_dims(type, self._name) for type in node.types)
        attrs = self._bodies(node.attrs) if self._names else node.attrs
        if types == node.types and attrs is node.attrs:
            return node.with_inputs(inputs)
        return Node.make(node.op, inputs, attrs, types, node.version)

    def _bodies(self, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
        bodies = {
            key: body.map(self.renamed) for key, body in attrs.items() if isinstance(body, Graph)
        }
        return {**attrs, **bodies} if bodies else attrs

    def _name(self, dim: Dim) -> Dim:
        return self._names.setdefault(dim, f"d{len(self._names)}") if isinstance(dim, str) else dim


def give_weights(graph: Graph, weights: tuple[Tensor, ...]) -> Graph:
    """The inverse of `take_weights` for any graph over the same placeholders."""

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if node.op == WEIGHT:
            return constant(weights[node.attr("position")])
        return node.with_inputs(inputs)

    return graph.map(build)
