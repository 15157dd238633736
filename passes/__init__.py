"""Passes: functions Graph → Graph. `share` runs when a model is read, the others in the order of
PASSES on its structure, once for all models that have it.

A pass never changes what a model computes; what it may change is rounding, which only
`lower_precision` does coarsely, and only when asked. Types are verified
after each pass. Every decision a user may wonder about is recorded with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from whitebox import config
from whitebox.errors import WhiteboxError
from whitebox.ir.graph import Graph, Node
from whitebox.passes.fold import fold, specialize
from whitebox.passes.fuse import fuse
from whitebox.passes.layout import layout
from whitebox.passes.lower_precision import lower_precision
from whitebox.passes.quantize import quantize
from whitebox.passes.record import Decision, decide, recording, running
from whitebox.passes.share import share
from whitebox.passes.simplify import simplify, spell_weights
from whitebox.passes.verify import verify, verify_signature

Pass = Callable[[Graph], Graph]

PASSES: tuple[Pass, ...] = (
    fold,  # first: shapes become numbers, which the rules below ask for
    simplify,  # before layout: fewer and plainer nodes to lay out
    quantize,  # before layout: products of integers have layouts of their own
    layout,  # before fuse: layout moves must be nodes that can be fused
    lower_precision,  # after layout, which says what is a product with packed weights
    fuse,  # last: nothing looks inside a group afterwards
    verify,
)


@dataclass(frozen=True)
class PassReport:
    """What one pass did: node counts before and after, seconds, and its decisions."""

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    decisions: tuple[Decision, ...] = field(default=(), repr=False)


def pass_name(function: Pass) -> str:
    """The verb that names a pass, also when options are bound to it."""
    return function.func.__name__ if isinstance(function, partial) else function.__name__


class Machine(Protocol):
    """What passes ask of a target: see compiler/target.py."""

    @property
    def lanes(self) -> int: ...
    @property
    def integer_group(self) -> int: ...
    @property
    def half(self) -> bool: ...
    @property
    def bf16(self) -> str: ...


def passes_for(
    target: Machine,
    unsupported: Callable[[Node], str | None],
    precision: str = "f32",
    *,
    general: bool = False,
) -> tuple[Pass, ...]:
    """PASSES with the target's options bound: its vectors, and what it cannot compile.

    A `general` graph has operators whose kernels serve every size, as far as there is a choice.
    """
    lanes = target.lanes
    # Tiles multiply so fast that there is nothing to save, and transforms cost precision.
    winograd = not (precision == "bf16" and target.bf16 == "tiles")
    bound = {
        quantize: partial(quantize, integer_group=target.integer_group),
        layout: partial(
            layout,
            lanes=lanes,
            integer_group=target.integer_group,
            winograd=winograd,
            attention=not (general or (precision == "bf16" and target.bf16)),
        ),
        lower_precision: partial(
            lower_precision,
            precision=precision,
            lanes=lanes,
            half=target.half,
            instructions=target.bf16,
        ),
        fuse: partial(fuse, unsupported=unsupported),
    }
    return tuple(bound.get(each, each) for each in PASSES)


def optimize(
    graph: Graph, passes: Sequence[Pass] = PASSES, reports: list[PassReport] | None = None
) -> Graph:
    """Run the passes in order. Raises VerifyError naming the pass that broke an invariant."""
    for each in passes:
        name = pass_name(each)
        before, start = graph, time.perf_counter()
        with recording() as decisions, running(name):
            try:
                graph = each(before)
                verify_signature(before, graph)
            except WhiteboxError as error:
                raise type(error)(f"pass {name}: {error}") from error
        seconds = time.perf_counter() - start
        report = PassReport(name, len(before.nodes), len(graph.nodes), seconds, tuple(decisions))
        if reports is not None:
            reports.append(report)
        _trace(report, graph)
    return graph


def _trace(report: PassReport, graph: Graph) -> None:
    """The debug ladder: 1 a line a pass, 2 the graph, 3 each decision."""
    level = config.debug()
    if level >= 1:
        print(
            f"{report.name:10} {report.nodes_before:5} → {report.nodes_after:5} nodes "
            f"{report.seconds * 1e3:8.1f} ms"
        )
    if level >= 3:
        print(*report.decisions, sep="\n")
    if level >= 2:
        print(graph)
    folder = config.dump_dir()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{graph.digest[:12]}-{report.name}.txt").write_text(str(graph))


__all__ = [
    "PASSES",
    "Decision",
    "Pass",
    "PassReport",
    "decide",
    "optimize",
    "pass_name",
    "passes_for",
    "share",
    "specialize",
    "spell_weights",
]
