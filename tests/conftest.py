"""What the tests share: a home of their own, real models, and tiny ones in ONNX's text form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx.parser
import pytest

from benchmarks.models import ModelUnavailable, path

TINY = """
<ir_version: 10, opset_import: ["" : 21]>
tiny (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w = {1,2,3,4, 5,6,7,8, 9,10,11,12, 13,14,15,16}, float[4] b = {1,-2,3,-400}>
{
   product = MatMul(x, w)
   sum = Add(product, b)
   y = Relu(sum)
}
"""


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test sees or changes what the user has registered; kernels are shared by all tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHITEBOX_HOME", str(home))
        patch.delenv("WHITEBOX_DEBUG", raising=False)
        yield home


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """Name → file of a model of the catalogue; skips the test where it cannot be had."""

    def find(name: str) -> Path:
        try:
            return path(name)
        except ModelUnavailable as error:
            pytest.skip(str(error))

    return find


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three nodes, with a free batch dimension."""
    file = tmp_path_factory.mktemp("models") / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(TINY), file)
    return file
