"""Set prediction losses: match a query a clip and decoder level, weigh the terms, repeat for the auxiliary levels.

``set_loss`` is SOC's, with boxes and contrast; ``mask_loss`` that of systems without either. Where a prediction carries
the logits of K > 1 classes (``extras["classes"]``) and every target its category, all of them are supervised: the
matched query is positive at its object's class alone (read: ReferFormer). Else the one score of a query is.

B clips, T frames, Q queries, K classes, N objects, H W pixels; h w cells of the masks.
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
class MaskLossConfig:
    """Weights of the loss terms, and of the matching costs of the same name: ReferFormer's (arXiv:2201.00487)."""

    score: float = 2.0  # focal, every query of every frame
    mask_focal: float = 2.0  # a loss only, no cost
    dice: float = 5.0


@dataclass(frozen=True, kw_only=True)
class SetLossConfig(MaskLossConfig):
    """The same with boxes and contrast, as published for SOC (read)."""

    box_l1: float = 2.0
    box_giou: float = 2.0
    contrastive: float = 1.0  # a loss only, no cost
    # Frames in which the object is not visible: the authors supervise boxes there too, towards a box of zeros, and let
    # them count in the matching. "masked" leaves those boxes out; empty masks are supervised either way.
    invisible: Literal["masked", "official"] = "masked"


@dataclass(frozen=True, eq=False)
class Track:
    """The one object, or the several as one, that an expression names in a clip.

    masks: (T, H, W) bool.  boxes_cxcywh: (T, 4) in 0..1.  visible: (T,) bool.  category: number of its class, or None.
    """

    masks: Tensor
    boxes_cxcywh: Tensor
    visible: Tensor
    category: int | None = None


def set_loss(prediction: Prediction, targets: Sequence[Target], config: SetLossConfig) -> dict[str, Tensor]:
    """Weighted terms, to be summed; those of auxiliary level i end in ``_i``. A clip without a referred object has no
    mask, box or contrast to learn, but all its scores are pushed down.

    Raises DeixisError where predictions and targets do not fit each other.
    """
    tracks, count = referred_tracks(prediction, targets)
    levels = {f"_{i}": aux for i, aux in enumerate(prediction.aux)} | {"": replace(prediction, aux=())}
    return {
        name + suffix: value * getattr(config, name)
        for suffix, level in levels.items()
        for name, value in level_terms(level, tracks, count, config).items()
    }


def mask_loss(prediction: Prediction, targets: Sequence[Target], config: MaskLossConfig) -> dict[str, Tensor]:
    """Weighted terms of scores and masks, to be summed. In a clip without a referred object all scores are pushed down,
    and no mask learns. With one query (a dense system) there is nothing to match.

    Raises DeixisError where predictions and targets do not fit each other.
    """
    tracks, count = referred_tracks(prediction, targets)
    sums = matched_sums(replace(prediction, boxes=None), tracks, config)
    return {name: value * getattr(config, name) / count for name, value in sums.items()}


def referred_tracks(prediction: Prediction, targets: Sequence[Target]) -> tuple[list[Track | None], Tensor]:
    """The true track of each clip, and ``object_count``."""
    if len(targets) != len(prediction.masks):
        raise DeixisError(f"{len(prediction.masks)} predictions, but {len(targets)} targets; one a clip is expected")
    tracks = [referred_track(target) for target in targets]
    return tracks, object_count(tracks, prediction.masks.device)


def level_terms(
    prediction: Prediction, tracks: Sequence[Track | None], count: Tensor, config: SetLossConfig
) -> dict[str, Tensor]:
    """The terms of one decoder level, not weighted; sums over clips and frames are divided by ``count``."""
    sums = matched_sums(prediction, tracks, config)
    score, contrastive = sums.pop("score") / count, sums.pop("contrastive") / len(tracks)  # contrast: a mean over clips
    return {"score": score, "contrastive": contrastive, **{name: value / count for name, value in sums.items()}}


