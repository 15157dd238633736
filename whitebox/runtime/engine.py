"""The engine: does what the scheduler decides.

One plan runs at a time and gets all cores. Callers in process run on their own thread when the
engine is free; queued requests run on the engine's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from whitebox.errors import Overloaded
from whitebox.runtime.device import Arena, CpuDevice, Device
from whitebox.runtime.scheduler import Request, Scheduler


class Runnable(Protocol):
    """What the engine runs: an Executable."""

    def run(self, inputs: Sequence[Any]) -> list[Any]: ...


class Engine:
    """Runs executables on one device, one at a time."""

    def __init__(self, device: Device | None = None) -> None:
        self.arena = Arena(device or CpuDevice())
        self._scheduler = Scheduler()
        self.busy = threading.Lock()  # held while a plan runs: it owns the arena
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Runnable, inputs: Sequence[Any]) -> list[Any]:
        """Run on the calling thread, after whatever runs now."""
        with self.busy:
            return work.run(inputs)

    def submit(self, work: Runnable, inputs: Sequence[Any]) -> Future[list[Any]]:
        """Queue for the engine's thread. Raises Overloaded when the queue is full."""
        reply: Future[list[Any]] = Future()
        with self._changed:
            if self._closed:
                raise Overloaded("the runtime is shutting down; send the request elsewhere")
            self._scheduler.add(Request(work, inputs, reply))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, daemon=True, name="engine")
                self._thread.start()
            self._changed.notify()
        return reply

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._scheduler)

    def _serve(self) -> None:
        while (request := self._next()) is not None:
            if not request.reply.set_running_or_notify_cancel():
                continue
            try:
                outputs = self.run(request.work, request.inputs)
            except BaseException as error:
                request.reply.set_exception(error)
            else:
                request.reply.set_result(outputs)

    def _next(self) -> Request | None:
        """The next request; None once the engine is closed and nothing is left to do."""
        with self._changed:
            while (request := self._scheduler.next()) is None:
                if self._closed:
                    return None
                self._changed.wait()
            return request

    def close(self) -> None:
        """Finish what is queued, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
