"""`python -m benchmarks many`: its loops, and all of it over a few models."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.many.load import Timing, closed_loop, even_mix, open_loop, zipf_mix
from benchmarks.many.measure import Settings, measure
from benchmarks.many.recipes import RECIPES
from benchmarks.many.registrations import measure_churn, measure_variants
from benchmarks.many.report import cells


def _timing(engine: Callable[[str, dict[str, Any]], object], **loop: Any) -> Timing:
    stream = [("a", {"x": 1}), ("b", {"x": 2})]
    return (open_loop if "per_second" in loop else closed_loop)(engine, stream, **loop)


def test_loops_ask_as_often_as_they_say() -> None:
    asked: list[str] = []
    timing = _timing(lambda name, feeds: asked.append(name), clients=3, seconds=0.05)
    assert timing.requests == len(asked) >= 3
    assert set(asked) == {"a", "b"}
    asked.clear()
    timing = _timing(
        lambda name, feeds: asked.append(name), per_second=400.0, clients=3, seconds=0.25
    )
    assert timing.requests == len(asked) == 100
    assert timing.seconds > 0.1  # arrivals are waited for


def test_a_loop_raises_what_an_engine_raises() -> None:
    def fail(name: str, feeds: object) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError):
        _timing(fail, clients=2, seconds=0.05)


def test_a_request_that_has_to_wait_counts_from_when_it_was_due() -> None:
    def slow(name: str, feeds: object) -> None:
        time.sleep(0.01)

    timing = _timing(slow, per_second=1000.0, clients=1, seconds=0.1)
    assert timing.p99_ms > 300  # the last of a hundred, each of ten milliseconds, due in a tenth


def test_some_models_are_asked_more_than_others() -> None:
    requests = {f"m{i}": [{"x": np.zeros(1)}] for i in range(50)}
    counts = sorted(Counter(name for name, _ in zipf_mix(requests)).values(), reverse=True)
    assert counts[0] > 5 * counts[10]
    even = Counter(name for name, _ in even_mix(requests)).values()
    assert len(even) == 50 and max(even) < 3 * min(even)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_many_models_are_measured_against_the_peers(name: str) -> None:
    said: list[str] = []
    rows = list(measure([name], Settings(count=3, seconds=0.3, servers=True), said.append))
    if not rows:
        pytest.skip(said[-1])
    for row in rows:
        if row.bar == "0" and row.what != "kernels compiled for all others":
            assert not any(row.values.values()), row
    assert {"whitebox", "onnxruntime"} <= {engine for row in rows for engine in row.values}
    header, lines = cells([row.to_dict() for row in rows])
    assert all(len(line) == len(header) for line in lines)


@pytest.mark.slow
def test_registering_while_others_are_asked_breaks_nothing() -> None:
    variants = {row.what: row for row in measure_variants(20, print)}
    assert variants["kernels compiled for all but the first"].values == {"whitebox": 0}
    rows = {row.what: row.values["whitebox"] for row in measure_churn(3.0, print)}
    assert rows["requests meanwhile"] > rows["models registered and removed"] > 0
    assert rows["wrong answers"] == rows["errors"] == 0
