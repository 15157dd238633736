"""Ensembles of decision trees as operators on vectors: a scan of all nodes, or a walk.

whitebox.TreeScan looks at every node of a tree, in preorder, in as many lanes as a vector has: no
look-up waits for another (`kernels/cpu/trees`). whitebox.TreeWalk goes from level to level: the
position in a tree is an index into a table of nodes, and a leaf leads to itself
(`kernels/cpu/tree_walk`). Steps of a walk are dear, and there are few of them in large trees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.forest import NEGATED, NO_NAN, Forest

# Up to so many rows a scan has trees in the lanes of its vectors: so many beside each other. With
# more, a tree takes them one after the other: its nodes stay in the cache.
_FEW_ROWS, _TREES = 2, 16

# How many nodes can be looked at while a walk takes a step, by the number of rows from which on.
_NODES_A_STEP = {16: 40, _FEW_ROWS + 1: 16, 0: 4}

# ONNX's aggregate: how scores are combined, and what changes nothing.
_COMBINE = {
    "SUM": ("Sum", 0.0),
    "AVERAGE": ("Sum", 0.0),
    "MIN": ("Min", np.inf),
    "MAX": ("Max", -np.inf),
}


def tree_scores(x: Node, forest: Forest, aggregate: str) -> Node | None:
    """The [rows, results] scores of float32 `x` [rows, features]; None for other aggregates."""
    features = x.tensor.dims[1]
    if aggregate not in _COMBINE or forest.feature.min() < 0 or forest.feature.max() >= features:
        return None
    if aggregate in ("MIN", "MAX") and forest.scores.shape[1] > 1:
        return None  # of some results a leaf may say nothing, which is not zero
    combine, nothing = _COMBINE[aggregate]
    used, table = np.unique(forest.table, return_inverse=True)
    x = _tables(x, used.tolist())
    feature = (forest.feature + table * features).astype(np.int32)
    rows, results = x.tensor.dims[0], forest.scores.shape[1]
    scan = _preorder(forest) if _is_tree(forest) else None
    if scan is not None and scan.worth(forest.depth, rows):
        if rows <= _FEW_ROWS:
            scan = scan.side_by_side(nothing)
        total = scan.scores(x, feature, forest, combine)
    else:
        leaves = _walk(x, feature, forest)
        axis = constant(np.array([0 if rows > _FEW_ROWS else 1], np.int64))
        total = ops.node(f"Reduce{combine}", leaves, axis, keepdims=0)
        total = reshape(total, (rows, results))
    if aggregate == "AVERAGE":
        total = ops.node("Div", total, constant(np.array([len(forest.roots)], np.float32)))
    return ops.node("Add", total, constant(forest.base)) if forest.base.any() else total


def _tables(x: Node, used: list[int]) -> Node:
    """The tables of features that are asked for, beside each other."""
    made = []
    for table in used:
        features = ops.node("Neg", x) if table >= NEGATED else x
        if table % NEGATED == NO_NAN:
            least = constant(np.array(-np.inf, np.float32))
            features = ops.node("Where", ops.node("IsNaN", x), least, features)
        made.append(features)
    return made[0] if len(made) == 1 else ops.node("Concat", *made, axis=1)


def _walk(x: Node, feature: np.ndarray, forest: Forest) -> Node:
    """The scores of each row's leaves: [trees, rows] where rows are several, else [rows, trees]."""
    links = np.stack([feature, forest.yes, forest.no], axis=1)
    position = ops.node(
        "whitebox.TreeWalk", x, *map(constant, (forest.roots, links, forest.threshold)),
        depth=max(forest.depth, 1), rows_last=int(x.tensor.dims[0] > _FEW_ROWS),
    )  # fmt: skip
    scores = forest.scores
    table = constant(scores[:, 0] if scores.shape[1] == 1 else scores)
    return ops.node("Gather", table, position, axis=0)


def _is_tree(forest: Forest) -> bool:
    """Whether no inner node is reached in two ways, but for the "no" of a question in two."""
    inner = np.flatnonzero(~forest.leaf)
    reached = np.concatenate([forest.yes[inner], forest.no[inner[inner < forest.second]]])
    reached = reached[~forest.leaf[reached]]
    return len(np.unique(reached)) == len(reached)


