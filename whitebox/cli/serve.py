"""`whitebox serve`: the registered models over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from whitebox.cli.home import open_runtime


def run(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 picks a free one.")
    ] = 8000,
) -> None:
    """Serve the registered models over HTTP.

    Speaks the Open Inference Protocol v2, in JSON and with binary tensors.

    Models that are registered later, by another process, appear without a restart.

    \b
    Examples:
      whitebox serve
      whitebox serve --host 0.0.0.0 --port 9000
      curl localhost:8000/v2/models/resnet50
    """
    from whitebox.server.rest import serve

    with open_runtime(context) as runtime:
        serve(runtime, host, port)
