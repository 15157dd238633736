"""tune: measure other schedules of a model's hottest kernels, and keep the best.

The cost model ranks a template's schedules without running any. Where it errs, measuring on the
model's own data finds out. What wins is noted in the kernel cache under the kernel's key, so every
model that shares the kernel is faster from its next load on; answers may differ in rounding only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whitebox.compiler.cache import kernel_key
from whitebox.errors import CompileError, InvalidInput
from whitebox.ir.graph import Graph
from whitebox.passes.fuse import body_label
from whitebox.runtime.device import Arena
from whitebox.runtime.engine import Engine
from whitebox.runtime.executable import Executable
from whitebox.runtime.prepare import Preparer
from whitebox.runtime.served import ServedModel

# A schedule must be this much faster to replace another: less is noise.
WORTHWHILE = 0.97
# Calls of one measurement, and rounds in which the schedules take turns.
CALLS, ROUNDS = 3, 7

Tell = Callable[["Tuned"], None]


@dataclass(frozen=True)
class Tuned:
    """What measuring one kernel found, in µs a call."""

    label: str
    kernel: str
    schedules: int
    before_us: float
    after_us: float

    @property
    def changed(self) -> bool:
        return self.after_us < self.before_us


def tune(
    model: ServedModel,
    preparer: Preparer,
    engine: Engine,
    feeds: Mapping[str, Any],
    budget_s: float,
    tell: Tell = lambda tuned: None,
) -> list[Tuned]:
    """Measure for about `budget_s` seconds, the hottest kernels first; `tell` hears of each.

    Raises InvalidInput when the model does not fit the feeds, or runs on the host.
    """
    deadline = time.monotonic() + budget_s
    values, shapes = model.check(feeds)
    work, _ = model.load(shapes, preparer, engine)
    if not isinstance(work, Executable):
        raise InvalidInput(f"model {model.name} runs on the host: it has no kernels to tune")
    bodies = _bodies(model, preparer, shapes)
    found = []
    for step in engine.run(_Hottest(work), values):
        if time.monotonic() > deadline:
            break
        key = work.plan.steps[step].kernel
        tuned = _tune_step(work, step, bodies[key], preparer, engine, values, deadline)
        if tuned is not None:
            found.append(tuned)
            tell(tuned)
    return found


def _bodies(
    model: ServedModel, preparer: Preparer, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Graph]:
    """Kernel key → body. A plan that was stored has the keys only."""
    graph = preparer.maker.optimized(model.structured, shapes)
    fused = [node.attr("body") for node in graph.nodes if node.op == "whitebox.Fused"]
    return {kernel_key(body, preparer.target): body for body in fused}


class _Hottest:
    """Runs a profile; its result is a step of each distinct kernel, the costliest first."""

    def __init__(self, executable: Executable) -> None:
        self._executable = executable

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[int]:
        seconds = self._executable.profile(inputs, arena)
        totals: dict[str, float] = {}
        first: dict[str, int] = {}
        for number, step in enumerate(self._executable.plan.steps):
            if step.kernel:
                totals[step.kernel] = totals.get(step.kernel, 0.0) + seconds[number]
                first.setdefault(step.kernel, number)
        return [first[key] for key in sorted(totals, key=lambda key: -totals[key])]


class _Race:
    """Times several functions on one step, in turns; its result is the median of each."""

    def __init__(self, executable: Executable, step: int, functions: Sequence[Any]) -> None:
        self._executable, self._step, self._functions = executable, step, functions

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[float]:
        rounds = [
            self._executable.time_step(inputs, arena, self._step, self._functions, CALLS)
            for _ in range(ROUNDS)
        ]
        return [float(seconds) for seconds in np.median(rounds, axis=0)]


def _tune_step(
    work: Executable,
    step: int,
    body: Graph,
    preparer: Preparer,
    engine: Engine,
    values: Sequence[Any],
    deadline: float,
) -> Tuned | None:
    """Measure the schedules of one kernel and note the best; None when it has only one."""
    key = work.plan.steps[step].kernel
    keys, functions = [key], [preparer.library.function(key)]
    while time.monotonic() < deadline:
        try:
            other = preparer.builder.build_variant(key, body, len(keys))
        except CompileError:
            break  # no schedule worth having
        if other is None:
            break
        keys.append(other)
        functions.append(preparer.library.function(other))
    if len(keys) == 1:
        return None
    seconds = engine.run(_Race(work, step, functions), values)
    best = int(np.argmin(seconds))
    if best:
        # The least of many noisy figures looks better than it is: a second race decides.
        before, after = engine.run(_Race(work, step, [functions[0], functions[best]]), values)
    if not best or after > WORTHWHILE * before:
        before = after = seconds[0]
    else:
        preparer.cache.choose(key, keys[best])
    return Tuned(body_label(body), key, len(keys), before * 1e6, after * 1e6)
