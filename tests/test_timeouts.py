"""Timeouts, priorities, clients that go away, reservations: through the runtime and over REST."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx.parser
import pytest

from tests.test_server import call, running_server
from whitebox.errors import InvalidInput, ModelNotFound, Overloaded
from whitebox.runtime.runtime import Runtime

http_client = pytest.importorskip("tritonclient.http")

# Some hundredths of a second, whatever the machine can do.
SLOW = """
<ir_version: 10, opset_import: ["" : 21]>
slow (float[1, 4] x) => (float[1, 4] y) <int64 trips = {1000}, bool go = {1}> {
  y = Loop(trips, go, x) <body = turn (int64 i, bool before, float[1, 4] v)
    => (bool after, float[1, 4] w) { after = Identity(before) w = Neg(v) }>
}
"""
X = np.ones((1, 4), np.float32)
FEEDS = {"x": X}
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}]}
INFER = "/v2/models/slow/infer"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("home")) as runtime:
        runtime.register(onnx.parser.parse_model(SLOW), "slow")
        for _ in range(4):
            runtime.submit("slow", FEEDS).result(60)
        yield runtime


@pytest.fixture
def port(runtime: Runtime) -> Iterator[int]:
    with running_server(runtime) as port:
        yield port


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_timeout_that_cannot_be_kept_is_refused(runtime: Runtime) -> None:
    with pytest.raises(Overloaded, match=r"takes about .* allow it more"):
        runtime.submit("slow", FEEDS, timeout=1e-6)
    with pytest.raises(InvalidInput, match="leaves no time"):
        runtime.submit("slow", FEEDS, timeout=0)
    reply = runtime.submit("slow", FEEDS, timeout=60, priority=1)
    np.testing.assert_array_equal(reply.result(60)["y"], X)


def test_to_cancel_withdraws_a_request(runtime: Runtime) -> None:
    lane = runtime.engine.enter()
    replies = [runtime.submit("slow", FEEDS) for _ in range(3)]
    assert replies[1].cancel() and runtime.engine.queued == 2
    runtime.engine.leave(lane)
    np.testing.assert_array_equal(replies[2].result(60)["y"], X)
    assert not replies[2].cancel() and replies[1].cancelled()


def test_a_share_is_reserved(runtime: Runtime) -> None:
    runtime.reserve("slow", 0.5)
    with pytest.raises(InvalidInput, match=r"1\.5 of the machine cannot be reserved for slow"):
        runtime.reserve("slow", 1.5)
    with pytest.raises(ModelNotFound):
        runtime.reserve("fast", 0.1)
    runtime.reserve("slow", 0)


def test_tritons_timeout_and_priority_are_understood(port: int) -> None:
    with http_client.InferenceServerClient(f"127.0.0.1:{port}") as client:
        tensor = http_client.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(X)
        answer = client.infer("slow", [tensor], timeout=60_000_000, priority=1)
        np.testing.assert_array_equal(answer.as_numpy("y"), X)
        with pytest.raises(Exception, match="takes about"):
            client.infer("slow", [tensor], timeout=1)


@pytest.mark.parametrize(
    "parameters", [{"timeout": -1}, {"timeout": "soon"}, {"timeout": 1.5}, {"priority": True}]
)
def test_wrong_parameters_are_400(port: int, parameters: dict[str, object]) -> None:
    status, _, body = call(port, "POST", INFER, {**BODY, "parameters": parameters})
    assert status == 400
    assert re.search("(timeout|priority) is .* send a whole number", json.loads(body)["error"])


def test_a_refusal_says_when_to_retry(runtime: Runtime, port: int) -> None:
    status, headers, body = call(port, "POST", INFER, {**BODY, "parameters": {"timeout": 1}})
    assert status == 503 and headers["Retry-After"] is None
    # Now the machine is taken for longer than the next can wait.
    runtime.register(onnx.parser.parse_model(SLOW.replace("1000", "40000")), "slower")
    runtime.submit("slower", FEEDS).result(60)
    running = runtime.submit("slower", FEEDS)
    status, headers, body = call(port, "POST", INFER, {**BODY, "parameters": {"timeout": 500_000}})
    error = json.loads(body)["error"]
    assert status == 503
    retry = re.search(r"after its timeout of 500 ms.* retry in ([\d.]+) s", error)
    assert retry is not None, error
    assert int(headers["Retry-After"]) >= float(retry[1]) > 0
    np.testing.assert_array_equal(running.result(60)["y"], X)


def test_a_client_that_goes_away_takes_its_request_along(runtime: Runtime, port: int) -> None:
    lane = runtime.engine.enter()
    body = json.dumps(BODY).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: runtime.engine.queued == 1)
    wait_until(lambda: runtime.engine.queued == 0)
    runtime.engine.leave(lane)
    assert call(port, "POST", INFER, BODY)[0] == 200
    metrics = call(port, "GET", "/metrics")[2].decode()
    assert 'whitebox_request_failures_total{model="slow",status="499"} 1.0' in metrics


def test_a_higher_priority_goes_first(runtime: Runtime, port: int) -> None:
    lane = runtime.engine.enter()
    order: list[int] = []
    lock = threading.Lock()

    def ask(priority: int) -> None:
        request = {**BODY, "parameters": {"priority": priority}}
        assert call(port, "POST", INFER, request)[0] == 200
        with lock:
            order.append(priority)

    with ThreadPoolExecutor(12) as pool:
        for n, priority in enumerate([3] * 4 + [0] * 4 + [1] * 4):
            pool.submit(ask, priority)
            wait_until(lambda waiting=n + 1: runtime.engine.queued == waiting)  # type: ignore[misc]
        runtime.engine.leave(lane)
    assert len(order) == 12
    # (as many run at once as there are cores, and clients hear of it in any order)
    place = {
        priority: sum(i for i, p in enumerate(order) if p == priority) for priority in (1, 0, 3)
    }
    assert place[1] < place[0] < place[3]
