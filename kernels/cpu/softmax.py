"""Template for Softmax and LogSoftmax.

Enters: the shape and the axis, then a TE tensor. Leaves: a TE tensor named "softmax" and a schedule
in which each row is read once into cache and never leaves it. Knows no Graph.

    for row in parallel(rows):
        row → cache (what computes the input is inlined here)
        maximum, a vector of lanes at a time; then over the lanes
        exp(x - maximum) → cache; its sum likewise
        result = epilogue(exp / sum)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import stages, vector_math
from whitebox.kernels.cpu.rows import Rows, reduction_blocks

RESULT = "softmax"
_ROW, _MAX, _POWERS, _SUM = "softmax_row", "softmax_max", "powers_row", "softmax_sum"


@dataclass(frozen=True)
class Softmax:
    """ONNX Softmax (opset 13) over `axis`, or LogSoftmax with `log`.

    The last axis takes rows in parallel. Another axis is taken a vector of columns at a time.
    """

    shape: tuple[int, ...]
    axis: int
    log: bool
    lanes: int
    threads: int

    @classmethod
    def default(
        cls, shape: tuple[int, ...], axis: int, lanes: int, threads: int, *, log: bool = False
    ) -> Softmax:
        """The template for a shape; a negative axis counts from the end."""
        return cls(tuple(shape), axis % len(shape), log, lanes, threads)

    @property
    def _rows(self) -> Rows:
        return Rows(self.shape, 1, self.lanes, self.threads)

    def compute(self, x: Any) -> Any:
        if self.axis == len(self.shape) - 1:
            return self._compute_rows(x)
        return self._compute_columns(x)

    def schedule(self, sch: Any) -> None:
        if self.axis == len(self.shape) - 1:
            names = (_ROW, *reduction_blocks(_MAX), *(() if self.log else (_POWERS,)))
            self._rows.schedule(sch, (*names, *reduction_blocks(_SUM)), cost=10)
        else:
            self._schedule_columns(sch)

    def _compute_rows(self, x: Any) -> Any:
        from tvm import te

        rows = self._rows
        # The padding is neutral throughout: it never is the maximum, and its exponential is 0.
        row = rows.cache(_ROW, x, -math.inf)
        largest = rows.reduce(_MAX, "max", row)

        def power(*index: Any) -> Any:
            return vector_math.exp_nonpositive(row(*index) - rows.of(largest, index))

        if self.log:
            offset = rows.reduce(_SUM, "sum", power, vector_math.log)
            return te.compute(
                self.shape,
                lambda *i: row(*i) - rows.of(largest, i) - rows.of(offset, i),
                name=RESULT,
            )
        powers = rows.map(_POWERS, power)
        scale = rows.reduce(_SUM, "sum", powers, lambda total: 1.0 / total)
        return te.compute(self.shape, lambda *i: powers(*i) * rows.of(scale, i), name=RESULT)

    def _compute_columns(self, x: Any) -> Any:
        """Over an axis that is not the last: each step is a vector of columns."""
        from tvm import te

        axis, size = self.axis, self.shape[self.axis]
        columns = (*self.shape[:axis], *self.shape[axis + 1 :])

        def at(tensor: Any, index: Any, k: Any) -> Any:
            return tensor(*index[:axis], k, *index[axis:])

        def reduction(name: str, reducer: Any, value: Any) -> Any:
            k = te.reduce_axis((0, size))
            return te.compute(columns, lambda *i: reducer(value(i, k), axis=k), name=name)

        def column(index: Any) -> Any:
            return (*index[:axis], *index[axis + 1 :])

        source = te.compute(self.shape, x, name=_ROW)
        largest = reduction(_MAX, te.max, lambda i, k: at(source, i, k))
        total = reduction(
            _SUM, te.sum, lambda i, k: vector_math.exp_nonpositive(at(source, i, k) - largest(*i))
        )

        def result(*index: Any) -> Any:
            own = column(index)
            value = source(*index) - largest(*own)
            if self.log:
                return value - vector_math.log(total(*own))
            return vector_math.exp_nonpositive(value) / total(*own)

        return te.compute(self.shape, result, name=RESULT)

    def _schedule_columns(self, sch: Any) -> None:
        computed = any(
            stages.computes(sch, block) for block in stages.upstream(sch, sch.get_sblock(_ROW))
        )
        stages.inline_all(sch, {_MAX, _SUM, *((_ROW,) if computed else ())})
        if computed:
            stages.schedule_stage(sch, sch.get_sblock(_ROW), self.lanes, self.threads)
        for name in (_MAX, _SUM):
            block = sch.get_sblock(name)
            *outer, last, k = sch.get_loops(block)
            if outer and self.threads > 1 and math.prod(self.shape) * 8 >= stages.PARALLEL_WORK:
                sch.parallel(sch.fuse(*outer))
            if self.shape[-1] >= self.lanes:
                vectors, lane = sch.split(last, [None, self.lanes])
                sch.reorder(vectors, k, lane)
                sch.vectorize(lane)
                if self.shape[-1] % self.lanes:
                    sch.annotate(vectors, "pragma_loop_partition_hint", 1)
                sch.decompose_reduction(block, k)
        stages.schedule_stage(sch, stages.output_block(sch), self.lanes, self.threads)
