"""whitebox.TreeScan and whitebox.TreeWalk in numpy: all trees of all rows at once.

The test of a node is `x[feature] <= threshold`; NaN fails it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means

_COMBINE: dict[str, Any] = {"Sum": np.sum, "Min": np.min, "Max": np.max}


@means("whitebox.TreeScan")
def _tree_scan(node: Node, values: Values) -> Any:
    """The leaf of every row in every tree, found by looking at all nodes; then its scores.

    A node [group, place, tree] splits the leaves from `first` on at `after`, both counted from the
    tree's first `leaf`. Nodes come in preorder, so that a row stands at `first` just when its path
    leads through the node. No row stands at a negative one.
    """
    x, count, leaf, feature, threshold, first, after, scores = values
    place = np.zeros((len(x), *leaf.shape), np.int32)
    for k in range(int(count.max())):
        passed = x[:, feature[:, k]] <= threshold[:, k]
        place = np.where((place == first[:, k]) & ~passed, after[:, k], place)
    return _COMBINE[node.attr("combine")](scores[leaf + place], axis=(1, 2)).astype(np.float32)


@means("whitebox.TreeWalk")
def _tree_walk(node: Node, values: Values) -> Any:
    """Places [rows, trees], or [trees, rows] with `rows_last`, after `depth` steps.

    A link [node] is a feature, and where to go on when its test is passed or failed.
    """
    x, start, links, threshold = values
    feature, yes, no = links.T
    row = np.arange(len(x))[:, np.newaxis]
    place = np.broadcast_to(start, (len(x), len(start)))
    for _ in range(node.attr("depth")):
        passed = x[row, feature[place]] <= threshold[place]
        place = np.where(passed, yes[place], no[place])
    return place.T if node.attr("rows_last") else place
