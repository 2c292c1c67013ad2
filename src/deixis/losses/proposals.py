"""What a text-free proposer and its listener are trained for: middles, masks, and the choice among the proposals.

B clips, T frames, N objects, Q queries, K sentences, rows x columns cells at stride 16, h w a quarter of the frame.

The proposals need no matching: a cell inside an object is told to paint that object, whichever cell it is (as in
CondInst, arXiv:2003.05664), and the heat map is told where the middles are (as in CenterNet, arXiv:1904.07850). Only
the choice is matched: a query answers for the object that its masks overlap most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deixis.losses.terms import dice
from deixis.types import Target


@dataclass(frozen=True, kw_only=True)
class ProposalWeights:
    """Weights of the terms and limits of the assignment (all our choice)."""

    heat: float = 1.0
    mask_entropy: float = 4.0
    mask_dice: float = 2.0
    seen: float = 0.5
    choice: float = 1.5
    frame: float = 0.5
    shows: float = 0.4  # overlap above which a query shows an object in a frame
    doubtful: float = 0.2  # overlap between this and ``shows`` is neither
    best: float = 0.75  # share of the best overlap from which on a query also counts as right


@dataclass(frozen=True, eq=False)
class Truth:
    """Targets of B clips, padded to N objects, at the two sizes the terms need.

    quarter: (B, T, N, h, w) 0..1 coverage.  cells: (B, T, N, rows, columns) 0..1.  visible: (B, T, N) bool.
    middles: (B, T, N) the cell index of each object's middle.
    """

    quarter: Tensor
    cells: Tensor
    visible: Tensor
    middles: Tensor


def truth_of(targets: Sequence[Target]) -> Truth:
    """Pad to the same number of objects, shrink, and find the middles."""
    most = max(1, *(t.masks.shape[1] for t in targets))
    masks = torch.stack([F.pad(t.masks.float(), (0, 0, 0, 0, 0, most - t.masks.shape[1])) for t in targets])
    quarter = F.avg_pool2d(masks.flatten(0, 2)[:, None], 4)
    cells = F.avg_pool2d(quarter, 4)[:, 0]
    shape = masks.shape[:3]
    visible = quarter.flatten(1).sum(1) >= 2.0  # less than two cells of the mask map cannot be painted
    return Truth(
        quarter[:, 0].unflatten(0, shape),
        cells.unflatten(0, shape),
        visible.view(shape),
        middle_cells(cells).view(shape),
    )


def middle_cells(cells: Tensor) -> Tensor:
    """(M,) index of the cell that is well inside each of (M, rows, columns) masks and near its centre of mass."""
    rows, columns = cells.shape[-2:]
    y, x = (torch.arange(n, device=cells.device, dtype=torch.float32) for n in (rows, columns))
    area = cells.sum((1, 2)).clamp(min=1e-4)
    cy, cx = (cells.sum(2) * y).sum(1) / area, (cells.sum(1) * x).sum(1) / area
    far = ((y[None, :, None] - cy[:, None, None]) ** 2 + (x[None, None] - cx[:, None, None]) ** 2).sqrt()
    inside = F.avg_pool2d(cells[:, None], 3, stride=1, padding=1)[:, 0] + cells
    score = inside - 0.3 * far / (1 + area.sqrt())[:, None, None]
    return score.masked_fill(cells <= 0, -1e4).flatten(1).argmax(1)


def heat_loss(heat: Tensor, truth: Truth, unknown: Tensor | None = None) -> Tensor:
    """Penalty-reduced focal loss of (B, T, rows, columns) logits (CenterNet, eq. 1), per visible object.

    unknown: (B, T, rows, columns) bool, cells where unlabelled objects may lie.
    """
    rows, columns = truth.cells.shape[-2:]
    spread = (0.15 * truth.cells.sum((-2, -1)).sqrt()).clamp(0.5, 2.0)[..., None, None]
    y, x = torch.arange(rows, device=heat.device).view(-1, 1), torch.arange(columns, device=heat.device)
    my, mx = (truth.middles // columns)[..., None, None], (truth.middles % columns)[..., None, None]
    bump = (-((y - my) ** 2 + (x - mx) ** 2) / (2 * spread**2)).exp() * truth.visible[..., None, None]
    target = bump.amax(2)  # (B, T, rows, columns)
    positive = torch.zeros_like(target).flatten(2)
    positive.scatter_reduce_(2, truth.middles, truth.visible.float(), reduce="amax")
    positive = positive.view_as(target)
    p = heat.sigmoid()
    loss = -positive * (1 - p) ** 2 * F.logsigmoid(heat)
    negative = (1 - positive) * (1 - target) ** 4 * p**2 * -F.logsigmoid(-heat)
    if unknown is not None:
        negative = negative * ~unknown
    return (loss + negative).sum() / truth.visible.sum().clamp(min=1)


def mask_losses(paint: Callable[[Tensor], Tensor], truth: Truth, most: int = 5) -> tuple[Tensor, Tensor]:
    """(entropy, dice) of masks painted from the objects' middles and from one random cell inside each.

    paint: (B·T, M) cell indices -> (B·T, M, h, w) logits.  most: objects of a frame that are painted, drawn by chance.
    """
    visible, n = truth.visible.flatten(0, 1), truth.visible.shape[2]
    chance = torch.rand(visible.shape, device=visible.device) + visible.float()
    drawn = chance.topk(min(most, n), dim=1).indices  # (BT, M)
    inside = (truth.cells.flatten(0, 1) > 0.5).float().flatten(2)
    inside = inside.gather(1, drawn[..., None].expand(-1, -1, inside.shape[2]))
    middles = truth.middles.flatten(0, 1).gather(1, drawn)
    inside = inside.scatter(2, middles[..., None], 1.0)  # an object smaller than a cell has its middle at least
    anywhere = torch.multinomial(inside.flatten(0, 1), 1).view_as(middles)
    there = visible.gather(1, drawn).repeat(1, 2)
    logits = paint(torch.cat([middles, anywhere], dim=1))[there]  # (objects, h, w)
    if not len(logits):
        return logits.sum(), logits.sum()
    quarter = truth.quarter.flatten(0, 1)
    rows = torch.arange(len(quarter), device=visible.device)[:, None].expand_as(drawn)
    goal = quarter[rows, drawn].repeat(1, 2, 1, 1)[there]
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none").flatten(1)
    # Per pixel of the object's neighbourhood: a small object must weigh as much as a large one.
    reach = goal.flatten(1).sum(1) * 4 + 64
    entropy = entropy.sum(1) / torch.minimum(reach, reach.new_tensor(float(entropy.shape[1])))
    return entropy.mean() / 2, dice(logits, goal).mean()


def overlaps(masks: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """Overlap of (B, T, Q, h, w) mask logits with the objects: per frame (B, T, Q, N), and over the clip (B, Q, N)."""
    painted = F.avg_pool2d((masks.flatten(0, 1) > 0).float(), 2).flatten(2)  # (BT, Q, cells at 8)
    goal = F.avg_pool2d((truth.quarter.flatten(0, 1) > 0.5).float(), 2).flatten(2)
    both = (painted @ goal.transpose(1, 2)).unflatten(0, masks.shape[:2])
    either = painted.sum(2)[..., None] + goal.sum(2)[:, None]
    either = either.unflatten(0, masks.shape[:2]) - both
    return both / either.clamp(min=0.25), both.sum(1) / either.sum(1).clamp(min=0.25)


@torch.no_grad()
def assign(masks: Tensor, chosen: Tensor, truth: Truth, limits: ProposalWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Which queries answer for which object.

    -> right (B, Q, N) bool; doubtful (B, Q, N) bool, neither right nor wrong; frame overlaps (B, T, Q, N).
    A query answers for an object when its cells lie on it in half of the frames where it is visible, and its masks
    overlap it nearly as well as the best such query's.
    """
    by_frame, by_clip = overlaps(masks, truth)
    cells = truth.cells.flatten(3)  # (B, T, N, S)
    on = cells.gather(3, chosen[:, :, None].expand(-1, -1, cells.shape[2], -1)).transpose(2, 3) > 0.25  # (B, T, Q, N)
    frames = truth.visible.sum(1)[:, None].clamp(min=1)  # (B, 1, N)
    stays = (on & truth.visible[:, :, None]).sum(1) / frames >= 0.5
    merit = torch.where(stays, by_clip + 1e-3, 0.0)
    right = stays & (merit >= limits.best * merit.amax(1, keepdim=True))
    return right, ~right & (stays | (by_clip > limits.doubtful)), by_frame


