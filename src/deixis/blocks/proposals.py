"""Mask proposals: cells that bring dynamic kernels (CondInst, arXiv:2003.05664), and duplicate suppression.

N frames, P or Q proposals, D width, C mask channels; rows x columns cells at stride 8, h w cells of a mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deixis.blocks.mask_head import kernel_numbers, predict_masks


class KernelHead(nn.Module):
    """The dynamic network of each cell, and how well it expects its mask to fit (a logit of the IoU)."""

    def __init__(self, width: int, channels: int, hidden: int) -> None:
        super().__init__()
        numbers = kernel_numbers(channels, hidden)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, numbers))
        self.quality = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.scale: Tensor
        scale = torch.ones(numbers)
        first = scale[: hidden * (channels + 2)].view(hidden, channels + 2)
        first[:, channels:] = 1 / 64  # 64 pixels: about the radius of an object (our choice)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> kernels (..., P), quality logits (...)."""
        with torch.autocast(cells.device.type, enabled=False):  # bf16 would blur the weights of the coordinates
            return self.layers(cells.float()) * self.scale, self.quality(cells.float())[..., 0]


def masks_of_cells(pixels: Tensor, kernels: Tensor, at: Tensor, columns: int, stride: int, hidden: int) -> Tensor:
    """Mask logits (N, Q, h, w) of kernels (N, Q, P) from the stride-8 cells ``at`` (N, Q); pixels (N, C, h, w)."""
    centres = torch.stack([at % columns, at // columns], dim=-1).float() * 8 + 4
    return predict_masks(pixels[None], kernels[None], centres[None], stride, hidden=hidden)[0]


def peaks(objectness: Tensor, count: int) -> Tensor:
    """(N, count) cell numbers of the highest local maxima of (N, rows, columns) logits."""
    highest = F.max_pool2d(objectness[:, None], 3, stride=1, padding=1)[:, 0]
    ranked = torch.where(objectness >= highest, objectness, objectness - 30.0).flatten(1)
    found = ranked.topk(min(count, ranked.shape[1]), dim=1).indices
    return F.pad(found, (0, count - found.shape[1]), mode="replicate")  # a tiny frame has fewer cells


@torch.no_grad()
def suppress_duplicates(masks: Tensor, scores: Tensor, count: int, limit: float, least: float) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression by mask IoU.

    Args:
        masks: (N, P, h, w) logits.
        scores: (N, P) 0..1.

    Returns:
        (N, count) indices of the best that repeat no better one, and their scores, 0 where nothing is left.
    """
    flat = (masks > 0).float().flatten(2)
    overlap, area = iou(flat, flat), flat.sum(2)
    order = scores.argsort(dim=1, descending=True)
    alive = (scores > least) & (area >= 1)
    kept = torch.zeros_like(alive)
    rows = torch.arange(len(scores), device=scores.device)
    for place in range(order.shape[1]):
        i = order[:, place]
        good = alive[rows, i]
        kept[rows, i] = good
        alive &= ~((overlap[rows, i] > limit) & good[:, None])
    final = scores * kept
    best = final.topk(min(count, final.shape[1]), dim=1)
    return best.indices, best.values


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., Q, P) overlaps of two sets of flat 0/1 masks (..., Q, n), (..., P, n)."""
    both = a @ b.transpose(-1, -2)
    return both / (a.sum(-1)[..., None] + b.sum(-1)[..., None, :] - both).clamp(min=1)
