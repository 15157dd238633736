"""The engines that hold many models, behind one face. The one place that knows their interfaces.

Enter: files of models by name, requests. Leave: answers as lists of arrays. `Whitebox` and
`Onnxruntime` answer in the calling process; `benchmarks.many.servers` has those behind HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.many.recipes import Feeds

Answer = list[np.ndarray]


class Engine(Protocol):
    """Many models, loaded when they are first asked or all at once."""

    def open(self, files: Mapping[str, Path], home: Path) -> None:
        """Get ready to answer for these models; `home` has what this engine keeps on disk."""

    def load(self, names: Iterable[str]) -> None:
        """Load models ahead of their first requests."""

    def ask(self, name: str, feeds: Feeds) -> Answer:
        """One answer; loads the model when it is not loaded yet."""

    def ask_several(self, names: list[str], feeds: Feeds) -> list[Answer]:
        """The answers of several models to the same request."""

    def pids(self) -> list[int]:
        """The processes whose memory counts."""

    def close(self) -> None:
        """End what was started."""


class Onnxruntime:
    """A session a model, as its documentation has it for many sessions in a process.

    One thread a session, the arena shared through the environment and shrunk after each run.
    """

    def open(self, files: Mapping[str, Path], home: Path) -> None:
        import onnxruntime

        self._files = dict(files)
        self._sessions: dict[str, Any] = {}
        kind = onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        )
        onnxruntime.create_and_register_allocator(kind, None)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def _session(self, name: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Exact products of 8-bit integers, as everybody else computes them.
        options.add_session_config_entry("session.x64quantprecision", "1")
        file = str(self._files[name])
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def load(self, names: Iterable[str]) -> None:
        for name in names:
            self._sessions[name] = self._session(name)

    def ask(self, name: str, feeds: Feeds) -> Answer:
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = self._session(name)
        return session.run(None, feeds, self._run_options)

    def ask_several(self, names: list[str], feeds: Feeds) -> list[Answer]:
        return [self.ask(name, feeds) for name in names]

    def pids(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        self._sessions.clear()


class Whitebox:
    """All models in one runtime, registered before."""

    def open(self, files: Mapping[str, Path], home: Path) -> None:
        from whitebox import Runtime

        self._runtime = Runtime(home)

    def load(self, names: Iterable[str]) -> None:
        self._runtime.warm()

    def ask(self, name: str, feeds: Feeds) -> Answer:
        return list(self._runtime.predict(name, feeds).values())

    def ask_several(self, names: list[str], feeds: Feeds) -> list[Answer]:
        answers = self._runtime.predict_together(names, feeds)
        return [list(answer.values()) for answer in answers]

    def register(self, model: Path | bytes, name: str, feeds: Feeds) -> tuple[float, int]:
        """Seconds until a model for such requests is registered, and kernels compiled for it."""
        shapes = {key: array.shape for key, array in feeds.items()}
        start = time.perf_counter()
        done = self._runtime.register(model, name, shapes=shapes)
        return time.perf_counter() - start, done.kernels_compiled

    def unregister(self, name: str) -> None:
        self._runtime.unregister(name)

    def pids(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        self._runtime.close()


class WhiteboxAlone(Whitebox):
    """A runtime and a home for each model, which thus shares nothing but the kernels' cache."""

    def open(self, files: Mapping[str, Path], home: Path) -> None:
        self._files, self._home = dict(files), home
        self._runtimes: dict[str, Any] = {}

    def ask(self, name: str, feeds: Feeds) -> Answer:
        runtime = self._runtimes.get(name)
        if runtime is None:
            from whitebox import Runtime

            folder = self._home / "alone" / name
            folder.mkdir(parents=True)
            (folder / "kernels").symlink_to(self._home / "kernels")
            runtime = self._runtimes[name] = Runtime(folder)
            shapes = {key: array.shape for key, array in feeds.items()}
            runtime.register(self._files[name], name, shapes=shapes)
        return list(runtime.predict(name, feeds).values())

    def close(self) -> None:
        for runtime in self._runtimes.values():
            runtime.close()
