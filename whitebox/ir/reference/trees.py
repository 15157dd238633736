"""whitebox.TreeWalk in numpy: all rows take a step in all trees at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means

_COMPARE: dict[str, Any] = {
    "LessOrEqual": np.less_equal,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "Greater": np.greater,
}


@means("whitebox.TreeWalk")
def _tree_walk(node: Node, values: Values) -> Any:
    x, start, feature, threshold, yes, no, missing = (*values, None)[:7]
    place = np.broadcast_to(start, node.tensor.dims)
    row = np.arange(len(x))
    row = row if node.attr("rows_last") else row[:, np.newaxis]
    for _ in range(node.attr("depth")):
        value = x[row, feature[place]]
        chosen = _COMPARE[node.attr("comparison")](value, threshold[place])
        if missing is not None:
            chosen = chosen | (np.isnan(value) & missing[place])
        place = np.where(chosen, yes[place], no[place])
    return place.astype(np.int32)
