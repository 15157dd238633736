"""Families of kernels: one kernel for every value of the sizes that a model leaves free.

What enters: the fused bodies of one model at two sets of input shapes. What leaves: bodies whose
types have symbols where the two differ, and, for a body at any other shapes, the one that it is an
instance of. Whether it is one is found by matching, structure and sizes, never by what the two
probes had in common; a body that matches none is compiled for its own shapes. Knows no TVM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from whitebox.ir.graph import CONSTANT, Graph, Node
from whitebox.ir.types import Dim, TensorType, Type

Shapes: TypeAlias = dict[str, tuple[int, ...]]

# Operands that only spell out the types of the result: lowering goes by the types.
_SPELLED = {
    "ConstantOfShape": (0,), "Expand": (1,), "Reshape": (1,), "Slice": (2,), "Split": (1,),
    "Tile": (1,),
}  # fmt: skip

# Two sizes for the batch, and for each other free dimension: of a usual magnitude, so that the
# passes choose as they will, multiples of 32 (as image models want), and no two in one ratio.
_BATCH = (3, 5)
_OTHERS = ((256, 416), (352, 480), (192, 288), (320, 448))


def probes(inputs: Iterable[tuple[str, Type]]) -> list[tuple[Shapes, Shapes]]:
    """Pairs of input shapes that show what varies; none when there is nothing to see.

    Where the batch is one of several free dimensions, a pair has a batch of 1 as well: the passes
    find a simpler graph for it.
    """
    types = {name: type for name, type in inputs if isinstance(type, TensorType)}
    sizes: dict[str, tuple[int, int]] = {}
    others = iter(_OTHERS)
    for type in types.values():
        if type.shape is None:
            return []
        for axis, dim in enumerate(type.shape):
            name = _name(dim, axis)
            if isinstance(dim, int) or name in sizes:
                continue
            pair = _BATCH if axis == 0 else next(others, None)
            if pair is None:
                return []
            sizes[name] = pair
    if not sizes:
        return []
    batch_of_one = {name: (1, 1) if pair is _BATCH else pair for name, pair in sizes.items()}
    choices = [sizes]
    if len(set(batch_of_one.values())) > 1:
        choices.append(batch_of_one)
    return [(_shapes(types, chosen, 0), _shapes(types, chosen, 1)) for chosen in choices]


def _name(dim: Dim, axis: int) -> str:
    """A free dimension's name; nameless ones are one where they are at the same place."""
    return dim if isinstance(dim, str) else f"axis {axis}"


def _shapes(types: dict[str, TensorType], sizes: dict[str, tuple[int, int]], which: int) -> Shapes:
    return {
        name: tuple(
            dim if isinstance(dim, int) else sizes[_name(dim, axis)][which]
            for axis, dim in enumerate(type.shape or ())
        )
        for name, type in types.items()
    }


class Family:
    """Bodies with symbols, and a search for the one that a body is an instance of.

    A body without symbols has one instance, itself: the part of a model that no free size reaches.
    """

    def __init__(self, bodies: Iterable[Graph] = ()) -> None:
        self.bodies: list[Graph] = []
        self._themselves: dict[str, Graph] = {}
        self._by_outline: dict[str, list[Graph]] = defaultdict(list)
        self._found: dict[str, Graph | None] = {}
        for body in bodies:
            self.add(body)

    def add(self, body: Graph) -> None:
        """Take in a body, unless it is an instance of one that is there."""
        if self.find(body) is None:
            self.bodies.append(body)
            self._themselves[body.digest] = body
            self._by_outline[outline(body)].append(body)
            self._found.clear()

    def find(self, body: Graph) -> Graph | None:
        """The body of the family of which `body` is an instance."""
        if body.digest in self._themselves:
            return self._themselves[body.digest]
        if body.digest not in self._found:
            plain = without_spelling(body)
            candidates = self._by_outline.get(outline(plain), [])
            found = next((each for each in candidates if is_instance(plain, each)), None)
            self._found[body.digest] = found
        return self._found[body.digest]


def generalizations(first: Iterable[Graph], second: Iterable[Graph]) -> Iterator[Graph]:
    """Bodies with symbols of two lists of bodies, paired in order among those that look alike.

    Those that differ in the fewest sizes first: where one list lacks a body (other sizes may be
    worth another kernel), those after it still find their own.
    """
    groups: dict[str, tuple[list[Graph], list[Graph]]] = defaultdict(lambda: ([], []))
    for which, bodies in enumerate((first, second)):
        for body in map(without_spelling, bodies):
            groups[outline(body)][which].append(body)
    for ours, theirs in groups.values():
        choices = sorted(
            (_differences(a, b), i, k) for i, a in enumerate(ours) for k, b in enumerate(theirs)
        )
        left, right = set(range(len(ours))), set(range(len(theirs)))
        for _, i, k in choices:
            if i in left and k in right:
                left.remove(i)
                right.remove(k)
                made = generalized(ours[i], theirs[k])
                if made is not None:
                    yield made


