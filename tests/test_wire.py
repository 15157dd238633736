"""The wire form of requests and responses: round trips of every datatype, and hostile bytes."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from whitebox.errors import InvalidInput, RequestTooLarge
from whitebox.ir.types import numpy_dtype
from whitebox.server import compression, wire
from whitebox.server.tensors import DTYPES, to_bytes

NUMERIC = [datatype for datatype in DTYPES if datatype != "BYTES"]


def encode_request(
    tensors: dict[str, tuple[str, np.ndarray]], *, binary: bool, **fields: Any
) -> tuple[bytes, int | None]:
    """A request as a client would write it, independent of the decoder under test."""
    inputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, (datatype, array) in tensors.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            blobs.append(bytes(to_bytes(array)))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            wide = array.astype(np.float64) if array.dtype.kind in "fV" else array
            entry["data"] = wide.reshape(-1).tolist()
        inputs.append(entry)
    header = json.dumps({"inputs": inputs, **fields}).encode()
    return header + b"".join(blobs), len(header) if binary else None


def decode_response(body: bytes, header_length: int | None) -> dict[str, np.ndarray]:
    """The outputs of a response, read as tritonclient reads them."""
    header = json.loads(body if header_length is None else body[:header_length])
    offset = header_length or 0
    arrays = {}
    for output in header["outputs"]:
        dtype = numpy_dtype(DTYPES[output["datatype"]])
        if "data" in output:
            flat = np.array(output["data"], dtype=dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            raw = body[offset : offset + size]
            offset += size
            if output["datatype"] == "BYTES":
                flat = np.array(split_strings(raw), dtype=object)
            else:
                flat = np.frombuffer(raw, dtype)
        arrays[output["name"]] = flat.reshape(output["shape"])
    return arrays


def split_strings(raw: bytes) -> list[str]:
    texts = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return texts


def same(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return left.tolist() == right.tolist()
    nan = left.dtype.kind in "fV"
    wide = (np.float64 if nan else left.dtype,)
    return bool(np.array_equal(left.astype(*wide), right.astype(*wide), equal_nan=nan))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """Any datatype, any shape (also of no elements and of no dimensions), any values."""
    datatype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    dtype = numpy_dtype(DTYPES[datatype])
    if datatype == "BYTES":
        texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        return datatype, draw(hnp.arrays(object, shape, elements=texts))
    if datatype == "BF16":
        return datatype, draw(hnp.arrays(np.float32, shape)).astype(ml_dtypes.bfloat16)
    return datatype, draw(hnp.arrays(dtype, shape))


@settings(max_examples=300, deadline=None)
@given(tensor=tensors(), binary=st.booleans())
def test_every_datatype_comes_through_both_ways(
    tensor: tuple[str, np.ndarray], binary: bool
) -> None:
    request = wire.decode_request(*encode_request({"x": tensor}, binary=binary))
    assert same(request.inputs["x"], tensor[1])
    for output_binary in (False, True):
        asked = wire.InferRequest(inputs={}, outputs=(), binary=output_binary, id="", parameters={})
        answer = decode_response(*wire.encode_response(asked, "m", 1, {"x": tensor[1]}))
        assert same(answer["x"], tensor[1])


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200), header_length=st.none() | st.integers(-5, 250))
def test_random_bytes_are_refused_and_nothing_else(body: bytes, header_length: int | None) -> None:
    with pytest.raises(InvalidInput):
        wire.decode_request(body, header_length)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(
    field=st.sampled_from(["name", "shape", "datatype", "data", "parameters"]),
    top=st.sampled_from(["", "inputs", "outputs", "parameters", "id"]),
    value=_JSON,
    binary=st.booleans(),
)
def test_any_json_in_any_place_is_taken_or_refused(
    field: str, top: str, value: object, binary: bool
) -> None:
    tensor = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2], field: value}
    body = json.dumps({"inputs": [tensor], **({top: value} if top else {})}).encode()
    try:
        wire.decode_request(body, len(body) if binary else None)
    except InvalidInput as error:
        assert "\n" not in str(error)


def test_mixed_inputs_and_outputs() -> None:
    header = json.dumps(
        {
            "id": "7",
            "inputs": [
                {
                    "name": "a",
                    "shape": [2],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 8},
                },
                {"name": "b", "shape": [1], "datatype": "INT64", "data": [5]},
                {
                    "name": "c",
                    "shape": [3],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": 3},
                },
            ],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "c"}, {"name": "a", "parameters": {"binary_data": False}}],
        }
    ).encode()
    body = header + np.float32([1, 2]).tobytes() + b"\1\2\3"
    request = wire.decode_request(body, len(header))
    assert {name: array.tolist() for name, array in request.inputs.items()} == {
        "a": [1.0, 2.0],
        "b": [5],
        "c": [1, 2, 3],
    }
    answer, length = wire.encode_response(request, "m", 3, request.inputs)
    assert length is not None
    envelope = json.loads(answer[:length])
    assert (envelope["id"], envelope["model_name"], envelope["model_version"]) == ("7", "m", "3")
    assert [output["name"] for output in envelope["outputs"]] == ["c", "a"]
    assert envelope["outputs"][1]["data"] == [1.0, 2.0]
    assert answer[length:] == b"\1\2\3"


def test_binary_data_is_not_copied() -> None:
    array = np.arange(1000, dtype=np.float32)
    body, length = encode_request({"x": ("FP32", array)}, binary=True)
    decoded = wire.decode_request(body, length).inputs["x"]
    assert np.shares_memory(decoded, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("order", ["C", "F"])
def test_results_of_any_layout_are_sent_in_row_major_order(order: Any) -> None:
    array = np.array(np.arange(24).reshape(2, 3, 4), dtype=">i4", order=order)
    asked = wire.InferRequest(inputs={}, outputs=(), binary=True, id="", parameters={})
    answer = decode_response(*wire.encode_response(asked, "m", 1, {"x": array[:, ::-1]}))
    assert answer["x"].tolist() == array[:, ::-1].tolist()


def test_data_may_be_nested_as_the_shape_is() -> None:
    nested = [[[1, 2], [3, 4], [5, 6]]]
    request = _request(shape=[1, 3, 2], datatype="FP16", data=nested)
    assert request.inputs["x"].tolist() == nested
    assert _request(shape=[2, 0], data=[[], []]).inputs["x"].shape == (2, 0)
    assert _request(shape=[], data=[4]).inputs["x"].shape == ()


def test_absent_optional_fields_may_be_null() -> None:
    request = _decode(id=None, outputs=None, parameters=None)
    assert (request.id, request.outputs, request.parameters) == ("", (), {})


def test_non_finite_numbers_are_bare_words_both_ways() -> None:
    request = _request(datatype="FP32", shape=[3], data=[float("nan"), float("inf"), -float("inf")])
    assert str(request.inputs["x"].tolist()) == "[nan, inf, -inf]"
    body, _ = wire.encode_response(request, "m", 1, request.inputs)
    assert b'"data":[NaN, Infinity, -Infinity]' in body


def test_odd_booleans_become_true() -> None:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [3],
                    "datatype": "BOOL",
                    "parameters": {"binary_data_size": 3},
                }
            ]
        }
    ).encode()
    array = wire.decode_request(header + b"\0\2\xff", len(header)).inputs["x"]
    assert array.view(np.uint8).tolist() == [0, 1, 1]


def _decode(**fields: Any) -> wire.InferRequest:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}], **fields}
    return wire.decode_request(json.dumps(body).encode())


def _request(**tensor: Any) -> wire.InferRequest:
    return _decode(inputs=[{"name": "x", "shape": [1], "datatype": "INT32", **tensor}])


HOSTILE_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "negative dimension": ({"shape": [-1], "data": [1]}, "dimension 0"),
    "huge dimension": ({"shape": [2**62, 2**62], "data": [1]}, "too large to exist"),
    "huge dimension and a zero": ({"shape": [0, 2**62, 2**62], "data": []}, "too large to exist"),
    "dimension of 1000 digits": ({"shape": [10**1000], "data": [1]}, "not right|too large"),
    "product that wraps to the count": ({"shape": [2**32, 2**32], "data": []}, "too large"),
    "too few elements": ({"shape": [2, 2], "data": [1, 2, 3]}, r"3 elements.*\[2,2\] holds 4"),
    "too many elements": ({"shape": [2], "data": [1, 2, 3]}, "3 elements"),
    "ragged": ({"shape": [2, 2], "data": [[1, 2], [3]]}, "nested"),
    "nested otherwise": ({"shape": [4], "data": [[1, 2], [3, 4]]}, "nested"),
    "nested too deep": ({"shape": [2], "data": [[1], [2]]}, "nested"),
    "nested scalar": ({"shape": [], "data": [[1]]}, "nested"),
    "half nested": ({"shape": [2], "data": [1, [2]]}, "element 1 of data is an array"),
    "no array": ({"data": 5}, "data is a whole number"),
    "no data": ({}, "has no data"),
    "null data": ({"data": None}, "data is null"),
    "unknown datatype": ({"datatype": "FP8", "data": [1]}, "no datatype 'FP8'"),
    "datatype in lower case": ({"datatype": "fp32", "data": [1]}, "send one of BOOL"),
    "string for a number": ({"data": ["1"]}, "element 0 of data is a string"),
    "boolean for a number": ({"data": [True]}, "a boolean.*INT32 takes whole numbers"),
    "fraction for an integer": ({"data": [1.5]}, "a fractional number"),
    "number for a boolean": ({"datatype": "BOOL", "data": [1]}, "BOOL takes true or false"),
    "number for a string": ({"datatype": "BYTES", "data": [1]}, "BYTES takes strings"),
    "null element": ({"datatype": "FP32", "data": [None]}, "element 0 of data is null"),
    "integer too large": ({"data": [2**31]}, "2147483648 does not fit INT32"),
    "negative unsigned": ({"datatype": "UINT64", "data": [-1]}, "-1 does not fit UINT64"),
    "integer beyond 64 bits": ({"datatype": "INT64", "data": [2**64]}, "does not fit INT64"),
    "float too large": ({"datatype": "FP16", "data": [1e6]}, "does not fit FP16"),
    "float of 400 digits": ({"datatype": "FP64", "data": [10**400]}, "not right|does not fit"),
    "NaN for an integer": ({"data": [float("nan")]}, "a fractional number"),
    "rank of 100": ({"shape": [1] * 100, "data": [1]}, "100 dimensions"),
    "shape of fractions": ({"shape": [1.5], "data": [1]}, "not right"),
    "shape of booleans": ({"shape": [True], "data": [1]}, "not right"),
    "shape of strings": ({"shape": ["1"], "data": [1]}, "not right"),
    "numeric name": ({"name": 3, "data": [1]}, "not right"),
    "list of parameters": ({"parameters": [], "data": [1]}, "not right"),
    "shared memory": ({"parameters": {"shared_memory_region": "r"}}, "shared memory"),
    "binary size without its header": (
        {"parameters": {"binary_data_size": 4}},
        "Inference-Header-Content-Length",
    ),
    "binary size that is no size": (
        {"parameters": {"binary_data_size": -4}},
        "binary_data_size is not a length",
    ),
    "both kinds of data": (
        {"parameters": {"binary_data_size": 4}, "data": [1]},
        "both data and binary_data_size",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_TENSORS)
def test_a_wrong_tensor_is_refused_by_name(case: str) -> None:
    tensor, expected = HOSTILE_TENSORS[case]
    with pytest.raises(InvalidInput, match=expected) as caught:
        _request(**tensor)
    if "not right" not in str(caught.value):
        assert "input 'x'" in str(caught.value)


HOSTILE_BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "not JSON": (b"{inputs}", "malformed"),
    "cut off": (b'{"inputs": [{"name"', "not right"),
    "trailing text": (b'{"inputs": []} x', "trailing"),
    "an array": (b"[]", "Expected `object`"),
    "no inputs": (b"{}", "`inputs`"),
    "inputs is an object": (b'{"inputs": {}}', "Expected `array`"),
    "an input is a number": (b'{"inputs": [3]}', "Expected `object`"),
    "no name": (b'{"inputs": [{"shape": [1], "datatype": "FP32"}]}', "`name`"),
    "not UTF-8": (b'{"inputs": [], "id": "\xff"}', "UTF-8"),
    "deep nesting": (b'{"inputs": [], "parameters": {"a": ' + b"[" * 100_000, "nested too deeply"),
    "deep nesting and NaN": (b'{"id": "NaN", "parameters": ' + b"[" * 100_000, "nested too deeply"),
    "lone surrogate and NaN": (b'{"id": "\\ud800", "inputs": [NaN]}', "UTF-8"),
    "number of 5000 digits": (b'{"inputs": [], "id": ' + b"9" * 5000 + b"}", "not right"),
    "the same and NaN": (b'{"inputs": [NaN], "id": ' + b"9" * 5000 + b"}", "not right"),
    "numeric id": (b'{"inputs": [], "id": 3}', "Expected `str"),
    "flag that is no flag": (
        b'{"inputs": [], "parameters": {"binary_data_output": 1}}',
        "send true or false",
    ),
    "output twice": (b'{"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}', "twice"),
    "classification": (
        b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}',
        "classification",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_BODIES)
def test_a_wrong_body_is_refused(case: str) -> None:
    body, expected = HOSTILE_BODIES[case]
    with pytest.raises(InvalidInput, match=expected):
        wire.decode_request(body)


def test_an_input_that_comes_twice_is_refused() -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}
    with pytest.raises(InvalidInput, match="'x' is there twice"):
        _decode(inputs=[tensor, tensor])


def test_an_error_repeats_little_of_a_long_name() -> None:
    with pytest.raises(InvalidInput) as caught:
        _request(name="n" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("length", [0, -1, 10**9])
def test_a_header_length_outside_the_body_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        wire.decode_request(b'{"inputs": []}', length)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "+3", " 3", "9" * 30, "٣"])
def test_a_header_length_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        wire.parse_header_length(text)
    assert wire.parse_header_length(None) is None


def _binary(datatype: str, shape: list[int], raw: bytes, size: int | None = None) -> None:
    tensor = {
        "name": "x",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw) if size is None else size},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    wire.decode_request(header + raw, len(header))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "size", "expected"),
    [
        ("FP32", [2], b"1234", None, "takes 8 bytes, binary_data_size is 4"),
        ("FP32", [1], b"1234", 3, "takes 4 bytes, binary_data_size is 3"),
        ("FP32", [1], b"1234", 400, "only 4 bytes of the body are left"),
        ("FP32", [0], b"1234", 0, "4 bytes more"),
        ("FP32", [2**62], b"", None, "too large to exist"),
        ("FP32", [2**40], b"", None, "takes 4398046511104 bytes"),
        ("BYTES", [1], b"\1\0\0", None, "element 0 .* runs past its end"),
        ("BYTES", [1], b"\xff\xff\xff\xffab", None, "element 0 .* runs past its end"),
        ("BYTES", [2], b"\1\0\0\0a", None, "has 1 elements"),
        ("BYTES", [1], b"\1\0\0\0a" * 9, None, "more than 1"),
        ("BYTES", [0], b"\1\0\0\0a", None, "more than 0"),
        ("BYTES", [1], b"\2\0\0\0\xff\xfe", None, "not UTF-8"),
    ],
)
def test_wrong_binary_data_is_refused(
    datatype: str, shape: list[int], raw: bytes, size: int | None, expected: str
) -> None:
    with pytest.raises(InvalidInput, match=expected):
        _binary(datatype, shape, raw, size)


@pytest.mark.parametrize(
    ("value", "binary", "expected"),
    [
        ([np.zeros(2)], False, "not a tensor"),
        (np.zeros(2, np.complex64), True, "complex64"),
        (np.zeros(2, ml_dtypes.float8_e5m2), True, "float8_e5m2"),
        (np.array([b"\xff"], dtype=object), False, "binary_data"),
    ],
)
def test_a_result_that_the_protocol_cannot_carry_is_named(
    value: Any, binary: bool, expected: str
) -> None:
    asked = wire.InferRequest(inputs={}, outputs=(), binary=binary, id="", parameters={})
    with pytest.raises(InvalidInput, match=f"'y'.*{expected}"):
        wire.encode_response(asked, "m", 1, {"y": value})


@pytest.mark.parametrize("coding", ["gzip", "deflate", " GZIP", "x-gzip", "identity", ""])
def test_bodies_are_decompressed(coding: str) -> None:
    plain = b"body" * 100
    encode = {"gzip": gzip.compress, "deflate": zlib.compress}
    name = coding.strip().lower().removeprefix("x-")
    sent = encode.get(name, bytes)(plain)
    assert compression.decompress(sent, coding, len(plain)) == plain


def test_bare_deflate_is_taken() -> None:
    stream = zlib.compressobj(wbits=-15)
    assert compression.decompress(stream.compress(b"x" * 50) + stream.flush(), "deflate", 50)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_grows_over_the_limit_is_refused(coding: str) -> None:
    bomb = compression.compress(bytes(2_000_000), coding)
    assert len(bomb) < 10_000
    with pytest.raises(RequestTooLarge, match="limit of 1999999 bytes"):
        compression.decompress(bomb, coding, 1_999_999)
    assert len(compression.decompress(bomb, coding, 2_000_000)) == 2_000_000


@pytest.mark.parametrize(
    ("body", "coding", "expected"),
    [
        (b"plain", "gzip", "not gzip data"),
        (b"plain", "deflate", "deflate data"),
        (gzip.compress(b"x")[:-3], "gzip", "stops before"),
        (gzip.compress(b"x") * 2, "gzip", "goes on after"),
        (b"", "gzip", "stops before"),
        (b"x", "br", "'br' is not offered"),
        (b"x", "gzip, deflate", "is not offered"),
    ],
)
def test_wrong_compressed_bodies_are_refused(body: bytes, coding: str, expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected):
        compression.decompress(body, coding, 1000)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.2, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("*", "gzip"),
        ("br, *;q=0", None),
        ("gzip;q=x", None),
        ("identity", None),
    ],
)
def test_the_answers_coding_is_one_the_client_takes(accept: str, expected: str | None) -> None:
    assert compression.choose_coding(accept) == expected


def test_only_what_shrinks_is_worth_compressing() -> None:
    noise = np.random.default_rng(0).standard_normal(4096, np.float32).tobytes()
    assert not compression.is_worth(noise)
    assert not compression.is_worth(b"x" * 100)
    assert compression.is_worth(b"[0.1,0.2,0.3]" * 1000)
