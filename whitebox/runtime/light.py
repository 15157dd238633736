"""Calls of light models: those that run for so short a time that Python's own work counts.

Such a call has tables and an arena of its own, so it needs no lock, which costs as much as a small
kernel: one thread at a time takes the token, others are told to go the long way. What a call uses
is bound beforehand, and arrays for results are made several at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.runtime.program import Program

# Arrays of exactly the plan's types in C order → results; None: go the long way.
PlainCall = Callable[..., "list[np.ndarray] | None"]
Makers = Sequence[Callable[[], list[np.ndarray]]]
Fail = Callable[[Program], WhiteboxError]


def light_call(
    program: Program, interpret: Any, makers: Makers, owner: object, fail: Fail
) -> PlainCall:
    """A call that fills in `program`, whose arena `owner` keeps alive, and runs it."""
    inputs = len(program.places) - len(makers)
    if inputs == len(makers) == 1:
        return _one_to_one(program, interpret, makers[0], owner, fail)
    given, words, cells = program.places[:inputs], program.words, program.cells
    made = [
        (place, list[np.ndarray](), make)
        for place, make in zip(program.places[inputs:], makers, strict=True)
    ]
    tokens = [owner]

    def call(*arrays: np.ndarray) -> list[np.ndarray] | None:
        try:
            token = tokens.pop()  # atomic, as `append` is
        except IndexError:
            return None
        try:
            results = []
            for place, pool, make in made:
                if not pool:
                    pool.extend(make())
                result = pool.pop()
                cells[place] = id(result)
                results.append(result)
            for place, array in zip(given, arrays, strict=True):
                cells[place] = id(array)
            if interpret(words):
                raise fail(program)
            return results
        finally:
            tokens.append(token)

    return call


def _one_to_one(
    program: Program,
    interpret: Any,
    make: Callable[[], list[np.ndarray]],
    owner: object,
    fail: Fail,
) -> PlainCall:
    """The same for one input and one output, without loops: they would double the time."""
    (given, place), words, cells = program.places, program.words, program.cells
    pool: list[np.ndarray] = []
    tokens = [owner]

    def call(array: np.ndarray) -> list[np.ndarray] | None:
        try:
            token = tokens.pop()
        except IndexError:
            return None
        try:
            if not pool:
                pool.extend(make())
            result = pool.pop()
            cells[given] = id(array)
            cells[place] = id(result)
            if interpret(words):
                raise fail(program)
            return [result]
        finally:
            tokens.append(token)

    return call
