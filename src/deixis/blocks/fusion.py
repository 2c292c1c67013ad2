"""Gates: one side attends to the other and is multiplied by the result (SOC, arXiv:2305.17011, multi-modal fusion).

N sequences, L queries, S keys, D width; B clips, T frames, h w cells of a level.
"""

from __future__ import annotations

from torch import Tensor, nn

from deixis.blocks.attention import PackedAttention
from deixis.blocks.levels import ClipTokens
from deixis.blocks.positions import word_positions
from deixis.types import DeixisError, TextFeatures


class CrossGate(nn.Module):
    """x * attention(x, source): no residual, no norm, no dropout, as published."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.attention = PackedAttention(width, heads)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None = None) -> Tensor:
        """(N, L, D) from query (N, L, D), keys and values (N, S, D), padding (N, S) of the keys or None."""
        return query * self.attention(query, keys, values, padding)


def gate_with_text(gate: CrossGate, scene: ClipTokens, level: int, text: TextFeatures) -> Tensor:
    """A level (B T, h, w, D), multiplied by its attention to the words."""
    tokens = scene.tokens(level)
    words = text.words.to(tokens.dtype)
    keys = words + word_positions(text.padding, words.shape[-1]).to(words.dtype)
    return gate(tokens, keys, words, text.padding).view(-1, *scene.shape(level), words.shape[-1])


def mean_of_words(words: Tensor, padding: Tensor) -> Tensor:
    """(B, D): the mean over tokens that are there, special ones included, in fp32."""
    there = (~padding).float()[..., None]
    return (words.float() * there).sum(1) / there.sum(1)


def one_by_one(text: TextFeatures) -> list[TextFeatures]:
    """Each expression on its own (B = 1), without the padding that a longer neighbour brought."""
    parts = []
    for words, padding, sentence in zip(text.words, text.padding, text.sentence, strict=True):
        length = int((~padding).sum())
        parts.append(TextFeatures(words[None, :length], padding[None, :length], sentence[None]))
    return parts


def split_expressions(clips: int, text: TextFeatures) -> list[TextFeatures]:
    """Split expressions into decoding steps: one clip takes them one by one, several clips take one each, together."""
    if clips == 1:
        return one_by_one(text)
    if len(text.words) != clips:
        raise DeixisError(
            f"{clips} clips take {clips} expressions, one each, got {len(text.words)}; decode one clip at a time"
        )
    return [text]
