"""Operators on class labels in numpy: votes (ONNX cannot order strings), and scores by label."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means


@means("whitebox.Vote")
def _vote(node: Node, values: Values) -> Any:
    """The commonest label along the last axis; of equally common ones the smallest."""
    (labels,) = values
    winners = np.empty(labels.shape[:-1], labels.dtype)
    for place in np.ndindex(winners.shape):
        # `unique` sorts, and argmax takes the first of the largest.
        found, counts = np.unique(labels[place], return_counts=True)
        winners[place] = found[counts.argmax()]
    return winners


@means("ai.onnx.ml.ZipMap")
def _zip_map(node: Node, values: Values) -> Any:
    """A map from label to score for each row."""
    (scores,) = values
    labels = node.attr("classlabels_strings") or node.attr("classlabels_int64s")
    return [[dict(zip(labels, row, strict=True)) for row in np.atleast_2d(scores).tolist()]]