def _differences(first: Graph, second: Graph) -> int:
    """How many sizes of the arguments and results of two bodies that look alike differ."""
    return sum(
        x != y
        for a, b in zip(_arguments(first), _arguments(second), strict=False)
        for x, y in zip(a.tensor.shape or (), b.tensor.shape or (), strict=False)
    )


def _arguments(body: Graph) -> list[Node]:
    return [node for _, node in (*body.model.inputs, *body.model.outputs)]


def without_spelling(body: Graph) -> Graph:
    """The body less the operands that only repeat what the types say."""

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        spelled = _SPELLED.get(node.op, ())
        return node.with_inputs(
            [
                None if k in spelled and source is not None and source.op == CONSTANT else source
                for k, source in enumerate(inputs)
            ]
        )

    return body.map(build)


def outline(body: Graph) -> str:
    """A digest of everything but the sizes."""

    def blank(type: Type) -> Type:
        if not isinstance(type, TensorType) or type.shape is None:
            return type
        return TensorType(type.dtype, (None,) * len(type.shape))

    return _with_types(body, lambda node: tuple(map(blank, node.types))).digest


def generalized(first: Graph, second: Graph) -> Graph | None:
    """The body that has both as instances; None when they differ in more than sizes.

    None as well when nothing differs, or when a symbol is not the size of an argument or result.
    """
    pairs = _aligned(first, second)
    if pairs is None:
        return None
    symbols: dict[tuple[Dim, Dim], str] = {}

    def common(a: Type, b: Type) -> Type:
        if not isinstance(a, TensorType) or not isinstance(b, TensorType) or a.shape == b.shape:
            return a
        dims = zip(a.shape or (), b.shape or (), strict=True)
        shape = tuple(
            x if x == y else symbols.setdefault((x, y), f"n{len(symbols)}") for x, y in dims
        )
        return TensorType(a.dtype, shape)

    def types(node: Node) -> tuple[Type, ...]:
        return tuple(map(common, node.types, pairs[node].types))

    made = _with_types(first, types)
    bound = {dim for node in _arguments(made) for dim in node.tensor.shape or ()}
    return made if symbols and bound.issuperset(symbols.values()) else None


def is_instance(body: Graph, general: Graph) -> bool:
    """Whether the symbols of `general` have sizes that make it `body`."""
    pairs = _aligned(general, body)
    if pairs is None:
        return False
    sizes: dict[Dim, Dim] = {}
    for node, own in pairs.items():
        for a, b in zip(node.types, own.types, strict=True):
            if not isinstance(a, TensorType) or not isinstance(b, TensorType):
                if a != b:
                    return False
                continue
            for dim, size in zip(a.shape or (), b.shape or (), strict=True):
                known = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
                if known != size:
                    return False
    return True


def _aligned(first: Graph, second: Graph) -> dict[Node, Node] | None:
    """The nodes of one body with those of another; None when they differ in more than sizes."""
    pairs: dict[Node, Node] = {}
    signatures = [_arguments(graph) for graph in (first, second)]
    pending = list(zip(*signatures, strict=False))
    if len(signatures[0]) != len(signatures[1]):
        return None
    while pending:
        a, b = pending.pop()
        if a in pairs:
            if pairs[a] is not b:
                return None
            continue
        if not _alike(a, b):
            return None
        pairs[a] = b
        for x, y in zip(a.inputs, b.inputs, strict=True):
            if x is not None and y is not None:
                pending.append((x, y))
    return pairs


def _alike(a: Node, b: Node) -> bool:
    """Whether two nodes are equal but for their inputs and sizes."""
    if a.op == CONSTANT:
        return a is b
    return (
        (a.op, a.version, a.attrs) == (b.op, b.version, b.attrs)
        and [x is None for x in a.inputs] == [x is None for x in b.inputs]
        and len(a.types) == len(b.types)
        and all(map(_alike_types, a.types, b.types))
    )


def _alike_types(a: Type, b: Type) -> bool:
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return a == b
    ranks = [None if type.shape is None else len(type.shape) for type in (a, b)]
    return a.dtype == b.dtype and ranks[0] == ranks[1]


def _with_types(body: Graph, types: Callable[[Node], tuple[Type, ...]]) -> Graph:
    """The body with other types of its nodes; constants keep theirs."""

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if node.op == CONSTANT:
            return node
        return Node.make(node.op, inputs, node.attrs, types(node), node.version)

    return body.map(build)
