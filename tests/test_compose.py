"""Pipelines: composed models answer as their parts do, run in turn and combined in numpy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper

import whitebox
from tests.test_cli import assert_fails, run_here
from whitebox.errors import InvalidPipeline
from whitebox.ir import onnx_io, onnx_schema
from whitebox.ir.compose import compose
from whitebox.ir.graph import Graph
from whitebox.ir.pipeline import ModelStep, read_pipeline
from whitebox.passes.verify import verify

FEATURES, CLASSES = 4, 3
DOCS = Path(__file__).parent.parent / "docs"
FIXTURES = Path(__file__).parent / "fixtures"


def classifier(
    seed: int, labels: list[Any], *, zip_map: bool = False, batch: str | int = "N"
) -> onnx.ModelProto:
    """A linear classifier as scikit-learn's are exported: (label, scores), scores perhaps maps."""
    random = np.random.default_rng(seed)
    text = isinstance(labels[0], str)
    kind = TensorProto.STRING if text else TensorProto.INT64
    named = {"classlabels_strings" if text else "classlabels_ints": labels}
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
            coefficients=random.standard_normal(FEATURES * CLASSES).tolist(),
            intercepts=random.standard_normal(CLASSES).tolist(), post_transform="SOFTMAX", **named,
        )
    ]  # fmt: skip
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])
    if zip_map:
        named = {"classlabels_strings" if text else "classlabels_int64s": labels}
        nodes.append(helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", **named))
        value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        maps = helper.make_sequence_type_proto(helper.make_map_type_proto(kind, value))
        scores = helper.make_value_info("maps", maps)
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info("label", kind, [batch]), scores],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    return model


def text_model(text: str, seed: int) -> onnx.ModelProto:
    """A model in text form, its initializers (written as 0) drawn from a seed."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)
    random = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        array = random.standard_normal(tensor.dims).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


# Looks at an image in NHWC, gives features in NHWC: the transposes meet at the border.
EYE = """
eye (float[N, 8, 8, 3] image) => (float[M, 8, 8, 16] features)
<float[16, 3, 3, 3] w = {0}, float[16] b = {0}>
{
   planes = Transpose<perm = [0, 3, 1, 2]>(image)
   c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(planes, w, b)
   r = Relu(c)
   features = Transpose<perm = [0, 2, 3, 1]>(r)
}
"""
JUDGE = """
judge (float[batch, 8, 8, 16] x) => (float[batch, 5] scores)
<float[16, 16, 3, 3] w = {0}, float[16] b = {0}, float[16, 5] v = {0}>
{
   planes = Transpose<perm = [0, 3, 1, 2]>(x)
   c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(planes, w, b)
   r = Relu(c)
   g = GlobalAveragePool(r)
   f = Flatten(g)
   p = MatMul(f, v)
   scores = Softmax(p)
}
"""

NUMBERS = [0, 1, 2]
ANIMALS = ["cow", "ant", "bee"]
MODELS: dict[str, onnx.ModelProto] = {
    **{f"n{seed}": classifier(seed, NUMBERS) for seed in range(3)},
    **{f"s{seed}": classifier(seed, ANIMALS) for seed in range(3)},
    **{f"z{seed}": classifier(seed, NUMBERS, zip_map=True) for seed in range(2)},
    "fixed": classifier(5, NUMBERS, batch=1),
    "eye": text_model(EYE, 1),
    "judge": text_model(JUDGE, 2),
}


def parts(spec: dict[str, Any]) -> dict[str, Graph]:
    """The graphs of a pipeline's models, as the registry would give them."""
    steps = spec["steps"].items()
    return {
        step: onnx_io.load(MODELS[what["model"].partition("@")[0]], what["model"])
        for step, what in steps
        if "model" in what
    }


def composed(spec: dict[str, Any]) -> Graph:
    graph = compose(read_pipeline(spec), "pipeline", parts(spec))
    verify(graph)
    return graph


