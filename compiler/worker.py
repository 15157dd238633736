"""The compile worker: a process that turns fused groups into object files.

The only code that loads TVM's compiler. It reads jobs from standard input and answers on standard
output, each a msgpack message after its length; it ends when its input does. A crash here is an
error on one kernel, never on the process that serves.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import msgspec

from whitebox import config
from whitebox.compiler.cache import KernelCache
from whitebox.compiler.light_import import without_torch
from whitebox.compiler.target import Target
from whitebox.errors import NoSuchVariant

# The name under which every object file exports its function.
ENTRY = "whitebox_kernel"
# The body of the job that builds the plan interpreter instead of a fused group.
INTERPRETER = b"interpreter"


class Job(msgspec.Struct):
    """One kernel to compile: its key, its body (serial form) and what to compile it for.

    Variant 0 has the schedule that the cost model likes best, others what it likes less.
    """

    key: str
    body: bytes
    target: dict[str, Any]
    folder: str
    variant: int = 0


class Answer(msgspec.Struct):
    """What became of a job: `error` is empty when the object file is in the cache.

    `exhausted` says that the kernel has no such variant.
    """

    key: str
    error: str = ""
    seconds: float = 0.0
    exhausted: bool = False


def read_message(stream: IO[bytes]) -> bytes | None:
    """The next message, or None at the end."""
    header = stream.read(4)
    return stream.read(int.from_bytes(header, "little")) if len(header) == 4 else None


def write_message(stream: IO[bytes], data: bytes) -> None:
    """Send one message."""
    stream.write(len(data).to_bytes(4, "little") + data)
    stream.flush()


def compile_job(job: Job) -> None:
    """Compile one kernel into the cache."""
    module, target = _lowered(job)
    built = _tvm_compile(module, target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        built.write_to_file(str(path), "o")
        KernelCache(Path(job.folder)).put(job.key, path.read_bytes())


def _lowered(job: Job) -> tuple[Any, Target]:
    from whitebox.compiler.lower import lower
    from whitebox.ir import serial
    from whitebox.ir.graph import Tensor
    from whitebox.ir.types import TensorType
    from whitebox.kernels.host.interpreter import interpreter_module

    target = Target(**job.target)
    if job.body == INTERPRETER:
        return interpreter_module(ENTRY), target

    def missing(digest: str, type: TensorType) -> Tensor:
        raise ValueError(f"a kernel body refers to the weights {digest}: they must be arguments")

    body = serial.decode(job.body, missing)
    module = lower(body, target, ENTRY, job.variant)
    _dump(job.key, module)
    return module, target


def _dump(key: str, module: Any) -> None:
    folder = config.dump_dir()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{key[:12]}.tir").write_text(module.script())


def tvm_target(target: Target) -> Any:
    """TVM's own object for a target."""
    import tvm

    spec = {"kind": "llvm", "num-cores": target.threads}
    if target.arch == "x86_64":
        spec["mcpu"] = target.mcpu
        # It would regroup sums of integers that are to stay in registers.
        spec["cl-opt"] = ["-x86-machine-combiner=false"]
    return tvm.target.Target(spec)


def _tvm_compile(module: Any, target: Target) -> Any:
    """The module that holds the machine code."""
    import tvm

    from whitebox.kernels.cpu.scratch import idle_passes, register_pipeline

    pipeline = register_pipeline()
    with tvm.transform.PassContext(disabled_pass=idle_passes(module)):
        return tvm.compile(module, target=tvm_target(target), tir_pipeline=pipeline).mod


def main() -> None:
    """Serve jobs until standard input ends."""
    # Whatever TVM or LLVM print must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with without_torch():
        import tvm  # noqa: F401
    decoder = msgspec.msgpack.Decoder(Job)
    while (message := read_message(sys.stdin.buffer)) is not None:
        job = decoder.decode(message)
        start = time.perf_counter()
        error, exhausted = "", False
        try:
            compile_job(job)
        except NoSuchVariant as caught:
            error, exhausted = str(caught), True
        except Exception as caught:
            # The first line says what is wrong; TVM adds the whole program after it.
            error = f"{type(caught).__name__}: {str(caught).strip().partition(chr(10))[0]}"
            if config.debug():
                import traceback

                traceback.print_exc()
        answer = Answer(job.key, error, time.perf_counter() - start, exhausted)
        write_message(answers, msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
