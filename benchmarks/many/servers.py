"""Servers of many models, asked over HTTP in JSON, as any client of the protocol would.

What enters and leaves is as in `benchmarks.many.engines`. The server is a process of its own, whose
memory counts; its client is this process. Bodies are encoded once: both servers have to share the
cores with the client, and only they are measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.many.engines import Answer
from benchmarks.many.recipes import Feeds
from benchmarks.models import ModelUnavailable, cache_folder

READY_LIMIT_S = 600
MLSERVER = "mlserver==1.7.1"
_DATATYPES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "int8": "INT8", "bool": "BOOL", "object": "BYTES",
}  # fmt: skip
_DTYPES = {datatype: dtype for dtype, datatype in _DATATYPES.items()}


class Server:
    """A server process and a connection to it for each thread that asks."""

    def open(self, files: Mapping[str, Path], home: Path) -> None:
        self._port = _free_ports(1)[0]
        self._process = self._start(files, home)
        self._connections = threading.local()
        self._bodies: dict[int, bytes] = {}
        start = time.perf_counter()
        while not self._ready():
            if time.perf_counter() - start > READY_LIMIT_S or self._process.poll() is not None:
                raise RuntimeError("the server did not become ready")
            time.sleep(0.01)

    def _start(self, files: Mapping[str, Path], home: Path) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def load(self, names: Iterable[str]) -> None:
        """A server loads what it has before it says that it is ready."""

    def ask(self, name: str, feeds: Feeds) -> Answer:
        key = id(feeds)  # the set of requests lives as long as this
        body = self._bodies.get(key)
        if body is None:
            body = self._bodies[key] = _encoded(feeds)
        return _decoded(self._request("POST", f"/v2/models/{name}/infer", body))

    def ask_several(self, names: list[str], feeds: Feeds) -> list[Answer]:
        return [self.ask(name, feeds) for name in names]

    def pids(self) -> list[int]:
        return [self._process.pid]

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = getattr(self._connections, "it", None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.it = connection
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._connections.it = None
            raise
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content[:300]!r}")
        return content

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            self._request("GET", "/v2/health/ready")
            return True
        return False


class WhiteboxServer(Server):
    """`whitebox serve` on a home in which the models are registered."""

    options: tuple[str, ...] = ()

    def _start(self, files: Mapping[str, Path], home: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "whitebox.cli", "serve", *self.options]
        command += ["--port", str(self._port)]
        return subprocess.Popen(
            command, env={**os.environ, "WHITEBOX_HOME": str(home)}, stdout=subprocess.DEVNULL
        )


class BudgetedServer(WhiteboxServer):
    """As `WhiteboxServer`, in a gigabyte of memory."""

    options = ("--memory-budget", "1g")


class MLServer(Server):
    """MLServer with a runtime around onnxruntime, its own being written for other formats."""

    def _start(self, files: Mapping[str, Path], home: Path) -> subprocess.Popen[bytes]:
        folder = home / "mlserver"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("mlserver_onnx.py"), folder)
        grpc, metrics = _free_ports(2)
        # No worker processes: a second copy of the models, and a hop between processes a request.
        _write(
            folder / "settings.json",
            host="127.0.0.1", http_port=self._port, grpc_port=grpc, metrics_port=metrics,
            parallel_workers=0, debug=False,
        )  # fmt: skip
        for name, file in files.items():
            (folder / name).mkdir()
            _write(
                folder / name / "model-settings.json",
                name=name,
                implementation="mlserver_onnx.OnnxModel",
                parameters={"uri": str(file)},
            )
        command = [str(mlserver_environment() / "bin" / "mlserver"), "start", str(folder)]
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def mlserver_environment() -> Path:
    """A virtual environment with MLServer, made when it is first needed.

    Raises ModelUnavailable when it cannot be installed.
    """
    from importlib.metadata import version

    engine = f"onnxruntime=={version('onnxruntime')}"
    kept = cache_folder() / f"{MLSERVER}-{engine}".replace("==", "-")
    kept.mkdir(parents=True, exist_ok=True)
    with (kept.parent / f"{kept.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (kept / "installed").exists():
            _install(kept, engine)
    return kept


def _install(kept: Path, engine: str) -> None:
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(kept)],
        [str(kept / "bin" / "python"), "-m", "pip", "install", "--quiet", MLSERVER, engine],
    ]
    for command in commands:
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode != 0:
            said = (made.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ModelUnavailable(f"{MLSERVER} cannot be installed: {said}")
    (kept / "installed").touch()


def _write(file: Path, **content: Any) -> None:
    file.write_text(json.dumps(content))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _encoded(feeds: Feeds) -> bytes:
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": _DATATYPES[str(array.dtype)],
            "data": array.reshape(-1).tolist(),
        }
        for name, array in feeds.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def _decoded(body: bytes) -> Sequence[np.ndarray]:
    return [
        np.array(each["data"], _DTYPES[each["datatype"]]).reshape(each["shape"])
        for each in json.loads(body)["outputs"]
    ]
