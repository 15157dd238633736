"""Text: tokens, n-grams and their sums, against onnxruntime and the operators they replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from whitebox import InferenceSession
from whitebox.ir import onnx_io, onnx_schema
from whitebox.ir.graph import Graph
from whitebox.ir.ngrams import Gram, dictionary, grams_of
from whitebox.passes import specialize
from whitebox.passes.simplify import simplify
from whitebox.runtime.texts import native_texts

TEXTS = [
    "the cat saw the Cat",
    "",
    "   ",
    "a",
    "\tthe  cat\u2003saw\xa0it ",
    "ÉCLAIR éclair THE",
    "the cat\x1csaw\u3000the",
    "𝔸stral the 😀 cat",
    "the" * 500,
    "acat atcat the catsaw",
]
WORDS = ["the", "cat", "saw", "é", "😀", "éclair", "it", "the cat", "cat saw", "saw the", "a"]
CHARACTERS = ["the", "cat", "he ", " ca", "aw ", "ÉCL", "écl", "a", "😀 c"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, which share kernels."""
    return tmp_path_factory.mktemp("home")


def _tfidf(source: str, result: str, grams: list[tuple[str, ...]], **attrs: Any) -> onnx.NodeProto:
    """Column i is for n-gram i, whose weight is 1 + i / 2."""
    ordered = sorted(range(len(grams)), key=lambda i: len(grams[i]))
    longest = max(map(len, grams))
    pool = [item for i in ordered for item in grams[i]]
    counts = [sum(len(g) for g in grams if len(g) < n) for n in range(1, longest + 1)]
    settings: dict[str, Any] = {
        "mode": "TFIDF",
        "min_gram_length": min(map(len, grams)),
        "max_gram_length": longest,
        "max_skip_count": 0,
    }
    return helper.make_node(
        "TfIdfVectorizer",
        [source],
        [result],
        pool_strings=pool,
        ngram_counts=counts,
        ngram_indexes=ordered,
        weights=[1 + i / 2 for i in ordered],
        **{**settings, **attrs},
    )


def _model(
    width: int = 2,
    *,
    case: str = "LOWER",
    locale: str | None = "C",
    pad: str = "",
    **attrs: Any,
) -> onnx.ModelProto:
    """Characters and words of texts "x", times seeded weights, to "y"."""
    node = helper.make_node
    words = [tuple(word.split()) for word in WORDS]
    characters = [tuple(item) for item in CHARACTERS if len(item) == 3]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((len(words) + len(characters), width)).astype(np.float32)
    spelled = {} if locale is None else {"locale": locale}
    nodes = [
        node("StringNormalizer", ["x"], ["text"], case_change_action=case, **spelled),
        node(
            "Tokenizer", ["text"], ["chars"], domain="com.microsoft",
            mark=0, mincharnum=1, pad_value=pad, separators=[""],
        ),
        node("StringSplit", ["text"], ["words", "lengths"]),
        _tfidf("chars", "char_counts", characters, **attrs),
        _tfidf("words", "word_counts", words, **attrs),
        node("Concat", ["char_counts", "word_counts"], ["features"], axis=1),
        node("Gemm", ["features", "weights", "bias"], ["y"]),
    ]  # fmt: skip
    stored = {"weights": weights, "bias": np.arange(width, dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _simplified(model: onnx.ModelProto, rows: int = 1) -> Graph:
    return simplify(specialize(onnx_io.load(model, "text"), {"x": (rows,)}))


def _ops(graph: Graph) -> set[str]:
    return {node.op for node in graph.nodes}


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("case", ["LOWER", "UPPER", "NONE"])
def test_sums_of_ngrams_are_what_onnxruntime_answers(width: int, case: str, home: Path) -> None:
    model = _model(width, case=case)
    theirs = onnxruntime.InferenceSession(model.SerializeToString())
    ours = InferenceSession(model, home=home)
    assert "whitebox.NgramSum" in _ops(_simplified(model))
    # onnxruntime splits at ASCII's spaces only.
    plain = [text for text in TEXTS if not set(text) & set("\u2003\xa0\u3000\x1c")]
    for texts in (*([text] for text in plain), plain[:3], plain):
        feeds = {"x": np.array(texts, object)}
        (want,) = theirs.run(None, feeds)
        for _ in range(2):  # the long way, then the short one
            (got,) = ours.run(None, feeds)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_kernel_reads_texts_as_python_does(home: Path) -> None:
    model = _model(3)
    before, after = specialize(onnx_io.load(model, "text"), {"x": (1,)}), _simplified(model)
    session = InferenceSession(model, home=home)
    for text in [*TEXTS, "the\ud800cat", "\x85the\u2028cat\u2029saw"]:
        x = np.array([text], object)
        want = onnx_schema.evaluate_graph(before, [x])["y"]
        np.testing.assert_allclose(onnx_schema.evaluate_graph(after, [x])["y"], want, rtol=1e-5)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": "IDF"},
        {"max_skip_count": 1},
        {"locale": None},  # all letters have cases there
        {"pad": "#"},
        {"pad": "t"},
    ],
)
def test_what_is_not_a_sum_of_rows_is_counted(changed: dict[str, Any], home: Path) -> None:
    model = _model(**changed)
    assert ("whitebox.NgramSum" in _ops(_simplified(model, 2))) == (changed == {"pad": "#"})
    feeds = {"x": np.array(["the cat saw", "a cat"], object)}
    (got,) = InferenceSession(model, home=home).run(None, feeds)
    if "locale" not in changed:  # en_US need not be installed
        (want,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attrs",
    [
        {"separators": [""]},
        {"separators": [" "]},
        {"separators": ["[, ]", "!"], "mincharnum": 2},
        {"tokenexp": "[a-z]+"},
        {"tokenexp": r"\w\w+", "mark": 1},
        {"separators": [""], "mark": 1},
    ],
)
def test_tokens_are_those_of_onnxruntime(attrs: dict[str, Any]) -> None:
    full = {"mark": 0, "mincharnum": 1, "pad_value": "#", **attrs}
    node = helper.make_node("Tokenizer", ["x"], ["y"], domain="com.microsoft", **full)
    graph = helper.make_graph(
        [node],
        "tokens",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["N", "K"])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    feeds = {"x": np.array(["hello, world! how are we", "a bc,def", "éa üb"], object)}
    (want,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    got = onnx_schema.evaluate_graph(onnx_io.load(model, "tokens"), feeds)["y"]
    assert got.tolist() == want.tolist()


@given(st.lists(st.text(max_size=4), min_size=1, max_size=40, unique=True))
def test_a_dictionary_finds_what_it_was_made_of(items: list[str]) -> None:
    grams = [Gram(i % 3, i % 2 == 0, (text, text), i, float(i)) for i, text in enumerate(items)]
    slots, pool = dictionary(grams)
    assert [(g.content, g.column, g.weight) for g in grams] == [
        (content, column, float(scale)) for content, column, scale in grams_of(pool)
    ]
    assert np.count_nonzero(slots[:, 1]) == len(grams) <= len(slots) // 2


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_kernels_are_given_code_points(texts: list[str]) -> None:
    import ctypes

    pairs, kept = native_texts(np.array(texts, object))
    assert len(kept) == len(texts)
    for (address, length), text in zip(pairs.tolist(), texts, strict=True):
        codes = (ctypes.c_int32 * (length + 1)).from_address(address)
        assert list(codes) == [*map(ord, text), 0]
