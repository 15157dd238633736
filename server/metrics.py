"""Prometheus metrics of one server, in a registry of their own.

Enters: the outcome of each request, and the runtime's counters when somebody scrapes. Leaves: the
text of `/metrics`. Never labels anything by what a client made up: names are of known models only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from whitebox.runtime.native import llvm_loaded

_LATENCY_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
UNKNOWN_MODEL = ""

# What of the runtime's counters is shown, and how it is called there.
_GAUGES = {
    "whitebox_models": ("models", "Registered models."),
    "whitebox_models_loaded": ("models_loaded", "Versions of models in memory."),
    "whitebox_model_bytes": ("model_bytes", "Memory that models hold."),
    "whitebox_memory_budget_bytes": ("memory_budget", "Memory that models may hold."),
}
_COUNTERS = {
    "whitebox_kernels_compiled": (
        "kernels_compiled",
        "Kernels compiled since the process began.",
    ),
    "whitebox_stalled_batches": (
        "stalled_batches",
        "Batches that ran many times as long as expected.",
    ),
    "whitebox_models_evicted": ("models_evicted", "Models that made room for others in memory."),
}


# So many names of models are counted before those that are gone are looked for.
_NAMES = 256


class Metrics:
    """Counters that the server feeds, and gauges that are read when scraped.

    `known` says whether a model is registered: counts of those that are gone are dropped in time.
    """

    def __init__(
        self, stats: Callable[[], Mapping[str, Any]], known: Callable[[str], bool]
    ) -> None:
        self.registry = CollectorRegistry()
        self._known = known
        self._labels: dict[str, set[str]] = {}  # of each model that is counted, the failures
        self._most = _NAMES
        self.requests = Counter(
            "whitebox_requests", "Infer requests answered.", ["model"], registry=self.registry
        )
        self.failures = Counter(
            "whitebox_request_failures",
            "Infer requests that failed, by HTTP status; no model when it is not registered.",
            ["model", "status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "whitebox_request_duration_seconds",
            "From the last byte of an infer request to the first of its answer.",
            ["model"],
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "whitebox_requests_in_flight", "Infer requests being served.", registry=self.registry
        )
        self.registry.register(_RuntimeCollector(stats))

    def record(self, model: str, status: int, seconds: float) -> None:
        """Count an infer request that ended with an HTTP status."""
        if model not in self._labels:
            self._begin(model)
        self.requests.labels(model).inc()
        self.latency.labels(model).observe(seconds)
        if status != 200:
            self._labels[model].add(str(status))
            self.failures.labels(model, str(status)).inc()

    def _begin(self, model: str) -> None:
        """Count one more model; now and then look for those that are gone."""
        if len(self._labels) >= self._most:
            gone = [
                each for each in self._labels if each != UNKNOWN_MODEL and not self._known(each)
            ]
            for each in gone:
                for status in self._labels.pop(each):
                    self.failures.remove(each, status)
                self.requests.remove(each)
                self.latency.remove(each)
            self._most = len(self._labels) + _NAMES
        self._labels[model] = set()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _RuntimeCollector(Collector):
    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, (key, text) in _GAUGES.items():
            if stats[key] is not None:
                yield GaugeMetricFamily(name, text, value=stats[key])
        for name, (key, text) in _COUNTERS.items():
            counter = CounterMetricFamily(name, text)
            counter.add_metric([], stats[key])
            yield counter
        yield from _cache_metrics(stats["caches"])
        yield GaugeMetricFamily(
            "whitebox_llvm_loaded",
            "1 when the LLVM code generator is in this process; serving needs none.",
            value=int(llvm_loaded()),
        )

    def describe(self) -> list[Metric]:
        # Registering must not run collect(): the runtime may still be loading.
        return []


def _cache_metrics(caches: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    """How often answers that are kept were asked for, by model."""
    nbytes = GaugeMetricFamily("whitebox_cache_bytes", "Answers that are kept.", labels=["model"])
    hits = CounterMetricFamily("whitebox_cache_hits", "Answers given again.", labels=["model"])
    misses = CounterMetricFamily("whitebox_cache_misses", "Answers computed.", labels=["model"])
    for model, cache in caches.items():
        nbytes.add_metric([model], cache["bytes"])
        hits.add_metric([model], cache["hits"])
        misses.add_metric([model], cache["misses"])
    yield from (nbytes, hits, misses)
