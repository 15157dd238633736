"""The table of operators whose meaning is written in numpy here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from whitebox.ir.graph import Node

# Arrays, None for an absent input, lists for sequences.
Values: TypeAlias = Sequence[Any]
Semantics: TypeAlias = Callable[[Node, Values], Any]

# Operator → the first version whose meaning this is, and the function. A function may return
# NotImplemented for a case that it leaves to onnx's own reference.
SEMANTICS: dict[str, tuple[int, Semantics]] = {}


def means(*names: str, since: int = 0) -> Callable[[Semantics], Semantics]:
    """Register a function as the meaning of the operators named."""

    def register(function: Semantics) -> Semantics:
        SEMANTICS.update(dict.fromkeys(names, (since, function)))
        return function

    return register
