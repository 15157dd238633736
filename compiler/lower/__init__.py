"""Lowering: the body of a fused group becomes one scheduled TIR function.

What enters: a body (one model; its inputs are the kernel's arguments), a target and a name. What
leaves: an IRModule with one function whose parameters are the body's inputs in order, then its
results in order. Constants inside a body are static operands only; weights are arguments. Never
compiles, and never chooses what to fuse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
from tvm import tirx

from whitebox.compiler.lower import (  # noqa: F401 - each registers the operators it lowers
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
    trees,
)
from whitebox.compiler.lower.anchored import lower_anchored
from whitebox.compiler.lower.value import EMITTERS, Body, Value, const, from_array
from whitebox.compiler.target import Target
from whitebox.errors import CompileError, NoSuchVariant
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, Graph, Node
from whitebox.ir.types import TensorType
from whitebox.kernels.cpu.nest import Array, sequence

__all__ = ["lower"]


def lower(body: Graph, target: Target, name: str, variant: int = 0) -> tvm.IRModule:
    """The scheduled module of one kernel: function `name`, inputs then results as parameters.

    Variants above 0 are other schedules of a template, in the order of its cost model. Raises
    NoSuchVariant beyond the last.
    """
    anchored = lower_anchored(body, target, name, emit, variant)
    if anchored is not None:
        return anchored
    if variant:
        raise NoSuchVariant("plain loop nests have one schedule")
    return _nest(body, target, name)


def _nest(body: Graph, target: Target, name: str) -> tvm.IRModule:
    """A kernel of plain loop nests: everything but the operators that have a template."""
    model = body.model
    made = Body(target)
    known: dict[Node, tuple[Value, ...]] = {}
    parameters, views = [], []
    for position, (_, node) in enumerate(model.inputs):
        array, parameter, view = _parameter(node.tensor, f"a{position}")
        known[node] = (from_array(array, node.tensor.dtype),)
        parameters.append(parameter)
        views.append(view)
    emit(body, known, made)
    results: dict[tuple[int, ...], list[tuple[Array, Value]]] = {}
    for position, (_, node) in enumerate(model.outputs):
        array, parameter, view = _parameter(node.tensor, f"r{position}")
        parameters.append(parameter)
        views.append(view)
        results.setdefault(array.shape, []).append((array, known[node][0]))
    for pairs in results.values():
        made.store(pairs)
    statements = [*views, *made.allocations, *made.statements, *made.last_reads()]
    function = tirx.PrimFunc(parameters, sequence(statements))
    function = function.with_attr({"global_symbol": name, "tirx.noalias": True})
    return tvm.IRModule({name: function})


def _parameter(type: TensorType, name: str) -> tuple[Array, Any, Any]:
    """An argument: its array, the parameter, and the statement that views it as one dimension."""
    size = math.prod(type.dims)
    parameter = tirx.decl_buffer(type.dims, type.dtype, name=name)
    data = tirx.buffer_data(parameter)
    flat = tirx.decl_buffer((max(size, 1),), type.dtype, name=f"{name}_flat", data=data)
    return Array(type.dims, flat), parameter, tirx.DeclBuffer(flat, data=data)


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
    return Value(dtype, node.tensor.dims, lambda scope, axes: const(number, dtype))