def seen_loss(seen: Tensor, by_frame: Tensor, limits: ProposalWeights) -> Tensor:
    """Entropy of (B, T, Q) logits of "shows an object", where the overlaps (B, T, Q, N) leave no doubt."""
    best = by_frame.amax(-1)
    sure = (best > limits.shows) | (best < limits.doubtful)
    loss = F.binary_cross_entropy_with_logits(seen, (best > limits.shows).float(), reduction="none")
    return (loss * sure).sum() / sure.sum().clamp(min=1)


def choice_losses(
    scores: Tensor, similarity: Tensor, none: Tensor, spare: Tensor, referred: Tensor, right: Tensor, doubtful: Tensor,
    visible: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(choice, frame): entropy of the softmax over Q objects and "none", and of the frame scores.

    scores: (K, T, Q).  similarity: (K, Q).  none: (K,).  spare: (K, Q) bool.  referred: (K, N) bool, none True where
    the named object is absent.  right, doubtful: (K, Q, N).  visible: (K, T, N).
    A sentence whose object no query shows is left out: there is nothing right to choose.
    """
    wanted = right & referred[:, None]  # (K, Q, N)
    found = wanted.any(1) & referred  # (K, N)
    asked = referred.any(1)
    ignore = (doubtful & referred[:, None]).any(2) & ~wanted.any(2) | (spare & ~wanted.any(2))
    logits = torch.cat([none[:, None], similarity.masked_fill(ignore, -30.0)], dim=1).log_softmax(1)
    of_object = logits[:, 1:, None].masked_fill(~wanted, -1e4).logsumexp(1)  # (K, N)
    hit = -(of_object * found).sum(1) / found.sum(1).clamp(min=1)
    usable = ~asked | (asked & (found.sum(1) == referred.sum(1)))
    loss = torch.where(asked, hit, -logits[:, 0])
    choice = (loss * usable).sum() / usable.sum().clamp(min=1)
    there = torch.einsum("kqn,ktn->ktq", wanted.float(), visible.float()) > 0
    weight = (~ignore & usable[:, None])[:, None].expand_as(scores).float()
    weight = weight * torch.where(there, 1.0, 0.25)  # most pairs are negative
    entropy = F.binary_cross_entropy_with_logits(scores, there.float(), reduction="none")
    return choice, (entropy * weight).sum() / weight.sum().clamp(min=1)
