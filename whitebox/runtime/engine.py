"""The engine: does what the scheduler decides.

Batches run in *lanes*: as many as there are cores, each with scratch memory of its own, and a
thread for the requests that are queued. Callers in process run on their own thread when their turn
comes. A kernel is the same whether it runs on one core or on all: what changes is how many threads
of TVM's pool share its loop, so that answers are the same to the last bit.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any, Protocol

from whitebox.errors import Overloaded
from whitebox.runtime.device import Arena, CpuDevice, Device
from whitebox.runtime.native import use_threads
from whitebox.runtime.request import Batch, Request
from whitebox.runtime.scheduler import Scheduler

# How often to look for batches that have stalled, while others wait.
_WATCH_S = 0.25

_log = logging.getLogger("whitebox.runtime")

Outputs = list[Any]


class Runnable(Protocol):
    """What the engine runs: an Executable.

    One that can share batches with others also has a `stage`, the same Stage for all that can ride
    together, and `items`: how many it brings of the `max_batch` that a batch may hold.
    """

    def run(self, inputs: Sequence[Any], arena: Arena) -> Outputs: ...


class Stage(Protocol):
    """What runs batches: inputs of several runnables of this stage, each with its inputs."""

    max_batch: int

    def run(
        self, pairs: Sequence[tuple[Runnable, Sequence[Any]]], arena: Arena
    ) -> Sequence[Outputs | BaseException]: ...


class Lane:
    """Where one batch at a time runs. Of the free lanes that with the lowest number is taken."""

    def __init__(self, number: int, device: Device) -> None:
        self.number = number
        self.arena = Arena(device)
        self.batch: Batch | None = None  # what runs here
        self.tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread: threading.Thread | None = None  # does the tasks

    def __lt__(self, other: Lane) -> bool:
        return self.number < other.number

    def serve(self) -> None:
        while (task := self.tasks.get()) is not None:
            task()


@dataclass(slots=True, eq=False)
class _Caller(Request):
    """A request that runs on the thread of its caller, once it has a lane."""

    given: SimpleQueue[Lane] = field(init=False)  # where its caller waits


@dataclass(slots=True, eq=False, kw_only=True)
class _Queued(Request):
    """A request that runs on the thread of its lane."""

    work: Runnable
    inputs: Sequence[Any]
    reply: _Reply


class _Reply(Future[Outputs]):
    """The answer of a queued request. To cancel it takes the request out of the queue."""

    def __init__(self, withdraw: Callable[[_Reply], None]) -> None:
        super().__init__()
        self.request: _Queued | None = None
        self._withdraw = withdraw

    def starts(self) -> bool:
        """Whether somebody waits for it still; from now on it cannot be cancelled."""
        self.request = None  # (no cycle that only the garbage collector would find)
        return self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._withdraw(self)
        return cancelled


class Engine:
    """Runs executables on one device. Thread-safe."""

    def __init__(self, cores: int = 1, device: Device | None = None) -> None:
        self.device = device or CpuDevice()
        self._cores = cores
        self._scheduler = Scheduler(cores)
        self._lanes = [Lane(number, self.device) for number in range(cores)]
        self._free = list(self._lanes)  # a heap
        self._lock = threading.Lock()
        self._closed = False
        self._ended = threading.Condition(self._lock)  # told of each end once it is closed
        self._waiting = threading.Event()  # set while anything waits
        self._watcher: threading.Thread | None = None
        self.batched = 0  # requests so far that shared a batch
        self.stalls = 0  # batches so far that took many times as long as expected

    def run(self, work: Runnable, inputs: Sequence[Any], *, model: str = "") -> Outputs:
        """Run on the calling thread, when its turn comes."""
        lane = self.enter(model)
        try:
            return work.run(inputs, lane.arena)
        finally:
            self.leave(lane)

    def enter(self, model: str = "") -> Lane:
        """A lane for the calling thread, when its turn comes; `leave` gives it back.

        What runs there is not known, so nothing is learnt from how long it takes.
        """
        request = _Caller(model=model)
        with self._lock:
            batch = self._scheduler.add(request, monotonic())
            if batch is None:
                given = request.given = SimpleQueue()
                self._watch()
            else:
                lane = heapq.heappop(self._free)
                lane.batch = batch
        if batch is None:
            lane, batch = self._wait(request, given)
        use_threads(batch.cores)
        return lane

    def leave(self, lane: Lane) -> None:
        """Give a lane back, on the thread that got it."""
        self._end(lane)
        # What goes past the engine on this thread is alone as far as anybody knows.
        use_threads(self._cores)

    def submit(
        self,
        work: Runnable,
        inputs: Sequence[Any],
        *,
        model: str = "",
        deadline: float | None = None,
        priority: int = 0,
    ) -> Future[Outputs]:
        """Queue for the engine's threads; to cancel the future withdraws what has not started.

        `deadline` is on the clock of `time.monotonic`. Raises Overloaded when the queue is full or
        the answer would come too late.
        """
        # What cannot share a batch is a stage of its own.
        stage = getattr(work, "stage", None) or work
        reply = _Reply(self._withdraw)
        reply.request = request = _Queued(
            stage,
            model,
            getattr(work, "items", 1),
            getattr(stage, "max_batch", 1),
            deadline,
            priority,
            work=work,
            inputs=inputs,
            reply=reply,
        )
        with self._lock:
            if self._closed:
                raise Overloaded("the runtime is shutting down; send the request elsewhere")
            batch = self._scheduler.add(request, monotonic())
            if batch is None:
                self._watch()
            else:
                self._begin(batch)
        return reply

    def reserve(self, model: str, share: float) -> None:
        """Give a model at least this share of the cores when it wants it. Raises ValueError."""
        with self._lock:
            self._scheduler.reserve(model, share)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._scheduler)

    @property
    def arena_bytes(self) -> int:
        """The scratch memory of all lanes."""
        return sum(lane.arena.nbytes for lane in self._lanes)

    def _start(self) -> None:
        """Give lanes to the batches whose turn it is."""
        while (batch := self._scheduler.next(monotonic())) is not None:
            self._begin(batch)

    def _begin(self, batch: Batch) -> None:
        lane = heapq.heappop(self._free)
        lane.batch = batch
        self.batched += len(batch.requests) if len(batch.requests) > 1 else 0
        first = batch.requests[0]
        if isinstance(first, _Caller):
            first.given.put(lane)
            return
        lane.tasks.put(lambda: self._answer(batch, lane))
        if lane.thread is None:
            lane.thread = threading.Thread(
                target=lane.serve, daemon=True, name=f"engine-{lane.number}"
            )
            lane.thread.start()

    def _end(self, lane: Lane, failed: bool = False) -> None:
        with self._lock:
            assert lane.batch is not None
            self._scheduler.done(lane.batch, monotonic(), failed)
            lane.batch = None
            heapq.heappush(self._free, lane)
            if len(self._scheduler):
                self._start()
            if self._closed:
                self._ended.notify_all()

    def _wait(self, request: _Caller, given: SimpleQueue[Lane]) -> tuple[Lane, Batch]:
        try:
            lane = given.get()
        except BaseException:  # interrupted by a signal
            with self._lock:
                waiting = self._scheduler.withdraw(request)
            if not waiting:
                self._end(given.get(), failed=True)
            raise
        assert lane.batch is not None
        return lane, lane.batch

    def _withdraw(self, reply: _Reply) -> None:
        with self._lock:
            request = reply.request
            if request is not None and self._scheduler.withdraw(request):
                self._start()  # what was in its way may go on

    def _answer(self, batch: Batch, lane: Lane) -> None:
        """Run a batch of queued requests on its lane's thread."""
        # Lane n is taken only while n others are: its share is rarely larger than this.
        most = max(batch.cores, self._cores // (lane.number + 1))
        use_threads(batch.cores, most)
        wanted = [each for each in batch.requests if each.reply.starts()]
        answers = _run(wanted, lane.arena)
        failed = len(wanted) < len(batch.requests) or any(map(_is_error, answers))
        # The lane is free before the answer is out: who asks again at once finds nobody running.
        self._end(lane, failed)
        for request, answer in zip(wanted, answers, strict=True):
            if _is_error(answer):
                request.reply.set_exception(answer)
            else:
                request.reply.set_result(answer)

    def _watch(self) -> None:
        """Look for batches that have stalled for as long as anything waits."""
        if self._waiting.is_set():
            return
        self._waiting.set()
        if self._watcher is None:
            self._watcher = threading.Thread(
                target=self._look_for_stalls, daemon=True, name="engine-watch"
            )
            self._watcher.start()

    def _look_for_stalls(self) -> None:
        while self._waiting.wait() and not self._closed:
            sleep(_WATCH_S)
            with self._lock:
                if not len(self._scheduler):
                    self._waiting.clear()
                self._pass_by_stalled()

    def _pass_by_stalled(self) -> None:
        """Open another lane for each one where a batch has stalled."""
        now = monotonic()
        for batch in self._scheduler.stalled(now):
            self.stalls += 1
            _log.warning(
                "%d requests for model %s have been running for %.3g s%s; others go on beside them",
                len(batch.requests),
                batch.requests[0].model or "(in process)",
                now - batch.started,
                "" if batch.seconds is None else f", expected in {batch.seconds:.3g}",
            )
            self._lanes.append(Lane(len(self._lanes), self.device))
            heapq.heappush(self._free, self._lanes[-1])
        self._start()

    def close(self) -> None:
        """Finish what is queued, then stop. What has stalled is left behind."""
        with self._ended:
            self._closed = True
            while len(self._scheduler) or any(
                lane.batch is not None and not lane.batch.stalled for lane in self._lanes
            ):
                self._ended.wait(_WATCH_S)
                self._pass_by_stalled()
        self._waiting.set()  # the watcher sees that it is over
        for lane in self._lanes:
            if lane.thread is not None and lane.batch is None:
                lane.tasks.put(None)
                lane.thread.join()


def _is_error(answer: object) -> bool:
    return isinstance(answer, BaseException)


def _run(requests: Sequence[_Queued], arena: Arena) -> Sequence[Outputs | BaseException]:
    """The answers of requests of one stage, or what each failed with."""
    try:
        if len(requests) == 1:
            return [requests[0].work.run(requests[0].inputs, arena)]
        stage: Stage = requests[0].stage
        return stage.run([(each.work, each.inputs) for each in requests], arena) if requests else []
    except BaseException as error:
        return [error] * len(requests)
