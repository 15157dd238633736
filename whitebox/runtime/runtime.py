"""The runtime: registered models, run in this process.

Registration makes everything durable and compiles what is missing; prediction finds (or makes) the
executable for the shapes at hand and hands it to the engine. All models share one engine, one
kernel library and one store of parameters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from whitebox import config
from whitebox.compiler.build import Progress
from whitebox.compiler.structure import Structured
from whitebox.compiler.target import host_target
from whitebox.errors import InvalidInput, InvalidName, Overloaded
from whitebox.registry import Registry
from whitebox.registry.records import ModelInfo, ModelRecord, Registration, validate_name
from whitebox.runtime.batching import Batcher
from whitebox.runtime.composite import Composer, Together
from whitebox.runtime.engine import Engine, Runnable
from whitebox.runtime.materialize import Materialized
from whitebox.runtime.native import llvm_loaded, use_threads
from whitebox.runtime.params import ParameterStore
from whitebox.runtime.prepare import NOTHING_BUILT, Preparer
from whitebox.runtime.reply import Reply, Result
from whitebox.runtime.residency import Part
from whitebox.runtime.residents import Residents
from whitebox.runtime.served import ServedModel, default_shapes, given_shapes

if TYPE_CHECKING:
    import onnx

    from whitebox.registry.records import Signature
    from whitebox.runtime.accuracy import AccuracyReport
    from whitebox.runtime.explain import Explanation
    from whitebox.runtime.overlap import Overlap
    from whitebox.runtime.reading import ModelReader
    from whitebox.runtime.tune import Tuned

# Requests that may wait for a model or a shape to be loaded, which may mean to be compiled. More
# are refused, so that a flood of new shapes cannot pile up work for hours.
MAX_LOADING = 256

# Structures of which a server loads a model before it says that it is ready, and how long it goes
# on with variants, of which nothing has to be compiled.
MOST_WARM = 256
WARM_SECONDS = 2.0


class Runtime:
    """All the models of one home, ready to run. A context manager; thread-safe.

    `home` is the folder that holds models, blobs and kernels (default: WHITEBOX_HOME or the user's
    data folder); `threads` how many cores a kernel may use (default: all that are allowed);
    `memory_budget` how many bytes models may hold in memory (default: WHITEBOX_MEMORY_BUDGET, or no
    bound): those not used for longest make room, and are loaded again when they are asked for;
    `cache` how many bytes of answers are kept of some models, by name, to be given again when the
    same inputs come again (default: none).
    Raises StorageError when the home cannot be used, InvalidInput when the budget is no size.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        threads: int | None = None,
        memory_budget: int | None = None,
        cache: Mapping[str, int] | None = None,
    ) -> None:
        budget = config.memory_budget() if memory_budget is None else memory_budget
        if budget is not None and budget < 1:
            raise InvalidInput(
                f"a memory budget of {budget} bytes holds nothing; give a larger one"
            )
        self.answers = {name: Materialized(size) for name, size in (cache or {}).items()}
        self.home = Path(home) if home is not None else config.home()
        self.registry = Registry(self.home)
        self.target = host_target(threads)
        parameters = ParameterStore(self.registry, self.target.threads)
        self.preparer = Preparer(self.target, self.home, parameters)
        self.engine = Engine(self.target.threads)
        self.batcher = Batcher(self.preparer, self.engine)
        self.composer = Composer(self.preparer, self.engine)
        self.residents = Residents(
            self.registry, budget, self.answers, self._other_bytes, self._let_go
        )
        self.catalogue = self.residents.catalogue
        self._serve = self.residents.find
        # Loading a model at a new shape may compile: it must not hold up callers or the engine.
        self._loaders = ThreadPoolExecutor(self.target.threads, thread_name_prefix="load")
        self._loading = threading.BoundedSemaphore(MAX_LOADING)

    def register(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        name: str | None = None,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        precision: str = "f32",
        progress: Progress | None = None,
    ) -> Registration:
        """Register a model (path, bytes or ModelProto) under `name` (default: the file's stem).

        Kernels are compiled for `shapes` (by input name), or for batch 1 when only the batch is
        free; where dimensions are free, also kernels that serve every size. `precision` is "f32" or
        "bf16"; what that costs, `accuracy` measures. The same content in the same precision again
        is the same version; any other is a new one. Raises InvalidModel, UnsupportedOperator,
        InvalidName, InvalidInput (precision, shapes that do not fit), CompileError or StorageError;
        nothing is registered then.
        """
        start = time.perf_counter()
        if name is None and not isinstance(model, str | Path):
            raise InvalidName("give a name: a model that is not a file has none of its own")
        chosen = validate_name(name if name is not None else Path(str(model)).stem)
        structured, signature, about = self._reader.read(model, chosen, precision)
        return self._add(chosen, structured, signature, about, shapes, progress, start)

    def compose(
        self,
        spec: str | Path | bytes | Mapping[str, Any],
        name: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> Registration:
        """Register a pipeline of registered models as a model of its own: see docs/pipelines.md.

        `spec` is a YAML or JSON file (path), its text (bytes) or plain data; `name` is by default
        the one in it, or else the file's stem. The versions that it is made of stay what they are.
        Raises InvalidPipeline, ModelNotFound, InvalidName, CompileError or StorageError; nothing is
        registered then.
        """
        from whitebox.passes import optimize, share
        from whitebox.registry.records import signature_of
        from whitebox.runtime.pipelines import composed

        start = time.perf_counter()
        made = composed(self.registry, spec, name)
        graph = optimize(made.graph, (share,))
        structured = Structured.of(graph, made.precision)
        about = {**graph.model.metadata, "parts": dict(made.parts)}
        signature = signature_of(graph.model)
        return self._add(graph.model.name, structured, signature, about, None, progress, start)

    def _add(
        self,
        name: str,
        structured: Structured,
        signature: Signature,
        about: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]] | None,
        progress: Progress | None,
        start: float,
    ) -> Registration:
        """Compile what is missing for a model, then register it."""
        inputs, _ = signature
        wanted = given_shapes(name, inputs, shapes) if shapes else default_shapes(inputs)
        special = NOTHING_BUILT
        if wanted is not None:
            _, special = self.preparer.compile(structured, wanted, progress)
        general = self.preparer.generalize(structured, progress)
        metadata: dict[str, Any] = {**about}
        if shapes:
            metadata["shapes"] = {key: list(dims) for key, dims in (wanted or {}).items()}
        record, created, new_bytes, shared_bytes = self.registry.keep(
            name, structured, signature, metadata
        )
        self.refresh()
        return Registration(
            name=record.name,
            version=record.version,
            created=created,
            kernels_compiled=special.compiled + general.compiled,
            kernels_reused=special.reused + general.reused,
            seconds=time.perf_counter() - start,
            new_bytes=new_bytes,
            shared_bytes=shared_bytes,
        )

    @cached_property
    def _reader(self) -> ModelReader:
        """What reads model files; slow to import, and nobody who only runs models needs it."""
        from whitebox.runtime.reading import ModelReader

        return ModelReader(self.home / "plans")

    def predict(
        self,
        name: str,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        version: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a model on the calling thread.

        `feeds` maps input names to arrays; the result maps output names (all, or those named by
        `outputs`) to arrays. Raises ModelNotFound, InvalidInput or WhiteboxError.
        """
        model = self._serve(name, version)
        if outputs is None:
            results = model.answer(feeds)
            if results is not None:
                return dict(zip(model.output_names, results, strict=True))
        values, shapes = model.check(feeds)
        wanted = model.check_outputs(outputs)
        key = model.key(values)
        results = model.kept(key)
        if results is None:
            work = model.ready(shapes, self.preparer, self.engine)
            results = model.answer(feeds) if outputs is None else None
            if results is None:
                results = self.engine.run(work, values, model=model.name)
            model.keep(key, results)
        return _named(model, wanted, results)

    def submit(
        self,
        name: str,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        version: int | None = None,
        timeout: float | None = None,
        priority: int = 0,
    ) -> Future[dict[str, np.ndarray]]:
        """As `predict`, queued. Feeds are checked at once and errors in them raised here.

        Requests of a higher `priority` go first. Raises Overloaded when too many requests wait, or
        when the answer is not foreseen within `timeout` seconds; `retry_after_s` then says when it
        would be. To cancel the future withdraws a request that has not started.
        """
        deadline = _deadline(timeout)
        model = self._serve(name, version)
        values, shapes = model.check(feeds)
        wanted = model.check_outputs(outputs)
        key = model.key(values)
        kept = model.kept(key)
        if kept is not None:
            known: Future[dict[str, np.ndarray]] = Future()
            known.set_result(_named(model, wanted, kept))
            return known

        def read(results: list[Any]) -> dict[str, np.ndarray]:
            model.keep(key, results)
            return _named(model, wanted, results)

        def start(work: Runnable) -> Future[list[Any]]:
            answer = self.engine.submit(
                work, values, model=model.name, deadline=deadline, priority=priority
            )
            if self.engine.queued:
                self.batcher.waited(model, shapes, work)
            return answer

        return self._queue(
            partial(model.find, shapes),
            partial(model.ready, shapes, self.preparer, self.engine),
            start,
            read,
        )

    def brief(
        self, name: str, version: int, feeds: Mapping[str, Any]
    ) -> dict[str, np.ndarray] | None:
        """All outputs of a model that is loaded and takes microseconds; else None: `submit` it.

        On the calling thread, on one core: for an event loop, which a thread for the answer would
        cost more.
        """
        model = self.residents.loaded(name, version)
        if model is None:
            return None
        use_threads(1)
        results = model.brief(feeds)
        return None if results is None else dict(zip(model.output_names, results, strict=True))

    def predict_together(
        self,
        models: Sequence[str | tuple[str, int | None]],
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Run several models (names, or names with versions) on one input, on the calling thread.

        What they share is computed once; the answers, one a model, are those of each alone. A feed
        goes to every model that has an input of its name; `outputs` names those wanted of each
        model that has them. Raises as `predict` does.
        """
        asked = self._together(models, feeds, outputs)
        work = self.composer.ready(asked)
        return asked.named(self.engine.run(work, asked.values, model=asked.models[0].name))

    def submit_together(
        self,
        models: Sequence[str | tuple[str, int | None]],
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
    ) -> Future[list[dict[str, np.ndarray]]]:
        """As `predict_together`, queued as one request, of the first model. Raises as `submit`."""
        deadline = _deadline(timeout)
        asked = self._together(models, feeds, outputs)
        return self._queue(
            partial(self.composer.find, asked),
            partial(self.composer.ready, asked),
            lambda work: self.engine.submit(
                work,
                asked.values,
                model=asked.models[0].name,
                deadline=deadline,
                priority=priority,
            ),
            asked.named,
        )

    def _together(
        self,
        models: Sequence[str | tuple[str, int | None]],
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None,
    ) -> Together:
        named = [(each, None) if isinstance(each, str) else each for each in models]
        return Together([self._serve(*each) for each in named], feeds, outputs)

    def _queue(
        self,
        find: Callable[[], Runnable | None],
        ready: Callable[[], Runnable],
        submit: Callable[[Runnable], Future[list[Any]]],
        read: Callable[[list[Any]], Result],
    ) -> Future[Result]:
        """Submit what `find` gives, or else what `ready` makes on a loader's thread.

        The reply has what `read` makes of the results.
        """
        reply = Reply(read)

        def load_and_submit() -> None:
            if reply.cancelled():
                return
            try:
                reply.follow(submit(ready()))
            except BaseException as error:
                reply.fail(error)

        def loaded(task: Future[None]) -> None:
            self._loading.release()
            if task.cancelled():
                reply.fail(Overloaded("the runtime is shutting down; ask another one"))

        if find() is not None:
            reply.follow(submit(ready()))
        elif self._loading.acquire(blocking=False):
            self._loaders.submit(load_and_submit).add_done_callback(loaded)
        else:
            raise Overloaded(f"{MAX_LOADING} requests wait for new shapes already; retry later")
        return reply

    def reserve(self, name: str, share: float) -> None:
        """Give a model at least this share of the cores whenever it has requests waiting.

        Raises ModelNotFound, or InvalidInput when that is more than is left.
        """
        self.catalogue.record(name, None)
        try:
            self.engine.reserve(name, share)
        except ValueError as error:
            raise InvalidInput(str(error)) from None

    def models(self) -> list[ModelInfo]:
        """The newest version of every registered model, by name."""
        self.refresh()
        return self.catalogue.models()

    def model(self, name: str, version: int | None = None) -> ModelInfo:
        """One model. Raises ModelNotFound."""
        return self.catalogue.model(name, version)

    def unregister(self, name: str, version: int | None = None) -> None:
        """Remove a model, or one version of it. Raises ModelNotFound."""
        self.registry.remove(name, version)
        self.refresh()

    def explain(
        self,
        name: str,
        version: int | None = None,
        *,
        feeds: Mapping[str, np.ndarray] | None = None,
    ) -> Explanation:
        """What the passes did to a model, its kernels, and where its time and bytes go.

        Times are measured on `feeds`, or on seeded random inputs. Raises InvalidInput when free
        dimensions leave the shapes open and no feeds are given.
        """
        from whitebox.runtime.explain import explain

        record = self.catalogue.record(name, version)
        return explain(self._serve(name, version), self.preparer, self.engine, feeds, record)

    def overlap(
        self,
        names: Sequence[str],
        *,
        feeds: Mapping[str, np.ndarray] | None = None,
    ) -> Overlap:
        """What several models share, and what they take together on one input, measured.

        On `feeds`, or on seeded random inputs. Raises as `explain` does.
        """
        from whitebox.runtime.explain import seeded_feeds
        from whitebox.runtime.overlap import overlap

        models = [self._serve(name) for name in names]
        if feeds is None:
            feeds = {}
            for name, model in zip(names, models, strict=True):
                feeds = {**seeded_feeds(model, self.catalogue.record(name, None)), **feeds}
        return overlap(models, feeds, self.preparer, self.engine, self.composer)

    def tune(
        self,
        name: str,
        version: int | None = None,
        *,
        feeds: Mapping[str, np.ndarray] | None = None,
        seconds: float = 60.0,
        tell: Callable[[Tuned], None] = lambda tuned: None,
    ) -> list[Tuned]:
        """Measure other schedules of a model's hottest kernels on `feeds` (or seeded inputs).

        Spends about `seconds`. What wins is used from the next load on, by every model that shares
        the kernel. `tell` hears of each kernel. Raises as `explain` does.
        """
        from whitebox.runtime.explain import seeded_feeds
        from whitebox.runtime.tune import tune

        record = self.catalogue.record(name, version)
        model = self._serve(name, version)
        given = seeded_feeds(model, record) if feeds is None else feeds
        return tune(model, self.preparer, self.engine, given, seconds, tell)

    def accuracy(
        self,
        name: str,
        version: int | None = None,
        *,
        precision: str = "bf16",
        feeds: Mapping[str, np.ndarray] | None = None,
    ) -> AccuracyReport:
        """How far a model's answers in `precision` are from those in float32.

        On `feeds`, or on several seeded random inputs. Raises as `explain` does, and InvalidInput
        when there is no such precision.
        """
        from whitebox.runtime.accuracy import accuracy, some_feeds

        record = self.catalogue.record(name, version)
        model = self._serve(name, version)
        given = some_feeds(model, record) if feeds is None else [feeds]
        return accuracy(model, precision, self.preparer, self.engine, given)

    def warm(self, progress: Progress | None = None) -> None:
        """Load models' newest versions at their registered shapes, before the first request.

        One of each structure first: what has to be compiled is compiled then. Its variants load in
        milliseconds, so as many as fit into WARM_SECONDS are enough, those registered last first.
        No more than the memory budget has room for: others are loaded when they are asked for.
        """
        structures = self.registry.structures()
        first: dict[Any, ModelInfo] = {}
        variants = []
        for info in sorted(self.models(), key=lambda info: info.created, reverse=True):
            kind = (structures.get((info.name, info.version)), info.precision, _shapes_key(info))
            if first.setdefault(kind, info) is not info:
                variants.append(info)
        chosen = [*list(first.values())[:MOST_WARM], *variants]
        until, evictions = float("inf"), self.residents.evictions
        for done, info in enumerate(chosen):
            if done == min(len(first), MOST_WARM):
                until = time.monotonic() + WARM_SECONDS
            if time.monotonic() > until:
                break
            if progress is not None:
                progress(done, len(chosen))
            shapes = registered_shapes(info)
            if shapes is not None:
                self._serve(info.name, info.version).load(shapes, self.preparer, self.engine)
            if self.residents.evictions > evictions:
                break
        if progress is not None:
            progress(len(chosen), len(chosen))

    def stats(self) -> dict[str, Any]:
        """Counters of this process."""
        return {
            "models": self.catalogue.names,
            "versions": len(self.catalogue),
            "models_loaded": len(self.residents),
            "models_evicted": self.residents.evictions,
            "model_bytes": self.residents.nbytes,
            "memory_budget": self.residents.budget,
            "kernels_loaded": len(self.preparer.library),
            "kernels_compiled": self.preparer.builder.compiled_total,
            "arena_bytes": self.engine.arena_bytes,
            "queued_requests": self.engine.queued,
            "batched_requests": self.engine.batched,
            "stalled_batches": self.engine.stalls,
            "llvm_loaded": llvm_loaded(),
            "caches": {
                name: {"bytes": kept.nbytes, "hits": kept.hits, "misses": kept.misses}
                for name, kept in self.answers.items()
            },
        }

    def refresh(self) -> None:
        """See what other processes have registered or removed since."""
        self.residents.refresh()

    def _other_bytes(self) -> int:
        """Memory that counts besides what models hold."""
        return self.engine.arena_bytes + sum(kept.nbytes for kept in self.answers.values())

    def _let_go(self, models: Iterable[ServedModel], parts: Iterable[Part]) -> None:
        """Drop what was kept for models that are no longer in memory."""
        self.composer.forget(work for model in models for work in model.executables)
        kinds = (part for part in parts if isinstance(part, tuple))
        self.preparer.library.forget(key for kind, key in kinds if kind == "kernel")

    def close(self) -> None:
        """Finish what runs, and let go of everything."""
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self.engine.close()
        self.preparer.close()
        self.registry.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def registered_shapes(record: ModelRecord) -> dict[str, tuple[int, ...]] | None:
    """The shapes that a model was registered for; None when it has been left open."""
    return record.given_shapes or default_shapes(record.inputs)


def _deadline(timeout: float | None) -> float | None:
    """When the answer has to be there, on the engine's clock. Raises InvalidInput."""
    if timeout is None:
        return None
    if not timeout > 0:
        raise InvalidInput(f"a timeout of {timeout} s leaves no time; give more, or none at all")
    return time.monotonic() + timeout


def _shapes_key(record: ModelRecord) -> str:
    return str(sorted((registered_shapes(record) or {}).items()))


def _named(model: ServedModel, wanted: list[int], values: list[Any]) -> dict[str, np.ndarray]:
    return {model.outputs[index].name: values[index] for index in wanted}
