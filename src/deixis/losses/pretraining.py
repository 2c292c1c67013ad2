"""What SLVP-style pre-training learns from: flow, the agreement of clip and sentence, hidden words. All our choice.

B clips, T frames, L words, V vocabulary, E channels; h, w are a quarter of the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def charbonnier(error: Tensor, epsilon: float = 1e-3) -> Tensor:
    """sqrt(error^2 + epsilon^2) - epsilon: |error|, but smooth at 0 (arXiv:1710.01992)."""
    return (error.square() + epsilon**2).sqrt() - epsilon


def flow_loss(flow: Tensor, truth: Tensor, valid: Tensor, epsilon: float = 1e-3, gradient: float = 0.5) -> Tensor:
    """(): Charbonnier of the flow plus ``gradient`` times L1 of its differences between neighbouring cells.

    flow, truth: (B, T, 2, h, w).  valid: (B, T, h, w) bool; a difference counts where both its cells do. Without one
    valid cell the loss is 0.
    """
    error = flow - truth
    value = _mean(charbonnier(error, epsilon).sum(2), valid)
    down = _mean((error[..., 1:, :] - error[..., :-1, :]).abs().sum(2), valid[..., 1:, :] & valid[..., :-1, :])
    right = _mean((error[..., 1:] - error[..., :-1]).abs().sum(2), valid[..., 1:] & valid[..., :-1])
    return value + gradient * (down + right)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)


def info_nce(clips: Tensor, sentences: Tensor, same: Tensor, temperature: float = 0.07) -> Tensor:
    """(): symmetric InfoNCE (arXiv:1807.03748) of unit vectors (B, E); row i of the one belongs to row i of the other.

    same: (B, B) bool, pairs whose captions are the same words: they are no negatives of each other.
    """
    own = torch.eye(len(clips), dtype=torch.bool, device=clips.device)
    logits = (clips @ sentences.t() / temperature).masked_fill(same & ~own, float("-inf"))
    index = torch.arange(len(clips), device=clips.device)
    return (F.cross_entropy(logits, index) + F.cross_entropy(logits.t(), index)) / 2


def hide_words(
    tokens: Tensor, special: Tensor, mask_token: int, share: float, draw: Tensor
) -> tuple[Tensor, Tensor]:
    """(tokens with a share of the words replaced by ``mask_token``, which (B, L) bool); at least one word a text.

    special: (B, L) bool, what is never hidden (padding, start, end).  draw: (B, L) uniform numbers in 0..1.
    """
    draw = draw.masked_fill(special, 2.0)
    hidden = (draw < share) | (draw == draw.amin(1, keepdim=True))
    hidden &= ~special
    return tokens.masked_fill(hidden, mask_token), hidden


def masked_words(logits: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
    """(): cross-entropy of the hidden words, from logits (B, L, V), the true tokens (B, L) and hidden (B, L) bool."""
    if not bool(hidden.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[hidden].float(), tokens[hidden])
