"""Composites: several models on one input, what they share computed once.

The fused graphs of the models are cut into stages (compiler/partition.py): a shared one, and one
for each model. Stages are kept, so that another choice of models with the same encoder finds that
encoder's stage ready. The answers are those of each model alone, to the last bit: the same kernels
run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from whitebox.compiler.families import Family
from whitebox.compiler.partition import Stage, partition
from whitebox.errors import InvalidInput
from whitebox.ir.graph import Graph, Node, input_node
from whitebox.runtime.device import Arena
from whitebox.runtime.engine import Engine, Runnable
from whitebox.runtime.executable import Executable
from whitebox.runtime.prepare import HostExecutable, Preparer
from whitebox.runtime.served import ServedModel, is_general

# Composites and stages that are kept, the least recently used of them dropped first. To make one
# again takes milliseconds.
MAX_COMPOSITES = 256
MAX_STAGES = 1024

Key = TypeVar("Key")
Value = TypeVar("Value")


class Together:
    """A request to several models on one input, checked. Raises InvalidInput.

    A feed goes to every model with an input of its name; `outputs` names those wanted of each model
    that has them (None: all).
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None,
    ) -> None:
        if not models:
            raise InvalidInput("a request to several models names none; name at least one")
        self.models = tuple(models)
        self.shapes: dict[str, tuple[int, ...]] = {}
        found: dict[str, Any] = {}
        for model in dict.fromkeys(models):
            self._take(model, feeds, found)
        unknown = [name for name in feeds if name not in found]
        if unknown:
            raise InvalidInput(
                f"none of these models has an input {unknown[0]!r}; they have {', '.join(found)}"
            )
        self.names, self.values = tuple(found), list(found.values())
        self._wanted = [_wanted(model, outputs) for model in models]
        known = {name for model in models for name in model.output_names}
        for name in outputs or ():
            if name not in known:
                raise InvalidInput(
                    f"none of these models has an output {name!r}; they have {', '.join(known)}"
                )

    def _take(self, model: ServedModel, feeds: Mapping[str, Any], found: dict[str, Any]) -> None:
        """Check a model's own feeds, and see that it agrees with the others about them."""
        names = {spec.name for spec in model.inputs}
        values, shapes = model.check({name: feeds[name] for name in feeds if name in names})
        for spec, value in zip(model.inputs, values, strict=True):
            known = found.setdefault(spec.name, value)
            if getattr(known, "dtype", None) != getattr(value, "dtype", None):
                raise InvalidInput(
                    f"model {model.name} takes {spec.name!r} as {spec.type}, another of these as "
                    f"{known.dtype}; ask them one at a time"
                )
        self.shapes.update(shapes)

    def shapes_of(self, model: ServedModel) -> dict[str, tuple[int, ...]]:
        """The shapes of a model's own inputs."""
        return {s.name: self.shapes[s.name] for s in model.inputs if s.name in self.shapes}

    def named(self, results: Sequence[Any]) -> list[dict[str, Any]]:
        """The results of a composite of the models, as one dict a model."""
        answers, at = [], 0
        for model, wanted in zip(self.models, self._wanted, strict=True):
            answers.append({model.output_names[i]: results[at + i] for i in wanted})
            at += len(model.outputs)
        return answers


def _wanted(model: ServedModel, outputs: Sequence[str] | None) -> list[int]:
    """The positions of those outputs of a model that are asked for."""
    if outputs is None:
        return list(range(len(model.outputs)))
    wanted = [model.output_names.index(name) for name in outputs if name in model.output_names]
    if not wanted:
        raise InvalidInput(
            f"model {model.name} has none of the outputs asked for; it has "
            f"{', '.join(model.output_names)}"
        )
    return wanted


@dataclass(frozen=True)
class Call:
    """One call of a composite: `work` on the values in the slots `reads`, results in `writes`."""

    work: Runnable
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    @property
    def run(self) -> Callable[[Sequence[Any], Arena], list[Any]]:
        """The shortest way to run it: between stages go arrays of exactly their types."""
        work = self.work
        return work.run_plain if isinstance(work, Executable) and work.is_plain else work.run


class Composite:
    """Several models at one set of input shapes; it runs like one.

    `inputs` are the composite's inputs, in the first slots; `outputs` the slots of the outputs of
    all models, one model after the other.
    """

    def __init__(self, calls: Sequence[Call], inputs: int, outputs: Sequence[int]) -> None:
        self.calls = tuple(calls)
        self._runs = [(call.run, call.reads, call.writes) for call in calls]
        self._slots = 1 + max((slot for call in calls for slot in call.writes), default=inputs)
        self._outputs = tuple(outputs)
        # Who gets an answer may write into it, which nobody else shall see.
        self._copied = [
            slot < inputs or slot in self._outputs[:i] for i, slot in enumerate(self._outputs)
        ]

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[Any]:
        """The outputs for the inputs, in order."""
        values: list[Any] = [
            np.require(value, requirements="C") if isinstance(value, np.ndarray) else value
            for value in inputs
        ]
        values += [None] * (self._slots - len(values))
        for run, reads, writes in self._runs:
            results = run([values[slot] for slot in reads], arena)
            for slot, result in zip(writes, results, strict=True):
                values[slot] = result
        return [
            values[slot].copy() if copied and isinstance(values[slot], np.ndarray) else values[slot]
            for slot, copied in zip(self._outputs, self._copied, strict=True)
        ]


