"""Free shapes: kernels that serve every size against those made for one, and against the peers.

What enters: models of the catalogue, sizes, and settings. What leaves: a `Row` a model and size.
Whitebox runs the same request by its general plan and by the plan made for the size; onnxruntime
and OpenVINO keep their dynamic shapes. Engines take turns in one process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.agreement import LIMIT, worst_error
from benchmarks.catalogue import MODELS, Model
from benchmarks.engines import Feeds, Run, load_onnxruntime
from benchmarks.latency import Settings, take_turns
from benchmarks.models import with_weights
from whitebox.compiler.structure import Structured
from whitebox.compiler.target import host_target
from whitebox.ir import onnx_io
from whitebox.passes import share
from whitebox.registry.records import signature_of
from whitebox.runtime.engine import Engine
from whitebox.runtime.params import ParameterStore
from whitebox.runtime.prepare import Preparer
from whitebox.runtime.served import ServedModel

# Sizes that each model is asked for: none is the one that it is registered for.
SIZES: Mapping[str, tuple[Mapping[str, int], ...]] = {
    "minilm-int8": tuple({"N": n, "L": length} for n, length in ((1, 16), (1, 77), (8, 64))),
    "t5-enc-int8": ({"N": 1, "L": 40},),
    "magika": tuple({"N": n} for n in (2, 8, 32)),
    "ppocr-cls": tuple({"N": n} for n in (2, 8, 32)),
    "ppocr4-det": ({"N": 1, "H": 320, "W": 416}, {"N": 1, "H": 640, "W": 480}),
    "nudenet": ({"N": 1, "H": 256, "W": 320},),
}

SPECIAL, GENERAL = "specialised", "symbolic"


@dataclass
class Row:
    """One model at one size: times in ms by engine, and until a first answer there."""

    model: str
    sizes: dict[str, int]
    first_ms: float = 0.0
    compiled: int = 0
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    failure: str | None = None

    def median(self, name: str) -> float | None:
        """An engine's middle time."""
        times = self.times_ms.get(name)
        return float(np.median(times)) if times else None

    @property
    def ratio(self) -> float | None:
        """The general kernels' time over that of those made for the size."""
        general, special = self.median(GENERAL), self.median(SPECIAL)
        return general / special if general and special else None

    def to_dict(self) -> dict[str, object]:
        """For the JSON report."""
        medians = {name: self.median(name) for name in self.times_ms}
        items = self.sizes.get("N", 1)
        best = [time for time in (medians.get(GENERAL), medians.get(SPECIAL)) if time]
        return {
            "model": self.model,
            "sizes": self.sizes,
            "first_answer_ms": self.first_ms,
            "kernels_compiled": self.compiled,
            "median_ms": medians,
            "symbolic_over_specialised": self.ratio,
            "items_per_second": items / min(best) * 1e3 if best else None,
            "failure": self.failure,
        }


def measure(names: Sequence[str], settings: Settings) -> Iterator[Row]:
    """Each model is registered once; a row is there as soon as its size is done."""
    for name in names:
        model = MODELS[name]
        with with_weights(model, settings.seed) as file, tempfile.TemporaryDirectory() as home:
            yield from _measure_model(model, file, Path(home), settings)


def _measure_model(model: Model, file: Path, home: Path, settings: Settings) -> Iterator[Row]:
    whitebox = _Whitebox(model, file, home, settings.threads)
    for sizes in SIZES[model.name]:
        feeds = model.feeds(settings.seed, **sizes)
        row = Row(model.name, dict(sizes))
        runs = whitebox.runs(feeds, row)
        runs["onnxruntime"] = load_onnxruntime(file, feeds, settings.threads, "f32")
        runs["openvino"] = _load_openvino(file, feeds, settings.threads)
        right = runs["onnxruntime"]()
        error = max(worst_error(list(runs[kind]()), right) for kind in (GENERAL, SPECIAL))
        if error > LIMIT:
            row.failure = f"wrong answer: relative error {error:.1e}"
        for engine, times in take_turns(runs, settings):
            row.times_ms.setdefault(engine, []).extend(times)
        yield row


class _Whitebox:
    """One model with its family of kernels, as after registration and a first request."""

    def __init__(self, model: Model, file: Path, home: Path, threads: int) -> None:
        graph = share(onnx_io.load(file, model.name))
        inputs, outputs = signature_of(graph.model)
        self.served = ServedModel(model.name, Structured.of(graph, "f32"), inputs, outputs)
        self.preparer = Preparer(host_target(threads), home, ParameterStore(threads=threads))
        self.engine = Engine(threads)
        self.preparer.generalize(self.served.structured)
        # Weights are packed, and what is loaded once is loaded, before a new shape is timed.
        values, shapes = self.served.check(model.feeds())
        self.engine.run(self.served.ready(shapes, self.preparer, self.engine), values)

    def runs(self, feeds: Feeds, row: Row) -> dict[str, Run]:
        """The same request by the general plan and by that made for the size."""
        values, shapes = self.served.check(feeds)
        before, start = self.preparer.builder.compiled_total, time.perf_counter()
        general = self.served.ready(shapes, self.preparer, self.engine)
        self.engine.run(general, values)
        row.first_ms = (time.perf_counter() - start) * 1e3
        row.compiled = self.preparer.builder.compiled_total - before
        special, _ = self.served.load(shapes, self.preparer, self.engine)
        return {
            GENERAL: lambda: self.engine.run(general, values),
            SPECIAL: lambda: self.engine.run(special, values),
        }


def _load_openvino(file: Path, feeds: Feeds, threads: int) -> Run:
    """OpenVINO with the dynamic shapes of the file."""
    import openvino

    core = openvino.Core()
    settings = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(file), "CPU", settings).create_infer_request()
    return lambda: list(request.infer(feeds, share_inputs=True).values())


def table(rows: Sequence[Row]) -> str:
    """The rows for people: milliseconds, and ratios to the kernels made for the size."""
    head = ("model", "sizes", "first", "compiled", SPECIAL, GENERAL, "ratio", "ort", "openvino")
    lines = ["  ".join(f"{name:>12}" for name in head)]
    for row in rows:
        sizes = ",".join(f"{key}={size}" for key, size in row.sizes.items())
        cells = [row.model, sizes, f"{row.first_ms:.0f}", str(row.compiled)]
        medians = [row.median(SPECIAL), row.median(GENERAL), row.ratio]
        medians += [row.median("onnxruntime"), row.median("openvino")]
        cells += ["-" if value is None else f"{value:.2f}" for value in medians]
        lines.append("  ".join(f"{cell:>12}" for cell in cells) + f"  {row.failure or ''}")
    return "\n".join(lines)
