"""making: what happens the first time an architecture is met, or a shape.

structure → specialize → passes → plan → kernels in the cache, all kept for later. Imported when
something has to be made, and only then: a process that finds its plans loads neither the passes nor
ONNX.

A structure with free dimensions also has a *family*: kernels that serve every size. With it a plan
for a new shape is *general*, and compiles only what the family does not cover.
"""

from __future__ import annotations

from collections.abc import Iterable

from whitebox.compiler.build import BuildReport, KernelBuilder, Progress
from whitebox.compiler.cache import kernel_key
from whitebox.compiler.families import Family, generalizations, probes
from whitebox.compiler.structure import Structured
from whitebox.compiler.supported import lowerable, serves_free_sizes
from whitebox.compiler.target import Target
from whitebox.errors import StorageError, WhiteboxError
from whitebox.ir import serial
from whitebox.ir.graph import Graph, Model, Tensor
from whitebox.ir.types import TensorType
from whitebox.passes import PassReport, optimize, passes_for, specialize
from whitebox.runtime.plan import Plan
from whitebox.runtime.planner import DataDependentShape, make_plan
from whitebox.runtime.plans import GENERAL, OWN, PlanFolder, Shapes

NOTHING_BUILT = BuildReport(0, 0, 0.0)


class Maker:
    """Makes plans and families for one target."""

    def __init__(self, target: Target, plans: PlanFolder) -> None:
        self._target = target
        self._plans = plans
        self._families: dict[tuple[str, str], Family] = {}

    def plan(
        self,
        model: Structured,
        shapes: Shapes,
        builder: KernelBuilder,
        family: Family | None = None,
        progress: Progress | None = None,
    ) -> tuple[Plan | None, BuildReport]:
        """A plan, its kernels built; None when memory cannot be planned. General with a family."""
        graph = self.optimized(model, shapes, general=family is not None)
        try:
            plan, report = self._planned(graph, builder, family, progress)
        except DataDependentShape:
            return None, NOTHING_BUILT
        if not report.failures:
            self._plans.keep_plan(model, shapes, OWN if family is None else GENERAL, plan)
        return plan, report

    def stage_plan(
        self, stage: Structured, kind: str, builder: KernelBuilder, family: Family | None
    ) -> Plan:
        """The plan of a part of fused graphs."""
        plan, report = self._planned(stage.structure.graph, builder, family)
        if not report.failures:
            self._plans.keep_plan(stage, {}, kind, plan)
        return plan

    def _planned(
        self,
        graph: Graph,
        builder: KernelBuilder,
        family: Family | None,
        progress: Progress | None = None,
    ) -> tuple[Plan, BuildReport]:
        """The plan of a fused graph, its kernels built."""
        planned = make_plan(graph, self._target, family=family)
        report = builder.build(planned.bodies, progress)
        if report.failures:
            # Slower, but right. Nobody keeps it: the next process may have better luck.
            return make_plan(graph, self._target, report.failures, family).plan, report
        return planned.plan, report

    def fused(self, model: Structured, shapes: Shapes, *, general: bool) -> Graph:
        """The fused graph behind a plan, with the model's weights in place."""
        kind = GENERAL if general else OWN
        stored = self._plans.fused(model, shapes, kind)
        if stored is not None:
            try:
                return _filled(stored, model)
            except StorageError:
                pass  # damaged: made again
        graph = self.optimized(model, shapes, general=general)
        stored = serial.encode(graph, inline_limit=1 << 62)
        self._plans.keep_fused(model, shapes, kind, stored)
        return _filled(stored, model)

    def family(self, model: Structured) -> Family | None:
        """The kernels of a structure that serve every size; None before `generalize`."""
        key = (model.digest, model.precision)
        known = self._families.get(key)
        if known is None:
            stored = self._plans.family(model)
            if stored is None:
                return None
            try:
                bodies = [serial.decode(body, _no_weights) for body in stored]
            except StorageError:
                return None
            known = self._families[key] = Family(bodies)
        return known

    def generalize(
        self, model: Structured, builder: KernelBuilder, progress: Progress | None = None
    ) -> BuildReport:
        """Compile the kernels of a structure that serve every size."""
        inputs = [(name, node.type) for name, node in model.structure.graph.model.inputs]
        return self.learn(model, probes(inputs), builder, progress)

    def learn(
        self,
        model: Structured,
        pairs: Iterable[tuple[Shapes, Shapes]],
        builder: KernelBuilder,
        progress: Progress | None = None,
    ) -> BuildReport:
        """Compile what serves every size, as far as pairs of shapes show what varies."""
        family = Family()
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
            for body in first:
                if body.digest in same:
                    family.add(body)
        keys = {kernel_key(body, self._target): body for body in family.bodies}
        report = builder.build(keys, progress)
        bodies = [body for key, body in keys.items() if key not in report.failures]
        self._families[model.digest, model.precision] = Family(bodies)
        self._plans.keep_family(model, [serial.encode(body) for body in bodies])
        return report

    def outside_family(self, model: Structured, shapes: Shapes) -> list[Graph]:
        """The bodies at these shapes that a general plan compiles for them alone."""
        family = self.family(model)
        if family is None or not family.bodies:
            return []
        bodies = fused_bodies(self.optimized(model, shapes, general=True))
        return [body for body in bodies if family.find(body) is None]

    def optimized(
        self,
        model: Structured,
        shapes: Shapes,
        reports: list[PassReport] | None = None,
        *,
        general: bool = False,
    ) -> Graph:
        """The fused graph at these shapes; a `general` one is made for a family's kernels."""
        passes = passes_for(self._target, lowerable, model.precision, general=general)
        return optimize(specialize(model.structure.graph, dict(shapes)), passes, reports)


def _filled(stored: bytes, model: Structured) -> Graph:
    """A stored fused graph with a model's weights and names: it may be another's of its structure.

    Raises StorageError when it is damaged.
    """
    fused = serial.decode(stored, _no_weights, model.weights).model
    inputs, outputs = (
        tuple((name, node) for name, (_, node) in zip(names, ends, strict=True))
        for names, ends in zip(model.structure.names, (fused.inputs, fused.outputs), strict=True)
    )
    return Graph([Model("", inputs, outputs)])


def fused_bodies(graph: Graph) -> list[Graph]:
    """The bodies of a fused graph's kernels, in order of execution."""
    return [node.attr("body") for node in graph.nodes if node.op == "whitebox.Fused"]


def _no_weights(digest: str, type: TensorType) -> Tensor:
    raise StorageError(f"a stored kernel body refers to the weights {digest}")
