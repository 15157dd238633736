"""`whitebox show`: one model's signature and what is known of it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer

from whitebox.cli.home import find_model, open_registry
from whitebox.cli.text import age, columns, model_to_dict, size


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's name.")],
    version: Annotated[int | None, typer.Option(help="A version (default: the newest).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a model: its inputs, outputs, versions and size.

    \b
    Examples:
      whitebox show resnet50
      whitebox show resnet50 --version 2 --json
    """
    model = find_model(open_registry(context), name, version)
    if as_json:
        typer.echo(json.dumps(model_to_dict(model), indent=2))
        return
    created = datetime.fromtimestamp(model.created).astimezone().isoformat(" ", "seconds")
    rows = [
        ("name", model.name),
        ("version", f"{model.version} of {', '.join(map(str, model.versions))}"),
        *(("input", str(spec)) for spec in model.inputs),
        *(("output", str(spec)) for spec in model.outputs),
        ("weights", size(model.nbytes)),
        ("created", f"{created} ({age(model.created)})"),
        ("digest", model.digest),
        *((key, str(value)) for key, value in sorted(model.metadata.items())),
    ]
    typer.echo(columns(rows))
