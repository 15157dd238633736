"""Pipelines of registered models: which versions they are made of, and their graph.

Enter: a pipeline's description and the registry. Leave: a graph that can be registered like any
other, with a note of the versions it was made from. Nothing is registered or compiled here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whitebox.errors import InvalidName, InvalidPipeline, ModelNotFound
from whitebox.ir.compose import compose
from whitebox.ir.graph import Graph
from whitebox.ir.pipeline import ModelStep, Pipeline, read_pipeline
from whitebox.registry import Registry
from whitebox.registry.records import ModelRecord, validate_name


@dataclass(frozen=True)
class Composed:
    """The graph of a pipeline, the precision of its parts, and which versions they are."""

    graph: Graph
    precision: str
    parts: Mapping[str, str]


def composed(
    registry: Registry, spec: str | Path | bytes | Mapping[str, Any], name: str | None
) -> Composed:
    """The pipeline over the models of a registry.

    Raises InvalidPipeline, ModelNotFound, InvalidName or StorageError.
    """
    pipeline = read_pipeline(spec)
    chosen = name if name is not None else pipeline.name
    if chosen is None:
        if not isinstance(spec, str | Path):
            raise InvalidName("give a name: a pipeline that is not a file has none of its own")
        chosen = Path(spec).stem
    validate_name(chosen)
    records = {
        step: _record(registry, pipeline, step, what.model)
        for step, what in pipeline.steps.items()
        if isinstance(what, ModelStep)
    }
    graphs = {step: registry.graph(record) for step, record in records.items()}
    return Composed(
        compose(pipeline, chosen, graphs),
        _precision(pipeline, records),
        {step: f"{record.name}@{record.version}" for step, record in records.items()},
    )


def _record(registry: Registry, pipeline: Pipeline, step: str, model: str) -> ModelRecord:
    """The record of NAME or NAME@VERSION; of the newest version where none is given."""
    place = pipeline.place("steps", step, "model")
    name, at, version = model.partition("@")
    if at and not (version.isascii() and version.isdigit()):
        raise InvalidPipeline(f"{place}: write NAME or NAME@VERSION, not {model!r}")
    try:
        return registry.get(name, int(version) if at else None)
    except ModelNotFound as error:
        raise ModelNotFound(f"{place}: {error}") from error


def _precision(pipeline: Pipeline, records: Mapping[str, ModelRecord]) -> str:
    """The one precision of all parts."""
    found = {record.precision: step for step, record in records.items()}
    if len(found) > 1:
        (one, first), (other, second) = sorted(found.items())
        raise InvalidPipeline(
            f"{pipeline.place('steps', second)}: its model is in {other} and that of step "
            f"{first!r} in {one}; register both in one precision"
        )
    return next(iter(found), "f32")
