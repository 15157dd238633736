"""whitebox.TreeWalk: the way of each row through each tree, in registers from root to leaf.

What enters: the node and the values of its inputs. What leaves: a value whose element takes all
steps of one row in one tree. Neighbouring trees are the lanes of a vector; or neighbouring rows
(`rows_last`), so that the nodes of a tree stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from whitebox.compiler.lower import functions as fn
from whitebox.compiler.lower.value import Axes, Body, Index, Scope, Value, emitter
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent
from whitebox.kernels.cpu.affine import Opaque

_COMPARE: dict[str, Any] = {
    "LessOrEqual": tirx.LE,
    "Less": tirx.LT,
    "GreaterOrEqual": tirx.GE,
    "Greater": tirx.GT,
}


@emitter("whitebox.TreeWalk")
def _tree_walk(node: Node, args: Sequence[Value], body: Body) -> Value:
    x, start, feature, threshold, yes, no, *missing = args
    compare = _COMPARE[node.attr("comparison")]

    def element(scope: Scope, axes: Axes) -> Any:
        loops = frozenset().union(*(axis.loops for axis in axes))

        def index(raw: Any, extent: Extent) -> Index:
            return Index({Opaque(scope.keep(raw), 0, extent - 1, loops): 1})

        row = axes[1] if node.attr("rows_last") else axes[0]
        place = start.broadcast(scope, axes)
        for _ in range(node.attr("depth")):
            at = (index(place, feature.shape[0]),)
            value = scope.keep(x.at(scope, (row, index(feature.at(scope, at), x.shape[1]))))
            chosen = compare(value, threshold.at(scope, at))
            if missing:
                chosen = tirx.Or(chosen, tirx.And(fn.is_nan(value), missing[0].at(scope, at)))
            place = tirx.Select(chosen, yes.at(scope, at), no.at(scope, at))
        return place

    return Value("int32", node.tensor.extents, element)
