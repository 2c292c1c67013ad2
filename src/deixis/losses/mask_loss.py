"""The objective of systems that paint masks and score them, without boxes: match once a clip, weigh three terms.

With one query (a dense system) there is nothing to match. B clips, T frames, Q queries, h w cells of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deixis.losses import terms
from deixis.losses.matching import focal_class_cost, masked_mean, match
from deixis.losses.set_loss import Track, at_full_size, object_count, referred_track
from deixis.types import DeixisError, Prediction, Target


@dataclass(frozen=True, kw_only=True)
class MaskLossConfig:
    """Weights of the terms; ``score`` and ``dice`` weigh the matching costs too. ReferFormer's (arXiv:2201.00487) are
    2, 2 and 5; taking them here is our choice."""

    score: float = 2.0  # focal, every query of every frame
    mask_focal: float = 2.0  # a loss only, no cost
    dice: float = 5.0


def mask_loss(prediction: Prediction, targets: Sequence[Target], config: MaskLossConfig) -> dict[str, Tensor]:
    """Weighted terms, to be summed. In a clip without a referred object all scores are pushed down, and no mask learns.

    Raises DeixisError where predictions and targets do not fit each other.
    """
    if len(targets) != len(prediction.masks):
        raise DeixisError(f"{len(prediction.masks)} predictions, but {len(targets)} targets; one a clip is expected")
    tracks = [referred_track(target) for target in targets]
    count = object_count(tracks, prediction.masks.device)
    scores, masks = prediction.scores.float(), prediction.masks.float()
    positive = torch.zeros_like(scores)
    sums = {name: (scores.sum() + masks.sum()) * 0.0 for name in ("mask_focal", "dice")}
    for i, track in enumerate(tracks):
        if track is None:
            continue
        query = match_query_by_mask(scores[i], masks[i], track, config)
        positive[i, :, query] = track.visible.float()
        logits, truth = at_full_size(masks[i, :, query, None], track.masks)
        sums["mask_focal"] = sums["mask_focal"] + terms.mask_focal(logits[:, 0], truth).sum()
        sums["dice"] = sums["dice"] + terms.dice(logits[:, 0], truth).sum()
    found = {"score": terms.sigmoid_focal(scores, positive).sum(), **sums}
    return {name: value * getattr(config, name) / count for name, value in found.items()}


@torch.no_grad()
def match_query_by_mask(scores: Tensor, masks: Tensor, track: Track, config: MaskLossConfig) -> Tensor:
    """() int: the query of one clip that answers for the track, the same in all frames.

    scores: (T, Q).  masks: (T, Q, h, w).
    """
    t, q = scores.shape
    logits, truth = at_full_size(masks, track.masks)
    overlap = terms.dice(logits.flatten(0, 1), truth[:, None].expand(-1, q, -1, -1).flatten(0, 1)).view(t, q)
    everywhere = torch.ones_like(track.visible)
    cost = config.score * focal_class_cost(scores, track.visible) + config.dice * masked_mean(overlap, everywhere)
    return match(cost[:, None])[0]
