"""The engines that are compared, behind one face.

What enters: a model file, one set of inputs, a number of threads and a precision. What leaves: a
function that runs the model once and returns its outputs in order. Each peer is set up the way its
own documentation recommends for low latency, in float32 or, for "bf16", in its default precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

import numpy as np

Feeds = dict[str, np.ndarray]
Run = Callable[[], list[np.ndarray]]
Load = Callable[[Path, Feeds, int, str], Run]


def load_whitebox(file: Path, feeds: Feeds, threads: int, precision: str) -> Run:
    """Whitebox, called like onnxruntime. `threads` comes from WHITEBOX_THREADS, set at start."""
    import whitebox

    session = whitebox.InferenceSession(str(file), precision=precision)
    return lambda: session.run(None, feeds)


def load_onnxruntime(file: Path, feeds: Feeds, threads: int, precision: str) -> Run:
    """onnxruntime's CPU provider with all graph optimisations, its default: always float32."""
    return _onnxruntime(file, feeds, threads, {})


def load_reference(file: Path, feeds: Feeds, threads: int) -> Run:
    """onnxruntime with exact products of 8-bit integers, to compare answers with.

    Without VNNI its default adds pairs of products in 16 bits, where they saturate: an error of
    3e-2 in the result of a quantised encoder.
    """
    return _onnxruntime(file, feeds, threads, {"session.x64quantprecision": "1"})


def _onnxruntime(file: Path, feeds: Feeds, threads: int, entries: Mapping[str, str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def load_openvino(file: Path, feeds: Feeds, threads: int, precision: str) -> Run:
    """OpenVINO, compiled for the benchmark's shapes: its fastest form.

    For "bf16" it chooses its precision itself: bf16 where the CPU multiplies in it, else float32.
    Where weights are stored as integers, its default rounds activations to 8 bits as well, an error
    of 1e-2 in the result: that is another precision than the one asked for, so it is switched off.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({name: list(array.shape) for name, array in feeds.items()})
    settings: dict[str, object] = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision == "f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: list(request.infer(feeds, share_inputs=True).values())


ENGINES: Mapping[str, Load] = MappingProxyType(
    {
        "whitebox": load_whitebox,
        "onnxruntime": load_onnxruntime,
        "openvino": load_openvino,
    }
)

_DISTRIBUTIONS = {
    "whitebox": "whitebox-runtime",
    "tvm": "apache-tvm",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "onnx": "onnx",
    "numpy": "numpy",
}


def versions() -> dict[str, str]:
    """What is installed of the engines and of what they stand on."""
    found = {}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
