"""Rules for text: counts of n-grams that only a product reads are never counted.

A pipeline cuts a text into tokens, counts the n-grams of a dictionary and multiplies the counts, of
which nearly all are zero, by weights. The sum of the weights' rows of the n-grams that are there
is the same but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import INPUT, OUTPUT, Node, constant
from whitebox.ir.ngrams import Gram, dictionary
from whitebox.ir.reference.text import PLAIN_LOCALES, NgramTable
from whitebox.passes.rewrite import Rule, rule


@dataclass(frozen=True)
class _Source:
    """The text that tokens are cut from, how its case is changed, and how it is cut."""

    text: Node
    case: str
    words: bool
    pad: str


@rule("Gemm", "MatMul")
def sum_ngrams(node: Node) -> Node | None:
    """Concat(TfIdfVectorizer(Tokens(T)), …) · W + b = whitebox.NgramSum(T, W) + b"""
    if node.op == "Gemm" and not _is_plain(node):
        return None
    features, weights, *bias = node.inputs
    if features is None or weights is None or weights.tensor.dtype != "float32":
        return None
    counts = _parts(features)
    sources = [_source(each.inputs[0]) for each in counts]
    first = sources[0] if sources else None
    if first is None or any(
        each is None or (each.text, each.case) != (first.text, first.case) for each in sources
    ):
        return None
    known = _dictionary(tuple(counts), tuple((s.words, s.pad) for s in sources if s is not None))
    if known is None:
        return None
    found, parts = known
    if node.op == "Gemm" and node.attr("transB"):
        weights = ops.node("Transpose", weights, perm=(1, 0))
    slots, pool = (constant(array) for array in found)
    total = ops.node(
        "whitebox.NgramSum", first.text, weights, slots, pool, case=first.case, parts=parts
    )
    return total if not bias or bias[0] is None else ops.node("Add", total, bias[0])


def _is_plain(node: Node) -> bool:
    scaled = (node.attr("alpha"), node.attr("beta")) != (1.0, 1.0)
    return not scaled and not node.attr("transA")


def _parts(features: Node) -> list[Node]:
    """The counts side by side; none when there is something else among them."""
    if features.op == "Concat" and features.attr("axis") in (1, -1):
        parts = [each for each in features.inputs if each is not None]
    else:
        parts = [features]
    countable = all(
        each.op == "TfIdfVectorizer"
        and each.attr("mode") != "IDF"
        and each.attr("max_skip_count") == 0
        and each.attrs.get("pool_strings")
        and each.tensor.rank == 2
        for each in parts
    )
    return parts if countable else []


def _source(tokens: Node | None) -> _Source | None:
    """Where tokens come from, when they are characters or words of a text that is an input."""
    if tokens is None:
        return None
    if tokens.op == OUTPUT and tokens.attr("index") == 0:
        tokens = tokens.inputs[0]
    assert tokens is not None
    if tokens.op == "StringSplit":
        if tokens.attrs.get("delimiter") or tokens.attrs.get("maxsplit") is not None:
            return None
        words, pad = True, ""
    elif tokens.op == "whitebox.Tokenize":
        if (
            tokens.attr("separators") != ("",)
            or tokens.attr("mark")
            or tokens.attr("min_chars") > 1
        ):
            return None
        words, pad = False, tokens.attr("pad")
    else:
        return None
    text, case = tokens.inputs[0], "NONE"
    if text is not None and text.op == "StringNormalizer" and not text.attrs.get("stopwords"):
        case = text.attr("case_change_action", "NONE")
        if case != "NONE" and text.attrs.get("locale") not in PLAIN_LOCALES:
            return None
        text = text.inputs[0]
    return _Source(text, case, words, pad) if text is not None and text.op == INPUT else None


@lru_cache(maxsize=32)
def _dictionary(
    counts: tuple[Node, ...], cuts: tuple[tuple[bool, str], ...]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[tuple[int, int, int], ...]] | None:
    """One dictionary for all parts, and (words, least n, most n) of each part.

    None when tokens that only fill up a row are counted too.
    """
    grams: list[Gram] = []
    parts, column = [], 0
    for number, (node, (words, pad)) in enumerate(zip(counts, cuts, strict=True)):
        table = NgramTable(node)
        for length in table.lengths:
            for gram, place in table.by_length.get(length, {}).items():
                tokens = (gram,) if length == 1 else gram
                if pad in tokens:
                    return None
                weight = float(table.weights[place])
                grams.append(Gram(number, words, tokens, column + place, weight))
        parts.append((int(words), table.lengths.start, table.lengths.stop - 1))
        column += table.columns
    return (dictionary(grams), tuple(parts)) if grams else None


TEXT: tuple[Rule, ...] = (sum_ngrams,)
