"""Types of operators that hold graphs: If, Loop, Scan, SequenceMap and whitebox.Fused.

The inputs of a body are its formal ones, then the values captured from outside. `retype` gives a
body the types of what the node passes to it; the rules then read the types of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from whitebox.ir.graph import INPUT, Graph, Node, input_node
from whitebox.ir.shapes.rule import Call, Misfit, Shape, normal_axis, rule
from whitebox.ir.types import Dim, OptionalType, SequenceType, TensorType, Type

Rebuild: TypeAlias = Callable[[Node, Sequence["Node | None"]], Node]
Inputs: TypeAlias = "tuple[Node | None, ...]"

BODY = {
    "If": ("then_branch", "else_branch"),
    "Loop": ("body",),
    "Scan": ("body",),
    "SequenceMap": ("body",),
    "whitebox.Fused": ("body",),
}

_LOOP_ROUNDS = 4


def retype(op: str, inputs: Inputs, attrs: Mapping[str, Any], rebuild: Rebuild) -> dict[str, Any]:
    """The attributes with each body rebuilt for the types of `inputs`."""
    given = [None if node is None else node.types[0] for node in inputs]
    types = formal_types(op, given, attrs)
    if op == "Loop":
        n_states = len(types) - 2 - attrs.get("n_captured", 0)
        return {**attrs, "body": _retype_loop(attrs["body"], types, n_states, rebuild)}
    bodies = {name: with_inputs(attrs[name], types, rebuild) for name in BODY[op]}
    return {**attrs, **bodies}


def formal_types(
    op: str, given: Sequence[Type | None], attrs: Mapping[str, Any]
) -> list[Type | None]:
    """What a body's inputs are, of a node with these inputs: formal ones, then captured ones."""
    match op:
        case "If":
            return list(given[1:])
        case "Loop":
            return [TensorType("int64", ()), TensorType("bool", ()), *given[2:]]
        case "Scan":
            return _scan_types(list(given), attrs)
        case "SequenceMap":
            return [t.element if isinstance(t, SequenceType) else t for t in given]
        case _:
            return list(given)


def with_inputs(body: Graph, types: Sequence[Type | None], rebuild: Rebuild) -> Graph:
    """A body whose inputs have these types, everything inside inferred anew."""
    declared = body.model.inputs
    if len(declared) != len(types):
        raise Misfit(f"a body of {len(declared)} inputs is given {len(types)}")
    if all(type in (None, node.types[0]) for type, (_, node) in zip(types, declared, strict=True)):
        return body

    def build(node: Node, inputs: Inputs) -> Node:
        if node.op != INPUT:
            return rebuild(node, inputs)
        position = node.attrs["position"]
        type = types[position]  # type: ignore[index]
        return node if type is None else input_node(position, type)  # type: ignore[arg-type]

    return body.map(build)


def _retype_loop(body: Graph, types: list[Type | None], n_states: int, rebuild: Rebuild) -> Graph:
    """A loop's state keeps only what every iteration agrees on."""
    end = 2 + n_states
    for _ in range(_LOOP_ROUNDS):
        body = with_inputs(body, types, rebuild)
        after = results(body)[1 : 1 + n_states]
        if len(after) != n_states:
            raise Misfit(f"the body gives {len(after)} of {n_states} states")
        merged: list[Type | None] = [merge(a, b) for a, b in zip(types[2:end], after, strict=True)]
        if merged == types[2:end]:
            return body
        types = [*types[:2], *merged, *types[end:]]
    # States that feed each other may take long to settle; without shapes they have.
    loose = [TensorType(t.dtype, None) if isinstance(t, TensorType) else t for t in types[2:end]]
    return with_inputs(body, [*types[:2], *loose, *types[end:]], rebuild)


