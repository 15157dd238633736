"""Products in bf16 in numpy: operands rounded to nearest even, multiplied and added in float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.reference.blocked import from_blocked, to_blocked
from whitebox.ir.reference.table import Values, means
from whitebox.ir.reference.windows import convolve


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 with the precision of bfloat16."""
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


@means("whitebox.MatMulBf16")
def _matmul(node: Node, values: Values) -> Any:
    a, weight = values
    panels, pairs, width, _ = weight.shape
    plain = weight.astype(np.float32).transpose(1, 3, 0, 2).reshape(2 * pairs, panels * width)
    return rounded(a) @ plain[: a.shape[-1], : node.attr("n")]


@means("whitebox.BatchMatMulBf16")
def _batch_matmul(node: Node, values: Values) -> Any:
    a, b = map(rounded, values)
    return a @ (np.swapaxes(b, -1, -2) if node.attr("transpose_b") else b)


@means("whitebox.ConvBf16")
def _conv(node: Node, values: Values) -> Any:
    x, weight, bias = (*values, None)[:3]
    data, block = rounded(from_blocked(x)), node.attr("block")
    panels, steps, kh, kw, pairs, width, _ = weight.shape
    plain = weight.astype(np.float32).transpose(0, 5, 1, 4, 6, 2, 3)
    plain = plain.reshape(panels * width, steps * pairs * 2, kh, kw)
    channels = node.attr("out_blocks") * block
    flat = None if bias is None else bias.reshape(-1)
    attrs = {**node.attrs, "group": 1}
    found = convolve(data, plain[:channels, : data.shape[1]], flat, attrs)
    return to_blocked(found, block)
