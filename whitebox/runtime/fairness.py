"""The fair order of the requests that wait: models share the machine, however many requests each
of them sends. Pure: no clock.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a request's *tag* is where its model's earlier
requests end on a virtual clock, which shows the tag of what has started last. A model that floods
thus pushes back its own requests and nobody else's, and a model that was idle gains nothing by it.
Work counts in seconds of the whole machine, divided by the model's weight.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from whitebox.runtime.request import Request

# A level of priority is worth so many seconds of work.
PRIORITY_S = 1.0
# How long a request within its model's share may wait for others' deadlines.
PATIENCE_S = 0.1
# What all reservations together may take, so that no model is left without.
MAX_RESERVED = 0.9

Entry = tuple[float, int, Request]


@dataclass(slots=True)
class _Stage:
    """The requests of one stage, in fair order."""

    max_batch: int
    entries: list[Entry] = field(default_factory=list)
    items: int = 0

    @property
    def batches(self) -> int:
        return -(-self.items // self.max_batch)


@dataclass(slots=True)
class _Flow:
    """The requests of one model."""

    end: float = 0.0  # of its last request, on the virtual clock
    waiting: int = 0


class FairQueue:
    """The requests that wait, in fair order, and those of each stage."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []  # in order
        self._stages: dict[Any, _Stage] = {}
        self._flows: dict[Any, _Flow] = {}
        self._reserved: dict[Any, float] = {}
        self._active = 0  # flows with requests that wait
        self._clock = 0.0
        self._numbers = 0
        self.batches = 0  # how many batches the requests may make, at the fewest

    def reserve(self, model: Any, share: float) -> None:
        """Give a model at least this share of the machine when it wants it; 0: as any other."""
        others = sum(known for key, known in self._reserved.items() if key != model)
        if share < 0 or share + others > MAX_RESERVED:
            raise ValueError(
                f"{share:g} of the machine cannot be reserved for {model}: all reservations "
                f"together may take {MAX_RESERVED:g}, and others have {others:g}"
            )
        self._reserved.pop(model, None)
        if share:
            self._reserved[model] = share

    def push(self, request: Request, work: float, now: float) -> None:
        """Give a request of so much work its place."""
        flow = self._flows.get(request.model)
        if flow is None:
            flow = self._flows[request.model] = _Flow()
        flow.waiting += 1
        self._active += flow.waiting == 1
        start = max(self._clock, flow.end)
        flow.end = start + work / self._weight(request.model)
        request.due = now + PATIENCE_S + (start - self._clock) * self._active
        request.tag = start - request.priority * PRIORITY_S
        self._numbers += 1
        request.number = self._numbers
        entry = (request.tag, request.number, request)
        insort(self.entries, entry)
        stage = self._stages.get(request.stage) or _Stage(request.max_batch)
        if request.stage is not None:
            self._stages[request.stage] = stage
        self.batches -= stage.batches
        insort(stage.entries, entry)
        stage.items += request.items
        self.batches += stage.batches

    def head(self) -> Request:
        """The request whose turn it is."""
        return self.entries[0][2]

    def of_stage(self, stage: Any) -> Iterator[Request]:
        """The requests of one stage, in fair order."""
        return (entry[2] for entry in self._stages[stage].entries)

    def start(self, request: Request) -> None:
        """A request starts: the clock has come to its place, if it was the first."""
        if self.entries[0][2] is request:
            self._clock = max(self._clock, request.tag + request.priority * PRIORITY_S)
        self.remove(request)

    def remove(self, request: Request) -> None:
        """A request waits no longer."""
        entry = (request.tag, request.number, request)
        _remove(self.entries, entry)
        if request.stage is None:
            self.batches -= 1
        else:
            stage = self._stages[request.stage]
            self.batches -= stage.batches
            _remove(stage.entries, entry)
            stage.items -= request.items
            self.batches += stage.batches
            if not stage.entries:
                del self._stages[request.stage]
        flow = self._flows[request.model]
        flow.waiting -= 1
        self._active -= flow.waiting == 0
        if flow.waiting == 0 and flow.end <= self._clock:
            del self._flows[request.model]
        if not self.entries:
            # Nobody is kept waiting by anybody: what was is forgotten.
            self._flows.clear()
            self._clock = 0.0

    def due_by(self, time: float) -> list[Request]:
        """The requests that have been due by then."""
        return [entry[2] for entry in self.entries if entry[2].due <= time]

    def __contains__(self, request: object) -> bool:
        assert isinstance(request, Request)
        if not request.number:
            return False
        place = bisect_left(self.entries, (request.tag, request.number))
        return place < len(self.entries) and self.entries[place][2] is request

    def _weight(self, model: Any) -> float:
        """1, or so much that a reserved share is kept beside the others that are active."""
        share = self._reserved.get(model)
        if share is None:
            return 1.0
        taken = sum(self._reserved.values())
        others = sum(
            flow.waiting > 0 for key, flow in self._flows.items() if key not in self._reserved
        )
        return max(1.0, share / (1 - taken) * others)


def _remove(entries: list[Entry], entry: Entry) -> None:
    del entries[bisect_left(entries, entry[:2])]
