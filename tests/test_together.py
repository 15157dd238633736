"""Several models on one input: what they share is computed once, and no answer changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from whitebox.errors import InvalidInput, ModelNotFound
from whitebox.runtime.executable import Executable
from whitebox.runtime.runtime import Runtime

ENCODER = """
<ir_version: 10, opset_import: ["" : 21]>
head (float[N, 32] x) => (float[N, K] y, float[N, 32] embedding)
{
   a0 = MatMul(x, w0)
   embedding = Relu(a0)
   a1 = MatMul(embedding, w1)
   a2 = Tanh(a1)
   logits = Gemm(a2, weight, bias)
   y = Softmax(logits)
}
"""


def head(seed: int, classes: int = 3, name: str = "x") -> onnx.ModelProto:
    """A classifier of its own on an encoder that is always the same."""
    model = onnx.parser.parse_model(ENCODER.replace("K", str(classes)).replace("x)", f"{name})", 1))
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    weights = {
        "w0": shared.standard_normal((32, 32)),
        "w1": shared.standard_normal((32, 32)),
        "weight": own.standard_normal((32, classes)),
        "bias": own.standard_normal(classes),
    }
    for key, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), key))
    model.graph.node[0].input[0] = name
    onnx.checker.check_model(model)
    return model


STRINGS = """
<ir_version: 10, opset_import: ["" : 21]>
text (string[N] words) => (string[N] lower, int64[N] same)
{
   lower = StringNormalizer<case_change_action = "LOWER">(words)
   equal = Equal(lower, words)
   same = Cast<to = 7>(equal)
}
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("home")) as runtime:
        for number in range(4):
            runtime.register(head(number), f"head{number}")
        runtime.register(head(9, classes=5), "wide")
        runtime.register(head(0, name="z"), "renamed")
        runtime.register(onnx.parser.parse_model(STRINGS), "text")
        yield runtime


def feeds(rows: int, **more: Any) -> dict[str, Any]:
    return {"x": np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32), **more}


def assert_same(got: Mapping[str, np.ndarray], alone: Mapping[str, np.ndarray]) -> None:
    assert list(got) == list(alone)
    for name, value in got.items():
        np.testing.assert_array_equal(value, alone[name], strict=True)


# 1 has kernels of its own; 3 and 5 are answered by kernels for every size, until they are hot
@pytest.mark.parametrize("rows", [1, 3, 5, 3, 3, 3])
def test_answers_are_those_of_each_model_alone_to_the_last_bit(runtime: Runtime, rows: int) -> None:
    names = ["head0", "head1", "wide", "head3"]
    given = feeds(rows)
    together = runtime.predict_together(names, given)
    queued = runtime.submit_together(names, given).result(60)
    runtime.preparer.background.wait()
    for name, got, other in zip(names, together, queued, strict=True):
        alone = runtime.predict(name, given)
        assert_same(got, alone)
        assert_same(other, alone)


def test_the_encoder_is_computed_once(runtime: Runtime) -> None:
    names = ["head0", "head1", "head2", "head3"]
    found = runtime.overlap(names)
    assert found.steps == (4, 4, 4, 4)
    assert found.distinct_steps == 2 + 4 * 2
    assert found.distinct_weight_bytes == 4 * (2 * 32 * 32 + 4 * (32 * 3 + 3))
    assert found.distinct_kernels == found.kernels[0]
    assert "MatMul+Relu (3× less)" in found.shared
    assert "together" in str(found)


def test_another_choice_of_models_reuses_the_stages(runtime: Runtime) -> None:
    runtime.predict_together(["head0", "head1", "head2"], feeds(1))
    compiled = runtime.stats()["kernels_compiled"]
    one = runtime.composer._stages._items.copy()
    runtime.predict_together(["head2", "head0"], feeds(1))
    assert runtime.composer._stages._items.keys() == one.keys()
    assert runtime.stats()["kernels_compiled"] == compiled


