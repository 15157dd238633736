"""`whitebox serve`: the registered models over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from whitebox import config
from whitebox.cli.home import open_runtime


def run(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 picks a free one.")
    ] = 8000,
    reserve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE",
            help="A share of the cores that a model gets whenever it wants it; may be repeated.",
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for models, such as 512m or 1g; those not used for longest make room.",
        ),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE",
            help="Keep answers of a model, to give for the same inputs again; may be repeated.",
        ),
    ] = None,
) -> None:
    """Serve the registered models over HTTP.

    Speaks the Open Inference Protocol v2, in JSON and with binary tensors.

    Models that are registered later, by another process, appear without a restart.

    \b
    Examples:
      whitebox serve
      whitebox serve --memory-budget 1g
      whitebox serve --cache resnet50=64m
      whitebox serve --host 0.0.0.0 --port 9000
      whitebox serve --reserve resnet50=0.5
      curl localhost:8000/v2/models/resnet50
    """
    from whitebox.server.rest import serve

    budget = None if memory_budget is None else config.parse_size(memory_budget)
    caches = dict(map(_cache, cache or ()))
    with open_runtime(context, memory_budget=budget, cache=caches) as runtime:
        for each in reserve or ():
            runtime.reserve(*_reservation(each))
        serve(runtime, host, port)


def _cache(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name:
        raise typer.BadParameter(
            f"{text!r} is not NAME=SIZE, as in resnet50=64m", param_hint="--cache"
        )
    return name, config.parse_size(size)


def _reservation(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not NAME=SHARE, as in resnet50=0.5", param_hint="--reserve"
        ) from None
