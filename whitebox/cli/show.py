"""`whitebox show`: one model's signature and what is known of it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

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
        *(row for item in sorted(model.metadata.items()) for row in _about(*item)),
    ]
    typer.echo(columns(rows))


def _about(key: str, value: Any) -> list[tuple[str, str]]:
    """What is known of a model under one key; of a pipeline, a row for each model it is made of."""
    if key == "parts" and isinstance(value, dict):  # in a file's own metadata it is text
        return [("part", f"{step}: {model}") for step, model in value.items()]
    return [(key, str(value))]