class _Recent(Generic[Key, Value]):
    """A bounded mapping that drops what was used least recently. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def keep(self, wanted: Callable[[Key, Value], bool]) -> None:
        """Drop the rest."""
        with self._lock:
            for key in [k for k, value in self._items.items() if not wanted(k, value)]:
                del self._items[key]

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            while len(self._items) > self._most:
                self._items.popitem(last=False)


class Composer:
    """Makes composites, and keeps what is in use. Thread-safe."""

    def __init__(self, preparer: Preparer, engine: Engine) -> None:
        self._preparer = preparer
        self._engine = engine
        # By what each model alone would run, and the inputs in order.
        self._composites: _Recent[tuple[Any, ...], Composite] = _Recent(MAX_COMPOSITES)
        self._stages: _Recent[tuple[str, bool], Runnable] = _Recent(MAX_STAGES)
        self._making = threading.Lock()

    def find(self, asked: Together) -> Composite | None:
        """The composite that answers a request, if there is one."""
        works = tuple(model.find(asked.shapes_of(model)) for model in asked.models)
        return self._composites.get((works, asked.names))

    def ready(self, asked: Together) -> Composite:
        """The composite that answers a request, made if need be. May compile."""
        # What each model alone would run: a composite is for these, and made anew after them.
        works = tuple(
            model.ready(asked.shapes_of(model), self._preparer, self._engine)
            for model in asked.models
        )
        with self._making:
            found = self._composites.get((works, asked.names))
            if found is None:
                found = self._make(asked, works)
                self._composites.put((works, asked.names), found)
            return found

    def forget(self, works: Iterable[Runnable]) -> None:
        """Drop the composites that were made for these, and the stages that no other uses."""
        gone = set(works)
        calls: set[Runnable] = set()

        def stays(key: tuple[Any, ...], composite: Composite) -> bool:
            if not gone.isdisjoint(key[0]):
                return False
            calls.update(call.work for call in composite.calls)
            return True

        if gone:
            self._composites.keep(stays)
            self._stages.keep(lambda _, stage: stage in calls)

    def _make(self, asked: Together, works: Sequence[Runnable]) -> Composite:
        wiring = _Wiring(asked.names)
        # Models whose kernels serve every size share with one another only.
        sorts: dict[bool, dict[ServedModel, Graph]] = {False: {}, True: {}}
        for model, work in dict(zip(asked.models, works, strict=True)).items():
            if isinstance(work, HostExecutable):
                wiring.add_whole(model, work)
            else:
                general = is_general(work)
                shapes = asked.shapes_of(model)
                graph = self._preparer.maker.fused(model.structured, shapes, general=general)
                sorts[general][model] = wiring.reading(graph)
        for general, graphs in sorts.items():
            parts = partition(list(graphs.values()))
            family = self._family(graphs) if general else None
            for stage in (parts.shared, *parts.own):
                if stage is not None:
                    wiring.add_stage(stage, self._stage(stage, family))
            for model, graph in graphs.items():
                wiring.add_outputs(model, graph)
        return wiring.composite(asked.models)

    def _stage(self, stage: Stage, family: Family | None) -> Runnable:
        key = (stage.graph.digest, family is not None)
        found = self._stages.get(key)
        if found is None:
            found = self._preparer.stage(stage.graph, family, self._engine)
            self._stages.put(key, found)
        return found

    def _family(self, models: Iterable[ServedModel]) -> Family:
        """The kernels of all these models that serve every size."""
        families = (self._preparer.maker.family(model.structured) for model in models)
        return Family(body for family in families if family is not None for body in family.bodies)


class _Wiring:
    """Numbers the values that go between the stages of a composite."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._slots: dict[Node, int] = {}
        self._count = len(names)
        self._calls: list[Call] = []
        self._outputs: dict[ServedModel, list[int]] = {}

    def reading(self, graph: Graph) -> Graph:
        """A model's graph with its inputs at the places that they have in the composite."""
        places = [self._names.index(name) for name, _ in graph.model.inputs]
        moved = {
            node: input_node(place, node.type)
            for place, (_, node) in zip(places, graph.model.inputs, strict=True)
        }
        self._slots.update((node, node.attr("position")) for node in moved.values())
        if all(old is new for old, new in moved.items()):
            return graph
        return graph.map(lambda node, inputs: moved.get(node) or node.with_inputs(inputs))

    def add_whole(self, model: ServedModel, work: Runnable) -> None:
        """A model that cannot be cut."""
        reads = tuple(self._names.index(spec.name) for spec in model.inputs)
        outputs = self._outputs[model] = [self._fresh() for _ in model.outputs]
        self._calls.append(Call(work, reads, tuple(outputs)))

    def add_stage(self, stage: Stage, work: Runnable) -> None:
        reads = tuple(self._slots[node] for node in stage.reads)
        for node in stage.writes:
            self._slots[node] = self._fresh()
        self._calls.append(Call(work, reads, tuple(self._slots[node] for node in stage.writes)))

    def add_outputs(self, model: ServedModel, graph: Graph) -> None:
        self._outputs[model] = [self._slots[node] for _, node in graph.model.outputs]

    def composite(self, models: Sequence[ServedModel]) -> Composite:
        outputs = [slot for model in models for slot in self._outputs[model]]
        return Composite(self._calls, len(self._names), outputs)

    def _fresh(self) -> int:
        self._count += 1
        return self._count - 1
