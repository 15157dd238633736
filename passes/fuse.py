"""fuse: group nodes that one kernel computes.

A group is an anchor (convolution, matrix product, reduction, …), or none, with the elementwise
nodes around it. It is convex by construction: every member but the last has all its readers inside
the group, so no value inside is ever written to memory. Each group becomes a "whitebox.Fused" node
whose body is a Graph; weights and scalars are inputs of the body, so kernels are shared by models
that differ only in these. Only operands that the compiler needs as numbers (axes, bounds) stay
inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

from whitebox.ir import ops
from whitebox.ir.graph import (
    CONSTANT,
    INPUT,
    OUTPUT,
    Graph,
    Model,
    Node,
    input_node,
    output,
)
from whitebox.ir.types import TensorType
from whitebox.passes.record import decide

# A larger group gains nothing more and takes long to compile.
MAX_MEMBERS = 48

# Move data without computing; a chain of them with elementwise nodes is one loop nest.
MOVES = frozenset({"Transpose", "Slice", "whitebox.Pack", "whitebox.Unpack"})
# Read each element of their operand once or stream it twice, so a producer can be inlined.
TAKES_PRODUCERS = MOVES | {
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL1", "ReduceL2",
    "Softmax", "whitebox.AveragePool", "whitebox.DepthwiseConv", "whitebox.MaxPool",
}  # fmt: skip

Supported = Callable[[Node], "str | None"]


def is_view(node: Node) -> bool:
    """Whether the node only gives another shape to the same bytes."""
    return ops.traits(node.op).view


def label(fused: Node) -> str:
    """What a Fused node computes, for people: "Conv+Add+Relu"."""
    return body_label(fused.attr("body"))


def body_label(body: Graph) -> str:
    """What the body of a Fused node computes, for people."""
    names = [n.op for n in body.nodes if n.op not in (INPUT, CONSTANT, OUTPUT)]
    return "+".join(name.removeprefix("whitebox.") for name in names)


@dataclass(eq=False)
class _Group:
    """Nodes of one kernel. All readers of members other than `sink` are members."""

    sink: Node
    members: set[Node] = field(default_factory=set)
    anchor: Node | None = None
    moves: bool = False


def fuse(graph: Graph, unsupported: Supported = lambda node: None) -> Graph:
    """Wrap every group in a Fused node.

    `unsupported(node)` gives the reason why a node cannot be compiled, or None. Such nodes stay as
    they are, to be computed by the host.
    """
    groups = _form_groups(graph, unsupported)
    position = {node: index for index, node in enumerate(graph.nodes)}
    new: dict[Node, Node] = {}

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        group = groups.get(node)
        if group is None:
            return _reattach(node, inputs)
        if node is not group.sink:
            return node  # inside a group: nothing outside reads it
        built = _wrap(group, sorted(group.members, key=position.__getitem__), new)
        if len(group.members) > 1:
            decide("fused", built, label(built))
        return built

    def recorded(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        new[node] = build(node, inputs)
        return new[node]

    return graph.map(recorded)


def _reattach(node: Node, inputs: tuple[Node | None, ...]) -> Node:
    """An ungrouped node on its new inputs; the types stay."""
    if node.op == OUTPUT and inputs[0] is not None:
        return output(inputs[0], node.attr("index"))
    return node.with_inputs(inputs)


def _form_groups(graph: Graph, unsupported: Supported) -> dict[Node, _Group]:
    """Node → its group, for every node that a kernel computes."""
    groups: dict[Node, _Group] = {}
    for node in graph.nodes:
        if node.is_constant_expression or node.op in (INPUT, OUTPUT) or is_view(node):
            continue
        reason = unsupported(node)
        if reason is not None:
            decide("left on the host", node, reason)
            continue
        anchor = None if ops.traits(node.op).elementwise or node.op in MOVES else node
        groups[node] = _Group(node, {node}, anchor, node.op in MOVES)
    users = graph.users()
    outputs = set(graph.roots)
    _absorb_consumers(graph, groups, users, outputs)
    _absorb_producers(graph, groups, users, outputs)
    return groups


def _merge(groups: dict[Node, _Group], first: _Group, second: _Group) -> None:
    """Put the members of `first` into `second`, which ends later."""
    second.members |= first.members
    second.anchor = second.anchor or first.anchor
    second.moves = second.moves or first.moves
    for member in first.members:
        groups[member] = second


def _absorb_consumers(
    graph: Graph,
    groups: dict[Node, _Group],
    users: dict[Node, list[Node]],
    outputs: set[Node],
) -> None:
    """Join each node with the elementwise node that all its readers lead to."""
    meeting_points = _immediate_postdominators(graph, outputs)
    for node in graph.nodes:
        group = groups.get(node)
        if group is None or group.sink is not node or node in outputs:
            continue
        if len(node.types) != 1 or not _same_extent(node, node):
            continue
        meeting = meeting_points.get(node)
        if meeting is None or not _elementwise_like(meeting, node, groups):
            continue
        between = _between(node, meeting, users, outputs, groups)
        if between is None:
            continue
        parts = {id(g): g for g in (group, *(groups[n] for n in between), groups[meeting])}
        anchors = {g.anchor for g in parts.values() if g.anchor is not None}
        moved = any(g.moves for g in parts.values())
        size = sum(len(g.members) for g in parts.values())
        if len(anchors) > 1 or (anchors and moved) or size > MAX_MEMBERS:
            continue
        target = groups[meeting]
        for part in parts.values():
            if part is not target:
                _merge(groups, part, target)


def _same_extent(node: Node, other: Node) -> bool:
    """Whether both results are static tensors of one shape."""
    a, b = node.type, other.type
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return False
    return a.is_static and a.shape == b.shape


def _elementwise_like(node: Node, like: Node, groups: dict[Node, _Group]) -> bool:
    return node in groups and ops.traits(node.op).elementwise and _same_extent(node, like)


def _between(
    start: Node,
    end: Node,
    users: dict[Node, list[Node]],
    outputs: set[Node],
    groups: dict[Node, _Group],
) -> set[Node] | None:
    """The nodes on paths from `start` to `end`; None unless all can be computed in its loops."""
    found: set[Node] = set()
    pending = [user for user in users[start] if user is not end]
    while pending:
        node = pending.pop()
        if node in found:
            continue
        if not _elementwise_like(node, start, groups) or node in outputs:
            return None
        found.add(node)
        if len(found) > MAX_MEMBERS:
            return None
        pending += [user for user in users[node] if user is not end]
    return found


def _immediate_postdominators(graph: Graph, outputs: set[Node]) -> dict[Node, Node]:
    """Node → the first node that every path from it to an output goes through."""
    import networkx as nx  # only those who optimize wait for it

    reverse = nx.DiGraph()
    exit_node = object()
    reverse.add_edges_from((exit_node, node) for node in outputs)
    for node in graph.nodes:
        reverse.add_edges_from((node, source) for source in node.inputs if source is not None)
    found = nx.immediate_dominators(reverse, exit_node)
    return {
        node: point
        for node, point in found.items()
        if isinstance(node, Node) and isinstance(point, Node) and point is not node
    }


def _absorb_producers(
    graph: Graph,
    groups: dict[Node, _Group],
    users: dict[Node, list[Node]],
    outputs: set[Node],
) -> None:
    """Inline elementwise groups and moves into the node that alone reads them."""
    for node in graph.nodes:
        if node not in groups or node.op not in TAKES_PRODUCERS:
            continue
        source: Node | None = node.inputs[0]
        reader = node
        if node.op in MOVES and _is_inner_view(source, outputs) and set(users[source]) == {node}:
            # Between two moves, as in a channel shuffle, another shape is index arithmetic.
            reader = source
            source = reader.inputs[0]
        producer = groups.get(source) if source is not None else None
        if source is None or producer is None or producer.sink is not source:
            continue
        if producer.anchor is not None or source in outputs or set(users[source]) != {reader}:
            continue
        consumer = groups[node]
        if producer is consumer or len(producer.members) + len(consumer.members) > MAX_MEMBERS:
            continue
        if producer.moves and consumer.anchor is not None:
            continue
        _merge(groups, producer, consumer)
        if reader is not node:
            consumer.members.add(reader)
            groups[reader] = consumer


def _is_inner_view(node: Node | None, outputs: set[Node]) -> TypeGuard[Node]:
    """Whether a node is a view of static shape that a loop nest can take as index arithmetic."""
    if node is None or node.op != "Reshape" or node in outputs:
        return False
    shape = node.inputs[1]
    return shape is not None and shape.is_constant and node.tensor.is_static


def _wrap(group: _Group, ordered: list[Node], new: dict[Node, Node]) -> Node:
    """The Fused node of a group, members in order; `new` gives the rebuilt nodes outside."""
    inside: dict[Node, Node] = {}
    operands: list[Node] = []

    def operand(source: Node) -> Node:
        if source not in inside:
            inside[source] = input_node(len(operands), source.type)
            operands.append(new[source])
        return inside[source]

    for node in ordered:
        static = ops.traits(node.op).static_inputs
        inputs = [
            None
            if source is None
            else inside[source]
            if source in group.members
            else source
            if index in static and source.is_constant
            else operand(source)
            for index, source in enumerate(node.inputs)
        ]
        inside[node] = node.with_inputs(inputs)
    result = inside[group.sink]
    outputs = tuple((f"y{i}", output(result, i)) for i in range(len(result.types)))
    formal = tuple((f"x{i}", input_node(i, n.type)) for i, n in enumerate(operands))
    body = Graph([Model("body", formal, outputs)])
    return Node.make("whitebox.Fused", operands, {"body": body}, result.types)
