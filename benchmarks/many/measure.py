"""What is measured of a set of models, engine by engine.

What enters: a set's name, how many models, how long to time. What leaves: rows, one figure of each
engine in a row. Engines run in processes of their own and take turns; every one's answers are
compared with onnxruntime's.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.agreement import LIMIT, QUANTIZED, worst_error
from benchmarks.many import sets
from benchmarks.many.engines import Answer
from benchmarks.many.load import Timing
from benchmarks.many.processes import Hosted, HostFailed
from benchmarks.many.recipes import RECIPES
from benchmarks.models import ModelUnavailable

OURS, PEER = "whitebox", "onnxruntime"
SERVERS = ("whitebox-rest", "mlserver")
CLIENTS = 4
# Of what the slower engine can answer at most: both can hold it.
LOAD_SHARE = 0.7
ROUNDS = 3
# How many models are compared bit by bit with a runtime of their own.
ALONE = 5
SEVERAL = 20
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One figure of each engine that has it. `bar` says what was aimed at."""

    set: str
    what: str
    unit: str
    values: dict[str, float]
    lower_is_better: bool = True
    bar: str = ""

    @property
    def better(self) -> float | None:
        """How many times better Whitebox is than onnxruntime."""
        ours, peer = self.values.get(OURS), self.values.get(PEER)
        if not ours or not peer:
            return None
        return peer / ours if self.lower_is_better else ours / peer

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return {**asdict(self), "better": self.better}


@dataclass(frozen=True)
class Settings:
    """What a user of the benchmark chooses. `count` is None for each set's own."""

    count: int | None
    seconds: float
    servers: bool


def measure(names: Sequence[str], settings: Settings, tell: Tell) -> Iterator[Row]:
    """All rows of one set, then of the next."""
    for name in names:
        count = settings.count or RECIPES[name]
        tell(f"{name}: {count} models")
        try:
            count = len(sets.load(name, count).files)
        except ModelUnavailable as error:
            tell(f"{name}: skipped, {error}")
            continue
        with tempfile.TemporaryDirectory(prefix="whitebox-many-") as home:
            yield from _Measured(name, count, home, settings, tell).rows()


