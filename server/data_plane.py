"""What the server answers, whatever carries the question: metadata, health and inference.

Enters: names, versions and decoded requests. Leaves: plain dicts and named arrays; a failure is a
`WhiteboxError`, whose class carries the status of each transport. Never knows a transport.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

from whitebox.errors import InvalidInput, InvalidName, Overloaded, WhiteboxError
from whitebox.ir.types import TensorType
from whitebox.server.tensors import Array, datatype_of, quote
from whitebox.server.wire import InferRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from whitebox.registry.records import ModelInfo, TensorSpec
    from whitebox.runtime.runtime import Runtime

# Levels of priority: that of requests which name none, and the lowest that is told apart.
_DEFAULT_LEVEL, _LOWEST_LEVEL = 2, 10

EXTENSIONS = ("binary_tensor_data", "infer_together")

# Models in one request: far more than share anything worthwhile, far fewer than stop a server.
MAX_TOGETHER = 1000

_log = logging.getLogger("whitebox.server")


@dataclass(frozen=True, slots=True)
class InferResponse:
    """What a model answered, and which version of it."""

    model: str
    version: int
    results: dict[str, Array]

    def as_tuple(self) -> tuple[str, int, dict[str, Array]]:
        return self.model, self.version, self.results


class DataPlane:
    """The Open Inference Protocol over one runtime, which it uses and does not own."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._loaded = False
        self._draining = False

    def load(self) -> None:
        """Bring all models into memory, then say "ready". Blocks."""
        self.runtime.refresh()
        try:
            self.runtime.warm()
        except WhiteboxError as error:
            # One model that cannot be loaded must not keep the others from serving.
            _log.error("not every model is loaded ahead of its first request: %s", error)
        self._loaded = True

    def refresh(self) -> None:
        """Take up what any process registered or removed. Cheap when there is nothing new."""
        self.runtime.refresh()

    def drain(self) -> None:
        """From now on say "not ready", so that a load balancer sends no more."""
        self._draining = True

    def check_ready(self) -> None:
        """Raise Overloaded, with the reason, unless the server takes requests."""
        if self._draining:
            raise Overloaded("the server is shutting down; send the request to another one")
        if not self._loaded:
            raise Overloaded("the server is still loading its models; try again in a moment")

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and protocol extensions."""
        return {
            "name": "whitebox",
            "version": package_version("whitebox-runtime"),
            "extensions": list(EXTENSIONS),
        }

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        """A model that is registered. Raises ModelNotFound or InvalidName."""
        if version is None:
            return self.runtime.model(name)
        if not (version.isascii() and version.isdecimal() and len(version) <= 9):
            raise InvalidName(
                f"{quote(version)} is no version of a model: versions are numbers, "
                "leave it out for the newest"
            )
        return self.runtime.model(name, int(version))

    def is_registered(self, name: str) -> bool:
        """Whether there is a model of this name, as far as this process has seen."""
        return self.runtime.catalogue.find(name) is not None

    def model_metadata(self, name: str, version: str | None = None) -> dict[str, Any]:
        """A model's signature and precision. A free dimension, or an unknown shape, is -1."""
        info = self.model(name, version)
        return {
            "name": info.name,
            "versions": [str(each) for each in info.versions],
            "platform": "whitebox_onnx",
            "inputs": _signature(info.inputs),
            "outputs": _signature(info.outputs),
            "parameters": {"precision": info.precision},
        }

    def repository_index(self) -> list[dict[str, Any]]:
        """Every version of every model."""
        return [
            {"name": info.name, "version": str(version), "state": "READY", "reason": ""}
            for info in self.runtime.models()
            for version in info.versions
        ]

    async def infer(self, info: ModelInfo, request: InferRequest) -> InferResponse:
        """The answer of one version of a model, with the outputs in the order asked for."""
        names = _output_names(info, request)
        timeout, priority = _terms(request)
        brief = self.runtime.brief(info.name, info.version, request.inputs)
        if brief is not None:
            return InferResponse(info.name, info.version, {name: brief[name] for name in names})
        future = self.runtime.submit(
            info.name,
            request.inputs,
            names,
            version=info.version,
            timeout=timeout,
            priority=priority,
        )
        # (a caller that goes away takes its request out of the queue)
        results = await asyncio.wrap_future(future)
        return InferResponse(info.name, info.version, {name: results[name] for name in names})

    def several(self, request: InferRequest) -> list[ModelInfo]:
        """The models that a request to several names. Raises ModelNotFound or InvalidInput."""
        if not 0 < len(request.models) <= MAX_TOGETHER:
            raise InvalidInput(
                f"the request names {len(request.models)} models; name from 1 to {MAX_TOGETHER}, "
                'as in "models": ["a", {"name": "b", "version": "2"}]'
            )
        return [self.model(*each) for each in request.models]

    async def infer_together(
        self, infos: Sequence[ModelInfo], request: InferRequest
    ) -> list[InferResponse]:
        """The answers of several models to one input; what they share is computed once."""
        names = [_output_names(info, _asked_of(info, request)) for info in infos]
        timeout, priority = _terms(request)
        future = self.runtime.submit_together(
            [(info.name, info.version) for info in infos],
            request.inputs,
            list(dict.fromkeys(name for each in names for name in each)),
            timeout=timeout,
            priority=priority,
        )
        answers = await asyncio.wrap_future(future)
        return [
            InferResponse(info.name, info.version, {name: answer[name] for name in wanted})
            for info, wanted, answer in zip(infos, names, answers, strict=True)
        ]


