"""prepare: from an imported graph and input shapes to something that runs.

structure → specialize → passes → plan → kernels in the cache → executable. The plan is kept on
disk under the digest of the structure, the precision and the shapes, so only the first model of an
architecture, and only its first time at a shape, runs any pass.

A structure with free dimensions also has a *family*: kernels that serve every size. With it a plan
for a new shape is *general*, and compiles only what the family does not cover.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from whitebox.compiler.build import BuildReport, KernelBuilder, Progress
from whitebox.compiler.cache import KernelCache, kernel_key, pipeline_version, write_atomically
from whitebox.compiler.families import Family, generalizations, probes
from whitebox.compiler.structure import give_weights, take_weights
from whitebox.compiler.supported import lowerable, serves_free_sizes
from whitebox.compiler.target import Target
from whitebox.errors import InvalidInput, StorageError, WhiteboxError
from whitebox.ir import onnx_schema, serial
from whitebox.ir.graph import Graph, Tensor
from whitebox.ir.types import TensorType
from whitebox.passes import PRECISIONS, PassReport, optimize, passes_for, specialize
from whitebox.runtime.background import Background
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
        # For what nobody waits for.
        self.patient = KernelBuilder(self.cache, target, workers=1, niceness=10)
        self.background = Background()
        self._families: dict[Path, Family] = {}
        self.library = KernelLibrary(self.cache, target.threads)
        self.parameters = parameters
        self._plans = home / "plans"

    def compile(
        self,
        model: Structured,
        shapes: Shapes,
        progress: Progress | None = None,
        *,
        patiently: bool = False,
    ) -> tuple[Plan | None, BuildReport]:
        """The plan made for these shapes, its kernels built; None when memory cannot be planned.

        What is built `patiently` leaves the cores to others.
        """
        builder = self.patient if patiently else self.builder
        return self._planned(model, shapes, None, builder, progress)

    def answer(self, model: Structured, shapes: Shapes) -> tuple[Plan | None, BuildReport]:
        """The plan at these shapes that is ready first: one made for them, else a general one."""
        plan = self._stored(self._plan_path(model, shapes))
        if plan is not None:
            return plan, BuildReport(0, len(plan.kernels), 0.0)
        return self._planned(model, shapes, self.family(model), self.builder, None)

    def _planned(
        self,
        model: Structured,
        shapes: Shapes,
        family: Family | None,
        builder: KernelBuilder,
        progress: Progress | None,
    ) -> tuple[Plan | None, BuildReport]:
        self.builder.interpreter()
        path = self._plan_path(model, shapes, "" if family is None else "general")
        plan = self._stored(path)
        if plan is not None:
            return plan, BuildReport(0, len(plan.kernels), 0.0)
        try:
            graph = self.optimized(model, shapes, general=family is not None)
            planned = make_plan(graph, self.target, family=family)
        except DataDependentShape:
            return None, NOTHING_BUILT
        report = builder.build(planned.bodies, progress)
        if report.failures:
            # Slower, but right. Not kept: the next process may have better luck.
            return make_plan(graph, self.target, report.failures, family).plan, report
        write_atomically(path, encode_plan(planned.plan))
        return planned.plan, report

    def family(self, model: Structured) -> Family | None:
        """The kernels of a structure that serve every size; None before `generalize`."""
        path = self._plan_path(model, {}, "family")
        known = self._families.get(path)
        if known is None:
            try:
                data = path.read_bytes()
                bodies = [serial.decode(body, _no_weights) for body in msgspec.msgpack.decode(data)]
            except (OSError, StorageError, msgspec.DecodeError):
                return None
            known = self._families[path] = Family(bodies)
        return known

    def generalize(self, model: Structured, progress: Progress | None = None) -> BuildReport:
        """Compile the kernels of a structure that serve every size, unless that has been done."""
        known = self.family(model)
        if known is not None:
            return BuildReport(0, len(known.bodies), 0.0)
        inputs = [(name, node.type) for name, node in model.structure.model.inputs]
        return self.learn(model, probes(inputs), progress)

    def learn(
        self,
        model: Structured,
        pairs: Iterable[tuple[Shapes, Shapes]],
        progress: Progress | None = None,
    ) -> BuildReport:
        """Compile what serves every size, as far as pairs of shapes show what varies."""
        self.builder.interpreter()
        family, fixed = Family(), {}
        for pair in pairs:
            try:
                first, second = (
                    fused_bodies(self.optimized(model, shapes, general=True)) for shapes in pair
                )
            except WhiteboxError:
                continue  # sizes that the model does not take
            for body in generalizations(first, second):
                if serves_free_sizes(body):
                    family.add(body)
            # What is the same at both sizes is the same at others.
            same = {body.digest for body in second}
            fixed.update({kernel_key(b, self.target): b for b in first if b.digest in same})
        keys = {kernel_key(body, self.target): body for body in family.bodies}
        report = self.builder.build({**keys, **fixed}, progress)
        bodies = [body for key, body in keys.items() if key not in report.failures]
        path = self._plan_path(model, {}, "family")
        self._families[path] = Family(bodies)
        data = msgspec.msgpack.encode([serial.encode(body) for body in bodies])
        write_atomically(path, data)
        return report

    def optimized(
        self,
        model: Structured,
        shapes: Shapes,
        reports: list[PassReport] | None = None,
        *,
        general: bool = False,
    ) -> Graph:
        """The fused graph at these shapes; a `general` one is made for a family's kernels."""
        passes = passes_for(self.target, lowerable, model.precision, general=general)
        return optimize(specialize(model.structure, dict(shapes)), passes, reports)

    def bind(
        self, model: Structured, shapes: Shapes, plan: Plan | None, engine: Engine
    ) -> Runnable:
        """Something that runs the model at these shapes by a plan; by the host without one."""
        if plan is None:
            graph = specialize(give_weights(model.structure, model.weights), dict(shapes))
            return HostExecutable(graph, "a shape inside depends on the data")
        values = self.parameters.resolve(parameter_graph(plan, model.weights))
        interpret = self.library.function(self.builder.interpreter())
        return Executable(plan, values, self.library.function, interpret, engine.device)

    def _plan_path(self, model: Structured, shapes: Shapes, kind: str = "") -> Path:
        parts = [model.structure.digest, model.precision, self.target.key, pipeline_version(), kind]
        parts += [f"{name}={'x'.join(map(str, dims))}" for name, dims in sorted(shapes.items())]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
        return self._plans / digest[:2] / f"{digest}.plan"

    def _stored(self, path: Path) -> Plan | None:
        """The stored plan, when its kernels are there; a damaged one is dropped."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            plan = decode_plan(data)
        except msgspec.DecodeError:
            path.unlink(missing_ok=True)
            return None
        return plan if all(self.cache.has(key) for key in plan.kernels) else None

    def close(self) -> None:
        """Stop the compile workers, finish writing."""
        self.builder.close()
        self.patient.abandon()
        self.background.close()
        self.parameters.close()


def fused_bodies(graph: Graph) -> list[Graph]:
    """The bodies of a fused graph's kernels, in order of execution."""
    return [node.attr("body") for node in graph.nodes if node.op == "whitebox.Fused"]


def _no_weights(digest: str, type: TensorType) -> Tensor:
    raise StorageError(f"a stored kernel body refers to the weights {digest}")
