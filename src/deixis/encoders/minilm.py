"""MiniLM-L6 (arXiv:2002.10957) as a sentence encoder, with its tokenizer inside the state dict. L words, C = 384.

The encoder is frozen, so the features of a text are kept and used again: a sentence of every window of a film, or of
many training clips, is encoded once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from deixis.encoders.tokenizers import MAX_TOKENS, wordpiece_letter_tokenizer
from deixis.types import DeixisError, TextFeatures, bounded


@dataclass(frozen=True, kw_only=True)
class MiniLmConfig:
    """Sizes of the transformer; the defaults are MiniLM-L6's (read from its published config)."""

    vocabulary: int = 30522
    width: int = 384
    layers: int = bounded(6, least=0)
    heads: int = 12
    feed_forward: int = 1536
    positions: int = 512
    remember: int = bounded(20_000, least=0)  # texts whose features are kept (our choice: about 200 MB at most)


class MiniLm(nn.Module):
    """Texts -> word features (B, L, 2C), padding (B, L), sentence vectors (B, C) of length one (the mean over words).

    A word's first C features are what it means here (the last layer), the others which word it is (the embedding): the
    last layer of a sentence encoder hardly distinguishes "left" from "right".
    """

    def __init__(self, config: MiniLmConfig) -> None:
        super().__init__()
        bert = BertConfig(
            vocab_size=config.vocabulary, hidden_size=config.width, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, intermediate_size=config.feed_forward,
            max_position_embeddings=config.positions,
        )  # fmt: skip
        bert._attn_implementation = "sdpa"
        self.bert = BertModel(bert, add_pooling_layer=False).requires_grad_(False)
        self.remember = config.remember
        self.tokenizer = wordpiece_letter_tokenizer()
        self.cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(self.tokenizer.to_str().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.tokenizer = Tokenizer.from_str(bytes(state.cpu().to(torch.uint8).tolist()).decode())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        if self.tokenizer.get_vocab_size() > self.bert.config.vocab_size:
            raise DeixisError(
                f"the tokenizer has {self.tokenizer.get_vocab_size()} entries but the text encoder "
                f"{self.bert.config.vocab_size}; the checkpoint mixes two models"
            )
        self.cache.clear()

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self.cache.clear()  # what is kept lies on the old device
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> MiniLm:
        return super().train(False)  # frozen: no dropout, whatever the system around it does

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> TextFeatures:
        new = list(dict.fromkeys(t for t in texts if t not in self.cache))
        if new:
            self._encode_new(new)
        for text in texts:
            self.cache.move_to_end(text)
        words = [self.cache[t][0] for t in texts]
        padded = nn.utils.rnn.pad_sequence(words, batch_first=True)
        lengths = torch.tensor([len(w) for w in words], device=padded.device)
        padding = torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]
        features = TextFeatures(padded, padding, torch.stack([self.cache[t][1] for t in texts]))
        while len(self.cache) > self.remember:
            self.cache.popitem(last=False)
        return features

    def _encode_new(self, texts: list[str]) -> None:
        device = self.bert.embeddings.word_embeddings.weight.device
        ids = [torch.tensor(e.ids) for e in self.tokenizer.encode_batch([t.lower() for t in texts])]
        tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)  # 0 is BERT's [PAD]
        there = torch.zeros_like(tokens)
        for row, i in zip(there, ids, strict=True):
            row[: len(i)] = 1
        with torch.autocast(device.type, enabled=False):
            layers = self.bert(input_ids=tokens, attention_mask=there, output_hidden_states=True).hidden_states
            words, spelt = layers[-1].float(), layers[0].float()
        weight = there[..., None].float()
        sentences = nn.functional.normalize((words * weight).sum(1) / weight.sum(1), dim=-1)
        both = torch.cat([words, spelt], dim=-1)
        for text, i, word, sentence in zip(texts, ids, both, sentences, strict=True):
            self.cache[text] = (word[: len(i)].clone(), sentence.clone())
