"""Rows of figures as a table for a person, as JSON, and as a table of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.many.measure import Row
from benchmarks.report import provenance

_TITLES = {
    "whitebox": "Whitebox",
    "onnxruntime": "onnxruntime",
    "whitebox-rest": "Whitebox, HTTP",
    "mlserver": "MLServer",
}


def line(row: Row) -> str:
    """One row as one line."""
    figures = ", ".join(f"{name} {_digits(value)}" for name, value in row.values.items())
    better = "" if row.better is None else f" ({row.better:.2f}×)"
    return f"{row.set}: {row.what}: {figures} {row.unit}{better} {row.bar}".rstrip()


def table(rows: Sequence[Row]) -> Table:
    """All rows, for a terminal."""
    made = Table(title="Many models, one runtime")
    header, lines = cells([row.to_dict() for row in rows])
    for number, title in enumerate(header):
        made.add_column(title, justify="left" if number < 2 else "right")
    last = None
    for row, each in zip(rows, lines, strict=True):
        if last not in (None, row.set):
            made.add_section()
        last = row.set
        made.add_row(*each)
    return made


def document(rows: Sequence[Row]) -> dict[str, object]:
    """The whole run as plain data."""
    return {"benchmark": "many", **provenance(), "rows": [row.to_dict() for row in rows]}


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of rows as a document has them."""
    engines = [name for name in _TITLES if any(name in row["values"] for row in rows)]
    header = ["models", "what", *(_TITLES[name] for name in engines), "better", "aim"]
    lines = [
        [
            row["set"],
            f"{row['what']}, {row['unit']}" if row["unit"] else row["what"],
            *(_digits(row["values"].get(name)) for name in engines),
            "" if row["better"] is None else f"{row['better']:.2f}×",
            row["bar"],
        ]
        for row in rows
    ]
    return header, lines


def _digits(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
