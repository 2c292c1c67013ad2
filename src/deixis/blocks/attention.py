"""Multi-head attention and the feed-forward layer, pre-norm, on fused kernels. N batch, S T tokens, D width."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from deixis.types import DeixisError


def check_heads(width: int, heads: int) -> int:
    """``heads``, if they can share ``width`` channels evenly; else DeixisError."""
    if heads < 1 or width % heads:
        raise DeixisError(f"{heads} heads cannot share {width} channels evenly")
    return heads


class Attention(nn.Module):
    """Attention of (N, S, D) queries on (N, T, D') keys; ``padding`` (N, T) is True where a key is none."""

    def __init__(self, width: int, heads: int, source_width: int | None = None) -> None:
        super().__init__()
        self.heads = check_heads(width, heads)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(source_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, padding: Tensor | None = None) -> Tensor:
        q = rearrange(self.query(queries), "n s (g d) -> n g s d", g=self.heads)
        kv = rearrange(self.key_value(keys), "n t (j g d) -> j n g t d", j=2, g=self.heads)
        allowed = None if padding is None else ~padding[:, None, None]
        x = F.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=allowed)
        return self.out(rearrange(x, "n g s d -> n s (g d)"))


class FeedForward(nn.Module):
    """Norm, widen, GELU, narrow; the caller adds the residual."""

    def __init__(self, width: int, expand: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, expand * width), nn.Linear(expand * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.widen(self.norm(x))))


class SelfAttention(nn.Module):
    """A residual self-attention layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), Attention(width, heads)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        return x + self.attend(y, y, padding)


class CrossAttention(nn.Module):
    """A residual attention of one set on another."""

    def __init__(self, width: int, heads: int, source_width: int | None = None) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), Attention(width, heads, source_width)

    def forward(self, x: Tensor, source: Tensor, padding: Tensor | None = None) -> Tensor:
        return x + self.attend(self.norm(x), source, padding)
