"""plans: the folder of plans and kernel families, so that passes run once a structure and shape.

Enter and leave: plain data under the digest of all that it depends on. Every file may be deleted at
any time; a damaged one is dropped. No pass and no compiler is imported here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from whitebox.compiler.cache import KernelCache, pipeline_version, write_atomically
from whitebox.compiler.structure import Structured
from whitebox.compiler.target import Target
from whitebox.runtime.plan import Plan, decode_plan, encode_plan

Shapes = Mapping[str, tuple[int, ...]]

OWN, GENERAL, FAMILY = "", "general", "family"
STAGE, GENERAL_STAGE = "stage", "general stage"


class PlanFolder:
    """What has been planned for one target, by structure, precision, shapes and kind.

    The kinds are plans made for their shapes, general ones, families of kernels, and fused graphs;
    and plans of stages, which have a structure of their own.
    """

    def __init__(self, folder: Path, target: Target, kernels: KernelCache) -> None:
        self._folder = folder
        self._target = target
        self._kernels = kernels
        # Models of one structure share the plan in memory as well.
        self._loaded: WeakValueDictionary[Path, Plan] = WeakValueDictionary()

    def plan(self, model: Structured, shapes: Shapes, kind: str = OWN) -> Plan | None:
        """The stored plan, when its kernels are there."""
        path = self._path(model, shapes, kind)
        plan = self._loaded.get(path)
        if plan is not None:
            return plan
        try:
            plan = decode_plan(path.read_bytes())
        except OSError:
            return None
        except msgspec.DecodeError:
            path.unlink(missing_ok=True)
            return None
        if not all(self._kernels.has(key) for key in plan.kernels):
            return None
        return self._loaded.setdefault(path, plan)

    def keep_plan(self, model: Structured, shapes: Shapes, kind: str, plan: Plan) -> None:
        """Have every process find the plan."""
        write_atomically(self._path(model, shapes, kind), encode_plan(plan))

    def fused(self, model: Structured, shapes: Shapes, kind: str) -> bytes | None:
        """The stored fused graph behind a plan of this kind."""
        try:
            return self._path(model, shapes, f"{kind} fused").read_bytes()
        except OSError:
            return None

    def keep_fused(self, model: Structured, shapes: Shapes, kind: str, graph: bytes) -> None:
        """Have every process find the fused graph."""
        write_atomically(self._path(model, shapes, f"{kind} fused"), graph)

    def family(self, model: Structured) -> list[bytes] | None:
        """The stored family of a structure: serialised bodies."""
        path = self._path(model, {}, FAMILY)
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=list[bytes])
        except (OSError, msgspec.DecodeError):
            return None

    def keep_family(self, model: Structured, bodies: Sequence[bytes]) -> None:
        """Have every process find the family."""
        write_atomically(self._path(model, {}, FAMILY), msgspec.msgpack.encode(bodies))

    def _path(self, model: Structured, shapes: Shapes, kind: str) -> Path:
        parts = [model.digest, model.precision, self._target.key, pipeline_version(), kind]
        # By position: what a model calls its inputs is no part of its structure.
        for index, name in enumerate(model.structure.names[0]):
            if name in shapes:
                parts.append(f"{index}={'x'.join(map(str, shapes[name]))}")
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
        return self._folder / digest[:2] / f"{digest}.plan"
