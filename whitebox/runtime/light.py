"""Calls of light models: those that run for so short a time that Python's own work counts.

Such a call has tables and an arena of its own, so it needs no lock, which costs as much as a small
kernel: one thread at a time takes the token, others are told to go the long way. What a call uses
is bound beforehand, arrays for results are made several at a time, and the function is written out
for its inputs and outputs: loops over them would double the time.
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
    count = len(program.places) - len(makers)
    given, made = program.places[:count], program.places[count:]
    arrays = [f"array_{i}" for i in range(count)]
    results = [f"result_{i}" for i in range(len(made))]
    pools: list[list[np.ndarray]] = [[] for _ in makers]
    tokens = [owner]
    source = f"""
def call({", ".join(arrays)}):
    try:
        token = take()  # atomic, as giving back is
    except IndexError:
        return None
    try:
        {_lines("if not pool_{0}: pool_{0}.extend(make_{0}())", made)}
        {_lines("result_{0} = pool_{0}.pop()", made)}
        {_lines("cells[{1}] = id(result_{0})", made)}
        {_lines("cells[{1}] = id(array_{0})", given)}
        if interpret(words):
            raise fail(program)
        return [{", ".join(results)}]
    finally:
        give_back(token)
"""
    names = {
        "take": tokens.pop,
        "give_back": tokens.append,
        "cells": program.cells,
        "interpret": interpret,
        "words": program.words,
        "program": program,
        "fail": fail,
        **{f"make_{i}": make for i, make in enumerate(makers)},
        **{f"pool_{i}": pool for i, pool in enumerate(pools)},
    }
    return written_out(source, names)


def _lines(form: str, places: Sequence[int]) -> str:
    """A statement for each place, with its number and the place filled in."""
    return "\n        ".join(form.format(i, place) for i, place in enumerate(places)) or "pass"


def written_out(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    """The one function that `source` defines. It sees `names` as its globals."""
    made: dict[str, Callable[..., Any]] = {}
    exec(compile(source, __name__, "exec"), names, made)
    (function,) = made.values()
    return function
