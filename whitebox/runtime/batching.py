"""Batches: requests of one model, or of several that share most of their work, in one run.

A stage of the scheduler stands for one model, or for models with a common encoder, at one shape of
an item. It learns to run 2, 4, 8, … items at once, in the background, when requests have been seen
to wait. Then what the models share runs once for the whole batch, and the rest of each model once
for its rows. A batch never changes an answer: it is proved first that the rows of a batch are
independent (passes/batch_axes), and then tried whether the kernels made for the batch round as
those for one item do. Where they do not, requests go one by one, and `reason` says why.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.runtime.device import Arena
from whitebox.runtime.executable import Executable

if TYPE_CHECKING:
    from whitebox.compiler.partition import Stage
    from whitebox.compiler.structure import Structured
    from whitebox.ir.graph import Graph, Node
    from whitebox.runtime.engine import Engine, Runnable
    from whitebox.runtime.prepare import Preparer
    from whitebox.runtime.served import ServedModel

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
Pair = tuple["Runnable", Sequence[Any]]
Outputs = list[Any]

# A model that has had so many requests wait is worth learning to batch.
WAITS = 32
MAX_ROWS = 16
# Light models take microseconds: taking turns costs more than any of them.
LIGHT_ROWS = 32
# Models ride together when this part of the bytes that each of them moves is in what they share.
COMMON = 0.5


class LightStage:
    """The one stage of all models that run for microseconds: one turn for several requests."""

    max_batch = LIGHT_ROWS

    def run(self, pairs: Sequence[Pair], arena: Arena) -> Sequence[Outputs | BaseException]:
        return [_alone(pair, arena) for pair in pairs]


LIGHT = LightStage()


class Batcher:
    """Notices who waits, and has batches learnt in the background. Thread-safe."""

    def __init__(self, preparer: Preparer, engine: Engine) -> None:
        self._preparer = preparer
        self._engine = engine
        self._waits: WeakKeyDictionary[Executable, int] = WeakKeyDictionary()
        self._stages: dict[Any, WeakSet[BatchStage]] = defaultdict(WeakSet)
        self._lock = threading.Lock()

    def waited(self, model: ServedModel, shapes: Shapes, work: Runnable) -> None:
        """A request for `work`, by which `model` runs at these shapes, found others waiting."""
        if not isinstance(work, Executable) or work.general or work.stage is not None:
            return
        with self._lock:
            count = self._waits[work] = self._waits.get(work, 0) + 1
        if count == WAITS and all(map(_is_item, model.inputs, shapes.values())):
            self._preparer.background.submit(lambda: self._join(model, dict(shapes), work))

    def _join(self, model: ServedModel, shapes: Shapes, work: Executable) -> None:
        """Put a model into the stage of those it shares most with, or into one of its own."""
        from whitebox.compiler.partition import computed

        graph = self._preparer.maker.fused(model.structured, shapes, general=False)
        nodes = frozenset(computed(graph))
        key = tuple(node for _, node in graph.model.inputs)
        for stage in list(self._stages[key]):
            common = stage.nodes & nodes
            if _moved(common) >= COMMON * max(_moved(nodes), _moved(stage.nodes)):
                stage.nodes = common
                break
        else:
            stage = BatchStage(shapes, nodes, self._preparer, self._engine)
            self._stages[key].add(stage)
        stage.join(work, model.structured)
        work.stage = stage


class BatchStage:
    """The stage of the scheduler for models that ride together at one shape of an item.

    `max_batch` grows with what has been learnt; while it is 1 there are no batches. `nodes` are
    what its members have in common when they run one item.
    """

    def __init__(
        self, shapes: Shapes, nodes: frozenset[Node], preparer: Preparer, engine: Engine
    ) -> None:
        self.max_batch = 1
        self.reason = ""
        self.nodes = nodes
        self._shapes = shapes
        self._preparer = preparer
        self._engine = engine
        self._sizes: dict[int, _Size] = {}
        self._members: WeakKeyDictionary[Executable, Structured] = WeakKeyDictionary()
        self._full = 0

    def run(self, pairs: Sequence[Pair], arena: Arena) -> Sequence[Outputs | BaseException]:
        """The outputs of each runnable for its inputs, or what it raised."""
        self._note(len(pairs))
        size = next((each for n, each in self._sizes.items() if n >= len(pairs)), None)
        if len(pairs) > 1 and size is not None and all(work in size for work, _ in pairs):
            try:
                return size.run(pairs, arena)
            except Exception as error:
                log.warning("a batch of %d failed, each goes alone: %s", len(pairs), error)
        return [_alone(pair, arena) for pair in pairs]

    def _note(self, items: int) -> None:
        """Learn the next size once batches are full and more requests wait."""
        if items < self.max_batch or self.max_batch >= MAX_ROWS or not self._engine.queued:
            return
        self._full += 1
        if self._full % WAITS == 0 and not self.reason:
            self._preparer.background.submit(self._grow)

    def join(self, work: Executable, model: Structured) -> None:
        """Take a model in, at every size that has been learnt; the first size is learnt now."""
        if not self._sizes:
            self._members[work] = model
            self._grow()
        elif not any(self._learn(n, size, {work: model}) for n, size in self._sizes.items()):
            self._members[work] = model

    def _grow(self) -> None:
        """Learn the next size."""
        if self.max_batch >= MAX_ROWS or self.reason:
            return
        n = self.max_batch * 2
        size = _Size(n, self._preparer, self._engine)
        self.reason = self._learn(n, size, self._members)
        if not self.reason:
            self._sizes[n] = size
            self.max_batch = n

    def _learn(self, n: int, size: _Size, models: Mapping[Executable, Structured]) -> str:
        """Teach a size some models; the reason why that is not possible, or nothing."""
        try:
            for work, model in list(models.items()):
                size.add(work, model, {k: (n, *dims[1:]) for k, dims in self._shapes.items()})
        except WhiteboxError as error:
            log.info("no batches of %d: %s", n, error)
            return f"no batches of {n}: {error}"
        return ""


class _Size:
    """How the members of a stage run in a batch of `rows`: what they share, then each its own."""

    def __init__(self, rows: int, preparer: Preparer, engine: Engine) -> None:
        self._rows = rows
        self._preparer = preparer
        self._engine = engine
        self._common: set[Node] = set()
        self._axes: dict[str, tuple[int | None, ...]] = {}  # by structure, once it has been tried
        # Replaced as one, so that a batch that runs meanwhile sees what fits together.
        self._how: tuple[_Part | None, WeakKeyDictionary[Executable, _Member]]
        self._how = (None, WeakKeyDictionary())

    def __contains__(self, work: object) -> bool:
        return work in self._how[1]

    def add(self, work: Executable, model: Structured, shapes: Shapes) -> None:
        """Learn to run a model. Raises WhiteboxError saying why that is not possible."""
        from whitebox.compiler.partition import computed, every, partition
        from whitebox.passes import specialize
        from whitebox.passes.batch_axes import batch_axes

        tried = self._axes.get(model.digest)
        axes = tried or batch_axes(specialize(model.structure.graph, dict(shapes)), self._rows)
        self._preparer.compile(model, shapes, patiently=True)
        graph = self._preparer.maker.fused(model, shapes, general=False)
        members = {**dict(self._how[1]), work: _Member(graph, axes)}
        common = self._common
        if len(members) > 1 and not (common and common <= set(computed(graph))):
            common = every(member.graph for member in members.values())
        parts = partition([member.graph for member in members.values()], common)
        shared = None if parts.shared is None else self._part(parts.shared)
        for (each, member), own in zip(list(members.items()), parts.own, strict=True):
            # What the others have stays as it is, unless what is shared changes.
            if each is work or common is not self._common:
                part = None if own is None else self._part(own)
                members[each] = _Member(member.graph, member.axes, part)
        if tried is None:
            self._try(work, members[work], shared)
            self._axes[model.digest] = axes
        self._common = common
        self._how = shared, WeakKeyDictionary(members)

    def _part(self, stage: Stage) -> _Part:
        return _Part(self._preparer.stage(stage.graph, None, self._engine), stage)

    def run(self, pairs: Sequence[Pair], arena: Arena) -> list[Outputs]:
        """The outputs of each pair."""
        shared, known = self._how
        members = {work: known[work] for work, _ in pairs}  # type: ignore[index]
        return _run(pairs, members, shared, self._rows, arena)

    def _try(self, work: Executable, member: _Member, shared: _Part | None) -> None:
        """See that a batch gives the bits that each item alone gets. Raises WhiteboxError."""
        random = np.random.default_rng(0)
        types = [node.tensor for _, node in member.graph.model.inputs]
        pairs = [(work, [_seeded(type, random) for type in types]) for _ in range(self._rows)]
        trial = _Trial(pairs, member, shared, self._rows)
        alone, together = self._engine.run(trial, ())
        for one, other in zip(alone, together, strict=True):
            for value, row in zip(one, other, strict=True):
                if not np.array_equal(value, row, equal_nan=value.dtype.kind == "f"):
                    raise WhiteboxError("the kernels for a batch round in another way than for one")


@dataclass(frozen=True)
class _Member:
    """A model in a batch: its graph, the axes of its outputs, and what only it computes."""

    graph: Graph
    axes: tuple[int | None, ...]
    own: _Part | None = None


class _Part:
    """A stage of the partition, ready to run."""

    def __init__(self, work: Executable, stage: Stage) -> None:
        self._work = work
        self._reads, self._writes = stage.reads, stage.writes

    def run(self, values: dict[Node, Any], arena: Arena) -> None:
        """Compute what the stage writes from what it reads."""
        results = self._work.run([values[node] for node in self._reads], arena)
        values.update(zip(self._writes, results, strict=True))


class _Trial:
    """Runs items one by one and then as a batch; its result is both."""

    def __init__(
        self, pairs: Sequence[Pair], member: _Member, shared: _Part | None, rows: int
    ) -> None:
        self._pairs = pairs
        self._how = (member, shared, rows)

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[Any]:
        member, shared, rows = self._how
        alone = [work.run(given, arena) for work, given in self._pairs]
        members = {self._pairs[0][0]: member}
        return [alone, _run(self._pairs, members, shared, rows, arena)]


def _run(
    pairs: Sequence[Pair],
    members: Mapping[Any, _Member],
    shared: _Part | None,
    rows: int,
    arena: Arena,
) -> list[Outputs]:
    """Run a batch of at most `rows` items; the last is repeated to make up the number."""
    given = [inputs for _, inputs in pairs]
    given += [given[-1]] * (rows - len(given))
    first = next(iter(members.values()))
    values: dict[Node, Any] = {
        node: np.concatenate(column)
        for (_, node), column in zip(
            first.graph.model.inputs, zip(*given, strict=True), strict=True
        )
    }
    if shared is not None:
        shared.run(values, arena)
    for member in members.values():
        if member.own is not None:
            member.own.run(values, arena)
    answers = []
    for row, (work, _) in enumerate(pairs):
        member = members[work]
        outputs = [values[node] for _, node in member.graph.model.outputs]
        answers.append(
            [_row(value, axis, row, rows) for value, axis in zip(outputs, member.axes, strict=True)]
        )
    return answers


def _row(value: np.ndarray, axis: int | None, row: int, rows: int) -> np.ndarray:
    """An item's part of a batch's output, as memory of its own."""
    if axis is None:
        return value.copy()
    extent = value.shape[axis] // rows
    return value[(slice(None),) * axis + (slice(row * extent, (row + 1) * extent),)].copy()


def _alone(pair: Pair, arena: Arena) -> Outputs | BaseException:
    work, inputs = pair
    try:
        return work.run(inputs, arena)
    except Exception as error:
        return error


def _is_item(spec: Any, shape: tuple[int, ...]) -> bool:
    """Whether an input of this shape is one item of a batch that may have more."""
    type = spec.type
    if not isinstance(type, TensorType) or type.dtype == "string" or not type.shape:
        return False
    return not isinstance(type.shape[0], int) and shape[:1] == (1,)


def _moved(nodes: frozenset[Node]) -> int:
    """Bytes that nodes read and write, a measure of their work."""
    types = [t for node in nodes for t in node.types]
    types += [t for node in nodes for source in node.inputs if source for t in source.types]
    return sum(t.nbytes for t in types if isinstance(t, TensorType) and t.dtype != "string")


def _seeded(type: TensorType, random: np.random.Generator) -> np.ndarray:
    """A random item for an input whose type is that of the batch."""
    dims = (1, *type.dims[1:])
    dtype = numpy_dtype(type.dtype)
    if dtype.kind in "iub":
        return random.integers(0, 2, dims).astype(dtype)
    return random.standard_normal(dims).astype(dtype)
