"""The graph: interned immutable nodes, and named models over them.

Building the same node twice gives the same object. So equal means `is`, common subexpressions
merge by construction, "did the pass change anything" is a comparison of digests, and the union of
two models shares whatever they have in common. A node's digest is stable across processes.

Names never take part in identity: an input is known by its position and type, a constant by its
bytes. Names live in `Model` and in `Graph.names`.

Ops are spelled as in ONNX ("Conv"), other domains with their prefix ("ai.onnx.ml.Scaler",
"whitebox.Fused"). Four structural ops are not computed: "Input" (attribute `position`),
"Constant" (attribute `value`), "Output" (attribute `index`: one result of a node with several) and
"Weight" (attribute `position`: a constant whose bytes are given later, see compiler/structure.py).
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np

from whitebox.ir.types import TensorType, Type, dtype_name, numpy_dtype

if TYPE_CHECKING:
    import networkx as nx

INPUT, CONSTANT, OUTPUT, WEIGHT = "Input", "Constant", "Output", "Weight"

Attr: TypeAlias = "int | float | str | bytes | bool | Tensor | Graph | Type | tuple[Attr, ...]"


class Tensor:
    """Constant data: a type, the digest of the bytes, and the array, possibly loaded on demand.

    The digest is the SHA-256 of the elements in C order, little-endian, which is also the blob's
    address in the blob store. Strings are hashed as length-prefixed UTF-8.
    """

    __slots__ = ("_array", "_load", "digest", "type")

    def __init__(
        self,
        type: TensorType,
        digest: str,
        load: Callable[[], np.ndarray] | None = None,
        array: np.ndarray | None = None,
    ) -> None:
        self.type = type
        self.digest = digest
        self._load = load
        self._array = array

    @classmethod
    def of(cls, array: np.ndarray | Sequence[Any] | float) -> Tensor:
        """The tensor of an array (copied unless it is already read-only and contiguous)."""
        given = np.asarray(array)
        name = dtype_name(given.dtype)
        # ascontiguousarray turns a scalar into a vector; the reshape undoes it.
        kept = np.ascontiguousarray(given, dtype=numpy_dtype(name)).reshape(given.shape)
        if kept.flags.writeable:
            kept = kept.copy() if kept is given or np.shares_memory(kept, given) else kept
            kept.flags.writeable = False
        return cls(TensorType(name, kept.shape), content_digest(kept), array=kept)

    @property
    def array(self) -> np.ndarray:
        """The data, read-only. A lazy tensor reads it each time and does not keep it."""
        if self._array is not None:
            return self._array
        assert self._load is not None
        return self._load()

    @property
    def is_lazy(self) -> bool:
        """Whether the data is elsewhere (in the blob store) and read on demand."""
        return self._array is None

    def __repr__(self) -> str:
        return f"Tensor({self.type}, {self.digest[:8]})"


def content_digest(array: np.ndarray) -> str:
    """SHA-256 (hex) of an array's elements in C order, little-endian."""
    if array.dtype == object:
        return hashlib.sha256(string_bytes(array)).hexdigest()
    contiguous = np.ascontiguousarray(array)
    return hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data).hexdigest()


def string_bytes(array: np.ndarray) -> bytes:
    """Strings as length-prefixed UTF-8: the form in which they are hashed and stored."""
    parts = []
    for item in array.reshape(-1):
        raw = item if isinstance(item, bytes) else str(item).encode()
        parts.append(struct.pack("<I", len(raw)) + raw)
    return b"".join(parts)


def canonical(value: Attr) -> bytes:
    """An attribute as unambiguous bytes, for the digest."""
    match value:
        case bool() | int():
            return b"i%d" % value
        case float():
            return b"f" + struct.pack("<d", value)
        case str():
            raw = value.encode()
            return b"s%d:" % len(raw) + raw
        case bytes():
            return b"b%d:" % len(value) + value
        case tuple() | list():
            kinds = set(map(type, value))
            # Dictionaries and ensembles of trees are many thousands of one kind.
            alike = _CANONICAL_ITEMS.get(kinds.pop()) if len(kinds) == 1 else None
            return b"(" + b",".join(alike(value) if alike else map(canonical, value)) + b")"
        case Tensor():
            return b"t" + str(value.type).encode() + value.digest.encode()
        case Graph():
            return b"g" + value.digest.encode()
        case _:
            return b"y" + str(value).encode()


