"""Latency of one request at a time, against the peers, in one process.

What enters: models of the catalogue and settings. What leaves: one `ModelResult` a model. Each
answer is compared with an exact one of onnxruntime before it is timed. Engines take turns in short
bursts (ABCABC…), so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.agreement import LIMITS, QUANTIZED, Limit, least_cosine, worst_error
from benchmarks.catalogue import MODELS, Model
from benchmarks.engines import ENGINES, Feeds, Run, load_reference
from benchmarks.models import ModelUnavailable, with_weights

# Long enough for one engine's spinning workers to go to sleep before the next engine's turn.
_PAUSE_S = 0.02
_WARM_UP = 3


@dataclass(frozen=True)
class Settings:
    """How to measure: threads an engine may use, seconds of timing a model, in how many rounds."""

    threads: int = 2
    seconds: float = 6.0
    seed: int = 0
    engines: tuple[str, ...] = tuple(ENGINES)
    precision: str = "f32"
    rounds: int = 12


@dataclass
class EngineResult:
    """One engine on one model. `failure` says why there are no times."""

    load_s: float = 0.0
    error: float | None = None
    cosine: float | None = None
    failure: str | None = None
    times_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float | None:
        """The middle of all timed runs; None when nothing was timed."""
        return float(np.median(self.times_ms)) if self.times_ms else None

    def to_dict(self) -> dict[str, object]:
        """For the JSON report."""
        compared = {"relative_error": self.error, "cosine": self.cosine, "load_s": self.load_s}
        if self.failure is not None:
            return {"failure": self.failure, **compared}
        low, high = np.percentile(self.times_ms, (10, 90))
        return {
            "median_ms": self.median_ms,
            "p10_ms": float(low),
            "p90_ms": float(high),
            "runs": len(self.times_ms),
            **compared,
        }


@dataclass
class ModelResult:
    """All engines on one model. `skipped` says why the model could not be had."""

    name: str
    sizes: dict[str, int]
    engines: dict[str, EngineResult] = field(default_factory=dict)
    skipped: str | None = None

    def ratio(self, peer: str) -> float | None:
        """Whitebox's time over the peer's: under 1 is faster. None when either has no time."""
        ours, theirs = self.engines.get("whitebox"), self.engines.get(peer)
        if ours is None or theirs is None or ours.median_ms is None or theirs.median_ms is None:
            return None
        return ours.median_ms / theirs.median_ms

    def to_dict(self) -> dict[str, object]:
        """For the JSON report."""
        engines = {name: result.to_dict() for name, result in self.engines.items()}
        ratios = {name: self.ratio(name) for name in self.engines if name != "whitebox"}
        return {
            "name": self.name,
            "package": MODELS[self.name].package,
            "sizes": self.sizes,
            "skipped": self.skipped,
            "engines": engines,
            "whitebox_time_over": ratios,
        }


def measure(names: Sequence[str], settings: Settings) -> Iterator[ModelResult]:
    """Measure models one after the other; a result is there as soon as its model is done."""
    for name in names:
        model = MODELS[name]
        result = ModelResult(name, dict(model.sizes))
        try:
            with with_weights(model, settings.seed) as file:
                _measure_model(model, file, settings, result)
        except ModelUnavailable as error:
            result.skipped = str(error)
        yield result
        # The engines' sessions end here, before the next model's begin.
        gc.collect()


def _measure_model(model: Model, file: Path, settings: Settings, result: ModelResult) -> None:
    limit = QUANTIZED if model.kind == "quantized" else LIMITS[settings.precision]
    result.engines = measure_engines(file, model.feeds(settings.seed), settings, limit)


def measure_engines(
    file: Path, feeds: Feeds, settings: Settings, limit: Limit | None = None
) -> dict[str, EngineResult]:
    """Check, then time, all engines on one model. The default limit is the precision's."""
    limit = limit or LIMITS[settings.precision]
    found: dict[str, EngineResult] = {}
    runs: dict[str, Run] = {}
    reference = _reference(file, feeds, settings.threads)
    for name in settings.engines:
        outcome = found[name] = EngineResult()
        start = time.perf_counter()
        # Whatever an engine raises is that engine's result, not the benchmark's.
        try:
            run = ENGINES[name](file, feeds, settings.threads, settings.precision)
            answer = [np.array(array) for array in run()]
        except Exception as error:
            outcome.failure = _one_line(error)
            continue
        outcome.load_s = time.perf_counter() - start
        if reference is not None:
            outcome.error = worst_error(answer, reference)
            outcome.cosine = least_cosine(answer, reference)
            # A peer's own rounding is its business; ours has to agree.
            if name == "whitebox" and not limit.allows(outcome):
                outcome.failure = f"wrong answer: relative error {outcome.error:.1e}"
                continue
        runs[name] = run
    for name, times in take_turns(runs, settings):
        found[name].times_ms.extend(times)
    return found


def _reference(file: Path, feeds: Feeds, threads: int) -> list[np.ndarray] | None:
    """The answer that the engines' are compared with; None where onnxruntime cannot run it."""
    try:
        return [np.array(array) for array in load_reference(file, feeds, threads)()]
    except Exception:
        return None


def take_turns(runs: dict[str, Run], settings: Settings) -> Iterator[tuple[str, list[float]]]:
    """Time the engines in rounds; each burst begins after a pause and a few untimed runs.

    A run that is longer than a burst is warm by itself: it is timed alone from its second turn on.
    """
    if not runs:
        return
    burst_s = settings.seconds / (settings.rounds * len(runs))
    long: set[str] = set()
    for _ in range(settings.rounds):
        for name, run in runs.items():
            time.sleep(_PAUSE_S)
            if name not in long:
                _warm_up(run, burst_s)
            times = _burst(run, burst_s)
            if times[0] > burst_s * 1e3:
                long.add(name)
            yield name, times


def _warm_up(run: Run, seconds: float) -> None:
    """A few untimed runs, fewer when they take long."""
    end = time.perf_counter() + seconds
    for _ in range(_WARM_UP):
        run()
        if time.perf_counter() > end:
            break


def _burst(run: Run, seconds: float) -> list[float]:
    """Times in ms of runs back to back for about `seconds`; at least one."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
