"""The terms of the losses: one formula, one function. Weights, matching and layers lie elsewhere.

N items, H W pixels. Each function returns one value an item; the caller averages.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# A small number for the ratios of areas below, so that two empty boxes do not divide by zero.
_EPS = 1e-6


def sigmoid_focal(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv:1708.02002, eq. 5) of each logit against truth in 0..1, shapes alike; not reduced.

    ``alpha`` weighs the positives and 1 - alpha the negatives; a negative ``alpha`` switches that weighing off.
    """
    truth = truth.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    surprise = probability + truth - 2 * probability * truth  # 1 - p of the true side, for truth 0 or 1
    loss = entropy * surprise**gamma
    return loss if alpha < 0 else loss * (alpha * truth + (1 - alpha) * (1 - truth))


def mask_focal(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """(N,): the focal loss of (N, H, W) mask logits, averaged over each mask's pixels."""
    return sigmoid_focal(logits, truth, alpha, gamma).flatten(1).mean(1)


def dice(logits: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """(N,): 1 - (2 |A B| + s) / (|A| + |B| + s) of (N, H, W) mask logits (arXiv:1606.04797), probabilities as areas."""
    a, b = logits.sigmoid().flatten(1), truth.to(logits.dtype).flatten(1)
    return 1 - (2 * (a * b).sum(1) + smooth) / (a.sum(1) + b.sum(1) + smooth)


def box_l1(boxes: Tensor, truth: Tensor) -> Tensor:
    """(N,): the sum of absolute differences of (N, 4) boxes, any format, both alike."""
    return (boxes - truth).abs().sum(-1)


def box_giou(boxes_cxcywh: Tensor, truth_cxcywh: Tensor) -> Tensor:
    """(...): 1 - generalised IoU (arXiv:1902.09630) of boxes (..., 4) cx cy w h, broadcast against each other."""
    return 1 - generalised_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(truth_cxcywh))


def generalised_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(...) in -1..1: IoU minus the share of the enclosing box that neither covers. Empty boxes are allowed."""
    (a0, a1), (b0, b1) = a_xyxy.split(2, -1), b_xyxy.split(2, -1)
    area_a, area_b = (a1 - a0).prod(-1), (b1 - b0).prod(-1)
    overlap = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(-1)
    enclosing = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).clamp(min=0).prod(-1)
    union = area_a + area_b - overlap
    return (overlap + _EPS) / (union + _EPS) - (enclosing - union + _EPS) / (enclosing + _EPS)


def cross_entropy(logits: Tensor, index: Tensor) -> Tensor:
    """(N,): -log softmax of (N, K) logits at ``index`` (N,) int."""
    return F.cross_entropy(logits, index, reduction="none")


def contrastive(queries: Tensor, sentences: Tensor, matched: Tensor, scale: float) -> Tensor:
    """(B,): how badly each sentence (B, D) finds its matched query among the clip's own queries (B, Q, D).

    Logits are dot products times ``scale``; ``matched`` is (B,) int. Negatives are queries of the same clip only.
    """
    return cross_entropy(torch.einsum("bqd,bd->bq", queries, sentences) * scale, matched)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to two corners."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)
