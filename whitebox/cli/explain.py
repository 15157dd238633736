"""`whitebox explain`: what was done to a model and why, and where its time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from whitebox.cli.feeds import read_feeds
from whitebox.cli.home import open_runtime


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's name.")],
    given: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Time a run on these inputs.", metavar="FILE"),
    ] = None,
    version: Annotated[int | None, typer.Option(help="A version (default: the newest).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what was done to a model, and why.

    Passes and their decisions, stages, kernels; time and memory of a run.

    \b
    Examples:
      whitebox explain resnet50
      whitebox explain detector --input page.npz
    """
    with open_runtime(context) as runtime:
        feeds = None
        if given is not None:
            feeds = read_feeds(given, runtime.model(name, version).inputs)
        explanation = runtime.explain(name, version, feeds=feeds)
    typer.echo(json.dumps(explanation.to_dict(), indent=2) if as_json else str(explanation))
