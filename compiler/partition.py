"""partition: cut the graph into stages, the units of scheduling and batching.

A stage is a maximal region used by the same set of models. Ownership only shrinks along an edge,
so the cut makes no cycle.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from whitebox.ir.graph import INPUT, Graph, Node, topological


@dataclass(frozen=True)
class Stage:
    """Nodes that one set of models owns, in execution order."""

    owners: frozenset[str]
    nodes: tuple[Node, ...]


def partition(graph: Graph) -> tuple[Stage, ...]:
    """The stages, in execution order: those with more owners come first."""
    owners: dict[Node, set[str]] = defaultdict(set)
    for name, model in graph.models.items():
        for node in topological(node for _, node in model.outputs):
            owners[node].add(name)
    regions: dict[frozenset[str], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op != INPUT and not node.is_constant_expression:
            regions[frozenset(owners[node])].append(node)
    ordered = sorted(regions.items(), key=lambda item: -len(item[0]))
    return tuple(Stage(names, tuple(nodes)) for names, nodes in ordered)
