"""Building blocks for operators that reduce rows and then map over them: softmax, normalisation.

Enters: a TE tensor whose trailing `axes` dimensions make a row. Leaves: per-row caches and
reductions as TE tensors, and a schedule that carries out one row after the other in cache. Rows
are padded to whole vectors in their cache, so that only loading and storing test bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import stages

# The names of the blocks that fill a row's cache end so; the other blocks reduce.
CACHE = "_row"


@dataclass(frozen=True)
class Rows:
    """A tensor of `shape` seen as rows over its last `axes` dimensions."""

    shape: tuple[int, ...]
    axes: int
    lanes: int
    threads: int

    @property
    def lead(self) -> tuple[int, ...]:
        """The dimensions that number the rows."""
        return self.shape[: len(self.shape) - self.axes]

    @property
    def size(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[len(self.lead) :])

    @property
    def width(self) -> int:
        """Elements reduced side by side: four vectors in long rows, to hide the latency of one."""
        last, width = self.shape[-1], 4 * self.lanes
        wide = last >= 16 * self.lanes and -(-last // width) * width <= 1.06 * last
        return width if wide else self.lanes

    @property
    def padded(self) -> int:
        """Elements of the last dimension in a cache."""
        return -(-self.shape[-1] // self.width) * self.width

    def cache(self, name: str, value: Callable[..., Any], fill: float) -> Any:
        """Rows of `value(*index)`, with `fill` past their end."""
        from tvm import te, tirx

        last = self.shape[-1]

        def element(*index: Any) -> Any:
            if self.padded == last:
                return value(*index)
            return tirx.if_then_else(index[-1] < last, value(*index), tirx.const(fill, "float32"))

        return te.compute((*self.shape[:-1], self.padded), element, name=name)

    def map(self, name: str, value: Callable[..., Any]) -> Any:
        """Rows of `value(*index)`, whose padding is computed like the rest."""
        from tvm import te

        return te.compute((*self.shape[:-1], self.padded), value, name=name)

    def reduce(
        self,
        name: str,
        kind: str,
        value: Callable[..., Any],
        finish: Callable[[Any], Any] = lambda total: total,
    ) -> Any:
        """`finish` of the "sum" or "max" of each row of `value(*index)`, in three blocks.

        Lanes first, then a vector of lanes, then the last four: a tree, since the order of a
        serial sum is fixed and would cost the latency of each addition.
        """
        from tvm import te, tirx

        middle = self.shape[len(self.lead) : -1]
        reducer = te.sum if kind == "sum" else te.max

        def lane(*index: Any) -> Any:
            *lead, j = index
            axes = [te.reduce_axis((0, size)) for size in middle]
            step = te.reduce_axis((0, self.padded // self.width))
            element = value(*lead, *axes, step * self.width + j)
            return reducer(element, axis=[*axes, step])

        def four(*index: Any) -> Any:
            *lead, j = index
            return tree([lanes(*lead, j + i) for i in range(0, self.width, 4)])

        def tree(values: Sequence[Any]) -> Any:
            while len(values) > 1:
                pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
                values = [combine(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
            return values[0]

        def combine(a: Any, b: Any) -> Any:
            return a + b if kind == "sum" else tirx.max(a, b)

        lanes = te.compute((*self.lead, self.width), lane, name=f"{name}_lanes")
        fours = te.compute((*self.lead, 4), four, name=f"{name}_four")
        return te.compute(
            self.lead or (1,),
            lambda *lead: finish(tree([fours(*lead[: len(self.lead)], i) for i in range(4)])),
            name=name,
        )

    def of(self, reduced: Any, index: Sequence[Any]) -> Any:
        """The element of a `reduce` for the row that `index` lies in."""
        return reduced(*index[: len(self.lead)]) if self.lead else reduced(0)

    def schedule(self, sch: Any, names: Sequence[str], cost: int) -> None:
        """Schedule the blocks `names`, given in order of execution, at a loop over rows.

        `cost` is the number of operations an element takes. Blocks not named are inlined, and so
        are caches ("_row") that would only copy.
        """
        names = [name for name in names if not self._is_copy(sch, name)]
        stages.inline_all(sch, set(names))
        loops = list(sch.get_loops(stages.output_block(sch)))
        split = len(loops) - self.axes
        row = sch.fuse(*loops[:split]) if split else sch.add_unit_loop(loops[0])
        if self.threads > 1 and math.prod(self.shape) * cost >= stages.PARALLEL_WORK:
            sch.parallel(row)
        stages.vectorize_rows(sch, loops[split:], self.shape[-1], self.lanes)
        for name in reversed(names):
            # The default scope: TVM puts what is under 1 KiB of it on the stack, "local" never.
            block = sch.get_sblock(name)
            sch.compute_at(block, row, preserve_unit_loops=True)
            self._vectorize(sch, block, name)

    def _is_copy(self, sch: Any, name: str) -> bool:
        """Whether a cache would hold what can as well be read where it is."""
        if not name.endswith(CACHE) or self.padded != self.shape[-1]:
            return False
        block = sch.get_sblock(name)
        chain = [block, *stages.upstream(sch, block)]
        return not any(stages.computes(sch, each) for each in chain)

    def _vectorize(self, sch: Any, block: Any, name: str) -> None:
        loops = list(sch.get_loops(block))
        if name.endswith("_lanes"):
            steps, lane = loops[-self.axes :], loops[-self.axes - 1]
            vector, inner = sch.split(lane, [None, self.lanes])
            sch.reorder(*steps, vector, inner)
            sch.unroll(vector)
            sch.vectorize(inner)
            sch.decompose_reduction(block, steps[0])
        elif name.endswith("_four"):
            sch.vectorize(loops[-1])
        elif name.endswith(CACHE):
            outer, inner = sch.split(loops[-1], [None, self.lanes])
            sch.vectorize(inner)
            if self.padded != self.shape[-1]:
                sch.annotate(outer, "pragma_loop_partition_hint", 1)


def reduction_blocks(name: str) -> tuple[str, ...]:
    """The blocks that `Rows.reduce` makes, in order of execution."""
    return (f"{name}_lanes", f"{name}_four", name)
