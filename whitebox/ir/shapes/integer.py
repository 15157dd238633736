"""Types of the operators on centred integers: data less its zero point, and packed weights.

int16 data meets weights packed two input channels at a time, uint8 data four (`GROUPS`).
"""

from __future__ import annotations

from whitebox.ir.shapes.elementwise import dtype_of_number
from whitebox.ir.shapes.rule import Call, Misfit, rule
from whitebox.ir.shapes.spatial import window_dims
from whitebox.ir.types import TensorType

# Dtype of packed weights → how many values along the reduction lie side by side.
GROUPS = {"int16": 2, "int8": 4}


@rule("whitebox.Centre")
def _centre(call: Call) -> TensorType:
    return TensorType(dtype_of_number(call.attrs["to"]), call.shape(0))


@rule("whitebox.Saturate")
def _saturate(call: Call) -> TensorType:
    return TensorType(call.dtype(1), call.shape(0))


@rule("whitebox.ConvInteger")
def _conv_integer(call: Call) -> TensorType:
    n, blocks, h, w, lanes = call.tensor(0).dims
    weight = call.tensor(1)
    group = GROUPS.get(weight.dtype, 0)
    if not group or weight.dims[1] != blocks or weight.dims[4:] != (lanes // group, lanes * group):
        raise Misfit(f"{blocks} blocks of {lanes} channels meet the packed weight {weight}")
    return TensorType("int32", (n, weight.dims[0], *window_dims((h, w), call.attrs), lanes))
