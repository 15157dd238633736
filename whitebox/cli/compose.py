"""`whitebox compose`: registered models become one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whitebox.cli.home import open_runtime
from whitebox.cli.progress import progress
from whitebox.cli.register import summary


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A pipeline in YAML or JSON.")],
    name: Annotated[
        str | None,
        typer.Option(help="The model's name (default: the one in the file, or its own)."),
    ] = None,
) -> None:
    """Wire registered models into one, registered like any model.

    Models are optimized across their borders, and share weights and kernels with the originals.
    What a pipeline may hold: docs/pipelines.md.

    \b
    Examples:
      whitebox compose pipeline.yaml
      whitebox compose pipeline.yaml --name triage
    """
    with open_runtime(context) as runtime, progress("compiling kernels") as tell:
        done = runtime.compose(file, name, progress=tell)
    typer.echo(summary(done))
