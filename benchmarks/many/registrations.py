"""Thousands of registered variants, and registering while others are asked.

What leaves: rows as `benchmarks.many.measure` has them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.many import sets
from benchmarks.many.measure import CLIENTS, OURS, Row, Tell
from benchmarks.many.processes import Hosted
from benchmarks.models import ModelUnavailable

# How many of the variants are asked for a first answer, drawn at random.
ASKED = 1000
CHURNED = 20


def measure_variants(count: int, tell: Tell) -> Iterator[Row]:
    """Register so many variants of one small model, then start a server on them."""
    if not count:
        return
    tell(f"registering {count} variants of one small model")

    def row(what: str, unit: str, value: float, bar: str = "", engine: str = OURS) -> Row:
        return Row(f"{count} variants", what, unit, {engine: value}, bar=bar)

    with tempfile.TemporaryDirectory(prefix="whitebox-many-") as home:
        with Hosted(OURS) as engine:
            engine.call("open_home", home)
            done = engine.call("register_variants", count)
        times = np.array([seconds for seconds, _ in done]) * 1e3
        tenth = max(len(times) // 10, 1)
        yield row("register, p50 of the first tenth", "ms", float(np.median(times[:tenth])))
        yield row("register, p50 of the last tenth", "ms", float(np.median(times[-tenth:])))
        yield row("register, p99", "ms", float(np.percentile(times[1:], 99)), "≤ 50 ms")
        compiled = sum(kernels for _, kernels in done[1:])
        yield row("kernels compiled for all but the first", "", compiled, "0")
        tell("starting a server on them")
        with Hosted("whitebox-budget") as server:
            start = time.perf_counter()
            server.call("open_home", home)
            seconds = time.perf_counter() - start
            yield row("server ready", "s", seconds, "≤ 5 s", "whitebox-rest")
            found = server.call("first_answers_of_variants", count, ASKED)
            p99 = float(np.percentile(found, 99)) * 1e3
            what = f"first answer of {len(found)} of them, p99"
            yield row(what, "ms", p99, "≤ 50 ms", "whitebox-rest")
            memory = server.call("memory_mb")
            yield row("memory of the server", "MB", memory, "≤ 1000 MB", "whitebox-rest")


def measure_churn(seconds: float, tell: Tell) -> Iterator[Row]:
    """Register and remove sentiment pipelines while others are asked."""
    if not seconds:
        return
    tell(f"registering and removing under load for {seconds:.0f} s")
    try:
        sets.load("sentiment", CHURNED)
    except ModelUnavailable as error:
        tell(f"skipped, {error}")
        return
    with tempfile.TemporaryDirectory(prefix="whitebox-many-") as home:
        # Kernels are compiled by another process, whose workers' memory is thus not counted.
        for method, given in (("register", ()), ("churn", (CLIENTS, seconds))):
            with Hosted(OURS) as engine:
                engine.call("open", "sentiment", CHURNED, home)
                found = engine.call(method, *given)
    for error in sorted(set(found.errors))[:5]:
        tell(f"error: {error}")
    figures = (
        ("models registered and removed", "", found.changes, ""),
        ("requests meanwhile", "", found.requests, ""),
        ("wrong answers", "", found.wrong, "0"),
        ("errors", "", len(found.errors), "0"),
        ("memory at the end", "MB", found.memory_mb[-1], ""),
        ("growth of memory over the second half", "MB/min", found.mb_per_minute, "flat"),
    )
    for what, unit, value, bar in figures:
        yield Row("churn", what, unit, {OURS: value}, bar=bar)
