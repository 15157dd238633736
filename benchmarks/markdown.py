"""The results of benchmarks as tables of a document, so that no table is edited by hand.

What enters: results as the benchmarks write them (JSON), by name, and a text with marked places.
What leaves: the text with each table made anew. A place is marked by two lines, `<!-- NAME -->` and
`<!-- end NAME -->`; NAME is a result's, or "machine".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.many.report import cells
from benchmarks.report import geometric_mean

Result = Mapping[str, Any]
_TITLES = {"whitebox": "Whitebox", "onnxruntime": "onnxruntime", "openvino": "OpenVINO"}
_PLACE = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def fill(text: str, results: Mapping[str, Result]) -> str:
    """The text with every marked place filled; a place that has no result stays as it is."""

    def made(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name == "machine" and results:
            return f"{start}{_machine(results)}\n{end}"
        if name not in results:
            return match.group()
        return f"{start}{_section(results[name])}\n{end}"

    return _PLACE.sub(made, text)


def faster(engines: Mapping[str, Result]) -> float | None:
    """How many times faster Whitebox is than the best of the others; None without times."""
    times = {name: engine.get("median_ms") for name, engine in engines.items()}
    ours = times.pop("whitebox", None)
    peers = [milliseconds for milliseconds in times.values() if milliseconds is not None]
    return None if ours is None or not peers else float(min(peers) / ours)


def _section(result: Result) -> str:
    lines = _TABLES[result["benchmark"]](result)
    return f"`{result['command']}`, {result['date'][:10]}\n\n" + "\n".join(lines)


def _machine(results: Mapping[str, Result]) -> str:
    newest = max(results.values(), key=lambda result: str(result["date"]))
    machine, versions = newest["machine"], newest["versions"]
    return (
        f"Machine: {machine['cpu']}, {machine['cores']} cores; features that matter: "
        f"{', '.join(machine['features'])}.\n"
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _times(engines: Mapping[str, Result], scale: float = 1.0) -> list[str]:
    """One cell an engine: its median, or that there is none."""
    found = [engine.get("median_ms") for engine in engines.values()]
    return ["–" if ms is None else _digits(ms * scale) for ms in found]


def _digits(value: float) -> str:
    """A time with as many decimals as tell something."""
    return f"{value:.{4 if value < 0.1 else 2 if value < 100 else 0}f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mean(ratios: Sequence[float | None]) -> str:
    return f"**{_ratio(geometric_mean([ratio for ratio in ratios if ratio is not None]))}**"


def _latency(result: Result) -> list[str]:
    measured = [model for model in result["models"] if model["skipped"] is None]
    engines = result["settings"]["engines"]
    ratios = [faster(model["engines"]) for model in measured]
    rows = [
        [model["name"], *_times(model["engines"]), _ratio(ratio)]
        for model, ratio in zip(measured, ratios, strict=True)
    ]
    means = [_times_ours(measured, engine) for engine in engines]
    rows.append(["**geometric mean**", *means, _mean(ratios)])
    return _rows(["model", *(_TITLES[name] for name in engines), "faster"], rows)


def _times_ours(models: Sequence[Result], peer: str) -> str:
    """A peer's time over Whitebox's, where both have one: the geometric mean."""
    if peer == "whitebox":
        return ""
    pairs = [
        {name: engine for name, engine in model["engines"].items() if name in ("whitebox", peer)}
        for model in models
    ]
    ratios = [ratio for ratio in map(faster, pairs) if ratio is not None]
    return f"×{_ratio(geometric_mean(ratios))}"


def _kernels(result: Result) -> list[str]:
    engines = result["settings"]["engines"]
    rows = []
    for operator in result["operators"]:
        ours = operator["engines"].get("whitebox", {})
        share = ours.get("share_of_peak")
        unit = "GFLOP/s" if operator["flops"] else "GB/s"
        rate = "" if share is None else f"{ours['rate']:.3g} {unit}, {100 * share:.0f}%"
        times = _times(operator["engines"], 1e3)
        rows.append([operator["name"], *times, rate, _ratio(faster(operator["engines"]))])
    ratios = [faster(operator["engines"]) for operator in result["operators"]]
    rows.append(["**geometric mean**", *[""] * (len(engines) + 1), _mean(ratios)])
    header = ["operator, µs", *(_TITLES[name] for name in engines), "of the peak", "faster"]
    return _rows(header, rows)


def _tiny(result: Result) -> list[str]:
    engines = result["settings"]["engines"]
    rows = [
        [made["name"], *_times(made["engines"], 1e3), _ratio(faster(made["engines"]))]
        for made in result["operators"]
    ]
    return _rows(["model, µs", *(_TITLES[name] for name in engines), "faster"], rows)


def _startup(result: Result) -> list[str]:
    rows = [[row["what"], f"{row['seconds']:.2f}", row["note"]] for row in result["rows"]]
    return _rows(["what", "seconds", ""], rows)


def _batch(result: Result) -> list[str]:
    engines, batches = result["settings"]["engines"], result["batches"]
    header = ["model, items a second", *(f"{_TITLES[e]} {b}" for e in engines for b in batches)]
    rows = [
        [
            model["name"],
            *(_items(model["engines"][e].get(str(b))) for e in engines for b in batches),
        ]
        for model in result["models"]
        if model["skipped"] is None
    ]
    return _rows(header, rows)


def _items(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _shapes(result: Result) -> list[str]:
    engines = list(result["rows"][0]["median_ms"])
    header = ["model", "size", "first", "compiled", *engines, "symbolic over specialised"]
    rows = [
        [
            row["model"],
            " ".join(f"{name}{size}" for name, size in row["sizes"].items()),
            f"{row['first_answer_ms']:.0f}",
            str(row["kernels_compiled"]),
            *(_items(row["median_ms"].get(engine)) for engine in engines),
            _ratio(row["symbolic_over_specialised"]),
        ]
        for row in result["rows"]
    ]
    return _rows(header, rows)


def _many(result: Result) -> list[str]:
    return [_machine({"many": result}), "", *_rows(*cells(result["rows"]))]


_TABLES: Mapping[str, Callable[[Result], list[str]]] = {
    "latency": _latency,
    "kernels": _kernels,
    "tiny": _tiny,
    "startup": _startup,
    "batch": _batch,
    "many": _many,
    "shapes": _shapes,
}
