"""Infer requests and responses of the Open Inference Protocol, as bytes.

Enters: the body of a request (JSON, or JSON with binary tensor data after it) or the results to
send. Leaves: an `InferRequest` of numpy arrays, or the body of a response. Pure functions: no
transport, no runtime. Whatever the bytes are, a wrong request raises `InvalidInput`, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from whitebox.errors import InvalidInput
from whitebox.server.tensors import (
    Array,
    from_bytes,
    from_json,
    quote,
    result_datatype,
    to_bytes,
    to_json,
)

_EXAMPLE = '{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}'
_QUICK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output the client named, and whether it wants it as binary data."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request. No `outputs` means all of them; `binary` is for those not named.

    `models` are the names and versions in a request to several models.
    """

    inputs: dict[str, Array]
    outputs: tuple[RequestedOutput, ...]
    binary: bool
    id: str
    parameters: dict[str, Any]
    models: tuple[tuple[str, str | None], ...] = ()


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Model(msgspec.Struct):
    name: str
    version: str | None = None


class _Body(msgspec.Struct):
    inputs: list[_Input]
    models: list[str | _Model] | None = None
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] | None = None


_BODY = msgspec.json.Decoder(_Body)


def parse_header_length(text: str | None) -> int | None:
    """The value of `Inference-Header-Content-Length`; None when the header is absent."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {quote(text)}; send the length of the JSON"
        )
    return int(text)


def decodes_quickly(body: bytes, header_length: int | None) -> bool:
    """Whether `decode_request` takes microseconds, so that an event loop may call it in place."""
    if len(body) <= _QUICK_BYTES:
        return True
    # Numeric binary data is only looked at, whatever its size; strings are taken apart.
    return (
        header_length is not None
        and header_length <= _QUICK_BYTES
        and b'"BYTES"' not in body[:header_length]
    )


def decode_request(body: bytes, header_length: int | None = None) -> InferRequest:
    """The request in `body`, whose first `header_length` bytes are JSON (None: all of it).

    Arrays of binary data are read-only views of `body`, aligned as chance has it.
    """
    if header_length is not None and not 0 < header_length <= len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} "
            "bytes; send the length of the JSON that the body begins with"
        )
    header = body if header_length is None else body[:header_length]
    parsed = _parse(header)
    binary = memoryview(body)[len(header) :]
    parameters = parsed.parameters or {}
    all_binary = _flag(parameters, "binary_data_output", "the request")
    return InferRequest(
        inputs=_decode_inputs(parsed.inputs, binary, header_length is not None),
        outputs=_decode_outputs(parsed.outputs or [], all_binary),
        binary=all_binary,
        id=parsed.id or "",
        parameters=parameters,
        models=tuple(
            (each, None) if isinstance(each, str) else (each.name, each.version)
            for each in parsed.models or ()
        ),
    )


def encode_response(
    request: InferRequest, model: str, version: int, results: Mapping[str, Array]
) -> tuple[bytes, int | None]:
    """The body that answers `request`, and the length of its JSON when binary data follows it.

    Holds the outputs that the request names, in its order, or else all of `results`.
    """
    binary: list[memoryview | bytes] = []
    envelope = _envelope(request, (model, version, results), binary)
    if request.id:
        envelope["id"] = request.id
    return _body(envelope, binary)


def encode_responses(
    request: InferRequest, answers: Sequence[tuple[str, int, Mapping[str, Array]]]
) -> tuple[bytes, int | None]:
    """As `encode_response`, for (model, version, results) of each of several models.

    Binary data comes in the order of the models, and for each in that of its outputs.
    """
    binary: list[memoryview | bytes] = []
    envelope: dict[str, Any] = {"id": request.id} if request.id else {}
    envelope["responses"] = [_envelope(request, answer, binary) for answer in answers]
    return _body(envelope, binary)


def _envelope(
    request: InferRequest,
    answer: tuple[str, int, Mapping[str, Array]],
    binary: list[memoryview | bytes],
) -> dict[str, Any]:
    """What one model answered; its binary data is appended to `binary`."""
    model, version, results = answer
    named = tuple(output for output in request.outputs if output.name in results)
    wanted = named or tuple(RequestedOutput(name, request.binary) for name in results)
    outputs: list[dict[str, Any]] = []
    for output in wanted:
        array = results[output.name]
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": result_datatype(output.name, array),
            "shape": list(array.shape),
        }
        if output.binary:
            binary.append(to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = to_json(output.name, array)
        outputs.append(entry)
    return {"model_name": model, "model_version": str(version), "outputs": outputs}


def _body(envelope: dict[str, Any], binary: list[memoryview | bytes]) -> tuple[bytes, int | None]:
    header = msgspec.json.encode(envelope)
    return (b"".join([header, *binary]), len(header)) if binary else (header, None)


def encodes_quickly(request: InferRequest, results: Mapping[str, Array]) -> bool:
    """Whether `encode_response` takes microseconds, as `decodes_quickly` says of the other way."""
    wanted = {output.name: output.binary for output in request.outputs}
    slow = sum(
        array.nbytes
        for name, array in results.items()
        if array.dtype == object or not wanted.get(name, request.binary)
    )
    return slow <= _QUICK_BYTES


def _parse(header: bytes) -> _Body:
    try:
        return _BODY.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.DecodeError) and (b"NaN" in header or b"Infinity" in header):
            return _parse_non_finite(header)
        raise _malformed(error) from None


def _parse_non_finite(header: bytes) -> _Body:
    """Parse JSON with the bare words NaN and Infinity, which Triton's clients send.

    Python's parser knows them; it is several times slower, and lets lone surrogates through, which
    no UTF-8 answer could repeat.
    """
    try:
        parsed = json.loads(header.decode())
        if b"\\u" in header:
            json.dumps(parsed, ensure_ascii=False).encode()
        return msgspec.convert(parsed, _Body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> InvalidInput:
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(error, UnicodeError):
        reason = "it is not UTF-8"
    else:
        reason = str(error)[:200]
    return InvalidInput(f"the request's JSON is not right: {reason}; send it like {_EXAMPLE}")


def _decode_inputs(inputs: list[_Input], binary: memoryview, framed: bool) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    offset = 0
    for tensor in inputs:
        if tensor.name in arrays:
            raise InvalidInput(f"input {quote(tensor.name)} is there twice; send it once")
        size = _binary_size(tensor, framed)
        if size is None:
            arrays[tensor.name] = from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            continue
        if size > len(binary) - offset:
            raise InvalidInput(
                f"input {quote(tensor.name)}: binary_data_size is {size}, but only "
                f"{len(binary) - offset} bytes of the body are left; send all of the data"
            )
        raw = binary[offset : offset + size]
        arrays[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, raw)
        offset += size
    if offset != len(binary):
        raise InvalidInput(
            f"the body has {len(binary) - offset} bytes more than the inputs' binary_data_size "
            "take; make them agree"
        )
    return arrays


def _binary_size(tensor: _Input, framed: bool) -> int | None:
    """How many bytes of binary data belong to the input; None when its data is in the JSON."""
    parameters = tensor.parameters or {}
    if "shared_memory_region" in parameters:
        raise InvalidInput(
            f"input {quote(tensor.name)}: shared memory is not offered; send the data itself"
        )
    size = parameters.get("binary_data_size")
    if size is None:
        if tensor.data is msgspec.UNSET:
            raise InvalidInput(
                f"input {quote(tensor.name)} has no data; send data, or binary_data_size in its "
                "parameters and the bytes after the JSON"
            )
        return None
    if type(size) is not int or size < 0:
        raise InvalidInput(
            f"input {quote(tensor.name)}: binary_data_size is not a length; send a whole number"
        )
    if tensor.data is not msgspec.UNSET:
        raise InvalidInput(
            f"input {quote(tensor.name)} has both data and binary_data_size; send one of them"
        )
    if not framed:
        raise InvalidInput(
            f"input {quote(tensor.name)} has binary_data_size, but the request has no header "
            "Inference-Header-Content-Length; send the length of the JSON in it"
        )
    return size


def _decode_outputs(outputs: list[_Output], binary: bool) -> tuple[RequestedOutput, ...]:
    requested: dict[str, RequestedOutput] = {}
    for output in outputs:
        parameters = output.parameters or {}
        what = f"output {quote(output.name)}"
        if output.name in requested:
            raise InvalidInput(f"{what} is requested twice; name it once")
        if "shared_memory_region" in parameters or parameters.get("classification"):
            raise InvalidInput(
                f"{what}: shared memory and classification are not offered; ask for the tensor"
            )
        flag = _flag(parameters, "binary_data", what, binary)
        requested[output.name] = RequestedOutput(output.name, flag)
    return tuple(requested.values())


def _flag(parameters: dict[str, Any], key: str, what: str, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise InvalidInput(f"{what}: {key} is {_kind(value)}; send true or false")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
