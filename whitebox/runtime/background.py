"""Work that nobody waits for: one thread of low priority, which ends with the process."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

_NICENESS = 10


class Background:
    """Runs tasks one after the other, in the order they were given. Thread-safe.

    The thread starts with the first task and ends when there is none. What a task raises is logged.
    """

    def __init__(self) -> None:
        self._tasks: deque[Callable[[], None]] = deque()
        self._running = False
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, task: Callable[[], None]) -> None:
        """Have a task run some time; never after `close`."""
        with self._changed:
            if self._closed:
                return
            self._tasks.append(task)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, daemon=True, name="background").start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until there is nothing to do; whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def close(self) -> None:
        """Drop the tasks that have not begun, and wait for the one that has."""
        with self._changed:
            self._closed = True
            self._tasks.clear()
        self.wait()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            with self._changed:
                if not self._tasks:
                    self._running = False
                    self._changed.notify_all()
                    return
                task = self._tasks.popleft()
            try:
                task()
            except Exception as error:
                log.warning("work in the background failed: %s", error)
