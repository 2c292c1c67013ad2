"""SOC's objective: match once a clip and decoder level, weigh the terms, repeat for the auxiliary levels.

B clips, T frames, Q queries, N objects, H W pixels; h w cells of the masks.
(arXiv:2305.17011, section 3.5; the terms' exact form is that of the released code.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from deixis.losses import terms
from deixis.losses.matching import focal_class_cost, masked_mean, match
from deixis.types import DeixisError, Prediction, Target


@dataclass(frozen=True, kw_only=True)
class SetLossConfig:
    """Weights of the loss terms, and of the matching costs of the same name, as published (read)."""

    score: float = 2.0  # focal, every query of every frame
    box_l1: float = 2.0
    box_giou: float = 2.0
    mask_focal: float = 2.0  # a loss only, no cost
    dice: float = 5.0
    contrastive: float = 1.0  # a loss only, no cost
    # Frames in which the object is not visible: the authors supervise boxes there too, towards a box of zeros, and let
    # them count in the matching. "masked" leaves those boxes out; empty masks are supervised either way.
    invisible: Literal["masked", "official"] = "masked"


@dataclass(frozen=True, eq=False)
class Track:
    """The one object, or the several as one, that an expression names in a clip.

    masks: (T, H, W) bool.  boxes_cxcywh: (T, 4) in 0..1.  visible: (T,) bool.
    """

    masks: Tensor
    boxes_cxcywh: Tensor
    visible: Tensor


def set_loss(prediction: Prediction, targets: Sequence[Target], config: SetLossConfig) -> dict[str, Tensor]:
    """Weighted terms, to be summed; those of auxiliary level i end in ``_i``. A clip without a referred object has no
    mask, box or contrast to learn, but all its scores are pushed down.

    Raises DeixisError where predictions and targets do not fit each other.
    """
    if len(targets) != len(prediction.masks):
        raise DeixisError(f"{len(prediction.masks)} predictions, but {len(targets)} targets; one a clip is expected")
    tracks = [referred_track(target) for target in targets]
    count = object_count(tracks, prediction.masks.device)
    levels = {f"_{i}": aux for i, aux in enumerate(prediction.aux)} | {"": replace(prediction, aux=())}
    return {
        name + suffix: value * getattr(config, name)
        for suffix, level in levels.items()
        for name, value in level_terms(level, tracks, count, config).items()
    }


def level_terms(
    prediction: Prediction, tracks: Sequence[Track | None], count: Tensor, config: SetLossConfig
) -> dict[str, Tensor]:
    """The terms of one decoder level, not weighted; sums over clips and frames are divided by ``count``."""
    assert prediction.boxes is not None
    assert prediction.similarity is not None
    scores, masks, boxes = prediction.scores.float(), prediction.masks.float(), prediction.boxes.float()
    positive = torch.zeros_like(scores)
    nothing = (scores.sum() + masks.sum() + boxes.sum() + prediction.similarity.sum()) * 0.0
    sums = {name: nothing.clone() for name in ("box_l1", "box_giou", "mask_focal", "dice", "contrastive")}
    for i, track in enumerate(tracks):
        if track is None:
            continue
        query = match_query(scores[i], masks[i], boxes[i], track, config)
        positive[i, :, query] = track.visible.float()
        framed = track.visible if config.invisible == "masked" else torch.ones_like(track.visible)
        sums["box_l1"] += (terms.box_l1(boxes[i, :, query], track.boxes_cxcywh) * framed).sum()
        sums["box_giou"] += (terms.box_giou(boxes[i, :, query], track.boxes_cxcywh) * framed).sum()
        logits, truth = at_full_size(masks[i, :, query, None], track.masks)
        sums["mask_focal"] += terms.mask_focal(logits[:, 0], truth).sum()
        sums["dice"] += terms.dice(logits[:, 0], truth).sum()
        sums["contrastive"] += terms.cross_entropy(prediction.similarity[i, None].float(), query[None]).sum()
    contrastive = sums.pop("contrastive") / len(tracks)  # a mean over clips
    divided = {name: value / count for name, value in sums.items()}
    return {"score": terms.sigmoid_focal(scores, positive).sum() / count, "contrastive": contrastive, **divided}


@torch.no_grad()
def match_query(scores: Tensor, masks: Tensor, boxes: Tensor, track: Track, config: SetLossConfig) -> Tensor:
    """() int: the query of one clip that answers for the track, the same in all frames.

    scores: (T, Q).  masks: (T, Q, h, w).  boxes: (T, Q, 4).
    """
    everywhere = torch.ones_like(track.visible)
    framed = track.visible if config.invisible == "masked" else everywhere
    # Visible frames are what the object's score is learnt from; in a clip of one frame, officially that one always.
    scored = everywhere if config.invisible == "official" and len(scores) == 1 else track.visible
    truth_boxes = track.boxes_cxcywh[:, None].expand_as(boxes)
    logits, truth = at_full_size(masks, track.masks)
    t, q = scores.shape
    overlap = terms.dice(logits.flatten(0, 1), truth[:, None].expand(-1, q, -1, -1).flatten(0, 1)).view(t, q)
    cost = (
        config.score * focal_class_cost(scores, scored)
        + config.dice * masked_mean(overlap, everywhere)
        + config.box_l1 * masked_mean(terms.box_l1(boxes, truth_boxes), framed)
        + config.box_giou * masked_mean(terms.box_giou(boxes, truth_boxes), framed)
    )
    return match(cost[:, None])[0]


def at_full_size(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (T, Q, h, w) bilinearly at the size of the padded frames, and the truth (T, H, W) padded to that size."""
    h, w = logits.shape[-2] * 4, logits.shape[-1] * 4
    down, right = h - truth.shape[-2], w - truth.shape[-1]
    if down < 0 or right < 0:
        raise DeixisError(f"target masks are {tuple(truth.shape[-2:])}, larger than the padded frames' ({h}, {w})")
    if down or right:
        truth = F.pad(truth, (0, right, 0, down))
    return F.interpolate(logits, size=(h, w), mode="bilinear", align_corners=False), truth


def referred_track(target: Target) -> Track | None:
    """What the expression names, several objects as one (a query paints one mask); None where it names nothing.

    The joint box covers the objects that are visible; officially it also covers a box of zeros for each that is not.
    """
    index = target.referred.nonzero()[:, 0]
    if len(index) == 0:
        return None
    masks, boxes, visible = target.masks[:, index], target.boxes[:, index], target.visible[:, index]
    if len(index) == 1:
        return Track(masks[:, 0], boxes[:, 0].float(), visible[:, 0])
    corners = terms.cxcywh_to_xyxy(boxes.float())
    low = corners[..., :2].masked_fill(~visible[..., None], 1.0).amin(1)
    high = corners[..., 2:].masked_fill(~visible[..., None], 0.0).amax(1)
    seen = visible.any(1)
    joint = torch.cat([(low + high) / 2, high - low], dim=-1) * seen[:, None]
    return Track(masks.any(1), joint, seen)


def object_count(tracks: Sequence[Track | None], device: torch.device) -> Tensor:
    """() float, at least 1: true objects summed over frames, a mean over processes."""
    count = torch.tensor([float(sum(len(t.visible) for t in tracks if t is not None))], device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1.0)[0]
