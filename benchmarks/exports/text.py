"""Models of token ids: transformers' architectures, and a recurrent tagger of torch.nn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks.exports.torch_export import exported

_FREE = {0: "N", 1: "L"}


def _ids(vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (2, 24), generator=torch.Generator().manual_seed(1))


class _Hidden(nn.Module):
    """A transformers model as a function of its inputs in order, with one result."""

    def __init__(self, model: nn.Module, result: str) -> None:
        super().__init__()
        self.model, self.result = model, result

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return getattr(answer, self.result)


def _encoder(model: nn.Module, names: tuple[str, ...], vocabulary: int, result: str) -> bytes:
    ids = _ids(vocabulary)
    values = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    inputs = dict(zip(names, values, strict=False))
    return exported(_Hidden(model, result), inputs, _FREE, (result,))


_BERT = ("input_ids", "attention_mask", "token_type_ids")


def bert_base() -> bytes:
    """BERT-base: the last hidden state."""
    from transformers import BertConfig, BertModel

    config = BertConfig()
    model = BertModel(config, add_pooling_layer=False)
    return _encoder(model, _BERT, config.vocab_size, "last_hidden_state")


def distilbert() -> bytes:
    """DistilBERT: the last hidden state."""
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig()
    return _encoder(DistilBertModel(config), _BERT[:2], config.vocab_size, "last_hidden_state")


def gpt2_prefill() -> bytes:
    """GPT-2 (124 million weights) over a whole prompt: the logits of every token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(use_cache=False)
    return _encoder(GPT2LMHeadModel(config), _BERT[:2], config.vocab_size, "logits")


class _Tagger(nn.Module):
    """Words to tags: an embedding, two bidirectional LSTM layers, a linear layer."""

    def __init__(self, words: int = 10_000, size: int = 128, hidden: int = 256, tags: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.lstm = nn.LSTM(size, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(2 * hidden, tags)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.last(self.lstm(self.embedding(words))[0])


def lstm_tagger() -> bytes:
    """A tagger over two bidirectional LSTM layers of 256."""
    return exported(_Tagger(), {"words": _ids(10_000)}, _FREE)


RECIPES: Mapping[str, Callable[[], bytes]] = {
    "bert-base": bert_base,
    "distilbert": distilbert,
    "gpt2-prefill": gpt2_prefill,
    "lstm-tagger": lstm_tagger,
}
