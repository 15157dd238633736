"""Operators on text: what ONNX means by them, prepared once a node.

onnx's own reference builds its dictionaries anew at each call and steps through every n-gram in
Python; here an n-gram is one look-up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from whitebox.ir.graph import Node
from whitebox.ir.ngrams import Gram, grams_of
from whitebox.ir.reference.table import Values, means

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_LOWER = str.maketrans(_UPPER, _UPPER.lower())
_TO_UPPER = str.maketrans(_UPPER.lower(), _UPPER)
# Locales that know no letters but those of ASCII.
PLAIN_LOCALES = ("C", "POSIX")


def case_change(action: str, locale: str | None) -> Callable[[str], str]:
    """What a StringNormalizer does to the case of a text."""
    if action == "NONE":
        return str
    if locale in PLAIN_LOCALES:
        table = _TO_LOWER if action == "LOWER" else _TO_UPPER
        return lambda text: text.translate(table)
    return str.lower if action == "LOWER" else str.upper


@means("StringNormalizer")
def _normalize(node: Node, values: Values) -> Any:
    (x,) = values
    stopwords: Sequence[str] = node.attr("stopwords") or ()
    change = case_change(node.attr("case_change_action", "NONE"), node.attr("locale"))
    texts = x.ravel().tolist()
    if stopwords:
        exact = bool(node.attrs.get("is_case_sensitive", 0))
        unwanted = set(stopwords) if exact else {word.lower() for word in stopwords}
        texts = [t for t in texts if (t if exact else t.lower()) not in unwanted]
        shape: tuple[int, ...] = (max(len(texts), 1),)
        return _texts([change(text) for text in texts or [""]], (1, *shape)[-x.ndim :])
    return _texts([change(text) for text in texts], x.shape)


@means("StringSplit")
def _split(node: Node, values: Values) -> Any:
    (x,) = values
    delimiter, most = node.attrs.get("delimiter") or None, node.attrs.get("maxsplit", -1)
    rows = [text.split(delimiter, -1 if most is None else most) for text in x.ravel().tolist()]
    counts = np.array([len(row) for row in rows], np.int64).reshape(x.shape)
    return [_padded(rows, x.shape, ""), counts]


@means("whitebox.Tokenize")
def _tokenize(node: Node, values: Values) -> Any:
    (x,) = values
    tokens = tokenizer(node)
    rows = [tokens(text) for text in x.ravel().tolist()]
    if node.attr("mark"):
        rows = [["\x02", *row, "\x03"] for row in rows]
    return _padded(rows, x.shape, node.attr("pad"))


def tokenizer(node: Node) -> Callable[[str], list[str]]:
    """A text's tokens: its characters, what an expression finds, or what separators leave."""
    fewest, expression = node.attr("min_chars"), node.attr("expression")
    separators = node.attr("separators")
    if separators == ("",):
        return list if fewest <= 1 else lambda text: []
    if expression:
        find = re.compile(expression, re.ASCII).finditer
        return lambda text: [m[0] for m in find(text) if len(m[0]) >= fewest]
    split = re.compile("|".join(f"(?:{each})" for each in separators), re.ASCII).split
    return lambda text: [token for token in split(text) if token and len(token) >= fewest]


@means("TfIdfVectorizer")
def _tfidf(node: Node, values: Values) -> Any:
    (x,) = values
    table = _tables.get(node)
    if table is None:
        table = _tables[node] = NgramTable(node)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    result = np.zeros((len(rows), table.columns), np.float32)
    for row, counts in zip(rows.tolist(), result, strict=True):
        np.add.at(counts, table.found(row), np.float32(1))
    return table.weighed(result).reshape(*x.shape[:-1], table.columns)


class NgramTable:
    """The dictionary of a TfIdfVectorizer, by n-gram.

    `found(items)` are the columns of the n-grams of a row, each as often as it is there.
    """

    def __init__(self, node: Node) -> None:
        pool: Sequence[Any] = node.attr("pool_strings") or node.attr("pool_int64s") or ()
        indexes: Sequence[int] = node.attr("ngram_indexes")
        starts: Sequence[int] = node.attr("ngram_counts")
        self.columns = max(indexes) + 1
        self.lengths = range(node.attr("min_gram_length"), node.attr("max_gram_length") + 1)
        self.skips = range(1, node.attr("max_skip_count") + 2)
        self.by_length: dict[int, dict[Any, int]] = {}
        number = 0
        for length, start in enumerate(starts, 1):
            end = starts[length] if length < len(starts) else len(pool)
            items = pool[start:end]
            grams = items if length == 1 else list(zip(*[iter(items)] * length, strict=False))
            self.by_length[length] = dict(zip(grams, indexes[number:], strict=False))
            number += len(grams)
        self._mode = node.attr("mode")
        self.weights = np.ones(self.columns, np.float32)
        if node.attrs.get("weights"):
            self.weights[list(indexes)] = node.attr("weights")

    def found(self, items: Sequence[Any]) -> list[int]:
        """The columns of the n-grams of a row."""
        parts: list[Iterable[int | None]] = []
        for length in self.lengths:
            get = self.by_length.get(length, {}).get
            if length == 1:
                parts.append(map(get, items))
                continue
            for skip in self.skips:
                windows = [items[skip * place :] for place in range(length)]
                parts.append(map(get, zip(*windows, strict=False)))
        return [column for column in chain(*parts) if column is not None]

    def weighed(self, counts: np.ndarray) -> np.ndarray:
        """Counts as the mode wants them."""
        if self._mode == "TF":
            return counts
        return (
            np.minimum(counts, 1) * self.weights if self._mode == "IDF" else counts * self.weights
        )


_tables: WeakKeyDictionary[Node, NgramTable] = WeakKeyDictionary()


@means("whitebox.NgramSum")
def _ngram_sum(node: Node, values: Values) -> Any:
    texts, table, _, pool = values
    known = {content: (column, scale) for content, column, scale in grams_of(pool)}
    change = case_change(node.attr("case"), "C")
    result = np.zeros((len(texts), table.shape[1]), table.dtype)
    for total, text in zip(result, texts.tolist(), strict=True):
        for content in _contents(change(text), node.attr("parts")):
            if content in known:
                column, scale = known[content]
                total += scale * table[column]
    return result


def _contents(text: str, parts: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, ...]]:
    """All n-grams of a text, as dictionaries have them."""
    for number, (words, least, most) in enumerate(parts):
        tokens = text.split() if words else list(text)
        for first in range(len(tokens)):
            for length in range(least, min(most, len(tokens) - first) + 1):
                gram = Gram(number, bool(words), tuple(tokens[first : first + length]), 0, 1.0)
                yield gram.content


def _texts(texts: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    made = np.empty(len(texts), object)
    made[:] = texts
    return made.reshape(shape)


def _padded(rows: Sequence[Sequence[str]], shape: tuple[int, ...], pad: str) -> np.ndarray:
    """Rows of texts as an array whose last axis is as long as the longest."""
    longest = max(map(len, rows), default=0)
    made = np.full((len(rows), longest), pad, object)
    for place, row in zip(made, rows, strict=True):
        place[: len(row)] = row
    return made.reshape(*shape, longest)
