"""The catalogue: what one process knows of the versions in a home.

The registry's records go in, model infos come out. Among ten thousand models, another one costs
the reading of its own row, and finding one is a look-up. What was read is never read again.
"""

from __future__ import annotations

import threading

from whitebox.registry.records import ModelInfo, ModelRecord
from whitebox.registry.store import Registry

Key = tuple[str, int]  # name and version


class Catalogue:
    """The versions of every model, as of the last `refresh`. Thread-safe; reading takes no lock."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._generation = -1
        self._rows: dict[int, Key] = {}
        # By name, in order of version; replaced whole, never changed.
        self._models: dict[str, tuple[ModelRecord, ...]] = {}
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> list[Key] | None:
        """See what any process did since; gives what was removed, None when nothing changed."""
        generation = self._registry.generation()
        with self._lock:
            if generation == self._generation:
                return None
            # Row numbers only grow.
            last = next(reversed(self._rows), 0)
            for row, record in self._registry.rows(after=last):
                self._rows[row] = (record.name, record.version)
                self._models[record.name] = (*self._models.get(record.name, ()), record)
            removed = []
            if len(self._rows) != self._registry.count():
                removed = [self._drop(row) for row in self._rows.keys() - self._registry.row_ids()]
            self._generation = generation
            return removed

    def _drop(self, row: int) -> Key:
        name, version = key = self._rows.pop(row)
        left = tuple(record for record in self._models.pop(name) if record.version != version)
        if left:
            self._models[name] = left
        return key

    def find(self, name: str, version: int | None = None) -> ModelRecord | None:
        """A version of a model, the newest by default, as far as it is known."""
        for record in reversed(self._models.get(name, ())):
            if version is None or record.version == version:
                return record
        return None

    def record(self, name: str, version: int | None = None) -> ModelRecord:
        """A version of a model, the newest by default. Raises ModelNotFound."""
        # Perhaps another process has just registered it; the registry also words the error.
        return self.find(name, version) or self._registry.get(name, version)

    def model(self, name: str, version: int | None = None) -> ModelInfo:
        """As `record`, with the versions that there are. Raises ModelNotFound."""
        record = self.record(name, version)
        versions = {known.version for known in self._models.get(name, ())}
        return ModelInfo.of(record, versions | {record.version})

    def models(self) -> list[ModelInfo]:
        """The newest version of each model, by name."""
        with self._lock:
            models = sorted(self._models.items())
        return [ModelInfo.of(known[-1], (r.version for r in known)) for _, known in models]

    @property
    def names(self) -> int:
        """How many models there are."""
        return len(self._models)

    def __contains__(self, key: Key) -> bool:
        return self.find(*key) is not None

    def __len__(self) -> int:
        return len(self._rows)
