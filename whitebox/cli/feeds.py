"""Inputs and outputs of a model as files.

What enters: an .npz, .npy or .json file and the model's input specs. What leaves: arrays by input
name, as the file has them; the runtime checks them against the signature. No pickles are read.

JSON is either `{"x": [[1, 2]]}` or the body of an Open Inference Protocol request.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox.cli.files import write_whole
from whitebox.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np

    from whitebox.registry.records import TensorSpec


def read_feeds(file: Path, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises InvalidInput naming the file."""
    try:
        if file.suffix in (".npz", ".npy"):
            return _read_numpy(file, specs)
        return _read_json(file, specs)
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror or error}") from error


def write_outputs(file: Path, outputs: Mapping[str, np.ndarray]) -> None:
    """Write outputs as .npz, or as JSON for any other ending. The file is whole or absent."""
    is_numpy = file.suffix == ".npz"
    write_whole(file, _npz(outputs) if is_numpy else f"{to_json(outputs)}\n".encode())


def to_json(outputs: Mapping[str, np.ndarray]) -> str:
    """Outputs as `{"y": [[1, 2]]}`."""
    return json.dumps({name: _plain(array).tolist() for name, array in outputs.items()})


def _read_numpy(file: Path, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    import numpy as np

    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {_only_name(file, specs): loaded}
        with loaded:
            return dict(loaded)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InvalidInput(f"{file} is not a readable numpy file: {error}") from error


def _read_json(file: Path, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f'{file} must hold an object such as {{"{specs[0].name}": [...]}}')
    by_name = {spec.name: spec for spec in specs}
    if isinstance(content.get("inputs"), list) and "inputs" not in by_name:
        return dict(_protocol_input(file, each, by_name) for each in content["inputs"])
    return {name: _array(name, value, by_name.get(name)) for name, value in content.items()}


def _protocol_input(
    file: Path, given: Any, by_name: Mapping[str, TensorSpec]
) -> tuple[str, np.ndarray]:
    if not isinstance(given, dict) or not {"name", "shape", "data"} <= given.keys():
        raise InvalidInput(f"{file}: each of 'inputs' needs 'name', 'shape' and 'data'")
    name = str(given["name"])
    array = _array(name, given["data"], by_name.get(name))
    shape = given["shape"]
    is_shape = isinstance(shape, list) and all(type(dim) is int and dim >= 0 for dim in shape)
    if not is_shape or math.prod(shape) != array.size:
        raise InvalidInput(f"input '{name}': {array.size} values do not fill the shape {shape}")
    return name, array.reshape(shape)


def _array(name: str, value: Any, spec: TensorSpec | None) -> np.ndarray:
    """A nested list in the dtype that the model takes. Never loses digits silently."""
    import numpy as np

    from whitebox.ir.types import TensorType, numpy_dtype

    try:
        array = np.asarray(value)
        if spec is None or not isinstance(spec.type, TensorType):
            return array
        wanted = numpy_dtype(spec.type.dtype)
        if array.dtype.kind == "f" and wanted.kind in "iub" and array.size:
            raise InvalidInput(f"input '{name}' takes {spec.type.dtype}, not fractions")
        if spec.type.dtype == "string" and array.dtype.kind != "U" and array.size:
            raise InvalidInput(f"input '{name}' takes strings")
        return np.asarray(value, dtype=wanted)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"input '{name}' is not a tensor: {error}") from error


def _only_name(file: Path, specs: Sequence[TensorSpec]) -> str:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidInput(f"{file} holds one array; the model takes {names}: use an .npz file")
    return specs[0].name


def _npz(outputs: Mapping[str, np.ndarray]) -> bytes:
    import numpy as np

    plain: dict[str, Any] = {name: _plain(array) for name, array in outputs.items()}
    stream = io.BytesIO()
    np.savez(stream, **plain)
    return stream.getvalue()


def _plain(array: np.ndarray) -> np.ndarray:
    """An array whose dtype every reader knows: bfloat16 and smaller floats as float32."""
    import numpy as np

    if array.dtype == object:
        return array.astype(np.str_)
    # ml_dtypes registers its types with kind "V" (or "f" for bfloat16 in newer releases).
    if array.dtype.isbuiltin == 1:
        return array
    is_whole = "int" in array.dtype.name
    return array.astype(np.int8 if is_whole else np.float32)
