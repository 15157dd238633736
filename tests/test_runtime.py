"""The runtime in process: plans, memory, sharing, sessions, hostile arrays, concurrency."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest

import whitebox
from whitebox.errors import InvalidInput, InvalidName, ModelNotFound, Overloaded
from whitebox.ir import onnx_schema
from whitebox.runtime import runtime as runtime_module
from whitebox.runtime.memory import ALIGNMENT, Lifetime, plan_memory

MLP = """
<ir_version: 10, opset_import: ["" : 21]>
mlp (float[N, 32] x) => (float[N, 8] y)
<float[32, 64] w1, float[64] b1, float[64, 8] w2> {
   h = MatMul(x, w1)
   hb = Add(h, b1)
   a = Relu(hb)
   z = MatMul(a, w2)
   y = Softmax<axis = -1>(z)
}
"""


def mlp(seed: int) -> onnx.ModelProto:
    """One architecture; the seed gives the weights."""
    model = onnx.parser.parse_model(MLP)
    random = np.random.default_rng(seed)
    del model.graph.initializer[:]
    for name, shape in (("w1", (32, 64)), ("b1", (64,)), ("w2", (64, 8))):
        values = (random.standard_normal(shape) / 8).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def mlp_answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    w1, b1, w2 = map(onnx.numpy_helper.to_array, model.graph.initializer)
    z = np.maximum(x @ w1 + b1, 0) @ w2
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[whitebox.Runtime]:
    with whitebox.Runtime(tmp_path_factory.mktemp("runtime")) as runtime:
        yield runtime


PIPELINE = """
<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>
pipeline (float[N, 6] x) => (int64[N] label, float[N, 3] y) {{
   s = ai.onnx.ml.Scaler <offset = {offset}, scale = {scale}> (x)
   c = Mul(s, w)
   label, y = ai.onnx.ml.LinearClassifier <coefficients = {coefficients}, intercepts = {intercepts},
      classlabels_ints = [0, 1, 2], post_transform = "SOFTMAX"> (c)
}}"""


def pipeline(seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A classifier with few numbers of its own, as operators' attributes and as a short vector."""
    random = np.random.default_rng(seed)
    sizes = {"offset": 6, "scale": 6, "coefficients": 18, "intercepts": 3, "w": 6}
    own = {name: random.standard_normal(n).astype(np.float32) for name, n in sizes.items()}
    text = PIPELINE.format(**{name: values.tolist() for name, values in own.items()})
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(own["w"], "w"))
    return model, own


def batch(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 32)).astype(np.float32)


