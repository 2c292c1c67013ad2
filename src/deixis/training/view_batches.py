"""Batches of views, for the proposals of light. N objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deixis.blocks.proposals import iou
from deixis.losses.proposals import ProposalWeights, labelled_frame, proposal_losses
from deixis.systems.light import FrameFeatures, Light
from deixis.training.views import PictureViews, View, Views
from deixis.types import DeixisError


@dataclass(frozen=True, kw_only=True)
class ViewData:
    """What the stage ``light_proposals`` is trained on."""

    validation_views: int = 120
    sets: tuple[str, ...] = (
        "coco_small", "mosaic", "voc_animals", "sysu_shapes", "caltech101_outlines", "weizmann_horses"
    )  # fmt: skip
    shares: tuple[float, ...] = (0.43, 0.3, 0.16, 0.07, 0.03, 0.01)  # of the views drawn, a set; crowded ones first

    vit_rate: float = 0.15  # of the learning rate, for TinyViT where the encoders train
    net_rate: float = 0.05  # the same for EfficientNet
    loss: ProposalWeights = field(default_factory=ProposalWeights)

    def __post_init__(self) -> None:
        if len(self.sets) != len(self.shares):
            raise DeixisError(
                f"data.shares needs a number for each of the {len(self.sets)} data.sets, got {len(self.shares)}"
            )


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of one step; each has a size of its own."""

    views: tuple[View, ...]

    def to(self, device: torch.device | str) -> ViewBatch:
        return self  # ``encoded`` moves what it needs


def view_sample(views: Views, data: ViewData, seed: int, index: int) -> View:
    """The view of a sample index: its set is drawn by the shares of those that there are, then one of its views."""
    rng = np.random.default_rng([seed, index])
    shares = np.array(
        [share if name in views.of_set else 0.0 for name, share in zip(data.sets, data.shares, strict=True)]
    )
    several: Sequence[int] = range(len(views))  # where there is none of these sets: all views alike
    if shares.sum() > 0:
        several = views.of_set[data.sets[int(rng.choice(len(shares), p=shares / shares.sum()))]]
    number = several[int(rng.integers(len(several)))]
    return views.crop(number, seed, index) if isinstance(views, PictureViews) else views[number]


def encoded(system: Light, views: Sequence[View]) -> tuple[Tensor, FrameFeatures]:
    """Frames (N, 3, H, W) of views of one shape and their features, on the system's device; encoded where none are
    remembered."""
    device = next(system.parameters()).device
    frames = torch.cat([view.frames(system.config.mean, system.config.std) for view in views]).to(device)
    known = [view.features for view in views if view.features is not None]
    if len(known) < len(views):
        return frames, system.encode_frames(frames)
    return frames, FrameFeatures(
        *(torch.cat([getattr(k, f.name) for k in known]).to(device) for f in fields(FrameFeatures))
    )


def in_shapes(views: Sequence[View]) -> list[list[View]]:
    """Views that are yet to be encoded, those of one shape together; remembered ones alone."""
    groups: dict[tuple, list[View]] = defaultdict(list)
    for number, view in enumerate(views):
        groups[view.rgb.shape if view.features is None else (number,)].append(view)
    return list(groups.values())


def view_losses(data: ViewData, system: Light, batch: ViewBatch) -> dict[str, Tensor]:
    """All terms of one batch, weighted; means over its views."""
    rows = []
    for views in in_shapes(batch.views):
        frames, features = encoded(system, views)
        device = frames.device
        padding = torch.zeros(len(views), *frames.shape[-2:], device=device)
        cells, pixels, objectness = system.pixel_decoder(features, frames, padding)
        for i, view in enumerate(views):
            n = slice(i, i + 1)
            truth = labelled_frame(
                *(torch.from_numpy(x).to(device) for x in (view.masks / np.float32(255), view.unknown, view.weights))
            )
            hidden = system.config.mask_hidden
            rows.append(proposal_losses(system.kernels, hidden, cells[n], pixels[n], objectness[n], truth, data.loss))
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}


@torch.no_grad()
def validate_views(views: Views, data: ViewData, system: nn.Module) -> dict[str, float]:
    """On development pictures: the best overlap of a proposal with each true object over 1 % of the picture (mean), the
    share over one half, and the same for smaller ones."""
    assert isinstance(system, Light)
    best: dict[str, list[float]] = {"large": [], "small": []}
    step = max(1, len(views) // data.validation_views)
    for index in range(0, len(views), step):
        view = views[index]
        device = next(system.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            frames, features = encoded(system, [view])
            found = system.propose(features, frames, torch.zeros(1, *frames.shape[-2:], device=device))
        masks = F.interpolate(found.masks.float(), size=view.rgb.shape[:2], mode="bilinear")[0] > 0
        truth = torch.from_numpy(view.masks > 127).to(device)
        if not len(truth):
            continue
        overlaps = iou(truth.flatten(1).float(), masks.flatten(1).float()).amax(1)
        for value, mask, facts in zip(overlaps.tolist(), truth, view.objects, strict=True):
            if facts["source"] == "truth":
                best["large" if mask.float().mean() > 0.01 else "small"].append(value)
    large, small = np.array(best["large"] or [0.0]), np.array(best["small"])
    return {"overlap": float(large.mean()), "over_half": float((large > 0.5).mean()),
            "small_overlap": float(small.mean()) if len(small) else 0.0,
            "small_over_half": float((small > 0.5).mean()) if len(small) else 0.0}  # fmt: skip
