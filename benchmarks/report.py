"""What a benchmark found, as a table for a person and as JSON for a machine.

What enters: results of `benchmarks.latency`. What leaves: a rich table, and a dictionary that says
besides the numbers what produced them: command, machine, versions, date.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.engines import versions
from benchmarks.latency import EngineResult, ModelResult, Settings


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """The mean that treats twice as fast and twice as slow alike. None of nothing."""
    if not ratios:
        return None
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))


def summary(results: Sequence[ModelResult]) -> dict[str, dict[str, Any]]:
    """Per peer: over how many models, the geometric mean of the ratios, and the worst."""
    peers = {name for result in results for name in result.engines} - {"whitebox"}
    found: dict[str, dict[str, Any]] = {}
    for peer in sorted(peers):
        named = [(result.ratio(peer), result.name) for result in results]
        ratios = [(ratio, name) for ratio, name in named if ratio is not None]
        worst = max(ratios, default=None)
        found[peer] = {
            "models": len(ratios),
            "geometric_mean": geometric_mean([ratio for ratio, _ in ratios]),
            "worst": None if worst is None else {"model": worst[1], "ratio": worst[0]},
        }
    return found


def table(results: Sequence[ModelResult], settings: Settings) -> Table:
    """Median ms of each engine, and Whitebox's time over each peer's."""
    peers = [name for name in settings.engines if name != "whitebox"]
    made = Table(
        title=f"Latency, one request at a time, {settings.threads} threads, {settings.precision}",
        caption="ms, medians · ×peer: Whitebox's time over the peer's, under 1 is faster · error: "
        "the largest, as a fraction of the largest value that onnxruntime gives in float32",
    )
    made.add_column("model")
    made.add_column("size", style="dim")
    for name in settings.engines:
        made.add_column(name, justify="right")
    for peer in peers:
        made.add_column(f"×{peer}", justify="right")
    for name in _with_errors(settings):
        made.add_column(f"{name}'s error", justify="right", style="dim")
    for result in results:
        made.add_row(*_row(result, settings, peers))
    made.add_section()
    totals = summary(results)
    blanks = [""] * (len(settings.engines) + 1)
    means = [_ratio(totals[peer]["geometric_mean"]) if peer in totals else "" for peer in peers]
    made.add_row("geometric mean", *blanks, *means, "")
    worst = [_worst(totals.get(peer, {}).get("worst")) for peer in peers]
    made.add_row("worst", *blanks, *worst, "")
    return made


def document(results: Sequence[ModelResult], settings: Settings) -> dict[str, object]:
    """The whole run as plain data."""
    return {
        "benchmark": "latency",
        **provenance(),
        "settings": asdict(settings),
        "models": [result.to_dict() for result in results],
        "summary": summary(results),
    }


def provenance() -> dict[str, object]:
    """What produced the numbers: command, date, machine, versions."""
    return {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions()},
    }


def machine() -> dict[str, object]:
    """The CPU's name, the vector features that matter here, and how many cores there are."""
    name, flags = platform.processor(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
    telling = ("avx2", "fma", "avx512", "amx", "avx_vnni", "asimd", "sve")
    features = sorted(flag for flag in flags if flag.startswith(telling))
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"cpu": name, "features": features, "cores": cores, "system": platform.platform()}


def _row(result: ModelResult, settings: Settings, peers: Sequence[str]) -> list[str | Text]:
    size = " ".join(f"{name}{value}" for name, value in result.sizes.items())
    if result.skipped is not None:
        return [result.name, size, Text("not available", style="yellow")]
    cells = [cell(result.engines[name]) for name in settings.engines]
    ratios = [_ratio(result.ratio(peer)) for peer in peers]
    errors = [_error(result.engines.get(name)) for name in _with_errors(settings)]
    return [result.name, size, *cells, *ratios, *errors]


def _with_errors(settings: Settings) -> list[str]:
    """The engines whose errors are shown: all but the reference where precisions differ."""
    shown = ("whitebox",) if settings.precision == "f32" else ("whitebox", "openvino")
    return [name for name in settings.engines if name in shown]


def _error(result: EngineResult | None) -> str:
    return "" if result is None or result.error is None else f"{result.error:.0e}"


def cell(result: EngineResult, scale: float = 1.0) -> str | Text:
    """An engine's median in ms times `scale`, or what went wrong."""
    if result.median_ms is None:
        wrong = result.failure is not None and result.failure.startswith("wrong answer")
        return Text("wrong" if wrong else "fails", style="red")
    return f"{result.median_ms * scale:.2f}"


def _ratio(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else ""


def _worst(value: object) -> str:
    return f"{value['ratio']:.2f} {value['model']}" if isinstance(value, dict) else ""
