"""Ensembles of decision trees, read from the attributes of ONNX's operators into one form.

What enters: a node of ai.onnx.ml. What leaves: a `Forest`, in which every node asks the same kind
of question, `x[feature] <= threshold`, that NaN fails; or None where the node says something else.

    x <= t                        as it is
    x >= t                        -x <= -t
    x > t, x < t                  not (x <= t), not (x >= t): the children change places
    x == t                        x <= t, and then x >= t: two nodes, whose "no" is one
    x != t                        not (x == t)
    NaN passes                    the same of x with -∞ in the place of NaN

There are thus up to four tables of features: x, x without NaN, and both with the other sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whitebox.ir.graph import Node

# Mode → whether it is about -x, whether the children change places, whether it is about both.
_MODES = {
    "BRANCH_LEQ": (False, False, False),
    "BRANCH_GTE": (True, False, False),
    "BRANCH_GT": (False, True, False),
    "BRANCH_LT": (True, True, False),
    "BRANCH_EQ": (False, False, True),
    "BRANCH_NEQ": (False, True, True),
}

# TreeEnsemble numbers the modes; a seventh asks whether a value is in a set.
_ENSEMBLE_MODES = [f"BRANCH_{mode}" for mode in "LEQ LT GTE GT EQ NEQ".split()]

# The tables of features, in this order.
PLAIN, NO_NAN, NEGATED, NEGATED_NO_NAN = range(4)


@dataclass(frozen=True)
class Nodes:
    """Nodes as a file has them: children are places in the same table, and a leaf is its own."""

    roots: np.ndarray  # int32 [trees]
    modes: list[str]
    feature: np.ndarray
    threshold: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    nan_is_yes: np.ndarray
    scores: np.ndarray  # float32 [nodes, results]


@dataclass(frozen=True)
class Forest:
    """The table of nodes. A leaf leads to itself, and only leaves have a score.

    Nodes from `second` on are the second half of a question in two: they share its "no".
    """

    roots: np.ndarray  # int32 [trees]
    table: np.ndarray  # int32 [nodes], which table of features
    feature: np.ndarray  # int32 [nodes]
    threshold: np.ndarray  # float32 [nodes]
    yes: np.ndarray  # int32 [nodes]
    no: np.ndarray  # int32 [nodes]
    scores: np.ndarray  # float32 [nodes, results]
    base: np.ndarray  # float32 [results]
    second: int
    depth: int

    @property
    def leaf(self) -> np.ndarray:
        """Whether a node is a leaf: bool [nodes]."""
        return np.asarray(self.yes == np.arange(len(self.yes)))


def forest_of(node: Node, kind: str, results: int) -> Forest | None:
    """The trees of a TreeEnsembleRegressor or -Classifier; None when it is not understood.

    `kind` is "target" or "class": how the attributes for the scores are called.
    """
    keys = list(zip(node.attr("nodes_treeids", ()), node.attr("nodes_nodeids", ()), strict=True))
    if not keys or node.attr("nodes_values_as_tensor") is not None:
        return None
    place = {key: index for index, key in enumerate(keys)}
    modes = list(node.attr("nodes_modes", ()))
    try:
        yes, no = (
            np.array(
                [
                    index if mode == "LEAF" else place[tree, child]
                    for index, ((tree, _), mode, child) in enumerate(
                        zip(keys, modes, node.attr(f"nodes_{side}nodeids"), strict=True)
                    )
                ],
                np.int32,
            )
            for side in ("true", "false")
        )
        scores = _scores(node, kind, results, place)
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # malformed: the reference says what is wrong
    itself = np.arange(len(keys), dtype=np.int32)
    inner = yes != itself
    roots = np.setdiff1d(itself, np.concatenate([yes[inner], no[inner]])).astype(np.int32)
    if len({keys[root][0] for root in roots}) != len(roots):
        return None
    nan_is_yes = np.array(node.attr("nodes_missing_value_tracks_true") or [0] * len(keys), bool)
    nodes = Nodes(
        roots=roots,
        modes=modes,
        feature=np.asarray(node.attr("nodes_featureids"), np.int32),
        threshold=np.asarray(node.attr("nodes_values"), np.float32),
        yes=yes,
        no=no,
        nan_is_yes=nan_is_yes,
        scores=scores,
    )
    base = np.asarray(node.attr("base_values") or [0.0] * results, np.float32)
    return asked_alike(nodes, base)


def forest_of_ensemble(node: Node) -> Forest | None:
    """The trees of a TreeEnsemble; None when it is not understood.

    Its leaves are numbered apart from its nodes; here they follow them.
    """
    tensors = [node.attr(name) for name in ("nodes_splits", "nodes_modes", "leaf_weights")]
    if None in tensors:
        return None
    splits, modes, weights = (tensor.array for tensor in tensors)
    if splits.dtype != np.float32:
        return None
    count, leaves = len(splits), np.arange(len(weights))
    try:
        yes, no = (
            np.concatenate(
                [
                    np.array(node.attr(f"nodes_{side}nodeids"))
                    + np.where(node.attr(f"nodes_{side}leafs"), count, 0),
                    count + leaves,
                ]
            )
            for side in ("true", "false")
        )
        scores = np.zeros((count + len(leaves), node.attr("n_targets", 1)), np.float32)
        scores[count + leaves, node.attr("leaf_targetids")] = weights
        kinds = [_ENSEMBLE_MODES[mode] for mode in modes.tolist()]
    except (IndexError, TypeError, ValueError):
        return None  # malformed, or sets of values: the reference takes these
    if max(yes.max(), no.max()) >= len(scores) or min(yes.min(), no.min()) < 0:
        return None
    nan_is_yes = node.attr("nodes_missing_value_tracks_true") or [0] * count
    nodes = Nodes(
        roots=np.asarray(node.attr("tree_roots"), np.int32),
        modes=[*kinds, *["LEAF"] * len(leaves)],
        feature=np.pad(np.asarray(node.attr("nodes_featureids"), np.int32), (0, len(leaves))),
        threshold=np.pad(splits, (0, len(leaves))),
        yes=yes.astype(np.int32),
        no=no.astype(np.int32),
        nan_is_yes=np.pad(np.asarray(nan_is_yes, bool), (0, len(leaves))),
        scores=scores,
    )
    return asked_alike(nodes, np.zeros(scores.shape[1], np.float32))


def _scores(node: Node, kind: str, results: int, place: dict[tuple[int, int], int]) -> np.ndarray:
    """[nodes, results]: what a leaf adds to each result."""
    scores = np.zeros((len(place), results), np.float32)
    trees, nodes = node.attr(f"{kind}_treeids"), node.attr(f"{kind}_nodeids")
    ids, weights = node.attr(f"{kind}_ids"), node.attr(f"{kind}_weights")
    for tree, leaf, result, weight in zip(trees, nodes, ids, weights, strict=True):
        scores[place[tree, leaf], result if results > 1 else 0] += weight
    return scores


def asked_alike(nodes: Nodes, base: np.ndarray) -> Forest | None:
    """The same trees with one kind of question; None for a kind that cannot be said with it."""
    count = len(nodes.yes)
    leaf = nodes.yes == np.arange(count)
    arrays = (nodes.modes, nodes.feature, nodes.threshold, nodes.nan_is_yes)
    if not set(nodes.modes) <= {*_MODES, "LEAF"} or any(len(each) != count for each in arrays):
        return None
    if base.size != nodes.scores.shape[1] or np.isnan(nodes.threshold[~leaf]).any():
        return None
    flags = [_MODES.get(mode, (False, False, False)) for mode in nodes.modes]
    negated, swapped, both = np.array(flags, bool).T
    # What NaN does to the question that is asked: where children change places, the opposite; but
    # that it equals a number, which it does not, is asked of it as of all others.
    passes = np.where(swapped, ~nodes.nan_is_yes & ~both, nodes.nan_is_yes) & ~leaf
    table = 2 * negated + passes
    # A leaf asks for nothing: not for a table of its own either.
    table[leaf] = min(table[~leaf], default=PLAIN)
    threshold = np.where(negated, -nodes.threshold, nodes.threshold)
    yes = np.where(swapped, nodes.no, nodes.yes)
    no = np.where(swapped, nodes.yes, nodes.no)
    firsts = np.flatnonzero(both)
    seconds = count + np.arange(len(firsts))
    yes, then = yes.copy(), yes[firsts]
    yes[firsts] = seconds
    feature = np.where(leaf, 0, nodes.feature)
    made = {
        "yes": np.concatenate([yes, then]).astype(np.int32),
        "no": np.concatenate([no, no[firsts]]).astype(np.int32),
    }
    depth = _depth(made["yes"], made["no"], nodes.roots)
    if depth is None:
        return None
    return Forest(
        roots=nodes.roots,
        table=np.concatenate([table, table[firsts] + NEGATED]).astype(np.int32),
        feature=np.concatenate([feature, feature[firsts]]).astype(np.int32),
        threshold=np.where(
            np.concatenate([leaf, np.zeros(len(firsts), bool)]),
            0.0,
            np.concatenate([threshold, -threshold[firsts]]),
        ).astype(np.float32),
        scores=np.pad(nodes.scores, ((0, len(firsts)), (0, 0))),
        base=base,
        second=count,
        depth=depth,
        **made,
    )


def _depth(yes: np.ndarray, no: np.ndarray, roots: np.ndarray) -> int | None:
    """Steps from a root to the deepest leaf; None when the nodes form a cycle."""
    level, depth = roots, 0
    while not (yes[level] == level).all():
        level = np.unique(np.concatenate([yes[level], no[level]]))
        depth += 1
        if depth > len(yes):
            return None
    return depth
