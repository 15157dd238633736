"""planner: the plan of a fused graph.

Enter: a graph as `passes.optimize` leaves it. Leave: a Plan, and the bodies of the kernels that it
calls. Nothing is compiled or loaded here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from whitebox.compiler.cache import kernel_key
from whitebox.compiler.families import Family
from whitebox.compiler.target import Target
from whitebox.errors import WhiteboxError
from whitebox.ir import serial
from whitebox.ir.graph import (
    INPUT,
    OUTPUT,
    WEIGHT,
    Graph,
    Model,
    Node,
    input_node,
    output,
    weight_node,
)
from whitebox.ir.types import TensorType, Type
from whitebox.passes.fuse import is_view, label
from whitebox.runtime.in_place import InPlace, origin
from whitebox.runtime.memory import Lifetime, aligned_size, plan_memory
from whitebox.runtime.plan import Expression, Operand, Parameter, Plan, Step, Storage


class DataDependentShape(WhiteboxError):
    """A value whose shape is known only when the model runs, so memory cannot be planned."""


@dataclass(frozen=True)
class PlannedModel:
    """A plan, and the bodies of the kernels that it calls, by key."""

    plan: Plan
    bodies: dict[str, Graph]


def make_plan(
    graph: Graph,
    target: Target,
    on_host: Collection[str] = frozenset(),
    family: Family | None = None,
) -> PlannedModel:
    """The plan of a fused graph with one model; a general one when a family is given.

    The kernels whose keys are in `on_host` are computed by the host instead. Raises
    DataDependentShape when some value's shape depends on the data.
    """
    return _Planner(graph, target, on_host, family).plan()


class _Planner:
    """Assigns storage to every value of one graph, then writes down the steps."""

    def __init__(
        self, graph: Graph, target: Target, on_host: Collection[str], family: Family | None
    ) -> None:
        self.graph = graph
        self.target = target
        self.on_host = on_host
        self.family = family
        computed = [
            node
            for node in graph.nodes
            if node.op not in (INPUT, OUTPUT)
            and not node.is_constant_expression
            and not is_view(node)
        ]
        self.in_place = InPlace(computed, {origin(node) for _, node in graph.model.outputs})
        self.computed = [node for node in computed if node not in self.in_place.free]
        self.parameters: dict[Node, int] = {}
        self.expressions: list[Expression] = []
        self.numbers: dict[str, int] = {}  # of expressions, by digest
        self.places: dict[Node, tuple[Storage, int]] = {}
        self.objects = 0
        self.bodies: dict[str, Graph] = {}
        self.tables: set[Operand] = set()  # what kernels look a few values up in

    def plan(self) -> PlannedModel:
        model = self.graph.model
        for position, (_, node) in enumerate(model.inputs):
            self.places[node] = (Storage.INPUT, position)
        arena_bytes, unshared = self._place_results()
        steps = tuple(self._step(node) for node in self.computed)
        outputs = tuple(self._operand(node) for _, node in model.outputs)
        parameters = tuple(map(self._parameter, self.parameters))
        inputs = tuple(self._operand(node) for _, node in model.inputs)
        general = self.family is not None
        touched = {operand for step in steps for operand in (*step.operands, *step.results)}
        plan = Plan(
            inputs,
            outputs,
            steps,
            arena_bytes,
            unshared,
            sum(operand.nbytes for operand in touched - self.tables),
            self.objects,
            tuple(self.expressions),
            parameters,
            general,
        )
        return PlannedModel(plan, self.bodies)

    def _place_results(self) -> tuple[int, int]:
        """Give every computed value its storage; (arena size, bytes without sharing)."""
        for index, (_, node) in enumerate(self.graph.model.outputs):
            source = origin(node)
            if source not in self.places and not source.is_constant_expression:
                self._require_static(source)
                if _is_native(source.type):
                    self.places[source] = (Storage.OUTPUT, index)
        lifetimes: dict[Node, Lifetime] = {}
        last_use = self._last_uses()
        for step, node in enumerate(self.computed):
            for value in _results(node):
                if value in self.places:
                    continue
                self._require_static(value)
                if _is_native(value.type):
                    buffer, _ = self.in_place.buffer(value)
                    # A buffer that several steps fill lives from the first of them on.
                    first = lifetimes[buffer].first if buffer in lifetimes else step
                    last = max(last_use.get(buffer, step), step)
                    lifetimes[buffer] = Lifetime(buffer.tensor.nbytes, first, last)
                else:
                    self.places[value] = (Storage.OBJECT, self.objects)
                    self.objects += 1
        offsets, arena_bytes = plan_memory(lifetimes)
        for value, offset in offsets.items():
            self.places[value] = (Storage.ARENA, offset)
        return arena_bytes, sum(aligned_size(life.nbytes) for life in lifetimes.values())

    def _last_uses(self) -> dict[Node, int]:
        """Buffer → the last step that reads it; a model's output is read after all steps."""
        last: dict[Node, int] = {}
        for step, node in enumerate(self.computed):
            for source in node.inputs:
                if source is not None:
                    last[self.in_place.buffer(source)[0]] = step
        for _, node in self.graph.model.outputs:
            last[origin(node)] = len(self.computed)
        return last

    def _require_static(self, value: Node) -> None:
        # Text is not in planned memory.
        if _is_native(value.type) and not value.tensor.is_static:
            raise DataDependentShape(
                f"the shape of {value!r} depends on the data, not only on the input shapes"
            )

    def _operand(self, node: Node) -> Operand:
        type = node.type
        # (strings whose number is known only when the model runs are values like sequences)
        known = isinstance(type, TensorType) and type.is_static
        dtype, shape = (type.dtype, type.dims) if known else ("", ())  # type: ignore[union-attr]
        if node.is_constant_expression:
            index = self.parameters.setdefault(node, len(self.parameters))
            return Operand(Storage.PARAMETER, index, dtype, shape)
        buffer, offset = self.in_place.buffer(node)
        storage, index = self.places[buffer]
        return Operand(storage, index + offset, dtype, shape)

    def _parameter(self, root: Node) -> Parameter:
        """A constant expression with its weights numbered from 0, so that equal ones are one."""
        places: dict[int, int] = {}

        def renumbered(node: Node, inputs: tuple[Node | None, ...]) -> Node:
            if node.op != WEIGHT:
                return node.with_inputs(inputs)
            place = places.setdefault(node.attr("position"), len(places))
            return weight_node(place, node.type)

        graph = Graph([Model("parameter", (), (("value", root),))]).map(renumbered)
        if root.op == WEIGHT:
            return Parameter(-1, tuple(places))
        number = self.numbers.setdefault(graph.digest, len(self.expressions))
        if number == len(self.expressions):
            plain = root.is_constant or root.tensor.dtype == "string"
            nbytes = 0 if plain else root.tensor.nbytes
            data = serial.encode(graph, inline_limit=1 << 62)
            self.expressions.append(Expression(graph.digest, nbytes, data))
        return Parameter(number, tuple(places))

    def _step(self, node: Node) -> Step:
        sources = [source for source in node.inputs if source is not None]
        operands = tuple(self._operand(source) for source in sources)
        results = tuple(self._operand(value) for value in _results(node))
        if node.op == "whitebox.Fused":
            body: Graph = node.attr("body")
            shared = None if self.family is None else self.family.find(body)
            key = kernel_key(body if shared is None else shared, self.target)
            if key in self.on_host:
                return Step(label(node), "", operands, results, serial.encode(body))
            self.bodies[key] = body if shared is None else shared
            self.tables.update(operands[position] for position in _tables(body))
            return Step(label(node), key, operands, results)
        return Step(node.op, "", operands, results, serial.encode(_host_body(node)))


