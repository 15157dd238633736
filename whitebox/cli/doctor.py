"""`whitebox doctor`: what this installation stands on, and whether what it keeps is intact."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whitebox.cli.home import home_of
from whitebox.cli.text import columns, count, size
from whitebox.errors import StorageError

if TYPE_CHECKING:
    from whitebox.registry import Registry

_PACKAGES = (
    "apache-tvm",
    "apache-tvm-ffi",
    "apache-tvm-ffi-orcjit",
    "onnx",
    "numpy",
    "aiohttp",
    "cupy-cuda13x",
)
# CPU features that decide how fast a model can be.
_TELLING = ("avx2", "fma", "f16c", "avx512", "avx_vnni", "amx", "asimd", "sve", "i8mm", "bf16")


def run(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this installation.

    Versions, CPU, GPU, caches, and whether what is kept is intact.

    Fails when something is damaged.

    \b
    Examples:
      whitebox doctor
      whitebox doctor --json
    """
    from whitebox.registry import Registry

    home = home_of(context)
    with Registry(home) as registry:
        report: dict[str, Any] = {
            "versions": _versions(),
            "machine": _machine(),
            "gpu": _gpu(),
            "runtime": _runtime(),
            "home": _home(home, registry),
        }
        damaged = registry.blobs.verify()
    report["home"]["damaged"] = damaged
    typer.echo(json.dumps(report, indent=2) if as_json else _readable(report))
    if damaged:
        raise StorageError(
            f"{count(len(damaged), 'blob')} damaged: register again the models that use them"
        )


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"whitebox": version("whitebox-runtime"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    from whitebox.compiler.target import cpu_flags, host_target

    target = host_target()
    features = sorted(flag for flag in cpu_flags() if flag.startswith(_TELLING))
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": target.threads,
        "target": target.key,
        "lanes": target.lanes,
        "features": features,
    }


def _gpu() -> str:
    """The GPU that could be used, or why there is none."""
    try:
        import cupy
    except ImportError:
        return "none (cupy is not installed: pip install 'whitebox-runtime[cuda]')"
    try:
        if not cupy.cuda.is_available():
            return "none (no CUDA device, or no driver)"
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
        return str(name.decode() if isinstance(name, bytes) else name)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"none ({error})"


def _runtime() -> dict[str, Any]:
    """What loading the runtime brings into this process."""
    # Imported for its effect: these are the libraries that a serving process loads.
    import whitebox.runtime.runtime  # noqa: F401
    from whitebox.runtime.native import llvm_loaded

    return {"llvm_loaded": llvm_loaded()}


def _home(home: Path, registry: Registry) -> dict[str, Any]:
    records = registry.list()
    kernels = _files(home / "kernels")
    return {
        "path": str(home),
        "models": len({record.name for record in records}),
        "versions": len(records),
        "blob_bytes": sum(_files(home / "blobs").values()),
        "kernels": sum(1 for file in kernels if file.endswith(".o")),
        "kernel_bytes": sum(kernels.values()),
    }


def _files(folder: Path) -> dict[str, int]:
    """Sizes of the files in a folder that may change while it is read."""
    found = {}
    for file in folder.rglob("*"):
        try:
            if file.is_file():
                found[str(file)] = file.stat().st_size
        except FileNotFoundError:
            continue
    return found


def _readable(report: Mapping[str, Any]) -> str:
    machine, home = report["machine"], report["home"]
    loaded = {True: "loaded", False: "not loaded", None: "cannot tell on this system"}
    damaged = home["damaged"]
    rows = [
        *report["versions"].items(),
        ("system", machine["system"]),
        ("cpu features", " ".join(machine["features"]) or "unknown"),
        ("target", f"{machine['target']}, {machine['lanes']} float32 lanes"),
        ("threads", f"{machine['threads']} of {count(machine['cores'] or 1, 'core')}"),
        ("gpu", report["gpu"]),
        ("LLVM", f"{loaded[report['runtime']['llvm_loaded']]} in this process"),
        ("home", home["path"]),
        ("models", f"{home['models']} in {count(home['versions'], 'version')}"),
        ("weights", size(home["blob_bytes"])),
        ("kernels", f"{home['kernels']}, {size(home['kernel_bytes'])}"),
        ("integrity", "; ".join(damaged) if damaged else "every blob matches its digest"),
    ]
    return columns(rows)
