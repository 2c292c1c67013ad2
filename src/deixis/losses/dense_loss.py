"""The objective of a system that paints one mask a frame and scores nothing (VLP-RVOS, arXiv:2405.10610).

B clips, T frames, H W pixels of a frame; h w, i j cells of the two maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deixis.losses import terms
from deixis.types import DeixisError, Prediction, Target


@dataclass(frozen=True, kw_only=True)
class DenseLossConfig:
    """Weights of the terms (read); that these four and no others make the objective is our choice."""

    mask_focal: float = 2.0
    dice: float = 5.0
    pixel_focal: float = 2.0  # the same two on the pixel-text map
    pixel_dice: float = 5.0


def dense_loss(
    predictions: Sequence[Prediction], targets: Sequence[Target], size: tuple[int, int], config: DenseLossConfig
) -> dict[str, Tensor]:
    """Weighted terms, to be summed: means over clips and frames at the size (H, W) of the padded frames.

    predictions: of successive parts of the clips, each with ``pixel_text`` (B, T, i, j) among its extras; together they
    have the frames of the targets. Frames in which the object is not, and clips without one, teach empty masks.
    Raises DeixisError where predictions and targets do not fit each other.
    """
    masks = torch.cat([p.masks[:, :, 0].float() for p in predictions], dim=1)  # (B, T, h, w)
    similarity = torch.cat([p.extras["pixel_text"].float() for p in predictions], dim=1)
    if len(masks) != len(targets) or any(len(t.masks) != masks.shape[1] for t in targets):
        found = f"{len(targets)} targets of {[len(t.masks) for t in targets]} frames"
        raise DeixisError(f"{len(masks)} predictions of {masks.shape[1]} frames, but {found}; they must agree")
    truth = torch.stack([wanted_mask(target, size) for target in targets]).flatten(0, 1)  # (B T, H, W)
    losses = {}
    for name, logits in (("mask", masks), ("pixel", similarity)):
        full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).flatten(0, 1)
        losses[f"{name}_focal"] = getattr(config, f"{name}_focal") * terms.mask_focal(full, truth).mean()
        dice = "dice" if name == "mask" else "pixel_dice"
        losses[dice] = getattr(config, dice) * terms.dice(full, truth).mean()
    return losses


def wanted_mask(target: Target, size: tuple[int, int]) -> Tensor:
    """(T, H, W) bool: all referred objects together, padded on the right and below to ``size``."""
    masks = target.masks[:, target.referred].any(1)
    below, right = size[0] - masks.shape[-2], size[1] - masks.shape[-1]
    if below < 0 or right < 0:
        raise DeixisError(f"target masks are {tuple(masks.shape[-2:])}, larger than the padded frames' {size}")
    return F.pad(masks, (0, right, 0, below))
