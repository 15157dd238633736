"""The scheduler: which requests start when, together with which, and on how many cores. Pure
policy: no thread, no clock, no TVM.

Requests start in the fair order (`fairness`), unless that would break a promise (`promises`): then
the earliest deadline goes first. A lone request gets all cores; of several at once each gets its
share, at least one core, because kernels on one core each do more in a second than the same kernels
one after the other on all cores. What waits when a core comes free rides in one batch where the
learnt latencies (`latency`) say that this wins; nobody waits for company. A request that would come
too late, or beyond the queue's bound, is refused at once, so that a flood costs the refused client
a retry and nobody else anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import inf

from whitebox.errors import Overloaded
from whitebox.runtime.fairness import PATIENCE_S, FairQueue
from whitebox.runtime.latency import LatencyModel
from whitebox.runtime.promises import ROUNDING_S, Promises
from whitebox.runtime.request import Batch, Request

MAX_QUEUED = 4096

# What a request counts for in the fair order when nobody knows how long it takes.
_UNKNOWN_WORK_S = 0.001
# How often to look for those that are due, and how many get places then: so that one decision
# takes no time to speak of, however many wait.
_LOOK_S, _MOST_PLACED = PATIENCE_S / 4, 64
# A batch has stalled after so many times what was expected, and never sooner than this; when
# nothing was known, after so long. What is merely slow loses nothing: it only gets company.
_STALL_TIMES, _STALL_S, _STALL_UNKNOWN_S = 20.0, 1.0, 10.0


class Scheduler:
    """What waits in front of some cores, and what runs on them."""

    def __init__(
        self, cores: int, max_queued: int = MAX_QUEUED, latency: LatencyModel | None = None
    ) -> None:
        self._cores = cores
        self._free = cores
        self._max_queued = max_queued
        self.latency = latency or LatencyModel()
        self._running: list[Batch] = []
        self._queue = FairQueue()
        self._promises = Promises(cores, self.latency)
        self._looked = 0.0  # for those that are due
        self.reserve = self._queue.reserve

    def add(self, request: Request, now: float) -> Batch | None:
        """The batch of a request that starts now; None when it has to wait for its turn.

        Raises Overloaded when the queue is full or the request would come too late.
        """
        queue = self._queue
        # Who meets others shares with them, even if they are gone when its turn comes: as likely
        # as not they are back the moment after, and would find all cores taken in their turn.
        share = self._cores // (len(self._running) + queue.batches + 1) or 1
        request.cores = share
        at_once = share <= self._free and not queue.entries
        if request.deadline is not None:
            self._promise(request, now, now if at_once else self._free_at(now))
        if at_once:
            if request.deadline is not None:
                self._promises.remove([request])
            return self._run([request], request.items, share, now)
        if len(queue.entries) >= self._max_queued:
            self._promises.remove([request])
            raise Overloaded(
                f"{len(queue.entries)} requests are waiting already; retry later",
                retry_after_s=self._free_at(now) - now,
            )
        work = self.latency.work(request.stage, request.items)
        request.load = 0.0 if work is None else work / self._cores
        queue.push(request, _UNKNOWN_WORK_S if work is None else request.load, now)
        return None

    def next(self, now: float) -> Batch | None:
        """A batch of those that wait, which starts now; None when there is none that may."""
        queue = self._queue
        if not queue.entries or self._turn_cores(queue.head()) > self._free:
            return None
        requests = self._choose(now)
        cores = min(self._turn_cores(requests[0]), self._free)
        for request in requests:
            queue.start(request)
        if self._promises.of:
            self._promises.remove(requests)
        return self._run(requests, sum(request.items for request in requests), cores, now)

    def done(self, batch: Batch, now: float, failed: bool = False) -> None:
        """A batch is answered. What has failed says nothing about how long its like takes."""
        if batch.stalled:
            return
        self._running.remove(batch)
        self._free += batch.cores
        stage = batch.requests[0].stage
        if stage is not None and not failed:
            self.latency.learn(stage, batch.items, batch.cores, now - batch.started)

    def withdraw(self, request: Request) -> bool:
        """Take back a request that has not started; whether that was so."""
        waiting = request in self._queue
        if waiting:
            self._queue.remove(request)
            self._promises.remove([request])
        return waiting

    def stalled(self, now: float) -> list[Batch]:
        """The batches that have stalled since the last time. Others get their cores."""
        late = [batch for batch in self._running if now > _stalls_at(batch)]
        for batch in late:
            batch.stalled = True
            self._running.remove(batch)
            self._free += batch.cores
        return late

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._queue.entries)

    def _turn_cores(self, request: Request) -> int:
        """The cores of a request that is next."""
        share = self._cores // (len(self._running) + self._queue.batches)
        return max(1, min(request.cores, share))

    def _promise(self, request: Request, now: float, start: float) -> None:
        """Promise a request's deadline. Raises Overloaded when it cannot be kept."""
        assert request.deadline is not None
        self._place_due(now, start)
        late = self._promises.add(request, start)
        if late <= 0 and now < request.deadline:
            return
        self._promises.remove([request])
        allowed = request.deadline - now
        alone = self.latency.bound(request.stage, request.items, self._cores) or 0.0
        if alone >= allowed:
            raise Overloaded(
                f"the request takes about {alone * 1e3:.3g} ms, and its timeout leaves it "
                f"{max(0.0, allowed) * 1e3:.3g} ms; allow it more"
            )
        raise Overloaded(
            f"the request would be answered {late * 1e3:.3g} ms after its timeout of "
            f"{allowed * 1e3:.3g} ms, or make others late; retry in {late:.3g} s",
            retry_after_s=late,
        )

    def _place_due(self, now: float, start: float) -> None:
        """Give a place in the plan to those that have waited longer than their share would have it.

        Without it deadlines could keep somebody waiting for ever.
        """
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        promised = self._promises.of
        if due := [each for each in self._queue.due_by(now) if each not in promised]:
            self._promises.place(due[:_MOST_PLACED], start, PATIENCE_S)

    def _choose(self, now: float) -> list[Request]:
        """The batch that starts next."""
        if self._promises.of:
            self._promises.forget_lost(self._free_at(now))
        requests = [self._queue.head()]
        if not self._fits(requests, now):
            requests = list(self._promises.first().requests)
        if requests[0].max_batch > 1:
            requests += self._riders(requests, now)
        return requests

    def _riders(self, requests: Sequence[Request], now: float) -> list[Request]:
        """Others of the same stage that ride in a batch: as many as its latencies are worth."""
        first = requests[0]
        cores = self._turn_cores(first)
        waiting = list(islice(self._queue.of_stage(first.stage), first.max_batch))
        room = self.latency.worth(first.stage, cores, first.max_batch)
        if self._queue.batches == 1:
            # Nothing else waits: the free cores share what there is.
            lanes = max(1, self._free // cores)
            room = min(room, -(-sum(each.items for each in waiting) // lanes))
        room -= sum(each.items for each in requests)
        riders: list[Request] = []
        for each in waiting:
            if each in requests:
                continue
            room -= each.items
            if room < 0:
                break
            riders.append(each)
        while riders and not self._fits([*requests, *riders], now):
            riders = riders[: len(riders) // 2]
        return riders

    def _fits(self, requests: Sequence[Request], now: float) -> bool:
        """Whether a batch may start now: it breaks no promise to its own requests or to others."""
        if not self._promises.of:
            return True
        cores = self._turn_cores(requests[0])
        items = sum(each.items for each in requests)
        seconds = self.latency.bound(requests[0].stage, items, cores) or 0.0
        for each in requests:
            if each in self._promises.of and now + seconds > _deadline(each) + ROUNDING_S:
                return False
        start = self._free_at(now) + seconds * cores / self._cores
        return self._promises.slack(start, requests) >= -ROUNDING_S

    def _run(self, requests: Sequence[Request], items: int, cores: int, now: float) -> Batch:
        stage = requests[0].stage
        seconds = None if stage is None else self.latency.bound(stage, items, cores)
        batch = Batch(requests, items, cores, now, seconds)
        self._free -= cores
        self._running.append(batch)
        return batch

    def _free_at(self, now: float) -> float:
        """When the cores will have done what runs, if all of them could help."""
        return now + sum(
            max(0.0, batch.started + batch.seconds - now) * batch.cores / self._cores
            for batch in self._running
            if batch.seconds is not None
        )


def _deadline(request: Request) -> float:
    return inf if request.deadline is None else request.deadline


def _stalls_at(batch: Batch) -> float:
    if batch.seconds is None:
        return batch.started + _STALL_UNKNOWN_S
    return batch.started + max(_STALL_S, _STALL_TIMES * batch.seconds)