class _Measured:
    """The measurements of one set."""

    def __init__(self, name: str, count: int, home: str, settings: Settings, tell: Tell) -> None:
        self.name, self.count, self.home = name, count, home
        self.settings, self.tell = settings, tell
        self.limit = QUANTIZED.relative if name == "unrelated" else LIMIT

    def rows(self) -> Iterator[Row]:
        yield from self._registrations()
        yield self._row("load all models", "s", self._loads())
        with ExitStack() as stack:
            engines = {name: stack.enter_context(Hosted(name)) for name in (OURS, PEER)}
            for engine in engines.values():
                self._open(engine)
            yield from self._first_answers(engines)
            yield from self._load(engines)
            if self.name == "heads":
                yield from self._heads(engines)
            yield from self._sharing(engines[OURS])
        if self.settings.servers:
            yield from self._servers()

    def _row(self, what: str, unit: str, values: Mapping[str, float], **more: Any) -> Row:
        return Row(self.name, what, unit, dict(values), **more)

    def _open(self, engine: Hosted) -> float:
        return engine.call("open", self.name, self.count, self.home)

    def _registrations(self) -> Iterator[Row]:
        self.tell("registering")
        with Hosted(OURS) as engine:
            self._open(engine)
            done = engine.call("register")
        times = [seconds for seconds, _ in done]
        if self.name == "unrelated":
            yield self._row("register all models", "s", {OURS: sum(times)})
            return
        yield self._row("register the first", "s", {OURS: times[0]})
        if len(times) == 1:
            return
        bar = "≤ 50 ms"
        p50, p99 = np.percentile(times[1:], (50, 99)) * 1e3
        yield self._row("register another, p50", "ms", {OURS: p50}, bar=bar)
        yield self._row("register another, p99", "ms", {OURS: p99}, bar=bar)
        compiled = sum(kernels for _, kernels in done[1:])
        yield self._row("kernels compiled for all others", "", {OURS: compiled}, bar="0")

    def _loads(self) -> dict[str, float]:
        """Seconds from the start of a runtime to all models loaded."""
        self.tell("loading")
        found = {}
        for name in (OURS, PEER):
            with Hosted(name) as engine:
                found[name] = self._open(engine) + engine.call("load")
        return found

    def _first_answers(self, engines: Mapping[str, Hosted]) -> Iterator[Row]:
        self.tell("first answers")
        empty = {name: engine.call("memory_mb") for name, engine in engines.items()}
        first = {name: engine.call("first_answers") for name, engine in engines.items()}
        for share in (50, 99):
            values = {name: np.percentile(times, share) * 1e3 for name, (times, _) in first.items()}
            bar = "≥ 10×" if share == 99 else ""
            yield self._row(f"cold first answer, p{share}", "ms", values, bar=bar)
        self.reference = first[PEER][1]
        yield self._differing({OURS: first[OURS][1]})
        memory = {name: engine.call("memory_mb") for name, engine in engines.items()}
        bar = {"sentiment": "≥ 25×", "heads": "≥ 50×", "unrelated": "≥ 1×"}.get(self.name, "")
        yield self._row("memory, all models touched", "MB", memory, bar=bar)
        models = {name: memory[name] - empty[name] for name in memory}
        yield self._row("of it, the models", "MB", models)

    def _differing(self, answers: Mapping[str, dict[str, Answer]]) -> Row:
        wrong = {
            engine: sum(
                worst_error(given[name], self._like(given[name], want)) > self.limit
                for name, want in self.reference.items()
            )
            for engine, given in answers.items()
        }
        return self._row("models that answer wrongly", "", wrong, bar="0")

    @staticmethod
    def _like(given: Answer, want: Answer) -> Answer:
        """JSON has one kind of text and of number; dtypes are compared elsewhere."""
        return [
            w.astype(g.dtype) if w.dtype != g.dtype else w
            for g, w in zip(given, want, strict=False)
        ]

    def _load(self, engines: Mapping[str, Hosted], clients: int = CLIENTS) -> Iterator[Row]:
        """Saturation, then a load that both hold; engines take turns."""
        self.tell(f"load on {', '.join(engines)}")
        seconds = self.settings.seconds / ROUNDS
        most = _in_turns(engines, "saturate", "zipf", clients, seconds)
        rates = {name: _rate(found) for name, found in most.items()}
        yield self._row(
            f"requests a second, {clients} clients, Zipf", "/s", rates,
            lower_is_better=False, bar="≥ 4.7×",
        )  # fmt: skip
        rate = LOAD_SHARE * min(rates.values())
        held = _in_turns(engines, "at_load", "zipf", rate, 2 * clients, seconds)
        for share, bar in (("p50_ms", ""), ("p99_ms", "≥ 5.5×")):
            values = {
                name: statistics.median(getattr(found, share) for found in timings)
                for name, timings in held.items()
            }
            what = f"latency at {rate:.0f}/s, Zipf, {share.removesuffix('_ms')}"
            yield self._row(what, "ms", values, bar=bar)

    def _heads(self, engines: Mapping[str, Hosted]) -> Iterator[Row]:
        self.tell("heads against one model, requests of several heads")
        seconds = self.settings.seconds / ROUNDS
        rates = {
            mix: {n: _rate(f) for n, f in _in_turns(engines, "saturate", mix, 16, seconds).items()}
            for mix in ("one", "even")
        }
        more = {"lower_is_better": False}
        yield self._row("requests a second, one model", "/s", rates["one"], **more)
        yield self._row("requests a second, all heads alike", "/s", rates["even"], **more)
        share = {name: rates["even"][name] / rates["one"][name] for name in engines}
        yield self._row("all heads over one model", "", share, bar="≥ 0.8", **more)
        models = min(SEVERAL, self.count)
        one = _in_turns(engines, "several", 1, seconds)
        several = _in_turns(engines, "several", models, seconds)
        cost = {name: min(several[name]) / min(one[name]) for name in engines}
        yield self._row(f"a request for {models} heads over one", "", cost, bar="< 1.5")

    def _sharing(self, engine: Hosted) -> Iterator[Row]:
        """The same bits as from a runtime that holds one model."""
        self.tell("sharing on and off")
        models = min(ALONE, self.count)
        shared = engine.call("answers", models, 3)
        with Hosted("whitebox-alone") as alone:
            self._open(alone)
            own = alone.call("answers", models, 3)
        differ = sum(not _same_bits(shared[name], own[name]) for name in shared)
        what = f"models of {models} whose bits depend on sharing"
        yield self._row(what, "", {OURS: differ}, bar="0")

    def _servers(self) -> Iterator[Row]:
        self.tell("servers")
        with ExitStack() as stack:
            engines: dict[str, Hosted] = {}
            ready: dict[str, float] = {}
            first: dict[str, dict[str, Answer]] = {}
            for name in SERVERS:
                engine = stack.enter_context(Hosted(name))
                try:
                    ready[name] = self._open(engine)
                    first[name] = engine.call("first_answers")[1]
                except HostFailed as error:  # it may not be installed; the others go on
                    self.tell(f"{name}: skipped, {str(error).strip().splitlines()[-1]}")
                else:
                    engines[name] = engine
            yield self._row("server ready", "s", ready)
            yield self._differing(first)
            memory = {name: engine.call("memory_mb") for name, engine in engines.items()}
            yield self._row("memory of the server", "MB", memory)
            if engines:
                yield from self._load(engines)


def _in_turns(engines: Mapping[str, Hosted], method: str, *given: Any) -> dict[str, list[Any]]:
    """The results of several rounds."""
    found: dict[str, list[Any]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            found[name].append(engine.call(method, *given))
    return found


def _rate(timings: Sequence[Timing]) -> float:
    return statistics.median(timing.requests_per_s for timing in timings)


def _same_bits(left: Sequence[Answer], right: Sequence[Answer]) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
        if a.dtype != object
    )
