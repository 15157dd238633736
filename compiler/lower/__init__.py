"""Lowering: the body of a fused group becomes one scheduled TIR function.

What enters: a body (one model; its inputs are the kernel's arguments), a target and a name. What
leaves: an IRModule with one function whose parameters are the body's inputs in order, then its
results in order. Constants inside a body are static operands only; weights are arguments. Never
compiles, and never chooses what to fuse.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
from tvm import tirx

from whitebox.compiler.lower import (  # noqa: F401 - each registers the operators it lowers
    attention,
    blocked,
    elementwise,
    linear,
    movement,
    nn,
    quant,
    recurrent,
    reduction,
    resize,
    scan,
    text,
    trees,
)
from whitebox.compiler.lower.anchored import lower_anchored
from whitebox.compiler.lower.tiled import Apart, anchor_of, fused
from whitebox.compiler.lower.value import EMITTERS, Body, Value, const, from_array
from whitebox.compiler.supported import serves_free_sizes
from whitebox.compiler.target import Target
from whitebox.errors import CompileError, NoSuchVariant
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, Graph, Node
from whitebox.ir.sizes import Extent, Size
from whitebox.ir.types import TensorType
from whitebox.kernels.cpu.affine import expression
from whitebox.kernels.cpu.nest import Array, flat_shape, sequence

__all__ = ["is_free", "lower"]


def lower(body: Graph, target: Target, name: str, variant: int = 0) -> tvm.IRModule:
    """The scheduled module of one kernel: function `name`, inputs then results as parameters.

    Variants above 0 are other schedules of a template, in the order of its cost model. Raises
    NoSuchVariant beyond the last.
    """
    free = is_free(body)
    if free and not serves_free_sizes(body):
        raise CompileError("a body with symbols holds an operator that only a template makes fast")
    if not free:
        scheduled = lower_anchored(body, target, name, emit, variant)
        if scheduled is not None:
            return scheduled
    anchor = anchor_of(body)
    if anchor is not None and not free and anchor.op != "whitebox.MatMul":
        anchor = None  # its template did not take it, nor does the kernel for free sizes
    if variant and (free or anchor is None):
        raise NoSuchVariant("loop nests and kernels for free sizes have one schedule")
    if anchor is not None:
        with contextlib.suppress(Apart):
            return _nest(body, target, name, variant, anchor)
    return _nest(body, target, name, variant)


def _nest(
    body: Graph, target: Target, name: str, variant: int = 0, anchor: Node | None = None
) -> tvm.IRModule:
    """A kernel of plain loop nests: everything but the operators that have a template.

    An `anchor` hands its vectors to the rest of the body as they are made. Raises Apart when the
    rest does not take them so.
    """
    model = body.model
    made = Body(target, variant)
    known: dict[Node, tuple[Value, ...]] = {}
    parameters, views = [], []
    for position, (_, node) in enumerate(model.inputs):
        array, parameter, view = _parameter(node.tensor, f"a{position}")
        known[node] = (from_array(array, str(array.buffer.dtype)),)
        parameters.append(parameter)
        views.append(view)
    results: dict[tuple[Extent, ...], list[tuple[Array, Node]]] = {}
    for position, (_, node) in enumerate(model.outputs):
        array, parameter, view = _parameter(node.tensor, f"r{position}")
        parameters.append(parameter)
        views.append(view)
        results.setdefault(array.shape, []).append((array, node))
    emit(body, known, made, anchor)
    if anchor is not None:
        ((result, node),) = results[anchor.tensor.extents]

        def rest() -> Value:
            emit(body, known, made, anchor)
            return known[node][0]

        fused(anchor, known, made, result, rest)
    else:
        for pairs in results.values():
            made.store([(array, known[node][0]) for array, node in pairs])
    statements = [*views, *made.definitions, *made.allocations, *made.statements]
    function = tirx.PrimFunc(parameters, sequence([*statements, *made.last_reads()]))
    function = function.with_attr({"global_symbol": name, "tirx.noalias": True})
    # Where a condition decides whether a nest is parallel, its body is there twice.
    return tirx.transform.ConvertSSA()(tvm.IRModule({name: function}))


def is_free(body: Graph) -> bool:
    """Whether a body has sizes that are known only when its kernel runs."""
    arguments = [node for _, node in (*body.model.inputs, *body.model.outputs)]
    return not all(node.tensor.is_static for node in arguments)


def _parameter(type: TensorType, name: str) -> tuple[Array, Any, Any]:
    """An argument: its array, the parameter, and the statement that views it as one dimension.

    A text is a pair: where its code points are, and how many.
    """
    if type.dtype == "string":
        type = TensorType("int64", (*type.extents, 2))  # type: ignore[arg-type]
    parameter = tirx.decl_buffer(
        [expression(dim) if isinstance(dim, Size) else dim for dim in type.extents],
        type.dtype,
        name=name,
    )
    data = tirx.buffer_data(parameter)
    flat = tirx.decl_buffer(flat_shape(type.extents), type.dtype, name=f"{name}_flat", data=data)
    return Array(type.extents, flat), parameter, tirx.DeclBuffer(flat, data=data)


def emit(
    body: Graph, known: dict[Node, tuple[Value, ...]], made: Body, anchor: Node | None = None
) -> None:
    """Lower every node of a body that is not known yet, inputs before users.

    With an anchor that is not known: only what does not depend on it.
    """
    readers = Counter(source for node in body.nodes for source in node.inputs)
    for node in body.nodes:
        if node in known or node is anchor:
            continue
        if anchor is not None and anchor not in known and _reads_unknown(node, known):
            continue
        if node.op == CONSTANT:
            value = _constant(node)
            if value is not None:
                known[node] = (value,)
        elif node.op == OUTPUT:
            known[node] = (known[node.inputs[0]][node.attr("index")],)  # type: ignore[index]
        elif node.op == INPUT:
            raise CompileError(f"{node} is read by a body but is not among its inputs")
        else:
            known[node] = _results(node, known, made, readers[node] > 1)


def _reads_unknown(node: Node, known: Mapping[Node, tuple[Value, ...]]) -> bool:
    return any(
        source is not None and source not in known and not source.is_constant
        for source in node.inputs
    )


def _results(
    node: Node, known: dict[Node, tuple[Value, ...]], made: Body, shared: bool
) -> tuple[Value, ...]:
    emitter = EMITTERS.get(node.op)
    if emitter is None:
        raise CompileError(f"{node.op} has no lowering: run it on the host")
    args: list[Any] = [
        known[source][0] if source is not None and source in known else None
        for source in node.inputs
    ]
    results = emitter(node, args, made)
    values: Sequence[Value] = results if isinstance(results, tuple) else (results,)
    return tuple(replace(value, shared=True) if shared else value for value in values)


def _constant(node: Node) -> Value | None:
    """A constant scalar as a value; others are static operands, read by the emitters."""
    if math.prod(node.tensor.dims) != 1 or node.tensor.dtype == "string":
        return None
    number, dtype = node.value.reshape(-1)[0].item(), node.tensor.dtype
    return Value(dtype, node.tensor.extents, lambda scope, axes: const(number, dtype))
