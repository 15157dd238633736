"""What a pipeline of models is made of, read from YAML, JSON or plain Python data.

Enter: text or a mapping. Leave: a Pipeline whose keys and values are of the right kinds, and which
knows where each thing was written; or an InvalidPipeline that names the line. What the models are,
and whether they fit together, is for `compose`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import msgspec

from whitebox.errors import InvalidPipeline

_STEP_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LARGEST_BYTES = 1 << 20

Path_: TypeAlias = "tuple[str | int, ...]"


class ModelStep(msgspec.Struct, frozen=True):
    """A registered model, NAME or NAME@VERSION; `inputs` says what its inputs read."""

    model: str
    inputs: dict[str, str] = {}

    @property
    def reads(self) -> list[str]:
        return list(self.inputs.values())


class Average(msgspec.Struct, frozen=True):
    """The mean of tensors of one shape."""

    average: list[str]

    @property
    def reads(self) -> list[str]:
        return self.average


class Weighted(msgspec.Struct, frozen=True):
    """The sum of tensors of one shape, each times its weight."""

    weighted: list[str]
    weights: list[float]

    @property
    def reads(self) -> list[str]:
        return self.weighted


class Vote(msgspec.Struct, frozen=True):
    """The label that most of several give, row by row; of equally many the smallest."""

    vote: list[str]

    @property
    def reads(self) -> list[str]:
        return self.vote


class Stack(msgspec.Struct, frozen=True):
    """Tensors of one shape along a new axis."""

    stack: list[str]
    axis: int = 1

    @property
    def reads(self) -> list[str]:
        return self.stack


class Concat(msgspec.Struct, frozen=True):
    """Tensors one behind the other along an axis."""

    concat: list[str]
    axis: int = 1

    @property
    def reads(self) -> list[str]:
        return self.concat


class LabelRouter(msgspec.Struct, frozen=True):
    """Row by row the case of the label that `router` gives, or else the default."""

    router: str
    cases: dict[str, str]
    default: str

    @property
    def reads(self) -> list[str]:
        return [self.router, *self.cases.values(), self.default]


class ThresholdRouter(msgspec.Struct, frozen=True):
    """Row by row `above` where `router` gives at least the threshold, else `below`."""

    router: str
    threshold: float
    above: str
    below: str

    @property
    def reads(self) -> list[str]:
        return [self.router, self.above, self.below]


Combiner: TypeAlias = Average | Weighted | Vote | Stack | Concat | LabelRouter | ThresholdRouter
Step: TypeAlias = ModelStep | Combiner

_KINDS: Mapping[str, type[Step]] = {
    "model": ModelStep,
    "average": Average,
    "weighted": Weighted,
    "vote": Vote,
    "stack": Stack,
    "concat": Concat,
    "router": LabelRouter,
}


@dataclass(frozen=True)
class Pipeline:
    """Steps by name, the outputs' names and what they read, and the inputs, where declared.

    Something read is "input", "step.output", or "step" where a step has one output.
    """

    steps: Mapping[str, Step]
    outputs: Mapping[str, str]
    inputs: tuple[str, ...] | None = None
    name: str | None = None
    source: str = "the pipeline"
    lines: Mapping[Path_, int] = field(default_factory=dict, repr=False)

    def place(self, *path: str | int) -> str:
        """Where something was written, as an error begins: "p.yaml, line 3: step mean"."""
        return _place(self.source, self.lines, path)


def read_pipeline(spec: str | Path | bytes | Mapping[str, Any]) -> Pipeline:
    """The pipeline of a file (path), of text (bytes) or of plain data. Raises InvalidPipeline."""
    if isinstance(spec, Mapping):
        return _pipeline(spec, "the pipeline", {})
    if isinstance(spec, bytes):
        data, source = spec, "the pipeline"
    else:
        data, source = _read(Path(spec)), Path(spec).name
    if len(data) > _LARGEST_BYTES:
        raise InvalidPipeline(f"{source}: is larger than a pipeline can be; give a YAML file")
    from whitebox.ir.yaml_lines import load_yaml

    lines: dict[Path_, int] = {}
    return _pipeline(load_yaml(data, source, lines), source, lines)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What a wrong name may have meant, or else what there is."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there is {', '.join(names)}" if names else "there is none"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidPipeline(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise InvalidPipeline(f"cannot read {path}: {error.strerror}; check the path") from error


def _pipeline(data: Any, source: str, lines: Mapping[Path_, int]) -> Pipeline:
    def fail(message: str, *path: str | int) -> NoReturn:
        raise InvalidPipeline(f"{_place(source, lines, path)}: {message}")

    if not isinstance(data, Mapping):
        fail("must be a mapping with steps and outputs")
    known = ("name", "inputs", "steps", "outputs")
    for key in data:
        if key not in known:
            fail(f"has no key {str(key)!r}: {suggestion(str(key), known)}", str(key))
    for key in ("steps", "outputs"):
        if not isinstance(data.get(key), Mapping) or not data[key]:
            fail(f"needs {key!r}: a mapping of names", key)

    def value(key: str, type: Any) -> Any:
        try:
            return msgspec.convert(data.get(key), type)
        except msgspec.ValidationError as error:
            fail(_words(error), key)

    name, inputs = value("name", str | None), value("inputs", tuple[str, ...] | None)
    outputs = value("outputs", dict[str, str])
    steps: dict[str, Step] = {}
    for step_name, step in data["steps"].items():
        if not isinstance(step_name, str) or not _STEP_NAME.fullmatch(step_name):
            fail(
                f"the name {str(step_name)!r} is not of letters, digits, '_' and '-'",
                "steps",
                step_name,
            )
        try:
            steps[step_name] = _step(step)
        except msgspec.ValidationError as error:
            fail(_words(error), "steps", step_name, *_path(error))
    return Pipeline(steps, outputs, inputs, name, source, lines)


def _step(data: Any) -> Step:
    """One step. Raises msgspec.ValidationError."""
    if not isinstance(data, Mapping):
        raise msgspec.ValidationError("must be a mapping")
    kinds = [kind for kind in _KINDS if kind in data]
    if len(kinds) != 1:
        close = [match for key in data for match in difflib.get_close_matches(str(key), _KINDS)]
        guess = f"; did you mean {close[0]!r}?" if close and not kinds else ""
        raise msgspec.ValidationError(f"must have exactly one of {', '.join(_KINDS)}{guess}")
    type = _KINDS[kinds[0]]
    if type is LabelRouter and "threshold" in data:
        type = ThresholdRouter
    known = type.__struct_fields__
    for key in data:
        if key not in known:
            raise msgspec.ValidationError(
                f"a step with {kinds[0]!r} has no key {str(key)!r}: "
                f"{suggestion(str(key), known)} - at `$.{key}`"
            )
    step = msgspec.convert({**data, **_text_keys(data)}, type, strict=False)
    if not step.reads and not isinstance(step, ModelStep):
        raise msgspec.ValidationError(f"{kinds[0]!r} needs something to read")
    if isinstance(step, Weighted) and len(step.weights) != len(step.weighted):
        raise msgspec.ValidationError(
            f"{len(step.weighted)} things are weighted with {len(step.weights)} weights"
        )
    return step


def _text_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The cases with their labels as text: Python data may have numbers there."""
    cases = data.get("cases")
    if not isinstance(cases, Mapping):
        return {}
    return {"cases": {str(label): source for label, source in cases.items()}}


def _place(source: str, lines: Mapping[Path_, int], path: Path_) -> str:
    """The innermost thing on a path whose line is known, in words."""
    at = path
    while at and at not in lines:
        at = at[:-1]
    line = f", line {lines[at]}" if at in lines else ""
    step = f": step {path[1]!r}" if len(path) > 1 and path[0] == "steps" else ""
    return f"{source}{line}{step}"


def _words(error: msgspec.ValidationError) -> str:
    message = str(error).partition(" - at `")[0].replace("`", "'")
    return message[:1].lower() + message[1:]


def _path(error: msgspec.ValidationError) -> Path_:
    """Where msgspec met something: "$.weights[1]" → ("weights", 1)."""
    _, _, at = str(error).partition(" - at `$")
    found = re.findall(r"\.([^.\[`]+)|\[(\d+)\]", at)
    return tuple(int(index) if index else name for name, index in found)
