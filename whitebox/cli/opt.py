"""`whitebox opt`: run passes over model files and see, or write, what comes out.

Several files become one graph, so what they share shows. Nothing is registered or compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.files import write_whole
from whitebox.cli.text import count
from whitebox.errors import InvalidInput

if TYPE_CHECKING:
    from whitebox.ir.graph import Graph
    from whitebox.passes import Pass, PassReport


def run(
    files: Annotated[list[Path], typer.Argument(help="ONNX files.")],
    passes: Annotated[
        str, typer.Option(help="Passes to run, in this order, with commas between.")
    ] = "share,fold,simplify,verify",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write an ONNX file; do not print the graph."),
    ] = None,
) -> None:
    """Run optimization passes over ONNX files.

    Prints the resulting graph, or writes it as ONNX; what each pass did goes to stderr.

    \b
    Examples:
      whitebox opt model.onnx -o smaller.onnx
      whitebox opt a.onnx b.onnx --passes share,fold,simplify,layout,fuse
      WHITEBOX_DEBUG=3 whitebox opt model.onnx --passes fold
    """
    from whitebox.passes import optimize

    chosen = _choose(passes)
    reports: list[PassReport] = []
    graph = optimize(_read(files), chosen, reports)
    for report in reports:
        typer.echo(_summary(report), err=True)
    if output is None:
        typer.echo(str(graph))
    else:
        _write(graph, output)


def _choose(given: str) -> list[Pass]:
    from whitebox.compiler.supported import lowerable
    from whitebox.compiler.target import host_target
    from whitebox.passes import pass_name, passes_for, share

    passes = passes_for(host_target(), lowerable)
    known = {pass_name(each): each for each in (share, *passes)}
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InvalidInput(f"there is no pass '{name}': choose from {', '.join(known)}")
    return [known[name] for name in names]


def _read(files: Sequence[Path]) -> Graph:
    """The union of all files; each is a model named after its file."""
    from whitebox.ir.onnx_io import load

    graph: Graph | None = None
    for file in files:
        one = load(file)
        if graph is not None and one.models.keys() & graph.models.keys():
            raise InvalidInput(f"two files are named {file.stem}: rename one of them")
        graph = one if graph is None else graph.merge(one)
    assert graph is not None  # the command line asks for at least one file
    return graph


def _write(graph: Graph, file: Path) -> None:
    from whitebox.ir.onnx_io import dump

    if len(graph.models) != 1:
        raise InvalidInput(f"an ONNX file holds one model, not {len(graph.models)}: give one FILE")
    write_whole(file, dump(graph).SerializeToString())


def _summary(report: PassReport) -> str:
    return (
        f"{report.name:10} {report.nodes_before:5} → {count(report.nodes_after, 'node')}, "
        f"{count(len(report.decisions), 'decision')}, {report.seconds * 1e3:.1f} ms"
    )
