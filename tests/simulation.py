"""A simulated machine for the scheduler: a clock that is told, and latencies that are known."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from whitebox.errors import Overloaded
from whitebox.runtime.latency import LatencyModel
from whitebox.runtime.request import Batch, Request
from whitebox.runtime.scheduler import Scheduler


@dataclass(eq=False)
class Kernel:
    """A stage that takes `fixed` seconds a batch and `each` an item, whatever the cores."""

    fixed: float
    each: float = 0.0
    max_batch: int = 1

    def seconds(self, items: int) -> float:
        return self.fixed + self.each * items

    def request(self, model: str = "", **how: Any) -> Request:
        return Request(stage=self, model=model, max_batch=self.max_batch, **how)


class Known(LatencyModel):
    """The latencies of kernels, exactly."""

    def bound(self, stage: Any, items: int, cores: int) -> float | None:
        return stage.seconds(items)

    def work(self, stage: Any, items: int) -> float | None:
        return items * stage.seconds(stage.max_batch) / stage.max_batch

    def worth(self, stage: Any, cores: int, most: int) -> int:
        return most

    def learn(self, stage: Any, items: int, cores: int, seconds: float) -> None:
        pass


@dataclass
class Ran:
    """What became of the requests of a run."""

    batches: list[tuple[Batch, float]] = field(default_factory=list)  # with the end
    started: dict[Request, float] = field(default_factory=dict)
    ended: dict[Request, float] = field(default_factory=dict)
    arrived: dict[Request, float] = field(default_factory=dict)
    refused: dict[Request, Overloaded] = field(default_factory=dict)
    withdrawn: set[Request] = field(default_factory=set)

    def wait(self, request: Request) -> float:
        """How long a request waited for its start."""
        return self.started[request] - self.arrived[request]

    def waiting(self) -> list[Request]:
        """The requests that wait now."""
        gone = (*self.started, *self.refused, *self.withdrawn)
        return [request for request in self.arrived if request not in gone]


def simulate(
    scheduler: Scheduler,
    arrivals: Iterable[tuple[float, Request]],
    withdrawals: Iterable[tuple[float, Request]] = (),
    failing: frozenset[int] = frozenset(),
    came: Callable[[Ran, Request, float], None] = lambda ran, request, now: None,
) -> Ran:
    """Run all that arrives to its end. Batches whose number is in `failing` fail half way.

    `came` is told of each request once it is accepted or refused, before anything starts.
    """
    ran = Ran()
    events: list[tuple[float, int, str, Any]] = []
    numbers = iter(range(1 << 60))
    for time, request in arrivals:
        heapq.heappush(events, (time, next(numbers), "arrives", request))
    for time, request in withdrawals:
        heapq.heappush(events, (time, next(numbers), "withdrawn", request))

    def starts(batch: Batch, now: float) -> None:
        failed = len(ran.batches) in failing
        seconds = batch.requests[0].stage.seconds(batch.items)
        end = now + (seconds / 2 if failed else seconds)
        ran.batches.append((batch, end))
        for request in batch.requests:
            assert request not in ran.started and request not in ran.withdrawn
            ran.started[request] = now
        heapq.heappush(events, (end, next(numbers), "ends", (batch, failed)))

    while events:
        now, _, what, subject = heapq.heappop(events)
        if what == "arrives":
            ran.arrived[subject] = now
            batch = None
            try:
                batch = scheduler.add(subject, now)
            except Overloaded as error:
                ran.refused[subject] = error
            came(ran, subject, now)
            if batch is not None:
                starts(batch, now)
        elif what == "withdrawn":
            if scheduler.withdraw(subject):
                assert subject not in ran.started
                ran.withdrawn.add(subject)
        else:
            batch, failed = subject
            for request in batch.requests:
                assert request not in ran.ended
                ran.ended[request] = now
            scheduler.done(batch, now, failed)
        while (batch := scheduler.next(now)) is not None:
            starts(batch, now)
    assert not len(scheduler)
    return ran
