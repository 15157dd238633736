"""A model of MLServer that onnxruntime runs. Imported in MLServer's own environment, not here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput


class OnnxModel(MLModel):  # type: ignore[misc]
    """One session, one thread, as the benchmark has it for onnxruntime itself."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {each.name: _array(each) for each in payload.inputs}
        results = self._session.run(None, feeds)
        outputs = [
            _output(name, result) for name, result in zip(self._outputs, results, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def _array(given: RequestInput) -> np.ndarray:
    if given.datatype == "BYTES":
        return np.array(StringCodec.decode_input(given), object).reshape(given.shape)
    return NumpyCodec.decode_input(given)


def _output(name: str, result: np.ndarray) -> Any:
    if result.dtype == object:
        return StringCodec.encode_output(name, result.ravel().tolist())
    return NumpyCodec.encode_output(name, result)
