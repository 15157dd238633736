"""Calls of light models: those that run for so short a time that Python's own work counts.

Such a call has tables and an arena to itself, so it needs no lock, which costs as much as a small
kernel: a thread takes an idle program, or makes one more. What a call uses is bound beforehand,
arrays for results are made several at a time, and the function is written out for its inputs and
outputs: loops over them would double the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.runtime.plan import Operand
from whitebox.runtime.program import Program
from whitebox.runtime.texts import native_texts

# Arrays of exactly the plan's types in C order → results; None: go the long way.
PlainCall = Callable[..., "list[np.ndarray] | None"]
Makers = Sequence[Callable[[], list[np.ndarray]]]
Fail = Callable[[Program], WhiteboxError]


# Calls of one model that may be under way at a time; more go the long way. A thread that has lost
# its turn inside a call keeps a program for as long as others run.
MOST_PROGRAMS = 16


def light_call(
    inputs: Sequence[Operand],
    make_program: Callable[[], Program],
    interpret: Any,
    makers: Makers,
    fail: Fail,
) -> PlainCall:
    """A call that fills in a program, which no other call has meanwhile, and runs it."""
    first = make_program()
    given, made = first.places[: len(inputs)], first.places[len(inputs) :]
    arrays = [f"array_{i}" for i in range(len(inputs))]
    texts = [i for i, operand in enumerate(inputs) if operand.dtype == "string"]
    results = [f"result_{i}" for i in range(len(made))]
    pools = "".join(f", pool_{i}" for i in range(len(made)))
    source = f"""
def call({", ".join(arrays)}):
    try:
        mine = take()  # atomic, as giving back is
    except IndexError:
        mine = another()
        if mine is None:
            return None
    program, cells, words{pools} = mine
    try:
        {_lines("array_{1}, kept_{1} = native_texts(array_{1})", texts)}
        {_lines("if not pool_{0}: pool_{0}.extend(make_{0}())", made)}
        {_lines("result_{0} = pool_{0}.pop()", made)}
        {_lines("cells[{1}] = id(result_{0})", made)}
        {_lines("cells[{1}] = id(array_{0})", given)}
        if interpret(words):
            raise fail(program)
        return [{", ".join(results)}]
    finally:
        give_back(mine)
"""

    def ready(program: Program) -> tuple[Any, ...]:
        # With arrays for results of its own: taking one of a common pool would not be atomic.
        return (program, program.cells, program.words, *([] for _ in makers))

    left = [None] * (MOST_PROGRAMS - 1)

    def another() -> tuple[Any, ...] | None:
        try:
            left.pop()
        except IndexError:
            return None
        return ready(make_program())

    idle = [ready(first)]
    names = {
        "take": idle.pop,
        "give_back": idle.append,
        "another": another,
        "interpret": interpret,
        "native_texts": native_texts,
        "fail": fail,
        **{f"make_{i}": make for i, make in enumerate(makers)},
    }
    return written_out(source, names)


def _lines(form: str, places: Sequence[int]) -> str:
    """A statement for each place, with its number and the place filled in."""
    return "\n        ".join(form.format(i, place) for i, place in enumerate(places)) or "pass"


def written_out(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    """The one function that `source` defines. It sees `names` as its globals."""
    made: dict[str, Callable[..., Any]] = {}
    exec(_compiled(source), names, made)
    (function,) = made.values()
    return function


@lru_cache(maxsize=1024)  # models of one signature have one source
def _compiled(source: str) -> CodeType:
    return compile(source, __name__, "exec")