@dataclass(frozen=True)
class _Scan:
    """Nodes of trees in preorder, and leaves from left to right.

    Arrays are [groups, places, trees of a group], but for `count` [groups], the places that a group
    fills, `first_leaf` [groups, trees of a group], and `leaves` [leaves], places in the forest.
    `first` and `after` count from a tree's first leaf.
    """

    count: np.ndarray
    first_leaf: np.ndarray
    node: np.ndarray
    first: np.ndarray
    after: np.ndarray
    leaves: np.ndarray
    nothing: float = 0.0

    def worth(self, depth: int, rows: int) -> bool:
        """Whether a walk would take longer."""
        trees, places = self.node.shape[:2]
        if trees * places > 4 * self.count.sum() + 64:
            return False  # mostly padding
        lanes = -(-trees // _TREES) * _TREES if rows <= _FEW_ROWS else trees
        nodes_a_step = next(nodes for least, nodes in _NODES_A_STEP.items() if rows >= least)
        return bool(places * lanes <= nodes_a_step * depth * trees)

    def side_by_side(self, nothing: float) -> _Scan:
        """Groups of `_TREES` trees; those that fill the last have one leaf that says `nothing`."""
        trees, places, _ = self.node.shape
        missing = -trees % _TREES

        def grouped(table: np.ndarray, fill: int) -> np.ndarray:
            padded = np.pad(table, ((0, missing), (0, 0), (0, 0)), constant_values=fill)
            return np.ascontiguousarray(padded.reshape(-1, _TREES, places).transpose(0, 2, 1))

        beyond = len(self.leaves) if missing else 0
        first_leaf = np.pad(self.first_leaf[:, 0], (0, missing), constant_values=beyond)
        return _Scan(
            count=np.pad(self.count, (0, missing)).reshape(-1, _TREES).max(axis=1),
            first_leaf=first_leaf.reshape(-1, _TREES),
            node=grouped(self.node, 0),
            first=grouped(self.first, -1),
            after=grouped(self.after, 0),
            leaves=self.leaves,
            nothing=nothing,
        )

    def scores(self, x: Node, feature: np.ndarray, forest: Forest, combine: str) -> Node:
        """The combined scores of all trees. A leaf more than there are says `nothing`."""
        scores = np.pad(forest.scores[self.leaves], ((0, 1), (0, 0)), constant_values=self.nothing)
        tables = (
            self.count, self.first_leaf, feature[self.node], forest.threshold[self.node],
            self.first, self.after, scores,
        )  # fmt: skip
        return ops.node("whitebox.TreeScan", x, *map(constant, tables), combine=combine)


def _preorder(forest: Forest) -> _Scan:
    """Each tree a group of its own."""
    leaf, yes, no = (each.tolist() for each in (forest.leaf, forest.yes, forest.no))
    leaves: list[int] = []
    trees: list[tuple[int, list[int], list[int], list[int]]] = []
    for root in forest.roots.tolist():
        nodes: list[int] = []
        first: list[int] = []
        after: list[int] = []
        start = len(leaves)
        trees.append((start, nodes, first, after))
        # Where to go on, and the places in the tree of the nodes that a row leaves for there.
        pending: list[tuple[int, list[int]]] = [(root, [])]
        while pending:
            node, splits = pending.pop()
            for split in splits:
                after[split] = len(leaves) - start
            while not leaf[node]:
                if node < forest.second:
                    pending.append((no[node], []))
                pending[-1][1].append(len(nodes))
                nodes.append(node)
                first.append(len(leaves) - start)
                after.append(0)
                node = yes[node]
            leaves.append(node)
    places = max(1, *(len(nodes) for _, nodes, _, _ in trees))

    def table(which: int, fill: int) -> np.ndarray:
        filled = np.full((len(trees), places, 1), fill, np.int32)
        for index, tree in enumerate(trees):
            filled[index, : len(tree[1]), 0] = tree[which]
        return filled

    return _Scan(
        count=np.array([len(nodes) for _, nodes, _, _ in trees], np.int32),
        first_leaf=np.array([[start] for start, _, _, _ in trees], np.int32),
        node=table(1, 0),
        first=table(2, -1),
        after=table(3, 0),
        leaves=np.array(leaves, np.int32),
    )
