"""Sentiment pipelines: one text to how likely it is meant kindly.

Lower case, then counts of the characters' 3-grams and of the words and pairs of words, weighted by
how rare they are, then a logistic regression. Every pipeline has the same dictionaries; each has
been fitted to a sample of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import helper

from benchmarks.many import data, proto
from benchmarks.many.recipes import Feeds

CHARACTERS, WORDS = 12_000, 8_000
REQUESTS = 512


def build(files: Sequence[Path]) -> list[Feeds]:
    """Write the models; give requests."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    texts, ratings = data.opinions()
    chars = TfidfVectorizer(
        analyzer=_char_grams, max_features=CHARACTERS, norm=None, dtype=np.float32
    )
    words = TfidfVectorizer(analyzer=_word_grams, max_features=WORDS, norm=None, dtype=np.float32)
    features = hstack([chars.fit_transform(texts), words.fit_transform(texts)]).tocsr()
    nodes = _nodes(chars, words)
    for seed, file in enumerate(files):
        rows = np.random.default_rng(seed).choice(len(texts), 5000)
        # Scaled: the solver wants small numbers. The scale goes into the weights.
        model = SGDClassifier("log_loss", alpha=1e-2, max_iter=5, tol=None, random_state=seed)
        model.fit(features[rows] * 0.1, ratings[rows] > 0)
        stored = {
            "weights": np.ascontiguousarray(model.coef_.T * 0.1, np.float32),
            "bias": model.intercept_.astype(np.float32),
        }
        proto.save(file, nodes, (proto.STRING, ["N"]), ["N", 1], stored)
    chosen = np.random.default_rng(0).choice(len(texts), REQUESTS, replace=False)
    return [{"x": np.array([texts[row]], object)} for row in chosen]


def _char_grams(text: str) -> list[tuple[str, ...]]:
    return _grams(list(text.lower()), 3)


def _word_grams(text: str) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [*_grams(words, 1), *_grams(words, 2)]


def _grams(items: list[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(items[at : at + length]) for at in range(len(items) - length + 1)]


def _nodes(chars: object, words: object) -> list:
    node = helper.make_node
    return [
        node("StringNormalizer", ["x"], ["text"], case_change_action="LOWER", locale="C"),
        node(
            "Tokenizer", ["text"], ["chars"], domain="com.microsoft",
            mark=0, mincharnum=1, pad_value="", separators=[""],
        ),
        node("StringSplit", ["text"], ["words", "word_counts"]),
        _ngrams("chars", chars),
        _ngrams("words", words),
        node("Concat", ["chars_tfidf", "words_tfidf"], ["features"], axis=1),
        node("Gemm", ["features", "weights", "bias"], ["score"]),
        node("Sigmoid", ["score"], ["y"]),
    ]  # fmt: skip


def _ngrams(name: str, vectorizer: object) -> object:
    """A TfIdfVectorizer with a fitted dictionary: n-grams by length, each with its column."""
    grams: dict[tuple[str, ...], int] = vectorizer.vocabulary_  # type: ignore[attr-defined]
    ordered = sorted(grams, key=lambda gram: (len(gram), gram))
    longest = len(ordered[-1])
    pool = [item for gram in ordered for item in gram]
    starts = [sum(len(gram) for gram in ordered if len(gram) < n) for n in range(1, longest + 1)]
    return helper.make_node(
        "TfIdfVectorizer",
        [name],
        [f"{name}_tfidf"],
        mode="TFIDF",
        min_gram_length=len(ordered[0]),
        max_gram_length=longest,
        max_skip_count=0,
        pool_strings=pool,
        ngram_counts=starts,
        ngram_indexes=[int(grams[gram]) for gram in ordered],
        # In the order of the pool.
        weights=[float(vectorizer.idf_[grams[gram]]) for gram in ordered],  # type: ignore[attr-defined]
    )
