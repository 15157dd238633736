"""Kernels around one operator that has a schedule template: convolution, matrix product, …

What enters: a body with exactly one such operator (its anchor) and elementwise operators before and
after it. What leaves: the module that the template scheduled, or None when the body does not have
this form (plain loop nests take it then). Everything before the anchor becomes one tensor
expression per operand, everything after it one for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import s_tir, te, tirx

from whitebox.compiler.lower.templates import TEMPLATES
from whitebox.compiler.lower.value import Axes, Body, Scope, Value
from whitebox.compiler.target import Target
from whitebox.errors import NoSuchVariant
from whitebox.ir.graph import Graph, Node
from whitebox.kernels.cpu.affine import Index, Loop

Emit = Callable[[Graph, dict[Node, tuple[Value, ...]], Body, Node], None]


class TensorScope(Scope):
    """A scope whose memory is tensors; names become `Let` expressions."""

    def __init__(self, axes: Axes, variables: Sequence[Any]) -> None:
        super().__init__()
        self.axes = axes
        self.variables = variables
        self.names: list[tuple[Any, Any]] = []

    def keep(self, value: Any) -> Any:
        """A name for a value, to be bound around the whole expression."""
        if self._guards or isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
            return value
        name = tirx.Var(f"t{len(self.names)}", str(value.ty))
        self.names.append((name, value))
        return name

    def read(self, tensor: Any, axes: Axes) -> Any:
        """An element of a tensor. The block's own indices are kept as they are, ones included."""
        if len(axes) == len(self.axes) and all(
            axis is own for axis, own in zip(axes, self.axes, strict=True)
        ):
            return tensor(*self.variables)
        return tensor(*(axis.expr for axis in axes))


def _from_tensor(tensor: Any, dtype: str, shape: tuple[int, ...]) -> Value:
    def element(scope: Scope, axes: Axes) -> Any:
        assert isinstance(scope, TensorScope)
        return scope.read(tensor, axes)

    return Value(dtype, shape, element)


def _to_tensor(value: Value, name: str) -> Any:
    def element(*variables: Any) -> Any:
        axes = tuple(
            Index.of(Loop(dim, "i", fixed=True, var=variable))
            for dim, variable in zip(value.shape, variables, strict=True)
        )
        scope = TensorScope(axes, variables)
        result = value.at(scope, axes)
        for var, bound in reversed(scope.names):
            result = tirx.Let(var, bound, result)
        return tirx.convert(result)

    return te.compute(value.shape, element, name=name)


def find_anchor(body: Graph, target: Target) -> tuple[Node, Any] | None:
    """The anchor and its template, when the body has one and a result of the anchor's shape."""
    found = []
    for node in body.nodes:
        make = TEMPLATES.get(node.op)
        template = make(node, target) if make is not None else None
        if template is not None:
            found.append((node, template))
    outputs = body.model.outputs
    if len(found) != 1 or len(outputs) != 1:
        return None
    return found[0] if outputs[0][1].tensor.dims == found[0][0].tensor.dims else None


def alternative(template: Any, variant: int) -> Any:
    """The template with the parameters that its cost model ranks at `variant`."""
    if variant == 0:
        return template
    others = template.alternatives() if hasattr(template, "alternatives") else ()
    if variant > len(others):
        raise NoSuchVariant(f"{type(template).__name__} has {len(others) + 1} schedules")
    return others[variant - 1]


def lower_anchored(
    body: Graph, target: Target, name: str, emit: Emit, variant: int = 0
) -> tvm.IRModule | None:
    """The scheduled module, or None when no template takes this body."""
    anchored = find_anchor(body, target)
    if anchored is None:
        return None
    anchor, template = anchored
    template = alternative(template, variant)
    placeholders: dict[Node, Any] = {}
    known: dict[Node, tuple[Value, ...]] = {}
    for position, (_, node) in enumerate(body.model.inputs):
        type = node.tensor
        tensor = te.placeholder(type.dims, type.dtype, name=f"a{position}")
        placeholders[node] = tensor
        known[node] = (_from_tensor(tensor, type.dtype, type.dims),)
    made = Body(target)
    emit(body, known, made, anchor)
    operands = [
        None
        if source is None
        else placeholders[source]
        if source in placeholders
        else _to_tensor(known[source][0], f"operand{position}")
        for position, source in enumerate(anchor.inputs)
    ]
    result = template.compute(*operands)
    known[anchor] = (_from_tensor(result, anchor.tensor.dtype, anchor.tensor.dims),)
    emit(body, known, made, anchor)
    (_, output) = body.model.outputs[0]
    if made.statements or made.allocations:
        return None
    if output is not anchor:
        result = _to_tensor(known[output][0], "result")
    function = te.create_prim_func([*placeholders.values(), result])
    function = function.with_attr("global_symbol", name)
    schedule = s_tir.Schedule(tvm.IRModule({name: function}))
    schedule.work_on(name)
    template.schedule(schedule)
    return schedule.mod
