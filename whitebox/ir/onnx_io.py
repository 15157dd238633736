"""ONNX files in and out.

Enter: a model as path, bytes or `onnx.ModelProto`. Leave: a Graph with one model, operators in
their newest form; or an InvalidModel that says in one line what is wrong with the file.
The file is read and never written; external data must lie in the model's own folder.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from whitebox.errors import InvalidModel
from whitebox.ir.graph import Graph, Tensor
from whitebox.ir.onnx_checks import checked_opsets
from whitebox.ir.onnx_import import Importer
from whitebox.ir.onnx_proto import text
from whitebox.ir.onnx_tensors import TensorReader
from whitebox.ir.onnx_wire import Aside, set_aside

__all__ = ["Opened", "dump", "load", "open_model"]

_MESSAGE_LENGTH = 600


@dataclass(frozen=True)
class Opened:
    """A model file that has been read, its initializers too, but not made a graph yet.

    `outline` identifies all of the file but the initializers' data and what it says about itself;
    None where that cannot be told apart.
    """

    label: str
    proto: onnx.ModelProto
    opsets: Mapping[str, int]
    reader: TensorReader
    initializers: Sequence[Tensor]
    identity: Callable[[], str]
    metadata: dict[str, str]
    outline: str | None

    def graph(self, name: str, initializers: Sequence[Tensor] | None = None) -> Graph:
        """The graph, under this name, with other tensors as initializers if any are given.

        Raises InvalidModel or UnsupportedOperator.
        """
        tensors = self.initializers if initializers is None else initializers
        with _in_words(self.label):
            functions = {(f.domain, f.name, f.overload): f for f in self.proto.functions}
            importer = Importer(functions, self.reader, self.identity)
            graph = importer.graph(name, self.proto.graph, self.opsets, tensors)
        return Graph([replace(graph.model, metadata=self.metadata)], graph.names)


def load(source: str | Path | bytes | onnx.ModelProto, name: str | None = None) -> Graph:
    """Read a model. Its name is that of the file, unless given.

    Raises InvalidModel (UnsupportedOperator for an operator that ONNX does not define).
    """
    path = Path(source) if isinstance(source, (str, Path)) else None
    return open_model(source).graph(name or default_name(path))


def open_model(source: str | Path | bytes | onnx.ModelProto) -> Opened:
    """Read a model file as far as its initializers. Raises InvalidModel."""
    path = Path(source) if isinstance(source, (str, Path)) else None
    label = path.name if path is not None else "the model"
    with _in_words(label):
        data = _read(Path(source)) if isinstance(source, (str, Path)) else source
        aside = Aside()
        proto = _parsed(data, aside) if isinstance(data, bytes) else data
        if not proto.HasField("graph") or not proto.ir_version:
            raise InvalidModel("is no ONNX model: it holds no graph; export or download it again")
        opsets = checked_opsets(proto)
        reader = TensorReader(path.parent if path is not None else None, aside)
        tensors = reader.tensors(proto.graph.initializer)
        metadata = _metadata(proto, opsets)
        outline = _outline(proto, aside) if isinstance(data, bytes) else None
        identity = cache(lambda: _identity(data))
        return Opened(label, proto, opsets, reader, tensors, identity, metadata, outline)


@contextmanager
def _in_words(label: str) -> Iterator[None]:
    """Errors in one line that names the file."""
    try:
        yield
    except InvalidModel as error:
        raise type(error)(_one_line(f"{label}: {error}")) from error


# Where the data of an initializer may be.
_DATA = "raw_data float_data double_data int32_data int64_data uint64_data string_data".split()
_ABOUT = "doc_string domain metadata_props model_version producer_name producer_version".split()


def _outline(proto: onnx.ModelProto, aside: Aside) -> str | None:
    """The digest of the rest of a model whose initializers have been read: they lose their data."""
    for initializer in proto.graph.initializer:
        for data in _DATA:
            initializer.ClearField(data)
    for about in _ABOUT:
        proto.ClearField(about)
    # Converters number graphs, or draw their names.
    proto.graph.ClearField("name")
    proto.graph.ClearField("doc_string")
    rest = proto.SerializeToString(deterministic=True)
    # Data that was set aside elsewhere is not in it.
    return None if aside.secret in rest else hashlib.sha256(rest).hexdigest()


def default_name(path: Path | None) -> str:
    """A model name made from a file name."""
    stem = path.stem if path is not None else "model"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.") or "model"


def _parsed(data: bytes, aside: Aside) -> onnx.ModelProto:
    if not data:
        raise InvalidModel("the file is empty; export or download it again")
    try:
        return onnx.ModelProto.FromString(set_aside(data, aside))
    except DecodeError as error:
        raise InvalidModel(
            "is no ONNX model, or is damaged or cut short; export or download it again"
        ) from error


def _identity(data: bytes | onnx.ModelProto) -> str:
    raw = data if isinstance(data, bytes) else data.SerializeToString(deterministic=True)
    return hashlib.sha256(raw).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidModel(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise InvalidModel(f"cannot read {path}: {error.strerror}; check the path") from error


def _one_line(message: str) -> str:
    """A message fit for a terminal, whatever names the file puts into it."""
    printable = "".join(char if char.isprintable() else " " for char in message)
    return textwrap.shorten(printable, _MESSAGE_LENGTH, placeholder=" …")


def _metadata(proto: onnx.ModelProto, opsets: Mapping[str, int]) -> dict[str, str]:
    """What the file says about itself."""
    about = {text(entry.key): text(entry.value) for entry in proto.metadata_props}
    about["producer"] = f"{text(proto.producer_name)} {text(proto.producer_version)}".strip()
    about["opset"] = ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in sorted(opsets.items()))
    about["doc"] = text(proto.doc_string or proto.graph.doc_string)
    return {key: value for key, value in about.items() if value}


def dump(graph: Graph) -> onnx.ModelProto:
    """The only model of `graph` as an ONNX model in standard operators, for other tools."""
    # Imported here: only `whitebox opt` writes models, and graphsurgeon is slow to import.
    from whitebox.ir.onnx_export import dump

    return dump(graph)