def _results(node: Node) -> Sequence[Node]:
    """The values that a computed node produces."""
    return [output(node, index) for index in range(len(node.types))]


# Operator → its inputs of which it reads as much as it gives.
_TABLES = {"Gather": (0,), "whitebox.NgramSum": (1, 2, 3)}


def _tables(body: Graph) -> list[int]:
    """The positions of a body's inputs that are tables to all that read them."""
    tables: set[Node | None] = set()
    others: set[Node | None] = set()
    for node in body.nodes:
        places = _TABLES.get(node.op, ())
        for place, source in enumerate(node.inputs):
            (tables if place in places else others).add(source)
    inputs = [node for _, node in body.model.inputs]
    return [at for at, node in enumerate(inputs) if node in tables and node not in others]


def _is_native(type: Type) -> bool:
    """Whether values of this type are plain bytes."""
    return isinstance(type, TensorType) and type.dtype != "string"


def _host_body(node: Node) -> Graph:
    """A graph of this one node, its present operands as inputs."""
    inputs: list[Node | None] = []
    formal: list[Node] = []
    for source in node.inputs:
        if source is None:
            inputs.append(None)
            continue
        formal.append(input_node(len(formal), source.type))
        inputs.append(formal[-1])
    inner = node.with_inputs(inputs)
    outputs = tuple((f"y{i}", value) for i, value in enumerate(_results(inner)))
    return Graph([Model("body", tuple((f"x{i}", n) for i, n in enumerate(formal)), outputs)])
