"""How long a user waits: for the first registration, for the next of its kind, for a restart.

Each step runs the command a user would run, in a process of its own, on a home of its own. Leaves
plain rows (what, figure, note) for a table and for JSON.
"""

from __future__ import annotations

import contextlib
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

from benchmarks.catalogue import MODELS
from benchmarks.models import path, with_weights

ARCHITECTURE = "light_resnet50"
# What a restarted server holds, in all ten models.
OTHERS = (
    "magika", "orientation", "ppocr-cls", "mtcnn-pnet", "mtcnn-rnet", "mtcnn-onet",
    "light_squeezenet",
)  # fmt: skip
READY_LIMIT_S = 120


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
        for row in _steps(Path(folder) / "home"):
            rows.append(row)
            tell(f"{row.what}: {row.seconds:.2f} s, {row.note}")
    return rows


def _steps(home: Path) -> Iterator[Row]:
    for seed, what in enumerate(("cold", "other weights", "other weights again")):
        with with_weights(MODELS[ARCHITECTURE], seed) as file:
            yield _register(home, file, f"resnet50-{seed}", f"register ResNet-50, {what}")
    for name in OTHERS:
        feeds = MODELS[name].feeds()
        shapes = [f"{key}={'x'.join(map(str, array.shape))}" for key, array in feeds.items()]
        _register(home, path(name), name, name, *(a for s in shapes for a in ("--shape", s)))
    yield _start(home, f"first start with {3 + len(OTHERS)} models: packs their weights")
    yield _start(home, f"restart with {3 + len(OTHERS)} models")


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


def _start(home: Path, what: str) -> Row:
    """A server on the filled home: until it is ready, and what it loaded."""
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
        seconds = time.perf_counter() - start
        counters = _counters(port)
        note = (
            f"{counters['whitebox_kernels_compiled_total']:.0f} kernels compiled, "
            f"LLVM loaded: {bool(counters['whitebox_llvm_loaded'])}, {_rss_mb(server.pid):.0f} MB"
        )
        return Row(what, seconds, note)
    finally:
        server.terminate()
        server.wait(30)


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
