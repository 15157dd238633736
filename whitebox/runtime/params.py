"""Parameters: the values that a plan's constant expressions have over a model's weights.

A weight as it came with the model is mapped from the blob store. A derived one (folded, packed) is
evaluated once, kept in the store under the digests of the expression and its weights, and mapped by
every later process, and for every model with the same weights. Nobody waits for it to be written.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.ir import serial
from whitebox.ir.graph import OUTPUT, Node, Tensor, topological
from whitebox.ir.types import TensorType
from whitebox.runtime.device import aligned
from whitebox.runtime.plan import Parameter, Plan

log = logging.getLogger(__name__)

K = TypeVar("K")

# Where a model's derived parameters take less, they are evaluated anew each time: cheaper than to
# look them up on disk.
KEPT_BYTES = 1 << 16

# Tasks a thread: enough to even out what they take, few because most take next to nothing.
_TASKS = 8

# The first answers come before derived arrays are written: both want the same cores.
WRITE_DELAY_S = 1.0


class DerivedStore(Protocol):
    """Where derived arrays are kept between processes."""

    def get_derived(self, keys: Iterable[str]) -> dict[str, np.ndarray]: ...

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

    def resolve(self, plan: Plan, weights: Sequence[Tensor]) -> list[np.ndarray]:
        """The value of each parameter of a plan, for a model with these weights."""
        wanted = [(_key(plan, each, weights), each) for each in plan.parameters]
        with self._lock:
            known = {k: array for k, _ in wanted if (array := self._alive.get(k)) is not None}
            missing = {key: each for key, each in wanted if key not in known}
            known.update(
                (key, weights[each.weights[0]].array)
                for key, each in missing.items()
                if each.expression < 0
            )
            derived = {key: each for key, each in missing.items() if each.expression >= 0}
            known.update(self._derived_values(plan, weights, derived))
            self._alive.update(known)
            return [known[key] for key, _ in wanted]

    def _derived_values(
        self, plan: Plan, weights: Sequence[Tensor], wanted: Mapping[str, Parameter]
    ) -> dict[str, np.ndarray]:
        """The values of expressions, from the store or evaluated."""
        if _derived_bytes(plan) < KEPT_BYTES:
            return {key: _value(plan, each, weights) for key, each in wanted.items()}
        known = {} if self._derived is None else self._derived.get_derived(wanted)
        missing = {key: each for key, each in wanted.items() if key not in known}
        fresh = self._each(lambda each: _value(plan, each, weights), missing)
        if self._derived is not None and fresh:
            self._keep(self._derived, fresh)
        return {**known, **fresh}

    def _each(
        self, evaluate: Callable[[Parameter], np.ndarray], wanted: Mapping[K, Parameter]
    ) -> dict[K, np.ndarray]:
        """The value of each. numpy lets threads run meanwhile."""
        items = list(wanted.items())
        count = min(len(items), _TASKS * self._threads)
        if not count:
            return {}

        def evaluate_all(start: int) -> dict[K, np.ndarray]:
            return {key: evaluate(parameter) for key, parameter in items[start::count]}

        with ThreadPoolExecutor(self._threads, thread_name_prefix="parameters") as pool:
            parts = pool.map(evaluate_all, range(count))
            return {key: array for part in parts for key, array in part.items()}

    def _keep(self, store: DerivedStore, arrays: Mapping[str, np.ndarray]) -> None:
        """Have what was evaluated written, in the background."""
        numeric = {key: array for key, array in arrays.items() if array.dtype != object}
        writer = threading.Thread(target=self._write, args=(store, numeric), name="derived")
        self._writers = [w for w in self._writers if w.is_alive()] + [writer]
        writer.start()

    def _write(self, derived: DerivedStore, arrays: Mapping[str, np.ndarray]) -> None:
        self._closed.wait(WRITE_DELAY_S)
        try:
            derived.put_derived(arrays)
        except (WhiteboxError, OSError) as error:
            log.warning("derived weights were not kept, the next process makes them: %s", error)

    @property
    def nbytes(self) -> int:
        """What the arrays that anybody holds take."""
        with self._lock:
            return sum(array.nbytes for array in self._alive.values())

    def close(self) -> None:
        """Write what waits to be written."""
        self._closed.set()
        with self._lock:
            writers = self._writers
        for writer in writers:
            writer.join()


def _key(plan: Plan, parameter: Parameter, weights: Sequence[Tensor]) -> str:
    """The address of a parameter's value, whatever model or plan asks for it."""
    given = [weights[position] for position in parameter.weights]
    if parameter.expression < 0:
        return f"{given[0].digest} {given[0].type}"
    parts = [plan.expressions[parameter.expression].digest, *(each.digest for each in given)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def _derived_bytes(plan: Plan) -> int:
    numbers = (each.expression for each in plan.parameters)
    return sum(plan.expressions[number].nbytes for number in numbers if number >= 0)


def _value(plan: Plan, parameter: Parameter, weights: Sequence[Tensor]) -> np.ndarray:
    """The value of an expression; intermediate results are dropped after their last use."""
    from whitebox.ir import onnx_schema  # slow to import, and most processes find all values

    data = plan.expressions[parameter.expression].data
    graph = serial.decode(data, _inline_only, [weights[place] for place in parameter.weights])
    ((_, root),) = graph.model.outputs
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


def _inline_only(digest: str, type: TensorType) -> Tensor:
    raise ValueError(f"the plan refers to the bytes {digest} ({type}), which it should hold")
