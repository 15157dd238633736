"""Build kernels: look in the cache, and have worker processes compile what is missing.

Workers start when there is something to compile and end when there has been nothing for a while.
A worker that crashes or takes too long fails the kernel it had, and is replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import msgspec

from whitebox.compiler.cache import KernelCache, kernel_key, variant_key
from whitebox.compiler.target import Target
from whitebox.compiler.worker import INTERPRETER, Answer, Job, read_message, write_message
from whitebox.errors import CompileError, NoSuchVariant
from whitebox.ir import serial
from whitebox.ir.graph import Graph

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

# How long one kernel may take, and how long an idle worker is kept.
COMPILE_LIMIT_S = 180.0
IDLE_LIMIT_S = 15.0


@dataclass(frozen=True)
class BuildReport:
    """How many kernels a build needed, by where they came from.

    `failures` maps the keys of kernels that could not be compiled to the reason.
    """

    compiled: int
    reused: int
    seconds: float
    failures: Mapping[str, str] = field(default_factory=dict)


class _Worker:
    """One worker process and the pipe to it."""

    def __init__(self, niceness: int) -> None:
        # One LLVM thread a worker; the cores are shared by the workers.
        env = {**os.environ, "TVM_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "whitebox.compiler.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,  # Ctrl-C goes to the parent, which closes the pipe
        )
        if niceness:
            os.setpriority(os.PRIO_PROCESS, self.process.pid, niceness)

    def run(self, job: Job) -> Answer:
        """Compile one kernel. Raises CompileError when the process crashes or takes too long."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            write_message(self.process.stdin, msgspec.msgpack.encode(job))
            with selectors.DefaultSelector() as selector:
                selector.register(self.process.stdout, selectors.EVENT_READ)
                if not selector.select(COMPILE_LIMIT_S):
                    raise CompileError(
                        f"kernel {job.key[:12]} took more than {COMPILE_LIMIT_S:.0f} s to compile"
                    )
            message = read_message(self.process.stdout)
        except OSError:
            message = None
        if message is None:
            code = self.process.wait()
            raise CompileError(
                f"the compiler crashed on kernel {job.key[:12]} (exit status {code}); "
                "set WHITEBOX_DUMP=folder to keep its TIR"
            )
        return msgspec.msgpack.decode(message, type=Answer)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class KernelBuilder:
    """Compiles kernels for one target into one cache. Thread-safe.

    `workers` and `niceness` are the number of worker processes and their priority.
    """

    def __init__(
        self,
        cache: KernelCache,
        target: Target,
        workers: int | None = None,
        niceness: int = 0,
    ) -> None:
        self.cache = cache
        self.target = target
        self.workers = workers or target.threads
        self.niceness = niceness
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._pending: dict[str, Future[None]] = {}
        self._threads = 0
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.compiled_total = 0

    def build(self, bodies: Mapping[str, Graph], progress: Progress | None = None) -> BuildReport:
        """Make sure that every kernel is in the cache; `bodies` maps kernel keys to bodies.

        `progress(done, total)` counts the kernels that had to be compiled.
        """
        missing = {
            key: serial.encode(body) for key, body in bodies.items() if not self.cache.has(key)
        }
        report = self._build(missing, len(bodies), progress)
        for key, reason in report.failures.items():
            log.warning("%s was not compiled: %s", describe(bodies[key]), reason)
        return report

    def interpreter(self) -> str:
        """The key of the plan interpreter, compiled if need be. Raises CompileError."""
        key = kernel_key(Graph([]), self.target)
        if not self.cache.has(key):
            report = self._build({key: INTERPRETER}, 1, None)
            if report.failures:
                raise CompileError(
                    f"the plan interpreter cannot be built: {report.failures[key]}; "
                    "run `whitebox doctor`"
                )
        return key

    def build_variant(self, key: str, body: Graph, variant: int) -> str | None:
        """The key of another schedule of a kernel, compiled if need be; None when there is none.

        Raises CompileError when it does not compile.
        """
        wanted = variant_key(key, variant)
        if not self.cache.has(wanted):
            try:
                self._submit(wanted, serial.encode(body), variant).result()
            except NoSuchVariant:
                return None
        return wanted

    def _build(
        self, missing: Mapping[str, bytes], total: int, progress: Progress | None
    ) -> BuildReport:
        start = time.perf_counter()
        futures = {key: self._submit(key, body) for key, body in missing.items()}
        failures: dict[str, str] = {}
        for done, (key, future) in enumerate(futures.items()):
            if progress is not None:
                progress(done, len(futures))
            try:
                future.result()
            except CompileError as error:
                failures[key] = str(error)
        if progress is not None and futures:
            progress(len(futures), len(futures))
        seconds = time.perf_counter() - start
        compiled = len(missing) - len(failures)
        return BuildReport(compiled, total - len(missing), seconds, failures)

    def _submit(self, key: str, body: bytes, variant: int = 0) -> Future[None]:
        """Queue a job unless the same kernel is being compiled already."""
        with self._lock:
            if key in self._pending:
                return self._pending[key]
            future = self._pending[key] = Future()
            folder = str(self.cache.folder)
            target = dataclasses.asdict(self.target)
            self._jobs.put(Job(key, body, target, folder, variant))
            if self._threads < min(self.workers, len(self._pending)):
                self._threads += 1
                threading.Thread(target=self._drive, daemon=True, name="compile").start()
            return future

    def _drive(self) -> None:
        """Feed one worker process until nothing comes for a while."""
        worker: _Worker | None = None
        try:
            while (job := self._next_job()) is not None:
                worker = worker or self._start_worker()
                try:
                    answer = worker.run(job)
                except CompileError as error:
                    worker.process.kill()
                    self._end_worker(worker)
                    worker = None
                    self._finish(job.key, error)
                else:
                    kind = NoSuchVariant if answer.exhausted else CompileError
                    self._finish(job.key, kind(answer.error) if answer.error else None)
        finally:
            if worker is not None:
                self._end_worker(worker)

    def _start_worker(self) -> _Worker:
        worker = _Worker(self.niceness)
        with self._lock:
            self._workers.add(worker)
        return worker

    def _end_worker(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.close()

    def _next_job(self) -> Job | None:
        """The next job; None when this thread should end, its place given up."""
        deadline = time.monotonic() + IDLE_LIMIT_S
        while True:
            try:
                return self._jobs.get(timeout=0.2)
            except queue.Empty:
                with self._lock:
                    over = self._closed.is_set() or time.monotonic() > deadline
                    if over and self._jobs.empty():
                        self._threads -= 1
                        return None

    def _finish(self, key: str, error: CompileError | None) -> None:
        with self._lock:
            future = self._pending.pop(key)
            self.compiled_total += error is None
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def abandon(self) -> None:
        """Close at once: kernels that are not compiled yet fail."""
        self.close()
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                self._finish(job.key, CompileError("not compiled: the runtime is being closed"))
        with self._lock:
            for worker in self._workers:
                worker.process.kill()

    def close(self) -> None:
        """Let the workers end; kernels being compiled are finished."""
        self._closed.set()


def describe(body: Graph) -> str:
    """A kernel in words, for messages: its operators and result type."""
    from whitebox.passes.fuse import body_label

    return f"kernel {body_label(body)} → {', '.join(str(node.type) for node in body.roots)}"
