"""What a command line names: models, groups of them, engines, operators."""

from __future__ import annotations

from collections.abc import Collection

import typer

from benchmarks.catalogue import GROUPS, MODELS


def models(given: str) -> list[str]:
    """Names of models from names and groups with commas between."""
    names = [name for part in given.split(",") for name in GROUPS.get(part, (part,))]
    return known(names, [*GROUPS, *MODELS], "model")


def known(names: list[str], known: Collection[str], kind: str) -> list[str]:
    """The names, when each is known."""
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"no {kind} '{name}'; there are: {', '.join(known)}")
    return names
