"""Several models as one: the graph of a pipeline.

Enter: a Pipeline, and the graph of the model of each model step. Leave: a Graph with one model, in
which a step's outputs are the very nodes that the next one reads; so passes see across the border,
and what two steps have in common is there once. An InvalidPipeline names the step that does not fit
and what would. Nothing is looked up or computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple, NoReturn

from whitebox.errors import InvalidModel, InvalidPipeline
from whitebox.ir import ops
from whitebox.ir.combine import combined, fit
from whitebox.ir.dims import APART, Dims, apart
from whitebox.ir.graph import INPUT, Graph, Model, Node, input_node
from whitebox.ir.pipeline import Combiner, ModelStep, Pipeline, suggestion
from whitebox.ir.shapes.rule import Misfit
from whitebox.ir.types import Dim, TensorType, Type, with_dims

_ZIP_MAP = "ai.onnx.ml.ZipMap"


class Source(NamedTuple):
    """What is read: an output of a step ("" of a combiner), or an input where `step` is None."""

    step: str | None
    name: str

    def __str__(self) -> str:
        return ".".join(filter(None, self))


def compose(pipeline: Pipeline, name: str, parts: Mapping[str, Graph]) -> Graph:
    """The pipeline as the model `name`. `parts` holds the graph of each model step's model."""
    wiring = _Wiring(pipeline, parts)
    types = _Types(wiring)
    nodes = _Nodes(wiring, types)
    model = Model(
        name,
        tuple((each, nodes.found[Source(None, each)]) for each in wiring.inputs),
        tuple((each, nodes.found[source]) for each, source in wiring.outputs.items()),
    )
    return Graph([model], nodes.names)


class _Wiring:
    """Who reads what: every name looked up, steps in order of computation."""

    def __init__(self, pipeline: Pipeline, parts: Mapping[str, Graph]) -> None:
        self.pipeline = pipeline
        self.models = {step: graph.model for step, graph in parts.items()}
        self.parts = parts
        self.inputs = self._inputs()
        # Of each step, in the order of its model's inputs or of what it combines.
        self.reads: dict[str, list[Source]] = {step: self._reads(step) for step in pipeline.steps}
        self.outputs = {
            name: self._source(text, "outputs", name) for name, text in pipeline.outputs.items()
        }
        self.order = self._order()
        self._check_all_is_read()

    def fail(self, message: str, *path: str | int) -> NoReturn:
        raise InvalidPipeline(f"{self.pipeline.place(*path)}: {message}")

    def _inputs(self) -> list[str]:
        """The declared inputs, or else what the models read and nothing is said of."""
        declared, steps = self.pipeline.inputs, self.pipeline.steps
        free: dict[str, str] = {}
        for name, step in steps.items():
            if not isinstance(step, ModelStep):
                continue
            known = [each for each, _ in self.models[name].inputs]
            for each in step.inputs:
                if each not in known:
                    self.fail(
                        f"{step.model} has no input {each!r}: {suggestion(each, known)}",
                        "steps", name, "inputs", each,
                    )  # fmt: skip
            free.update((each, name) for each in reversed(known) if each not in step.inputs)
        if declared is None:
            names = [each for step in steps for each, owner in free.items() if owner == step]
        else:
            names = list(declared)
            for each, owner in free.items():
                if each not in names:
                    self.fail(
                        f"its input {each!r} reads nothing: say what under its inputs, or declare "
                        f"{each!r} as an input of the pipeline", "steps", owner,
                    )  # fmt: skip
        for each in names:
            if each in steps or names.count(each) > 1:
                self.fail(f"two things are called {each!r}: rename one", "inputs")
        return names

    def _reads(self, name: str) -> list[Source]:
        step = self.pipeline.steps[name]
        if not isinstance(step, ModelStep):
            return [self._source(text, "steps", name) for text in step.reads]
        return [
            self._source(step.inputs[each], "steps", name, "inputs", each)
            if each in step.inputs
            else Source(None, each)
            for each, _ in self.models[name].inputs
        ]

    def _source(self, text: str, *path: str | int) -> Source:
        """What "input", "step" or "step.output" names."""
        if text in self.inputs:
            return Source(None, text)
        step, dot, output = text.partition(".")
        if step not in self.pipeline.steps:
            known = [*self.inputs, *self.pipeline.steps]
            self.fail(f"there is no input or step {step!r}: {suggestion(text, known)}", *path)
        if step not in self.models:
            if dot:
                self.fail(f"step {step!r} has one output: write {step!r}, not {text!r}", *path)
            return Source(step, "")
        outputs = [each for each, _ in self.models[step].outputs]
        if not dot and len(outputs) == 1:
            return Source(step, outputs[0])
        full = [f"{step}.{each}" for each in outputs]
        if not dot:
            self.fail(f"step {step!r} has several outputs: write {' or '.join(full)}", *path)
        if output not in outputs:
            self.fail(f"there is no output {text!r}: {suggestion(text, full)}", *path)
        return Source(step, output)

    def _order(self) -> list[str]:
        before = {step: [s.step for s in reads if s.step] for step, reads in self.reads.items()}
        try:
            return list(TopologicalSorter(before).static_order())
        except CycleError as error:
            cycle = error.args[1]
            self.fail(f"the steps read each other: {' → '.join(cycle)}", "steps", cycle[0])

    def _check_all_is_read(self) -> None:
        reached, pending = set(self.outputs.values()), list(self.outputs.values())
        while pending:
            step = pending.pop().step
            fresh = [source for source in self.reads.get(step or "", ()) if source not in reached]
            reached.update(fresh)
            pending += fresh
        for step in self.pipeline.steps:
            if all(source.step != step for source in reached):
                self.fail("no output depends on it: add it to outputs, or remove it", "steps", step)
        for name in self.inputs:
            if Source(None, name) not in reached:
                self.fail(f"nothing reads the input {name!r}: remove it", "inputs")