def _terms(request: InferRequest) -> tuple[float | None, int]:
    """The timeout in seconds and the priority that a request asks for, as Triton spells them.

    There 1 is the highest priority, and 0 that of a request that does not say; here larger is
    higher. Raises InvalidInput.
    """
    found = {}
    for key, what in (("timeout", "microseconds"), ("priority", "a level, 1 for the highest")):
        value = request.parameters.get(key, 0)
        if type(value) is not int or value < 0:
            raise InvalidInput(
                f"the request: {key} is {quote(str(value))}; send a whole number: {what}"
            )
        found[key] = value
    level = min(found["priority"] or _DEFAULT_LEVEL, _LOWEST_LEVEL)
    return found["timeout"] / 1e6 or None, _DEFAULT_LEVEL - level


def _asked_of(info: ModelInfo, request: InferRequest) -> InferRequest:
    """A request to several models as one of them has to answer it: with the outputs it has.

    Those that it lacks altogether are left in, for the error that they make.
    """
    has = {spec.name for spec in info.outputs}
    own = tuple(output for output in request.outputs if output.name in has)
    return replace(request, outputs=own or request.outputs)


def _signature(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    # Sequences and maps have no form in the protocol, and cannot be asked for through it.
    return [
        {
            "name": spec.name,
            "datatype": datatype_of(spec.type.dtype),
            "shape": [-1] if spec.type.shape is None else spec.wire_shape,
        }
        for spec in specs
        if isinstance(spec.type, TensorType)
    ]


def _output_names(info: ModelInfo, request: InferRequest) -> list[str]:
    """The outputs to compute: those asked for, or else all that the protocol can carry."""
    types = {spec.name: spec.type for spec in info.outputs}
    tensors = [name for name, type in types.items() if isinstance(type, TensorType)]
    for output in request.outputs:
        if output.name not in types:
            raise InvalidInput(
                f"model {info.name} has no output {quote(output.name)}; it has {', '.join(types)}"
            )
        if output.name not in tensors:
            raise InvalidInput(
                f"model {info.name}: output {quote(output.name)} is a {types[output.name]}, which "
                f"the protocol cannot carry; ask for {', '.join(tensors) or 'it in Python'}"
            )
    if not tensors:
        raise InvalidInput(
            f"model {info.name} has no tensor among its outputs, and the protocol carries only "
            "tensors; run it in Python"
        )
    return [output.name for output in request.outputs] or tensors
