"""RoBERTa (arXiv:1907.11692) with its pooler, as a text encoder: words and one sentence vector, in a common width.

B expressions, L tokens, C width of the outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from deixis.encoders.tokenizers import END, PAD, START, roberta_letter_tokenizer
from deixis.types import DeixisError, TextFeatures, bounded


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the transformer; the defaults are roberta-base's (read from the published key list)."""

    vocabulary: int = 50265
    width: int = 768
    layers: int = bounded(12, least=0)
    heads: int = 12
    hidden: int = 3072
    positions: int = 514  # the first two are never used, so 512 tokens fit
    dropout: float = 0.1
    frozen: bool = True  # no gradient and no dropout; False: trained along
    # A hub name or a folder, read when the first text is encoded by a model whose file holds no tokenizer;
    # "letters": a built-in one that spells, for models whose weights are random.
    tokenizer: str = "FacebookAI/roberta-base"


class TextEncoder(nn.Module):
    """Texts -> TextFeatures of ``out`` channels: each token, and the pooler's tanh(W first token) as the sentence.

    Tokens and sentence go through the same projection, as published. The tokenizer travels in the state dict, so that
    a saved model needs no network.
    """

    def __init__(self, config: TextConfig, out: int) -> None:
        super().__init__()
        self.config = config
        roberta = RobertaConfig(
            vocab_size=config.vocabulary, hidden_size=config.width, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, intermediate_size=config.hidden, max_position_embeddings=config.positions,
            hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout, type_vocab_size=1,
            layer_norm_eps=1e-5, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )  # fmt: skip
        self.encoder = RobertaModel(roberta, add_pooling_layer=True).requires_grad_(not config.frozen)
        self.project = nn.Sequential(
            nn.Linear(config.width, out), nn.LayerNorm(out, eps=1e-12), nn.Dropout(config.dropout)
        )
        self.tokenizer: Tokenizer | None = roberta_letter_tokenizer() if config.tokenizer == "letters" else None

    def forward(self, texts: Sequence[str]) -> TextFeatures:
        return self.encode_tokens(*self.tokens(texts))

    def encode_tokens(self, tokens: Tensor, padding: Tensor) -> TextFeatures:
        """The features of token ids (B, L) with their padding (B, L), as ``tokens`` gives them."""
        mask = (~padding).long()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            encoded = self.encoder(input_ids=tokens, attention_mask=mask)
        width = self.project[0].weight.dtype
        words, sentence = (
            self.project(encoded.last_hidden_state.to(width)),
            self.project(encoded.pooler_output.to(width)),
        )
        return TextFeatures(words, padding, sentence)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and their padding (B, L), on the model's device. Texts are lower-cased, as in training."""
        if self.tokenizer is None:
            self.tokenizer = roberta_tokenizer(self.config)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.config.positions - 2)
        ids = [torch.tensor(e.ids) for e in self.tokenizer.encode_batch([" ".join(t.lower().split()) for t in texts])]
        device = self.encoder.embeddings.word_embeddings.weight.device
        tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD).to(device)
        lengths = torch.tensor([len(i) for i in ids], device=device)
        return tokens, torch.arange(tokens.shape[1], device=device) >= lengths[:, None]

    def train(self, mode: bool = True) -> TextEncoder:
        super().train(mode)
        if self.config.frozen:
            self.encoder.eval()  # a frozen encoder keeps its dropout off; officially it stayed on
        return self

    def get_extra_state(self) -> Tensor:
        text = "" if self.tokenizer is None else self.tokenizer.to_str()
        return torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        text = bytes(state.cpu().to(torch.uint8).tolist()).decode().strip()
        if text:
            self.tokenizer = _checked(Tokenizer.from_str(text), self.config, "the checkpoint's tokenizer")


def roberta_tokenizer(config: TextConfig) -> Tokenizer:
    """The tokenizer named in the config: a folder, or in the hub's cache, or on the hub. DeixisError without one."""
    from transformers import AutoTokenizer

    try:
        # AutoTokenizer: offline, a concrete class can silently return an empty vocabulary.
        loaded: Any = AutoTokenizer.from_pretrained(config.tokenizer, use_fast=True)
    except (OSError, ValueError) as error:
        raise DeixisError(
            f"the tokenizer {config.tokenizer!r} is neither a folder nor in the hub's cache, and the hub did not "
            "answer; connect once, or name a folder with its files: --set model.text.tokenizer=FOLDER"
        ) from error
    return _checked(loaded.backend_tokenizer, config, f"the tokenizer {config.tokenizer!r}")


def _checked(tokenizer: Tokenizer, config: TextConfig, name: str) -> Tokenizer:
    size = tokenizer.get_vocab_size()
    if not 4 < size <= config.vocabulary or (config.tokenizer != "letters" and size < config.vocabulary // 2):
        raise DeixisError(
            f"{name} has {size} entries, but the text encoder {config.vocabulary}; they belong to two models"
        )
    return tokenizer
