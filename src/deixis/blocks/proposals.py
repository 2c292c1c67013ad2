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
        return self.numbers(cells), self.fit(cells)

    def numbers(self, cells: Tensor) -> Tensor:
        """(..., D) -> (..., P)"""
        with torch.autocast(cells.device.type, enabled=False):  # bf16 would blur the weights of the coordinates
            return self.layers(cells.float()) * self.scale

    def fit(self, cells: Tensor) -> Tensor:
        """(..., D) -> quality logits (...)."""
        with torch.autocast(cells.device.type, enabled=False):
            return self.quality(cells.float())[..., 0]


def masks_of_cells(pixels: Tensor, kernels: Tensor, at: Tensor, columns: int, stride: int, hidden: int) -> Tensor:
    """Mask logits (N, Q, h, w) of kernels (N, Q, P) from the stride-8 cells ``at`` (N, Q); pixels (N, C, h, w)."""
    centres = torch.stack([at % columns, at // columns], dim=-1).float() * 8 + 4
    return predict_masks(pixels[None], kernels[None], centres[None], stride, hidden=hidden)[0]


def features_at(cells: Tensor, at: Tensor) -> Tensor:
    """The rows ``at`` (N, Q) of cells (N, P, D): (N, Q, D)."""
    return cells.gather(1, at[..., None].expand(-1, -1, cells.shape[-1]))


def peaks(scores: Tensor, count: int) -> Tensor:
    """(N, count) cell numbers of the highest local maxima of (N, rows, columns)."""
    highest = F.max_pool2d(scores[:, None], 3, stride=1, padding=1)[:, 0]
    ranked = torch.where(scores >= highest, scores, scores - 30.0).flatten(1)
    found = ranked.topk(min(count, ranked.shape[1]), dim=1).indices
    return F.pad(found, (0, count - found.shape[1]), mode="replicate")  # a tiny frame has fewer cells


# Scores of two cells that differ by this share count about equally (our choice, docs/results/light.md).
NEARLY_EQUAL = 0.03


def best_beside(scores: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the eight cells around each peak, and the weight of its mask beside the peak's own.

    A peak and its neighbour may have nearly the same score and predict different masks. Where one of them is taken,
    rounding decides which; their mean changes little when their order does.

    Args:
        scores: (N, rows, columns) 0..1.
        at: (N, Q) cell numbers of peaks.

    Returns:
        (N, Q) cell numbers, and weights 0..0.5: 0.5 where the scores are equal.
    """
    columns = scores.shape[2]
    log = scores.float().clamp(min=1e-9).log()
    around = F.unfold(F.pad(log, (1, 1, 1, 1), value=-100.0)[:, None], 3)  # (N, 9, rows columns)
    near = around.gather(2, at[:, None].expand(-1, 9, -1))  # (N, 9, Q)
    best, which = torch.cat([near[:, :4], near[:, 5:]], dim=1).max(1)  # without the cell itself
    which = which + (which >= 4)
    beside = at + (which // 3 - 1) * columns + which % 3 - 1
    inside = best > -100.0
    weight = ((best - near[:, 4]) / NEARLY_EQUAL).sigmoid().clamp(max=0.5)
    return torch.where(inside, beside, at), weight * inside


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
