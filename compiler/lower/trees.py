"""Trees of decisions: whitebox.TreeScan, which looks at all nodes, and whitebox.TreeWalk.

What enters: the node and the values of its inputs. What leaves: the scores of rows, held in an
array; or, of a walk, the places that rows end at, held in one. The lanes of a
vector are neighbouring trees, or neighbouring rows: a tree's nodes are then read once for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whitebox.compiler.lower.reduction import FOLDS, folded
from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Scope,
    Value,
    const,
    emitter,
    from_array,
    moved,
)
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, known
from whitebox.kernels.cpu import tree_walk, trees

_IDENTITY = {"Sum": 0.0, "Min": float("inf"), "Max": float("-inf")}


@emitter("whitebox.TreeScan")
def _tree_scan(node: Node, args: Sequence[Value], body: Body) -> Value:
    x, *tables = args
    groups, nodes, width = map(known, tables[2].shape)
    fold = FOLDS[node.attr("combine")]
    scan = trees.Scan(
        groups=groups,
        nodes=nodes,
        width=width,
        features=known(x.shape[1]),
        results=known(tables[-1].shape[1]),
        identity=_IDENTITY[node.attr("combine")],
        combine=fold.combine,
        lanes=body.lanes,
        threads=body.target.threads,
    )
    buffers = trees.Tables(*map(body.buffer, tables))
    rows = x.shape[0]
    if width > 1:
        partial = body.array((rows, scan.results, groups, width), "float32")
        body.statements += scan.over_trees(buffers, body.buffer(x), partial.buffer, rows)
        return folded(body, from_array(partial, "float32"), (2, 3), fold)
    vectors = trees.rows_of_block(rows, body.lanes)
    size = vectors * body.lanes
    blocks = body.quotient(rows, size)
    columns = body.buffer(_columns(x, blocks, size))
    partial = body.array((scan.chunks, scan.results, blocks * size), "float32")
    body.statements += scan.over_rows(buffers, columns, partial.buffer, blocks, vectors)
    total = folded(body, from_array(partial, "float32"), (0,), fold)
    return moved(node, total, lambda axes: (axes[1], axes[0]))


def _columns(x: Value, blocks: Extent, size: int) -> Value:
    """`x` [rows, features] as [blocks, features, rows of a block]; what is past the end is zero."""

    def element(scope: Scope, axes: Axes) -> Any:
        block, feature, lane = axes
        row = block * size + lane
        return scope.choose(
            scope.less(row, x.shape[0]),
            lambda: x.at(scope, (row, feature)),
            lambda: const(0, "float32"),
        )

    return Value("float32", (blocks, x.shape[1], size), element)


@emitter("whitebox.TreeWalk")
def _tree_walk(node: Node, args: Sequence[Value], body: Body) -> Value:
    x, start, links, threshold = args
    walk = tree_walk.Walk(
        rows=x.shape[0],
        features=known(x.shape[1]),
        trees=known(start.shape[0]),
        depth=node.attr("depth"),
        rows_last=bool(node.attr("rows_last")),
        threads=body.target.threads,
    )
    places = body.array(node.tensor.extents, "int32")
    body.statements += walk.statements(
        body.buffer(x),
        body.buffer(start),
        body.buffer(links),
        body.buffer(threshold),
        places.buffer,
    )
    return from_array(places, "int32")