def by_onnxruntime(name: str, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(MODELS[name].SerializeToString())
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def classified(x: np.ndarray) -> dict[str, dict[str, Any]]:
    return {name: by_onnxruntime(name, {"x": x}) for name in MODELS if name[0] in "nsz"}


def features(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, FEATURES)).astype(np.float32)


def vote(labels: list[np.ndarray]) -> np.ndarray:
    """The first in order of the commonest, row by row."""
    rows = [
        sorted(row, key=lambda label: (-list(row).count(label), label))
        for row in zip(*labels, strict=True)
    ]
    return np.array([row[0] for row in rows])


CLASSIFIERS = {name: {"model": name} for name in MODELS if name[0] in "nsz"}
COMBINED: dict[str, Any] = {
    "mean": {"average": ["n0.scores", "n1.scores"]},
    "mix": {"weighted": ["n0.scores", "n1.scores", "mean"], "weights": [0.2, 0.3, 0.6]},
    "label": {"vote": ["n0.label", "n1.label", "n2.label"]},
    "animal": {"vote": ["s0.label", "s1.label", "s2.label"]},
    "both": {"stack": ["n0.label", "n1.label"]},
    "deep": {"stack": ["n0.scores", "n1.scores"], "axis": -1},
    "wide": {"concat": ["n0.scores", "mean"]},
    "tall": {"concat": ["s0.label", "s1.label"], "axis": 0},
    "maps": {"average": ["z0.maps", "z1.maps", "n2.scores"]},
    "routed": {
        "router": "s0.label", "cases": {"ant": "n0.scores", "cow": "n1.scores"},
        "default": "n2.scores",
    },
    "named": {"router": "n0.label", "cases": {0: "s0.label", 2: "s1.label"}, "default": "s2.label"},
    "bound": {"router": "n0.label", "threshold": 1, "above": "mean", "below": "n2.scores"},
}  # fmt: skip


def expected(parts: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """What COMBINED makes of its parts' answers."""
    n = [parts[f"n{i}"]["scores"] for i in range(3)]
    number, animal = ([parts[f"{kind}{i}"]["label"] for i in range(3)] for kind in "ns")
    animal = [np.asarray(labels, object) for labels in animal]
    mean = (n[0] + n[1]) / 2
    maps = [[[*row.values()] for row in parts[f"z{i}"]["maps"]] for i in range(2)]
    rows = animal[0][:, None]
    return {
        "mean": mean,
        "mix": 0.2 * n[0] + 0.3 * n[1] + 0.6 * mean,
        "label": vote(number),
        "animal": vote(animal),
        "both": np.stack(number[:2], 1),
        "deep": np.stack(n[:2], -1),
        "wide": np.concatenate([n[0], mean], 1),
        "tall": np.concatenate(animal[:2]),
        "maps": (np.array(maps[0]) + maps[1] + n[2]) / 3,
        "routed": np.where(rows == "ant", n[0], np.where(rows == "cow", n[1], n[2])),
        "named": np.where(
            number[0] == 0, animal[0], np.where(number[0] == 2, animal[1], animal[2])
        ),
        "bound": np.where(number[0][:, None] >= 1, mean, n[2]),
    }


ENSEMBLE = {
    "steps": {**CLASSIFIERS, **COMBINED},
    "outputs": {name: name for name in COMBINED},
}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[whitebox.Runtime]:
    with whitebox.Runtime(tmp_path_factory.mktemp("home")) as runtime:
        for name, model in MODELS.items():
            if name[0] in "nszej":
                runtime.register(model, name)
        yield runtime


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_every_combiner_means_what_numpy_means(rows: int) -> None:
    graph, x = composed(ENSEMBLE), features(rows)
    wanted, actual = expected(classified(x)), onnx_schema.evaluate_graph(graph, {"x": x})
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_same(actual[name], value)
    if rows == 40:  # ties, and all ways of the routers, were met
        assert len(set(map(tuple, wanted["both"]))) > 3
        assert set(classified(x)["s0"]["label"]) >= {"ant", "bee"}


def assert_same(actual: Any, value: np.ndarray) -> None:
    assert np.shape(actual) == value.shape
    if value.dtype.kind == "f":
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6)
    else:
        assert (np.asarray(actual, object) == value.astype(object)).all()


