"""Low precision from end to end: sessions, versions side by side, 16-bit weights, the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

import whitebox
from whitebox.errors import InvalidInput
from whitebox.runtime.accuracy import compare
from whitebox.runtime.explain import Explanation
from whitebox.server.data_plane import DataPlane

K, HIDDEN, CLASSES = 300, 200, 5

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
classifier (TYPE[N, 300] x) => (TYPE[N, 5] y)
<TYPE[300, 200] w1, TYPE[200, 5] w2>
{
   h = MatMul(x, w1)
   a = Relu(h)
   y = MatMul(a, w2)
}
"""


def weights(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    shapes = ((K, HIDDEN), (HIDDEN, CLASSES))
    return tuple((random.standard_normal(s) / np.sqrt(s[0])).astype(dtype) for s in shapes)  # type: ignore[return-value]


def classifier(dtype: type = np.float32) -> onnx.ModelProto:
    """Two products, of which the first has weights large enough to be worth narrowing."""
    name = "float" if dtype is np.float32 else "float16"
    model = onnx.parser.parse_model(TEXT.replace("TYPE", name))
    del model.graph.initializer[:]
    for each, values in zip(("w1", "w2"), weights(dtype), strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, each))
    return model


def rows(n: int = 3, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, K)).astype(dtype)


def decisions(explanation: Explanation) -> list[str]:
    (report,) = (r for r in explanation.passes if r.name == "lower_precision")
    return [f"{decision.action}: {decision.reason}" for decision in report.decisions]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[whitebox.Runtime]:
    with whitebox.Runtime(tmp_path_factory.mktemp("precision")) as runtime:
        yield runtime


def test_bf16_rounds_the_weights_that_it_says_it_does() -> None:
    session = whitebox.InferenceSession(classifier(), precision="bf16")
    (answer,) = session.run(None, {"x": rows()})
    w1, w2 = weights(np.float32)
    exact = np.maximum(rows() @ w1, 0) @ w2
    assert 1e-5 < np.abs(answer - exact).max() < 0.05
    said = decisions(session.explain({"x": rows()}))
    assert any("in bf16" in reason or "bfloat16" in reason for reason in said)


def test_an_unknown_precision_is_refused(runtime: whitebox.Runtime) -> None:
    with pytest.raises(InvalidInput, match="fp8"):
        whitebox.InferenceSession(classifier(), precision="fp8")
    with pytest.raises(InvalidInput, match="fp8"):
        runtime.register(classifier(), "refused", precision="fp8")
    assert "refused" not in [info.name for info in runtime.models()]


def test_precisions_of_a_model_are_versions_side_by_side(runtime: whitebox.Runtime) -> None:
    assert runtime.register(classifier(), "both").version == 1
    low = runtime.register(classifier(), "both", precision="bf16")
    assert (low.version, low.created, low.new_bytes) == (2, True, 0)
    again = runtime.register(classifier(), "both", precision="bf16")
    assert (again.version, again.created) == (2, False)
    assert runtime.register(classifier(), "both").version == 1
    assert [runtime.model("both", v).precision for v in (1, 2)] == ["f32", "bf16"]
    exact, rounded = (runtime.predict("both", {"x": rows()}, version=v)["y"] for v in (1, 2))
    w1, w2 = weights(np.float32)
    np.testing.assert_allclose(exact, np.maximum(rows() @ w1, 0) @ w2, rtol=1e-4, atol=1e-5)
    assert 1e-5 < np.abs(exact - rounded).max() < 0.05
    shown = DataPlane(runtime).model_metadata("both", "2")
    assert shown["parameters"] == {"precision": "bf16"}
    assert str(runtime.explain("both", 2)).startswith("both version 2 in bf16 at ")


def test_a_version_keeps_its_precision_in_another_process(runtime: whitebox.Runtime) -> None:
    runtime.register(classifier(), "kept", precision="bf16")
    answer = runtime.predict("kept", {"x": rows()})["y"]
    with whitebox.Runtime(runtime.home) as other:
        np.testing.assert_array_equal(other.predict("kept", {"x": rows()})["y"], answer)


def test_half_weights_stay_half_and_change_nothing() -> None:
    x = rows(2, np.float16)
    session = whitebox.InferenceSession(classifier(np.float16))
    (answer,) = session.run(None, {"x": x})
    w1, w2 = weights(np.float16)
    hidden = np.maximum(x.astype(np.float32) @ w1.astype(np.float32), 0)
    exact = hidden @ w2.astype(np.float32)
    np.testing.assert_allclose(answer.astype(np.float32), exact, rtol=2e-3, atol=2e-3)
    explained = session.explain({"x": x})
    assert any("f16" in reason for reason in decisions(explained))
    assert explained.parameter_bytes < K * HIDDEN * 3


def test_the_report_measures_what_a_precision_costs(runtime: whitebox.Runtime) -> None:
    runtime.register(classifier(), "measured")
    report = runtime.accuracy("measured", precision="bf16")
    (output,) = report.outputs
    assert (report.precision, report.samples, output.name) == ("bf16", 8, "y")
    assert 0 < output.max_relative < 0.05 and output.cosine > 0.999
    assert output.top1 is not None
    assert "y " in str(report) and "%" in str(report)
    (same,) = runtime.accuracy("measured", precision="f32").outputs
    assert (same.max_abs, same.top1) == (0, 1)
    given = runtime.accuracy("measured", feeds={"x": rows(7)})
    assert given.samples == 1
    with pytest.raises(InvalidInput, match="fp8"):
        runtime.accuracy("measured", precision="fp8")
    session = whitebox.InferenceSession(classifier(), precision="bf16")
    assert session.accuracy({"x": rows(7)}).outputs == given.outputs


@pytest.mark.parametrize(
    ("exact", "rounded", "expected"),
    [
        ([[1.0, -4.0]], [[1.5, -4.0]], {"max_abs": 0.5, "max_relative": 0.125, "mean_abs": 0.25}),
        ([[1.0, 2.0], [3.0, 1.0]], [[2.1, 2.0], [3.0, 1.0]], {"top1": 0.5}),
        ([1.0, np.inf, np.nan], [1.0, np.inf, np.nan], {"max_abs": 0.0, "top1": None}),
        ([1.0, 2.0], [1.0, np.nan], {"max_abs": np.inf, "cosine": 1.0}),
        ([0.0, 0.0], [0.0, 0.0], {"cosine": 1.0, "max_relative": 0.0}),
        ([3.0, 0.0], [0.0, 2.0], {"cosine": 0.0}),
    ],
)
def test_comparison(exact: Any, rounded: Any, expected: dict[str, float]) -> None:
    found = compare("y", [np.array(exact, np.float32)], [np.array(rounded, np.float32)])
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value)


def test_comparison_of_labels() -> None:
    found = compare("y", [np.array([1, 2]), np.array([3, 4])], [np.array([1, 2]), np.array([3, 8])])
    assert (found.top1, found.max_abs) == (0.75, 4)
    words = compare("y", [np.array(["a", "b"], object)], [np.array(["a", "c"], object)])
    assert words.top1 == 0.5


def test_bfloat16_rounds_to_nearest_even() -> None:
    """What the passes rely on: numpy's bfloat16 is the format that CPUs have."""
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8], np.float32)
    assert halfway.astype(ml_dtypes.bfloat16).astype(np.float32).tolist() == [1.0, 1.015625, -1.0]
