"""Rules: the way most passes are written.

A rule is a function Node → Node or None, registered for the operators it looks at; its docstring
is its equation. `rewrite` applies rules bottom-up, and again until none fires.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

from whitebox.errors import VerifyError
from whitebox.ir import ops
from whitebox.ir.graph import Graph, Node
from whitebox.passes.fold import fold_node
from whitebox.passes.record import decide

# A rule set that still fires after this many sweeps is cyclic: a bug in the rules.
MAX_SWEEPS = 50


@dataclass(frozen=True)
class Rule:
    """A rewrite of single nodes. `ops` are the operators it may fire on."""

    ops: tuple[str, ...]
    apply: Callable[[Node], Node | None]

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def equation(self) -> str:
        return (self.apply.__doc__ or "").strip()


def rule(*ops: str) -> Callable[[Callable[[Node], Node | None]], Rule]:
    """Make a function Node → Node or None a rule for nodes with one of these operators."""
    return lambda function: Rule(ops, function)


ByOp: TypeAlias = Mapping[str, Sequence[Rule]]


def by_op(rules: Iterable[Rule]) -> ByOp:
    """Operator → the rules that may fire on it, in order."""
    found: dict[str, list[Rule]] = defaultdict(list)
    for each in rules:
        for op in each.ops:
            found[op].append(each)
    return dict(found)


def fire(node: Node, rules: ByOp) -> Node | None:
    """What the first rule that matches makes of a node, recorded; None when none does."""
    for each in rules.get(node.op, ()):
        result = each.apply(node)
        if result is not None and result is not node:
            decide(each.name, node, each.equation)
            return result
    return None


_shared: ContextVar[set[Node]] = ContextVar("shared")


def is_shared(node: Node) -> bool:
    """Inside a rule: whether an input of the node at hand has other readers too.

    A rule that absorbs an expensive input asks first: absorbing a shared one computes it twice.
    """
    return node in _shared.get()


def rewrite(graph: Graph, rules: Iterable[Rule]) -> Graph:
    """The graph with the rules applied until none fires. Raises VerifyError when they never end."""
    indexed = by_op(rules)

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        for old, new in zip(node.inputs, inputs, strict=True):
            if old in read_often and new is not None:
                shared.add(new)
        current = fold_node(ops.rebuild(node, inputs))
        for _ in range(MAX_SWEEPS):
            result = fire(current, indexed)
            if result is None:
                return current
            current = result
        return current

    shared: set[Node] = set()
    token = _shared.set(shared)
    try:
        for _ in range(MAX_SWEEPS):
            shared.clear()
            read_often = _read_often(graph)
            changed = graph.map(build)
            if changed == graph:
                return graph
            graph = changed
    finally:
        _shared.reset(token)
    names = ", ".join(sorted({each.name for found in indexed.values() for each in found}))
    raise VerifyError(
        f"the rules {names} still fire after {MAX_SWEEPS} sweeps: they undo each other"
    )


def _read_often(graph: Graph) -> set[Node]:
    """Nodes with several readers; a model's output counts as one."""
    outputs = set(graph.roots)
    return {
        node for node, users in graph.users().items() if len(set(users)) + (node in outputs) > 1
    }
