"""Parameters: the values that constant expressions over a model's weights have.

A weight as it came with the model is mapped from the blob store. A derived one (folded, packed) is
evaluated once, kept in the store under the expression's digest, and mapped by every later process,
and for every model with the same weights. Nobody waits for it to be written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.ir import onnx_schema
from whitebox.ir.graph import OUTPUT, Graph, Node, topological
from whitebox.runtime.device import aligned

log = logging.getLogger(__name__)

# Smaller results are evaluated anew each time: cheaper than a look-up on disk.
KEPT_BYTES = 1 << 16

# Tasks a thread: enough to even out what they take, few because most nodes take next to nothing.
_TASKS = 8

# The first answers come before derived arrays are written: both want the same cores.
WRITE_DELAY_S = 1.0


class DerivedStore(Protocol):
    """Where derived arrays are kept between processes."""

    def get_derived(self, key: str) -> np.ndarray | None: ...

    def put_derived(self, entries: Mapping[str, np.ndarray]) -> None: ...


class ParameterStore:
    """Arrays of constant expressions, one copy a process. Thread-safe.

    `threads` evaluate at a time. `close` waits for what is still to be written.
    """

    def __init__(self, derived: DerivedStore | None = None, threads: int = 1) -> None:
        self._derived = derived
        self._threads = threads
        self._alive: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._writers: list[threading.Thread] = []

    def resolve(self, graph: Graph) -> list[np.ndarray]:
        """The value of each output of a graph that consists of constant expressions."""
        roots = [node for _, node in graph.model.outputs]
        with self._lock:
            known = self._each(self._find, dict.fromkeys(roots))
            fresh = self._each(_value, [node for node in dict.fromkeys(roots) if node not in known])
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

    def _each(
        self, find: Callable[[Node], np.ndarray | None], nodes: Iterable[Node]
    ) -> dict[Node, np.ndarray]:
        """What is found for the nodes. numpy and checksums let threads run meanwhile."""
        wanted = list(nodes)
        count = 1 if self._threads < 2 else min(len(wanted), _TASKS * self._threads)

        def find_all(start: int) -> dict[Node, np.ndarray]:
            pairs = [(node, find(node)) for node in wanted[start::count]]
            return {node: array for node, array in pairs if array is not None}

        if count < 2:
            return find_all(0) if wanted else {}
        with ThreadPoolExecutor(self._threads, thread_name_prefix="parameters") as pool:
            return {
                n: array for part in pool.map(find_all, range(count)) for n, array in part.items()
            }

    def _keep(self, fresh: dict[Node, np.ndarray]) -> None:
        """Have what was expensive written, in the background."""
        large = {node.digest: array for node, array in fresh.items() if _is_large(node)}
        if self._derived is None or not large:
            return
        writer = threading.Thread(target=self._write, args=(self._derived, large), name="derived")
        self._writers = [w for w in self._writers if w.is_alive()] + [writer]
        writer.start()

    def _write(self, derived: DerivedStore, arrays: Mapping[str, np.ndarray]) -> None:
        self._closed.wait(WRITE_DELAY_S)
        try:
            derived.put_derived(arrays)
        except (WhiteboxError, OSError) as error:
            log.warning("derived weights were not kept, the next process makes them: %s", error)

    def close(self) -> None:
        """Write what waits to be written."""
        self._closed.set()
        with self._lock:
            writers = self._writers
        for writer in writers:
            writer.join()


def _is_large(node: Node) -> bool:
    return node.tensor.dtype != "string" and node.tensor.nbytes >= KEPT_BYTES


def _value(root: Node) -> np.ndarray:
    """The value of a constant expression; intermediate results are dropped after their last use."""
    order = topological([root])
    uses = dict.fromkeys(order, 0)
    for node in order:
        for source in node.inputs:
            if source is not None:
                uses[source] += 1
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
            if not uses[source]:
                del values[source]
    value = values[root][0]
    return value if value.dtype == object else aligned(value)
