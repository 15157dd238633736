"""A timeline: work in order of deadlines, and whether all of it is in time.

Pure data structure. It keeps sums by blocks, so that a change or a question takes a time that grows
as the square root of its length.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from whitebox.runtime.request import Request

_BLOCK = 64


@dataclass(slots=True, eq=False)
class Promise:
    """Requests of one stage that are planned as one batch."""

    requests: Sequence[Request]
    deadline: float  # its place: when the first of them has to end, or what they come after
    latest: float  # when it has to start
    work: float  # in seconds of the whole machine
    items: int

    def __lt__(self, other: Promise) -> bool:
        return self.deadline < other.deadline


Instead = Mapping[Promise, "Promise | None"]


class _Block:
    """A stretch of the timeline."""

    __slots__ = ("promises", "work", "worst")

    def __init__(self, promises: list[Promise]) -> None:
        self.promises = promises
        self.sum_up()

    def sum_up(self) -> None:
        """`worst` is how late the latest would start if the stretch began at time 0."""
        clock, worst = 0.0, -inf
        for promise in self.promises:
            late = clock - promise.latest
            if late > worst:
                worst = late
            clock += promise.work
        self.work, self.worst = clock, worst


def _first(block: _Block) -> float:
    return block.promises[0].deadline


def _last(block: _Block) -> float:
    return block.promises[-1].deadline


class Timeline:
    """Promises in order of deadlines; of those with the same one, in order of their insertion."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def insert(self, promise: Promise) -> None:
        """Put a promise in its place."""
        if not self._blocks:
            self._blocks.append(_Block([promise]))
            return
        place = bisect_right(self._blocks, promise.deadline, key=_last)
        block = self._blocks[min(place, len(self._blocks) - 1)]
        insort(block.promises, promise)
        self._changed(block)

    def insert_first(self, promise: Promise) -> None:
        """Put a promise in front of all others, whose deadlines are no earlier."""
        if not self._blocks:
            return self.insert(promise)
        self._blocks[0].promises.insert(0, promise)
        return self._changed(self._blocks[0])

    def insert_after(self, known: Promise, promise: Promise) -> None:
        """Put a promise with the same deadline as another directly behind it."""
        block = self._block(known)
        block.promises.insert(block.promises.index(known) + 1, promise)
        self._changed(block)

    def replace(self, promise: Promise, other: Promise | None) -> None:
        """Put another, with the same deadline, in the place of a promise; None: take it out."""
        block = self._block(promise)
        place = block.promises.index(promise)
        block.promises[place : place + 1] = [] if other is None else [other]
        if block.promises:
            block.sum_up()
        else:
            self._blocks.remove(block)

    def lateness(self, start: float, instead: Instead | None = None) -> float:
        """How late the latest would start, if the first starts then; negative: time to spare.

        As if some were replaced by others, or (by None) not there.
        """
        changed = {self._block(promise) for promise in instead} if instead else ()
        worst = -inf
        for block in self._blocks:
            if instead and block in changed:
                found = (instead.get(promise, promise) for promise in block.promises)
                block = _Block([promise for promise in found if promise is not None])
            worst = max(worst, start + block.worst)
            start += block.work
        return worst

    def late(self, start: float) -> Iterator[tuple[Promise, float]]:
        """Those that would start too late, and when they would end."""
        for block in self._blocks:
            clock, start = start, start + block.work
            if clock + block.worst <= 0:
                continue
            for promise in block.promises:
                late = clock > promise.latest
                clock += promise.work
                if late:
                    yield promise, clock

    def first(self) -> Promise:
        """The one with the earliest deadline."""
        return self._blocks[0].promises[0]

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def _block(self, promise: Promise) -> _Block:
        """The block of a promise."""
        place = bisect_left(self._blocks, promise.deadline, key=_last)
        while promise not in self._blocks[place].promises:
            place += 1
        return self._blocks[place]

    def _changed(self, block: _Block) -> None:
        if len(block.promises) > 2 * _BLOCK:
            rest = _Block(block.promises[_BLOCK:])
            del block.promises[_BLOCK:]
            self._blocks.insert(self._blocks.index(block) + 1, rest)
        block.sum_up()
