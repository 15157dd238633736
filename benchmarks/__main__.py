"""`python -m benchmarks`: what can be measured, and the quick start's demonstration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks import choice, commands
from benchmarks.catalogue import MODELS

if TYPE_CHECKING:
    from benchmarks.latency import EngineResult, ModelResult
    from benchmarks.operators import Operator

app = typer.Typer(
    help="Whitebox on real models, against real peers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for command in (commands.batch, commands.many, commands.report, commands.plot):
    app.command()(command)


@app.command()
def latency(
    models: Annotated[
        str,
        typer.Option(help="Comma-separated names or groups: all, real, light, exports, quantized."),
    ] = "all",
    threads: Annotated[int, typer.Option(min=1, help="Threads each engine may use.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds of timing a model.")] = 6.0,
    engines: Annotated[
        str, typer.Option(help="Comma-separated: whitebox, onnxruntime, openvino.")
    ] = "whitebox,onnxruntime,openvino",
    seed: Annotated[int, typer.Option(help="Seed of inputs and random weights.")] = 0,
    precision: Annotated[
        str, typer.Option(help="f32; or bf16, then against OpenVINO's default precision.")
    ] = "f32",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Time one request at a time, against onnxruntime and OpenVINO.

    All engines run in this process and take turns; medians are shown. Each answer is checked
    against onnxruntime's first (relative error under 1e-3; in bf16 under 0.2, and the cosine over
    0.99; of quantised models under 0.15 and over 0.99). Models come from PyPI packages or are
    exported here, and are kept under WHITEBOX_MODELS.
    Exits with 1 when Whitebox fails on a model or answers wrongly.

    \b
    Examples:
      python -m benchmarks latency
      python -m benchmarks latency --models magika,nudenet --seconds 10 --json out.json
      python -m benchmarks latency --models light --engines whitebox,onnxruntime
      python -m benchmarks latency --precision bf16
    """
    # Read when whitebox and its threads start, so before anything imports it.
    os.environ["WHITEBOX_THREADS"] = str(threads)
    from rich.console import Console

    from benchmarks.agreement import LIMITS
    from benchmarks.engines import ENGINES
    from benchmarks.latency import Settings, measure
    from benchmarks.report import document, table

    chosen = choice.known(engines.split(","), ENGINES, "engine")
    choice.known([precision], LIMITS, "precision")
    settings = Settings(threads, seconds, seed, tuple(chosen), precision)
    results = []
    for result in measure(choice.models(models), settings):
        results.append(result)
        typer.echo(_progress(result), err=True)
    Console(width=None if os.isatty(1) else 150).print(table(results, settings))
    if json_file is not None:
        json_file.write_text(json.dumps(document(results, settings), indent=2) + "\n")
    ours = [result.engines["whitebox"] for result in results if "whitebox" in result.engines]
    raise typer.Exit(1 if any(result.failure for result in ours) else 0)


