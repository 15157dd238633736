"""Models registered and removed in a loop while others are asked.

What must not happen: a wrong answer, an error that was not asked for, memory that grows.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.many import load
from benchmarks.many.engines import Answer, Whitebox
from benchmarks.many.recipes import Feeds
from benchmarks.many.sets import ModelSet

_EVERY_S = 1.0


@dataclass(frozen=True)
class Churn:
    """What happened: requests to models that stay and to those that come and go, and memory."""

    changes: int
    requests: int
    wrong: int
    errors: tuple[str, ...]
    memory_mb: tuple[float, ...]

    @property
    def mb_per_minute(self) -> float:
        """How memory grew over the second half, when all that is kept once is kept."""
        half = self.memory_mb[len(self.memory_mb) // 2 :]
        if len(half) < 2:
            return 0.0
        return float(np.polyfit(np.arange(len(half)) * _EVERY_S / 60, half, 1)[0])


class _Watched:
    """Requests whose answers are compared with the first of their kind, bit by bit."""

    def __init__(self, engine: Whitebox, set: ModelSet) -> None:
        self.engine = engine
        self.requests = {name: feeds[:4] for name, feeds in set.requests.items()}
        self.wanted: dict[tuple[str, int], Answer] = {}
        self.asked, self.wrong = itertools.count(), itertools.count()
        self.errors: list[str] = []

    def learn(self) -> None:
        for name, requests in self.requests.items():
            for feeds in requests:
                self.wanted[name, id(feeds)] = self.engine.ask(name, feeds)

    def ask(self, name: str, feeds: Feeds, model: str | None = None) -> None:
        """Ask a model, or another that is the same under a name of its own."""
        next(self.asked)
        try:
            got = self.engine.ask(model or name, feeds)
        except Exception as error:
            self.errors.append(f"{model or name}: {error}")
            return
        want = self.wanted[name, id(feeds)]
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got, want, strict=True)):
            next(self.wrong)


def churn(
    engine: Whitebox, set: ModelSet, clients: int, seconds: float, memory_mb: Callable[[], float]
) -> Churn:
    """Ask all models of a set while each is registered again under another name, and removed."""
    watched = _Watched(engine, set)
    watched.learn()
    end = time.perf_counter() + seconds
    changes, memory = itertools.count(), [memory_mb()]

    def ask() -> None:
        for name, feeds in itertools.cycle(load.even_mix(watched.requests)):
            if time.perf_counter() > end:
                return
            watched.ask(name, feeds)

    def change() -> None:
        for name in itertools.cycle(set.files):
            if time.perf_counter() > end:
                return
            passing = f"passing-{name}"
            try:
                engine.register(set.files[name], passing, watched.requests[name][0])
                watched.ask(name, watched.requests[name][0], passing)
                engine.unregister(passing)
            except Exception as error:
                watched.errors.append(f"{passing}: {error}")
            next(changes)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    threads.append(threading.Thread(target=change))
    for thread in threads:
        thread.start()
    while time.perf_counter() < end:
        time.sleep(_EVERY_S)
        memory.append(memory_mb())
    for thread in threads:
        thread.join()
    counts = [next(count) for count in (changes, watched.asked, watched.wrong)]
    return Churn(*counts, tuple(watched.errors), tuple(memory))
