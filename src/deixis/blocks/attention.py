"""Multi-head attention and two-layer networks, through PyTorch's fused kernel (arXiv:1706.03762).

``Attention`` has its projections apart, ``PackedAttention`` in one matrix, as published weights have them;
``FeedForward`` is pre-norm with GELU, ``ResidualFeedForward`` post-norm with ReLU.
N sequences, S or L queries, T or S keys, D width. ``padding`` is True where there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
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


class PackedAttention(nn.Module):
    """softmax(q k / sqrt(d)) v per head, between an input projection (rows: q, k, v) and an output projection."""

    def __init__(self, width: int, heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = check_heads(width, heads), dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """(N, L, D) from query (N, L, D), key and value (N, S, D), padding of the keys or None: (N, S), or (N, L, S).

        A row whose keys are all padding attends to nothing that means anything; leave such rows out.
        """
        q, k, v = (self._heads(x) for x in self._project(query, key, value))  # (N, heads, L or S, D / heads)
        mask = None if padding is None else ~(padding[:, None] if padding.ndim == 3 else padding[:, None, None])
        out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = self.in_proj_weight, self.in_proj_bias
        d = query.shape[-1]
        if query is key:  # one product for both
            q, k = F.linear(query, weight[: 2 * d], bias[: 2 * d]).chunk(2, -1)
        else:
            q, k = F.linear(query, weight[:d], bias[:d]), F.linear(key, weight[d : 2 * d], bias[d : 2 * d])
        return q, k, F.linear(value, weight[2 * d :], bias[2 * d :])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


PIECE = 1 << 20  # numbers between a network's layers at once: 4 MB in fp32, about a CPU's nearest caches (measured)


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor, hidden: int) -> Tensor:
    """``function`` of x (..., D), row by row independent, a cacheful of rows at a time where that is faster.

    hidden: width between its layers. On a GPU, and where gradients keep every intermediate anyway, all at once.
    """
    rows = x.flatten(0, -2)
    step = max(PIECE // hidden, 1)
    if torch.is_grad_enabled() or x.device.type != "cpu" or len(rows) <= step:
        return function(x)
    return torch.cat([function(piece) for piece in rows.split(step)]).view(x.shape)


class ResidualFeedForward(nn.Module):
    """The residual two-layer network after an attention, post-norm, ReLU: LayerNorm(x + W2 relu(W1 x))."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return in_pieces(self._rows, x, self.linear1.out_features)

    def _rows(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.linear1(x).relu_())
        return self.norm(x + self.dropout(self.linear2(hidden)))


class Mlp(nn.Module):
    """Linear layers with ReLU between them, e.g. Mlp(256, 256, 256, 4)."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    @property
    def last(self) -> nn.Linear:
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu_()
        return self.last(x)
