"""Operators of any opset → their newest form.

Enter: one operator as a model of any opset spells it, its inputs already nodes. Leave: nodes for
its results, in the newest form wherever that form means the same; an operator that changed its
meaning and has no rule in `onnx_legacy` keeps its own version. What does nothing outside training
is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whitebox.ir import onnx_schema, ops
from whitebox.ir.graph import Node, constant, output
from whitebox.ir.onnx_legacy import LEGACY, Legacy, Rule
from whitebox.ir.types import ONNX_DTYPES, numpy_dtype


def upgrade(
    op: str, opset: int, inputs: Sequence[Node | None], attrs: Mapping[str, Any], n_outputs: int
) -> tuple[Node, ...]:
    """The results of an operator that a model of this opset applies to `inputs`."""
    form, newest = onnx_schema.form(op, opset), onnx_schema.form(op)
    assert form is not None and newest is not None
    legacy = Legacy(op, form.since, tuple(inputs), {**form.defaults, **attrs}, n_outputs)
    simplified = _SIMPLIFIED.get(op)
    if simplified is not None:
        found = simplified(legacy)
        if found is not None:
            return found if isinstance(found, tuple) else (found,)
    first, rule = LEGACY.get(op, (1, _keep))
    if form.since < first:
        upgraded = rule(legacy)
        if upgraded is None:
            made = ops.make(op, inputs, legacy.attrs, form.since, n_outputs)
        elif isinstance(upgraded, tuple):
            return upgraded
        else:
            made = upgraded
    else:
        kept = {name: value for name, value in legacy.attrs.items() if name in _known(newest)}
        made = ops.make(op, inputs, kept, newest.since, n_outputs)
    return tuple(output(made, index) for index in range(n_outputs))


def _known(form: onnx_schema.Form) -> set[str]:
    return {*form.kinds, ops.N_CAPTURED, ops.DRAW}


def _keep(legacy: Legacy) -> None:
    return None


# Operators that only matter in training, or that do nothing.


def _identity(legacy: Legacy) -> Node:
    return legacy.input(0)


def _dropout(legacy: Legacy) -> Node | tuple[Node, ...] | None:
    """Dropout outside training passes its input on; the mask says that all was kept."""
    if legacy.version >= 12 and len(legacy.inputs) > 2 and legacy.inputs[2] is not None:
        training = legacy.inputs[2]
        if not training.is_constant or training.value.reshape(-1)[0]:
            return None
    x = legacy.input(0)
    if legacy.n_outputs == 1:
        return x
    dtype = "bool" if legacy.version >= 10 else x.tensor.dtype
    one = np.ones(1, numpy_dtype(dtype))
    shape = (
        constant(np.array(x.tensor.dims, np.int64)) if x.tensor.is_static else ops.node("Shape", x)
    )
    mask = ops.node("Expand", constant(one.reshape(())), shape)
    return x, mask


def _batch_normalization(legacy: Legacy) -> Node | None:
    """The inference form: one result, from given statistics."""
    if legacy.attrs.get("training_mode") or not legacy.attrs.get("spatial", 1):
        return None
    return ops.node(
        "BatchNormalization", *legacy.inputs[:5], epsilon=legacy.attrs.get("epsilon", 1e-5)
    )


def _cast_like(legacy: Legacy) -> Node:
    """Only the dtype of the second input counts."""
    to = ONNX_DTYPES.index(legacy.input(1).tensor.dtype)
    return ops.make("Cast", legacy.inputs[:1], {**legacy.attrs, "to": to})


_SIMPLIFIED: dict[str, Rule] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "BatchNormalization": _batch_normalization,
    "CastLike": _cast_like,
}
