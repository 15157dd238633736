"""`whitebox stats`: what the home holds, and what sharing saves in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from whitebox.cli.home import open_registry
from whitebox.cli.progress import progress
from whitebox.cli.text import columns, size


def run(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what all models together take, and what sharing saves.

    \b
    Examples:
      whitebox stats
      whitebox stats --json
    """
    import msgspec

    from whitebox.registry.statistics import statistics

    with progress("looking at models") as tell:
        found = statistics(open_registry(context), tell)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    rows = [
        ("models", f"{found.models} ({found.versions} versions)"),
        ("weights", _saved(found.weight_bytes, found.stored_weight_bytes, size)),
        ("derived weights", f"{size(found.derived_bytes)} (packed or folded; a cache)"),
        ("kernels", f"{found.kernels} compiled, {size(found.kernel_bytes)} (a cache)"),
        ("operators", _saved(found.operators, found.distinct_operators, str)),
    ]
    typer.echo(columns(rows))


def _saved(each: int, together: int, written: Callable[[int], str]) -> str:
    """What models take each by itself, and together."""
    saved = f", {1 - together / each:.0%} less" if each else ""
    return f"{written(together)} ({written(each)} each model by itself{saved})"
