"""Commands of `python -m benchmarks`: batches, many models, and what is made of written results."""

from __future__ import annotations

import json
import os
from itertools import chain
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


def many(
    sets: Annotated[
        str, typer.Option(help="Comma-separated: sentiment, attendance, heads, cnns, unrelated.")
    ] = "sentiment,attendance,heads,cnns,unrelated",
    count: Annotated[
        int | None, typer.Option(min=1, help="Models of each set; default: each set's own.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds of load a figure.")] = 9.0,
    variants: Annotated[
        int, typer.Option(min=0, help="Variants of one small model to register; 0: none.")
    ] = 10_000,
    churn: Annotated[
        float, typer.Option(min=0.0, help="Seconds of registering and removing under load.")
    ] = 60.0,
    servers: Annotated[bool, typer.Option(help="Also over HTTP, against MLServer.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Hundreds of models in one process, against a session of onnxruntime for each.

    Memory, time to load, first answers, latency at a fixed load and throughput over a Zipf mix,
    registration, and what sharing may not change. Engines run in processes of their own. Models
    are made from data that packages ship, and kept under WHITEBOX_MODELS.

    \b
    Examples:
      python -m benchmarks many
      python -m benchmarks many --sets sentiment,heads --count 20 --seconds 3 --no-servers
    """
    from rich.console import Console

    from benchmarks.many.measure import Settings, measure
    from benchmarks.many.recipes import RECIPES
    from benchmarks.many.registrations import measure_churn, measure_variants
    from benchmarks.many.report import document, line, table

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    names = [name for name in sets.split(",") if name]
    settings = Settings(count, seconds, servers)
    rows = []
    for row in chain(
        measure(choice.known(names, RECIPES, "set"), settings, tell),
        measure_variants(variants, tell),
        measure_churn(churn, tell),
    ):
        rows.append(row)
        tell(line(row))
    Console(width=None if os.isatty(1) else 150).print(table(rows))
    if json_file is not None:
        json_file.write_text(json.dumps(document(rows), indent=2) + "\n")


def report(
    results: Results = None,
    documents: Annotated[
        list[Path], typer.Option("--document", help="A file whose tables are made anew.")
    ] = [Path("docs/performance.md"), Path("docs/many-models.md")],  # noqa: B006
) -> None:
    """Write the tables of documents from results: each between markers of its own."""
    from benchmarks.markdown import fill

    for document in documents:
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
