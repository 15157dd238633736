"""The home a command works on, opened as far as the command needs.

What enters: the command's context. What leaves: a Registry (light: no compiler, no kernels) or a
Runtime (everything). Imports stay inside the functions, so that a command pays for what it uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from whitebox.registry import ModelInfo, Registry
    from whitebox.runtime.runtime import Runtime


def home_of(context: typer.Context) -> Path:
    """The home folder, from --home or the environment."""
    home = context.obj
    assert isinstance(home, Path)
    return home


def open_registry(context: typer.Context) -> Registry:
    """The models on disk."""
    from whitebox.registry import Registry

    return Registry(home_of(context))


def open_runtime(context: typer.Context, **options: Any) -> Runtime:
    """The models, ready to run; the options are those of `Runtime`."""
    from whitebox.runtime.runtime import Runtime

    return Runtime(home_of(context), **options)


def find_model(registry: Registry, name: str, version: int | None = None) -> ModelInfo:
    """One version of a model (the newest by default). Raises ModelNotFound."""
    from whitebox.registry import ModelInfo

    record = registry.get(name, version)
    versions = [known.version for known in registry.list() if known.name == name]
    return ModelInfo.of(record, versions)
