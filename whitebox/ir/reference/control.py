"""If, Loop, Scan, SequenceMap and whitebox.Fused: operators that run graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from whitebox.ir.graph import Graph, Node
from whitebox.ir.reference.table import Values
from whitebox.ir.types import numpy_dtype

# Runs a body on its inputs in order.
Run: TypeAlias = Callable[[Graph, list[Any]], list[Any]]


def _if(node: Node, values: Values, run: Run) -> list[Any]:
    taken = "then_branch" if values[0].reshape(-1)[0] else "else_branch"
    return run(node.attr(taken), list(values[1:]))


def _loop(node: Node, values: Values, run: Run) -> list[Any]:
    body: Graph = node.attr("body")
    captured = node.attr("n_captured", 0)
    outer = list(values[len(values) - captured :])
    states = list(values[2 : len(values) - captured])
    count = None if values[0] is None else int(values[0].reshape(-1)[0])
    go_on = values[1] is None or bool(values[1].reshape(-1)[0])
    count_of_states, iteration = len(states), 0
    stacks: list[list[Any]] = [[] for _ in body.model.outputs[1 + count_of_states :]]
    while go_on and (count is None or iteration < count):
        counter = np.array(iteration, np.int64)
        condition, *after = run(body, [counter, np.array(True), *states, *outer])
        go_on, iteration = bool(np.reshape(condition, -1)[0]), iteration + 1
        states = after[:count_of_states]
        for stack, value in zip(stacks, after[count_of_states:], strict=True):
            stack.append(value)
    types = node.types[count_of_states:]
    return [*states, *(_stack(s, 0, t) for s, t in zip(stacks, types, strict=True))]


def _stack(values: list[Any], axis: int, type: Any) -> np.ndarray:
    """Values stacked along a new axis; where there are none, an empty array of that type."""
    if values:
        return np.stack(values, axis)
    dims = [0] if type.shape is None else [d if isinstance(d, int) else 0 for d in type.shape]
    dims[axis] = 0
    return np.zeros(dims, numpy_dtype(type.dtype))


def _scan(node: Node, values: Values, run: Run) -> list[Any]:
    body: Graph = node.attr("body")
    scanned, captured = int(node.attr("num_scan_inputs")), node.attr("n_captured", 0)
    end = len(values) - captured
    states, outer = list(values[: end - scanned]), list(values[end:])
    n_stacked = len(body.model.outputs) - len(states)
    axes = node.attr("scan_input_axes") or (0,) * scanned
    backward = node.attr("scan_input_directions") or (0,) * scanned
    sources = [
        np.flip(np.moveaxis(x, axis, 0), 0) if flip else np.moveaxis(x, axis, 0)
        for x, axis, flip in zip(values[end - scanned : end], axes, backward, strict=True)
    ]
    stacks: list[list[Any]] = [[] for _ in range(n_stacked)]
    for slices in zip(*sources, strict=True):
        after = run(body, [*states, *slices, *outer])
        states = after[: len(states)]
        for stack, value in zip(stacks, after[len(states) :], strict=True):
            stack.append(value)
    out_axes = node.attr("scan_output_axes") or (0,) * n_stacked
    flips = node.attr("scan_output_directions") or (0,) * n_stacked
    types = node.types[len(states) :]
    return states + [
        _stack(stack[::-1] if flip else stack, axis, type)
        for stack, axis, flip, type in zip(stacks, out_axes, flips, types, strict=True)
    ]


def _sequence_map(node: Node, values: Values, run: Run) -> list[Any]:
    captured = node.attr("n_captured", 0)
    formal, outer = values[: len(values) - captured], values[len(values) - captured :]
    body: Graph = node.attr("body")
    results: list[list[Any]] = [[] for _ in node.types]
    for index in range(len(formal[0])):
        row = [value[index] if isinstance(value, list) else value for value in formal]
        for result, value in zip(results, run(body, [*row, *outer]), strict=True):
            result.append(value)
    return results


def _fused(node: Node, values: Values, run: Run) -> list[Any]:
    return run(node.attr("body"), list(values))


CONTROL: dict[str, Callable[[Node, Values, Run], list[Any]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceMap": _sequence_map,
    "whitebox.Fused": _fused,
}
