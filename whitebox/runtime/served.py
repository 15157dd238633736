"""A model in memory: its structure, and executables for the shapes it has been asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whitebox.compiler.build import BuildReport, Progress
from whitebox.compiler.structure import Structured
from whitebox.errors import InvalidInput
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.registry.records import TensorSpec
from whitebox.runtime.batching import LIGHT
from whitebox.runtime.engine import Engine, Runnable
from whitebox.runtime.executable import Executable
from whitebox.runtime.light import PlainCall
from whitebox.runtime.materialize import Key, Materialized, digest_of
from whitebox.runtime.plan import Plan
from whitebox.runtime.prepare import NOTHING_BUILT, Preparer
from whitebox.runtime.quick import QuickCalls
from whitebox.runtime.signature import check_feeds

# A shape that is asked for this often is worth kernels of its own.
HOT_REQUESTS = 3

# Executables kept for one model; the least recently used shape is dropped first. Calls that go
# the short way are not counted as use: to load a shape again takes milliseconds.
MAX_SHAPES = 64

# What a small model takes in memory besides its weights and tables: nodes, signature, functions.
MODEL_BYTES = 56 << 10

Shapes = dict[str, tuple[int, ...]]


def default_shapes(inputs: Sequence[TensorSpec]) -> Shapes | None:
    """The shapes to compile for when none are given: a free leading dimension (the batch) is 1.

    None when another dimension is free: nobody can guess what will be asked for.
    """
    shapes: Shapes = {}
    for spec in inputs:
        if not isinstance(spec.type, TensorType):
            continue
        if spec.type.shape is None or any(not isinstance(d, int) for d in spec.type.shape[1:]):
            return None
        shapes[spec.name] = tuple(d if isinstance(d, int) else 1 for d in spec.type.shape)
    return shapes


def given_shapes(
    model: str, inputs: Sequence[TensorSpec], given: Mapping[str, Sequence[int]]
) -> Shapes:
    """Shapes named by a user, completed by the defaults. Raises InvalidInput if they do not fit."""
    feeds: dict[str, Any] = {}
    known = {spec.name: spec for spec in inputs}
    for name, dims in given.items():
        if name not in known:
            raise InvalidInput(
                f"model {model} has no input {name!r}; its inputs are {', '.join(known)}"
            )
        if any(dim < 0 for dim in dims):
            raise InvalidInput(f"model {model}: the shape {list(dims)} of {name!r} is negative")
        feeds[name] = tuple(int(dim) for dim in dims)
    for spec in inputs:
        if spec.name not in feeds:
            rest = default_shapes([spec])
            if rest is None:
                raise InvalidInput(f"model {model}: give the shape of input {spec.name!r} as well")
            feeds.update(rest)
    zeros = {
        spec.name: np.broadcast_to(np.zeros((), numpy_dtype(spec.tensor.dtype)), feeds[spec.name])
        for spec in inputs
        if isinstance(spec.type, TensorType)
    }
    return check_feeds(model, inputs, zeros)[1]


class ServedModel:
    """One version of a model, ready to be run at any shape. Thread-safe.

    `loaded` is called each time that it holds more, or something else, in memory.
    """

    def __init__(
        self,
        name: str,
        structured: Structured,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        loaded: Callable[[ServedModel], None] = lambda model: None,
    ) -> None:
        self.name = name
        self.used = False
        self._answers: Materialized | None = None
        self._digest = ""
        self._loaded = loaded
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.structured = structured
        self.output_names = [spec.name for spec in self.outputs]
        self._all_outputs = list(range(len(self.outputs)))
        self._quick = QuickCalls(self.inputs)
        self.answer = self._quick.answer
        self._executables: OrderedDict[tuple[Any, ...], Runnable] = OrderedDict()
        self._light: set[tuple[Any, ...]] = set()  # the shapes at which it takes microseconds
        # Requests so far at the shapes whose executables are general.
        self._requests: dict[tuple[Any, ...], int] = {}
        self._learnt = False
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def in_precision(self, precision: str) -> ServedModel:
        """The same model, to be computed in another precision; this one when it is the same."""
        if precision == self.structured.precision:
            return self
        structured = replace(self.structured, precision=precision)
        return ServedModel(self.name, structured, self.inputs, self.outputs)

    def keep_answers(self, answers: Materialized, digest: str) -> None:
        """Give an answer of this computation again when the same inputs come again."""
        self._answers, self._digest = answers, digest
        self.answer = lambda feeds: None  # the short way looks nothing up

    def key(self, values: Sequence[Any]) -> Key | None:
        """Under which the answer for these inputs is kept; None where it is not."""
        digest = None if self._answers is None else digest_of(values)
        return None if digest is None else Key(self._digest, digest)

    def kept(self, key: Key | None) -> list[Any] | None:
        """The answer under a key, if it is known."""
        return None if key is None or self._answers is None else self._answers.get(key)

    def keep(self, key: Key | None, results: Sequence[Any]) -> None:
        """Remember an answer."""
        if key is not None and self._answers is not None:
            self._answers.put(key, results)

    def check(self, feeds: Mapping[str, Any]) -> tuple[list[Any], Shapes]:
        """(values in order, shapes). Raises InvalidInput."""
        return check_feeds(self.name, self.inputs, feeds)

    def check_outputs(self, outputs: Sequence[str] | None) -> list[int]:
        """Positions of the requested outputs; all when None. Raises InvalidInput."""
        names = self.output_names
        if outputs is None:
            return self._all_outputs
        unknown = [name for name in outputs if name not in names]
        if unknown:
            raise InvalidInput(
                f"model {self.name} has no output {unknown[0]!r}; "
                f"its outputs are {', '.join(names)}"
            )
        return [names.index(name) for name in outputs]

    def brief(self, feeds: Mapping[str, Any]) -> list[Any] | None:
        """All outputs, when that takes microseconds and nothing about the feeds is unusual."""
        try:
            key = tuple([feeds[spec.name].shape for spec in self.inputs])
        except (KeyError, AttributeError):
            return None
        return self.answer(feeds) if key in self._light else None

    def find(self, shapes: Shapes) -> Runnable | None:
        """The executable for these shapes, if one is loaded."""
        key = tuple(shapes.values())
        with self._lock:
            found = self._executables.get(key)
            if found is not None:
                self._executables.move_to_end(key)
            return found

    def load(
        self,
        shapes: Shapes,
        preparer: Preparer,
        engine: Engine,
        progress: Progress | None = None,
    ) -> tuple[Runnable, BuildReport]:
        """The executable made for these shapes, compiled if need be."""
        with self._loading:
            found = self.find(shapes)
            if found is not None and not is_general(found):
                return found, NOTHING_BUILT
            plan, report = preparer.compile(self.structured, shapes, progress)
            return self._keep(shapes, plan, preparer, engine), report

    def ready(self, shapes: Shapes, preparer: Preparer, engine: Engine) -> Runnable:
        """The executable that can answer a request at these shapes first.

        The first shapes get kernels of their own. Others get those that serve every size, and
        kernels of their own, made in the background, once they have been asked for often.
        """
        work = self.find(shapes)
        if work is None:
            with self._loading:
                work = self.find(shapes) or self._answer(shapes, preparer, engine)
        if is_general(work):
            self._count(shapes, preparer, engine)
        return work

    def _answer(self, shapes: Shapes, preparer: Preparer, engine: Engine) -> Runnable:
        model, loaded = self.structured, self.shapes_loaded
        plan = preparer.stored(model, shapes)
        if plan is None and not loaded and preparer.general_kernels(model) is None:
            plan, _ = preparer.compile(model, shapes)
        elif plan is None:
            preparer.generalize(model)
            if loaded and not self._learnt and not preparer.general_kernels(model):
                # The probes did not fit; what has been asked for does.
                self._learnt = True
                preparer.learn(model, [(dict(zip(shapes, loaded[-1], strict=True)), shapes)])
            plan = preparer.general(model, shapes)
        return self._keep(shapes, plan, preparer, engine)

    def _count(self, shapes: Shapes, preparer: Preparer, engine: Engine) -> None:
        """Count a request that a general executable answers; the shapes may be hot now."""
        key = tuple(shapes.values())
        with self._lock:
            count = self._requests[key] = self._requests.get(key, 0) + 1
        if count == HOT_REQUESTS:
            preparer.background.submit(lambda: self._specialize(shapes, preparer, engine))

    def _specialize(self, shapes: Shapes, preparer: Preparer, engine: Engine) -> None:
        """Put an executable made for these shapes in the place of the general one."""
        plan, _ = preparer.compile(self.structured, shapes, patiently=True)
        self._keep(shapes, plan, preparer, engine)

    def _keep(
        self, shapes: Shapes, plan: Plan | None, preparer: Preparer, engine: Engine
    ) -> Runnable:
        """Make the executable of a plan and use it for these shapes from now on."""
        executable = preparer.bind(self.structured, shapes, plan, engine)
        key = tuple(shapes.values())
        call = None
        # What goes the short way is not counted, so a general executable never does.
        if isinstance(executable, Executable) and executable.is_plain and not executable.general:
            call = self._first_quick(key, executable, engine)
            if executable.is_light:
                executable.stage = LIGHT
                self._light.add(key)
        with self._lock:
            self._executables[key] = executable
            self._requests.pop(key, None)
            if call is not None:
                self._quick.add(key, call)
            while len(self._executables) > MAX_SHAPES:
                oldest, _ = self._executables.popitem(last=False)
                self._requests.pop(oldest, None)
                self._quick.remove(oldest)
        self._loaded(self)
        return executable

    def held(self) -> dict[Hashable, int]:
        """What is in memory for this model, by part, in bytes; others may hold some of it too."""
        parts: dict[Hashable, int] = {self: MODEL_BYTES}
        for executable in self.executables:
            if isinstance(executable, Executable):
                parts.update(executable.held())
        return parts

    def forget_shapes(self) -> bool:
        """Let go of all executables but that of the last shape; whether there were others."""
        with self._lock:
            others = list(self._executables)[:-1]
            for key in others:
                del self._executables[key]
                self._requests.pop(key, None)
                self._quick.remove(key)
        return bool(others)

    @property
    def executables(self) -> list[Runnable]:
        """What is loaded, least recently used first."""
        with self._lock:
            return list(self._executables.values())

    def _first_quick(
        self, key: tuple[Any, ...], executable: Executable, engine: Engine
    ) -> PlainCall:
        """A call that makes way for the executable's own, whose tables not everybody needs."""

        def call(*arrays: np.ndarray) -> list[np.ndarray] | None:
            made = executable.plain_call(engine)
            with self._lock:
                if self._executables.get(key) is executable:
                    self._quick.add(key, made)
            return made(*arrays)

        return call

    @property
    def shapes_loaded(self) -> list[tuple[Any, ...]]:
        """The shapes that executables are loaded for, least recently used first."""
        with self._lock:
            return list(self._executables)


def is_general(work: Runnable) -> bool:
    """Whether an executable's kernels serve other shapes as well."""
    return isinstance(work, Executable) and work.general
