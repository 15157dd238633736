"""`whitebox predict`: one answer of one model, from a file of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.feeds import read_feeds, to_json, write_outputs
from whitebox.cli.home import open_runtime

if TYPE_CHECKING:
    import numpy as np


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's name.")],
    given: Annotated[
        Path, typer.Option("--input", "-i", help="Inputs: .npz, or .json.", metavar="FILE")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write outputs here (.npz, .json).", metavar="FILE"),
    ] = None,
    version: Annotated[int | None, typer.Option(help="A version (default: the newest).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a model once on inputs from a file.

    \b
    Examples:
      whitebox predict resnet50 --input image.npz
      whitebox predict magika -i request.json -o answer.npz
    """
    with open_runtime(context) as runtime:
        model = runtime.model(name, version)
        outputs = runtime.predict(name, read_feeds(given, model.inputs), version=model.version)
    if output is not None:
        write_outputs(output, outputs)
    elif as_json:
        typer.echo(to_json(outputs))
    else:
        for result, array in outputs.items():
            typer.echo(_readable(result, array))


def _readable(name: str, array: np.ndarray) -> str:
    import numpy as np

    dims = ",".join(map(str, array.shape))
    return f"{name} {array.dtype}[{dims}]\n{np.array2string(array, threshold=100, precision=5)}"
