"""The REST server over a real runtime: real clients, and clients that mean no good."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gzip
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from aiohttp import web
from onnx import TensorProto, helper

from whitebox.errors import Overloaded, WhiteboxError
from whitebox.ir.types import numpy_dtype
from whitebox.runtime.native import llvm_loaded
from whitebox.runtime.runtime import Runtime
from whitebox.server.data_plane import DataPlane
from whitebox.server.metrics import Metrics
from whitebox.server.rest import create_app, create_runner, serve
from whitebox.server.tensors import DTYPES

http_client = pytest.importorskip("tritonclient.http")

MAX_BODY_BYTES = 1_000_000

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def build_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], **weights: Any
) -> onnx.ModelProto:
    """A checked model; inputs and outputs are name → (element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def swap_model(datatype: str) -> onnx.ModelProto:
    """y is x with its two columns swapped: exact in any datatype."""
    kind = (ONNX_TYPES[datatype], ["N", 2])
    node = helper.make_node("Gather", ["x", "order"], ["y"], axis=1)
    return build_model([node], {"x": kind}, {"y": kind}, order=np.int64([1, 0]))


def linear_model(scale: float = 1.0) -> onnx.ModelProto:
    """y = a·W + b and z = -y, over a batch of any size."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) * scale
    nodes = [
        helper.make_node("MatMul", ["a", "W"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    inputs = {"a": (TensorProto.FLOAT, ["N", 4]), "b": (TensorProto.FLOAT, [3])}
    outputs = {"y": (TensorProto.FLOAT, ["N", 3]), "z": (TensorProto.FLOAT, ["N", 3])}
    return build_model(nodes, inputs, outputs, W=weight)


def pieces_model() -> onnx.ModelProto:
    """y is x doubled; the sequence s holds its rows."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("SplitToSequence", ["y"], ["s"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1, 3]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


FEEDS = {"a": np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]), "b": np.float32([0.5, -1, 100])}
EXPECTED = FEEDS["a"] @ np.arange(12, dtype=np.float32).reshape(4, 3) + FEEDS["b"]


def json_request(**changes: Any) -> dict[str, Any]:
    """A right JSON request to `linear`, with some of its fields changed."""
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.tolist()}
        for name, array in FEEDS.items()
    ]
    return {"inputs": inputs, **changes}


def with_input(index: int, **changes: Any) -> dict[str, Any]:
    """A JSON request to `linear` with one field of one input changed."""
    request = json_request()
    request["inputs"][index].update(changes)
    return request


@contextmanager
def running_server(runtime: Runtime) -> Iterator[int]:
    """A server over `runtime` in a thread of its own; gives its port."""
    loop = asyncio.new_event_loop()
    plane = DataPlane(runtime)
    runner = create_runner(create_app(plane, max_body_bytes=MAX_BODY_BYTES))

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    plane.load()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("home")) as runtime:
        shapes = {"a": FEEDS["a"].shape}
        runtime.register(linear_model(), "linear", shapes=shapes)
        runtime.register(linear_model(2.0), "linear", shapes=shapes)
        runtime.register(pieces_model(), "pieces")
        for datatype in DTYPES:
            runtime.register(swap_model(datatype), f"swap-{datatype.lower()}")
        yield runtime


@pytest.fixture(scope="module")
def port(runtime: Runtime) -> Iterator[int]:
    with running_server(runtime) as port:
        yield port


