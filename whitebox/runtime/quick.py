"""The short way from feeds to outputs, for calls about which nothing is unusual.

A small model runs in about a microsecond, so a few look-ups more would double its time. What is
unusual (another dtype, a list, a strided array, a new shape, a wrong name) is left to the long way,
which converts, compiles, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.registry.records import TensorSpec
from whitebox.runtime.light import PlainCall, written_out

Shapes = tuple[tuple[int, ...], ...]
Answer = Callable[[Mapping[str, Any]], "list[Any] | None"]


class QuickCalls:
    """The calls of one model by the shapes of its inputs.

    `answer(feeds)` gives all outputs in order, or None when the long way has to be taken.
    """

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._calls: dict[Any, PlainCall] = {}
        self._single = len(inputs) == 1
        expected = [
            (spec.name, numpy_dtype(spec.type.dtype))
            for spec in inputs
            if isinstance(spec.type, TensorType)
        ]
        self.answer: Answer = lambda feeds: None
        if len(expected) == len(inputs):
            self.answer = _answer(expected, self._calls)

    def add(self, shapes: Shapes, call: PlainCall) -> None:
        """Answer inputs of these shapes with `call` from now on."""
        self._calls[shapes[0] if self._single else shapes] = call

    def remove(self, shapes: Shapes) -> None:
        """Leave these shapes to the long way; they need not be known."""
        self._calls.pop(shapes[0] if self._single else shapes, None)


def _answer(expected: list[tuple[str, np.dtype]], calls: Mapping[Any, PlainCall]) -> Answer:
    """Written out for its inputs: a loop over them would double the time."""
    arrays = [f"array_{i}" for i in range(len(expected))]
    found = "; ".join(f"{array} = get(name_{i})" for i, array in enumerate(arrays)) or "pass"
    # Arrays are rarely of a subclass. Equal dtypes are nearly always the same object; those of
    # arrays that were unpickled are not.
    as_declared = "".join(
        f" and type({array}) is ndarray and {array}.flags.c_contiguous"
        f" and ({array}.dtype is dtype_{i} or {array}.dtype == dtype_{i})"
        for i, array in enumerate(arrays)
    )
    shapes = ", ".join(f"{array}.shape" for array in arrays)
    source = f"""
def answer(feeds):
    get = feeds.get
    {found}
    if len(feeds) == {len(arrays)}{as_declared}:
        call = find({shapes if len(arrays) == 1 else f"({shapes})"})
        if call is not None:
            return call({", ".join(arrays)})
    return None
"""
    names = {
        "find": calls.get,
        "ndarray": np.ndarray,
        **{f"name_{i}": name for i, (name, _) in enumerate(expected)},
        **{f"dtype_{i}": dtype for i, (_, dtype) in enumerate(expected)},
    }
    return written_out(source, names)
