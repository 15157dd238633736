"""Commands of `python -m benchmarks`: throughput by batch, and what is made of written results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import choice

_RESULTS = Path("benchmarks/results")
Results = Annotated[
    list[Path] | None,
    typer.Argument(help="JSON files of benchmarks; default: all of benchmarks/results."),
]


def batch(
    models: Annotated[str, typer.Option(help="Comma-separated names or groups.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Threads each engine may use.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds of timing a batch.")] = 6.0,
    engines: Annotated[
        str, typer.Option(help="Comma-separated: whitebox, onnxruntime, openvino.")
    ] = "whitebox,onnxruntime,openvino",
    seed: Annotated[int, typer.Option(help="Seed of inputs and weights.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Items a second at batches of 1, 8 and 32, against the peers.

    \b
    Examples:
      python -m benchmarks batch
      python -m benchmarks batch --models resnet50,sk-forest-100 --json batch.json
    """
    os.environ["WHITEBOX_THREADS"] = str(threads)
    from rich.console import Console

    from benchmarks.batch import USUAL, document, measure, table
    from benchmarks.engines import ENGINES
    from benchmarks.latency import Settings

    named = tuple(choice.known(engines.split(","), ENGINES, "engine"))
    settings = Settings(threads=threads, seconds=seconds, seed=seed, engines=named)
    results = []
    for result in measure(choice.models(models) if models else USUAL, settings):
        results.append(result)
        typer.echo(f"{result.name}: {result.skipped or result.failures or 'done'}", err=True)
    Console(width=None if os.isatty(1) else 150).print(table(results, settings))
    if json_file is not None:
        json_file.write_text(json.dumps(document(results, settings), indent=2) + "\n")
    raise typer.Exit(1 if any("whitebox" in result.failures for result in results) else 0)


def report(
    results: Results = None,
    document: Annotated[Path, typer.Option(help="The file whose tables are made anew.")] = Path(
        "docs/performance.md"
    ),
) -> None:
    """Write the tables of docs/performance.md from results: each between markers of its own."""
    from benchmarks.markdown import fill

    document.write_text(fill(document.read_text(), _read(results)))
    typer.echo(f"{document} has the tables of its marked places")


def plot(
    results: Results = None,
    folder: Annotated[Path, typer.Option(help="Where the charts go.")] = Path("docs/plots"),
) -> None:
    """Draw results as SVG bar charts, one file a result."""
    from benchmarks.plots import drawn

    folder.mkdir(parents=True, exist_ok=True)
    for name, result in _read(results).items():
        chart = drawn(result)
        if chart is not None:
            (folder / f"{name}.svg").write_text(chart)
            typer.echo(str(folder / f"{name}.svg"))


def _read(files: list[Path] | None) -> dict[str, Any]:
    """Results by the stems of their files."""
    found = files or sorted(_RESULTS.glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in found}
