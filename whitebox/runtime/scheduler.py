"""The scheduler: which request runs next. Pure policy: no thread, no clock, no TVM.

Requests are served in order of arrival. A request beyond the queue's bound is refused at once,
so that a flood costs the refused client a retry and nobody else anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from whitebox.errors import Overloaded

MAX_QUEUED = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One inference: what to run, on what, and whom to tell (opaque here)."""

    work: Any
    inputs: Any
    reply: Any


class Scheduler:
    """A bounded first-in first-out queue."""

    def __init__(self, max_queued: int = MAX_QUEUED) -> None:
        self._queue: deque[Request] = deque()
        self._max_queued = max_queued

    def add(self, request: Request) -> None:
        """Queue a request. Raises Overloaded when the queue is full."""
        if len(self._queue) >= self._max_queued:
            raise Overloaded(f"{len(self._queue)} requests are waiting already; retry later")
        self._queue.append(request)

    def next(self) -> Request | None:
        """The request to run now; None when there is none."""
        return self._queue.popleft() if self._queue else None

    def __len__(self) -> int:
        return len(self._queue)
