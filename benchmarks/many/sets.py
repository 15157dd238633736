"""Sets of models on disk, and the requests made of them.

What enters: a set's name and how many of its models are wanted. What leaves: their files and
requests. Files are made once, in a process of its own that may import the frameworks, and are kept
with other models outside the repository; a set that is to be larger is made anew.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.many import REVISION
from benchmarks.many.recipes import Feeds
from benchmarks.models import ModelUnavailable, cache_folder


@dataclass(frozen=True)
class ModelSet:
    """Models by name, and what each may be asked."""

    name: str
    files: dict[str, Path]
    requests: dict[str, list[Feeds]]


def folder(name: str) -> Path:
    """Where a set is kept."""
    return cache_folder() / f"many-{REVISION}" / name


def load(name: str, count: int) -> ModelSet:
    """The first `count` models of a set, made if need be. Raises ModelUnavailable."""
    files = _files(name, count)
    if not all(file.exists() for file in files) or not _requests(name).exists():
        command = [sys.executable, "-m", "benchmarks.many.sets", name, str(count)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ModelUnavailable(f"the {name} set cannot be made: {said}")
    return read(name, count)


def read(name: str, count: int) -> ModelSet:
    """The first `count` models of a set that is on disk; fewer where the set is smaller."""
    files = {file.stem: file for file in _files(name, count)}
    # Written by this module, into the user's own cache.
    requests = pickle.loads(_requests(name).read_bytes())
    if isinstance(requests, list):
        return ModelSet(name, files, dict.fromkeys(files, requests))
    return ModelSet(
        name,
        {key: file for key, file in files.items() if key in requests},
        {key: requests[key] for key in files if key in requests},
    )


def _files(name: str, count: int) -> list[Path]:
    return [folder(name) / f"{name}-{number:03}.onnx" for number in range(count)]


def _requests(name: str) -> Path:
    return folder(name) / "requests.pickle"


def _make(name: str, count: int) -> None:
    """Write a set. Each file appears whole."""
    build = importlib.import_module(f"benchmarks.many.{name}").build
    folder(name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder(name), prefix=".") as made:
        requests = build([Path(made) / file.name for file in _files(name, count)])
        (Path(made) / _requests(name).name).write_bytes(pickle.dumps(requests))
        for part in sorted(Path(made).iterdir()):
            os.replace(part, folder(name) / part.name)


if __name__ == "__main__":
    _make(sys.argv[1], int(sys.argv[2]))
