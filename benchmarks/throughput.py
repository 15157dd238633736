"""Requests per second and tail latency when several clients ask at once, in one process.

A closed loop: each client is a thread that asks again as soon as it is answered. Whitebox shares
the cores among the requests at hand; onnxruntime is set up both ways in which its documentation
would have it: one call at a time on all cores, and one core a call with as many calls as cores.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.agreement import LIMIT, worst_error
from benchmarks.catalogue import MODELS
from benchmarks.engines import ENGINES, Feeds, Run
from benchmarks.models import with_weights

_PAUSE_S = 0.05
_ROUNDS = 4

ONE_AT_A_TIME = "whitebox, one at a time"
ALL_CORES = "onnxruntime, all cores a call"
CORE_EACH = "onnxruntime, a core a call"


@dataclass(frozen=True)
class Row:
    """One engine on one model with so many clients."""

    model: str
    engine: str
    clients: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float

    def to_dict(self) -> dict[str, object]:
        """For the JSON report."""
        return asdict(self)


def measure(
    names: Sequence[str], clients: Sequence[int], threads: int, seconds: float
) -> Iterator[Row]:
    """All rows of one model, then of the next; engines take turns within a number of clients."""
    for name in names:
        with with_weights(MODELS[name], 0) as file:
            yield from measure_file(name, file, MODELS[name].feeds(0), clients, threads, seconds)


def measure_file(
    name: str, file: Path, feeds: Feeds, clients: Sequence[int], threads: int, seconds: float
) -> Iterator[Row]:
    """All rows of one model."""
    runs = _runs(file, feeds, threads)
    for count in clients:
        times: dict[str, list[float]] = {engine: [] for engine in runs}
        spent = dict.fromkeys(runs, 0.0)
        for _ in range(_ROUNDS):
            for engine, run in runs.items():
                time.sleep(_PAUSE_S)
                found, took = _closed_loop(run, count, seconds / _ROUNDS)
                times[engine] += found
                spent[engine] += took
        for engine, found in times.items():
            p50, p99 = np.percentile(found, (50, 99)) * 1e3
            rate = len(found) / spent[engine]
            yield Row(name, engine, count, rate, float(p50), float(p99))


def _runs(file: Path, feeds: Feeds, threads: int) -> dict[str, Callable[[], object]]:
    """What a client calls, by engine. Answers are checked first."""
    ours = ENGINES["whitebox"](file, feeds, threads, "f32")
    parallel = ENGINES["onnxruntime"](file, feeds, threads, "f32")
    serial = ENGINES["onnxruntime"](file, feeds, 1, "f32")
    error = worst_error(ours(), parallel())
    if error > LIMIT:
        raise RuntimeError(f"{file.name}: wrong answer: relative error {error:.1e}")
    return {
        "whitebox": _behind(nullcontext(), ours),
        ONE_AT_A_TIME: _behind(threading.Lock(), ours),
        ALL_CORES: _behind(threading.Lock(), parallel),
        CORE_EACH: _behind(threading.Semaphore(threads), serial),
    }


def _behind(gate: AbstractContextManager[object], run: Run) -> Callable[[], object]:
    def call() -> object:
        with gate:
            return run()

    return call


def _closed_loop(
    call: Callable[[], object], clients: int, seconds: float
) -> tuple[list[float], float]:
    """Seconds of every request of `clients` threads in about `seconds`, and how long they took."""
    times: list[list[float]] = [[] for _ in range(clients)]
    ready = threading.Barrier(clients + 1)

    def client(mine: list[float]) -> None:
        call()
        ready.wait()
        end = time.perf_counter() + seconds
        while not mine or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            mine.append(time.perf_counter() - start)

    workers = [threading.Thread(target=client, args=(mine,)) for mine in times]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return [second for mine in times for second in mine], time.perf_counter() - start
