"""`whitebox accuracy`: what a low precision costs, measured against float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.feeds import read_feeds
from whitebox.cli.home import home_of, open_runtime

if TYPE_CHECKING:
    from whitebox.runtime.accuracy import AccuracyReport


def run(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A model, or an ONNX file.")],
    precision: Annotated[str, typer.Option(help="The precision to compare with f32.")] = "bf16",
    given: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Inputs (default: random ones).", metavar="FILE"),
    ] = None,
    version: Annotated[int | None, typer.Option(help="A version (default: the newest).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a model's answers in a low precision with those in float32.

    \b
    Examples:
      whitebox accuracy resnet50
      whitebox accuracy resnet50.onnx --precision bf16 --input images.npz
    """
    if Path(model).suffix == ".onnx":
        report = _of_file(context, Path(model), precision, given)
    else:
        with open_runtime(context) as runtime:
            specs = runtime.model(model, version).inputs
            feeds = None if given is None else read_feeds(given, specs)
            report = runtime.accuracy(model, version, precision=precision, feeds=feeds)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def _of_file(
    context: typer.Context, file: Path, precision: str, given: Path | None
) -> AccuracyReport:
    from whitebox.runtime.session import InferenceSession

    session = InferenceSession(file, precision=precision, home=home_of(context))
    return session.accuracy(None if given is None else read_feeds(given, session.input_specs))