class _Types:
    """What type everything read has, free dimensions of all models made one where they meet."""

    def __init__(self, wiring: _Wiring) -> None:
        self._wiring = wiring
        self._dims = Dims()
        self._known: dict[Source, Type] = {}
        for step, model in wiring.models.items():
            for (name, node), source in zip(model.inputs, wiring.reads[step], strict=True):
                if source.step is None:
                    self._flow(step, name, source, apart(node.type, step))
        for name in wiring.inputs:
            if Source(None, name) not in self._known:
                wiring.fail(f"the type of input {name!r} is open: no model reads it", "inputs")
        for step in wiring.order:
            self._infer(step)

    def of(self, source: Source) -> Type:
        """The type of a source, as far as all its readers tell it."""
        return self._dims.resolved(self._known[source])

    def _flow(self, step: str, name: str, source: Source, expected: Type) -> None:
        """A source goes to an input of a model."""
        known = self._known.setdefault(source, expected)
        try:
            self._dims.flow(known, expected)
        except Misfit as misfit:
            self._wiring.fail(
                f"its input {name!r} reads '{source}', which {misfit}",
                "steps", step, "inputs", name,
            )  # fmt: skip
        if source.step is None:
            self._known[source] = self._dims.meet(known, expected)

    def _infer(self, step: str) -> None:
        wiring, what = self._wiring, self._wiring.pipeline.steps[step]
        if isinstance(what, ModelStep):
            model = wiring.models[step]
            for (name, node), source in zip(model.inputs, wiring.reads[step], strict=True):
                if source.step is not None:
                    self._flow(step, name, source, apart(node.type, step))
            for name, node in model.outputs:
                self._known[Source(step, name)] = apart(node.type, step)
            return
        try:
            types = self._operands(what, wiring.reads[step])
            fit(what, types, self._dims)
            resolved = [self._dims.resolved(type) for type in types]
            stand_ins = [input_node(index, type) for index, type in enumerate(resolved)]
            self._known[Source(step, "")] = combined(what, stand_ins).type
        except (Misfit, InvalidModel) as error:
            wiring.fail(str(error), "steps", step)

    def _operands(self, step: Combiner, sources: Sequence[Source]) -> list[TensorType]:
        """The types that a combiner reads. Raises Misfit when one is no tensor."""
        types: list[TensorType] = []
        keys = set()
        for text, source in zip(step.reads, sources, strict=True):
            type = self._known[source]
            if source.step in self._wiring.models and not isinstance(type, TensorType):
                node = dict(self._wiring.models[source.step].outputs)[source.name]
                if node.op == _ZIP_MAP:
                    keys.add(tuple(node.attrs.items()))
                    type = apart(tensor_of(node).type, source.step)
            if not isinstance(type, TensorType):
                raise Misfit(f"{text!r} is a {self._dims.resolved(type)}: only tensors combine")
            types.append(type)
        if len(keys) > 1:
            raise Misfit("what it reads are maps of different classes: they have no common columns")
        return types


class _Nodes:
    """The nodes that compute everything."""

    def __init__(self, wiring: _Wiring, types: _Types) -> None:
        self.found: dict[Source, Node] = {}
        self.names: dict[Node, str] = {}
        self._symbols: dict[str, str] = {}
        for position, name in enumerate(wiring.inputs):
            type = with_dims(types.of(Source(None, name)), self._symbol)
            self.found[Source(None, name)] = input_node(position, type)
        for step in wiring.order:
            operands = [self.found[source] for source in wiring.reads[step]]
            what = wiring.pipeline.steps[step]
            try:
                if isinstance(what, ModelStep):
                    self._place(step, wiring.parts[step], operands)
                else:
                    self.found[Source(step, "")] = combined(what, [*map(tensor_of, operands)])
            except InvalidModel as error:
                wiring.fail(f"does not take what it is given: {error}", "steps", step)

    def _place(self, step: str, part: Graph, operands: Sequence[Node]) -> None:
        """Put a model where its inputs are these nodes."""

        def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
            if node.op == INPUT:
                position: int = node.attr("position")
                return operands[position]
            return ops.rewire(node, inputs)

        placed = part.map(build)
        for name, node in placed.model.outputs:
            self.found[Source(step, name)] = node
        for node, name in placed.names.items():
            self.names.setdefault(node, f"{step}/{name}")

    def _symbol(self, dim: Dim) -> Dim:
        """What a free dimension is called: as its model does, unless another one is called so."""
        if not isinstance(dim, str):
            return dim
        if dim not in self._symbols:
            plain = base = dim.partition(APART)[2]
            taken, count = set(self._symbols.values()), 1
            while plain in taken:
                count += 1
                plain = f"{base}_{count}"
            self._symbols[dim] = plain
        return self._symbols[dim]


def tensor_of(node: Node) -> Node:
    """The scores that a ZipMap spells as maps; any other node as it is."""
    source = node.inputs[0] if node.op == _ZIP_MAP else node
    assert source is not None
    return source