def matched_sums(prediction: Prediction, tracks: Sequence[Track | None], config: MaskLossConfig) -> dict[str, Tensor]:
    """The terms of one decoder level, summed over clips and frames; boxes and contrast where it predicts boxes."""
    scores, masks = prediction.scores.float(), prediction.masks.float()
    boxes = None if prediction.boxes is None else prediction.boxes.float()
    nothing, names = scores.sum() + masks.sum(), ["mask_focal", "dice"]
    if boxes is not None:
        assert isinstance(config, SetLossConfig)
        assert prediction.similarity is not None
        nothing = nothing + boxes.sum() + prediction.similarity.sum()
        names = ["box_l1", "box_giou", *names, "contrastive"]
    classes = class_logits(prediction, tracks)
    positive, sums = torch.zeros_like(classes), {name: (nothing * 0.0).clone() for name in names}
    for i, track in enumerate(tracks):
        if track is None:
            continue
        own = track.category if track.category is not None and classes.shape[-1] > 1 else 0
        query = match_query(classes[i, ..., own], masks[i], None if boxes is None else boxes[i], track, config)
        positive[i, :, query, own] = track.visible.float()
        if boxes is not None:
            framed = boxed_frames(track, config)
            sums["box_l1"] += (terms.box_l1(boxes[i, :, query], track.boxes_cxcywh) * framed).sum()
            sums["box_giou"] += (terms.box_giou(boxes[i, :, query], track.boxes_cxcywh) * framed).sum()
        logits, truth = at_full_size(masks[i, :, query, None], track.masks)
        sums["mask_focal"] += terms.mask_focal(logits[:, 0], truth).sum()
        sums["dice"] += terms.dice(logits[:, 0], truth).sum()
        if prediction.similarity is not None and boxes is not None:
            sums["contrastive"] += terms.cross_entropy(prediction.similarity[i, None].float(), query[None]).sum()
    return {"score": terms.sigmoid_focal(classes, positive).sum(), **sums}


def class_logits(prediction: Prediction, tracks: Sequence[Track | None]) -> Tensor:
    """(B, T, Q, K): what the focal loss supervises. K is 1, a query's score, where there is one class or a clip names
    something of no known category.

    Raises DeixisError for a category that the system has no class for.
    """
    classes = prediction.extras.get("classes")
    known = [track.category for track in tracks if track is not None]
    if classes is None or None in known:
        return prediction.scores.float()[..., None]
    most = max((number for number in known if number is not None), default=0)
    if most >= classes.shape[-1]:
        raise DeixisError(f"a target has category {most}, but the system has {classes.shape[-1]} classes")
    return classes.float()


def boxed_frames(track: Track, config: MaskLossConfig) -> Tensor:
    """(T,) bool: the frames whose boxes are supervised."""
    official = isinstance(config, SetLossConfig) and config.invisible == "official"
    return torch.ones_like(track.visible) if official else track.visible


@torch.no_grad()
def match_query(scores: Tensor, masks: Tensor, boxes: Tensor | None, track: Track, config: MaskLossConfig) -> Tensor:
    """() int: the query of one clip that is matched to the track, the same in all frames.

    scores: (T, Q).  masks: (T, Q, h, w).  boxes: (T, Q, 4), or None.
    """
    everywhere, framed = torch.ones_like(track.visible), boxed_frames(track, config)
    # Visible frames are what the object's score is learnt from; in a clip of one frame, officially that one always.
    scored = framed if len(scores) == 1 else track.visible
    logits, truth = at_full_size(masks, track.masks)
    t, q = scores.shape
    overlap = terms.dice(logits.flatten(0, 1), truth[:, None].expand(-1, q, -1, -1).flatten(0, 1)).view(t, q)
    cost = config.score * focal_class_cost(scores, scored) + config.dice * masked_mean(overlap, everywhere)
    if boxes is not None and isinstance(config, SetLossConfig):
        truth_boxes = track.boxes_cxcywh[:, None].expand_as(boxes)
        cost = cost + config.box_l1 * masked_mean(terms.box_l1(boxes, truth_boxes), framed)
        cost = cost + config.box_giou * masked_mean(terms.box_giou(boxes, truth_boxes), framed)
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
    """What the expression names, several objects as one (a query predicts one mask); None where it names nothing.

    The joint box covers the objects that are visible; officially it also covers a box of zeros for each that is not.
    """
    index = target.referred.nonzero()[:, 0]
    if len(index) == 0:
        return None
    masks, boxes, visible = target.masks[:, index], target.boxes[:, index], target.visible[:, index]
    if len(index) == 1:
        return Track(masks[:, 0], boxes[:, 0].float(), visible[:, 0], target.category)
    corners = terms.cxcywh_to_xyxy(boxes.float())
    low = corners[..., :2].masked_fill(~visible[..., None], 1.0).amin(1)
    high = corners[..., 2:].masked_fill(~visible[..., None], 0.0).amax(1)
    shown = visible.any(1)
    joint = torch.cat([(low + high) / 2, high - low], dim=-1) * shown[:, None]
    return Track(masks.any(1), joint, shown, target.category)


def object_count(tracks: Sequence[Track | None], device: torch.device) -> Tensor:
    """() float, at least 1: true objects summed over frames, a mean over processes."""
    count = torch.tensor([float(sum(len(t.visible) for t in tracks if t is not None))], device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1.0)[0]
