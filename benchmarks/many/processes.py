"""Processes: one with an engine to itself, and what memory processes take.

`Hosted` starts `python -m benchmarks.many.host` and calls its methods as if they were here.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any


class HostFailed(Exception):
    """A call in the other process failed, or the process ended."""


class Hosted:
    """An engine in a process of its own. A context manager; one caller at a time."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        command = [sys.executable, "-m", "benchmarks.many.host", engine]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Hosted:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the other side closes its engine and ends
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of `host.Host`. Raises HostFailed with its traceback."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((method, arguments), self._process.stdin)
            self._process.stdin.flush()
            worked, result = pickle.load(self._process.stdout)
        except (OSError, EOFError) as error:
            raise HostFailed(f"{self.engine}: the process ended in {method}") from error
        if not worked:
            raise HostFailed(f"{self.engine}: {result}")
        return result


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size of processes and all that they have started, in MB."""
    total = 0
    for pid in _with_children(pids):
        for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total * 1024 / 1e6


def _with_children(pids: Iterable[int]) -> set[int]:
    known: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        known.add(pid)
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            waiting += [int(child) for child in _read(thread / "children").split()]
    return known


def _read(file: Path) -> str:
    """What the kernel says of a process or thread; nothing of one that has just ended."""
    try:
        return file.read_text()
    except OSError:
        return ""
