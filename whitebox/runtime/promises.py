"""Promises: the deadlines that have been accepted, and a plan that keeps them all.

Enters: requests with deadlines, and when the cores will be free for them. Leaves: whether one more
can be promised, and how much other work may go first without breaking a promise. Pure: no clock.

The plan has the promised requests alone, the earliest deadline first, those of one stage in one
batch where that is foreseen. On several cores a request starts at the latest when the work before
it would be done if all cores could help, so that with right latencies the plan is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whitebox.runtime.latency import LatencyModel
from whitebox.runtime.request import Request
from whitebox.runtime.timeline import Promise, Timeline

# Times are sums of many, on a clock that may have run for months.
ROUNDING_S = 1e-6


class Promises:
    """The plan."""

    def __init__(self, cores: int, latency: LatencyModel) -> None:
        self._cores = cores
        self._latency = latency
        self._plan = Timeline()
        self.of: dict[Request, Promise] = {}  # those in the plan
        self._newest: dict[Any, Promise] = {}  # by stage, what others may join

    def add(self, request: Request, start: float) -> float:
        """Promise a request's deadline, and give 0; or say by how many seconds that is too late.

        `start` is when the cores are free. What has never run is not promised: nobody knows how
        long it takes.
        """
        alone = self._promise([request])
        if alone is None:
            return 0.0
        self.forget_lost(start)
        known = self._newest.get(request.stage)
        joined = None if known is None else self._joined(known, request)
        if known and joined and self._plan.lateness(start, {known: joined}) <= ROUNDING_S:
            self._change(known, joined)
            return 0.0
        self._plan.insert(alone)
        late = self._plan.lateness(start)
        if late > ROUNDING_S:
            self._plan.replace(alone, None)
            return late
        self._keep(alone)
        return 0.0

    def place(self, requests: Sequence[Request], start: float, patience: float) -> None:
        """Promise requests without deadlines the first places that break no promise.

        They need not start there at once, but within their patience.
        """
        total = sum(request.load for request in requests)
        after, place = None, start
        for promise, end in self._plan.late(start + total - ROUNDING_S):
            after, place = promise, end - total + ROUNDING_S
        for request in requests:
            made = Promise([request], start, place + patience, request.load, request.items)
            if after is not None:
                made.deadline = after.deadline
                self._plan.insert_after(after, made)
            else:
                if self._plan:
                    made.deadline = min(start, self._plan.first().deadline)
                self._plan.insert_first(made)
            self.of[request] = after = made
            place += request.load

    def remove(self, requests: Sequence[Request]) -> None:
        """Requests have started, or wait no longer; they need not have been promised."""
        for promise, rest in self._without(requests).items():
            self._change(promise, rest)
        for request in requests:
            self.of.pop(request, None)

    def slack(self, start: float, started: Sequence[Request]) -> float:
        """Seconds that the other promises could wait if these requests were started."""
        return -self._plan.lateness(start, self._without(started))

    def forget_lost(self, start: float) -> None:
        """Deadlines that cannot be kept any more bind nobody."""
        while self._plan.lateness(start) > ROUNDING_S:
            lost, _ = next(self._plan.late(start - ROUNDING_S))
            for request in lost.requests:
                del self.of[request]
            self._change(lost, None)

    def first(self) -> Promise:
        """What the plan runs first."""
        return self._plan.first()

    def _keep(self, promise: Promise) -> None:
        self._newest[promise.requests[0].stage] = promise
        for request in promise.requests:
            self.of[request] = promise

    def _change(self, promise: Promise, other: Promise | None) -> None:
        self._plan.replace(promise, other)
        stage = promise.requests[0].stage
        if self._newest.get(stage) is promise:
            del self._newest[stage]
        if other is not None:
            self._keep(other)

    def _promise(self, requests: Sequence[Request], known: Promise | None = None) -> Promise | None:
        """The promise of a batch, on the least cores that one of its requests would get.

        It keeps the place of a known one. None when nothing is known of the stage.
        """
        items = sum(request.items for request in requests)
        cores = min(request.cores for request in requests)
        seconds = self._latency.bound(requests[0].stage, items, cores)
        if seconds is None:
            return None
        deadline = min(request.deadline for request in requests if request.deadline is not None)
        latest, work = deadline - seconds, seconds * cores / self._cores
        return Promise(requests, known.deadline if known else deadline, latest, work, items)

    def _without(self, requests: Sequence[Request]) -> dict[Promise, Promise | None]:
        """What is left of the promises of these requests without them."""
        left: dict[Promise, Promise | None] = {}
        for request in requests:
            promise = self.of.get(request)
            if promise is not None and promise not in left:
                rest = [each for each in promise.requests if each not in requests]
                left[promise] = self._promise(rest, promise) if rest else None
        return left

    def _joined(self, known: Promise, request: Request) -> Promise | None:
        """A promise with one more request; None when there is no room in a batch for it."""
        items = known.items + request.items
        if items > request.max_batch:
            return None
        if items > self._latency.worth(request.stage, request.cores, request.max_batch):
            return None
        return self._promise([*known.requests, request], known)
