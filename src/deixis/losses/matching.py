"""Which query answers for which true object: one choice for a whole clip (arXiv:2005.12872, 2011.14503).

T frames, Q queries, N objects.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from deixis.types import DeixisError


def match(cost: Tensor) -> Tensor:
    """(N,) int: the query of each object, from costs (Q, N). Each query is given away once, at the least total cost.

    Raises DeixisError for more objects than queries, and for a cost that is not finite.
    """
    if not torch.isfinite(cost).all():
        raise DeixisError("the matching cost is not finite: the model's outputs have diverged; lower the learning rate")
    if cost.shape[1] > cost.shape[0]:
        raise DeixisError(f"{cost.shape[1]} objects cannot be matched to {cost.shape[0]} queries; raise model.queries")
    queries, objects = linear_sum_assignment(cost.detach().cpu().numpy())
    chosen = torch.empty(cost.shape[1], dtype=torch.long)
    chosen[torch.from_numpy(objects)] = torch.from_numpy(queries)
    return chosen.to(cost.device)


def focal_class_cost(logits: Tensor, frames: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """(Q,): what saying "yes" would cost minus what saying "no" would, from logits (T, Q).

    Averaged over ``frames`` (T,) bool; over all where none is set.
    """
    p = logits.sigmoid()
    yes = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    no = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    return masked_mean(yes - no, frames)


def masked_mean(x: Tensor, frames: Tensor) -> Tensor:
    """(Q,): the mean of x (T, Q) over the frames (T,) that are set; over all where none is."""
    weight = frames.float() if frames.any() else torch.ones_like(frames, dtype=torch.float32)
    return (x * weight[:, None]).sum(0) / weight.sum()
