"""What a kernel is compiled for: the machine as far as code generation cares.

A `Target` is a plain value that imports no TVM, so that the serving process can compute kernel
keys without a compiler. Only compile workers turn it into TVM's own object.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from whitebox import config

# Best first: an LLVM CPU name, and the /proc/cpuinfo flags that a CPU must have to run its code.
_AVX2 = frozenset("avx2 fma f16c bmi2".split())
_AVX512 = _AVX2 | frozenset("avx512f avx512bw avx512dq avx512vl avx512cd".split())
_BF16 = _AVX512 | frozenset("avx512_vnni avx512_bf16".split())
_AMX = _BF16 | frozenset("amx_tile amx_int8 amx_bf16".split())

X86: tuple[tuple[str, frozenset[str]], ...] = (
    ("sapphirerapids", _AMX),
    ("cooperlake", _BF16),
    ("cascadelake", _AVX512 | {"avx512_vnni"}),
    ("skylake-avx512", _AVX512),
    ("haswell", _AVX2),
)


# The system call by which a process asks Linux for a large register state (asm/prctl.h), x86-64.
_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA = 158, 0x1023, 18


@dataclass(frozen=True, slots=True)
class Target:
    """A device kind, an LLVM CPU name, and how many threads a parallel kernel may use.

    `lanes` is the number of float32 elements in a vector register.
    """

    kind: str
    arch: str
    mcpu: str
    lanes: int
    threads: int

    @property
    def integer_group(self) -> int:
        """How many products of 8-bit integers one instruction adds into a sum of 32 bits.

        Four bytes with AVX-512 VNNI, two 16-bit integers otherwise; 0 is for no such instruction.
        """
        if self.mcpu in ("cascadelake", "cooperlake", "sapphirerapids"):
            return 4
        return 2 if self.mcpu in ("skylake-avx512", "haswell") else 0

    @property
    def x86(self) -> bool:
        """Whether x86's instructions may be named."""
        return self.arch == "x86_64"

    @property
    def bf16(self) -> str:
        """The instructions for products in bf16: "tiles" (AMX), "pairs" (AVX-512 BF16), or none."""
        return {"sapphirerapids": "tiles", "cooperlake": "pairs"}.get(self.mcpu, "")

    @property
    def half(self) -> bool:
        """Whether there is an instruction that widens float16 (x86: F16C)."""
        return self.mcpu != "x86-64"

    @property
    def key(self) -> str:
        """Identity for kernel digests."""
        return f"{self.kind}-{self.arch}-{self.mcpu}-t{self.threads}"


@cache
def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux prints them; empty where it does not."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


@cache
def tiles_allowed() -> bool:
    """Ask Linux to keep the state of AMX tiles for this process; whether it will.

    Code that uses tiles is killed in a process that has not asked.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA) == 0)


def host_target(threads: int | None = None) -> Target:
    """The CPU this process runs on; the generic target where nothing better is known."""
    machine = platform.machine()
    count = threads or config.threads()
    if machine in ("x86_64", "AMD64"):
        for mcpu, needed in X86:
            if needed <= cpu_flags() and (needed is not _AMX or tiles_allowed()):
                return Target("cpu", "x86_64", mcpu, 8 if mcpu == "haswell" else 16, count)
        return Target("cpu", "x86_64", "x86-64", 4, count)
    return Target("cpu", machine, "generic", 4, count)
