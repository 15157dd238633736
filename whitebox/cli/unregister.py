"""`whitebox unregister`: remove a model, or one version of it."""

from __future__ import annotations

from typing import Annotated

import typer

from whitebox.cli.home import open_registry


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's name.")],
    version: Annotated[int | None, typer.Option(help="Remove this version only.")] = None,
) -> None:
    """Remove a model. Weights that no other model uses are freed.

    \b
    Examples:
      whitebox unregister resnet50
      whitebox unregister resnet50 --version 1
    """
    open_registry(context).remove(name, version)
    typer.echo(f"{name} version {version} removed" if version is not None else f"{name} removed")
