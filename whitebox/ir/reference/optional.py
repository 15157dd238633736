"""Optional values: the value itself where there is one, else None."""

from __future__ import annotations

from typing import Any

import numpy as np

from whitebox.errors import InvalidInput
from whitebox.ir.graph import Node
from whitebox.ir.reference.table import Values, means


@means("Optional")
def _optional(node: Node, values: Values) -> list[Any]:
    return [values[0] if values else None]


@means("OptionalHasElement")
def _has_element(node: Node, values: Values) -> Any:
    return np.array(bool(values) and values[0] is not None)


@means("OptionalGetElement")
def _get_element(node: Node, values: Values) -> list[Any]:
    if values[0] is None:
        raise InvalidInput("OptionalGetElement of an optional input that is empty; give a value")
    return [values[0]]
