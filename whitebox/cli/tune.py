"""`whitebox tune`: measure other schedules of a model's hottest kernels, and keep the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.feeds import read_feeds
from whitebox.cli.home import open_runtime

if TYPE_CHECKING:
    from whitebox.runtime.tune import Tuned


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's name.")],
    seconds: Annotated[float, typer.Option(min=1.0, help="Time to spend, about.")] = 60.0,
    given: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Measure on these inputs.", metavar="FILE"),
    ] = None,
    version: Annotated[int | None, typer.Option(help="A version (default: the newest).")] = None,
) -> None:
    """Measure other schedules of a model's hottest kernels.

    What wins is kept with the kernels and used by every model that shares them, from its next
    load on. Leave the machine alone meanwhile.

    \b
    Examples:
      whitebox tune resnet50
      whitebox tune detector --input page.npz --seconds 300
    """
    with open_runtime(context) as runtime:
        feeds = None
        if given is not None:
            feeds = read_feeds(given, runtime.model(name, version).inputs)
        found = runtime.tune(name, version, feeds=feeds, seconds=seconds, tell=_tell)
    faster = sum(tuned.changed for tuned in found)
    typer.echo(f"{len(found)} kernels measured, {faster} faster now")


def _tell(tuned: Tuned) -> None:
    """One line a kernel, as soon as it is measured."""
    change = f"{tuned.before_us:.0f} → {tuned.after_us:.0f} µs" if tuned.changed else "as it was"
    typer.echo(f"{tuned.label[:60]:60} {tuned.schedules:2} schedules, {change}", err=True)
