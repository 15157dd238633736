"""The scheduler: which request starts when, and on how many cores. Pure policy: no thread, no
clock, no TVM.

Requests start in order of arrival. A lone request gets all cores; of several at once each gets its
share, at least one core, because kernels on one core each do more in a second than the same kernels
one after the other on all cores. A request beyond the queue's bound is refused at once, so that a
flood costs the refused client a retry and nobody else anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from whitebox.errors import Overloaded

MAX_QUEUED = 4096


@dataclass(slots=True, eq=False)
class Request:
    """One inference: what to call when its turn comes (opaque here), and the cores it may use."""

    start: Callable[..., Any]
    cores: int = 0


class Scheduler:
    """A bounded first-in first-out queue in front of some cores."""

    def __init__(self, cores: int, max_queued: int = MAX_QUEUED) -> None:
        self._cores = cores
        self._free = cores
        self._running = 0
        self._queue: deque[Request] = deque()
        self._max_queued = max_queued

    def add(self, request: Request) -> None:
        """Queue a request. Raises Overloaded when the queue is full."""
        if len(self._queue) >= self._max_queued:
            raise Overloaded(f"{len(self._queue)} requests are waiting already; retry later")
        self._queue.append(request)
        # Who meets others shares with them, even if they are gone when its turn comes: as likely
        # as not they are back the moment after, and would find all cores taken in their turn.
        request.cores = self._share()

    def next(self) -> Request | None:
        """A request that starts now, on `cores` cores; None when there is none that may."""
        if not self._queue:
            return None
        request = self._queue[0]
        request.cores = min(request.cores, self._share())
        if request.cores > self._free:
            return None
        self._free -= request.cores
        self._running += 1
        return self._queue.popleft()

    def done(self, request: Request) -> None:
        """A request that has started is answered: its cores are free."""
        self._free += request.cores
        self._running -= 1

    def withdraw(self, request: Request) -> bool:
        """Take back a request that has not started; whether that was so."""
        waiting = request in self._queue
        if waiting:
            self._queue.remove(request)
        return waiting

    def _share(self) -> int:
        """The cores of each, when all that wait or run get the same."""
        return max(1, self._cores // (self._running + len(self._queue)))

    def __len__(self) -> int:
        return len(self._queue)
