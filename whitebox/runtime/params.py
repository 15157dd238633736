"""Parameters: the values that constant expressions over a model's weights have.

A weight as it came with the model is mapped from the blob store. A derived one (folded, packed) is
evaluated once, kept in the store under the expression's digest, and from then on mapped as well,
so it is shared by every process, and by every model with the same weights.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from whitebox.ir import onnx_schema
from whitebox.ir.graph import OUTPUT, Graph, Node, topological

# Smaller results are evaluated anew each time: cheaper than a look-up on disk.
KEPT_BYTES = 1 << 16


class DerivedStore(Protocol):
    """Where derived arrays are kept between processes."""

    def get_derived(self, key: str) -> np.ndarray | None: ...

    def put_derived(self, entries: Mapping[str, np.ndarray]) -> None: ...


class ParameterStore:
    """Arrays of constant expressions, one copy a process. Thread-safe."""

    def __init__(self, derived: DerivedStore | None = None) -> None:
        self._derived = derived
        self._alive: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()
        self._lock = threading.Lock()

    def resolve(self, graph: Graph) -> list[np.ndarray]:
        """The value of each output of a graph that consists of constant expressions."""
        roots = [node for _, node in graph.model.outputs]
        with self._lock:
            known: dict[Node, np.ndarray] = {}
            for node in dict.fromkeys(roots):
                array = self._find(node)
                if array is not None:
                    known[node] = array
            missing = [node for node in dict.fromkeys(roots) if node not in known]
            fresh = _evaluate(missing)
            known.update(fresh)
            self._keep(fresh)
            for node, array in known.items():
                self._alive[node.digest] = array
            return [known[node] for node in roots]

    def _find(self, node: Node) -> np.ndarray | None:
        array = self._alive.get(node.digest)
        if array is None and node.is_constant:
            array = node.value
        elif array is None and self._derived is not None and _is_large(node):
            array = self._derived.get_derived(node.digest)
        return array

    def _keep(self, fresh: dict[Node, np.ndarray]) -> None:
        """Store what was expensive, and use the mapped copy from now on."""
        large = {node.digest: array for node, array in fresh.items() if _is_large(node)}
        if self._derived is not None and large:
            self._derived.put_derived(large)


def _is_large(node: Node) -> bool:
    return node.tensor.dtype != "string" and node.tensor.nbytes >= KEPT_BYTES


def _evaluate(roots: list[Node]) -> dict[Node, np.ndarray]:
    """Values of constant expressions; intermediate results are dropped after their last use."""
    order = topological(roots)
    uses = dict.fromkeys(order, 0)
    for node in order:
        for source in node.inputs:
            if source is not None:
                uses[source] += 1
    wanted = set(roots)
    values: dict[Node, list[np.ndarray]] = {}
    for node in order:
        if node.is_constant:
            values[node] = [node.value]
            continue
        sources = [source for source in node.inputs if source is not None]
        if node.op == OUTPUT:
            values[node] = [values[sources[0]][node.attr("index")]]
        else:
            arrays = [None if s is None else values[s][0] for s in node.inputs]
            values[node] = onnx_schema.evaluate(node, arrays)
        for source in sources:
            uses[source] -= 1
            if not uses[source] and source not in wanted:
                del values[source]
    # (ascontiguousarray would turn a scalar into a vector)
    return {node: np.require(values[node][0], requirements="C") for node in roots}
