"""Tensor data of an ONNX file: inline, or in external files inside the model's own folder.

Enter: TensorProto messages, which may lie about their contents. Leave: read-only arrays without
needless copies (external data is memory-mapped), and hashed Tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import onnx.numpy_helper

from whitebox.errors import InvalidModel
from whitebox.ir.graph import Tensor, content_digest
from whitebox.ir.onnx_proto import dtype_of_number
from whitebox.ir.onnx_wire import Aside
from whitebox.ir.types import TensorType, dtype_name, numpy_dtype

# Below this many bytes, handing a tensor to another thread costs more than hashing it.
_POOLED_BYTES = 1 << 16
_HASH_THREADS = 2

_BITS = {"uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2, "int2": 2}


class TensorReader:
    """Reads the tensors of one model.

    `folder` is where its external data may lie; `aside` holds what was never parsed.
    """

    def __init__(self, folder: Path | None, aside: Aside | None = None) -> None:
        self._folder = folder
        self._aside = aside or Aside()
        self._files: dict[str, np.ndarray] = {}

    def tensors(self, protos: Sequence[onnx.TensorProto]) -> list[Tensor]:
        """The tensors, large ones hashed in parallel (hashing releases the interpreter lock)."""
        arrays = [self.array(proto) for proto in protos]
        large = [array for array in arrays if array.nbytes >= _POOLED_BYTES]
        if len(large) < 2:
            return [Tensor.of(array) for array in arrays]
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            digests = dict(zip(map(id, large), pool.map(content_digest, large), strict=True))
        return [
            _hashed(array, digests[id(array)]) if id(array) in digests else Tensor.of(array)
            for array in arrays
        ]

    def array(self, proto: onnx.TensorProto) -> np.ndarray:
        """The data of a tensor, read-only."""
        dims, label = tuple(proto.dims), proto.name or "(unnamed)"
        try:
            dtype = dtype_of_number(proto.data_type)
        except InvalidModel as error:
            raise InvalidModel(f"tensor {label!r}: {error}") from error
        if any(dim < 0 for dim in dims):
            raise InvalidModel(f"tensor {label!r} has the shape {list(dims)}; correct the model")
        expected = (math.prod(dims) * _bits(dtype) + 7) // 8
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            data = self._external(proto, label, expected)
        elif proto.HasField("raw_data"):
            data = np.frombuffer(self._aside.get(proto.raw_data), np.uint8)
        else:
            return _from_fields(proto, label)
        if dtype == "string" or data.size != expected:
            raise InvalidModel(
                f"tensor {label!r} of {dtype}{list(dims)} needs {expected} bytes and has "
                f"{data.size}; the file is damaged, export or download it again"
            )
        if dtype in _BITS:
            packed = onnx.TensorProto(data_type=proto.data_type, dims=dims, raw_data=data.tobytes())
            return _frozen(onnx.numpy_helper.to_array(packed))
        return data.view(numpy_dtype(dtype)).reshape(dims)

    def _external(self, proto: onnx.TensorProto, label: str, expected: int) -> np.ndarray:
        """The bytes of a tensor kept in another file."""
        about = {entry.key: entry.value for entry in proto.external_data}
        location = about.get("location", "")
        try:
            offset, length = int(about.get("offset", 0)), int(about.get("length", expected))
        except ValueError:
            offset = length = -1
        if offset < 0 or length != expected:
            raise InvalidModel(
                f"external data of tensor {label!r} is said to be {about.get('length')} bytes at "
                f"{about.get('offset', 0)} and must be {expected}; export the model again"
            )
        data = self._file(location, label)
        if offset + length > data.size:
            raise InvalidModel(
                f"external data file {location!r} ends before tensor {label!r} "
                f"({data.size} of {offset + length} bytes); copy the whole file"
            )
        return data[offset : offset + length]

    def _file(self, location: str, label: str) -> np.ndarray:
        if location not in self._files:
            path = self._path(location, label)
            size = path.stat().st_size
            self._files[location] = (
                np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
            )
        return self._files[location]

    def _path(self, location: str, label: str) -> Path:
        """Where external data lies, refused unless it is a file inside the model's folder."""
        if self._folder is None:
            raise InvalidModel(
                f"tensor {label!r} is in the external file {location!r}; give the model by its "
                "path, next to that file"
            )
        relative, folder = PurePosixPath(location), self._folder.resolve()
        outside = InvalidModel(
            f"external data {location!r} of tensor {label!r} points outside the model's folder; "
            "put the file next to the model and export again"
        )
        if not location or "\0" in location or relative.is_absolute() or ".." in relative.parts:
            raise outside
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder):
            raise outside
        if not path.is_file():
            raise InvalidModel(
                f"external data file {location!r} of tensor {label!r} is missing; "
                f"put it into {folder}"
            )
        return path


def _bits(dtype: str) -> int:
    if dtype == "string":
        return 0
    return _BITS.get(dtype) or numpy_dtype(dtype).itemsize * 8


def _from_fields(proto: onnx.TensorProto, label: str) -> np.ndarray:
    """A tensor whose elements are in a typed field."""
    try:
        return _frozen(onnx.numpy_helper.to_array(proto))
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise InvalidModel(
            f"tensor {label!r} does not hold the elements of its shape {list(proto.dims)} "
            f"({error}); the file is damaged, export or download it again"
        ) from error


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array).reshape(array.shape)
    array.flags.writeable = False
    return array


def _hashed(array: np.ndarray, digest: str) -> Tensor:
    return Tensor(TensorType(dtype_name(array.dtype), array.shape), digest, array=array)
