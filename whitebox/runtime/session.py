"""InferenceSession: one model in process, with onnxruntime's face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox import config
from whitebox.compiler.structure import Structured
from whitebox.compiler.target import host_target
from whitebox.ir.types import MapType, OptionalType, SequenceType, TensorType, Type
from whitebox.registry.records import TensorSpec, signature_of
from whitebox.runtime.engine import Engine
from whitebox.runtime.params import ParameterStore
from whitebox.runtime.prepare import Preparer
from whitebox.runtime.served import ServedModel

if TYPE_CHECKING:
    import onnx

    from whitebox.runtime.accuracy import AccuracyReport
    from whitebox.runtime.explain import Explanation

_ORT_NAMES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class NodeArg:
    """Name, type (as onnxruntime spells it) and shape (str or None: free) of an input or output."""

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True)
class ModelMetadata:
    """What the file says about itself."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    version: int
    custom_metadata_map: dict[str, str]


@dataclass
class SessionOptions:
    """The options of onnxruntime that mean something here; others may be set and do nothing."""

    intra_op_num_threads: int = 0


def get_available_providers() -> list[str]:
    """The devices that models can run on."""
    return ["CPUExecutionProvider"]


@cache
def _shared(home: Path, threads: int) -> tuple[Preparer, Engine]:
    """Sessions of one process share kernels, parameters and the engine."""
    preparer = Preparer(host_target(threads), home, ParameterStore(threads=threads))
    return preparer, Engine(threads)


class InferenceSession:
    """A model from a file, its bytes or a ModelProto, compiled on first use of each input shape.

    Code written for `onnxruntime.InferenceSession` works by changing the import; `providers` and
    the options that mean nothing here are accepted and ignored. `precision` is "f32" or "bf16":
    then products take operands rounded to bfloat16 where that is faster, and `accuracy` says what
    it costs. Compiled kernels are kept in the home and shared with every other session and with
    registered models. Raises InvalidModel, UnsupportedOperator or InvalidInput (precision).
    """

    def __init__(
        self,
        path_or_bytes: str | Path | bytes | onnx.ModelProto,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
        *,
        precision: str = "f32",
        home: str | Path | None = None,
        **_ignored: Any,
    ) -> None:
        from whitebox.ir import onnx_io
        from whitebox.passes import optimize, share

        graph = optimize(onnx_io.load(path_or_bytes), (share,))
        threads = int(getattr(sess_options, "intra_op_num_threads", 0) or config.threads())
        folder = Path(home) if home is not None else config.home()
        self._preparer, self._engine = _shared(folder.resolve(), threads)
        self._metadata: Mapping[str, str] = graph.model.metadata
        inputs, outputs = signature_of(graph.model)
        structured = Structured.of(graph, precision)
        self._model = ServedModel(graph.model.name, structured, inputs, outputs)
        self._answer = self._model.answer

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
    ) -> list[Any]:
        """The outputs named (all when None), as arrays, in order. Raises InvalidInput."""
        if output_names is None:
            results = self._answer(input_feed)
            if results is not None:
                return results
        values, shapes = self._model.check(input_feed)
        wanted = self._model.check_outputs(output_names)
        work = self._model.ready(shapes, self._preparer, self._engine)
        results = self._engine.run(work, values)
        return [results[index] for index in wanted]

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """Names and types of the inputs, as the runtime has them."""
        return self._model.inputs

    def get_inputs(self) -> list[NodeArg]:
        return [_node_arg(spec) for spec in self._model.inputs]

    def get_outputs(self) -> list[NodeArg]:
        return [_node_arg(spec) for spec in self._model.outputs]

    def get_providers(self) -> list[str]:
        return get_available_providers()

    def get_modelmeta(self) -> ModelMetadata:
        """Producer, description and custom metadata of the file."""
        known = dict(self._metadata)
        return ModelMetadata(
            producer_name=str(known.pop("producer_name", "")),
            graph_name=str(known.pop("graph_name", self._model.name)),
            domain=str(known.pop("domain", "")),
            description=str(known.pop("doc_string", "")),
            version=int(known.pop("model_version", 0)),
            custom_metadata_map={key: str(value) for key, value in known.items()},
        )

    def explain(self, input_feed: Mapping[str, Any] | None = None) -> Explanation:
        """What the passes did, the kernels, and where time and bytes go."""
        from whitebox.runtime.explain import explain

        return explain(self._model, self._preparer, self._engine, input_feed)

    def accuracy(self, input_feed: Mapping[str, Any] | None = None) -> AccuracyReport:
        """How far the session's precision is from float32, on given or seeded inputs."""
        from whitebox.runtime.accuracy import accuracy, some_feeds

        model = self._model
        feeds = some_feeds(model, None) if input_feed is None else [input_feed]
        precision = model.structured.precision
        return accuracy(model, precision, self._preparer, self._engine, feeds)


def _node_arg(spec: TensorSpec) -> NodeArg:
    shape: list[int | str | None] = []
    if isinstance(spec.type, TensorType):
        shape = list(spec.type.shape or ())
    return NodeArg(spec.name, _ort_type(spec.type), shape)


def _ort_type(type: Type) -> str:
    """A type as onnxruntime prints it: "tensor(float)", "seq(map(int64,tensor(float)))"."""
    match type:
        case TensorType():
            return f"tensor({_ORT_NAMES.get(type.dtype, type.dtype)})"
        case SequenceType():
            return f"seq({_ort_type(type.element)})"
        case OptionalType():
            return f"optional({_ort_type(type.element)})"
        case MapType():
            return f"map({type.key},{_ort_type(type.value)})"