LOOK = {
    "steps": {
        "eye": {"model": "eye"},
        "judge": {"model": "judge", "inputs": {"x": "eye.features"}},
    },
    "outputs": {"scores": "judge.scores", "features": "eye"},
}


def test_images_through_two_networks(runtime: whitebox.Runtime) -> None:
    done = runtime.compose(LOOK, "look")
    # Weights are the originals', and the first convolution is the very kernel.
    assert (done.created, done.new_bytes) == (True, 0)
    assert done.shared_bytes > 0 and done.kernels_reused > 0
    for rows in (1, 3):
        random = np.random.default_rng(rows)
        image = random.standard_normal((rows, 8, 8, 3)).astype(np.float32)
        actual = runtime.predict("look", {"image": image})
        features = by_onnxruntime("eye", {"image": image})["features"]
        scores = by_onnxruntime("judge", {"x": features})["scores"]
        np.testing.assert_allclose(actual["features"], features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(actual["scores"], scores, rtol=1e-4, atol=1e-5)


def test_passes_work_across_the_border(runtime: whitebox.Runtime) -> None:
    """Between the two are transposes from NCHW and back, which nobody needs."""
    spec = {"steps": LOOK["steps"], "outputs": {"scores": "judge"}}
    runtime.compose(spec, "judged")
    image = np.zeros((1, 8, 8, 3), np.float32)
    one = runtime.explain("eye", feeds={"image": image})
    other = runtime.explain("judge", feeds={"x": np.zeros((1, 8, 8, 16), np.float32)})
    both = runtime.explain("judged", feeds={"image": image})
    assert len(both.steps) <= len(one.steps) + len(other.steps) - 2


def test_an_ensemble_in_one_native_call(runtime: whitebox.Runtime) -> None:
    combined = {name: COMBINED[name] for name in ("mean", "label", "animal", "routed", "maps")}
    spec = {
        "steps": {**CLASSIFIERS, **combined},
        "outputs": {**{name: name for name in combined}, "z": "z0.maps"},
    }
    assert runtime.compose(spec, "ensemble").new_bytes == 0
    for rows in (1, 3):
        x = features(rows)
        parts = classified(x)
        actual, wanted = runtime.predict("ensemble", {"x": x}), expected(parts)
        for name in combined:
            assert_same(actual[name], wanted[name])
        for row, other in zip(actual["z"], parts["z0"]["maps"], strict=True):
            assert row == pytest.approx(other, rel=1e-5)


def test_versions_are_pinned(runtime: whitebox.Runtime) -> None:
    runtime.register(classifier(7, NUMBERS), "moving")
    spec = {"steps": {"a": {"model": "moving"}}, "outputs": {"scores": "a.scores"}}
    runtime.compose(spec, "pinned")
    x = features(1)
    before = runtime.predict("pinned", {"x": x})["scores"]
    runtime.register(classifier(8, NUMBERS), "moving")
    np.testing.assert_array_equal(runtime.predict("pinned", {"x": x})["scores"], before)
    assert not runtime.compose({**spec, "steps": {"a": {"model": "moving@1"}}}, "pinned").created
    assert runtime.compose(spec, "pinned").version == 2
    assert runtime.model("pinned").metadata["parts"] == {"a": "moving@2"}
    assert runtime.model("pinned", 1).metadata["parts"] == {"a": "moving@1"}
    runtime.unregister("moving")
    np.testing.assert_array_equal(runtime.predict("pinned", {"x": x}, version=1)["scores"], before)
    runtime.unregister("pinned")


def test_free_dimensions_meet() -> None:
    x = composed(ENSEMBLE).model.inputs[0][1]
    assert x.tensor.shape == ("N", FEATURES)
    look = composed(LOOK)
    # `judge` calls its batch otherwise; what `eye` says of its result does not matter.
    assert look.model.inputs[0][1].tensor.shape == ("N", 8, 8, 3)
    assert [node.tensor.shape for _, node in look.model.outputs] == [("N", 5), ("N", 8, 8, 16)]


def test_a_fixed_batch_fixes_it_for_all() -> None:
    spec = {
        "steps": {
            "a": {"model": "n0"},
            "b": {"model": "fixed"},
            "m": {"average": ["a.scores", "b.scores"]},
        },
        "outputs": {"y": "m"},
    }
    ((_, x),) = composed(spec).model.inputs
    assert x.tensor.shape == (1, FEATURES)


def test_free_dimensions_that_do_not_meet_keep_apart() -> None:
    spec = {
        "inputs": ["left", "right"],
        "steps": {
            "a": {"model": "n0", "inputs": {"x": "left"}},
            "b": {"model": "n1", "inputs": {"x": "right"}},
            "both": {"concat": ["a.label", "b.label"], "axis": 0},
        },
        "outputs": {"y": "both"},
    }
    shapes = [node.tensor.shape for _, node in composed(spec).model.inputs]
    assert shapes == [("N", FEATURES), ("N_2", FEATURES)]


def test_what_steps_have_in_common_is_there_once() -> None:
    once = {"steps": {"a": {"model": "n0"}}, "outputs": {"y": "a.scores"}}
    twice = {
        "steps": {"a": {"model": "n0"}, "b": {"model": "n0"}},
        "outputs": {"y": "a.scores", "z": "b.scores"},
    }
    nodes = set(composed(twice).nodes)
    # The first step reads input 0, as in its model: its nodes are the model's own.
    assert nodes == set(composed(once).nodes) < set(parts(once)["a"].nodes)


def test_a_vote_of_strings_in_standard_operators() -> None:
    spec = {
        "steps": {**{f"s{i}": {"model": f"s{i}"} for i in range(3)}, "animal": COMBINED["animal"]},
        "outputs": {"animal": "animal"},
    }
    model, x = onnx_io.dump(composed(spec)), features(20)
    onnx.checker.check_model(model, full_check=True)
    (animal,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    assert list(animal) == list(expected(classified(x))["animal"])


def test_the_example_of_the_documentation() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "pipelines.md").read_text(), re.DOTALL)
    pipeline = read_pipeline(text.encode())
    assert pipeline.name == "triage"
    breeds = "breeds (float[N, 4] x) => (float[N, 3] scores)\n<float[4, 3] w = {0}>"
    kind = """kind (float[B, 4] pixels) => (string[B] label) <string[2] names = {"cat", "dog"}>
    { n = ArgMax<axis = 1, keepdims = 0>(pixels)  c = Clip(n, , one)  label = Gather(names, c) }"""
    kind = kind.replace("}>", "}, int64 one = {1}>")
    graphs = {
        "cats": onnx_io.load(text_model(breeds + "{ scores = MatMul(x, w) }", 1)),
        "dogs": onnx_io.load(text_model(breeds + "{ scores = MatMul(x, w) }", 2)),
        "kind": onnx_io.load(onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]>\n' + kind)),
    }  # fmt: skip
    answer = onnx_schema.evaluate_graph(
        compose(pipeline, "triage", graphs), [np.eye(4, dtype=np.float32)]
    )
    assert list(answer["kind"]) == ["cat", "dog", "dog", "dog"]
    cats, dogs = (
        onnx_schema.evaluate_graph(graphs[step], [np.eye(4, dtype=np.float32)])["scores"]
        for step in ("cats", "dogs")
    )
    np.testing.assert_array_equal(answer["scores"], [cats[0], *dogs[1:]])


