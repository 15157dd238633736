"""The engine: does what the scheduler decides.

Plans run in *lanes*: as many as there are cores, each with scratch memory of its own, and a thread
for the requests that are queued. Callers in process run on their own thread when their turn comes.
A kernel is the same whether it runs on one core or on all: what changes is how many threads of
TVM's pool share its loop, so that answers are the same to the last bit.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from whitebox.errors import Overloaded
from whitebox.runtime.device import Arena, CpuDevice, Device
from whitebox.runtime.native import use_threads
from whitebox.runtime.scheduler import Request, Scheduler


class Runnable(Protocol):
    """What the engine runs: an Executable."""

    def run(self, inputs: Sequence[Any], arena: Arena) -> list[Any]: ...


class Lane:
    """Where one plan at a time runs. Of the free lanes that with the lowest number is taken."""

    def __init__(self, number: int, device: Device) -> None:
        self.number = number
        self.arena = Arena(device)
        self.request: Request | None = None  # what runs here
        self.tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread: threading.Thread | None = None  # does the tasks

    def __lt__(self, other: Lane) -> bool:
        return self.number < other.number

    def serve(self) -> None:
        while (task := self.tasks.get()) is not None:
            task()


class Engine:
    """Runs executables on one device. Thread-safe."""

    def __init__(self, cores: int = 1, device: Device | None = None) -> None:
        self.device = device or CpuDevice()
        self._cores = cores
        self._scheduler = Scheduler(cores)
        self._lanes = [Lane(number, self.device) for number in range(cores)]
        self._free = list(self._lanes)  # a heap
        self._lock = threading.Lock()
        self._submitted = 0
        self._answered = threading.Condition(self._lock)
        self._closed = False

    def run(self, work: Runnable, inputs: Sequence[Any]) -> list[Any]:
        """Run on the calling thread, when its turn comes."""
        lane = self.enter()
        try:
            return work.run(inputs, lane.arena)
        finally:
            self.leave(lane)

    def enter(self) -> Lane:
        """A lane for the calling thread, when its turn comes; `leave` gives it back."""
        given: SimpleQueue[Lane] = SimpleQueue()
        request = Request(given.put)
        with self._lock:
            self._scheduler.add(request)
            self._start()
        try:
            lane = given.get()
        except BaseException:  # interrupted by a signal
            with self._lock:
                waiting = self._scheduler.withdraw(request)
            if not waiting:
                self._end(given.get())
            raise
        use_threads(request.cores)
        return lane

    def leave(self, lane: Lane) -> None:
        """Give a lane back, on the thread that got it."""
        self._end(lane)
        # What goes past the engine on this thread is alone as far as anybody knows.
        use_threads(self._cores)

    def submit(self, work: Runnable, inputs: Sequence[Any]) -> Future[list[Any]]:
        """Queue for the engine's threads. Raises Overloaded when the queue is full."""
        reply: Future[list[Any]] = Future()

        def start(lane: Lane) -> None:
            lane.tasks.put(lambda: self._answer(work, inputs, reply, lane))
            if lane.thread is None:
                lane.thread = threading.Thread(
                    target=lane.serve, daemon=True, name=f"engine-{lane.number}"
                )
                lane.thread.start()

        with self._lock:
            if self._closed:
                raise Overloaded("the runtime is shutting down; send the request elsewhere")
            self._scheduler.add(Request(start))
            self._submitted += 1
            self._start()
        return reply

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._scheduler)

    @property
    def arena_bytes(self) -> int:
        """The scratch memory of all lanes."""
        return sum(lane.arena.nbytes for lane in self._lanes)

    def _start(self) -> None:
        """Give lanes to the requests whose turn it is."""
        while (request := self._scheduler.next()) is not None:
            lane = heapq.heappop(self._free)
            lane.request = request
            request.start(lane)

    def _end(self, lane: Lane) -> None:
        with self._lock:
            assert lane.request is not None
            self._scheduler.done(lane.request)
            lane.request = None
            heapq.heappush(self._free, lane)
            self._start()

    def _answer(
        self, work: Runnable, inputs: Sequence[Any], reply: Future[list[Any]], lane: Lane
    ) -> None:
        """Run a queued request on its lane's thread."""
        assert lane.request is not None
        # Lane n is taken only while n others are: its share is never larger than this.
        use_threads(lane.request.cores, self._cores // (lane.number + 1))
        outputs: list[Any] = []
        error: BaseException | None = None
        wanted = reply.set_running_or_notify_cancel()
        if wanted:
            try:
                outputs = work.run(inputs, lane.arena)
            except BaseException as raised:
                error = raised
        # The lane is free before the answer is out: who asks again at once finds nobody running.
        self._end(lane)
        if wanted and error is not None:
            reply.set_exception(error)
        elif wanted:
            reply.set_result(outputs)
        with self._answered:
            self._submitted -= 1
            self._answered.notify_all()

    def close(self) -> None:
        """Finish what is queued, then stop."""
        with self._answered:
            self._closed = True
            while self._submitted:
                self._answered.wait()
        for lane in self._lanes:
            if lane.thread is not None:
                lane.tasks.put(None)
                lane.thread.join()
