"""`whitebox explain`: what was done to a model and why; or what several models share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.feeds import read_feeds
from whitebox.cli.home import open_runtime

if TYPE_CHECKING:
    from whitebox.runtime.explain import Explanation
    from whitebox.runtime.overlap import Overlap


def run(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(help="A model; or several, to see what they share.")
    ],
    given: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Time a run on these inputs.", metavar="FILE"),
    ] = None,
    version: Annotated[int | None, typer.Option(help="A version (default: the newest).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what was done to a model, and why; or what several models share.

    Passes and their decisions, kernels; time and memory of a run. Of several models: the weights,
    kernels and computation that they have in common, and what that saves on one input.

    \b
    Examples:
      whitebox explain resnet50
      whitebox explain detector --input page.npz
      whitebox explain english french german
    """
    if version is not None and len(names) > 1:
        raise typer.BadParameter("--version goes with one model; several are compared as newest")
    with open_runtime(context) as runtime:
        feeds = None
        if given is not None:
            specs = {s.name: s for name in names for s in runtime.model(name, version).inputs}
            feeds = read_feeds(given, tuple(specs.values()))
        explanation: Explanation | Overlap
        if len(names) == 1:
            explanation = runtime.explain(names[0], version, feeds=feeds)
        else:
            explanation = runtime.overlap(names, feeds=feeds)
    typer.echo(json.dumps(explanation.to_dict(), indent=2) if as_json else str(explanation))
