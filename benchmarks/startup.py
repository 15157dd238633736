"""How long a user waits: for a registration, the next of its kind, the first answer, a restart.

Each step runs what a user would run, in a process of its own, on a home of its own; the last one
watches what the server does with nothing to do. Leaves plain rows (what, figure, note) for a table
and for JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.catalogue import MODELS
from benchmarks.models import ModelUnavailable, path, with_weights

ARCHITECTURE = "light_resnet50"
# What a restarted server holds besides.
OTHERS = (
    "magika", "orientation", "ppocr-cls", "mtcnn-pnet", "mtcnn-rnet", "mtcnn-onet",
    "light_squeezenet",
)  # fmt: skip
READY_LIMIT_S = 120
# What the idle server has answered before, and how long it is watched.
IDLE_MODEL, REQUESTS, IDLE_S = "magika", 200, 10.0


@dataclass(frozen=True)
class Row:
    """One figure: what was done, how long it took, and what else came out."""

    what: str
    seconds: float
    note: str


def measure(tell: Callable[[str], None]) -> list[Row]:
    """All rows, in order. `tell` is given each when it is known."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in _steps(Path(folder) / "home", tell):
            rows.append(row)
            tell(f"{row.what}: {row.seconds:.2f} s, {row.note}")
    return rows


def _steps(home: Path, tell: Callable[[str], None]) -> Iterator[Row]:
    for seed, what in enumerate(("cold", "other weights", "other weights again")):
        with with_weights(MODELS[ARCHITECTURE], seed) as file:
            yield _register(home, file, f"resnet50-{seed}", f"register ResNet-50, {what}")
    yield from _first_answers(home, "resnet50-0", ARCHITECTURE, "ResNet-50")
    try:
        file = path("bert-base")
    except ModelUnavailable as error:
        tell(f"BERT-base: skipped, {error}")
    else:
        shapes = _shapes("bert-base")
        yield _register(home, file, "bert-base", "register BERT-base, cold", *shapes)
        yield from _first_answers(home, "bert-base", "bert-base", "BERT-base")
    for name in OTHERS:
        _register(home, path(name), name, name, *_shapes(name))
    yield _start(home, "first start with all these models: packs their weights")
    yield _start(home, "restart with all these models")
    yield _idle(home)


def _shapes(name: str) -> list[str]:
    """The options of `register` that name the usual shapes."""
    feeds = MODELS[name].feeds()
    shapes = [f"{key}={'x'.join(map(str, array.shape))}" for key, array in feeds.items()]
    return [argument for shape in shapes for argument in ("--shape", shape)]


def _register(home: Path, file: Path, name: str, what: str, *options: str) -> Row:
    """Seconds as `whitebox register` reports them: without the start of the interpreter."""
    arguments = ("register", str(file), "--name", name, *options)
    line = subprocess.run(
        [sys.executable, "-m", "whitebox.cli", *arguments],
        env={**os.environ, "WHITEBOX_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    found = re.search(r"(\d+) kernels? compiled, (\d+) reused.* ([\d.]+) s$", line)
    if found is None:
        raise RuntimeError(f"register printed {line!r}")
    compiled, reused, seconds = found.groups()
    return Row(what, float(seconds), f"{compiled} kernels compiled, {reused} reused")


def _first_answers(home: Path, name: str, model: str, title: str) -> Iterator[Row]:
    """From the start of the runtime to an answer, in fresh processes. The first packs weights."""
    feeds = home.parent / f"{name}.npz"
    np.savez(feeds, **MODELS[model].feeds())
    for what in ("first answer after registration", "first answer from cache"):
        command = [sys.executable, "-m", "benchmarks.first_answer", str(home), name, str(feeds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took = json.loads(done.stdout)
        note = (
            f"open {took['open']:.2f}, first {took['first']:.2f}, second {took['second']:.2f}; "
            f"imports before that {took['imports']:.2f}"
        )
        yield Row(f"{title}, {what}", took["open"] + took["first"], note)


@contextlib.contextmanager
def _server(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server on the filled home, ready, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "whitebox.cli", "serve", "--port", str(port)],
        env={**os.environ, "WHITEBOX_HOME": str(home)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not _ready(port):
            if time.perf_counter() - start > READY_LIMIT_S or server.poll() is not None:
                raise RuntimeError("the server did not become ready")
            time.sleep(0.01)
        yield server, port
    finally:
        server.terminate()
        server.wait(30)


def _start(home: Path, what: str) -> Row:
    """Until a server is ready, and what it loaded."""
    start = time.perf_counter()
    with _server(home) as (server, port):
        seconds = time.perf_counter() - start
        counters = _counters(port)
        note = (
            f"{counters['whitebox_kernels_compiled_total']:.0f} kernels compiled, "
            f"LLVM loaded: {bool(counters['whitebox_llvm_loaded'])}, {_rss_mb(server.pid):.0f} MB"
        )
        return Row(what, seconds, note)


def _idle(home: Path) -> Row:
    """CPU seconds of a server in ten seconds without requests, after some."""
    with _server(home) as (server, port):
        for _ in range(REQUESTS):
            _infer(port, IDLE_MODEL)
        before = _cpu_s(server.pid)
        time.sleep(IDLE_S)
        used = _cpu_s(server.pid) - before
    what = f"CPU time of an idle server in {IDLE_S:.0f} s, after {REQUESTS} requests"
    return Row(what, used, f"{100 * used / IDLE_S:.1f}% of a core")


def _infer(port: int, name: str) -> None:
    datatypes = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
    inputs = [
        {
            "name": key,
            "shape": array.shape,
            "datatype": datatypes[str(array.dtype)],
            "data": array.reshape(-1).tolist(),
        }
        for key, array in MODELS[name].feeds().items()
    ]
    url = f"http://127.0.0.1:{port}/v2/models/{name}/infer"
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def _ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        url = f"http://127.0.0.1:{port}/v2/health/ready"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    return False


def _counters(port: int) -> dict[str, float]:
    """The metrics without labels, by name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.split()[0]: float(line.split()[1])
        for line in lines
        if not line.startswith("#") and "{" not in line
    }


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu_s(pid: int) -> float:
    """Seconds that all threads of a process have computed."""
    # The name, in parentheses, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
