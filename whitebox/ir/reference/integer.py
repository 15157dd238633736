"""The operators on centred integers and packed weights in numpy: unpack, and sum in int32."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.blocked import from_blocked, to_blocked
from whitebox.ir.reference.table import Values, means
from whitebox.ir.reference.windows import convolve
from whitebox.ir.shapes.integer import GROUPS


@means("whitebox.Centre")
def _centre(node: Node, values: Values) -> Any:
    x, zero = values
    return x.astype(np.int32) - zero.astype(np.int32)


@means("whitebox.Saturate")
def _saturate(node: Node, values: Values) -> Any:
    x, zero = values
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(x) + zero.astype(np.float32), limits.min, limits.max)


@means("whitebox.ConvInteger")
def _conv_integer(node: Node, values: Values) -> Any:
    x, weight, bias, border = (*values, None, None)[:4]
    outer, inner, kh, kw, steps, width = weight.shape
    group = GROUPS[str(weight.dtype)]
    lanes = width // group
    split = weight.reshape(outer, inner, kh, kw, steps, lanes, group)
    plain = split.transpose(0, 5, 1, 4, 6, 2, 3).reshape(outer * lanes, inner * lanes, kh, kw)
    data = from_blocked(x).astype(np.int32)
    # Padding counts as the zero point: what is summed is then right by the zero point's share.
    top, left, bottom, right = node.attr("pads")
    fill = 0 if border is None else int(border.reshape(()))
    data = np.pad(data, [(0, 0), (0, 0), (top, bottom), (left, right)], constant_values=fill)
    attrs = {**node.attrs, "group": 1, "pads": (0, 0, 0, 0)}
    flat = None if bias is None else bias.reshape(-1)
    return to_blocked(convolve(data, plain.astype(np.int32), flat, attrs), lanes)
