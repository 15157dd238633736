"""prepare: from an imported graph and input shapes to something that runs.

structure → specialize → passes → plan → kernels in the cache → executable. The plan is kept on
disk under the digest of the structure, the precision and the shapes, so only the first model of an
architecture, and only its first time at a shape, runs any pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from whitebox.compiler.build import BuildReport, KernelBuilder, Progress
from whitebox.compiler.cache import KernelCache, pipeline_version, write_atomically
from whitebox.compiler.structure import give_weights, take_weights
from whitebox.compiler.supported import lowerable
from whitebox.compiler.target import Target
from whitebox.errors import InvalidInput
from whitebox.ir import onnx_schema
from whitebox.ir.graph import Graph, Tensor
from whitebox.passes import PRECISIONS, PassReport, optimize, passes_for, specialize
from whitebox.runtime.device import Arena
from whitebox.runtime.engine import Engine, Runnable
from whitebox.runtime.executable import Executable
from whitebox.runtime.native import KernelLibrary
from whitebox.runtime.params import ParameterStore
from whitebox.runtime.plan import (
    DataDependentShape,
    Plan,
    decode_plan,
    encode_plan,
    make_plan,
    parameter_graph,
)

Shapes = Mapping[str, tuple[int, ...]]

NOTHING_BUILT = BuildReport(0, 0, 0.0)


@dataclass(frozen=True)
class Structured:
    """A model as the compiler sees it: its structure, the weights to fill in, and a precision."""

    structure: Graph
    weights: tuple[Tensor, ...] = field(repr=False)
    precision: str

    @classmethod
    def of(cls, graph: Graph, precision: str) -> Structured:
        """Raises InvalidInput when there is no such precision."""
        if precision not in PRECISIONS:
            raise InvalidInput(
                f"precision {precision!r} is not available; use one of {', '.join(PRECISIONS)}"
            )
        return cls(*take_weights(graph), precision)


class HostExecutable:
    """A model whose memory cannot be planned, evaluated node by node with numpy."""

    def __init__(self, graph: Graph, reason: str) -> None:
        self.graph = graph
        self.reason = reason

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[Any]:
        """The outputs for the inputs, in order."""
        return list(onnx_schema.evaluate_graph(self.graph, list(inputs)).values())


class Preparer:
    """Everything needed to make executables for one target."""

    def __init__(self, target: Target, home: Path, parameters: ParameterStore) -> None:
        self.target = target
        self.cache = KernelCache(home / "kernels")
        self.builder = KernelBuilder(self.cache, target)
        self.library = KernelLibrary(self.cache, target.threads)
        self.parameters = parameters
        self._plans = home / "plans"

    def compile(
        self, model: Structured, shapes: Shapes, progress: Progress | None = None
    ) -> tuple[Plan | None, BuildReport]:
        """The plan at these shapes, its kernels built; None when memory cannot be planned."""
        self.builder.interpreter()
        path = self._plan_path(model, shapes)
        plan = self._load_plan(path)
        if plan is not None and all(self.cache.has(key) for key in plan.kernels):
            return plan, BuildReport(0, len(plan.kernels), 0.0)
        try:
            graph = self.optimized(model, shapes)
            planned = make_plan(graph, self.target)
        except DataDependentShape:
            return None, NOTHING_BUILT
        report = self.builder.build(planned.bodies, progress)
        if report.failures:
            # Slower, but right. Not kept: the next process may have better luck.
            return make_plan(graph, self.target, report.failures).plan, report
        write_atomically(path, encode_plan(planned.plan))
        return planned.plan, report

    def optimized(
        self, model: Structured, shapes: Shapes, reports: list[PassReport] | None = None
    ) -> Graph:
        """The fused graph at these shapes."""
        passes = passes_for(self.target, lowerable, model.precision)
        return optimize(specialize(model.structure, dict(shapes)), passes, reports)

    def load(
        self,
        model: Structured,
        shapes: Shapes,
        engine: Engine,
        progress: Progress | None = None,
    ) -> tuple[Runnable, BuildReport]:
        """Something that runs the model at these shapes."""
        plan, report = self.compile(model, shapes, progress)
        if plan is None:
            graph = specialize(give_weights(model.structure, model.weights), dict(shapes))
            return HostExecutable(graph, "a shape inside depends on the data"), report
        values = self.parameters.resolve(parameter_graph(plan, model.weights))
        interpret = self.library.function(self.builder.interpreter())
        executable = Executable(plan, values, self.library.function, interpret, engine.device)
        return executable, report

    def _plan_path(self, model: Structured, shapes: Shapes) -> Path:
        parts = [model.structure.digest, model.precision, self.target.key, pipeline_version()]
        parts += [f"{name}={'x'.join(map(str, dims))}" for name, dims in sorted(shapes.items())]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
        return self._plans / digest[:2] / f"{digest}.plan"

    def _load_plan(self, path: Path) -> Plan | None:
        """The stored plan; a damaged one is dropped."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            return decode_plan(data)
        except msgspec.DecodeError:
            path.unlink(missing_ok=True)
            return None

    def close(self) -> None:
        """Stop the compile workers, finish writing."""
        self.builder.close()
        self.parameters.close()
