"""partition: cut the graphs of several models into stages, so that what they share is one.

Enter: fused graphs over the same inputs, with their weights in place, so that nodes which compute
the same are the same object. Leave: a *shared* stage that computes all that several of them need,
and for each an *own* stage that goes on from there. A cut lies between kernels, never inside one:
the stages together call the very kernels that each model calls alone, so that sharing cannot change
a bit of an answer. Nothing here plans memory or runs anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from whitebox.ir.graph import INPUT, OUTPUT, Graph, Model, Node, input_node, topological


@dataclass(frozen=True)
class Stage:
    """A part of one or several graphs.

    `graph` computes the values `writes` (its outputs, in order) from the values `reads` (its
    inputs, in order), both of them nodes of the graphs that it was cut from.
    """

    graph: Graph
    reads: tuple[Node, ...]
    writes: tuple[Node, ...]


@dataclass(frozen=True)
class Partition:
    """`shared` runs first; then `own`, one a graph, None where nothing is left to compute."""

    shared: Stage | None
    own: tuple[Stage | None, ...]


def partition(graphs: Sequence[Graph], common: Collection[Node] | None = None) -> Partition:
    """The stages of graphs with one model each, over the same inputs.

    `common` are the nodes of the shared stage, with all that they depend on (default: those that
    more than one of the graphs has).
    """
    if common is None:
        common = several(graphs)
    own = tuple(_own(graph, common) for graph in graphs)
    read = (node for stage in own if stage is not None for node in stage.reads)
    asked = (node for graph in graphs for _, node in graph.model.outputs)
    wanted = [node for node in dict.fromkeys((*read, *asked)) if node in common]
    return Partition(_stage(wanted, ()) if wanted else None, own)


def several(graphs: Iterable[Graph]) -> set[Node]:
    """The nodes that are computed from an input in more than one of the graphs."""
    counts = Counter(node for graph in graphs for node in computed(graph))
    common = {node for node, count in counts.items() if count > 1}
    # A result of a node with several results goes where the node goes.
    common.update(node for node in counts if node.op == OUTPUT and node.inputs[0] in common)
    return common


def every(graphs: Iterable[Graph]) -> set[Node]:
    """The nodes that are computed from an input in all of the graphs."""
    sets = [set(computed(graph)) for graph in graphs]
    common = set.intersection(*sets)
    common.update(n for nodes in sets for n in nodes if n.op == OUTPUT and n.inputs[0] in common)
    return common


def computed(graph: Graph) -> list[Node]:
    """The nodes of a graph that depend on an input, in order."""
    return [n for n in graph.nodes if n.op != INPUT and not n.is_constant_expression]


def _own(graph: Graph, common: Collection[Node]) -> Stage | None:
    """What computes those outputs of a graph that are not common."""
    wanted = dict.fromkeys(node for _, node in graph.model.outputs)
    # (an output that is an input or a constant needs a stage as well: somebody has to hand it over)
    rest = [node for node in wanted if node not in common]
    return _stage(rest, common) if rest else None


def _stage(writes: Sequence[Node], given: Collection[Node]) -> Stage:
    """The stage that computes some values from inputs and from those that are given."""
    reads: dict[Node, Node] = {}
    new: dict[Node, Node] = {}
    for node in _needed(writes, given):
        if node.op == INPUT or node in given:
            new[node] = reads[node] = input_node(len(reads), node.type)
        else:
            new[node] = node.with_inputs([None if s is None else new[s] for s in node.inputs])
    model = Model(
        "stage",
        tuple((f"x{i}", node) for i, node in enumerate(reads.values())),
        tuple((f"y{i}", new[node]) for i, node in enumerate(writes)),
    )
    return Stage(Graph([model]), tuple(reads), tuple(writes))


def _needed(roots: Sequence[Node], given: Collection[Node]) -> list[Node]:
    """What the roots depend on, inputs before users, nothing behind what is given."""
    if not given:
        return topological(roots)
    order: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            if node not in given:
                stack += [(s, False) for s in reversed(node.inputs) if s is not None]
    return list(order)
