"""Ensembles of decision trees without branches: every tree of every row takes steps side by side.

All nodes of all trees are in one table. A row's position in a tree is an index into it; a step
looks up the node's feature and threshold, compares, and moves to a child. Leaves lead to
themselves, so after as many steps as the deepest tree has levels every position is a leaf.
(Nakandala et al., "A Tensor Compiler for Unified Machine Learning Prediction Serving", OSDI'20.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.passes.rules.algebra import reshape

_COMPARISONS = {
    "BRANCH_LEQ": "LessOrEqual",
    "BRANCH_LT": "Less",
    "BRANCH_GTE": "GreaterOrEqual",
    "BRANCH_GT": "Greater",
}

# A kernel takes at most so many steps: they are written out one after the other.
_MAX_STEPS = 16

# From so many rows on, a tree takes them one after the other: its nodes stay in the cache.
_MANY_ROWS = 16


@dataclass(frozen=True)
class Forest:
    """The table of nodes; a leaf's children are itself, and only leaves have a score."""

    comparison: str
    roots: np.ndarray  # int32 [trees]
    feature: np.ndarray  # int32 [nodes]
    threshold: np.ndarray  # float32 [nodes]
    yes: np.ndarray  # int32 [nodes]
    no: np.ndarray  # int32 [nodes]
    nan_is_yes: np.ndarray  # bool [nodes]
    scores: np.ndarray  # float32 [nodes, results]
    base: np.ndarray  # float32 [results]
    depth: int


def forest_of(node: Node, kind: str, results: int) -> Forest | None:
    """The trees that a node's attributes describe; None when they are not all of one kind.

    `kind` is "target" or "class": how the attributes for the scores are called.
    """
    keys = list(zip(node.attr("nodes_treeids", ()), node.attr("nodes_nodeids", ()), strict=True))
    modes = node.attr("nodes_modes", ())
    branches = set(modes) - {"LEAF"}
    if not keys or len(branches) > 1 or not branches <= set(_COMPARISONS):
        return None
    if node.attr("nodes_values_as_tensor") is not None:
        return None
    place = {key: index for index, key in enumerate(keys)}
    itself = np.arange(len(keys), dtype=np.int32)
    leaf = np.array([mode == "LEAF" for mode in modes])
    try:
        children = {
            side: np.array(
                [
                    index if leaf[index] else place[tree, child]
                    for index, ((tree, _), child) in enumerate(
                        zip(keys, node.attr(f"nodes_{side}nodeids"), strict=True)
                    )
                ],
                np.int32,
            )
            for side in ("true", "false")
        }
        scores = _scores(node, kind, results, place)
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # malformed: the reference says what is wrong
    pointed = np.concatenate([children[side][~leaf] for side in ("true", "false")])
    roots = np.setdiff1d(itself, pointed).astype(np.int32)
    depth = _depth(children["true"], children["false"], roots, leaf)
    if depth is None or len({keys[root][0] for root in roots}) != len(roots):
        return None
    nan_is_yes = np.array(node.attr("nodes_missing_value_tracks_true") or [0] * len(keys), bool)
    base = np.asarray(node.attr("base_values") or [0.0] * results, np.float32)
    if base.size != results or nan_is_yes.size != len(keys):
        return None
    return Forest(
        comparison=_COMPARISONS[branches.pop()] if branches else "LessOrEqual",
        roots=roots,
        feature=np.where(leaf, 0, node.attr("nodes_featureids")).astype(np.int32),
        threshold=np.where(leaf, 0.0, node.attr("nodes_values")).astype(np.float32),
        yes=children["true"],
        no=children["false"],
        nan_is_yes=nan_is_yes & ~leaf,
        scores=scores,
        base=base,
        depth=depth,
    )


def _scores(node: Node, kind: str, results: int, place: dict[tuple[int, int], int]) -> np.ndarray:
    """[nodes, results]: what a leaf adds to each result."""
    scores = np.zeros((len(place), results), np.float32)
    trees, nodes = node.attr(f"{kind}_treeids"), node.attr(f"{kind}_nodeids")
    ids, weights = node.attr(f"{kind}_ids"), node.attr(f"{kind}_weights")
    for tree, leaf, result, weight in zip(trees, nodes, ids, weights, strict=True):
        scores[place[tree, leaf], result if results > 1 else 0] += weight
    return scores


def _depth(yes: np.ndarray, no: np.ndarray, roots: np.ndarray, leaf: np.ndarray) -> int | None:
    """Steps from a root to the deepest leaf; None when the nodes form a cycle."""
    level, depth = roots, 0
    while not leaf[level].all():
        level = np.unique(np.concatenate([yes[level], no[level]]))
        depth += 1
        if depth > len(leaf):
            return None
    return depth


def tree_scores(x: Node, forest: Forest, aggregate: str) -> Node | None:
    """The [rows, results] scores of float32 `x` [rows, features]; None for other aggregates."""
    reduction = {
        "SUM": "ReduceSum",
        "AVERAGE": "ReduceMean",
        "MIN": "ReduceMin",
        "MAX": "ReduceMax",
    }
    if aggregate not in reduction or forest.feature.max() >= x.tensor.dims[1]:
        return None
    tables = [constant(t) for t in (forest.feature, forest.threshold, forest.yes, forest.no)]
    if forest.nan_is_yes.any():
        tables.append(constant(forest.nan_is_yes))
    rows_last = x.tensor.dims[0] >= _MANY_ROWS
    position = constant(forest.roots.reshape(-1, 1) if rows_last else forest.roots)
    for done in range(0, max(forest.depth, 1), _MAX_STEPS):
        steps = min(forest.depth - done, _MAX_STEPS)
        position = ops.node(
            "whitebox.TreeWalk", x, position, *tables,
            depth=steps, comparison=forest.comparison, rows_last=int(rows_last),
        )  # fmt: skip
    results = forest.scores.shape[1]
    table = constant(forest.scores[:, 0] if results == 1 else forest.scores)
    leaves = ops.node("Gather", table, position, axis=0)
    axis = constant(np.array([0 if rows_last else 1], np.int64))
    total = ops.node(reduction[aggregate], leaves, axis, keepdims=0)
    total = reshape(total, (x.tensor.dims[0], results))
    return ops.node("Add", total, constant(forest.base)) if forest.base.any() else total
