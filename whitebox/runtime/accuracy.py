"""accuracy: how far a model computed in a low precision is from the same model in float32.

What enters: a model, a precision, inputs. What leaves: one row an output. Both run on this machine
with kernels of our own, so that the precision is all that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whitebox.ir.types import TensorType
from whitebox.runtime.explain import seeded_feeds
from whitebox.runtime.served import ServedModel

if TYPE_CHECKING:
    from whitebox.registry.records import ModelRecord
    from whitebox.runtime.engine import Engine
    from whitebox.runtime.prepare import Preparer

# Seeded inputs that are tried when none are given.
SAMPLES = 8


@dataclass(frozen=True)
class OutputAccuracy:
    """The errors of one output over all inputs.

    `max_relative` is the largest error as a fraction of the largest float32 value. `top1` is how
    often the greatest score stays the same (None for what is no list of scores), and how often a
    label does where the output is not a float.
    """

    name: str
    max_abs: float
    max_relative: float
    mean_abs: float
    cosine: float
    top1: float | None


@dataclass(frozen=True)
class AccuracyReport:
    """What a precision costs. `str()` of it is made for people, `to_dict()` for programs."""

    model: str
    precision: str
    samples: int
    outputs: tuple[OutputAccuracy, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        width = max([len("output"), *(len(each.name) for each in self.outputs)])
        inputs = "1 input" if self.samples == 1 else f"{self.samples} inputs"
        lines = [
            f"{self.model} in {self.precision} against f32, {inputs}",
            f"{'output':{width}}  {'max abs':>9}  {'max rel':>9}  {'mean abs':>9}  "
            f"{'cosine':>10}  {'top-1':>7}",
        ]
        for each in self.outputs:
            top1 = "" if each.top1 is None else f"{100 * each.top1:.1f}%"
            lines.append(
                f"{each.name:{width}}  {each.max_abs:9.2e}  {each.max_relative:9.2e}  "
                f"{each.mean_abs:9.2e}  {each.cosine:10.7f}  {top1:>7}".rstrip()
            )
        return "\n".join(lines)


def accuracy(
    model: ServedModel,
    precision: str,
    preparer: Preparer,
    engine: Engine,
    feeds: Sequence[Mapping[str, Any]],
) -> AccuracyReport:
    """Run a model in float32 and in `precision` on each of the feeds, and compare.

    Raises InvalidInput when the feeds do not fit the model, or there is no such precision.
    """
    answers = [
        [_run(each, given, preparer, engine) for given in feeds]
        for each in (model.in_precision("f32"), model.in_precision(precision))
    ]
    outputs = tuple(
        compare(
            spec.name,
            [answer[index] for answer in answers[0]],
            [answer[index] for answer in answers[1]],
        )
        for index, spec in enumerate(model.outputs)
        if isinstance(spec.type, TensorType)
    )
    return AccuracyReport(model.name, precision, len(feeds), outputs)


def some_feeds(model: ServedModel, record: ModelRecord | None) -> list[dict[str, np.ndarray]]:
    """Seeded inputs at the registered (or default) shapes. Raises InvalidInput if they are open."""
    return [seeded_feeds(model, record, seed) for seed in range(SAMPLES)]


def _run(
    model: ServedModel, feeds: Mapping[str, Any], preparer: Preparer, engine: Engine
) -> list[Any]:
    values, shapes = model.check(feeds)
    work, _ = model.load(shapes, preparer, engine)
    return engine.run(work, values)


def compare(
    name: str, exact: Sequence[np.ndarray], rounded: Sequence[np.ndarray]
) -> OutputAccuracy:
    """The errors of one output, given its values on each input in both precisions."""
    wanted, got = (np.concatenate([np.ravel(array) for array in side]) for side in (exact, rounded))
    if wanted.dtype.kind not in "fV":
        return _labels(name, wanted, got)
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    # Equal infinities are no error, and neither are two NaN; one where there should be none is.
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    finite = np.isfinite(wanted) & np.isfinite(got)
    errors = np.full(wanted.shape, np.inf)
    errors[finite] = np.abs(wanted[finite] - got[finite])
    errors[same] = 0.0
    wanted, got = wanted[finite], got[finite]
    largest = np.abs(wanted).max(initial=0.0)
    norms = np.linalg.norm(wanted) * np.linalg.norm(got)
    worst = float(errors.max(initial=0.0))
    return OutputAccuracy(
        name,
        max_abs=worst,
        max_relative=float(worst / largest) if worst and largest else worst,
        mean_abs=float(errors.mean()) if errors.size else 0.0,
        cosine=float(wanted @ got / norms) if norms else float(not worst),
        top1=_top1(exact, rounded),
    )


def _labels(name: str, wanted: np.ndarray, got: np.ndarray) -> OutputAccuracy:
    """Of what is not a float: the share of equal elements; differences of numbers that have any."""
    same = float(np.mean(wanted == got)) if wanted.size else 1.0
    worst = mean = largest = 0.0
    if wanted.dtype.kind in "iu" and wanted.size:
        errors = np.abs(wanted.astype(np.float64) - got.astype(np.float64))
        worst, mean = float(errors.max()), float(errors.mean())
        largest = float(np.abs(wanted.astype(np.float64)).max())
    relative = worst / largest if largest else worst
    return OutputAccuracy(name, worst, relative, mean, same, same)


def _top1(exact: Sequence[np.ndarray], rounded: Sequence[np.ndarray]) -> float | None:
    """How often the greatest of a row's scores is the same one; None when these are no scores."""
    if any(array.ndim != 2 or array.shape[1] < 2 or not array.size for array in exact):
        return None
    same = [a.argmax(1) == b.argmax(1) for a, b in zip(exact, rounded, strict=True)]
    return float(np.mean(np.concatenate(same)))
