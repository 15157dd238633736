"""The type of whitebox.TreeWalk: where each row ends up in each tree."""

from __future__ import annotations

from whitebox.ir.shapes.rule import Call, Misfit, rule
from whitebox.ir.types import TensorType


@rule("whitebox.TreeWalk")
def _tree_walk(call: Call) -> TensorType:
    rows, starts = call.shape(0), call.shape(1)
    if rows is None or len(rows) != 2 or not starts:
        raise Misfit("rows of features and places to start from are needed")
    dims = (starts[0], rows[0]) if call.attrs["rows_last"] else (rows[0], starts[-1])
    return TensorType("int32", dims)
