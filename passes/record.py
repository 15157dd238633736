"""Decisions: what a pass did to which node, and why. Shown by `whitebox explain`.

A pass calls `decide(...)`; whoever wants to know wraps the passes in `recording()`. Without a
recorder a decision costs one lookup and is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from whitebox.ir.graph import Node


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing a pass did (or declined to do)."""

    pass_name: str
    action: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.action} {self.node}: {self.reason}"


_decisions: ContextVar[list[Decision] | None] = ContextVar("decisions", default=None)
_current_pass: ContextVar[str] = ContextVar("current_pass", default="")


@contextmanager
def recording() -> Iterator[list[Decision]]:
    """Collect the decisions made inside the block."""
    decisions: list[Decision] = []
    token = _decisions.set(decisions)
    try:
        yield decisions
    finally:
        _decisions.reset(token)


@contextmanager
def running(pass_name: str) -> Iterator[None]:
    """Name the pass that the decisions inside the block belong to."""
    token = _current_pass.set(pass_name)
    try:
        yield
    finally:
        _current_pass.reset(token)


def decide(action: str, node: Node, reason: str) -> None:
    """Record that the running pass did `action` to `node` because of `reason`."""
    decisions = _decisions.get()
    if decisions is not None:
        label = f"{node.op} {', '.join(map(str, node.types))}"
        decisions.append(Decision(_current_pass.get(), action, label, reason))