def misfits() -> list[object]:
    """(pipeline, what is wrong with it) of the fixtures."""
    cases = (FIXTURES / "pipelines.txt").read_text().split("===\n")
    return [pytest.param(*case.split("---\n"), id=case.split("---\n")[1][:60]) for case in cases]


@pytest.mark.parametrize(("text", "message"), misfits())
def test_what_does_not_fit_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidPipeline) as raised:
        pipeline = read_pipeline(text.encode())
        models = {
            step: what.model for step, what in pipeline.steps.items() if isinstance(what, ModelStep)
        }
        compose(pipeline, "p", {step: onnx_io.load(MODELS[name]) for step, name in models.items()})
    assert str(raised.value) == f"the pipeline, {message.strip()}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "must be a mapping with steps and outputs"),
        (b"- 1\n- 2\n", "must be a mapping"),
        (b"steps: [", "line 1: "),
        (b"steps:\n  a: {model: n0}\n  a: {model: n1}\n", "line 3: the key 'a' is there twice"),
        (b"steps:\n  a: &a {model: n0}\n  b: *a\n", "an alias is met; write it out"),
        (b"steps: &s\n  a: *s\n", "an alias is met; write it out"),
        (b"name: !!python/name:os.system 'x'\n", "could not determine a constructor"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\x00\xff", "is no YAML"),
        (b"#" * (1 << 21), "larger than a pipeline can be"),
        (
            b"steps:\n  a:\n    model: n0\n    axis: 1\noutputs: {y: a}\n",
            "line 4: step 'a': a step",
        ),
        (b"steps:\n  a:\n    stack: [x]\n    axis: one\noutputs: {y: a}\n", "line 4: step 'a'"),
        (b"{? [1] : 2}", "a key is no text"),
    ],
)
def test_hostile_text(text: bytes, words: str) -> None:
    with pytest.raises(InvalidPipeline, match=re.escape(words)):
        read_pipeline(text)


