"""What the machine can do at best, measured: float32 multiply-adds and memory traffic.

What enters: a number of threads. What leaves: GFLOP/s and GB/s. The multiply-adds are a loop over
registers on one core, times the threads: two cores are rarely free at once on a busy machine. TVM
compiles it, in a process of its own (`python -m benchmarks.peak`), for the benchmarking process
must not load the compiler.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_ACCUMULATORS = 12  # independent sums, to cover the latency of a multiply-add
_TURNS = 100_000  # about a millisecond: short enough to find the cores free now and then
_COPY_BYTES = 64 << 20
_REPEATS = 50


@dataclass(frozen=True)
class Peak:
    """The best of some tries."""

    gflops: float
    gbytes: float


def measure(threads: int) -> Peak:
    """The machine's peaks for this many threads."""
    command = [sys.executable, "-m", "benchmarks.peak"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Peak(threads * json.loads(done.stdout.splitlines()[-1]), _memory(threads))


def _memory(threads: int) -> float:
    """GB/s read and written by copying arrays that no cache holds."""
    size = _COPY_BYTES // threads
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(threads)]

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        np.copyto(pair[1], pair[0])

    def once() -> None:
        workers = [threading.Thread(target=copy, args=(pair,)) for pair in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return 2 * size * threads / _best(once) / 1e9


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    run()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _multiply_adds() -> float:
    """GFLOP/s of multiply-adds on registers, on one core."""
    import tvm
    from tvm.script import tirx as T

    from whitebox.compiler.target import host_target
    from whitebox.compiler.worker import tvm_target
    from whitebox.kernels.cpu.scratch import register_pipeline

    # Wider sums than the registers would be spilled, which halves the figure.
    lanes = host_target(1).lanes
    width = _ACCUMULATORS * lanes

    @T.prim_func(s_tir=True, check_well_formed=False)  # type: ignore[untyped-decorator]
    def spin(x: T.handle, y: T.handle) -> None:
        factors = T.match_buffer(x, (lanes,), "float32")
        sums = T.match_buffer(y, (width,), "float32")
        held = T.alloc_buffer((width,), "float32", scope="local")
        for number in T.unroll(_ACCUMULATORS):
            for lane in T.vectorized(lanes):
                held[number * lanes + lane] = sums[number * lanes + lane]
        for _ in range(_TURNS):
            for number in T.unroll(_ACCUMULATORS):
                for lane in T.vectorized(lanes):
                    held[number * lanes + lane] = (
                        held[number * lanes + lane] * factors[lane] + factors[lane]
                    )
        for number in T.unroll(_ACCUMULATORS):
            for lane in T.vectorized(lanes):
                sums[number * lanes + lane] = held[number * lanes + lane]

    module = tvm.IRModule({"main": spin.with_attr("global_symbol", "main")})
    # (the pipeline keeps the sums out of memory)
    target, pipeline = tvm_target(host_target(1)), register_pipeline()
    run = tvm.compile(module, target=target, tir_pipeline=pipeline)["main"]
    x = tvm.runtime.tensor(np.full(lanes, 0.5, np.float32))
    y = tvm.runtime.tensor(np.zeros(width, np.float32))
    return 2 * width * _TURNS / _best(lambda: run(x, y)) / 1e9


if __name__ == "__main__":
    print(json.dumps(_multiply_adds()))
