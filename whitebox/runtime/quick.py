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
from whitebox.runtime.light import PlainCall

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
        self.answer: Answer
        if len(expected) < len(inputs):
            self.answer = lambda feeds: None
        elif self._single:
            self.answer = _answer_one(*expected[0], self._calls)
        else:
            self.answer = _answer_any(expected, self._calls)

    def add(self, shapes: Shapes, call: PlainCall) -> None:
        """Answer inputs of these shapes with `call` from now on."""
        self._calls[shapes[0] if self._single else shapes] = call

    def remove(self, shapes: Shapes) -> None:
        """Leave these shapes to the long way; they need not be known."""
        self._calls.pop(shapes[0] if self._single else shapes, None)


def _answer_one(name: str, dtype: np.dtype, calls: Mapping[Any, PlainCall]) -> Answer:
    """For models with one input, which is nearly all of the small ones."""
    ndarray = np.ndarray

    def answer(feeds: Mapping[str, Any]) -> list[Any] | None:
        array = feeds.get(name)
        # Equal dtypes are nearly always the same object, and arrays rarely of a subclass.
        if (
            type(array) is ndarray
            and array.dtype is dtype
            and array.flags.c_contiguous
            and len(feeds) == 1
        ):
            call = calls.get(array.shape)
            if call is not None:
                return call(array)
        return None

    return answer


def _answer_any(expected: list[tuple[str, np.dtype]], calls: Mapping[Any, PlainCall]) -> Answer:
    ndarray = np.ndarray

    def answer(feeds: Mapping[str, Any]) -> list[Any] | None:
        if len(feeds) != len(expected):
            return None
        arrays, shapes = [], []
        for name, dtype in expected:
            array = feeds.get(name)
            if (
                type(array) is not ndarray
                or array.dtype is not dtype
                or not array.flags.c_contiguous
            ):
                return None
            arrays.append(array)
            shapes.append(array.shape)
        call = calls.get(tuple(shapes))
        return None if call is None else call(*arrays)

    return answer
