"""Throughput as the batch grows: items a second at batches of 1, 8 and 32, against the peers.

What enters: models of the catalogue with a free batch, and settings. What leaves: one `BatchResult`
a model, as a table and as plain data. Checked and timed as in `benchmarks.latency`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from rich.table import Table
from rich.text import Text

from benchmarks.catalogue import MODELS
from benchmarks.latency import Settings, measure_engines
from benchmarks.models import ModelUnavailable, with_weights
from benchmarks.report import provenance

BATCHES = (1, 8, 32)
# Of each kind one or two: convolutions, transformers, a multilayer perceptron, trees.
USUAL = ("resnet50", "mobilenet-v2", "minilm-int8", "distilbert", "sk-mlp", "lightgbm-100")
# Batches take long, so that a few turns each have to do.
ROUNDS = 3


@dataclass
class BatchResult:
    """Items a second by engine and batch; an engine that fails on a batch has no number there."""

    name: str
    items: dict[str, dict[int, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None

    def worst_step(self, engine: str) -> float | None:
        """The least that throughput grows by from one batch to the next: under 1 it falls."""
        found = self.items.get(engine, {})
        steps = [found[b] / found[a] for a, b in zip(found, list(found)[1:], strict=False)]
        return min(steps, default=None)

    def to_dict(self) -> dict[str, object]:
        """For the JSON report."""
        return {
            "name": self.name,
            "skipped": self.skipped,
            "engines": self.items,
            "failures": self.failures,
            "worst_step": {engine: self.worst_step(engine) for engine in self.items},
        }


def measure(names: Sequence[str], settings: Settings) -> Iterator[BatchResult]:
    """Measure models one after the other, each at all batches."""
    settings = replace(settings, rounds=ROUNDS)
    for name in names:
        result = BatchResult(name)
        try:
            with with_weights(MODELS[name], settings.seed) as file:
                for batch in BATCHES:
                    feeds = MODELS[name].feeds(settings.seed, N=batch)
                    for engine, found in measure_engines(file, feeds, settings).items():
                        items = result.items.setdefault(engine, {})
                        if found.median_ms is not None:
                            items[batch] = 1e3 * batch / found.median_ms
                        elif found.failure is not None:
                            result.failures[engine] = found.failure
                    gc.collect()
        except ModelUnavailable as error:
            result.skipped = str(error)
        yield result


def table(results: Sequence[BatchResult], settings: Settings) -> Table:
    """Items a second, and the least growth from one batch to the next."""
    made = Table(
        title=f"Throughput by batch, {settings.threads} threads, float32",
        caption="items a second, medians · step: least growth between batches, under 1 it falls",
    )
    made.add_column("model")
    for engine in settings.engines:
        for batch in BATCHES:
            made.add_column(f"{engine if batch == BATCHES[0] else ''} {batch}", justify="right")
        made.add_column("step", justify="right", style="dim")
    for result in results:
        if result.skipped is not None:
            made.add_row(result.name, Text("not available", style="yellow"))
            continue
        cells = []
        for engine in settings.engines:
            found, step = result.items.get(engine, {}), result.worst_step(engine)
            cells += [f"{found[b]:.4g}" if b in found else "fails" for b in BATCHES]
            cells.append("" if step is None else f"{step:.2f}")
        made.add_row(result.name, *cells)
    return made


def document(results: Sequence[BatchResult], settings: Settings) -> dict[str, object]:
    """The whole run as plain data."""
    return {
        "benchmark": "batch",
        **provenance(),
        "settings": asdict(settings),
        "batches": BATCHES,
        "models": [result.to_dict() for result in results],
    }
