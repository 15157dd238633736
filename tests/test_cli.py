"""The command line as its users meet it: real processes, good models and hostile files."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from whitebox.cli import main

Done = subprocess.CompletedProcess
Cli = Callable[..., Done]
WHITEBOX = [sys.executable, "-m", "whitebox.cli"]
OUTSIDE = "../outside.bin"


def run(home: Path, *arguments: object) -> Done:
    """A command in a process of its own."""
    command = [*WHITEBOX, "--home", str(home), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def run_here(home: Path, *arguments: object) -> Done:
    """A command in this process: the same code, without the wait for Python to start."""
    command = ["whitebox", "--home", str(home), *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        main()
    assert isinstance(end.value.code, int)
    return Done(command, end.value.code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A home with one model, `tiny`, which no test removes."""
    folder = tmp_path_factory.mktemp("cli-home")
    done = run(folder, "register", tiny_model)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def cli(home: Path) -> Cli:
    return lambda *arguments: run_here(home, *arguments)


def _state(home: Path) -> object:
    return json.loads(run_here(home, "list", "--json").stdout)


def assert_fails(done: Done, code: int, *words: str) -> None:
    """One line on stderr that begins as all errors do and names the thing; the exit code."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("whitebox: error: ")
    for word in words:
        assert word in lines[0]
    assert done.returncode == code
    assert done.stdout == ""


# --- what works ---


def test_register_says_what_it_did(tmp_path: Path, tiny_model: Path) -> None:
    first = run(tmp_path, "register", tiny_model, "--name", "a")
    line = r"a version 1 registered: \d+ kernels? compiled, \d+ reused, .* new, .* shared, .* s\n"
    assert re.fullmatch(line, first.stdout), first.stderr
    again = run(tmp_path, "register", tiny_model, "--name", "a")
    assert "a version 1 was registered already: 0 kernels compiled" in again.stdout
    other = run(tmp_path, "register", _variant(tiny_model, tmp_path), "--name", "a")
    assert "a version 2 registered: 0 kernels compiled" in other.stdout


def test_register_for_a_shape(cli: Cli, home: Path, tiny_model: Path) -> None:
    before = _state(home)
    done = cli("register", tiny_model, "--name", "shaped", "--shape", "x=1x4")
    assert done.returncode == 0, done.stderr
    cli("unregister", "shaped")
    assert_fails(cli("register", tiny_model, "--shape", "x=1x5"), 65, "x")
    assert_fails(cli("register", tiny_model, "--shape", "z=1x4"), 65, "z")
    assert _state(home) == before


def test_register_in_bf16_and_measure_what_it_costs(cli: Cli, tiny_model: Path) -> None:
    done = cli("register", tiny_model, "--name", "low", "--precision", "bf16")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^precision +bf16$", cli("show", "low").stdout, re.M)
    table = cli("accuracy", "low").stdout
    assert re.fullmatch(r"low in bf16 against f32, 8 inputs\noutput .*\ny  .*%\n", table)
    of_file = json.loads(cli("accuracy", tiny_model, "--json").stdout)
    assert of_file["outputs"][0]["name"] == "y"
    cli("unregister", "low")
    assert_fails(cli("register", tiny_model, "--precision", "f12"), 65, "f12", "bf16")


def _variant(file: Path, folder: Path) -> Path:
    """The same architecture, other weights."""
    model = onnx.load(file)
    weights = model.graph.initializer[0]
    changed = numpy_helper.to_array(weights) + 1
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(model, folder / "variant.onnx")
    return folder / "variant.onnx"


def test_list_and_show(cli: Cli) -> None:
    table = cli("list").stdout.splitlines()
    assert table[0].split() == ["NAME", "VERSION", "INPUTS", "OUTPUTS", "SIZE", "CREATED"]
    assert table[1].startswith("tiny   1 ")
    (listed,) = json.loads(cli("list", "--json").stdout)
    assert listed["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 4]}]
    assert json.loads(cli("show", "tiny", "--json").stdout) == listed
    assert "output" in cli("show", "tiny").stdout


def test_stats_and_explain_tell_what_models_share(tmp_path: Path, tiny_model: Path) -> None:
    run(tmp_path, "register", tiny_model, "--name", "a")
    run(tmp_path, "register", tiny_model, "--name", "b")
    run(tmp_path, "register", _variant(tiny_model, tmp_path), "--name", "c")
    found = json.loads(run(tmp_path, "stats", "--json").stdout)
    assert (found["models"], found["versions"]) == (3, 3)
    assert (found["operators"], found["distinct_operators"]) == (9, 6)
    assert found["kernels"] > 0
    assert "6 (9 each model by itself, 33% less)" in run(tmp_path, "stats").stdout
    shared = json.loads(run(tmp_path, "explain", "a", "b", "c", "--json").stdout)
    assert (shared["steps"], shared["distinct_steps"]) == ([1, 1, 1], 2)
    assert shared["distinct_kernels"] == 1
    assert "computed once" in run(tmp_path, "explain", "a", "b").stdout
    assert run(tmp_path, "explain", "a", "b", "--version", "1").returncode == 2


def test_predict_from_json_and_npz(cli: Cli, tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    w = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    want = np.maximum(x @ w + np.array([1, -2, 3, -400], np.float32), 0)
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": list(range(8))}
    (tmp_path / "plain.json").write_text(json.dumps({"x": x.tolist()}))
    (tmp_path / "protocol.json").write_text(json.dumps({"inputs": [tensor]}))
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    for name in ("plain.json", "protocol.json", "x.npz", "x.npy"):
        out = tmp_path / f"{name}.npz"
        done = cli("predict", "tiny", "--input", tmp_path / name, "--output", out)
        assert done.returncode == 0, done.stderr
        with np.load(out) as outputs:
            np.testing.assert_allclose(outputs["y"], want)
    printed = cli("predict", "tiny", "-i", tmp_path / "x.npz", "--json").stdout
    np.testing.assert_allclose(json.loads(printed)["y"], want)


def test_explain(cli: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((1, 4), np.float32))
    done = cli("explain", "tiny", "--input", tmp_path / "x.npz")
    assert done.returncode == 0, done.stderr
    assert "fuse" in done.stdout
    assert json.loads(cli("explain", "tiny", "--json").stdout)


def test_opt_prints_and_writes(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert "MatMul" in cli("opt", tiny_model).stdout
    done = cli("opt", tiny_model, "-o", out)
    assert done.returncode == 0, done.stderr
    onnx.checker.check_model(onnx.load(out), full_check=True)
    other = tmp_path / "other.onnx"
    other.write_bytes(tiny_model.read_bytes())
    merged = cli("opt", tiny_model, other, "--passes", "fold, verify").stdout
    assert merged.count("MatMul") == 1  # what the two have in common is there once
    assert_fails(cli("opt", tiny_model, other, "--passes", "", "-o", out), 65, "one model")


def test_doctor(cli: Cli, home: Path) -> None:
    done = run(home, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["home"]["models"] == 1
    assert report["home"]["damaged"] == []
    assert report["runtime"]["llvm_loaded"] in (False, None)
    assert "every blob matches" in cli("doctor").stdout


def test_unregister(cli: Cli, home: Path, tiny_model: Path) -> None:
    before = _state(home)
    cli("register", tiny_model, "--name", "gone")
    cli("register", tiny_model, "--name", "gone")
    assert cli("unregister", "gone", "--version", "1").stdout == "gone version 1 removed\n"
    assert _state(home) == before
    assert_fails(cli("unregister", "gone"), 66, "gone")
    cli("register", tiny_model, "--name", "gone")
    assert json.loads(cli("show", "gone", "--json").stdout)["versions"] == [2]
    assert cli("unregister", "gone").stdout == "gone removed\n"
    assert _state(home) == before


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "tiny"]])
def test_light_commands_import_nothing_heavy(home: Path, arguments: list[str]) -> None:
    """They answer at once: neither the compiler nor the ONNX package is loaded."""
    program = (
        "import sys\n"
        "from whitebox.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'tvm', 'tvm_ffi', 'onnx', 'aiohttp', 'networkx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", program, "--home", str(home), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- serving ---


@pytest.fixture
def server(home: Path) -> Iterator[str]:
    command = [*WHITEBOX, "--home", str(home), "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        found = re.search(r"http://\S+", ready)
        try:
            assert found, ready
            yield found.group()
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
    assert code == 0


def _infer(url: str, model: str) -> object:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{url}/v2/models/{model}/infer", body, headers), timeout=30) as answer:
        return json.load(answer)["outputs"][0]["data"]


def test_serve_answers_and_sees_later_models(server: str, cli: Cli, tiny_model: Path) -> None:
    assert _infer(server, "tiny") == [1, 0, 3, 0]
    assert cli("register", tiny_model, "--name", "later").returncode == 0
    try:
        for _ in range(50):  # the server looks a few times a second
            with urlopen(f"{server}/v2/models/tiny", timeout=30):
                pass
            index = Request(f"{server}/v2/repository/index", b"", method="POST")
            with urlopen(index, timeout=30) as answer:
                if "later" in {model["name"] for model in json.load(answer)}:
                    break
        assert _infer(server, "later") == [1, 0, 3, 0]
    finally:
        cli("unregister", "later")


def test_a_port_in_use(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_fails(cli("serve", "--port", port), 1, str(port), "in use")


def test_a_reservation_that_cannot_be(cli: Cli) -> None:
    assert_fails(cli("serve", "--reserve", "absent=0.5"), 66, "absent")
    assert_fails(cli("serve", "--reserve", "absent"), 2, "--reserve", "NAME=SHARE")


# --- hostile files ---


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)


def _saved(folder: Path, model: onnx.ModelProto) -> Path:
    file = folder / "hostile.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def truncated(folder: Path, tiny: Path) -> Path:
    file = folder / "hostile.onnx"
    file.write_bytes(tiny.read_bytes()[:-40])
    return file


def random_bytes(folder: Path, tiny: Path) -> Path:
    file = folder / "hostile.onnx"
    file.write_bytes(np.random.default_rng(0).bytes(5000))
    return file


def empty(folder: Path, tiny: Path) -> Path:
    file = folder / "hostile.onnx"
    file.touch()
    return file


def a_folder(folder: Path, tiny: Path) -> Path:
    file = folder / "hostile.onnx"
    file.mkdir()
    return file


def unknown_operator(folder: Path, tiny: Path) -> Path:
    text = "g (float[2] x) => (float[2] y) { [strange_node] y = odd.domain.Frobnicate(x) }"
    model = _model(text)
    model.opset_import.append(helper.make_opsetid("odd.domain", 1))
    return _saved(folder, model)


def cyclic(folder: Path, tiny: Path) -> Path:
    return _saved(folder, _model("g (float[2] x) => (float[2] y) { a = Add(x, y) y = Relu(a) }"))


def reads_nothing_that_exists(folder: Path, tiny: Path) -> Path:
    return _saved(folder, _model("g (float[2] x) => (float[2] y) { y = Add(x, nowhere) }"))


def _with_external_data(folder: Path, location: str) -> Path:
    model = _model("g (float[2] x) => (float[2] y) { y = Add(x, w) }")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model.graph.initializer.append(tensor)
    return _saved(folder, model)


def external_data_missing(folder: Path, tiny: Path) -> Path:
    return _with_external_data(folder, "weights.bin")


def external_data_outside(folder: Path, tiny: Path) -> Path:
    (folder.parent / "outside.bin").write_bytes(bytes(8))
    return _with_external_data(folder, OUTSIDE)


def external_data_through_a_link(folder: Path, tiny: Path) -> Path:
    (folder.parent / "outside.bin").write_bytes(bytes(8))
    (folder / "inside.bin").symlink_to(folder.parent / "outside.bin")
    return _with_external_data(folder, "inside.bin")


def external_data_short(folder: Path, tiny: Path) -> Path:
    (folder / "weights.bin").write_bytes(bytes(4))
    return _with_external_data(folder, "weights.bin")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (truncated, ["hostile.onnx"]),
        (random_bytes, ["hostile.onnx"]),
        (empty, ["hostile.onnx"]),
        (a_folder, ["hostile.onnx"]),
        (unknown_operator, ["Frobnicate", "odd.domain", "strange_node"]),
        (cyclic, []),
        (reads_nothing_that_exists, ["nowhere"]),
        (external_data_missing, ["weights.bin"]),
        (external_data_outside, [OUTSIDE]),
        (external_data_through_a_link, ["inside.bin"]),
        (external_data_short, ["weights.bin"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_hostile_model_is_refused(
    cli: Cli,
    home: Path,
    tmp_path: Path,
    tiny_model: Path,
    make: Callable[[Path, Path], Path],
    words: list[str],
) -> None:
    before = _state(home)
    folder = tmp_path / "models"
    folder.mkdir()
    assert_fails(cli("register", make(folder, tiny_model)), 65, *words)
    assert _state(home) == before


def test_a_missing_file(cli: Cli) -> None:
    done = cli("register", "not-there.onnx")
    assert_fails(done, done.returncode, "not-there.onnx")
    assert done.returncode in (65, 66)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "..", ".hidden", "a\nb", "x" * 300])
def test_a_hostile_name(cli: Cli, home: Path, tiny_model: Path, name: str) -> None:
    before = _state(home)
    assert_fails(cli("register", tiny_model, f"--name={name}"), 64)
    assert _state(home) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": np.zeros((1, 4))}, ["x", "float32"]),
        ({"x": np.zeros((1, 4), np.complex64)}, ["x", "float32"]),
        ({"x": np.zeros(4, np.float32)}, ["x"]),
        ({"x": np.zeros((1, 5), np.float32)}, ["x", "4"]),
        ({}, ["x"]),
        ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1, np.float32)}, ["z"]),
        ({"z": np.zeros((1, 4), np.float32)}, ["z"]),
    ],
    ids=["dtype", "complex", "rank", "dimension", "missing", "unknown", "misnamed"],
)
def test_wrong_arrays(
    cli: Cli, tmp_path: Path, content: dict[str, np.ndarray], words: list[str]
) -> None:
    np.savez(tmp_path / "x.npz", **content)
    assert_fails(cli("predict", "tiny", "-i", tmp_path / "x.npz"), 65, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["valid JSON"]),
        ("[1, 2]", ["object"]),
        ('{"x": [[1, 2], [3]]}', ["x"]),
        ('{"x": [["a", "b", "c", "d"]]}', ["x"]),
        ('{"x": {"a": 1}}', ["x"]),
        ('{"inputs": [{"name": "x", "shape": [2, 4], "data": [1]}]}', ["x", "[2, 4]"]),
        ('{"inputs": [{"name": "x", "shape": [-1, -4], "data": [1]}]}', ["x"]),
        ('{"inputs": [{"name": "x", "shape": [1e99], "data": [1]}]}', ["x"]),
        ('{"inputs": [{"name": "x", "shape": [99999999999999999999], "data": [1]}]}', ["x"]),
        ('{"inputs": [{"data": [1]}]}', ["name"]),
    ],
)
def test_wrong_json(cli: Cli, tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "x.json").write_text(content)
    assert_fails(cli("predict", "tiny", "-i", tmp_path / "x.json"), 65, *words)


def test_inputs_that_are_no_numpy_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(b"PK\x03\x04 not really")
    assert_fails(cli("predict", "tiny", "-i", file), 65, "x.npz")
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    assert_fails(cli("predict", "tiny", "-i", tmp_path / "x.npy"), 65, "x.npy")
    assert_fails(cli("predict", "tiny", "-i", tmp_path / "none.npz"), 65, "none.npz")


# --- wrong usage, and what no one foresaw ---


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["regsiter"], 2, "regsiter"),
        (["register"], 2, "file"),
        (["list", "--jsno"], 2, "--jsno"),
        (["serve", "--port", "99999"], 2, "--port"),
        (["register", "a.onnx", "--shape", "x=1xtwo"], 65, "x=1xtwo"),
        (["opt", "a.onnx", "--passes", "fold,melt"], 65, "melt"),
        (["show", "nothing"], 66, "nothing"),
        (["show", "tiny", "--version", "9"], 66, "9"),
        (["predict", "nothing", "-i", "x.npz"], 66, "nothing"),
        (["explain", "nothing"], 66, "nothing"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], code: int, word: str) -> None:
    assert_fails(cli(*arguments), code, word)


def test_a_home_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_fails(run(tmp_path / "file", "list"), 74, "file")


def test_output_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4), np.float32))
    done = cli("predict", "tiny", "-i", tmp_path / "x.npz", "-o", tmp_path / "no" / "y.npz")
    assert_fails(done, 74, "y.npz")


def test_a_reader_that_leaves_is_no_traceback(home: Path) -> None:
    command = " ".join([*WHITEBOX, "--home", str(home), "show", "tiny"])
    piped = ["bash", "-c", f"{command} | true"]
    done = subprocess.run(piped, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
