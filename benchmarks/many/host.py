"""The process that an engine has to itself: `python -m benchmarks.many.host ENGINE`.

Enter on standard input: pickled (method, arguments). Leave on standard output: pickled results.
Load is made in here, by threads, so that no transport is timed that users would not pay for.
"""

from __future__ import annotations

import gc
import os
import pickle
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.many import load, sets, variants
from benchmarks.many.churn import Churn, churn
from benchmarks.many.engines import Answer, Engine, Onnxruntime, Whitebox, WhiteboxAlone
from benchmarks.many.load import Timing
from benchmarks.many.processes import pss_mb
from benchmarks.many.servers import BudgetedServer, MLServer, WhiteboxServer

ENGINES: dict[str, type[Engine]] = {
    "whitebox": Whitebox,
    "whitebox-alone": WhiteboxAlone,
    "onnxruntime": Onnxruntime,
    "whitebox-rest": WhiteboxServer,
    "whitebox-budget": BudgetedServer,
    "mlserver": MLServer,
}


class Host:
    """An engine, the set it answers for, and what is measured of it."""

    def __init__(self, engine: str) -> None:
        self.engine = ENGINES[engine]()
        self._opened = False

    def open(self, name: str, count: int, home: str) -> float:
        """Seconds until the engine is ready to be asked, its imports included."""
        self.set = sets.read(name, count)
        start = time.perf_counter()
        self.engine.open(self.set.files, Path(home))
        self._opened = True
        return time.perf_counter() - start

    def open_home(self, home: str) -> None:
        """Get ready for what is in a home, or will be."""
        self.engine.open({}, Path(home))
        self._opened = True

    def load(self) -> float:
        """Seconds to load every model."""
        start = time.perf_counter()
        self.engine.load(list(self.set.files))
        return time.perf_counter() - start

    def first_answers(self) -> tuple[list[float], dict[str, Answer]]:
        """Ask every model once: seconds of each, and the answers."""
        times, answers = [], {}
        for name, requests in self.set.requests.items():
            start = time.perf_counter()
            answers[name] = self.engine.ask(name, requests[0])
            times.append(time.perf_counter() - start)
        return times, answers

    def answers(self, models: int, requests: int) -> dict[str, list[Answer]]:
        """The answers of the first models to their first requests."""
        return {
            name: [self.engine.ask(name, feeds) for feeds in given[:requests]]
            for name, given in islice(self.set.requests.items(), models)
        }

    def register(self) -> list[tuple[float, int]]:
        """Register every model: seconds of each, and how many kernels were compiled for it."""
        return [
            self._whitebox().register(file, name, self.set.requests[name][0])
            for name, file in self.set.files.items()
        ]

    def register_variants(self, count: int) -> list[tuple[float, int]]:
        """As `register`, for so many variants of one small model."""
        return variants.register(self._whitebox(), count)

    def first_answers_of_variants(self, count: int, asked: int) -> list[float]:
        """Seconds of the first answers of some of `count` variants."""
        return variants.first_answers(self.engine, count, asked)

    def churn(self, clients: int, seconds: float) -> Churn:
        """Register and remove models while others are asked."""
        return churn(self._whitebox(), self.set, clients, seconds, self.memory_mb)

    def _whitebox(self) -> Whitebox:
        assert isinstance(self.engine, Whitebox)
        return self.engine

    def memory_mb(self) -> float:
        """Proportional set size of the engine's processes."""
        gc.collect()
        return pss_mb(self.engine.pids())

    def saturate(self, mix: str, clients: int, seconds: float) -> Timing:
        """Closed loop over all models ("zipf", "even") or over the first alone ("one")."""
        return load.closed_loop(self.engine.ask, self._stream(mix), clients, seconds)

    def at_load(self, mix: str, per_second: float, clients: int, seconds: float) -> Timing:
        """Open loop at a fixed rate."""
        stream = self._stream(mix)
        return load.open_loop(self.engine.ask, stream, per_second, clients, seconds)

    def several(self, models: int, seconds: float) -> float:
        """Median ms of a request that names so many of the models."""
        names = list(islice(self.set.files, models))
        requests = self.set.requests[names[0]]
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            feeds = requests[len(times) % len(requests)]
            start = time.perf_counter()
            self.engine.ask_several(names, feeds)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3

    def close(self) -> None:
        if self._opened:
            self.engine.close()

    def _stream(self, mix: str) -> load.Stream:
        requests = self.set.requests
        if mix == "one":
            first = next(iter(requests))
            return load.even_mix({first: requests[first]})
        return (load.zipf_mix if mix == "zipf" else load.even_mix)(requests)


def main(arguments: Sequence[str]) -> None:
    # Results go where standard output was; whatever anybody prints goes to standard error.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    host = Host(*arguments)
    try:
        while True:
            try:
                method, given = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                result: tuple[bool, Any] = (True, getattr(host, method)(*given))
            except Exception:
                result = (False, traceback.format_exc())
            pickle.dump(result, results)
            results.flush()
    finally:
        host.close()


if __name__ == "__main__":
    main(sys.argv[1:])
