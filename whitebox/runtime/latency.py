"""The latency model: what a batch of a stage takes, learnt from those that have run.

Enters: how long batches took. Leaves: what others will take, and how large batches are worth
making. Pure: no clock. A stage is any object that can be weakly referred to; what is known about it
goes with it. Of None nothing is ever known.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any
from weakref import WeakKeyDictionary

# The first runs of a size touch memory that nothing has touched before: the least of them counts.
_FIRST_RUNS = 3
# Later runs pull the estimates by these parts, and none counts for more than so many times the
# mean: a hiccup hardly shows, while a lasting change does within a few runs.
_MEAN_PART, _DEVIATION_PART = 1 / 8, 1 / 4
_MOST_TIMES_MEAN = 4.0
# A bound is the mean and so many deviations, as TCP has it for its timer.
_DEVIATIONS = 2.0


class Estimate:
    """Mean and mean deviation of how long something takes, in seconds."""

    __slots__ = ("deviation", "mean", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self.mean = self.deviation = 0.0

    def add(self, seconds: float) -> None:
        self.runs += 1
        if self.runs <= _FIRST_RUNS:
            self.mean = seconds if self.runs == 1 else min(self.mean, seconds)
            return
        error = min(seconds, _MOST_TIMES_MEAN * self.mean) - self.mean
        self.mean += error * _MEAN_PART
        self.deviation += (abs(error) - self.deviation) * _DEVIATION_PART

    @property
    def bound(self) -> float:
        return self.mean + _DEVIATIONS * self.deviation


class _Curve:
    """Estimates by number of items, for one stage on one number of cores."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._estimates: dict[int, Estimate] = {}

    def add(self, items: int, seconds: float) -> None:
        if items not in self._estimates:
            insort(self._sizes, items)
            self._estimates[items] = Estimate()
        self._estimates[items].add(seconds)

    def tried(self, above: int, most: int) -> bool:
        """Whether some size in this range has run often enough to be judged."""
        return any(
            above < size <= most and self._estimates[size].runs >= _FIRST_RUNS
            for size in self._sizes
        )

    def at(self, items: int) -> tuple[float, float]:
        """(mean, bound): on the line between the known sizes around; in proportion above them."""
        known = self._estimates.get(items)
        if known is not None:
            return known.mean, known.bound
        place = bisect_left(self._sizes, items)
        above = self._estimates[self._sizes[min(place, len(self._sizes) - 1)]]
        if place == 0:
            return above.mean, above.bound
        size = self._sizes[place - 1]
        below = self._estimates[size]
        if place == len(self._sizes):
            return below.mean * items / size, below.bound * items / size
        part = (items - size) / (self._sizes[place] - size)
        return (
            below.mean + part * (above.mean - below.mean),
            below.bound + part * (above.bound - below.bound),
        )

    def per_item(self) -> float:
        """The least seconds an item at any known size."""
        return min(found.mean / size for size, found in self._estimates.items())


class LatencyModel:
    """What is known of every stage, by the number of cores."""

    def __init__(self) -> None:
        self._curves: WeakKeyDictionary[Any, dict[int, _Curve]] = WeakKeyDictionary()

    def learn(self, stage: Any, items: int, cores: int, seconds: float) -> None:
        """A batch of so many items took so long on so many cores."""
        if stage is None:
            return
        curves = self._curves.get(stage)
        if curves is None:
            curves = self._curves[stage] = {}
        if cores not in curves:
            curves[cores] = _Curve()
        curves[cores].add(items, seconds)

    def bound(self, stage: Any, items: int, cores: int) -> float | None:
        """Seconds that a batch will hardly exceed; None when the stage has never run."""
        found = self._curve(stage, cores)
        if found is None:
            return None
        curve, factor = found
        return curve.at(items)[1] * factor

    def work(self, stage: Any, items: int) -> float | None:
        """Seconds of one core that so many items take in the best of batches; None: never run."""
        curves = self._of(stage)
        if not curves:
            return None
        return items * min(cores * curve.per_item() for cores, curve in curves.items())

    def worth(self, stage: Any, cores: int, most: int) -> int:
        """The items that a batch should have at most: doubled as long as that has not lost yet."""
        found = self._curve(stage, cores)
        size = 1
        while 2 * size <= most:
            if found is None or not found[0].tried(size, 2 * size):
                return 2 * size
            if found[0].at(2 * size)[0] >= 2 * found[0].at(size)[0]:
                return size
            size *= 2
        return most

    def _of(self, stage: Any) -> dict[int, _Curve] | None:
        return None if stage is None else self._curves.get(stage)

    def _curve(self, stage: Any, cores: int) -> tuple[_Curve, float] | None:
        """The curve nearest to a number of cores, and the factor to apply.

        More cores are taken to save nothing, fewer to cost in proportion.
        """
        curves = self._of(stage)
        if not curves:
            return None
        near = cores if cores in curves else min(curves, key=lambda known: abs(known - cores))
        return curves[near], max(1.0, near / cores)
