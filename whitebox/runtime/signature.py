"""Checks feeds against a model's signature, and brings arrays into the form that kernels take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whitebox.errors import InvalidInput
from whitebox.ir.types import TensorType, dtype_name, numpy_dtype
from whitebox.registry.records import TensorSpec

# No real tensor has more elements; a larger one is an attack or a mistake.
MAX_ELEMENTS = 1 << 40


def check_feeds(
    model: str, specs: Sequence[TensorSpec], feeds: Mapping[str, Any]
) -> tuple[list[Any], dict[str, tuple[int, ...]]]:
    """(values in the signature's order, shape of each tensor by name).

    Raises InvalidInput naming the model, the input and what would fit.
    """
    names = [spec.name for spec in specs]
    unknown = [name for name in feeds if name not in names]
    if unknown:
        raise InvalidInput(
            f"model {model} has no input {unknown[0]!r}; its inputs are {', '.join(names)}"
        )
    missing = [name for name in names if name not in feeds]
    if missing:
        raise InvalidInput(
            f"model {model}: input {missing[0]!r} is missing; its inputs are {', '.join(names)}"
        )
    values: list[Any] = []
    shapes: dict[str, tuple[int, ...]] = {}
    symbols: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if not isinstance(spec.type, TensorType):
            values.append(feeds[spec.name])
            continue
        array = _as_tensor(model, spec.name, spec.type, feeds[spec.name])
        _check_shape(model, spec.name, spec.type, array.shape, symbols)
        values.append(array)
        shapes[spec.name] = array.shape
    return values, shapes


def _as_tensor(model: str, name: str, type: TensorType, value: Any) -> np.ndarray:
    """`value` as a native-endian array of the declared dtype; only lists are converted."""
    if not isinstance(value, np.ndarray):
        value = _from_python(model, name, type, value)
    try:
        found = dtype_name(value.dtype)
    except KeyError:
        found = str(value.dtype)
    if found != type.dtype:
        raise InvalidInput(
            f"model {model}: input {name!r} is {found}, not {type.dtype}; "
            f"convert it, for example with .astype('{type.dtype}')"
        )
    return np.asarray(value, numpy_dtype(type.dtype))  # copied only to swap bytes


def _from_python(model: str, name: str, type: TensorType, value: Any) -> np.ndarray:
    """A list or a number, converted as numpy would."""
    try:
        given = np.asarray(value)
        if given.dtype.kind in "USO" or given.size == 0 or type.dtype == "string":
            return np.asarray(value, numpy_dtype(type.dtype))
        return given.astype(numpy_dtype(type.dtype), casting="same_kind")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"model {model}: input {name!r} cannot be read as {type}: {error}"
        ) from error


def _check_shape(
    model: str,
    name: str,
    type: TensorType,
    shape: tuple[int, ...],
    symbols: dict[str, tuple[int, str]],
) -> None:
    if type.shape is None:
        return
    if len(shape) != len(type.shape):
        raise InvalidInput(
            f"model {model}: input {name!r} has {len(shape)} dimensions {list(shape)}, "
            f"not {len(type.shape)} as in {type}"
        )
    for axis, (size, dim) in enumerate(zip(shape, type.shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise InvalidInput(
                f"model {model}: input {name!r} has size {size} along axis {axis}, "
                f"not {dim} as in {type}"
            )
        if isinstance(dim, str):
            other, owner = symbols.setdefault(dim, (size, name))
            if other != size:
                raise InvalidInput(
                    f"model {model}: {dim!r} is {other} in input {owner!r} "
                    f"and {size} along axis {axis} of input {name!r}; they must be equal"
                )
