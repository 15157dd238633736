"""The types of whitebox.TreeScan, the scores of rows, and whitebox.TreeWalk, their places."""

from __future__ import annotations

from whitebox.ir.shapes.rule import Call, Misfit, rule
from whitebox.ir.types import TensorType


@rule("whitebox.TreeScan")
def _tree_scan(call: Call) -> TensorType:
    rows, tables, scores = call.shape(0), call.shape(3), call.shape(7)
    if rows is None or len(rows) != 2 or scores is None or len(scores) != 2:
        raise Misfit("rows of features and scores of leaves are needed")
    if tables is None or len(tables) != 3:
        raise Misfit("nodes are numbered by group, place and tree")
    return TensorType("float32", (rows[0], scores[1]))


@rule("whitebox.TreeWalk")
def _tree_walk(call: Call) -> TensorType:
    rows, starts = call.shape(0), call.shape(1)
    if rows is None or len(rows) != 2 or starts is None or len(starts) != 1:
        raise Misfit("rows of features and places to start from are needed")
    dims = (starts[0], rows[0]) if call.attrs["rows_last"] else (rows[0], starts[0])
    return TensorType("int32", dims)
