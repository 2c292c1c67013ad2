"""Batches of remembered views, for the proposals of light. N objects."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deixis.blocks.proposals import iou
from deixis.losses.proposals import ProposalWeights, labelled_frame, proposal_losses
from deixis.systems.light import Light
from deixis.training.views import View, Views
from deixis.types import DeixisError


@dataclass(frozen=True, kw_only=True)
class ViewData:
    """What the stage ``light_proposals`` is trained on."""

    validation_views: int = 120
    sets: tuple[str, ...] = (
        "coco_small", "mosaic", "voc_animals", "sysu_shapes", "caltech101_outlines", "weizmann_horses"
    )  # fmt: skip
    shares: tuple[float, ...] = (0.43, 0.3, 0.16, 0.07, 0.03, 0.01)  # of the views drawn, a set; crowded ones first

    def __post_init__(self) -> None:
        if len(self.sets) != len(self.shares):
            raise DeixisError(
                f"data.shares needs a number for each of the {len(self.sets)} data.sets, got {len(self.shares)}"
            )

    loss: ProposalWeights = field(default_factory=ProposalWeights)


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of one step; each has a size of its own."""

    views: tuple[View, ...]

    def to(self, device: torch.device | str) -> ViewBatch:
        return self  # views are moved one by one


def view_sample(views: Views, data: ViewData, seed: int, index: int) -> View:
    """The view of a sample index: its set is drawn by the shares of those that there are, then one of its views."""
    rng = np.random.default_rng([seed, index])
    shares = np.array(
        [share if name in views.of_set else 0.0 for name, share in zip(data.sets, data.shares, strict=True)]
    )
    if shares.sum() == 0:  # none of these sets: all views alike
        return views[int(rng.integers(len(views)))]
    several = views.of_set[data.sets[int(rng.choice(len(shares), p=shares / shares.sum()))]]
    return views[several[int(rng.integers(len(several)))]]


def view_losses(data: ViewData, system: Light, batch: ViewBatch) -> dict[str, Tensor]:
    """All terms of one batch, weighted; means over its views."""
    rows = []
    for view in batch.views:
        frames = view.frames(system.config.mean, system.config.std)
        cells, pixels, objectness = system.pixel_decoder(view.features, frames, torch.zeros(1, *frames.shape[-2:]))
        truth = labelled_frame(
            torch.from_numpy(view.masks) / 255, torch.from_numpy(view.unknown), torch.from_numpy(view.weights)
        )
        hidden = system.config.mask_hidden
        rows.append(proposal_losses(system.kernels, hidden, cells, pixels, objectness, truth, data.loss))
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
        frames = view.frames(system.config.mean, system.config.std)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = system.propose(view.features, frames, torch.zeros(1, *frames.shape[-2:]))
        masks = F.interpolate(found.masks.float(), size=view.rgb.shape[:2], mode="bilinear")[0] > 0
        truth = torch.from_numpy(view.masks > 127)
        if not len(truth):
            continue
        overlaps = iou(truth.flatten(1).float(), masks.flatten(1).float()).amax(1)
        for value, mask, facts in zip(overlaps.tolist(), truth, view.objects, strict=True):
            if facts["source"] == "truth":
                best["large" if mask.float().mean() > 0.01 else "small"].append(value)
    large, small = np.array(best["large"]), np.array(best["small"])
    return {"overlap": float(large.mean()), "over_half": float((large > 0.5).mean()),
            "small_overlap": float(small.mean()) if len(small) else 0.0,
            "small_over_half": float((small > 0.5).mean()) if len(small) else 0.0}  # fmt: skip
