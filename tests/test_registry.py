"""The registry: what is acknowledged is there, whole, for every process, whatever happens."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from whitebox.errors import InvalidName, ModelNotFound, StorageError
from whitebox.ir import serial
from whitebox.ir.graph import Graph, Model, Node, Tensor, constant, input_node
from whitebox.ir.types import MapType, OptionalType, SequenceType, TensorType, Type
from whitebox.registry import ModelInfo, Registry, TensorSpec, derived, validate_name
from whitebox.registry.catalogue import Catalogue
from whitebox.registry.lock import HomeLock

# Children come from a clean server process: quick to start, and no thread or connection of this
# process is carried over.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["whitebox.registry"])

F32 = TensorType("float32", ("N", 8))


def chain(seed: int, layers: int = 3, size: int = 1000, x: str = "x") -> Graph:
    """A model that adds `layers` random constants; layer i of seed s is layer 0 of seed s + i."""
    first = value = input_node(0, F32)
    for layer in range(layers):
        weights = np.random.default_rng(seed + layer).random((size,), dtype=np.float32)
        value = Node.make("Add", (value, constant(weights)), types=(F32,), version=14)
    return Graph([Model("main", ((x, first),), (("y", value),))])


def weights_of(graph: Graph) -> list[np.ndarray]:
    return [node.value for node in graph.nodes if node.is_constant]


def in_process(target: Callable[..., None], *args: Any) -> None:
    child = processes.Process(target=target, args=args)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def packs(home: Path) -> list[Path]:
    return list((home / "blobs").iterdir())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with Registry(home) as opened:
        yield opened


def test_a_graph_comes_back_equal_on_aligned_read_only_pages(registry: Registry) -> None:
    graph = chain(0)
    expected = [array.copy() for array in weights_of(graph)]
    record, created, new_bytes, shared_bytes = registry.add("m", graph, {"source": "m.onnx"})
    assert (created, new_bytes, shared_bytes) == (True, 12_000, 0)
    assert (record.name, record.version, record.nbytes) == ("m", 1, 12_000)
    assert record.inputs == (TensorSpec("x", F32),)
    assert record.outputs == (TensorSpec("y", F32),)
    assert record.metadata == {"source": "m.onnx", "precision": "f32"}
    assert str(record) == "m v1 (x f32[N,8]) -> (y f32[N,8])"
    digest = graph.digest
    del graph
    gc.collect()  # otherwise the interned nodes give back the arrays in memory
    stored = registry.graph(registry.get("m"))
    assert stored.digest == digest
    for array, original in zip(weights_of(stored), expected, strict=True):
        np.testing.assert_array_equal(array, original)
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.array(3.5),
        np.array([True, False]),
        np.array([1, -2, 3], ml_dtypes.int4),
        np.array([1.5, 2.5], ml_dtypes.bfloat16),
        np.array([[1 + 2j]], np.complex64),
        np.arange(12, dtype=">i4").reshape(3, 4).T,
        np.array([["", "Grüße"], ["a\0b", "x" * 70_000]], object),
        np.array([b"\xff\xfe", "text"], object),
        np.zeros((0,), object),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_every_kind_of_tensor_is_stored(registry: Registry, array: np.ndarray) -> None:
    tensor = Tensor.of(array)
    registry.blobs.put([tensor])
    assert registry.blobs.has(tensor.digest)
    stored = registry.blobs.tensor(tensor.digest, tensor.type)
    assert stored.dtype == tensor.array.dtype
    np.testing.assert_array_equal(stored, tensor.array)
    assert not stored.flags.writeable
    assert registry.blobs.verify() == []


def test_a_pack_larger_than_the_write_buffer(registry: Registry) -> None:
    rng = np.random.default_rng(0)
    tensors = [Tensor.of(rng.integers(0, 255, n, np.uint8)) for n in (9_999_999, 1, 4 << 20, 65)]
    assert registry.blobs.put(tensors) == (sum(t.type.nbytes for t in tensors), 0)
    for tensor in tensors:
        stored = registry.blobs.tensor(tensor.digest, tensor.type)
        np.testing.assert_array_equal(stored, tensor.array)
        assert stored.ctypes.data % 64 == 0
    assert registry.blobs.verify() == []


def test_signatures_of_all_types_are_kept(registry: Registry) -> None:
    tensor = TensorType("int8", (None, 2))
    types: tuple[Type, ...] = (SequenceType(OptionalType(tensor)), MapType("string", tensor))
    nodes = [input_node(i, type) for i, type in enumerate(types)]
    ends = tuple((f"v{i}", node) for i, node in enumerate(nodes))
    record, *_ = registry.add("m", Graph([Model("m", ends, ends)]))
    assert tuple(spec.type for spec in record.inputs) == types
    with pytest.raises(TypeError, match="v0 is a seq"):
        _ = record.inputs[0].tensor
    assert TensorSpec("x", F32).wire_shape == [-1, 8]


def test_the_same_content_is_the_same_version(registry: Registry, home: Path) -> None:
    first, *_ = registry.add("m", chain(0))
    before = packs(home), registry.generation()
    again, created, new_bytes, shared_bytes = registry.add("m", chain(0), {"other": 1})
    assert (again, created, new_bytes, shared_bytes) == (first, False, 0, 12_000)
    assert before == (packs(home), registry.generation())
    assert registry.add("m", chain(1))[0].version == 2
    assert registry.add("m", chain(0))[0] == first
    # Requests use the names in the signature, so another name is another version.
    assert registry.add("m", chain(0, x="pixels"))[0].version == 3
    assert registry.get("m").inputs[0].name == "pixels"
    assert registry.get("m", 1) == first


def test_a_version_number_is_never_given_twice(registry: Registry) -> None:
    registry.add("m", chain(0))
    registry.add("m", chain(1))
    registry.remove("m", 2)
    assert registry.get("m").version == 1
    assert registry.add("m", chain(1))[0].version == 3
    registry.remove("m")
    assert registry.list() == []
    assert registry.add("m", chain(0))[0].version == 4


def test_listing_shows_every_version_by_name(registry: Registry) -> None:
    for name, seed in (("b", 0), ("a", 0), ("b", 1)):
        registry.add(name, chain(seed))
    assert [(r.name, r.version) for r in registry.list()] == [("a", 1), ("b", 1), ("b", 2)]
    newest = ModelInfo.newest(registry.list())
    assert [(m.name, m.version, m.versions) for m in newest] == [("a", 1, (1,)), ("b", 2, (1, 2))]


def test_a_catalogue_keeps_up_with_every_process(registry: Registry, home: Path) -> None:
    with Registry(home) as other:
        registry.add("m", chain(0))
        catalogue = Catalogue(registry)
        other.add("m", chain(1))
        other.add("a", chain(1))
        assert catalogue.find("a") is None
        assert catalogue.record("a") == other.get("a")  # what is not known yet is asked for
        assert catalogue.refresh() == []
        assert catalogue.refresh() is None
        assert [(m.name, m.version, m.versions) for m in catalogue.models()] == [
            ("a", 1, (1,)),
            ("m", 2, (1, 2)),
        ]
        assert (catalogue.names, len(catalogue)) == (2, 3)
        other.remove("m", 1)
        other.remove("a")
        other.add("b", chain(2))
        assert sorted(catalogue.refresh() or []) == [("a", 1), ("m", 1)]
        assert ("m", 1) not in catalogue
        assert catalogue.model("m", 2).versions == (2,)
        assert [m.name for m in catalogue.models()] == ["b", "m"]
        with pytest.raises(ModelNotFound, match="has no version 1"):
            catalogue.model("m", 1)


def test_what_is_missing_is_named(registry: Registry) -> None:
    registry.add("resnet50", chain(0))
    with pytest.raises(ModelNotFound, match="did you mean 'resnet50'"):
        registry.get("resnet")
    with pytest.raises(ModelNotFound, match="'resnet50' has no version 7: it has 1"):
        registry.get("resnet50", 7)
    with pytest.raises(ModelNotFound, match="no model 'x' is registered"):
        registry.remove("x")
    removed = registry.get("resnet50")
    registry.remove("resnet50")
    with pytest.raises(ModelNotFound):
        registry.graph(removed)


def test_equal_weights_are_stored_once_and_go_with_their_last_user(
    registry: Registry, home: Path
) -> None:
    registry.add("a", chain(0, layers=3))
    _, _, new_bytes, shared_bytes = registry.add("b", chain(1, layers=3))
    assert (new_bytes, shared_bytes) == (4_000, 8_000)
    held = registry.graph(registry.get("a"))
    registry.remove("a")
    assert len(packs(home)) == 2  # b still uses a's pack
    assert len(weights_of(registry.graph(registry.get("b")))) == 3
    registry.remove("b")
    assert packs(home) == []
    assert all(array.sum() > 0 for array in weights_of(held))


def test_a_graph_held_outlives_its_model(registry: Registry) -> None:
    registry.add("m", chain(0))
    gc.collect()
    graph = registry.graph(registry.get("m"))
    registry.remove("m")
    registry.close()
    expected = np.random.default_rng(0).random((1000,), dtype=np.float32)
    np.testing.assert_array_equal(weights_of(graph)[0], expected)


def _truncate(path: Path) -> None:
    os.truncate(path, 100)


def _damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[64] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "words"), [(Path.unlink, "missing"), (_truncate, "100 bytes")])
def test_a_damaged_pack_is_named_and_registering_again_heals_all_its_models(
    home: Path, damage: Callable[[Path], None], words: str
) -> None:
    with Registry(home) as registry:
        registry.add("a", chain(0))
        registry.add("b", chain(0, layers=2))
    gc.collect()
    damage(packs(home)[0])
    with Registry(home) as registry:
        for name in ("a", "b"):
            with pytest.raises(StorageError, match=f"{words}.*register the same") as error:
                registry.graph(registry.get(name))
            assert "with weights of a, b" in str(error.value)
        assert len(registry.blobs.verify()) == 1
        assert registry.add("a", chain(0))[:3:2] == (registry.get("a"), 12_000)
        assert registry.blobs.verify() == []
        assert len(weights_of(registry.graph(registry.get("b")))) == 2
        registry.remove("a")
        assert len(weights_of(registry.graph(registry.get("b")))) == 2
        registry.remove("b")
        assert packs(home) == []


def test_a_damaged_graph_is_named_and_registering_again_heals_it(
    registry: Registry, home: Path
) -> None:
    record, *_ = registry.add("m", chain(0))
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("UPDATE structures SET data = substr(data, 1, 100)")
    with pytest.raises(StorageError, match="m v1: a stored graph is damaged; register"):
        registry.graph(record)
    assert registry.add("m", chain(0))[:2] == (record, False)
    assert len(weights_of(registry.graph(record))) == 3


def test_a_flipped_bit_is_found_by_verify(home: Path) -> None:
    with Registry(home) as registry:
        registry.add("a", chain(0))
    _damage_byte(packs(home)[0])
    with Registry(home) as registry:
        (line,) = registry.blobs.verify()
        assert "1 damaged tensors of 3: delete it" in line
        packs(home)[0].unlink()
        registry.add("a", chain(0))
        assert registry.blobs.verify() == []


@pytest.mark.parametrize("name", ["a", "resnet-50_v1.2", "0", "_x", "A" * 200])
def test_good_names(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        ("A" * 201, "201 characters"),
        ("naïve", "outside ASCII"),
        ("а", "outside ASCII"),  # Cyrillic
        ("../x", "not allowed"),
        ("a/b", "not allowed"),
        ("a\\b", "not allowed"),
        ("a..b", r"without '\.\.'"),
        (".hidden", "not starting"),
        ("-rf", "not starting"),
        ("a\n", "not allowed"),
        ("a b", "not allowed"),
        ("a\0", "not allowed"),
    ],
)
def test_bad_names(registry: Registry, name: str, words: str) -> None:
    with pytest.raises(InvalidName, match=words) as error:
        registry.add(name, chain(0))
    assert str(error.value).isprintable()
    assert str(error.value).isascii()
    assert registry.list() == []


def test_a_home_that_cannot_serve_says_why(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    for path in (occupied, occupied / "below", Path("/proc/whitebox")):
        with pytest.raises(StorageError, match=r"cannot be used as a home.*set WHITEBOX_HOME"):
            Registry(path)


def test_a_newer_or_foreign_database_is_left_alone(home: Path) -> None:
    Registry(home).close()
    connection = sqlite3.connect(home / "registry.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match=r"newer whitebox \(schema 99"):
        Registry(home)
    (home / "registry.db").write_bytes(b"no database " * 1000)
    with pytest.raises(StorageError, match="not a database: restore"):
        Registry(home)


def _make_schema_1(home: Path, graphs: dict[str, Graph]) -> None:
    """Turn a home into what the first schema made of these models."""
    with sqlite3.connect(home / "registry.db") as connection:
        for statement in (
            "DROP TABLE contents",
            "DROP TABLE structures",
            "CREATE TABLE graphs (version INTEGER PRIMARY KEY REFERENCES versions (id)"
            " ON DELETE CASCADE, data BLOB NOT NULL)",
            "UPDATE versions SET digest = 'old' || id",
            "PRAGMA user_version = 1",
        ):
            connection.execute(statement)
        for name, graph in graphs.items():
            connection.execute(
                "INSERT INTO graphs SELECT versions.id, ? FROM versions "
                "JOIN models ON models.id = model WHERE name = ?",
                (serial.encode(graph), name),
            )


def test_a_home_of_the_first_schema_is_brought_up(home: Path) -> None:
    graphs = {"a": chain(0), "b": chain(1), "c": chain(0, layers=1)}
    with Registry(home) as registry:
        for name, graph in graphs.items():
            registry.add(name, graph)
    _make_schema_1(home, graphs)
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("UPDATE graphs SET data = substr(data, 1, 90) WHERE version = 3")
    with Registry(home) as registry:
        for name in ("a", "b"):
            assert registry.graph(registry.get(name)).digest == graphs[name].digest
            assert registry.add(name, graphs[name])[1] is False
        with pytest.raises(ModelNotFound):
            registry.graph(registry.get("c"))
        registry.add("c", graphs["c"])
        assert registry.graph(registry.get("c")).digest == graphs["c"].digest
    with Registry(home) as registry:
        assert len(registry.list()) == 4


def test_a_structure_is_stored_once_and_goes_with_its_last_model(registry: Registry) -> None:
    def stored() -> int:
        return int(registry._database.query("SELECT count(*) FROM structures")[0][0])

    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        registry.add(name, chain(seed))
    registry.add("d", chain(0, layers=2))
    assert stored() == 2
    first, second = (registry.model(registry.get(name)) for name in "ab")
    assert first.structure is second.structure
    for name in "abc":
        registry.remove(name)
    assert stored() == 1


def test_a_home_is_for_its_owner_only(registry: Registry, home: Path) -> None:
    registry.add("m", chain(0))
    assert home.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in packs(home))


def test_after_close_calls_fail_in_words(home: Path) -> None:
    registry = Registry(home)
    registry.close()
    with pytest.raises(StorageError, match="open the runtime again"):
        registry.list()


def _add(home: Path, name: str, seed: int) -> None:
    with Registry(home) as registry:
        registry.add(name, chain(seed))


def test_other_processes_see_a_change(registry: Registry, home: Path) -> None:
    before = registry.generation()
    assert before == registry.generation()
    in_process(_add, home, "m", 0)
    after = registry.generation()
    assert after != before
    assert registry.get("m").version == 1
    registry.remove("m")
    assert registry.generation() != after


def _add_many(home: Path, start: Any) -> None:
    start.wait()
    with Registry(home) as registry:
        for seed in range(8):
            registry.add("shared", chain(seed))
            registry.add(f"m{os.getpid()}", chain(seed))


def test_processes_register_at_once_in_a_new_home(home: Path) -> None:
    start = processes.Barrier(4)
    children = [processes.Process(target=_add_many, args=(home, start)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    with Registry(home) as registry:
        models = ModelInfo.newest(registry.list())
        assert [model.versions for model in models] == [tuple(range(1, 9))] * 5
        digests = {r.digest for r in registry.list() if r.name == "shared"}
        assert len(digests) == 8
        assert registry.blobs.verify() == []
        assert sum(path.stat().st_size for path in packs(home)) < 30 * (4096 + 4096)
        for record in registry.list():
            assert len(weights_of(registry.graph(record))) == 3


def test_threads_share_a_registry(registry: Registry) -> None:
    def work(seed: int) -> int:
        record, *_ = registry.add(f"m{seed % 4}", chain(seed))
        registry.get(record.name)
        if seed % 5 == 0:
            registry.remove(record.name, record.version)
        return registry.generation()

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(work, range(40)))) == 40
    assert len(registry.list()) == 32
    assert registry.blobs.verify() == []


def _add_beyond_a_size_limit(home: Path) -> None:
    with Registry(home) as registry:
        registry.add("small", chain(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with pytest.raises(StorageError, match=r"cannot write weights to .*: free space"):
            registry.add("large", chain(1, size=1 << 20))
        assert len(packs(home)) == 1
        assert [record.name for record in registry.list()] == ["small"]
        registry.add("small2", chain(2))


def test_a_write_that_fails_leaves_nothing(home: Path) -> None:
    in_process(_add_beyond_a_size_limit, home)


def test_a_sweep_takes_orphans_but_not_from_a_writer(registry: Registry, home: Path) -> None:
    writer = HomeLock(home / "lock")
    orphan = home / "blobs" / "0123.tmp"
    orphan.write_bytes(b"left by a process that died")
    with writer.shared():
        assert registry.sweep() == 0
        assert orphan.exists()
    assert registry.sweep() == 27
    assert not orphan.exists()


def _register_until_killed(home: Path, seed: int, log: Path, ready: Any) -> None:
    rng = random.Random(seed)
    acknowledged = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    ready.set()
    with Registry(home) as registry:
        for number in range(10_000):
            model = rng.randrange(1 << 20)
            graph = chain(model, layers=4, size=rng.choice((100, 2_000, 100_000)))
            record, *_ = registry.add(f"k{seed}", graph)
            if number % 4 == 3:
                os.write(acknowledged, b"- %s %d -\n" % (record.name.encode(), record.version))
                registry.remove(record.name, record.version)
            else:
                line = f"+ {record.name} {record.version} {graph.digest}\n"
                os.write(acknowledged, line.encode())


def _kill_at_random_moments(home: Path, kills: int, rng: random.Random) -> None:
    log = home.with_name("acknowledged")
    for seed in range(kills):
        ready = processes.Event()
        child = processes.Process(target=_register_until_killed, args=(home, seed, log, ready))
        child.start()
        assert ready.wait(30)
        time.sleep(rng.uniform(0, 0.08))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        with Registry(home) as registry:
            _check_acknowledged(registry, log)
            assert registry.blobs.verify() == []
            registry.add("after", chain(seed))


def _check_acknowledged(registry: Registry, log: Path) -> None:
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    there = {(record.name, record.version): record for record in registry.list()}
    removed = {(name, int(version)) for sign, name, version, _ in lines if sign == "-"}
    for sign, name, version, digest in lines:
        if sign == "+":
            record = there[name, int(version)]
            assert registry.graph(record).digest == digest
    assert not removed & (there.keys() - _last_announced(lines))


def _last_announced(lines: list[list[str]]) -> set[tuple[str, int]]:
    """A removal is announced before it is made, so the last one of each process may be undone."""
    last = {name: (sign, name, int(version)) for sign, name, version, _ in lines}
    return {(name, version) for sign, name, version in last.values() if sign == "-"}


def test_kill_9_at_any_moment_leaves_the_registry_whole(home: Path) -> None:
    _kill_at_random_moments(home, 25, random.Random(0))
    with Registry(home):
        indexed = sqlite3.connect(home / "registry.db").execute("SELECT file FROM packs")
        assert {path.name for path in packs(home)} == {file for (file,) in indexed}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_kill_9_many_times(home: Path, seed: int) -> None:
    _kill_at_random_moments(home, 50, random.Random(seed))


def test_derived_arrays_are_kept(registry: Registry, home: Path) -> None:
    entries = {f"{i}:pack16": np.full((3, i, 16), i, np.float32) for i in range(4)}
    entries["b"] = np.arange(5).astype(ml_dtypes.bfloat16)
    registry.put_derived(entries)
    assert registry.get_derived(["unknown"]) == {}
    assert len(packs(home)) == 1
    with Registry(home) as other:
        for key, array in entries.items():
            stored = other.get_derived([key])[key]
            assert stored.dtype == array.dtype
            np.testing.assert_array_equal(stored, array)
            assert stored.ctypes.data % 64 == 0
            assert not stored.flags.writeable
    registry.put_derived(entries)
    assert len(packs(home)) == 1


@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _damage_byte])
def test_a_damaged_derived_array_is_dropped_and_made_again(
    home: Path, damage: Callable[[Path], None]
) -> None:
    array = np.arange(1000)
    with Registry(home) as registry:
        registry.put_derived({"k": array})
    damage(packs(home)[0])
    for path in packs(home):
        os.utime(path, (0, 0))  # as if the machine had started since
    with Registry(home) as registry:
        assert registry.get_derived(["k"]) == {}
        assert packs(home) == []
        registry.put_derived({"k": array})
        np.testing.assert_array_equal(registry.get_derived(["k"])["k"], array)


def test_derived_arrays_give_way_oldest_first(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "MIN_BUDGET_BYTES", 300_000)
    for number, key in enumerate("abc"):
        registry.put_derived({key: np.full(100_000, number, np.uint8)})
        newest = max(packs(home), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    held = registry.get_derived(["a"])["a"]  # now b is the one unused for longest
    assert registry.sweep() > 0
    assert set(registry.get_derived("abc")) == {"a", "c"}
    assert held.sum() == 0


def test_thousands_of_packs_hold_no_file_descriptors(registry: Registry) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = []
    for seed in range(30):
        tensor = Tensor.of(np.full(100, seed))
        registry.blobs.put([tensor])
        held.append(registry.blobs.tensor(tensor.digest, tensor.type))
    assert len(os.listdir("/proc/self/fd")) <= before