@pytest.fixture
def triton(port: int) -> Iterator[Any]:
    with http_client.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def call(
    port: int,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def infer(port: int, body: bytes | dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
    """A JSON answer of version 1 of `linear`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, answer = call(port, "POST", "/v2/models/linear/versions/1/infer", body, named)
    return status, json.loads(answer)


def assert_serves(port: int) -> None:
    """The server still gives a right answer."""
    status, answer = infer(port, json_request())
    assert status == 200, answer
    np.testing.assert_allclose(answer["outputs"][0]["data"], EXPECTED.reshape(-1), rtol=1e-6)


# What clients see


def test_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("linear")
    assert triton.is_model_ready("linear", "2")
    assert not triton.is_model_ready("linear", "3")
    assert not triton.is_model_ready("absent")
    server = triton.get_server_metadata()
    assert server["name"] == "whitebox"
    assert "binary_tensor_data" in server["extensions"]
    assert triton.get_model_metadata("linear") == {
        "name": "linear",
        "versions": ["1", "2"],
        "platform": "whitebox_onnx",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "b", "datatype": "FP32", "shape": [3]},
        ],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "z", "datatype": "FP32", "shape": [-1, 3]},
        ],
        "parameters": {"precision": "f32"},
    }
    index = triton.get_model_repository_index()
    assert {"name": "linear", "version": "2", "state": "READY", "reason": ""} in index


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_several_models_answer_one_request(port: int, binary: bool) -> None:
    request = json_request()
    request["id"] = "7"
    request["models"] = [{"name": "linear", "version": "1"}, "linear"]
    request["parameters"] = {"binary_data_output": binary}
    status, headers, body = call(port, "POST", "/v2/infer", request)
    assert status == 200, body
    length = headers.get("Inference-Header-Content-Length")
    answer = json.loads(body[: int(length)] if length else body)
    assert answer["id"] == "7"
    assert [each["model_version"] for each in answer["responses"]] == ["1", "2"]
    at = int(length or 0)
    for each in answer["responses"]:
        version = each["model_version"]
        path = f"/v2/models/linear/versions/{version}/infer"
        alone = json.loads(call(port, "POST", path, json_request())[2])
        for output, other in zip(each["outputs"], alone["outputs"], strict=True):
            values = output.get("data")
            if values is None:
                size = output["parameters"]["binary_data_size"]
                values = np.frombuffer(body[at : at + size], np.float32).tolist()
                at += size
            assert values == other["data"]
    assert bool(length) == binary


@pytest.mark.parametrize(
    ("models", "status", "message"),
    [
        (None, 400, "names 0 models"),
        ([], 400, "names 0 models"),
        (["linear"] * 1001, 400, "names 1001 models"),
        ("linear", 400, "models"),
        ([{"version": "1"}], 400, "name"),
        (["linear", "absent"], 404, "absent"),
        ([{"name": "linear", "version": "x"}], 400, "no version"),
        (["linear", "swap-fp32"], 400, "swap-fp32"),
    ],
)
def test_a_bad_request_to_several_models_is_refused(
    port: int, models: Any, status: int, message: str
) -> None:
    request = {**json_request(), "models": models}
    got, _, body = call(port, "POST", "/v2/infer", request)
    assert got == status
    assert message in json.loads(body)["error"]
    assert_serves(port)


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", DTYPES)
def test_tritonclient_gets_every_datatype(triton: Any, datatype: str, binary: bool) -> None:
    if datatype == "BF16" and not binary:
        pytest.skip("tritonclient sends BF16 as binary data only")
    array = sample(datatype)
    tensor = http_client.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    output = http_client.InferRequestedOutput("y", binary_data=binary)
    result = triton.infer(f"swap-{datatype.lower()}", [tensor], outputs=[output], request_id="42")
    answer = result.as_numpy("y")
    if binary and datatype == "BYTES":
        answer = np.array([[text.decode() for text in row] for row in answer], dtype=object)
    assert answer.tolist() == array[:, ::-1].tolist()
    assert result.get_response()["id"] == "42"
    assert result.get_output("y")["datatype"] == datatype


def sample(datatype: str) -> np.ndarray:
    """Five rows of two values, the extreme ones among them."""
    if datatype == "BYTES":
        return np.array([["", "a"], ["ä", "日本"], ["\0", "x" * 300], *[["b", "c"]] * 2], object)
    if datatype == "BOOL":
        return np.array([[True, False]] * 5)
    dtype = numpy_dtype(DTYPES[datatype])
    info: Any = ml_dtypes.finfo(dtype) if dtype.kind in "fV" else np.iinfo(dtype)
    return np.array([[info.min, info.max], *[[1, 2], [3, 4]] * 2], dtype=object).astype(dtype)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_tritonclient_compresses(
    triton: Any, request_coding: str | None, response_coding: str | None, binary: bool
) -> None:
    rows = np.tile(FEEDS["a"], (500, 1))
    tensors = []
    for name, array in {"a": rows, "b": FEEDS["b"]}.items():
        tensors.append(http_client.InferInput(name, list(array.shape), "FP32"))
        tensors[-1].set_data_from_numpy(array, binary_data=binary)
    result = triton.infer(
        "linear",
        tensors,
        model_version="1",
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    np.testing.assert_allclose(result.as_numpy("y"), np.tile(EXPECTED, (500, 1)), rtol=1e-6)
    np.testing.assert_allclose(result.as_numpy("z"), -result.as_numpy("y"))


def test_answers_are_compressed_where_that_gains(port: int) -> None:
    big = json_request()
    big["inputs"][0].update(shape=[400, 4], data=[1.25] * 1600)
    path = "/v2/models/linear/infer"
    _, headers, body = call(port, "POST", path, big, {"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(body))["outputs"][0]["data"]) == 1200
    _, headers, _ = call(port, "POST", path, json_request(), {"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in headers


def test_the_newest_version_answers_unless_another_is_named(port: int) -> None:
    for path, version in (("linear", "2"), ("linear/versions/1", "1"), ("linear/versions/2", "2")):
        status, _, body = call(port, "POST", f"/v2/models/{path}/infer", json_request())
        assert (status, json.loads(body)["model_version"]) == (200, version)


def test_quoted_names_are_unquoted(port: int) -> None:
    assert call(port, "GET", "/v2/models/l%69near/ready")[0] == 200


def test_outputs_come_in_the_order_asked_for(port: int) -> None:
    outputs = [{"name": "z"}, {"name": "y"}]
    status, answer = infer(port, json_request(outputs=outputs))
    assert status == 200
    assert [output["name"] for output in answer["outputs"]] == ["z", "y"]


def test_outputs_that_are_no_tensors_are_left_out(port: int) -> None:
    metadata = json.loads(call(port, "GET", "/v2/models/pieces")[2])
    assert [output["name"] for output in metadata["outputs"]] == ["y"]
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    status, _, body = call(port, "POST", "/v2/models/pieces/infer", {"inputs": [tensor]})
    assert status == 200, body
    assert [output["data"] for output in json.loads(body)["outputs"]] == [[2, 4, 6, 8, 10, 12]]
    asking = {"inputs": [tensor], "outputs": [{"name": "s"}]}
    status, _, body = call(port, "POST", "/v2/models/pieces/infer", asking)
    assert status == 400
    assert "'s' is a seq" in json.loads(body)["error"]


def test_ready_is_said_between_loading_and_draining(runtime: Runtime) -> None:
    plane = DataPlane(runtime)
    with pytest.raises(Overloaded, match="still loading"):
        plane.check_ready()
    plane.load()
    plane.check_ready()
    plane.drain()
    with pytest.raises(Overloaded, match="shutting down"):
        plane.check_ready()


def test_output_parameters_choose_json_or_binary(triton: Any) -> None:
    tensors = []
    for name, array in FEEDS.items():
        tensors.append(http_client.InferInput(name, list(array.shape), "FP32"))
        tensors[-1].set_data_from_numpy(array)
    outputs = [
        http_client.InferRequestedOutput("y", binary_data=False),
        http_client.InferRequestedOutput("z", binary_data=True),
    ]
    result = triton.infer("linear", tensors, outputs=outputs, model_version="1")
    assert "data" in result.get_output("y")
    assert result.get_output("z")["parameters"] == {"binary_data_size": EXPECTED.nbytes}
    np.testing.assert_allclose(result.as_numpy("z"), -EXPECTED, rtol=1e-6)


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_curl_gets_an_answer(port: int, coding: str | None, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps(json_request()).encode()
    encode: dict[str | None, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
    (tmp_path / "body").write_bytes(encode.get(coding, bytes)(body))
    options = ["--data-binary", f"@{tmp_path / 'body'}", "--compressed"]
    if coding is not None:
        options += ["-H", f"Content-Encoding: {coding}"]
    url = f"http://127.0.0.1:{port}/v2/models/linear/versions/1/infer"
    done = subprocess.run(
        ["curl", "-sS", "--fail", *options, url], capture_output=True, check=True, timeout=60
    )
    answer = json.loads(done.stdout)
    assert answer["model_name"] == "linear"
    np.testing.assert_allclose(answer["outputs"][0]["data"], EXPECTED.reshape(-1), rtol=1e-6)


def test_many_clients_at_once_get_their_own_answers(port: int) -> None:
    def ask(number: int) -> None:
        row = [float(number)] * 4
        request = with_input(0, shape=[1, 4], data=row)
        status, answer = infer(port, request)
        expected = np.float32(row) @ np.arange(12, dtype=np.float32).reshape(4, 3) + FEEDS["b"]
        assert status == 200
        np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=1e-6)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(100)))


def test_counts_of_models_that_are_gone_are_dropped() -> None:
    kept = {"kept"}
    metrics = Metrics(dict, kept.__contains__)
    metrics.record("kept", 200, 0.1)
    for number in range(600):
        metrics.record(f"gone-{number}", 500 if number % 2 else 200, 0.1)
    labels = {sample.labels["model"] for m in metrics.requests.collect() for sample in m.samples}
    assert "kept" in labels
    assert len(labels) < 300
    failed = {sample.labels["model"] for m in metrics.failures.collect() for sample in m.samples}
    assert failed < labels


def test_metrics_count_and_name_only_known_models(port: int) -> None:
    assert_serves(port)
    assert call(port, "POST", "/v2/models/made-up/infer", json_request())[0] == 404
    assert infer(port, {})[0] == 400
    status, headers, body = call(port, "GET", "/metrics")
    text = body.decode()
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert 'whitebox_requests_total{model="linear"}' in text
    assert 'whitebox_request_duration_seconds_bucket{le="0.001",model="linear"}' in text
    assert 'whitebox_request_failures_total{model="linear",status="400"}' in text
    assert 'whitebox_request_failures_total{model="",status="404"}' in text
    assert "whitebox_kernels_compiled_total" in text
    assert "made-up" not in text
    if sys.platform == "linux":
        assert f"whitebox_llvm_loaded {float(llvm_loaded())}" in text


# Clients that mean no good


def test_a_wrong_model_is_4xx_json(port: int) -> None:
    for path, expected in {
        "/v2/models/absent/infer": 404,
        "/v2/models/linear/versions/9/infer": 404,
        "/v2/models/linear/versions/one/infer": 400,
        "/v2/models/linear/versions/-1/infer": 400,
        "/v2/models/..%2F..%2Fetc/infer": 404,
        "/v2/models/%2e%2e/infer": 404,
        "/v2/models/a%00b/infer": 404,
        "/v2/models/%ff/infer": 404,
        "/v2/models/%ed%a0%80/infer": 404,
        f"/v2/models/{'n' * 5000}/infer": 404,
    }.items():
        status, _, body = call(port, "POST", path, json_request())
        assert (status, list(json.loads(body))) == (expected, ["error"]), path
    assert_serves(port)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST", "PATCH"])
def test_unknown_routes_and_methods_are_json(port: int, method: str) -> None:
    for path in ("/", "/nothing", "/v2/models", "/v2/models/linear/infer/more", "/v2//infer"):
        status, _, body = call(port, method, path)
        assert status in (404, 405)
        assert path in json.loads(body)["error"]
    if method != "POST":
        status, headers, body = call(port, method, "/v2/models/linear/infer")
        assert (status, headers["Allow"]) == (405, "POST")
        assert "use POST" in json.loads(body)["error"]


HOSTILE: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "malformed JSON": (b"{inputs:", "JSON is not right"),
    "empty body": (b"", "JSON is not right"),
    "no object": (b"[1]", "JSON is not right"),
    "missing input": ({"inputs": [json_request()["inputs"][0]]}, "b"),
    "unknown input": (with_input(1, name="bogus"), "bogus"),
    "unknown output": (json_request(outputs=[{"name": "bogus"}]), "bogus.*it has y, z"),
    "wrong dtype": (with_input(0, datatype="INT32", data=[1] * 8), "a.*(int|f)"),
    "wrong rank": (with_input(0, shape=[8]), "a"),
    "wrong size of a fixed dimension": (with_input(0, shape=[4, 2]), "a"),
    "length and shape disagree": (with_input(0, shape=[9, 4]), r"'a'.*\[9,4\]"),
    "negative dimension": (with_input(0, shape=[-2, -4]), "'a'.*dimension 0"),
    "huge dimension": (with_input(0, shape=[2**62, 4]), "'a'.*too large"),
    "huge dimension with no data": (with_input(0, shape=[2**40, 0], data=[]), "a"),
    "input twice": ({"inputs": [*json_request()["inputs"]] * 2}, "twice"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_wrong_request_is_400_and_says_why(port: int, case: str) -> None:
    body, expected = HOSTILE[case]
    status, _, answer = call(port, "POST", "/v2/models/linear/versions/1/infer", body)
    error = json.loads(answer)["error"]
    assert status == 400
    assert "Traceback" not in error
    assert "\n" not in error
    assert re.search(expected, error), error
    assert_serves(port)


@pytest.mark.parametrize(
    "headers",
    [
        {"Inference_Header_Content_Length": "999999"},
        {"Inference_Header_Content_Length": "-1"},
        {"Inference_Header_Content_Length": "ten"},
        {"Inference_Header_Content_Length": "10"},
        {"Content_Encoding": "gzip"},
        {"Content_Encoding": "br"},
    ],
)
def test_wrong_headers_are_400(port: int, headers: dict[str, str]) -> None:
    status, answer = infer(port, json_request(), **headers)
    assert (status, list(answer)) == (400, ["error"])
    assert_serves(port)


def test_a_body_over_the_limit_is_413(port: int) -> None:
    status, answer = infer(port, b" " * (MAX_BODY_BYTES + 1))
    assert status == 413
    assert str(MAX_BODY_BYTES) in answer["error"]
    bomb = gzip.compress(bytes(50 * MAX_BODY_BYTES))
    assert len(bomb) < MAX_BODY_BYTES
    assert infer(port, bomb, Content_Encoding="gzip")[0] == 413
    assert_serves(port)


def test_a_chunked_body_over_the_limit_is_413(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    chunks = (b" " * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 2))
    connection.request("POST", "/v2/models/linear/infer", chunks, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert_serves(port)


def raw_exchange(port: int, data: bytes) -> bytes:
    """Send bytes, half-close, and read what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


_POST = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        _POST + b"Content-Length: 100\r\n\r\n{}",
        _POST + b"Content-Length: -5\r\n\r\n{}",
        _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_broken_http_breaks_nothing(port: int, data: bytes) -> None:
    answer = raw_exchange(port, data)
    assert not answer.startswith(b"HTTP/1.1 5")
    assert_serves(port)


def test_clients_that_go_away_break_nothing(port: int) -> None:
    body = json.dumps(json_request()).encode()
    head = (
        f"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for cut in (10, len(head), len(head) + len(body) // 2, len(head) + len(body)):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall((head.encode() + body)[:cut])
    assert_serves(port)


# The life of the process

SERVE = """
import sys
from whitebox.runtime.runtime import Runtime
from whitebox.server.rest import serve

with Runtime(sys.argv[1]) as runtime:
    serve(runtime, port=0)
"""


@contextmanager
def serving_process(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`serve` in a process of its own, once it is ready, and its port."""
    command = [sys.executable, "-c", SERVE, str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("whitebox: ready on http://127.0.0.1:"), line
        yield process, int(line.split(":")[3].split()[0])
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def filled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where `linear` is registered, and compiled for the shapes of FEEDS."""
    home = tmp_path_factory.mktemp("filled") / "home"
    with Runtime(home) as runtime:
        runtime.register(linear_model(), "linear", shapes={"a": FEEDS["a"].shape})
    return home


@pytest.fixture
def home(filled_home: Path, tmp_path: Path) -> Path:
    """A copy of the filled home, for one test."""
    return Path(shutil.copytree(filled_home, tmp_path / "home"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_the_answer(home: Path, number: int) -> None:
    with serving_process(home) as (process, port):
        assert_serves(port)
        # A request whose body is not all there yet when the signal comes is in flight.
        body = json.dumps(json_request()).encode()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest("POST", "/v2/models/linear/infer")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:10])
        time.sleep(0.2)
        process.send_signal(number)
        time.sleep(0.2)
        connection.send(body[10:])
        assert connection.getresponse().status == 200
        connection.close()
        assert process.wait(30) == 0


def test_a_restarted_server_compiles_nothing_and_loads_no_llvm(home: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the mapped libraries are read from /proc")
    with serving_process(home) as (_, port):
        assert_serves(port)
        metrics = call(port, "GET", "/metrics")[2].decode()
        assert "whitebox_kernels_compiled_total 0.0" in metrics
        assert "whitebox_llvm_loaded 0.0" in metrics


def test_models_of_other_processes_appear_and_disappear(home: Path) -> None:
    def wait_for(status: int) -> None:
        deadline = time.monotonic() + 20
        while call(port, "GET", "/v2/models/late/ready")[0] != status:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with serving_process(home) as (_, port):
        wait_for(404)
        with Runtime(home) as other:
            other.register(linear_model(3.0), "late", shapes={"a": FEEDS["a"].shape})
            wait_for(200)
            assert call(port, "POST", "/v2/models/late/infer", json_request())[0] == 200
            other.unregister("late")
            wait_for(404)


def test_a_port_in_use_is_one_clear_line(runtime: Runtime) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(WhiteboxError, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            serve(runtime, port=port)


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("no.such.host.invalid", 0, "--host"),
        ("192.0.2.1", 0, "not an address of this machine"),
        ("127.0.0.1", 70000, "70000.*--port"),
    ],
)
def test_an_impossible_address_is_one_clear_line(
    runtime: Runtime, host: str, port: int, expected: str
) -> None:
    with pytest.raises(WhiteboxError, match=expected) as caught:
        serve(runtime, host, port)
    assert "\n" not in str(caught.value)
