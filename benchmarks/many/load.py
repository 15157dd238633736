"""Requests to many models: which, when, and how long each took.

What enters: a function that asks, and a stream of (model, feeds). What leaves: seconds of every
request. An open loop asks at times drawn beforehand, whatever becomes of earlier requests, and
counts from those times; a closed loop asks again as soon as it is answered.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.many.recipes import Feeds

Ask = Callable[[str, Feeds], object]
Stream = Sequence[tuple[str, Feeds]]

ZIPF = 1.1
_STREAM = 4096
_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class Timing:
    """What a loop measured."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, times: Sequence[float], seconds: float) -> Timing:
        """Of the seconds of each request."""
        p50, p99 = np.percentile(times, (50, 99)) * 1e3
        return cls(len(times), seconds, float(p50), float(p99))

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


def zipf_mix(requests: Mapping[str, Sequence[Feeds]], seed: int = 0) -> Stream:
    """Requests whose models are drawn by Zipf's law; which model is popular is drawn as well."""
    rng = np.random.default_rng([4, seed])
    names = rng.permutation(sorted(requests)).tolist()
    weights = 1 / np.arange(1, len(names) + 1) ** ZIPF
    chosen = rng.choice(len(names), _STREAM, p=weights / weights.sum())
    return [(names[n], _one_of(requests[names[n]], rng)) for n in chosen]


def even_mix(requests: Mapping[str, Sequence[Feeds]], seed: int = 0) -> Stream:
    """Requests to all models alike."""
    rng = np.random.default_rng([5, seed])
    names = sorted(requests)
    chosen = rng.integers(len(names), size=_STREAM)
    return [(names[n], _one_of(requests[names[n]], rng)) for n in chosen]


def _one_of(feeds: Sequence[Feeds], rng: np.random.Generator) -> Feeds:
    return feeds[int(rng.integers(len(feeds)))]


def closed_loop(ask: Ask, stream: Stream, clients: int, seconds: float) -> Timing:
    """As many requests as `clients` threads can make in about `seconds`."""
    times: list[float] = []
    ready = threading.Barrier(clients + 1)

    def client(first: int) -> None:
        mine = []
        turn = itertools.cycle(stream[first:] + stream[:first])
        ready.wait()
        end = time.perf_counter() + seconds
        start = 0.0
        while start < end:
            name, feeds = next(turn)
            start = time.perf_counter()
            ask(name, feeds)
            mine.append(time.perf_counter() - start)
        times.extend(mine)

    stream = list(stream)
    firsts = [number * len(stream) // clients for number in range(clients)]
    workers = [threading.Thread(target=client, args=(first,)) for first in firsts]
    return Timing.of(times, _run(workers, ready))


def open_loop(
    ask: Ask, stream: Stream, per_second: float, clients: int, seconds: float, seed: int = 0
) -> Timing:
    """Poisson arrivals at a fixed rate for about `seconds`, answered by up to `clients` at once."""
    rng = np.random.default_rng([6, seed])
    gaps = rng.exponential(1 / per_second, max(int(per_second * seconds), 2 * clients))
    arrivals = np.cumsum(gaps).tolist()
    times = [0.0] * len(arrivals)
    numbers = iter(range(len(arrivals)))  # next() on it is atomic
    ready = threading.Barrier(clients + 1)
    started: list[float] = []

    def client() -> None:
        _wake_in_time()
        ready.wait()
        started.append(time.perf_counter())
        start = started[0]
        for number in numbers:
            due = start + arrivals[number]
            pause = due - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            name, feeds = stream[number % len(stream)]
            ask(name, feeds)
            times[number] = time.perf_counter() - due

    workers = [threading.Thread(target=client) for _ in range(clients)]
    return Timing.of(times, _run(workers, ready))


def _run(workers: Sequence[threading.Thread], ready: threading.Barrier) -> float:
    """Let the workers go at once; seconds until the last is done. Raises what they raise."""
    failures: list[BaseException] = []
    before, threading.excepthook = threading.excepthook, lambda hook: _note(failures, hook)
    try:
        for worker in workers:
            worker.start()
        ready.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
    finally:
        threading.excepthook = before
    if failures:
        raise failures[0]
    return seconds


def _note(failures: list[BaseException], hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None:
        failures.append(hook.exc_value)


def _wake_in_time() -> None:
    """By default Linux wakes a sleeper 50 µs late, longer than a small model takes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
