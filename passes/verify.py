"""verify: check what must hold between passes."""

from __future__ import annotations

from whitebox.errors import InvalidModel, VerifyError
from whitebox.ir import ops
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, WEIGHT, Graph, Node
from whitebox.ir.types import TensorType, Type


def verify(graph: Graph) -> Graph:
    """The same graph. Raises VerifyError when a node's types are not what its inputs give."""
    for node in graph.nodes:
        if node.op in (INPUT, CONSTANT, WEIGHT):
            continue
        if node.op == OUTPUT:
            _verify_output(node)
            continue
        try:
            inferred = ops.infer(
                node.op, node.version, node.inputs, dict(node.attrs), len(node.types)
            )
        except InvalidModel as error:
            raise VerifyError(f"{node!r} does not fit its inputs: {error}") from error
        if tuple(inferred) != node.types:
            found = ", ".join(map(str, inferred))
            raise VerifyError(f"{node!r} should have the type {found}")
    return graph


def _verify_output(node: Node) -> None:
    source, index = node.inputs[0], node.attr("index")
    if source is None or index >= len(source.types) or source.types[index] != node.type:
        raise VerifyError(f"{node!r} does not fit the node it is an output of")


def verify_signature(before: Graph, after: Graph) -> None:
    """Raise VerifyError when a pass changed a model's input or output types."""
    for name, model in before.models.items():
        changed = after.models[name]
        for side in ("inputs", "outputs"):
            old, new = getattr(model, side), getattr(changed, side)
            if [n for n, _ in old] != [n for n, _ in new]:
                raise VerifyError(f"model {name}: the {side} changed their names or order")
            for (tensor, was), (_, now) in zip(old, new, strict=True):
                if not refines(now.type, was.type):
                    raise VerifyError(f"model {name}: {tensor} was {was.type}, is {now.type}")


def refines(type: Type, other: Type) -> bool:
    """Whether `type` is `other`, or says more where `other` leaves something open."""
    if not isinstance(type, TensorType) or not isinstance(other, TensorType):
        return type == other
    if type.dtype != other.dtype or other.shape is None:
        return type.dtype == other.dtype
    if type.shape is None or len(type.shape) != len(other.shape):
        return False
    pairs = zip(type.shape, other.shape, strict=True)
    return all(was == now or not isinstance(was, int) for now, was in pairs)
