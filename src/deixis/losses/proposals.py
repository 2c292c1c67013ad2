"""What the proposals and the scorer of light are trained for: masks, objectness, quality, and the choice.

A cell inside an object is trained to predict that object's mask, whichever cell it is (CondInst, arXiv:2003.05664);
objectness is high at the objects' centres (CenterNet, arXiv:1904.07850); quality is the IoU of the mask that a cell
predicts. N objects; h w cells at stride 4; rows x columns cells at stride 8; K sentences; Q tracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deixis.blocks.proposals import KernelHead, features_at, iou, masks_of_cells, peaks
from deixis.losses.terms import dice


@dataclass(frozen=True, kw_only=True)
class ProposalWeights:
    """Weights of the terms."""

    objectness: float = 1.0
    mask_entropy: float = 4.0
    mask_dice: float = 2.0
    quality: float = 1.0
    choice: float = 1.0
    objects: int = 12  # of a frame, whose masks are predicted in a step


def centre_cells(cells: Tensor) -> Tensor:
    """(N,) the cell of each of (N, rows, columns) coverages that is well inside and near the centre of mass."""
    rows, columns = cells.shape[-2:]
    y, x = (torch.arange(n, dtype=torch.float32, device=cells.device) for n in (rows, columns))
    area = cells.sum((1, 2)).clamp(min=1e-4)
    cy, cx = (cells.sum(2) * y).sum(1) / area, (cells.sum(1) * x).sum(1) / area
    far = ((y[None, :, None] - cy[:, None, None]) ** 2 + (x[None, None] - cx[:, None, None]) ** 2).sqrt()
    inside = cells + sum(F.avg_pool2d(cells[:, None], k, stride=1, padding=k // 2)[:, 0] for k in (3, 5))
    score = inside - 0.4 * far / (1 + area.sqrt())[:, None, None]
    return score.masked_fill(cells <= 0, -1e4).flatten(1).argmax(1)


def objectness_loss(logits: Tensor, cells: Tensor, centres: Tensor, weights: Tensor, unknown: Tensor) -> Tensor:
    """Penalty-reduced focal loss (CenterNet, eq. 1), per object.

    logits: (rows, columns).  cells: (N, rows, columns) coverage.  centres: (N,).  unknown: (rows, columns) bool.
    """
    rows, columns = logits.shape
    y, x = torch.arange(rows, device=logits.device).view(-1, 1), torch.arange(columns, device=logits.device)
    spread = (0.15 * cells.sum((1, 2)).sqrt()).clamp(0.6, 3.0)[:, None, None]
    cy, cx = (centres // columns)[:, None, None], (centres % columns)[:, None, None]
    bump = (-((y - cy) ** 2 + (x - cx) ** 2) / (2 * spread**2)).exp()
    target = bump.amax(0) if len(bump) else torch.zeros_like(logits)
    positive = torch.zeros(rows * columns, device=logits.device)
    positive.scatter_reduce_(0, centres, weights, reduce="amax")
    positive = positive.view_as(logits)
    p = logits.sigmoid()
    loss = -positive * (1 - p) ** 2 * F.logsigmoid(logits)
    negative = (positive == 0) * (1 - target) ** 4 * p**2 * -F.logsigmoid(-logits) * ~unknown
    return (loss + negative).sum() / weights.sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """The objects of one frame. masks: (N, h, w) 0..1 coverage.  weights: (N,) how sure each is.
    unknown: (rows, columns) bool, where objects may lie without a label."""

    masks: Tensor
    weights: Tensor
    unknown: Tensor


def labelled_frame(masks: Tensor, unknown: Tensor, weights: Tensor | None = None) -> LabelledFrame:
    """From masks (N, H, W) 0..1 and unknown (H, W) bool; what is too small to be predicted is left out."""
    quarter = F.avg_pool2d(masks.float()[:, None], 4)[:, 0] if len(masks) else masks.float()[:, ::4, ::4]
    large = quarter.flatten(1).sum(1) >= 2.0
    weights = torch.ones(len(masks), device=masks.device) if weights is None else weights
    return LabelledFrame(quarter[large], weights[large], F.max_pool2d(unknown.float()[None], 8)[0] > 0.5)


def proposal_losses(
    kernels: KernelHead, hidden: int, cells: Tensor, pixels: Tensor, objectness: Tensor, truth: LabelledFrame,
    weights: ProposalWeights,
) -> dict[str, Tensor]:  # fmt: skip
    """All terms of one frame, weighted.

    Args:
        kernels: The head that predicts kernels and quality.
        hidden: Width of the dynamic network.
        cells: (1, D, rows, columns).
        pixels: (1, C, h, w).
        objectness: (1, rows, columns) logits.
    """
    columns, quarter = objectness.shape[-1], truth.masks
    eighth = F.avg_pool2d(quarter[:, None], 2)[:, 0] if len(quarter) else quarter.new_zeros(0, *objectness.shape[1:])
    centres = centre_cells(eighth) if len(eighth) else torch.zeros(0, dtype=torch.long, device=cells.device)
    heat = objectness_loss(objectness[0], eighth, centres, truth.weights, truth.unknown)
    terms = {"objectness": weights.objectness * heat}
    if not len(quarter):
        nothing = cells.sum() * 0 + pixels.sum() * 0
        return terms | {"mask_entropy": nothing, "mask_dice": nothing, "quality": nothing}
    # Where masks are predicted from: the centre, a random cell of the object, and its cell of highest objectness.
    drawn = torch.randperm(len(quarter), device=cells.device)[: weights.objects]
    inside = (eighth[drawn] > 0.5).float().flatten(1).scatter(1, centres[drawn, None], 1.0)
    anywhere = torch.multinomial(inside, 1)[:, 0]
    best = objectness[0].detach().flatten()[None].masked_fill(inside == 0, -1e4).argmax(1)
    at = torch.cat([centres[drawn], anywhere, best])[None]
    top = peaks(objectness.detach(), 16)  # what may be proposed: its quality is learned wherever it lies
    flat = cells.flatten(2).transpose(1, 2)
    numbers, quality = kernels(features_at(flat, torch.cat([at, top], 1)))
    count = at.shape[1]
    logits = masks_of_cells(pixels, numbers[:, :count], at, columns, 4, hidden)[0]
    goal, sure = quarter[drawn].repeat(3, 1, 1), truth.weights[drawn].repeat(3)
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none").flatten(1).sum(1)
    # Per pixel of the object's neighbourhood: a small object must weigh as much as a large one.
    reach = (goal.flatten(1).sum(1) * 4 + 64).clamp(max=goal[0].numel())
    terms["mask_entropy"] = weights.mask_entropy * (entropy / reach * sure).sum() / sure.sum()
    terms["mask_dice"] = weights.mask_dice * (dice(logits, goal) * sure).sum() / sure.sum()
    with torch.no_grad():
        coarse = masks_of_cells(F.avg_pool2d(pixels, 2), numbers[:, count:], top, columns, 8, hidden)[0]
        fits = iou((coarse > 0).float().flatten(1), (eighth > 0.5).float().flatten(1)).amax(1)
        painted, true = logits > 0, goal > 0.5
        own = (painted & true).flatten(1).sum(1) / (painted | true).flatten(1).sum(1).clamp(min=1)
    expected = torch.cat([own, fits])
    terms["quality"] = weights.quality * F.binary_cross_entropy_with_logits(quality[0], expected)
    return terms


def choice_loss(
    similarity: Tensor, none: Tensor, right: Tensor, ignored: Tensor, absent: Tensor, weights: Tensor
) -> Tensor:
    """Entropy of the softmax over Q tracks and "none of them".

    Args:
        similarity: (K, Q) logits.
        none: (K,) logits.
        right: (K, Q) bool, tracks that show the thing.
        ignored: (K, Q) bool, tracks that neither do nor do not.
        absent: (K,) bool, there is no such thing.
        weights: (K,) of the sentences.
    """
    logits = torch.cat([none[:, None], similarity.masked_fill(ignored, -30.0)], dim=1).log_softmax(1)
    hit = logits[:, 1:].masked_fill(~right, -1e4).logsumexp(1)
    loss = torch.where(absent, -logits[:, 0], -hit)
    return (loss * weights).sum() / weights.sum().clamp(min=1e-6)
