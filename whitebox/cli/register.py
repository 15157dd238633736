"""`whitebox register`: a model file becomes a servable model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.home import open_runtime
from whitebox.cli.progress import progress
from whitebox.cli.text import count, size
from whitebox.errors import InvalidInput

if TYPE_CHECKING:
    from whitebox.registry.records import Registration


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="An ONNX file.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name (default: the file's name).")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=1x3x320x320", help="Compile for this shape now. May be repeated."
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="f32, or bf16: see `whitebox accuracy` for what it costs.")
    ] = "f32",
) -> None:
    """Register an ONNX model, compiling what is not compiled yet.

    Registering other content under a name makes its next version. A running server on the same
    home serves the model without a restart.

    \b
    Examples:
      whitebox register resnet50.onnx
      whitebox register det_infer.onnx --name detector --shape x=1x3x320x320
      whitebox register resnet50.onnx --precision bf16
    """
    shapes = dict(map(_parse_shape, shape or ()))
    with open_runtime(context) as runtime, progress("compiling kernels") as tell:
        done = runtime.register(
            file, name, shapes=shapes or None, precision=precision, progress=tell
        )
    typer.echo(summary(done))


def summary(done: Registration) -> str:
    """What registering did, in a line."""
    was = "registered" if done.created else "was registered already"
    return (
        f"{done.name} version {done.version} {was}: "
        f"{count(done.kernels_compiled, 'kernel')} compiled, {done.kernels_reused} reused, "
        f"{size(done.new_bytes)} new, {size(done.shared_bytes)} shared, {done.seconds:.2f} s"
    )


def _parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """ "x=1x3x320x320" → ("x", (1, 3, 320, 320)). Input names may hold "=" themselves."""
    name, _, dims = text.rpartition("=")
    sizes = dims.split("x")
    if not name or not all(part.isascii() and part.isdigit() for part in sizes):
        raise InvalidInput(f"the shape '{text}' is not of the form input=1x3x320x320")
    return name, tuple(map(int, sizes))