def test_a_model_twice_and_other_inputs_beside_it(runtime: Runtime) -> None:
    given = feeds(1, z=np.ones((1, 32), np.float32), words=np.array(["Ab", "c"], object))
    names = ["head0", ("head0", 1), "renamed", "text", "head0"]
    answers = runtime.predict_together(names, given)
    for name, got in zip(names, answers, strict=True):
        model = name if isinstance(name, str) else name[0]
        own = {spec.name for spec in runtime.model(model).inputs}
        assert_same(got, runtime.predict(model, {n: v for n, v in given.items() if n in own}))
    # Nobody's answer is another's memory.
    answers[0]["y"][...] = -1
    answers[0]["embedding"][...] = -1
    assert (answers[1]["y"] >= 0).all()
    assert (answers[4]["embedding"] >= 0).all()


def test_outputs_are_chosen_by_name(runtime: Runtime) -> None:
    given = feeds(1, words=np.array(["A"], object))
    first, second = runtime.predict_together(["head0", "text"], given, ["y", "same"])
    assert (list(first), list(second)) == (["y"], ["same"])
    with pytest.raises(InvalidInput, match="model text has none of the outputs asked for"):
        runtime.predict_together(["head0", "text"], given, ["y"])
    with pytest.raises(InvalidInput, match="none of these models has an output 'q'"):
        runtime.predict_together(["head0"], feeds(1), ["y", "q"])


@pytest.mark.parametrize(
    ("names", "more", "error", "message"),
    [
        ([], {}, InvalidInput, "names none"),
        (["head0", "nobody"], {}, ModelNotFound, "nobody"),
        (["head0", ("head1", 7)], {}, ModelNotFound, "no version 7"),
        (["head0"], {"q": np.ones(3)}, InvalidInput, "none of these models has an input 'q'"),
        (["head0", "text"], {}, InvalidInput, "model text.*words"),
    ],
)
def test_what_does_not_fit_is_said(
    runtime: Runtime, names: list[Any], more: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        runtime.predict_together(names, feeds(1, **more))


def test_models_that_take_one_input_in_two_types_are_asked_apart(runtime: Runtime) -> None:
    double = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> d (double[N, 32] x) => (double[N, 32] y) '
        "{ y = Neg(x) }"
    )
    runtime.register(double, "double")
    listed = {"x": feeds(1)["x"].tolist()}
    with pytest.raises(InvalidInput, match="one at a time"):
        runtime.predict_together(["head0", "double"], listed)
    found = runtime.overlap(["head0", "double"], feeds=listed)
    assert "no computation in common" in found.note
    assert "weights" in str(found)


def test_variants_of_a_real_network_share_all_but_their_head(
    real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = onnx.load(real_model("ppocr-cls"))
    last = next(node for node in reversed(model.graph.node) if node.op_type in ("MatMul", "Gemm"))
    values = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = node.attribute[0].t
    weight = values[last.input[1]]
    with Runtime(tmp_path / "home") as runtime:
        shapes = {model.graph.input[0].name: (1, 3, 48, 192)}
        for number in range(3):
            changed = numpy_helper.to_array(weight) * np.float32(1 + number)
            weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
            runtime.register(model, f"v{number}", shapes=shapes)
        given = {
            name: np.random.default_rng(1).standard_normal(dims).astype(np.float32)
            for name, dims in shapes.items()
        }
        names = ["v0", "v1", "v2"]
        for name, got in zip(names, runtime.predict_together(names, given), strict=True):
            assert_same(got, runtime.predict(name, given))
        found = runtime.overlap(names, feeds=given)
        # All steps of one, and of the others what comes after the weight that differs.
        assert found.distinct_steps <= found.steps[0] + 2 * 3
        plans = [
            call.work.plan
            for composite in runtime.composer._composites._items.values()
            for call in composite.calls
            if isinstance(call.work, Executable)
        ]
        assert max(len(plan.steps) for plan in plans) >= found.steps[0] - 3
