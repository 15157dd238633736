"""`kill -9` at random moments of `register` and `serve`: what was acknowledged is there, the rest
left no trace, and the same command works again."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import whitebox
from tests.test_runtime import batch, mlp, mlp_answer

QUICK, MANY = 6, 50


def command(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A whitebox command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "whitebox.cli", *arguments],
        env={**os.environ, "WHITEBOX_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill the process after `seconds`; whether it had finished well before."""
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"


def assert_sound(home: Path, acknowledged: set[int]) -> None:
    """The registry opens; acknowledged models answer; others are absent or complete."""
    with whitebox.Runtime(home) as runtime:
        names = {info.name for info in runtime.models()}
        assert {f"m{seed}" for seed in acknowledged} <= names
        for name in sorted(names):
            answer = runtime.predict(name, {"x": batch(1)})["y"]
            expected = mlp_answer(mlp(int(name[1:])), batch(1))
            np.testing.assert_allclose(answer, expected, rtol=1e-4)
        assert runtime.registry.blobs.verify() == []


@pytest.mark.parametrize("kills", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_register_is_killed(home: Path, tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    acknowledged: set[int] = set()
    file = tmp_path / "model.onnx"
    onnx.save(mlp(0), file)
    started = time.monotonic()
    assert command(home, "register", str(file), "--name", "m0").wait(120) == 0
    acknowledged.add(0)
    longest = time.monotonic() - started
    for seed in range(1, kills + 1):
        onnx.save(mlp(seed), file)
        arguments = ("register", str(file), "--name", f"m{seed}")
        if kill_after(command(home, *arguments), chance.uniform(0.05, longest)):
            acknowledged.add(seed)
        if seed % 5 == 0 or seed == kills:
            assert_sound(home, acknowledged)
            assert command(home, *arguments).wait(120) == 0
            acknowledged.add(seed)
    assert_sound(home, acknowledged)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as r:
                if r.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server did not become ready")


@pytest.mark.parametrize("kills", [QUICK // 2, pytest.param(MANY, marks=pytest.mark.slow)])
def test_serve_is_killed(home: Path, tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    for seed in (1, 2):
        onnx.save(mlp(seed), tmp_path / "model.onnx")
        with whitebox.Runtime(home) as runtime:
            runtime.register(tmp_path / "model.onnx", f"m{seed}")
    port = free_port()
    for _ in range(kills):
        server = command(home, "serve", "--port", str(port))
        kill_after(server, chance.uniform(0.05, 3.0))
    assert_sound(home, {1, 2})
    server = command(home, "serve", "--port", str(port))
    try:
        wait_ready(port, server)
    finally:
        server.terminate()
        assert server.wait(30) == 0
