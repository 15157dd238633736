"""`whitebox list`: what is registered. Reads the registry only; loads no model."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from whitebox.cli.home import open_registry
from whitebox.cli.text import age, columns, model_to_dict, size

HEADER = ("NAME", "VERSION", "INPUTS", "OUTPUTS", "SIZE", "CREATED")
_WIDEST = 48


def run(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the registered models.

    \b
    Examples:
      whitebox list
      whitebox list --json
    """
    from whitebox.registry.records import ModelInfo

    models = ModelInfo.newest(open_registry(context).list())
    if as_json:
        typer.echo(json.dumps([model_to_dict(model) for model in models], indent=2))
        return
    rows = [HEADER]
    for model in models:
        inputs, outputs = (
            _short(", ".join(map(str, specs))) for specs in (model.inputs, model.outputs)
        )
        version, weights = str(model.version), size(model.nbytes)
        rows.append((model.name, version, inputs, outputs, weights, age(model.created)))
    typer.echo(columns(rows))


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