def _scan_types(given: list[Type | None], attrs: Mapping[str, Any]) -> list[Type | None]:
    """States, then one slice of each scanned input, then captured values."""
    captured, scanned = attrs.get("n_captured", 0), attrs["num_scan_inputs"]
    end = len(given) - captured
    axes = attrs.get("scan_input_axes") or (0,) * scanned
    if not 0 < scanned <= end or len(axes) != scanned:
        raise Misfit(f"{scanned} scanned inputs with {len(axes)} axes among {end} inputs")
    slices: list[Type | None] = []
    for type, axis in zip(given[end - scanned : end], axes, strict=True):
        if not isinstance(type, TensorType):
            raise Misfit("a scanned input must be a tensor")
        shape = type.shape
        if shape is not None:
            at = normal_axis(axis, len(shape))
            shape = shape[:at] + shape[at + 1 :]
        slices.append(TensorType(type.dtype, shape))
    return [*given[: end - scanned], *slices, *given[end:]]


def merge(a: Type | None, b: Type | None) -> Type:
    """The type of a value that may be of type `a` or of type `b`."""
    if a is None or b is None:
        raise Misfit("a state is missing")
    if a == b:
        return a
    if isinstance(a, TensorType) and isinstance(b, TensorType) and a.dtype == b.dtype:
        return TensorType(a.dtype, _merge_shapes(a.shape, b.shape))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(merge(a.element, b.element))
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        return OptionalType(merge(a.element, b.element))
    if isinstance(a, OptionalType) != isinstance(b, OptionalType):
        # A value that may be there, and one that is.
        return OptionalType(merge(_element(a), _element(b)))
    raise Misfit(f"a value is {a} on one way and {b} on another")


def _element(type: Type) -> Type:
    return type.element if isinstance(type, OptionalType) else type


def _merge_shapes(a: Shape, b: Shape) -> Shape:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


def results(body: Graph) -> list[Type]:
    """The types of a body's results."""
    return [node.types[0] for _, node in body.model.outputs]


@rule("If")
def _if(call: Call) -> tuple[Type, ...]:
    then, other = results(call.attrs["then_branch"]), results(call.attrs["else_branch"])
    if len(then) != len(other):
        raise Misfit("the branches differ in their number of results")
    return tuple(map(merge, then, other))


@rule("Loop")
def _loop(call: Call) -> tuple[Type, ...]:
    body = call.attrs["body"]
    count = len(call.inputs) - call.attrs.get("n_captured", 0) - 2
    states = [node.types[0] for _, node in body.model.inputs][2 : 2 + count]
    after = results(body)[1:]
    # The result is the initial state when no iteration runs.
    kept = [merge(state, result) for state, result in zip(states, after[:count], strict=True)]
    return (*kept, *(_stacked(type, None, 0) for type in after[count:]))


@rule("Scan")
def _scan(call: Call) -> tuple[Type, ...] | None:
    if call.version < 9:
        return None
    scanned, captured = call.attrs["num_scan_inputs"], call.attrs.get("n_captured", 0)
    end = len(call.inputs) - captured
    first = call.shape(end - scanned)
    at = (call.attrs.get("scan_input_axes") or (0,))[0]
    length = None if first is None else first[normal_axis(at, len(first))]
    after, states = results(call.attrs["body"]), end - scanned
    axes = call.attrs.get("scan_output_axes") or (0,) * (len(after) - states)
    stacked = [
        _stacked(type, length, axis) for type, axis in zip(after[states:], axes, strict=True)
    ]
    return (*after[:states], *stacked)


def _stacked(type: Type, length: Dim, axis: int) -> TensorType:
    if not isinstance(type, TensorType):
        raise Misfit("a stacked result must be a tensor")
    if type.shape is None:
        return type
    at = normal_axis(axis, len(type.shape) + 1)
    return TensorType(type.dtype, (*type.shape[:at], length, *type.shape[at:]))


@rule("SequenceMap")
def _sequence_map(call: Call) -> tuple[Type, ...]:
    return tuple(SequenceType(type) for type in results(call.attrs["body"]))


@rule("whitebox.Fused")
def _fused(call: Call) -> tuple[Type, ...]:
    return tuple(results(call.attrs["body"]))
