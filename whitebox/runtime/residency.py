"""Residency: which models stay in memory, within a budget of bytes.

What each model holds goes in, as sizes of parts; the models that have to leave come out: those not
used for longest. A part that several models hold, such as weights or a kernel, counts once.
Decides only: frees nothing, and knows no clock. Not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Generic, Protocol, TypeVar

Part = Hashable


class Resident(Hashable, Protocol):
    """A model in memory. Whoever uses it sets `used`: a request has no time for more."""

    used: bool


M = TypeVar("M", bound=Resident)


class Residency(Generic[M]):
    """The models in memory, in the order in which they leave.

    A model that was used since it came to the front goes to the back instead ("second chance"): the
    least recently used leaves, as nearly as one bit can tell.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.nbytes = 0
        self.evictions = 0
        self._models: OrderedDict[M, Mapping[Part, int]] = OrderedDict()
        self._holders: dict[Part, int] = {}

    def hold(self, model: M, parts: Mapping[Part, int]) -> set[Part]:
        """A model holds these parts from now on; gives those that nobody holds any more."""
        before = self._models.pop(model, {})
        self._models[model] = parts
        model.used = False
        for part, size in parts.items():
            holders = self._holders.get(part, 0)
            self._holders[part] = holders + 1
            if not holders:
                self.nbytes += size
        return self._release(before)

    def drop(self, model: M) -> set[Part]:
        """A model is gone; gives the parts that nobody holds any more."""
        return self._release(self._models.pop(model, {}))

    def make_room(self, keep: M, others: int = 0) -> tuple[list[M], set[Part]]:
        """The models that leave so that the rest and `others` bytes fit, and the parts that go.

        `keep` stays, even if it does not fit alone.
        """
        left: list[M] = []
        freed: set[Part] = set()
        chances = len(self._models)
        while self.excess(others) > 0 and len(self._models) > 1:
            model = next(iter(self._models))
            if model is keep or (model.used and chances > 0):
                self._models.move_to_end(model)
                model.used = False
                chances -= 1
            else:
                left.append(model)
                freed |= self.drop(model)
        self.evictions += len(left)
        return left, freed

    def excess(self, others: int = 0) -> int:
        """How far over the budget all is together; negative where there is room."""
        return -1 if self.budget is None else self.nbytes + others - self.budget

    def _release(self, parts: Mapping[Part, int]) -> set[Part]:
        freed = set()
        for part, size in parts.items():
            self._holders[part] -= 1
            if not self._holders[part]:
                del self._holders[part]
                self.nbytes -= size
                freed.add(part)
        return freed