@app.command()
def startup(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Time what a user waits for: registering an architecture, its variants, and a restart.

    Runs the commands themselves on a home of its own. Times of `register` are those it reports.
    """
    from dataclasses import asdict

    from benchmarks.report import provenance
    from benchmarks.startup import measure

    rows = measure(typer.echo)
    if json_file is not None:
        made = {"benchmark": "startup", **provenance(), "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(made, indent=2) + "\n")


@app.command()
def shapes(
    models: Annotated[str, typer.Option(help="Comma-separated names of models.")] = "all",
    threads: Annotated[int, typer.Option(min=1, help="Threads each engine may use.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds of timing a size.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Time kernels that serve every size against those made for one, and against the peers.

    The peers keep their dynamic shapes. Times are medians in ms; "first" is what a request at a
    new shape waits for its answer. Exits with 1 when an answer is wrong.
    """
    os.environ["WHITEBOX_THREADS"] = str(threads)
    from benchmarks.latency import Settings
    from benchmarks.report import provenance
    from benchmarks.shapes import SIZES, measure, table

    chosen = list(SIZES) if models == "all" else choice.known(models.split(","), SIZES, "model")
    rows = []
    for row in measure(chosen, Settings(threads, seconds, seed)):
        rows.append(row)
        typer.echo(f"{row.model} {row.sizes}: {row.ratio or 0:.2f}", err=True)
    typer.echo(table(rows))
    if json_file is not None:
        made = {"benchmark": "shapes", **provenance(), "rows": [row.to_dict() for row in rows]}
        json_file.write_text(json.dumps(made, indent=2) + "\n")
    raise typer.Exit(1 if any(row.failure for row in rows) else 0)


@app.command()
def kernels(
    operators: Annotated[
        str, typer.Option(help="Comma-separated names or families, such as gemm,softmax.")
    ] = "all",
    threads: Annotated[int, typer.Option(min=1, help="Threads each engine may use.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds of timing an operator.")] = 2.0,
    engines: Annotated[
        str, typer.Option(help="Comma-separated: whitebox, onnxruntime, openvino.")
    ] = "whitebox,onnxruntime,openvino",
    seed: Annotated[int, typer.Option(help="Seed of inputs and weights.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Time single operators, against the peers and against the machine's measured peak.

    Engines take turns; medians are shown. Each answer is checked against onnxruntime's first.
    Exits with 1 when Whitebox fails on an operator or answers wrongly.

    \b
    Examples:
      python -m benchmarks kernels
      python -m benchmarks kernels --operators convolution,depthwise --json out.json
    """
    from benchmarks.operators import OPERATORS
    from benchmarks.resnet50 import RESNET50

    known = {**OPERATORS, **RESNET50}
    _run_operators("kernels", known, operators, (threads, seconds, seed, engines), json_file)


@app.command()
def tiny(
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds of timing a model.")] = 2.0,
    engines: Annotated[
        str, typer.Option(help="Comma-separated: whitebox, onnxruntime, openvino.")
    ] = "whitebox,onnxruntime",
    seed: Annotated[int, typer.Option(help="Seed of inputs and weights.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Time models so small that the way through Python is what counts, in `InferenceSession.run`.

    \b
    Examples:
      python -m benchmarks tiny
    """
    from benchmarks.tiny import TINY

    _run_operators("tiny", TINY, "all", (2, seconds, seed, engines), json_file)


def _run_operators(
    benchmark: str,
    known: Mapping[str, Operator],
    wanted: str,
    given: tuple[int, float, int, str],
    json_file: Path | None,
) -> None:
    threads, seconds, seed, engines = given
    os.environ["WHITEBOX_THREADS"] = str(threads)
    from rich.console import Console

    from benchmarks import kernels, peak
    from benchmarks.engines import ENGINES
    from benchmarks.latency import Settings

    families = {made.family for made in known.values()}
    names = choice.known(wanted.split(","), {"all", *families, *known}, "operator")
    chosen = [m for m in known.values() if {"all", m.family, m.name} & set(names)]
    named = tuple(choice.known(engines.split(","), ENGINES, "engine"))
    settings = Settings(threads, seconds, seed, named)
    best = peak.measure(threads)
    results = []
    for result in kernels.measure(chosen, settings):
        results.append(result)
        typer.echo(f"{result.operator.name}: {_times(result.engines)}", err=True)
    Console(width=None if os.isatty(1) else 150).print(kernels.table(results, settings, best))
    if json_file is not None:
        found = kernels.document(benchmark, results, settings, best)
        json_file.write_text(json.dumps(found, indent=2) + "\n")
    ours = [result.engines["whitebox"] for result in results if "whitebox" in result.engines]
    raise typer.Exit(1 if any(result.failure for result in ours) else 0)


@app.command()
def throughput(
    models: Annotated[
        str, typer.Option(help="Comma-separated names; 'light' means the light_* models.")
    ] = "ppocr-cls,mtcnn-onet,light_squeezenet,light_resnet50",
    clients: Annotated[str, typer.Option(help="Comma-separated numbers of clients.")] = "1,2,4,8",
    threads: Annotated[int, typer.Option(min=1, help="Threads each engine may use.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds a figure.")] = 2.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Requests per second and latency when several clients ask at once, in this process.

    A closed loop. Whitebox is compared with itself one request at a time, and with onnxruntime on
    all cores a call and on one core a call.

    \b
    Examples:
      python -m benchmarks throughput
      python -m benchmarks throughput --models magika --clients 1,16
    """
    os.environ["WHITEBOX_THREADS"] = str(threads)
    from benchmarks.report import provenance
    from benchmarks.throughput import measure

    rows = []
    counts = [int(count) for count in clients.split(",")]
    for row in measure(choice.models(models), counts, threads, seconds):
        rows.append(row)
        typer.echo(
            f"{row.model:18} {row.clients:2} clients  {row.engine:30} "
            f"{row.requests_per_s:9.1f}/s  p50 {row.p50_ms:8.2f} ms  p99 {row.p99_ms:8.2f} ms"
        )
    if json_file is not None:
        made = {"benchmark": "shapes", **provenance(), "rows": [row.to_dict() for row in rows]}
        json_file.write_text(json.dumps(made, indent=2) + "\n")


@app.command()
def models(
    fetch: Annotated[bool, typer.Option(help="Fetch every model now.")] = False,
) -> None:
    """List the models: package, licence, and whether the file is there."""
    from benchmarks.models import ModelUnavailable, path

    for model in MODELS.values():
        where = ""
        if fetch:
            try:
                where = str(path(model.name))
            except ModelUnavailable as error:
                where = f"unavailable: {error}"
        typer.echo(f"{model.name:20} {model.package:32} {model.licence:24} {where}".rstrip())


@app.command()
def quickstart(
    file: Annotated[Path, typer.Argument(help="The file to ask about.")] = Path("README.md"),
    port: Annotated[int, typer.Option(help="Port of the server; 0 picks a free one.")] = 0,
) -> None:
    """Register a real model, serve it, and ask over REST what kind of file FILE is."""
    from benchmarks.quickstart import ask

    ask(file, port)


def _progress(result: ModelResult) -> str:
    """One line a model, shown as soon as it is measured."""
    if result.skipped is not None:
        return f"{result.name}: skipped, {result.skipped}"
    return f"{result.name}: {_times(result.engines)}"


def _times(engines: Mapping[str, EngineResult]) -> str:
    parts = []
    for name, engine in engines.items():
        ms = engine.median_ms
        parts.append(f"{name} {engine.failure}" if ms is None else f"{name} {ms:.4g} ms")
    return ", ".join(parts)


if __name__ == "__main__":
    app()
