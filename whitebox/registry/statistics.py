"""What a home holds, and what sharing saves in it: counted, nothing estimated.

Enters: an open registry. Leaves: a record of figures. No model is loaded or compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from whitebox.compiler.cache import KernelCache
from whitebox.ir.graph import INPUT
from whitebox.registry.records import ModelInfo
from whitebox.registry.store import Registry


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one home.

    `weight_bytes` is what all versions would take each by itself, `stored_weight_bytes` what they
    take. `operators` counts those of the newest versions, each model by itself, and
    `distinct_operators` those that compute, with their weights, what no other does.
    """

    models: int
    versions: int
    weight_bytes: int
    stored_weight_bytes: int
    derived_bytes: int
    kernels: int
    kernel_bytes: int
    operators: int
    distinct_operators: int


def statistics(
    registry: Registry, progress: Callable[[int, int], None] = lambda done, total: None
) -> Statistics:
    """Count. `progress` hears of each model that has been looked at."""
    records = registry.list()
    newest = ModelInfo.newest(records)
    operators, distinct = 0, set()
    for done, info in enumerate(newest):
        progress(done, len(newest))
        graph = registry.graph(info)
        own = {n.digest for n in graph.nodes if n.op != INPUT and not n.is_constant_expression}
        operators += len(own)
        distinct |= own
    stored, derived = registry.stored_bytes()
    kernels, kernel_bytes = KernelCache(registry.home / "kernels").sizes()
    return Statistics(
        models=len(newest),
        versions=len(records),
        weight_bytes=sum(record.nbytes for record in records),
        stored_weight_bytes=stored,
        derived_bytes=derived,
        kernels=kernels,
        kernel_bytes=kernel_bytes,
        operators=operators,
        distinct_operators=len(distinct),
    )
