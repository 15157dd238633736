"""Native code: loads object files, and lays out the structs that kernels are called with.

Only TVM's runtime is loaded here (the thread pool), never its compiler; object files are linked in
memory by ORC. Structs follow tvm_ffi/c_api.h and DLPack.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from whitebox.compiler.cache import KernelCache
from whitebox.compiler.light_import import without_torch
from whitebox.compiler.worker import ENTRY
from whitebox.errors import CompileError, WhiteboxError

# DLTensor (DLPack 1.x) and TVMFFIAny, as numpy records.
DL_TENSOR = np.dtype(
    [
        ("data", "<u8"),
        ("device_type", "<i4"),
        ("device_id", "<i4"),
        ("ndim", "<i4"),
        ("code", "u1"),
        ("bits", "u1"),
        ("lanes", "<u2"),
        ("shape", "<u8"),
        ("strides", "<u8"),
        ("byte_offset", "<u8"),
    ]
)
FFI_ANY = np.dtype([("type_index", "<i4"), ("padding", "<u4"), ("value", "<i8")])
FFI_DL_TENSOR_PTR = 7

_DL_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "complex": 5, "bool": 6}

# Iterations for which an idle pool worker spins before it sleeps, about a tenth of a millisecond:
# long enough to be awake for the next kernel, or the next of requests back to back, and not so long
# that a light load keeps a core busy (2000: a tenth of one at 100 requests a second).
SPIN_COUNT = "300"


@cache
def array_pointer_offset() -> int:
    """At which byte of a numpy array object the pointer to its data is.

    numpy's ABI fixes it (every extension module reads it there), after Python's object header,
    which is not the same in every build of Python; so it is looked for.
    """
    probes = [np.empty(size, np.uint8) for size in (1, 100, 10_000)]
    found: set[int] = set(range(0, np.ndarray.__basicsize__, 8))
    for probe in probes:
        words = (ctypes.c_uint64 * (np.ndarray.__basicsize__ // 8)).from_address(id(probe))
        found &= {8 * i for i, word in enumerate(words) if word == probe.ctypes.data}
    if sys.implementation.name != "cpython" or len(found) != 1:
        raise WhiteboxError("this Python is not supported: numpy's arrays have an unknown layout")
    return found.pop()


_word_at = ctypes.c_uint64.from_address


def address_of(array: np.ndarray) -> int:
    """Where an array's data begins; many times faster than `array.ctypes.data`."""
    value: int = _word_at(id(array) + array_pointer_offset()).value
    return value


def dl_type(dtype: str) -> tuple[int, int]:
    """(code, bits) of a DLDataType for an ONNX dtype that kernels can take."""
    stem = dtype.rstrip("0123456789")
    bits = int(dtype[len(stem) :] or 8)
    return _DL_CODES[stem], bits


def llvm_loaded() -> bool:
    """Whether TVM's compiler, and with it LLVM's code generators, is mapped into this process."""
    try:
        return "libtvm_compiler" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


@cache
def _session(threads: int) -> Any:
    """The process's linker session; TVM's runtime is loaded before it."""
    os.environ.setdefault("TVM_NUM_THREADS", str(threads))
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", SPIN_COUNT)
    # The pool would pin its workers, on top of other processes' workers.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    with without_torch():
        import tvm_ffi  # (its library must come first)

    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise CompileError("apache-tvm is not installed; pip install apache-tvm")
    library = Path(spec.origin).parent / "lib" / "libtvm_runtime.so"
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    from tvm_ffi_orcjit import ExecutionSession

    _Pool.default = int(os.environ["TVM_NUM_THREADS"])
    _Pool.configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    return ExecutionSession()


class _Pool(threading.local):
    """TVM's thread pool of the calling thread: how many of its threads a kernel uses."""

    configure: ClassVar[Any] = None  # there once TVM is loaded
    default: ClassVar[int] = 0
    threads = 0  # 0: never said, so as many as by default


_pool = _Pool()


def use_threads(count: int, most: int | None = None) -> None:
    """Have the kernels that this thread calls from now on share their loops among `count` threads.

    TVM makes each thread a pool as large as it first needs: `most` is what will ever be asked for,
    by default as many as any thread may want. Does nothing before a kernel is loaded.
    """
    known = _pool.threads or _pool.default
    if known == count or _pool.configure is None:
        return
    big_cores = 1
    most = _pool.default if most is None else most
    if not _pool.threads and most > count:
        _pool.configure(big_cores, most, ["0"] * most)
    # (of the list of cores only the length counts, as threads are not bound to cores)
    _pool.configure(big_cores, count, ["0"] * count)
    _pool.threads = count


class KernelLibrary:
    """Functions of the kernels in one cache, loaded on first use and shared by all plans."""

    def __init__(self, cache: KernelCache, threads: int) -> None:
        self._cache = cache
        self._threads = threads
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self._brief: dict[str, Any] = {}
        self._lock = threading.Lock()

    def function(self, key: str) -> Any:
        """The kernel's `tvm_ffi.Function`. Raises CompileError when it is not in the cache."""
        with self._lock:
            return self._linked(key)[1]

    def _linked(self, key: str) -> tuple[Any, Any]:
        """The kernel's module and function; the lock is held."""
        if key not in self._loaded:
            if not self._cache.has(key):
                raise CompileError(
                    f"kernel {key[:12]} is missing from {self._cache.folder}; "
                    "register the model again"
                )
            path = self._cache.path(self._cache.resolve(key))
            module = _session(self._threads).load_module(str(path))
            self._loaded[key] = (module, module.get_function(ENTRY))
        return self._loaded[key]

    def brief(self, key: str) -> Any:
        """As `function`, but Python's other threads stand still during the call.

        Where a call takes a few microseconds, to let another thread run and to get the turn back
        from it takes many times as long.
        """
        with self._lock:
            found = self._brief.get(key)
            if found is None:
                module, _ = self._linked(key)
                found = self._brief[key] = module.get_function(ENTRY)
                found.release_gil = False
            return found

    def forget(self, keys: Iterable[str]) -> None:
        """Let go of kernels: each is unlinked once the last plan that calls it is gone."""
        with self._lock:
            for key in keys:
                self._loaded.pop(key, None)
                self._brief.pop(key, None)

    def __len__(self) -> int:
        return len(self._loaded)
