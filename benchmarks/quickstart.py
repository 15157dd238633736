"""The quick start: a real model from a file to a REST answer, in separate processes.

What enters: a file to ask about. What leaves: the answer, printed, after each command that led to
it. Everything is kept in `.cache/quickstart`; the user's own home is not touched.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

from benchmarks import magika
from benchmarks.models import ModelUnavailable, path

HOME = Path(".cache/quickstart")
_WHITEBOX = [sys.executable, "-m", "whitebox.cli", "--home", str(HOME)]
_TIMEOUT_S = 60


def ask(file: Path, port: int = 0) -> None:
    """Register magika, serve it, ask what kind of file `file` is, and print the answer."""
    try:
        model, config = path("magika"), magika.Config.load()
        given = magika.tokens(file.read_bytes(), config)
    except (ModelUnavailable, OSError, ValueError) as error:
        raise SystemExit(f"quickstart: error: {error}") from error
    _say(["register", str(model), "--name", "magika"])
    subprocess.run([*_WHITEBOX, "register", str(model), "--name", "magika"], check=True)
    _say(["serve", "--port", str(port)])
    with _server(port) as address:
        url = f"{address}/v2/models/magika/infer"
        print(f"$ curl {url} -d '{{\"inputs\": [ …the ends of {file}… ]}}'")
        kind, sure = magika.label(_infer(url, given), config)
    print(f"\n{file} is: {kind} ({sure:.0%} sure)")


@contextmanager
def _server(port: int) -> Iterator[str]:
    """A server in a process of its own; gives its address when it is ready."""
    command = [*_WHITEBOX, "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            words = [word for word in line.split() if word.startswith("http://")]
            if not words:
                raise SystemExit(process.wait(_TIMEOUT_S) or 1)
            print(line)
            yield words[0]
        finally:
            process.terminate()


def _infer(url: str, given: np.ndarray) -> np.ndarray:
    """One Open Inference Protocol request in JSON."""
    tensor = {"name": "bytes", "datatype": "INT32", "shape": list(given.shape)}
    body = json.dumps({"inputs": [{**tensor, "data": given.reshape(-1).tolist()}]})
    request = Request(url, body.encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=_TIMEOUT_S) as answer:
        (output,) = json.load(answer)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def _say(arguments: list[str]) -> None:
    print(f"$ whitebox {shlex.join(arguments)}", flush=True)
