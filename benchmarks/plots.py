"""Results of benchmarks as bar charts, written as plain SVG.

What enters: a result as a benchmark writes it (JSON). What leaves: the text of an SVG file, or None
where there is nothing to draw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from benchmarks.markdown import faster
from benchmarks.report import geometric_mean

Result = Mapping[str, Any]

_COLOURS = {"whitebox": "#1f77b4", "onnxruntime": "#bdbdbd", "openvino": "#8fb8de"}
_SLOWER = "#d62728"
_LABEL, _WIDTH, _VALUE, _BAR, _GAP = 200, 460, 60, 11, 7


@dataclass(frozen=True)
class Bar:
    """One bar: how long, in what colour, what is written at its end."""

    value: float
    colour: str
    text: str


def drawn(result: Result) -> str | None:
    """The chart of a result."""
    if result["benchmark"] == "latency":
        return _latency(result)
    if result["benchmark"] in ("kernels", "tiny"):
        return _kernels(result)
    return None


def _latency(result: Result) -> str | None:
    """How many times faster than the better peer, the fastest first."""
    found = [(faster(model["engines"]), model["name"]) for model in result["models"]]
    ratios = sorted(((ratio, name) for ratio, name in found if ratio is not None), reverse=True)
    if not ratios:
        return None
    rows = []
    for ratio, name in ratios:
        colour = _COLOURS["whitebox"] if ratio >= 1 else _SLOWER
        rows.append((name, [Bar(ratio, colour, f"{ratio:.2f}")]))
    mean = geometric_mean([ratio for ratio, _ in ratios])
    title = f"Times as fast as the better peer, {len(rows)} models, geometric mean {mean:.2f}"
    return _chart(title, rows, 1.0, {})


def _kernels(result: Result) -> str | None:
    """Each family's share of the machine's peak, one bar an engine."""
    shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for operator in result["operators"]:
        for engine, measured in operator["engines"].items():
            share = measured.get("share_of_peak")
            if operator["flops"] and share is not None:
                shares[operator["family"]][engine].append(share)
    if not shares:
        return None
    rows = []
    for family, engines in shares.items():
        means = {name: geometric_mean(found) or 0.0 for name, found in engines.items()}
        peak = result["peak"]["gflops"]
        bars = [
            Bar(mean, _COLOURS[name], f"{100 * mean:.0f}%, {mean * peak:.0f}")
            for name, mean in means.items()
        ]
        rows.append((family, bars))
    title = f"Share of the multiply-add peak ({result['peak']['gflops']:.0f} GFLOP/s), GFLOP/s"
    used = {name: _COLOURS[name] for name in result["settings"]["engines"]}
    return _chart(title, rows, 1.0, used)


def _chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[Bar]]],
    line: float,
    legend: Mapping[str, str],
) -> str:
    """Horizontal bars in groups, with a dashed line at the value that matters."""
    longest = max(line, *(bar.value for _, bars in rows for bar in bars))
    scale = _WIDTH / longest
    top = 48 if legend else 32
    parts, y = [_text(8, 20, title, "bold")], top
    for number, (name, colour) in enumerate(legend.items()):
        parts.append(_rect(_LABEL + 120 * number, 30, 10, colour))
        parts.append(_text(_LABEL + 120 * number + 14, 39, name))
    for label, bars in rows:
        parts.append(_text(_LABEL - 6, y + len(bars) * _BAR / 2 + 4, label, anchor="end"))
        for bar in bars:
            parts.append(_rect(_LABEL, y, bar.value * scale, bar.colour))
            parts.append(_text(_LABEL + bar.value * scale + 4, y + 9, bar.text))
            y += _BAR
        y += _GAP
    at = _LABEL + line * scale
    parts.append(
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 4}" y2="{y}" stroke="#333" '
        'stroke-dasharray="4 3"/>'
    )
    width, height = _LABEL + _WIDTH + _VALUE, y + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _rect(x: float, y: float, width: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR - 1}" fill="{colour}"/>'
    )


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
