"""Tuning: other schedules give the same answers, and what wins is found by other processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import whitebox
from tests.test_runtime import batch, mlp, mlp_answer
from whitebox.compiler.cache import KernelCache, variant_key


def test_every_schedule_of_a_kernel_answers_alike(tmp_path: Path) -> None:
    with whitebox.Runtime(tmp_path / "home") as runtime:
        runtime.register(mlp(1), "model", shapes={"x": (24, 32)})
        found = runtime.tune("model", feeds={"x": batch(24)}, seconds=60)
        assert found and all(tuned.schedules > 1 for tuned in found)
        keys = [tuned.kernel for tuned in found]
    # Have every kernel resolve to its last schedule, whatever won.
    for key, tuned in zip(keys, found, strict=True):
        cache = KernelCache(tmp_path / "home" / "kernels")
        cache.choose(key, variant_key(key, tuned.schedules - 1))
        assert cache.resolve(key) != key
        with whitebox.Runtime(tmp_path / "home") as runtime:
            answer = runtime.predict("model", {"x": batch(24)})["y"]
            np.testing.assert_allclose(answer, mlp_answer(mlp(1), batch(24)), rtol=1e-4)
            assert runtime.stats()["kernels_compiled"] == 0


def test_a_choice_whose_kernel_is_gone_is_ignored(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.choose("ab" * 20, "cd" * 20)
    assert cache.resolve("ab" * 20) == "ab" * 20
