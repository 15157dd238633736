"""Tuning: other schedules give the same answers, and what wins is found by other processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import whitebox
from tests.test_passes import conv_chain
from tests.test_runtime import batch, mlp
from whitebox.compiler.cache import KernelCache, variant_key
from whitebox.ir import onnx_io, onnx_schema


def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 24, 9, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "x"), [(mlp(1), batch(24)), (onnx_io.dump(conv_chain()), image())]
)
def test_every_schedule_of_a_kernel_answers_alike(
    tmp_path: Path, model: onnx.ModelProto, x: np.ndarray
) -> None:
    (expected,) = onnx_schema.evaluate_graph(onnx_io.load(model), [x]).values()
    home = tmp_path / "home"
    with whitebox.Runtime(home) as runtime:
        runtime.register(model, "model", shapes={"x": x.shape})
        found = runtime.tune("model", feeds={"x": x}, seconds=60)
    assert found and all(tuned.schedules > 1 for tuned in found)
    # Have the kernels resolve to their other schedules, whatever won.
    cache = KernelCache(home / "kernels")
    for variant in range(1, max(tuned.schedules for tuned in found)):
        for tuned in found:
            cache.choose(tuned.kernel, variant_key(tuned.kernel, variant % tuned.schedules))
        with whitebox.Runtime(home) as runtime:
            (answer,) = runtime.predict("model", {"x": x}).values()
            np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)
            assert runtime.stats()["kernels_compiled"] == 0


def test_a_choice_whose_kernel_is_gone_is_ignored(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.choose("ab" * 20, "cd" * 20)
    assert cache.resolve("ab" * 20) == "ab" * 20
