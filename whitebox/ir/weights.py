"""Which constants are weights, and which belong to a model's structure.

A tensor goes in, an answer comes out; no bytes are read but those of small integer tensors. Weights
are what training changes: models of one architecture differ in them and in nothing else. Scalars,
small integer tensors (shapes, axes) and ranges (positions, classes) are structure: passes decide by
their values.
"""

from __future__ import annotations

import numpy as np

from whitebox.ir.graph import Tensor
from whitebox.ir.types import TensorType

# Up to here, integers are part of the structure.
SMALL_BYTES = 1024
# Up to here, a range of integers is.
RANGE_BYTES = 1 << 16


def is_float(type: TensorType) -> bool:
    """Whether elements are real or complex numbers."""
    return "float" in type.dtype or "complex" in type.dtype


def is_weight(tensor: Tensor) -> bool:
    """Whether a constant is a weight, unless a kernel is compiled for its value.

    Strings never are: they are names and vocabularies.
    """
    type = tensor.type
    if type.dtype == "string":
        return False
    if is_float(type):
        return type.size > 1
    return type.nbytes > SMALL_BYTES and not _is_range(tensor)


def _is_range(tensor: Tensor) -> bool:
    """Whether a tensor counts 0, 1, 2, … : nothing that training could have changed."""
    type = tensor.type
    if type.nbytes > RANGE_BYTES or "int" not in type.dtype:
        return False
    return np.array_equal(tensor.array.reshape(-1), np.arange(type.size))