def test_the_command(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "mean.yaml"
    with whitebox.Runtime(home) as runtime:
        runtime.register(MODELS["n0"], "first")
        runtime.register(MODELS["n1"], "second")
    lines = [
        "steps:",
        "  a: {model: first}",
        "  b: {model: second@1}",
        "  m: {average: [a.scores, b.scores]}",
        "outputs: {scores: m}",
    ]
    file.write_text("\n".join(lines))
    done = run_here(home, "compose", file)
    assert done.returncode == 0, done.stderr
    assert "mean version 1 registered" in done.stdout and "0 B new" in done.stdout
    shown = run_here(home, "show", "mean").stdout
    assert "a: first@1" in shown and "b: second@1" in shown
    assert "mean" in run_here(home, "list").stdout
    json = tmp_path / "other.json"
    spec = {"name": "same", "steps": {"a": {"model": "first"}}, "outputs": {"y": "a.label"}}
    json.write_bytes(msgspec.json.encode(spec))
    assert "same version 1" in run_here(home, "compose", json).stdout
    assert "other version 1" in run_here(home, "compose", json, "--name", "other").stdout
    lines[1] = "  a: {model: frist}"
    file.write_text("\n".join(lines))
    assert_fails(run_here(home, "compose", file), 66, "mean.yaml, line 2: step 'a'", "'first'?")
    lines[1] = "  a: {model: first@x}"
    file.write_text("\n".join(lines))
    assert_fails(run_here(home, "compose", file), 65, "line 2", "NAME@VERSION")
    assert_fails(run_here(home, "compose", tmp_path / "none.yaml"), 65, "there is no file")
    assert_fails(run_here(home, "compose", json, "--name", "../up"), 64, "not allowed")


def test_parts_in_two_precisions(runtime: whitebox.Runtime) -> None:
    runtime.register(MODELS["n0"], "narrow", precision="bf16")
    spec = {
        "steps": {"a": {"model": "narrow"}, "b": {"model": "n1"}, "m": COMBINED["both"]},
        "outputs": {"y": "m"},
    }
    spec["steps"]["m"] = {"stack": ["a.label", "b.label"]}
    with pytest.raises(InvalidPipeline, match="one precision"):
        runtime.compose(spec, "mixed")
    alone = {"steps": {"a": {"model": "narrow"}}, "outputs": {"y": "a.label"}}
    assert runtime.compose(alone, "narrow-too").created
    assert runtime.model("narrow-too").precision == "bf16"
