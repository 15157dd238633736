"""Real models through REST: registered while the server runs, asked by tritonclient, and compared
with onnxruntime. The quick ones always; the rest with `-m slow`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whitebox
from benchmarks.agreement import LIMIT, worst_error
from benchmarks.catalogue import MODELS
from benchmarks.models import ModelUnavailable, with_weights
from tests.test_crash import command, free_port, wait_ready
from tests.test_models import ALL

onnxruntime = pytest.importorskip("onnxruntime")
http = pytest.importorskip("tritonclient.http")

WIRE = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """(home, port) of a server that starts with nothing registered."""
    home, port = tmp_path_factory.mktemp("rest") / "home", free_port()
    process = command(home, "serve", "--port", str(port))
    try:
        wait_ready(port, process)
        yield home, port
    finally:
        process.terminate()
        process.wait(30)


def ask(port: int, name: str, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[Any]:
    """The answer of a running server to a binary request."""
    client = http.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=120)
    try:
        inputs = []
        for key, array in feeds.items():
            tensor = http.InferInput(key, list(array.shape), WIRE[array.dtype.name])
            inputs.append(tensor.set_data_from_numpy(array))
        answer = client.infer(name, inputs)
        return [answer.as_numpy(output) for output in outputs]
    finally:
        client.close()


@pytest.mark.parametrize("name", ALL)
def test_agrees_with_onnxruntime_through_rest(server: tuple[Path, int], name: str) -> None:
    home, port = server
    model = MODELS[name]
    feeds = model.feeds(seed=3)
    try:
        with with_weights(model) as file:
            shapes = {key: array.shape for key, array in feeds.items()}
            with whitebox.Runtime(home) as runtime:
                runtime.register(file, name, shapes=shapes)
            peer = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            expected = peer.run(None, feeds)
    except ModelUnavailable as error:
        pytest.skip(str(error))
    outputs = [output.name for output in peer.get_outputs()]
    assert worst_error(ask(port, name, feeds, outputs), expected) < LIMIT
