"""Recurrent layers in numpy: over no steps, and those whose input products are made."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means


def _sigmoid(x: np.ndarray) -> Any:
    return 1 / (1 + np.exp(-x))


@means("GRU", "LSTM", "RNN")
def _over_no_steps(node: Node, values: Values) -> Any:
    """An empty sequence and the states it began with; onnx's own reference cannot stack it."""
    x, _, r, _, _, *states = (*values, *[None] * 4)[:7]
    batch_first = bool(node.attr("layout", 0))
    steps, batch = x.shape[1::-1] if batch_first else x.shape[:2]
    if steps:
        return NotImplemented
    directions, hidden = r.shape[0], r.shape[2]
    lead = (batch, directions) if batch_first else (directions, batch)
    shape = (batch, 0, directions, hidden) if batch_first else (0, directions, batch, hidden)
    finals = [np.zeros((*lead, hidden), x.dtype) if s is None else s for s in states]
    return [np.zeros(shape, x.dtype), *finals][: len(node.types)]


@means("whitebox.GRU", "whitebox.LSTM", "whitebox.RNN")
def _recurrent(node: Node, values: Values) -> Any:
    share, packed, bias, state, cell = (*values, *[None] * 5)[:5]
    if node.attr("linear_before_reset") and bias is None:
        bias = np.zeros((share.shape[2], share.shape[4]), np.float32)
    steps, batch, directions, gates, units = share.shape
    hidden = node.attr("hidden_size")
    # [directions, gates, hidden (of the state), units]
    weights = packed.transpose(0, 2, 3, 1, 4).reshape(directions, gates, hidden, units)
    zero = np.zeros((directions, batch, units), np.float32)
    state, cell = (zero if start is None else start for start in (state, cell))
    result = np.empty((steps, directions, batch, hidden), np.float32)
    lasts = []
    for d in range(directions):
        backwards = d == 1 or node.attr("direction") == "reverse"
        held = state[d], cell[d]
        for t in range(steps)[:: -1 if backwards else 1]:
            gate = [share[t, :, d, g] for g in range(gates)]
            held = _STEPS[node.op](gate, weights[d], *held, None if bias is None else bias[d])
            result[t, d] = held[0][:, :hidden]
        lasts.append([each[:, :hidden] for each in held])
    finals = [np.stack(last) for last in zip(*lasts, strict=True)]
    return [result, *finals][: len(node.types)]


def _lstm(gate: Any, weights: Any, state: Any, cell: Any, bias: Any) -> tuple[Any, Any]:
    i, o, f, c = (g + state[:, : w.shape[0]] @ w for g, w in zip(gate, weights, strict=True))
    cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(c)
    return _sigmoid(o) * np.tanh(cell), cell


def _gru(gate: Any, weights: Any, state: Any, cell: Any, bias: Any) -> tuple[Any, Any]:
    hidden = weights.shape[1]
    update, reset = (_sigmoid(gate[k] + state[:, :hidden] @ weights[k]) for k in (0, 1))
    if bias is None:
        product = (reset * state)[:, :hidden] @ weights[2]
    else:
        product = reset * (state[:, :hidden] @ weights[2] + bias)
    candidate = np.tanh(gate[2] + product)
    return update * (state - candidate) + candidate, cell


def _rnn(gate: Any, weights: Any, state: Any, cell: Any, bias: Any) -> tuple[Any, Any]:
    return np.tanh(gate[0] + state[:, : weights.shape[1]] @ weights[0]), cell


_STEPS = {"whitebox.LSTM": _lstm, "whitebox.GRU": _gru, "whitebox.RNN": _rnn}
