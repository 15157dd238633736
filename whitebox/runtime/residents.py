"""The models in memory: read when they are asked for, let go of when others need the room.

Names and versions go in, models ready to serve come out. A model that leaves is only forgotten
here: a request that uses it goes on, and what it held is free once the last such request is over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from whitebox.errors import WhiteboxError
from whitebox.registry import Registry
from whitebox.registry.catalogue import Catalogue, Key
from whitebox.registry.records import ModelRecord
from whitebox.runtime.materialize import Materialized, is_repeatable
from whitebox.runtime.residency import Part, Residency
from whitebox.runtime.served import ServedModel

log = logging.getLogger(__name__)


class Residents:
    """Models of one registry, within a budget of bytes (None: no bound). Thread-safe.

    `answers` are what is kept of the answers of some models, by name; `others` says how many bytes
    more count, such as scratch memory. `left` hears of the models that left, and of the parts that
    no model holds any more.
    """

    def __init__(
        self,
        registry: Registry,
        budget: int | None,
        answers: Mapping[str, Materialized],
        others: Callable[[], int],
        left: Callable[[Iterable[ServedModel], Iterable[Part]], None],
    ) -> None:
        self.catalogue = Catalogue(registry)
        self._registry = registry
        self._answers = answers
        self._others = others
        self._left = left
        self._residency: Residency[ServedModel] = Residency(budget)
        self._models: dict[Key, ServedModel] = {}
        self._keys: dict[ServedModel, Key] = {}
        self._newest: dict[str, ServedModel] = {}  # by name, what `find` found
        self._too_large: set[Key] = set()
        self._lock = threading.Lock()

    def find(self, name: str, version: int | None = None) -> ServedModel:
        """A model, the newest version by default. Raises ModelNotFound or StorageError."""
        if version is None:
            known = self._newest.get(name)
            if known is not None:
                known.used = True
                return known
        record = self.catalogue.record(name, version)
        key = (record.name, record.version)
        model = self._models.get(key) or self._read(key, record)
        model.used = True
        if version is None:
            with self._lock:
                newest = self.catalogue.find(name)
                if self._models.get(key) is model and newest and newest.version == key[1]:
                    self._newest[name] = model
        return model

    def loaded(self, name: str, version: int) -> ServedModel | None:
        """A version, if it is in memory."""
        model = self._models.get((name, version))
        if model is not None:
            model.used = True
        return model

    def _read(self, key: Key, record: ModelRecord) -> ServedModel:
        try:
            structured = self._registry.model(record)
        except WhiteboxError:
            # Its weights may be gone because the model is: then that is what to say.
            self._registry.get(*key)
            raise
        fresh = ServedModel(
            record.name,
            structured,
            record.inputs,
            record.outputs,
            partial(self._loaded, key),
        )
        answers = self._answers.get(record.name)
        if answers is not None and is_repeatable(structured.structure.graph):
            fresh.keep_answers(answers, record.digest)
        elif answers is not None:
            log.warning("%s v%d draws random numbers: none of its answers is kept", *key)
        self._loaded(key, fresh)
        return self._models.get(key, fresh)

    def _loaded(self, key: Key, model: ServedModel) -> None:
        """Count what a model holds now, and make room for it."""
        with self._lock:
            # One that was removed meanwhile, or read twice, goes with the requests that use it.
            if key not in self.catalogue or self._models.setdefault(key, model) is not model:
                return
            self._keys[model] = key
            freed = self._residency.hold(model, model.held())
            left, more = self._residency.make_room(model, self._others())
            if self._residency.excess() > 0 and model.forget_shapes():
                more |= self._residency.hold(model, model.held())
            alone = self._residency.excess() > 0 and key not in self._too_large
            if alone:
                self._too_large.add(key)
            for each in left:
                self._forget(each)
        if alone:
            log.warning(
                "%s v%d takes more memory than the budget of %d bytes allows: it runs, alone",
                *key,
                self._residency.budget,
            )
        if left or freed or more:
            self._left(left, freed | more)

    def _forget(self, model: ServedModel) -> None:
        key = self._keys.pop(model)
        del self._models[key]
        if self._newest.get(key[0]) is model:
            del self._newest[key[0]]

    def refresh(self) -> None:
        """See what any process has registered or removed since."""
        removed = self.catalogue.refresh()
        if removed is None:
            return
        freed: set[Part] = set()
        with self._lock:
            self._newest = {}
            self._too_large.difference_update(removed)
            gone = [self._models[key] for key in removed if key in self._models]
            for model in gone:
                self._forget(model)
                freed |= self._residency.drop(model)
        if gone:
            self._left(gone, freed)

    @property
    def nbytes(self) -> int:
        """What the models hold."""
        return self._residency.nbytes

    @property
    def budget(self) -> int | None:
        """How many bytes may be held."""
        return self._residency.budget

    @property
    def evictions(self) -> int:
        """How many models have made room for others so far."""
        return self._residency.evictions

    def __len__(self) -> int:
        return len(self._models)
