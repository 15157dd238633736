"""Which constants are weights, and which belong to a model's structure.

A node goes in, an answer comes out; no bytes are read but those of small integer tensors. Weights
are what training changes: models of one architecture differ in them and in nothing else. Scalars,
small integer tensors (shapes, axes) and ranges (positions, classes) are structure: passes decide by
their values.
"""

from __future__ import annotations

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.types import TensorType

# Up to here, a constant is part of the structure.
SMALL_FLOAT_ELEMENTS = 16
SMALL_BYTES = 1024
# Up to here, a range of integers is.
RANGE_BYTES = 1 << 16


def is_weight(node: Node) -> bool:
    """Whether a constant is a weight. Strings never are: they are names and vocabularies."""
    type = node.type
    if not isinstance(type, TensorType) or type.dtype == "string":
        return False
    floating = "float" in type.dtype or "complex" in type.dtype
    if floating:
        return type.nbytes > SMALL_BYTES or type.size > SMALL_FLOAT_ELEMENTS
    return type.nbytes > SMALL_BYTES and not _is_range(node, type)


def _is_range(node: Node, type: TensorType) -> bool:
    """Whether a tensor counts 0, 1, 2, … : nothing that training could have changed."""
    if type.nbytes > RANGE_BYTES or "int" not in type.dtype:
        return False
    return np.array_equal(node.value.reshape(-1), np.arange(type.size))
