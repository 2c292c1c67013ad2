"""Masks compared at points instead of pixels (PointRend, arXiv:1912.08193; Mask2Former, arXiv:2112.01527).

M masks, P points, h w cells. Points are x, y in 0..1 of the whole map, wherever its padding is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """(M, C, P): maps (M, C, h, w), bilinear at points (M, P, 2)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, mode="bilinear", align_corners=False)[..., 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, oversample: float, importance: float) -> Tensor:
    """(M, P, 2): for mask logits (M, h, w), ``count`` points, a share ``importance`` of them the nearest to logit 0 of
    ``oversample`` times as many drawn by chance, the others by chance."""
    m = len(logits)
    drawn = torch.rand(m, int(count * oversample), 2, device=logits.device)
    best = int(count * importance)
    doubt = -sample_points(logits[:, None], drawn)[:, 0].abs()
    chosen = doubt.topk(best, dim=1).indices
    near = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([near, torch.rand(m, count - best, 2, device=logits.device)], dim=1)


def entropy_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """(..., Q, N): the mean binary entropy of every pair of logits (..., Q, P) and truths (..., N, P) in 0..1."""
    yes, no = F.softplus(-logits), F.softplus(logits)
    return (yes @ truth.transpose(-1, -2) + no @ (1 - truth).transpose(-1, -2)) / logits.shape[-1]


def dice_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """(..., Q, N): 1 - (2 |A B| + 1) / (|A| + |B| + 1) of every pair, as ``entropy_costs``."""
    a = logits.sigmoid()
    both = a @ truth.transpose(-1, -2)
    return 1 - (2 * both + 1) / (a.sum(-1)[..., :, None] + truth.sum(-1)[..., None, :] + 1)