def test_pipelines_that_differ_in_short_vectors_and_coefficients_are_variants(
    runtime: whitebox.Runtime,
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    for seed in range(3):
        model, own = pipeline(seed)
        done = runtime.register(model, f"pipeline{seed}")
        assert seed == 0 or (done.kernels_compiled, done.created) == (0, True)
        z = (x - own["offset"]) * own["scale"] * own["w"]
        z = z @ own["coefficients"].reshape(3, 6).T + own["intercepts"]
        powers = np.exp(z - z.max(-1, keepdims=True))
        got = runtime.predict(f"pipeline{seed}", {"x": x})
        np.testing.assert_allclose(got["y"], powers / powers.sum(-1, keepdims=True), rtol=1e-5)
        np.testing.assert_array_equal(got["label"], z.argmax(-1))


def test_one_model_of_each_structure_is_loaded_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whitebox.Runtime(tmp_path) as runtime:
        for seed in range(3):
            runtime.register(mlp(seed), f"variant{seed}")
        runtime.register(pipeline(0)[0], "pipeline")
    for seconds, loaded in ((-1.0, 2), (60.0, 4)):
        monkeypatch.setattr(runtime_module, "WARM_SECONDS", seconds)
        with whitebox.Runtime(tmp_path) as runtime:
            runtime.warm()
            assert runtime.stats()["models_loaded"] == loaded
            assert runtime.stats()["kernels_compiled"] == 0


def test_variants_share_kernels_and_answer_with_their_own_weights(
    runtime: whitebox.Runtime,
) -> None:
    first = runtime.register(mlp(1), "variant-1")
    assert first.created and first.kernels_compiled > 0
    for seed in (2, 3):
        again = runtime.register(mlp(seed), f"variant-{seed}")
        assert again.created and again.kernels_compiled == 0
        assert again.kernels_reused == first.kernels_compiled
    for seed in (1, 2, 3):
        answer = runtime.predict(f"variant-{seed}", {"x": batch(1)})["y"]
        np.testing.assert_allclose(answer, mlp_answer(mlp(seed), batch(1)), rtol=1e-4)


def test_what_a_file_calls_shapes_is_not_what_it_is_registered_for(
    runtime: whitebox.Runtime,
) -> None:
    model = mlp(1)
    model.metadata_props.add(key="shapes", value="round")
    runtime.register(model, "shapes")
    runtime.warm()
    assert str(runtime.explain("shapes")).startswith("shapes version 1 in f32 at x [1, 32]")


def test_versions_are_immutable_and_the_newest_answers(runtime: whitebox.Runtime) -> None:
    assert runtime.register(mlp(1), "versions").version == 1
    same = runtime.register(mlp(1), "versions")
    assert (same.version, same.created) == (1, False)
    assert runtime.register(mlp(2), "versions").version == 2
    newest = runtime.predict("versions", {"x": batch(1)})["y"]
    np.testing.assert_allclose(newest, mlp_answer(mlp(2), batch(1)), rtol=1e-4)
    oldest = runtime.predict("versions", {"x": batch(1)}, version=1)["y"]
    np.testing.assert_allclose(oldest, mlp_answer(mlp(1), batch(1)), rtol=1e-4)
    runtime.unregister("versions", 2)
    assert runtime.model("versions").versions == (1,)
    runtime.unregister("versions")
    with pytest.raises(ModelNotFound, match="versions"):
        runtime.predict("versions", {"x": batch(1)})


def test_free_batch(runtime: whitebox.Runtime) -> None:
    runtime.register(mlp(4), "free")
    for n in (1, 2, 7):
        answer = runtime.predict("free", {"x": batch(n)})["y"]
        np.testing.assert_allclose(answer, mlp_answer(mlp(4), batch(n)), rtol=1e-4)
    assert runtime.predict("free", {"x": batch(0)})["y"].shape == (0, 8)


def test_another_process_sees_what_is_registered(runtime: whitebox.Runtime) -> None:
    with whitebox.Runtime(runtime.home) as other:
        runtime.register(mlp(5), "seen")
        other.refresh()
        assert "seen" in [info.name for info in other.models()]
        answer = other.predict("seen", {"x": batch(1)})["y"]
        np.testing.assert_allclose(answer, mlp_answer(mlp(5), batch(1)), rtol=1e-4)
        assert other.stats()["kernels_compiled"] == 0


def unaligned(x: np.ndarray) -> np.ndarray:
    buffer = np.zeros(x.nbytes + 4, np.uint8)
    start = 4 if (buffer.ctypes.data + 4) % 16 else 0
    view = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def barely_aligned(x: np.ndarray) -> np.ndarray:
    """As an allocator aligns, and no better."""
    buffer = np.zeros(x.nbytes + 64, np.uint8)
    start = (16 - buffer.ctypes.data) % 64
    view = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def strided(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((x.shape[0], 2 * x.shape[1]), x.dtype)
    wide[:, ::2] = x
    return wide[:, ::2]


def big_endian(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder(">"))


def read_only(x: np.ndarray) -> np.ndarray:
    frozen = x.copy()
    frozen.flags.writeable = False
    return frozen


def column_major(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def reversed_rows(x: np.ndarray) -> np.ndarray:
    return x[::-1].copy()[::-1]


@pytest.mark.parametrize(
    "form",
    [unaligned, barely_aligned, strided, big_endian, read_only, column_major, reversed_rows],
)
def test_any_numpy_array_gives_the_right_answer(runtime: whitebox.Runtime, form) -> None:  # type: ignore[no-untyped-def]
    runtime.register(mlp(6), "arrays")
    given = form(batch(5))
    before = given.copy()
    answer = runtime.predict("arrays", {"x": given})["y"]
    np.testing.assert_allclose(answer, mlp_answer(mlp(6), batch(5)), rtol=1e-4)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": batch(1), "z": batch(1)}, "no input 'z'"),
        ({"x": batch(1).astype(np.float64)}, "is float64, not float32"),
        ({"x": batch(1)[0]}, "has 1 dimensions"),
        ({"x": batch(1)[:, :31]}, "size 31 along axis 1, not 32"),
        ({"x": "text"}, "cannot be read as f32"),
        ({"x": [["a"] * 32]}, "cannot be read as f32"),
        ({"x": np.array([[object()] * 32])}, "is string, not float32"),
    ],
)
def test_feeds_that_do_not_fit(
    runtime: whitebox.Runtime, feeds: dict[str, object], message: str
) -> None:
    runtime.register(mlp(6), "strict")
    with pytest.raises(InvalidInput, match=message):
        runtime.predict("strict", feeds)


def test_lists_are_taken_as_onnxruntime_takes_them(runtime: whitebox.Runtime) -> None:
    runtime.register(mlp(6), "lists")
    answer = runtime.predict("lists", {"x": batch(2).tolist()})["y"]
    np.testing.assert_allclose(answer, mlp_answer(mlp(6), batch(2)), rtol=1e-4)


def test_names_that_are_not_allowed(runtime: whitebox.Runtime) -> None:
    for name in ("../evil", "", "a/b", ".hidden", "naïve"):
        with pytest.raises(InvalidName):
            runtime.register(mlp(1), name)
    with pytest.raises(InvalidName, match="give a name"):
        runtime.register(mlp(1))


def test_results_belong_to_the_caller(runtime: whitebox.Runtime) -> None:
    runtime.register(mlp(6), "owned")
    first = runtime.predict("owned", {"x": batch(3)})["y"]
    kept = first.copy()
    runtime.predict("owned", {"x": -batch(3)})
    np.testing.assert_array_equal(first, kept)


def test_many_threads_get_their_own_answers(runtime: whitebox.Runtime) -> None:
    runtime.register(mlp(7), "threads")
    runtime.predict("threads", {"x": batch(2)})
    failures: list[object] = []

    def ask(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((2, 32)).astype(np.float32)
        for _ in range(20):
            queued = runtime.submit("threads", {"x": x})
            direct = runtime.predict("threads", {"x": x})["y"]
            for answer in (direct, queued.result(30)["y"]):
                if not np.allclose(answer, mlp_answer(mlp(7), x), rtol=1e-3):
                    failures.append(seed)

    workers = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_session_has_the_face_of_onnxruntime(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "mlp.onnx"
    onnx.save(mlp(8), file)
    ours = whitebox.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = onnxruntime.InferenceSession(str(file))
    for face in (lambda s: s.get_inputs(), lambda s: s.get_outputs()):
        assert [(a.name, a.type, a.shape) for a in face(ours)] == [
            (a.name, a.type, a.shape) for a in face(theirs)
        ]
    np.testing.assert_allclose(
        ours.run(["y"], {"x": batch(4)})[0], theirs.run(["y"], {"x": batch(4)})[0], rtol=1e-4
    )
    with pytest.raises(InvalidInput, match="no output 'nope'"):
        ours.run(["nope"], {"x": batch(4)})
    with pytest.raises(InvalidInput, match="precision"):
        whitebox.InferenceSession(str(file), precision="f4")


def test_explain_says_what_was_done_and_what_it_costs(runtime: whitebox.Runtime) -> None:
    runtime.register(mlp(9), "explained")
    found = runtime.explain("explained")
    assert [report.name for report in found.passes] == [
        "fold", "simplify", "quantize", "layout", "lower_precision", "fuse", "verify",
    ]  # fmt: skip
    assert any("MatMul+Add+Relu" in step.label for step in found.steps)
    assert all(step.microseconds > 0 for step in found.steps)
    assert "matmul_to_panels" in str(found)


def test_outputs_that_are_inputs_constants_and_views() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[2, 3] x)
            => (float[2, 3] same, float[6] flat, float[2] c, float[2, 3] a, float[6] b)
        <float[2] w = {5, 6}, int64[1] shape = {-1}> {
           same = Identity(x)
           flat = Reshape(x, shape)
           c = Identity(w)
           a = Relu(x)
           b = Reshape(a, shape)
        }""")
    session = whitebox.InferenceSession(model)
    x = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    same, flat, c, a, b = session.run(None, {"x": x})
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(flat, x.reshape(-1))
    np.testing.assert_array_equal(c, [5, 6])
    np.testing.assert_array_equal(a, np.maximum(x, 0))
    np.testing.assert_array_equal(b, np.maximum(x, 0).reshape(-1))
    a[...] = 7  # results share no memory with each other or the input
    assert not np.any(b == 7) and not np.any(x == 7)


def test_what_has_no_kernel_runs_on_the_host() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[4] x, string[2] s) => (float[4] y, string[2] t, float[4] e) {
           e = Exp(x)
           t = StringConcat(s, s)
           y = Relu(x)
        }""")
    session = whitebox.InferenceSession(model)
    x = np.array([-1, 0, 1, 2], np.float32)
    y, t, e = session.run(None, {"x": x, "s": np.array(["a", "ß"], object)})
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    assert t.tolist() == ["aa", "ßß"]
    np.testing.assert_allclose(e, np.exp(x), rtol=1e-6)


def test_shapes_that_depend_on_the_data() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[N] x) => (int64[1, M] y) {
           y = NonZero(x)
        }""")
    session = whitebox.InferenceSession(model)
    for values in ([0, 1, 2], [0, 0], [3]):
        (y,) = session.run(None, {"x": np.array(values, np.float32)})
        np.testing.assert_array_equal(y, [np.flatnonzero(values)])


def test_calls_after_the_first_are_as_right() -> None:
    session = whitebox.InferenceSession(mlp(11))
    kept = []
    for turn in range(40):
        n = 1 + turn % 3
        x = np.random.default_rng(turn).standard_normal((n, 32)).astype(np.float32)
        for form in (lambda x: x, unaligned, strided, big_endian, read_only, column_major):
            (y,) = session.run(None, {"x": form(x)})
            assert y.ctypes.data % ALIGNMENT == 0 and y.flags.writeable and y.flags.c_contiguous
            kept.append((x, y))
    for x, y in kept:  # no later call has touched an earlier result
        np.testing.assert_allclose(y, mlp_answer(mlp(11), x), rtol=1e-3)
    with pytest.raises(InvalidInput, match="no input 'z'"):
        session.run(None, {"x": x, "z": x})
    with pytest.raises(InvalidInput, match="is float64"):
        session.run(None, {"x": x.astype(np.float64)})
    with pytest.raises(InvalidInput, match="no input 'y'"):
        session.run(None, {"y": x})


def test_a_session_used_by_many_threads_at_once() -> None:
    session = whitebox.InferenceSession(mlp(12))
    session.run(None, {"x": batch(2)})
    failures: list[int] = []

    def ask(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((2, 32)).astype(np.float32)
        expected = mlp_answer(mlp(12), x)
        for _ in range(2000):
            (answer,) = session.run(None, {"x": x})
            if not np.allclose(answer, expected, rtol=1e-3):
                failures.append(seed)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places within a call
    try:
        workers = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures


def test_several_inputs_and_outputs_scalars_and_unused_inputs() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[N] x, float y, float[2] unused) => (float[N] sum, float twice) {
           sum = Add(x, y)
           twice = Add(y, y)
        }""")
    session = whitebox.InferenceSession(model)
    for n in (3, 3, 5, 3):
        feeds = {
            "x": np.arange(n, dtype=np.float32),
            "y": np.array(n, np.float32),
            "unused": np.zeros(2, np.float32),
        }
        total, twice = session.run(None, feeds)
        np.testing.assert_array_equal(total, np.arange(n) + n)
        assert isinstance(twice, np.ndarray) and twice.shape == () and twice == 2 * n
        assert session.run(["twice"], feeds)[0] == 2 * n


