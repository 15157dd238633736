"""Single operators, against the peers and against what the machine can do.

What enters: operators of `benchmarks.operators` and settings. What leaves: one `OperatorResult` an
operator, as a table and as plain data. Checked and timed as in `benchmarks.latency`.
"""

from __future__ import annotations

import gc
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from rich.table import Table
from rich.text import Text

from benchmarks.engines import versions
from benchmarks.latency import EngineResult, Settings, measure_engines
from benchmarks.operators import Operator
from benchmarks.peak import Peak
from benchmarks.report import cell, geometric_mean, machine
from benchmarks.resnet50 import FAMILY as RESNET50


@dataclass(frozen=True)
class OperatorResult:
    """All engines on one operator."""

    operator: Operator
    engines: dict[str, EngineResult]

    def rate(self, engine: str) -> float | None:
        """GFLOP/s, or GB/s where memory decides; None when there is no time."""
        milliseconds = self.engines[engine].median_ms
        work = self.operator.flops or self.operator.nbytes
        return None if milliseconds is None else work / milliseconds / 1e6

    def share(self, engine: str, peak: Peak) -> float | None:
        """The rate as a fraction of the machine's best."""
        rate, best = self.rate(engine), peak.gflops if self.operator.flops else peak.gbytes
        return None if rate is None else rate / best

    def ratio(self) -> float | None:
        """Whitebox's time over the better peer's."""
        times = {name: result.median_ms for name, result in self.engines.items()}
        ours = times.pop("whitebox", None)
        peers = [milliseconds for milliseconds in times.values() if milliseconds is not None]
        return None if ours is None or not peers else ours / min(peers)

    def to_dict(self, peak: Peak) -> dict[str, object]:
        """For the JSON report."""
        return {
            "name": self.operator.name,
            "family": self.operator.family,
            "flops": self.operator.flops,
            "bytes": self.operator.nbytes,
            "engines": {
                name: {
                    **result.to_dict(),
                    "rate": self.rate(name),
                    "share_of_peak": self.share(name, peak),
                }
                for name, result in self.engines.items()
            },
            "whitebox_time_over_better_peer": self.ratio(),
        }


def network_share(results: Sequence[OperatorResult], family: str, peak: Peak) -> float | None:
    """The fraction of the peak that a network of these operators reaches, each `count` times."""
    flops = seconds = 0.0
    for result in results:
        ours = result.engines.get("whitebox")
        if result.operator.family == family and ours is not None and ours.median_ms is not None:
            flops += result.operator.count * result.operator.flops
            seconds += result.operator.count * ours.median_ms / 1e3
    return flops / seconds / 1e9 / peak.gflops if seconds else None


def measure(operators: Sequence[Operator], settings: Settings) -> Iterator[OperatorResult]:
    """Measure operators one after the other."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="whitebox-") as folder:
        file = Path(folder) / "operator.onnx"
        for operator in operators:
            onnx.save(operator.model(settings.seed), file)
            feeds = operator.feeds(settings.seed)
            yield OperatorResult(operator, measure_engines(file, feeds, settings))
            gc.collect()


def table(results: Sequence[OperatorResult], settings: Settings, peak: Peak) -> Table:
    """Median µs of each engine, Whitebox's rate, its share of the peak, its ratio to the peers."""
    made = Table(
        title=f"Single operators, {settings.threads} threads, float32",
        caption=(
            f"µs, medians · peak: {peak.gflops:.0f} GFLOP/s of multiply-adds, {peak.gbytes:.0f} "
            "GB/s copied (what fits a cache may beat that) · ×peer: Whitebox's time over the "
            "better peer's, under 1 is faster"
        ),
    )
    made.add_column("operator")
    made.add_column("family", style="dim")
    for name in [*settings.engines, "rate", "of peak", "×peer"]:
        made.add_column(name, justify="right")
    for result in results:
        made.add_row(*_row(result, settings, peak))
    made.add_section()
    ratios = [ratio for result in results if (ratio := result.ratio()) is not None]
    mean = geometric_mean(ratios)
    blanks = [""] * (len(settings.engines) + 3)
    made.add_row("geometric mean", *blanks, "" if mean is None else f"{mean:.2f}")
    share = network_share(results, RESNET50, peak)
    if share is not None:
        blanks = [""] * (len(settings.engines) + 2)
        made.add_row("all of ResNet-50, weighted by time", *blanks, f"{100 * share:.0f}%", "")
    return made


def _row(result: OperatorResult, settings: Settings, peak: Peak) -> list[str | Text]:
    times = [cell(result.engines[name], scale=1e3) for name in settings.engines]
    shown = ["", "", ""]
    if "whitebox" in result.engines:
        rate, share = result.rate("whitebox"), result.share("whitebox", peak)
        if rate is not None and share is not None:
            unit = "GFLOP/s" if result.operator.flops else "GB/s"
            shown[:2] = [f"{rate:.3g} {unit}", f"{100 * share:.0f}%"]
    ratio = result.ratio()
    shown[2] = "" if ratio is None else f"{ratio:.2f}"
    return [result.operator.name, result.operator.family, *times, *shown]


def document(
    benchmark: str, results: Sequence[OperatorResult], settings: Settings, peak: Peak
) -> dict[str, object]:
    """The whole run as plain data."""
    ratios = [ratio for result in results if (ratio := result.ratio()) is not None]
    return {
        "benchmark": benchmark,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "peak": asdict(peak),
        "versions": {"python": platform.python_version(), **versions()},
        "settings": asdict(settings),
        "operators": [result.to_dict(peak) for result in results],
        "summary": {
            "geometric_mean": geometric_mean(ratios),
            "resnet50_share_of_peak": network_share(results, RESNET50, peak),
        },
    }