_CANONICAL_ITEMS: Mapping[type, Callable[[Sequence[Any]], Iterable[bytes]]] = {
    int: lambda items: [b"i%d" % item for item in items],
    float: lambda items: [b"f" + struct.pack("<d", item) for item in items],
    str: lambda items: [b"s%d:%b" % (len(raw), raw) for raw in map(str.encode, items)],
}


class Node:
    """One operator applied to inputs. Make nodes with `Node.make` or `whitebox.ir.ops.node`.

    `inputs` holds None where an optional input is absent. `version` is the opset in which the
    operator took this form (0 for structural and whitebox ops).
    """

    __slots__ = (
        "__weakref__",
        "attrs",
        "digest",
        "inputs",
        "is_constant_expression",
        "op",
        "types",
        "version",
    )

    op: str
    inputs: tuple[Node | None, ...]
    attrs: Mapping[str, Attr]
    types: tuple[Type, ...]
    version: int
    digest: str
    # Computed from constants alone, so its value is known when the model is loaded.
    is_constant_expression: bool

    @staticmethod
    def make(
        op: str,
        inputs: Sequence[Node | None] = (),
        attrs: Mapping[str, Attr] | None = None,
        types: Sequence[Type] = (),
        version: int = 0,
    ) -> Node:
        """The one node with this op, inputs, attributes and result types."""
        ordered = dict(sorted((attrs or {}).items()))
        parts = [op.encode(), b"%d" % version]
        parts += [b"-" if node is None else node.digest.encode() for node in inputs]
        parts += [name.encode() + b"=" + canonical(value) for name, value in ordered.items()]
        parts += [str(type).encode() for type in types]
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
        with _intern_lock:
            known = _interned.get(digest)
            if known is not None:
                return known
            node = Node()
            node.op, node.version, node.digest = op, version, digest
            node.inputs, node.types = tuple(inputs), tuple(types)
            node.attrs = MappingProxyType(ordered)
            node.is_constant_expression = op in (CONSTANT, WEIGHT) or (
                # Random operators carry which `draw` they make: never known beforehand.
                bool(inputs)
                and "draw" not in ordered
                and all(source is None or source.is_constant_expression for source in inputs)
            )
            _interned[digest] = node
            return node

    @property
    def type(self) -> Type:
        """The type of the (first) result."""
        return self.types[0]

    @property
    def tensor(self) -> TensorType:
        """The type of the (first) result. Raises TypeError when it is not a tensor."""
        if not isinstance(self.types[0], TensorType):
            raise TypeError(f"{self} is a {self.types[0]}, not a tensor")
        return self.types[0]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default` when absent."""
        return self.attrs.get(name, default)

    @property
    def is_constant(self) -> bool:
        return self.op == CONSTANT

    @property
    def value(self) -> np.ndarray:
        """The data of a constant node, read-only."""
        return self.attrs["value"].array  # type: ignore[union-attr]

    def with_inputs(self, inputs: Sequence[Node | None]) -> Node:
        """This node on other inputs, its result types kept."""
        if tuple(inputs) == self.inputs:
            return self
        return Node.make(self.op, inputs, self.attrs, self.types, self.version)

    def __repr__(self) -> str:
        args = ", ".join("-" if node is None else node.digest[:6] for node in self.inputs)
        types = ", ".join(map(str, self.types))
        return f"%{self.digest[:6]} {types} = {self.op}({args})"


_interned: WeakValueDictionary[str, Node] = WeakValueDictionary()
_intern_lock = threading.Lock()

Rule: TypeAlias = Callable[[Node], "Node | None"]


def input_node(position: int, type: Type) -> Node:
    """The model input at `position`."""
    return Node.make(INPUT, attrs={"position": position}, types=(type,))


def weight_node(position: int, type: Type) -> Node:
    """A constant whose bytes are given when a plan is bound to a model."""
    return Node.make(WEIGHT, attrs={"position": position}, types=(type,))


def constant(value: Tensor | np.ndarray | Sequence[Any] | float) -> Node:
    """A constant node holding `value`."""
    tensor = value if isinstance(value, Tensor) else Tensor.of(value)
    return Node.make(CONSTANT, attrs={"value": tensor}, types=(tensor.type,))


def output(node: Node, index: int) -> Node:
    """Result `index` of a node; the node itself when it has only one."""
    if len(node.types) == 1:
        return node
    return Node.make(OUTPUT, (node,), {"index": index}, (node.types[index],))


def topological(roots: Iterable[Node]) -> list[Node]:
    """All nodes that the roots depend on, inputs before users, in a deterministic order."""
    order: list[Node] = []
    done: set[Node] = set()
    stack: list[tuple[Node, Iterator[Node | None]]] = []
    for root in roots:
        if root in done:
            continue
        done.add(root)
        stack.append((root, iter(root.inputs)))
        while stack:
            node, pending = stack[-1]
            for source in pending:
                if source is not None and source not in done:
                    done.add(source)
                    stack.append((source, iter(source.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


@dataclass(frozen=True)
class Model:
    """The signature of one model in a graph: named inputs and outputs, in order."""

    name: str
    inputs: tuple[tuple[str, Node], ...]
    outputs: tuple[tuple[str, Node], ...]
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)


class Graph:
    """Named models over shared nodes. Immutable; every change gives a new Graph.

    `names` maps nodes to the names they had in the file, for messages only.
    """

    def __init__(self, models: Iterable[Model], names: Mapping[Node, str] | None = None) -> None:
        self.models: Mapping[str, Model] = MappingProxyType({m.name: m for m in models})
        self.names: Mapping[Node, str] = names or {}
        self._order: list[Node] | None = None
        self._digest: str | None = None

    @property
    def model(self) -> Model:
        """The only model. Raises ValueError when there are several."""
        (model,) = self.models.values()
        return model

    @property
    def roots(self) -> list[Node]:
        """All output nodes of all models, in order, repeats included."""
        return [node for model in self.models.values() for _, node in model.outputs]

    @property
    def nodes(self) -> list[Node]:
        """Every node, inputs before users. Declared but unused inputs are not among them."""
        if self._order is None:
            self._order = topological(self.roots)
        return self._order

    @property
    def digest(self) -> str:
        """Identity of what the graph computes and of its signature's order; names excluded."""
        if self._digest is None:
            parts = []
            for model in self.models.values():
                parts.append("model")
                parts += [node.digest for _, node in model.inputs]
                parts.append("->")
                parts += [node.digest for _, node in model.outputs]
            self._digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def users(self) -> dict[Node, list[Node]]:
        """Node → the nodes that read it, once per read."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                if source is not None:
                    users[source].append(node)
        return users

    def map(self, build: Callable[[Node, tuple[Node | None, ...]], Node]) -> Graph:
        """Rebuild bottom-up: `build(node, new_inputs)` gives the node's replacement."""
        new: dict[Node, Node] = {}
        names: dict[Node, str] = {}
        # Inputs that nothing reads still belong to the signature.
        declared = [node for model in self.models.values() for _, node in model.inputs]
        for node in topological([*declared, *self.roots]):
            inputs = tuple(None if source is None else new[source] for source in node.inputs)
            built = new[node] = build(node, inputs)
            if node in self.names:
                names.setdefault(built, self.names[node])
        models = [
            replace(
                model,
                inputs=tuple((name, new[node]) for name, node in model.inputs),
                outputs=tuple((name, new[node]) for name, node in model.outputs),
            )
            for model in self.models.values()
        ]
        return Graph(models, names)

    def merge(self, other: Graph) -> Graph:
        """The union: models of both; nodes that are equal are one."""
        return Graph([*self.models.values(), *other.models.values()], {**other.names, **self.names})

    def to_networkx(self) -> nx.MultiDiGraph:
        """The DAG for graph algorithms: nodes are Node objects, an edge per read."""
        import networkx as nx  # slow to import, and few processes need it

        graph = nx.MultiDiGraph()
        graph.add_nodes_from(self.nodes)
        for node in self.nodes:
            graph.add_edges_from((source, node) for source in node.inputs if source is not None)
        return graph

    def __str__(self) -> str:
        from whitebox.ir.text import format_graph

        return format_graph(self)

    def __repr__(self) -> str:
        return f"Graph({', '.join(self.models)}: {len(self.nodes)} nodes, {self.digest[:8]})"
