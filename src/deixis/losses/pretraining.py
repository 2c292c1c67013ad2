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


def flow_loss(
    flow: Tensor, truth: Tensor, valid: Tensor, epsilon: float = 1e-3, gradient: float = 0.5, moving: float = 1.0
) -> Tensor:
    """(): Charbonnier of the flow plus ``gradient`` times L1 of its differences between neighbouring cells.

    flow, truth: (B, T, 2, h, w), in units.  valid: (B, T, h, w) bool; a difference counts where both its cells do.
    moving: weight of the cells that move by half a unit or more, where the others have 1: in most films little moves,
    and "nothing does" is the nearest trap. Without one valid cell the loss is 0.
    """
    error = flow - truth
    weight = valid * (1 + (moving - 1) * (truth.square().sum(2) >= 0.25))
    value = _mean(charbonnier(error, epsilon).sum(2), weight)
    differences = [
        _mean((error.narrow(axis, 1, n - 1) - error.narrow(axis, 0, n - 1)).abs().sum(2),
              torch.minimum(weight.narrow(axis, 1, n - 1), weight.narrow(axis, 0, n - 1)))
        for axis, n in ((-2, error.shape[-2]), (-1, error.shape[-1]))
    ]  # fmt: skip
    return value + gradient * (differences[0] + differences[1])


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of values (B, T, h', w') under weights of the same shape."""
    return (values * weight).sum() / weight.sum().clamp(min=1)


def info_nce(
    clips: Tensor,
    sentences: Tensor,
    same: Tensor,
    temperature: float = 0.07,
    others: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(): symmetric InfoNCE (arXiv:1807.03748) of unit vectors (B, E); row i of the one belongs to row i of the other.

    others: further clips and sentences, (N, E) each, that are negatives only.  same: (B, B + N) bool, pairs whose
    captions are the same words: they are no negatives of each other.
    """
    more_clips, more_sentences = others or (clips[:0], sentences[:0])
    forgiven = same & ~torch.eye(*same.shape, dtype=torch.bool, device=clips.device)
    index = torch.arange(len(clips), device=clips.device)
    losses = []
    for rows, columns in ((clips, (sentences, more_sentences)), (sentences, (clips, more_clips))):
        logits = rows @ torch.cat(columns).t() / temperature
        losses.append(F.cross_entropy(logits.masked_fill(forgiven, float("-inf")), index))
    return (losses[0] + losses[1]) / 2


def hide_words(tokens: Tensor, special: Tensor, mask_token: int, share: float, draw: Tensor) -> tuple[Tensor, Tensor]:
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
