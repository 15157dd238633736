"""Plans: a fused graph as a list of steps over numbered storage.

A plan is plain data. It names kernels by key, parameters by number, and memory by offsets, so it
is made once for a structure and shape, kept on disk, and bound to any model of that structure on
any device.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from whitebox.compiler.cache import kernel_key
from whitebox.compiler.families import Family
from whitebox.compiler.target import Target
from whitebox.errors import WhiteboxError
from whitebox.ir import serial
from whitebox.ir.graph import INPUT, OUTPUT, Graph, Model, Node, Tensor, input_node, output
from whitebox.ir.types import TensorType, Type
from whitebox.passes.fuse import is_view, label
from whitebox.runtime.in_place import InPlace, origin
from whitebox.runtime.memory import Lifetime, aligned_size, plan_memory


class Storage(IntEnum):
    """Where an operand lives."""

    INPUT = 0  # index: the model's input
    OUTPUT = 1  # index: the model's output
    ARENA = 2  # index: offset in bytes
    PARAMETER = 3  # index: into the parameters
    OBJECT = 4  # index: a Python value (strings, sequences, maps)


class Operand(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in some storage. `shape` is empty for objects."""

    storage: Storage
    index: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor; 0 for objects."""
        if self.storage == Storage.OBJECT or self.dtype == "string":
            return 0
        return TensorType(self.dtype, self.shape).nbytes


class Step(msgspec.Struct, frozen=True):
    """One kernel call; or a call of the host, when `kernel` is empty and `host` holds the body."""

    label: str
    kernel: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    host: bytes = b""


class Plan(msgspec.Struct, frozen=True):
    """The steps of one model at one set of input shapes.

    `parameters` is a serialised graph over Weight placeholders with an output a parameter.
    `unshared_bytes` is what the intermediates would take if none shared memory. A `general` plan
    calls kernels that serve other sizes as well, where there are any.
    """

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    steps: tuple[Step, ...]
    arena_bytes: int
    unshared_bytes: int
    objects: int
    parameters: bytes
    general: bool = False

    @property
    def kernels(self) -> list[str]:
        """The distinct kernels, in order of first use."""
        return list(dict.fromkeys(step.kernel for step in self.steps if step.kernel))


class DataDependentShape(WhiteboxError):
    """A value whose shape is known only when the model runs, so memory cannot be planned."""


def encode_plan(plan: Plan) -> bytes:
    return msgspec.msgpack.encode(plan)


def decode_plan(data: bytes) -> Plan:
    """Raises msgspec.DecodeError when the bytes are damaged."""
    return msgspec.msgpack.decode(data, type=Plan)


def parameter_graph(plan: Plan, weights: Sequence[Tensor]) -> Graph:
    """The parameters of a model with these weights, as a graph of constant expressions."""

    def inline_only(digest: str, type: TensorType) -> Tensor:
        raise ValueError(f"the plan refers to the bytes {digest}, which it should hold")

    return serial.decode(plan.parameters, inline_only, weights)


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
        self.places: dict[Node, tuple[Storage, int]] = {}
        self.objects = 0
        self.bodies: dict[str, Graph] = {}

    def plan(self) -> PlannedModel:
        model = self.graph.model
        for position, (_, node) in enumerate(model.inputs):
            self.places[node] = (Storage.INPUT, position)
        arena_bytes, unshared = self._place_results()
        steps = tuple(self._step(node) for node in self.computed)
        outputs = tuple(self._operand(node) for _, node in model.outputs)
        roots = tuple((f"p{i}", node) for node, i in self.parameters.items())
        parameters = serial.encode(Graph([Model("parameters", (), roots)]), inline_limit=1 << 62)
        inputs = tuple(self._operand(node) for _, node in model.inputs)
        general = self.family is not None
        plan = Plan(
            inputs, outputs, steps, arena_bytes, unshared, self.objects, parameters, general
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
        if isinstance(value.type, TensorType) and not value.type.is_static:
            raise DataDependentShape(
                f"the shape of {value!r} depends on the data, not only on the input shapes"
            )

    def _operand(self, node: Node) -> Operand:
        type = node.type
        dtype = type.dtype if isinstance(type, TensorType) else ""
        shape = type.dims if isinstance(type, TensorType) and type.is_static else ()
        if node.is_constant_expression:
            index = self.parameters.setdefault(node, len(self.parameters))
            return Operand(Storage.PARAMETER, index, dtype, shape)
        buffer, offset = self.in_place.buffer(node)
        storage, index = self.places[buffer]
        return Operand(storage, index + offset, dtype, shape)

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
            return Step(label(node), key, operands, results)
        return Step(node.op, "", operands, results, serial.encode(_host_body(node)))


def _results(node: Node) -> Sequence[Node]:
    """The values that a computed node produces."""
    return [output(node, index) for index in range(len(node.types))]


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
