"""overlap: what several models share, and what that saves.

The three kinds of sharing, each measured and never estimated: bytes of weights, kernels, and
computation, whose saving is that of a real run of all models on one input against each alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from whitebox.errors import InvalidInput
from whitebox.runtime.composite import Together
from whitebox.runtime.executable import Executable
from whitebox.runtime.served import ServedModel

if TYPE_CHECKING:
    from whitebox.runtime.composite import Composer
    from whitebox.runtime.engine import Engine, Runnable
    from whitebox.runtime.prepare import Preparer

_RUNS = 7


@dataclass(frozen=True)
class Overlap:
    """What models share. Lists have an entry a model, in order; times are medians."""

    models: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    distinct_weight_bytes: int
    kernels: tuple[int, ...]
    distinct_kernels: int
    steps: tuple[int, ...]
    distinct_steps: int
    shared: tuple[str, ...]
    milliseconds: tuple[float, ...]
    milliseconds_together: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{', '.join(self.models)}, on one input" if not self.note else self.note, ""]
        rows = [
            ("weights, kB", [n / 1e3 for n in self.weight_bytes], self.distinct_weight_bytes / 1e3),
            ("kernels", self.kernels, self.distinct_kernels),
            ("steps of a request", self.steps, self.distinct_steps),
            ("milliseconds", self.milliseconds, self.milliseconds_together),
        ]
        for what, each, together in rows:
            if each:
                saved = 1 - together / (sum(each) or 1)
                alone = " + ".join(f"{value:.4g}" for value in each)
                lines.append(f"{what:20} {alone} alone, {together:.4g} together ({saved:.0%} less)")
        if self.steps:
            lines += ["", "computed once for all who need it"]
            lines += [f"  {text}" for text in self.shared or ("nothing",)]
        return "\n".join(lines)


def overlap(
    models: Sequence[ServedModel],
    feeds: Mapping[str, Any],
    preparer: Preparer,
    engine: Engine,
    composer: Composer,
) -> Overlap:
    """What the models share, measured on `feeds`. Raises InvalidInput when they do not fit one."""
    weights = [{t.digest: t.type.nbytes for t in m.structured.weights} for m in models]
    works = []
    for model in models:
        names = {spec.name for spec in model.inputs}
        values, shapes = model.check({n: feed for n, feed in feeds.items() if n in names})
        works.append((model.ready(shapes, preparer, engine), values))
    plans = [work.plan for work, _ in works if isinstance(work, Executable)]
    common: dict[str, Any] = {
        "models": tuple(model.name for model in models),
        "weight_bytes": tuple(sum(each.values()) for each in weights),
        "distinct_weight_bytes": sum({k: n for each in weights for k, n in each.items()}.values()),
        "kernels": tuple(len(plan.kernels) for plan in plans),
        "distinct_kernels": len({key for plan in plans for key in plan.kernels}),
    }
    try:
        asked = Together(models, feeds, None)
    except InvalidInput as error:
        note = f"no computation in common: {error}"
        return Overlap(
            **common,
            steps=(),
            distinct_steps=0,
            shared=(),
            milliseconds=(),
            milliseconds_together=0.0,
            note=note,
        )
    composite = composer.ready(asked)
    plans_together = [c.work.plan for c in composite.calls if isinstance(c.work, Executable)]
    alone = Counter(_labels(plans))
    alone.subtract(_labels(plans_together))
    return Overlap(
        **common,
        steps=tuple(len(plan.steps) for plan in plans),
        distinct_steps=sum(len(plan.steps) for plan in plans_together),
        shared=tuple(f"{label} ({count}× less)" for label, count in alone.items() if count > 0),
        milliseconds=tuple(_milliseconds(engine, work, values) for work, values in works),
        milliseconds_together=_milliseconds(engine, composite, asked.values),
    )


def _labels(plans: Sequence[Any]) -> list[str]:
    return [step.label for plan in plans for step in plan.steps]


def _milliseconds(engine: Engine, work: Runnable, values: Sequence[Any]) -> float:
    """The median time of a run, after one that is not counted."""
    engine.run(work, values)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        engine.run(work, values)
        times.append(time.perf_counter() - start)
    return sorted(times)[_RUNS // 2] * 1e3