def test_views_of_an_empty_batch_keep_their_shape() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        views (float[N, 4] x) => (float[1, 1, N, 4] y) <int64[1] first = {0}> {
            once = Unsqueeze(x, first)
            twice = Unsqueeze(once, first)
            y = Neg(twice)
        }""")
    session = whitebox.InferenceSession(model.SerializeToString())
    for rows in (0, 3):
        x = np.ones((rows, 4), np.float32)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], -x[None, None])


IDLE = """
import sys, time
import numpy as np, whitebox
session = whitebox.InferenceSession(sys.argv[1])
for _ in range(5):
    session.run(None, {"x": np.ones((4096, 32), np.float32)})  # enough for parallel kernels
while True:  # until the compile workers' threads have ended
    start = time.process_time()
    time.sleep(2)
    print(time.process_time() - start, flush=True)
"""


def test_an_idle_process_uses_no_core(tmp_path: Path) -> None:
    """Under a percent of a core, once what the first answer has left to do is done."""
    onnx.save(mlp(13), tmp_path / "mlp.onnx")
    command = [sys.executable, "-c", IDLE, str(tmp_path / "mlp.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            spent = [float(process.stdout.readline()) for _ in range(5)]
        finally:
            process.kill()
    assert min(spent) < 0.02, spent


def test_memory_plan_never_overlaps_the_living() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lifetimes = {}
        for key in range(int(random.integers(1, 40))):
            first = int(random.integers(0, 30))
            last = first + int(random.integers(0, 10))
            lifetimes[key] = Lifetime(int(random.integers(0, 5000)), first, last)
        offsets, peak = plan_memory(lifetimes)
        for a, la in lifetimes.items():
            assert offsets[a] % ALIGNMENT == 0 and offsets[a] + la.nbytes <= peak
            for b, lb in lifetimes.items():
                if a < b and la.first <= lb.last and lb.first <= la.last:
                    apart = (
                        offsets[a] + la.nbytes <= offsets[b] or offsets[b] + lb.nbytes <= offsets[a]
                    )
                    assert apart or not la.nbytes or not lb.nbytes


def test_memory_of_a_chain_is_two_buffers() -> None:
    chain = {step: Lifetime(1000, step, step + 1) for step in range(20)}
    assert plan_memory(chain)[1] == 2 * 1024


def test_the_reference_is_what_the_kernels_compute(runtime: whitebox.Runtime) -> None:
    from whitebox.ir import onnx_io

    graph = onnx_io.load(mlp(10))
    expected = onnx_schema.evaluate_graph(graph, [batch(3)])["y"]
    session = whitebox.InferenceSession(mlp(10))
    np.testing.assert_allclose(session.run(None, {"x": batch(3)})[0], expected, rtol=1e-4)


def test_closing_answers_who_still_waits_for_a_shape(tmp_path: Path) -> None:
    with whitebox.Runtime(tmp_path / "home", threads=1) as runtime:
        runtime.register(mlp(11), "waiting")
        replies = [runtime.submit("waiting", {"x": batch(n)}) for n in (21, 22, 23, 24)]
    for n, reply in zip((21, 22, 23, 24), replies, strict=True):
        error = reply.exception(60)
        if error is None:
            np.testing.assert_allclose(
                reply.result()["y"], mlp_answer(mlp(11), batch(n)), rtol=1e-4
            )
        else:
            assert isinstance(error, Overloaded)


@pytest.mark.parametrize(
    ("body", "copies"),
    [
        ("""a = Exp(x)
            b = Neg(x)
            c = Concat<axis = 1>(a, b)
            d = Tanh(x)
            e = Concat<axis = 1>(d, c)
            y = Softmax(e)""", 0),  # one inside the other
        ("""a = Exp(x)
            l, r = Split<axis = 1, num_outputs = 2>(a)
            m = Softmax(r)
            e = Concat<axis = 1>(l, r, m, l)
            y = Softmax(e)""", 1),  # a part twice
        ("""a = Exp(x)
            l, r = Split<axis = 1, num_outputs = 2>(a)
            m = Softmax(r)
            n = Softmax(l)
            e = Concat<axis = 1>(l, r, m, n)
            y = Softmax(e)""", 0),  # cut, and joined again
        ("""a = Exp(x)
            l, r = Split<axis = 1, num_outputs = 2>(a)
            m = Softmax(r)
            n = Softmax(l)
            e = Concat<axis = 1>(r, l, m, n)
            y = Softmax(e)""", 1),  # joined again in another order
        ("""a = Exp(x)
            b = Softmax(x)
            e = Concat<axis = 1>(a, b)
            f = Concat<axis = 1>(b, a)
            g = Softmax(e)
            h = Softmax(f)
            y = Sub(g, h)""", 1),  # in two places
        ("""a = Exp(x)
            b = Softmax(x)
            y = Concat<axis = 1>(a, b)""", 1),  # a result
        ("""a = Softmax(x)
            b = Tanh(a)
            c = Concat<axis = 1>(a, x)
            e = Concat<axis = 2>(c, c)
            f = Concat<axis = 1>(b, a)
            g = Concat<axis = 2>(f, f)
            y = Sub(e, g)""", 3),  # an input, and rows side by side
    ],
)  # fmt: skip
def test_joins_and_cuts_in_place(body: str, copies: int) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[1, 4, 16] x) => (float[1, M, K] y) {{ {body} }}""")
    x = np.random.default_rng(0).standard_normal((1, 4, 16)).astype(np.float32)
    session = whitebox.InferenceSession(model)
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)
    labels = [step.label for step in session.explain({"x": x}).steps]
    moved = [text for text in labels if "Concat" in text or text == "Slice"]
    assert len(moved) == copies, labels


def test_derived_weights_are_written_before_close_returns(tmp_path: Path) -> None:
    wide = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        wide (float[1, 256] x) => (float[1, 200] y) <float[256, 200] w> { y = MatMul(x, w) }""")
    del wide.graph.initializer[:]
    weights = np.random.default_rng(0).standard_normal((256, 200)).astype(np.float32)
    wide.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    x = np.ones((1, 256), np.float32)
    with whitebox.Runtime(tmp_path) as first:
        first.register(wide, "wide")
        answer = first.predict("wide", {"x": x})["y"]
    with whitebox.Runtime(tmp_path) as second:
        kept = second.registry._database.query("SELECT count(*) FROM derived")[0][0]
        assert kept == 1
        np.testing.assert_array_equal(second.predict("wide", {"x": x})["y"], answer)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = (
        "import sys; from whitebox.runtime.native import _session; _session(1); "
        "print('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
