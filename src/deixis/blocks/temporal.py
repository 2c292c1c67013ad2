"""From objects in frames to objects in a clip: clip queries attend to the frames' queries (VITA, arXiv:2206.04403).

N clips, T frames, Q queries, M = T Q tokens, D width. All blocks are post-norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deixis.blocks.attention import PackedAttention, ResidualFeedForward


class ResidualAttention(nn.Module):
    """LayerNorm(x + attention(x, keys, values))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.norm = PackedAttention(width, heads, dropout), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """(N, L, D): ``query`` is x, with or without its position.  padding: of the keys, (N, S) or (N, L, S)."""
        return self.norm(x + self.dropout(self.attention(query, key, value, padding)))


class TokenEncoder(nn.Module):
    """Every query of every frame attends to all of them; no positions, so the order of frames does not matter."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleList(ResidualAttention(width, heads, dropout) for _ in range(layers))
        self.feed_forward = nn.ModuleList(ResidualFeedForward(width, hidden, dropout) for _ in range(layers))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, M, D) -> (N, M, D). With ``context`` (N, M, D) each layer attends to that instead of to the tokens."""
        for attend, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            source = tokens if context is None else context
            tokens = feed_forward(attend(tokens, tokens, source, source))
        return tokens


class ClipDecoder(nn.Module):
    """Q clip queries attend to the frames' tokens: cross-attention, self-attention, then a two-layer network."""

    def __init__(self, width: int, queries: int, heads: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.cross_attention = nn.ModuleList(ResidualAttention(width, heads, dropout) for _ in range(layers))
        self.self_attention = nn.ModuleList(ResidualAttention(width, heads, dropout) for _ in range(layers))
        self.feed_forward = nn.ModuleList(ResidualFeedForward(width, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.query_position = nn.Parameter(torch.randn(queries, width))
        self.slot_position = nn.Parameter(torch.randn(queries, width))  # which query of its frame a token is

    def forward(self, content: Tensor, tokens: Tensor) -> Tensor:
        """(N, Q, D) from initial content (N, Q, D) and tokens (N, M, D), frame by frame."""
        keys = (tokens.unflatten(1, (-1, len(self.slot_position))) + self.slot_position).flatten(1, 2)
        for cross, own, feed_forward in zip(self.cross_attention, self.self_attention, self.feed_forward, strict=True):
            content = cross(content, content + self.query_position, keys, tokens)
            placed = content + self.query_position
            content = feed_forward(own(content, placed, placed, content))
        return self.norm(content)
