"""explain: what the passes did to a model, what it became, and where its time goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whitebox.errors import InvalidInput
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.passes import PassReport
from whitebox.passes.fuse import body_label
from whitebox.runtime.plan import Plan, Step, Storage
from whitebox.runtime.prepare import HostExecutable
from whitebox.runtime.served import ServedModel, default_shapes

if TYPE_CHECKING:
    from whitebox.registry.records import ModelRecord
    from whitebox.runtime.device import Arena
    from whitebox.runtime.engine import Engine
    from whitebox.runtime.prepare import Preparer


@dataclass(frozen=True)
class StepReport:
    """One step of the plan: what it computes, its kernel, and what it cost on a real run."""

    label: str
    kernel: str
    result: str
    microseconds: float
    nbytes: int


@dataclass(frozen=True)
class Explanation:
    """A model, seen from inside. `str()` of it is made for people, `to_dict()` for programs."""

    model: str
    version: int | None
    shapes: dict[str, tuple[int, ...]]
    passes: tuple[PassReport, ...]
    steps: tuple[StepReport, ...]
    arena_bytes: int
    unshared_bytes: int
    parameter_bytes: int
    precision: str
    note: str = ""
    compiled_per_shape: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def groups(self) -> list[tuple[str, int, float, int]]:
        """(label, steps, µs, bytes) of steps that compute the same, the slowest first."""
        found: dict[str, tuple[int, float, int]] = {}
        for step in self.steps:
            count, time, nbytes = found.get(step.label, (0, 0.0, 0))
            found[step.label] = (count + 1, time + step.microseconds, nbytes + step.nbytes)
        rows = [(name, *figures) for name, figures in found.items()]
        return sorted(rows, key=lambda row: -row[2])

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {self.version}"
        shapes = ", ".join(f"{name} {list(dims)}" for name, dims in self.shapes.items())
        lines = [f"{self.model}{version} in {self.precision} at {shapes}", ""]
        if self.note:
            return "\n".join([*lines, self.note])
        lines += ["passes"]
        for report in self.passes:
            lines.append(
                f"  {report.name:15} {report.nodes_before:5} → {report.nodes_after:5} nodes"
                f" {report.seconds * 1e3:7.1f} ms, {len(report.decisions)} decisions"
            )
            lines += [f"    {count:4}× {text}" for text, count in _summary(report)]
        if self.compiled_per_shape:
            counts = Counter(self.compiled_per_shape)
            lines += ["", "no kernel for free sizes, compiled for each shape"]
            lines += [f"    {count:4}× {label}" for label, count in counts.most_common()]
        total = sum(step.microseconds for step in self.steps) or 1.0
        kernels = len({step.kernel for step in self.steps if step.kernel})
        lines += ["", f"{len(self.steps)} steps, {kernels} distinct kernels, {total:.0f} µs"]
        for name, count, time, nbytes in self.groups():
            share = 100 * time / total
            shown = name if len(name) <= 70 else f"{name[:67]}…"
            lines.append(
                f"  {share:5.1f}% {time:9.0f} µs {nbytes / 1e6:8.2f} MB {count:4}× {shown}"
            )
        lines += [
            "",
            f"memory: parameters {self.parameter_bytes / 1e6:.2f} MB, "
            f"intermediates {self.arena_bytes / 1e6:.2f} MB at the peak "
            f"({self.unshared_bytes / 1e6:.2f} MB if no buffer were reused)",
        ]
        return "\n".join(lines)


def _summary(report: PassReport) -> list[tuple[str, int]]:
    """Distinct (action, reason) of a pass's decisions with their counts, the commonest first."""
    counts: dict[str, int] = {}
    for decision in report.decisions:
        text = f"{decision.action}: {decision.reason}"
        counts[text] = counts.get(text, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def explain(
    model: ServedModel,
    preparer: Preparer,
    engine: Engine,
    feeds: Mapping[str, Any] | None = None,
    record: ModelRecord | None = None,
) -> Explanation:
    """Run the passes again with their decisions recorded, and profile a real run."""
    if feeds is None:
        feeds = seeded_feeds(model, record)
    values, shapes = model.check(feeds)
    work, _ = model.load(shapes, preparer, engine)
    version = None if record is None else record.version
    precision = model.structured.precision
    if isinstance(work, HostExecutable):
        note = f"computed node by node on the host: {work.reason}"
        return Explanation(model.name, version, shapes, (), (), 0, 0, 0, precision, note)
    reports: list[PassReport] = []
    preparer.maker.optimized(model.structured, shapes, reports)
    plan: Plan = work.plan  # type: ignore[attr-defined]
    seconds = engine.run(_Profiled(work), values)
    return Explanation(
        model=model.name,
        version=version,
        shapes=shapes,
        passes=tuple(reports),
        steps=tuple(
            _step_report(step, time) for step, time in zip(plan.steps, seconds, strict=True)
        ),
        arena_bytes=plan.arena_bytes,
        unshared_bytes=plan.unshared_bytes,
        parameter_bytes=_parameter_bytes(plan),
        precision=precision,
        compiled_per_shape=tuple(
            body_label(body) for body in preparer.maker.outside_family(model.structured, shapes)
        ),
    )


class _Profiled:
    """Runs an executable step by step; its result is the seconds of each."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def run(self, inputs: Any, arena: Arena) -> list[float]:
        seconds: list[float] = self._executable.profile(inputs, arena)
        return seconds


def seeded_feeds(
    model: ServedModel, record: ModelRecord | None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs at the registered (or default) shapes. Raises InvalidInput if they are open."""
    given = None if record is None else record.given_shapes
    shapes = given or default_shapes(model.inputs)
    if shapes is None:
        raise InvalidInput(
            f"model {model.name} has free dimensions; give an input, so that its shapes are known"
        )
    random = np.random.default_rng(seed)
    feeds = {}
    for spec in model.inputs:
        if not isinstance(spec.type, TensorType) or spec.type.dtype == "string":
            raise InvalidInput(f"give an input: {spec.name!r} is a {spec.type}")
        dtype = numpy_dtype(spec.type.dtype)
        dims = shapes[spec.name]
        if dtype.kind == "f":
            feeds[spec.name] = random.standard_normal(dims).astype(dtype)
        else:
            feeds[spec.name] = random.integers(0, 2, dims).astype(dtype)
    return feeds


def _step_report(step: Step, seconds: float) -> StepReport:
    result = ", ".join(str(TensorType(o.dtype, o.shape)) for o in step.results)
    nbytes = sum(operand.nbytes for operand in (*step.operands, *step.results))
    label = step.label if step.kernel else f"{step.label} (host)"
    return StepReport(label, step.kernel, result, seconds * 1e6, nbytes)


def _parameter_bytes(plan: Plan) -> int:
    operands = {o for step in plan.steps for o in step.operands}
    return sum(o.nbytes for o in operands if o.storage == Storage.PARAMETER)
