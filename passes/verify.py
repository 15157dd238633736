"""verify: check what must hold between passes."""

from __future__ import annotations

from whitebox.errors import InvalidModel, VerifyError
from whitebox.ir import ops
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, WEIGHT, Graph, Node


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
                if was.type != now.type:
                    raise VerifyError(f"model {name}: {tensor} was {was.type}, is {now.type}")
