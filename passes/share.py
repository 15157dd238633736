"""share: one spelling for what can be spelled in several ways, so that interning finds it equal.

Enters a graph as imported, weights inside. Leaves a graph that computes the same bits: operands of
commutative operators in one order, constants in one form, nothing that does nothing. Two exports of
one model thus become one graph, and variants of one architecture keep one structure: nothing here
depends on the bytes of a weight, and no weight gets other bytes. A single walk, bottom-up.
"""

from __future__ import annotations

import hashlib

from whitebox.ir import ops
from whitebox.ir.graph import CONSTANT, Graph, Node, Tensor, canonical, constant
from whitebox.ir.types import TensorType, Type
from whitebox.ir.weights import is_weight
from whitebox.passes.fold import TYPE_ONLY, fold_node
from whitebox.passes.record import decide
from whitebox.passes.rewrite import Rule, by_op, fire, rule
from whitebox.passes.rules.algebra import (
    VIEWS,
    canonical_view,
    cast_same,
    concat_one,
    same_shape_movement,
)
from whitebox.passes.rules.transpose import merge_transposes


def share(graph: Graph) -> Graph:
    """The graph in its one spelling."""
    order = _Order()

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        current = _known(_on(node, inputs))
        while (simpler := fire(current, _BY_OP)) is not None:
            current = _known(simpler)
        return order.ordered(current)

    return graph.map(build)


def _on(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    """A node on other inputs, its bodies shared."""
    bodies = {key: share(body) for key, body in node.attrs.items() if isinstance(body, Graph)}
    if all(bodies[key] == node.attrs[key] for key in bodies):
        return ops.rewire(node, inputs)
    attrs = {**node.attrs, **bodies}
    return ops.make(node.op, inputs, attrs, node.version or None, len(node.types))


def _known(node: Node) -> Node:
    """The constant that a node on constants of the structure is, if it is of the structure too."""
    if node.op not in TYPE_ONLY:
        for source in node.inputs:
            if source is not None and not _is_structure(source):
                return node
    folded = fold_node(node)
    return node if folded.is_constant and not _is_structure(folded) else folded


def _is_structure(node: Node) -> bool:
    """Whether a node is a constant that belongs to a model's structure."""
    return node.is_constant and not is_weight(node.attr("value"))


@rule(*VIEWS)
def view_of_constant(node: Node) -> Node | None:
    """A view of a constant = a constant of the same bytes"""
    source = node.inputs[0]
    if source is None or not source.is_constant or not isinstance(node.type, TensorType):
        return None
    if not node.type.is_static:
        return None
    tensor: Tensor = source.attr("value")
    dims = node.type.dims
    return constant(Tensor(node.type, tensor.digest, load=lambda: tensor.array.reshape(dims)))


@rule("Sum", "Max", "Min", "Mean")
def one_or_two(node: Node) -> Node | None:
    """Sum(x) = x, Max, Min and Mean alike;  Sum(a, b) = a + b"""
    if len(node.inputs) == 1:
        return node.inputs[0]
    return ops.node("Add", *node.inputs) if node.op == "Sum" and len(node.inputs) == 2 else None


RULES: tuple[Rule, ...] = (
    view_of_constant,
    one_or_two,
    cast_same,
    concat_one,
    same_shape_movement,
    canonical_view,
    merge_transposes,
)
_BY_OP = by_op(RULES)


class _Order:
    """The order of commutative operands in one graph: constants last, the deeper ones first.

    Of equally deep ones, the digests of how they are computed decide, weights and the names of
    free dimensions left out. Twins, that differ in weights alone, stay as they are.
    """

    def __init__(self) -> None:
        self._depths: dict[Node, int] = {}
        self._keys: dict[Node, bytes] = {}

    def ordered(self, node: Node) -> Node:
        """The node with its operands in order, and its depth noted. Inputs come before users."""
        depths = self._depths
        depths[node] = 1 + max((depths.get(s, 0) for s in node.inputs if s is not None), default=0)
        if not _commutes(node):
            return node
        a, b = node.inputs
        if a is None or b is None or not self._swapped(a, b):
            return node
        swapped = node.with_inputs((b, a))
        depths[swapped] = depths[node]
        decide("swapped", swapped, "a ∘ b = b ∘ a: constants last, the deeper operand first")
        return swapped

    def _swapped(self, a: Node, b: Node) -> bool:
        """Whether `b` comes before `a`."""
        first, second = (
            (node.is_constant_expression, -self._depths.get(node, 0)) for node in (a, b)
        )
        if first != second or a is b:
            return second < first
        return self._key(b) < self._key(a)

    def _key(self, root: Node) -> bytes:
        keys, stack = self._keys, [root]
        while stack:
            node = stack[-1]
            missing = [s for s in node.inputs if s is not None and s not in keys]
            if missing:
                stack += missing
                continue
            keys[node] = _digest(node, [b"" if s is None else keys[s] for s in node.inputs])
            stack.pop()
        return keys[root]


def _commutes(node: Node) -> bool:
    """Whether two operands may be swapped without changing a bit: zeros have signs in Max, Min."""
    if len(node.inputs) != 2 or not ops.traits(node.op).commutative:
        return False
    return node.op not in ("Max", "Min") or "int" in node.tensor.dtype


def _digest(node: Node, inputs: list[bytes]) -> bytes:
    """How a node is computed, given how its inputs are."""
    parts = [node.op.encode(), b"%d" % node.version, *inputs]
    if node.op != CONSTANT or _is_structure(node):
        parts += [key.encode() + canonical(value) for key, value in node.attrs.items()]
    parts += [_nameless(type) for type in node.types]
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def _nameless(type: Type) -> bytes:
    """A type without the names of its free dimensions."""
    if not isinstance(type, TensorType) or type.shape is None:
        return str(type).encode()
    dims = ",".join(str(dim) if isinstance(dim, int) else "?" for dim in type.shape)
    return f"{type.dtype}[{dims}]".encode()
