"""What the scheduler moves: requests, and the batches in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """One inference that waits for its turn. The scheduler sets what is below the line.

    Requests of one `stage` may share a batch of at most `max_batch` items, of which this one brings
    `items`; a stage is any object that can be weakly referred to, None one of which nothing is
    known. Models get equal shares of the cores. `deadline` is on the scheduler's clock, in seconds;
    of one model's requests, those of a higher `priority` come first, and more than those.
    """

    stage: Any = None
    model: Any = None
    items: int = 1
    max_batch: int = 1
    deadline: float | None = None
    priority: int = 0
    # ---
    cores: int = field(init=False)  # its share when it came
    # Of one that has to wait:
    load: float = field(init=False)  # seconds of the whole machine; 0 when nobody knows
    tag: float = field(init=False)  # its place in the fair order
    number: int = field(init=False, default=0)  # of those with one tag, the first is first
    due: float = field(init=False)  # when its share would have had it started, and some patience


@dataclass(slots=True, eq=False)
class Batch:
    """Requests of one stage that run together."""

    requests: Sequence[Any]  # Requests, which are more than that to who has added them
    items: int
    cores: int
    started: float
    seconds: float | None  # expected; None when nothing is known
    stalled: bool = False  # so late that its cores have been given to others
