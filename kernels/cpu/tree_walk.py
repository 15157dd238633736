"""Decision trees step by step: the way of each row through each tree, from root to leaf.

Enters: flat buffers of features and of the trees' nodes. Leaves: TIR statements that fill in the
places where the ways end. Knows no Graph.

A step waits for memory, so that several ways go side by side. Their numbers are taken one by one:
vectors would have to be put together from as many look-ups, and taken apart again for the next.
A leaf leads to itself, so that all ways have as many steps and none has a branch (Nakandala et al.,
"A Tensor Compiler for Unified Machine Learning Prediction Serving", OSDI 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent
from whitebox.kernels.cpu.affine import expression
from whitebox.kernels.cpu.injective import PARALLEL_WORK
from whitebox.kernels.cpu.nest import loop_over, new_var, sequence, share, worth

# Ways that go side by side, and what a step costs (in units of `PARALLEL_WORK`).
_BESIDE, _STEP_COST = 8, 20


@dataclass(frozen=True)
class Walk:
    """How many rows and trees, and how deep."""

    rows: Extent
    features: int
    trees: int
    depth: int
    rows_last: bool
    threads: int

    def statements(self, x: Any, start: Any, links: Any, threshold: Any, places: Any) -> list[Any]:
        """All steps of each row in each tree.

        `links` is [nodes, 3]: the feature, and where to go on when its test is passed or failed;
        `places` is [trees, rows] with `rows_last`, else [rows, trees].
        """
        count = self.rows * self.trees
        group, one, beside = new_var("group"), new_var("one"), tirx.const(_BESIDE, "int32")
        whole = tirx.truncdiv(expression(count), beside)
        rest = tirx.truncmod(expression(count), beside)
        parallel = worth(count * self.depth * _STEP_COST, PARALLEL_WORK, self.threads)

        def steps(first: Any, size: int) -> Any:
            return self._steps(x, start, links, threshold, places, first, size)

        return [
            share(group, whole, steps(group * beside, _BESIDE), parallel),
            loop_over(one, rest, steps(expression(count) - rest + one, 1)),
        ]

    def _steps(
        self, x: Any, start: Any, links: Any, threshold: Any, places: Any, first: Any, size: int
    ) -> Any:
        place, row = _local("place", size), _local("row", size)
        begin, step, end = [], [], []
        inner = expression(self.rows if self.rows_last else self.trees)
        for k in range(size):
            at = [tirx.const(k, "int32")]
            outer = tirx.truncdiv(first + k, inner), tirx.truncmod(first + k, inner)
            tree, number = outer if self.rows_last else outer[::-1]
            begin.append(tirx.BufferStore(place, tirx.BufferLoad(start, [tree]), at))
            begin.append(tirx.BufferStore(row, number * self.features, at))
            here = tirx.BufferLoad(place, at)
            feature, yes, no = (tirx.BufferLoad(links, [here * 3 + link]) for link in range(3))
            value = tirx.BufferLoad(x, [tirx.BufferLoad(row, at) + feature])
            # NaN fails: a negated comparison would be turned into the opposite one.
            passed = value <= tirx.BufferLoad(threshold, [here])
            step.append(tirx.BufferStore(place, tirx.Select(passed, yes, no), at))
            end.append(tirx.BufferStore(places, here, [first + k]))
        buffers = [tirx.AllocBuffer(place), tirx.AllocBuffer(row)]
        return sequence(
            [*buffers, *begin, loop_over(new_var("step"), self.depth, sequence(step)), *end]
        )


def _local(name: str, size: int) -> Any:
    return tirx.decl_buffer((size,), "int32", name=name, scope="local")
