"""Types of operators on text: how many tokens the longest text has depends on the text."""

from __future__ import annotations

from whitebox.ir.shapes.rule import Call, Misfit, rule
from whitebox.ir.types import TensorType


@rule("whitebox.Tokenize")
def _tokenize(call: Call) -> TensorType:
    shape = call.shape(0)
    if call.dtype(0) != "string":
        raise Misfit("only text can be cut into tokens")
    return TensorType("string", None if shape is None else (*shape, None))


@rule("TfIdfVectorizer")
def _tfidf(call: Call) -> TensorType | None:
    """A row of counts for each row of tokens, however long it is."""
    shape, indexes = call.shape(0), call.attrs.get("ngram_indexes")
    if shape is None or not shape or not indexes:
        return None
    return TensorType("float32", (*shape[:-1], max(indexes) + 1))


@rule("StringNormalizer")
def _normalize(call: Call) -> TensorType | None:
    """As many texts as are given, unless some are stopwords."""
    return None if call.attrs.get("stopwords") else TensorType("string", call.shape(0))


@rule("whitebox.NgramSum")
def _ngram_sum(call: Call) -> TensorType:
    """A row of the table's width for each text."""
    texts, table = call.shape(0), call.shape(1)
    if call.dtype(0) != "string" or texts is None or len(texts) != 1:
        raise Misfit("a list of texts is needed")
    if table is None or len(table) != 2:
        raise Misfit("the table must have rows and columns")
    return TensorType(call.dtype(1), (texts[0], table[1]))
