"""structure: a graph with its weights taken out.

Two models of one architecture have the same structure: equal graphs once each weight
(`whitebox.ir.weights`) is replaced by a numbered placeholder, and free dimensions by numbered
symbols. What kernels are compiled for (the scales of a Resize) stays. Passes, plans and kernels are
made for the structure, so the second model of an architecture runs no pass and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

from whitebox.errors import InvalidInput
from whitebox.ir.graph import (
    CONSTANT,
    WEIGHT,
    Graph,
    Node,
    Tensor,
    constant,
    topological,
    weight_node,
)
from whitebox.ir.serial import is_inside
from whitebox.ir.types import PRECISIONS, Dim, TensorType, Type, with_dims
from whitebox.ir.weights import is_float, is_weight

Ends: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]


class Structure:
    """A graph over placeholders for its weights. It is decoded when somebody wants the graph.

    `names` are those of the inputs and of the outputs, `constants` the large tensors in it.
    """

    def __init__(
        self,
        digest: str,
        names: Ends,
        weight_types: Sequence[TensorType],
        load: Callable[[], Graph],
        constants: Sequence[Tensor] = (),
    ) -> None:
        self.digest = digest
        self.names = names
        self.weight_types = tuple(weight_types)
        self.constants = tuple(constants)
        self._load = load

    @classmethod
    def of(cls, graph: Graph, weights: Sequence[Tensor]) -> Structure:
        """The structure that `take_weights` has left of a graph with one model."""
        bare = Graph([replace(graph.model, name="", metadata={})], graph.names)
        inputs, outputs = ([name for name, _ in e] for e in (bare.model.inputs, bare.model.outputs))
        types = [weight.type for weight in weights]
        names = (tuple(inputs), tuple(outputs))
        large = [tensor for tensor in tensors_of(bare) if not is_inside(tensor)]
        return cls(bare.digest, names, types, lambda: bare, large)

    @cached_property
    def graph(self) -> Graph:
        """The graph; its model has no name."""
        return self._load()


@dataclass(frozen=True)
class Structured:
    """A model as the compiler sees it: its structure, the weights to fill in, and a precision."""

    structure: Structure
    weights: tuple[Tensor, ...] = field(repr=False)
    precision: str

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidInput(
                f"precision {self.precision!r} is not available; use one of {', '.join(PRECISIONS)}"
            )

    @classmethod
    def of(cls, graph: Graph, precision: str) -> Structured:
        """Raises InvalidInput when there is no such precision."""
        from whitebox.passes import spell_weights  # slow to import, and most structures are known

        taken, weights = take_weights(spell_weights(graph))
        return cls(Structure.of(taken, weights), weights, precision)

    @property
    def digest(self) -> str:
        """That of the structure."""
        return self.structure.digest

    @property
    def graph(self) -> Graph:
        """The whole graph, weights and all."""
        return give_weights(self.structure.graph, self.weights)


def take_weights(graph: Graph) -> tuple[Graph, tuple[Tensor, ...]]:
    """(structure, weights): the graph over Weight placeholders, and what they stand for.

    Equal weights get one placeholder: weights that are tied in one model and not in another are
    different structures.
    """
    from whitebox.ir.ops import traits  # (as above)

    static = {
        node.inputs[position]
        for node in graph.nodes
        for position in traits(node.op).static_inputs
        if position < len(node.inputs)
    }
    biases = _biases(graph)
    weights: list[Tensor] = []
    symbols = _Symbols()

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if (
            node.op == CONSTANT
            and node not in static
            and (node in biases or is_weight(node.attr("value")))
        ):
            weights.append(node.attr("value"))
            return weight_node(len(weights) - 1, node.type)
        return symbols.renamed(node, inputs)

    return graph.map(build), tuple(weights)


class _Symbols:
    """New names for free dimensions.

    By default in order of appearance: to a structure it does not matter what they are called.
    """

    def __init__(
        self, names: dict[str, str] | None = None, other: Callable[[str], str] | None = None
    ) -> None:
        self._names = {} if names is None else names
        self._other = other or (lambda dim: f"d{len(self._names)}")

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
        if isinstance(dim, str) and dim not in self._names:
            self._names[dim] = self._other(dim)
        return self._names[dim] if isinstance(dim, str) else dim


def name_symbols(graph: Graph, types: Iterable[Type]) -> Graph:
    """The graph with its free dimensions called as in these types of its inputs and outputs."""
    names: dict[str, str] = {}
    ends = (node.type for _, node in (*graph.model.inputs, *graph.model.outputs))
    for own, given in zip(ends, types, strict=True):
        if isinstance(own, TensorType) and isinstance(given, TensorType):
            pairs = zip(own.shape or (), given.shape or (), strict=False)
            names.update((a, b) for a, b in pairs if isinstance(a, str) and isinstance(b, str))
    taken = set(names.values())
    return graph.map(_Symbols(names, lambda dim: f"{dim}'" if dim in taken else dim).renamed)


def give_weights(graph: Graph, weights: tuple[Tensor, ...]) -> Graph:
    """The inverse of `take_weights` for any graph over the same placeholders."""

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if node.op == WEIGHT:
            return constant(weights[node.attr("position")])
        return node.with_inputs(inputs)

    return graph.map(build)


# Operator → the input that is added to its product.
_BIAS = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2}
_PRODUCTS = ("Gemm", "MatMul")


def _biases(graph: Graph) -> set[Node]:
    """Float constants of one element that are only added to products.

    A model with one result has one intercept, which is a weight like several.
    """
    found: set[Node] = set()
    others: set[Node] = {node for _, node in graph.model.outputs}
    for node in graph.nodes:
        for position, source in enumerate(node.inputs):
            if source is not None and source.op == CONSTANT:
                (found if _is_bias(node, position) else others).add(source)
    single = {node for node in found - others if node.tensor.size == 1 and is_float(node.tensor)}
    return {node for node in single if node.tensor.rank}


def _is_bias(node: Node, position: int) -> bool:
    if node.op == "Add":
        other = node.inputs[1 - position]
        return other is not None and other.op in _PRODUCTS
    return _BIAS.get(node.op) == position


def tensors_of(graph: Graph) -> Iterator[Tensor]:
    """Every tensor in a graph's attributes, those of nested graphs too."""
    for model in graph.models.values():
        roots = [node for _, node in (*model.inputs, *model.outputs)]
        for node in topological(roots):
            yield from _tensors_in(node.attrs.values())


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Graph):
            yield from tensors_of(value)
        elif isinstance(value, (tuple, list)):
            yield from _tensors_in(value)
