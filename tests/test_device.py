"""Memory of results: small ones share a block, large ones come back once they are dropped."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import onnx.parser
import pytest

import whitebox
from whitebox.runtime.device import BlockPool, CpuDevice
from whitebox.runtime.memory import ALIGNMENT

LARGE = (1, 64, 512)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3,), (5, 7), LARGE])
def test_results_are_ordinary_arrays(dtype: str, shape: tuple[int, ...]) -> None:
    make = CpuDevice().arrays(dtype, shape)
    for array in (*make(), *make()):
        assert type(array) is np.ndarray and array.shape == shape and array.dtype.name == dtype
        assert array.flags.c_contiguous and array.flags.writeable
        assert address(array) % ALIGNMENT == 0
        array[...] = 1


def view(array: np.ndarray) -> object:
    return array[0, 3:5].T


def memory(array: np.ndarray) -> object:
    return memoryview(array)


def capsule(array: np.ndarray) -> object:
    return array.__dlpack__()


def reshaped(array: np.ndarray) -> object:
    return array.reshape(-1).view(np.int8)[5:6]


@pytest.mark.parametrize("hold", [view, memory, capsule, reshaped])
def test_memory_is_used_again_only_when_nobody_sees_it(
    hold: Callable[[np.ndarray], object],
) -> None:
    make = CpuDevice().arrays("float32", LARGE)
    (first,) = make()
    place = address(first)
    held = hold(first)
    del first
    (second,) = make()
    assert address(second) != place
    del held
    (third,) = make()
    assert address(third) == place
    np.testing.assert_array_equal(second.shape, third.shape)


def test_a_pool_remembers_no_more_than_it_may() -> None:
    pool = BlockPool(most_bytes=1000, most_blocks=3)
    blocks = [pool.take(size) for size in (400, 400, 400)]
    places = [address(block) for block in blocks]
    del blocks
    taken = [pool.take(400) for _ in range(2)]
    assert {address(block) for block in taken} == set(places[1:])  # the first is forgotten
    large = pool.take(5000)
    assert len(large) == 5000
    small = [pool.take(10) for _ in range(10)]
    assert len({address(block) for block in small}) == 10


def test_threads_never_share_a_block() -> None:
    pool = BlockPool()
    failures: list[int] = []

    def work(mark: int) -> None:
        for _ in range(2000):
            block = pool.take(4096)
            block[:] = mark
            if not (block == mark).all():
                failures.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_results_outlive_the_session_that_made_them() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[N] x) => (float[N] y) { y = Neg(x) }""")
    session = whitebox.InferenceSession(model)
    x = np.arange(100_000, dtype=np.float32)
    kept = []
    for _ in range(40):
        kept.append(session.run(None, {"x": x})[0])
        session.run(None, {"x": x + 1})  # its memory comes back at once
    del session
    gc.collect()
    for y in kept:
        np.testing.assert_array_equal(y, -x)
    assert len({address(y) for y in kept}) == len(kept)
