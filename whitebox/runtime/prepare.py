"""prepare: from a model and input shapes to something that runs.

The plan is found in `plans`, or made (`making`) and kept there under the digest of the structure,
the precision and the shapes: only the first model of an architecture, and only its first time at a
shape, runs any pass. A plan is bound to the model's weights here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox.compiler.build import BuildReport, KernelBuilder, Progress
from whitebox.compiler.cache import KernelCache
from whitebox.compiler.structure import Structured
from whitebox.compiler.target import Target
from whitebox.ir.graph import Graph, Tensor
from whitebox.runtime.background import Background
from whitebox.runtime.device import Arena
from whitebox.runtime.engine import Engine, Runnable
from whitebox.runtime.executable import Executable
from whitebox.runtime.native import KernelLibrary
from whitebox.runtime.params import ParameterStore
from whitebox.runtime.plan import Plan
from whitebox.runtime.plans import GENERAL, GENERAL_STAGE, STAGE, PlanFolder, Shapes

if TYPE_CHECKING:
    from whitebox.compiler.families import Family
    from whitebox.runtime.making import Maker

# A plan whose kernels touch no more than this runs for some microseconds.
BRIEF_BYTES = 1 << 16

NOTHING_BUILT = BuildReport(0, 0, 0.0)


class HostExecutable:
    """A model whose memory cannot be planned, evaluated node by node with numpy."""

    def __init__(self, graph: Graph, reason: str) -> None:
        self.graph = graph
        self.reason = reason

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[Any]:
        """The outputs for the inputs, in order."""
        from whitebox.ir import onnx_schema

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
        self.library = KernelLibrary(self.cache, target.threads)
        self.parameters = parameters
        self._plans = PlanFolder(home / "plans", target, self.cache)

    @cached_property
    def maker(self) -> Maker:
        """What makes plans; importing it takes longer than a small model takes to load."""
        from whitebox.runtime.making import Maker

        self.builder.interpreter()
        return Maker(self.target, self._plans)

    def stored(self, model: Structured, shapes: Shapes) -> Plan | None:
        """The plan made for these shapes, if there is one."""
        return self._plans.plan(model, shapes)

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
        plan = self.stored(model, shapes)
        if plan is not None:
            return plan, BuildReport(0, len(plan.kernels), 0.0)
        builder = self.patient if patiently else self.builder
        return self.maker.plan(model, shapes, builder, progress=progress)

    def general(self, model: Structured, shapes: Shapes) -> Plan | None:
        """A plan at these shapes by the kernels that serve every size, as far as there are any."""
        plan = self._plans.plan(model, shapes, GENERAL)
        if plan is None:
            family = self.maker.family(model)
            plan, _ = self.maker.plan(model, shapes, self.builder, family)
        return plan

    def general_kernels(self, model: Structured) -> int | None:
        """How many kernels of a structure serve every size; None before `generalize`."""
        known = self._plans.family(model)
        return None if known is None else len(known)

    def generalize(self, model: Structured, progress: Progress | None = None) -> BuildReport:
        """Compile the kernels of a structure that serve every size, unless that has been done."""
        known = self._plans.family(model)
        if known is not None:
            return BuildReport(0, len(known), 0.0)
        return self.maker.generalize(model, self.builder, progress)

    def learn(self, model: Structured, pairs: Iterable[tuple[Shapes, Shapes]]) -> None:
        """Compile what serves every size, as far as pairs of shapes show what varies."""
        self.maker.learn(model, pairs, self.builder)

    def bind(
        self, model: Structured, shapes: Shapes, plan: Plan | None, engine: Engine
    ) -> Runnable:
        """Something that runs the model at these shapes by a plan; by the host without one."""
        if plan is None:
            from whitebox.passes import specialize

            graph = specialize(model.graph, dict(shapes))
            return HostExecutable(graph, "a shape inside depends on the data")
        return self._executable(plan, model.weights, engine)

    def stage(self, graph: Graph, family: Family | None, engine: Engine) -> Executable:
        """What runs a part of fused graphs, their weights in place.

        It calls the kernels of the models that it was cut from. Its plan is kept, for all parts of
        the same structure.
        """
        part = Structured.of(graph, "f32")  # (the precision is in the kernels by now)
        kind = STAGE if family is None else GENERAL_STAGE
        plan = self._plans.plan(part, {}, kind)
        if plan is None:
            plan = self.maker.stage_plan(part, kind, self.builder, family)
        return self._executable(plan, part.weights, engine)

    def _executable(self, plan: Plan, weights: Sequence[Tensor], engine: Engine) -> Executable:
        values = self.parameters.resolve(plan, weights)
        key = self.builder.interpreter()
        brief = plan.touched_bytes <= BRIEF_BYTES
        interpret = self.library.brief(key) if brief else self.library.function(key)
        return Executable(plan, values, self.library.function, interpret, engine.device)

    def close(self) -> None:
        """Stop the compile workers, finish writing."""
        self.builder.close()
        self.patient.abandon()
        self.background.close()
        self.parameters.close()
