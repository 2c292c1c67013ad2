"""The objective of LMPM (arXiv:2308.08544) and VITA (arXiv:2206.04403): every referred object is an instance by itself,
matched in each frame and over the clip, its mask compared at points; embeddings of one object attract each other.

B clips, T frames, Q queries, N referred objects, F frame decoder outputs, G of them that the video decoder reads, V its
layers, D width, P points; h w cells of the pixels that kernels paint on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from deixis.losses import terms
from deixis.losses.points import dice_costs, entropy_costs, sample_points, uncertain_points
from deixis.types import DeixisError, Prediction, Target


@dataclass(frozen=True, kw_only=True)
class ReferredLossConfig:
    """Weights of the terms, and of the matching costs of the same name, as read of LMPM."""

    score: float = 2.0
    mask: float = 5.0  # binary entropy
    dice: float = 5.0
    none: float = 0.1  # weight of queries that answer for nothing, in the scores' entropy
    similarity: float = 0.5  # as LMPM intends (its code misspells the key and applies 1.0)
    points: int = 12544  # P, a mask and frame
    oversample: float = 3.0  # points drawn for each that is kept for being uncertain
    importance: float = 0.75  # share of uncertain points


@dataclass(frozen=True, eq=False)
class Matched:
    """R pairs of a query and an object. layer, frame, query, object: (R,) int; frame is 0 for pairs of a clip."""

    layer: Tensor
    frame: Tensor
    query: Tensor
    object: Tensor


def referred_objects_loss(
    prediction: Prediction, targets: Sequence[Target], config: ReferredLossConfig
) -> dict[str, Tensor]:
    """Weighted terms, to be summed; each is a sum over decoder outputs. Reads the prediction's ``extras``.

    Frame level: an object counts in the frames that show it; video level: where at least one frame does. With more
    objects than queries, as many as there are queries are answered for. Raises DeixisError where predictions and
    targets do not fit each other, or are not finite.
    """
    if len(targets) != len(prediction.masks):
        raise DeixisError(f"{len(prediction.masks)} predictions, but {len(targets)} targets; one a clip is expected")
    extras = prediction.extras
    pixels, video_pixels = extras["frame_pixels"].float(), extras["video_pixels"].float()
    truths = [referred_masks(target, pixels.shape[-2:]) for target in targets]
    frame_scores, video_scores = extras["frame_scores"].float(), extras["video_scores"].float()
    frame_positive, video_positive = torch.zeros_like(frame_scores), torch.zeros_like(video_scores)
    nothing = torch.stack([value.float().sum() for value in extras.values()]).sum() * 0.0
    names = ("frame_mask", "frame_dice", "video_mask", "video_dice", "similarity")
    sums: dict[str, Tensor] = dict.fromkeys(names, nothing)
    for i, masks in enumerate(truths):
        frames = match_frames(frame_scores[i], extras["frame_kernels"][i].float(), pixels[i], masks, config)
        clips = match_clips(video_scores[i], extras["video_kernels"][i].float(), video_pixels[i], masks, config)
        frame_positive[i][frames.layer, frames.frame, frames.query] = 1
        video_positive[i].flatten(0, 1)[clips.layer, clips.query] = 1
        if not len(clips.query):
            continue
        losses = {
            "frame": frame_mask_losses(frames, extras["frame_kernels"][i].float(), pixels[i], masks, config),
            "video": video_mask_losses(clips, extras["video_kernels"][i].float(), video_pixels[i], masks, config),
        }
        for level, (entropy, dice) in losses.items():
            sums[f"{level}_mask"] = sums[f"{level}_mask"] + entropy
            sums[f"{level}_dice"] = sums[f"{level}_dice"] + dice
        embeddings = extras["frame_embeddings"][i].float(), extras["video_embeddings"][i].float()
        sums["similarity"] = sums["similarity"] + similarity_loss(*embeddings, frames, clips, frame_scores.shape[1])
    visible = float(sum(int(masks.flatten(2).any(2).sum()) for masks in truths))
    shown = float(sum(masks.shape[1] for masks in truths))
    counts = mean_counts([visible, shown], pixels.device)
    video_scores, video_positive = video_scores.flatten(1, 2), video_positive.flatten(1, 2)
    return {
        "frame_score": config.score * score_entropy(frame_scores, frame_positive, config.none),
        "video_score": config.score * score_entropy(video_scores, video_positive, config.none),
        "frame_mask": config.mask * sums["frame_mask"] / counts[0],
        "frame_dice": config.dice * sums["frame_dice"] / counts[0],
        "video_mask": config.mask * sums["video_mask"] / counts[1],
        "video_dice": config.dice * sums["video_dice"] / counts[1],
        "similarity": config.similarity * sums["similarity"] / len(targets),
    }


def referred_masks(target: Target, cells: Sequence[int]) -> Tensor:
    """(T, N, H, W) bool: the referred objects that any frame shows, padded to four times ``cells`` (h, w)."""
    masks = target.masks[:, target.referred]
    masks = masks[:, masks.flatten(2).any(2).any(0)]
    down, right = cells[0] * 4 - masks.shape[-2], cells[1] * 4 - masks.shape[-1]
    if down < 0 or right < 0:
        size = cells[0] * 4, cells[1] * 4
        raise DeixisError(f"target masks are {tuple(masks.shape[-2:])}, larger than the padded frames' {size}")
    return F.pad(masks, (0, right, 0, down))


# --- which query answers for which object ----------------------------------------------------------------------------


@torch.no_grad()
def match_frames(scores: Tensor, kernels: Tensor, pixels: Tensor, masks: Tensor, config: ReferredLossConfig) -> Matched:
    """In each frame by itself. scores: (F, T, Q); kernels: (F, T, Q, D); pixels: (T, D, h, w); masks: (T, N, H, W)."""
    points = torch.rand(len(pixels), config.points, 2, device=pixels.device)
    logits = torch.einsum("ftqd,tdp->ftqp", kernels, sample_points(pixels, points))
    truth = sample_points(masks.float(), points)  # (T, N, P)
    costs = pair_costs(scores, logits, truth[None].expand(len(scores), -1, -1, -1), config)  # (F, T, Q, N)
    visible = masks.flatten(2).any(2).cpu().numpy()  # (T, N)
    pairs = []
    for f, t in np.ndindex(*costs.shape[:2]):
        there = np.nonzero(visible[t])[0]
        queries, columns = linear_sum_assignment(costs[f, t][:, there])
        pairs += [(f, t, int(q), int(there[n])) for q, n in zip(queries, columns, strict=True)]
    return as_matched(pairs, pixels.device)


@torch.no_grad()
def match_clips(scores: Tensor, kernels: Tensor, pixels: Tensor, masks: Tensor, config: ReferredLossConfig) -> Matched:
    """Over all frames together. scores: (G, V, Q); kernels: (G, V, Q, D); layers are numbered through G and V."""
    points = torch.rand(len(pixels), config.points, 2, device=pixels.device)
    logits = torch.einsum("lqd,tdp->lqtp", kernels.flatten(0, 1), sample_points(pixels, points)).flatten(2)
    truth = sample_points(masks.float(), points).transpose(0, 1).flatten(1)  # (N, T P)
    costs = pair_costs(scores.flatten(0, 1), logits, truth.expand(len(logits), -1, -1), config)  # (G V, Q, N)
    pairs = []
    for layer, cost in enumerate(costs):
        queries, columns = linear_sum_assignment(cost)
        pairs += [(layer, 0, int(q), int(n)) for q, n in zip(queries, columns, strict=True)]
    return as_matched(pairs, pixels.device)


def pair_costs(scores: Tensor, logits: Tensor, truth: Tensor, config: ReferredLossConfig) -> np.ndarray:
    """(..., Q, N) from scores (..., Q), mask logits at points (..., Q, P), truths (..., N, P)."""
    cost = config.mask * entropy_costs(logits, truth) + config.dice * dice_costs(logits, truth)
    cost = cost - config.score * scores.sigmoid()[..., None]
    if not torch.isfinite(cost).all():
        raise DeixisError("the matching cost is not finite: the model's outputs have diverged; lower the learning rate")
    return cost.cpu().numpy()


def as_matched(pairs: Sequence[tuple[int, int, int, int]], device: torch.device) -> Matched:
    table = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 4)
    return Matched(*table.unbind(1))


# --- the terms -------------------------------------------------------------------------------------------------------


def frame_mask_losses(
    pairs: Matched, kernels: Tensor, pixels: Tensor, masks: Tensor, config: ReferredLossConfig
) -> tuple[Tensor, Tensor]:
    """(entropy, dice), summed over pairs; shapes as in ``match_frames``."""
    logits, truth = [], []
    for t in range(len(pixels)):  # a frame at a time: its pixels are large, and shared by its pairs
        own = pairs.frame == t
        rows = kernels[pairs.layer[own], t, pairs.query[own]]  # (R of this frame, D)
        logits.append(torch.einsum("rd,dhw->rhw", rows, pixels[t]))
        truth.append(masks[t, pairs.object[own]])
    at, there = at_points(torch.cat(logits), torch.cat(truth), config)
    return mean_entropy(at, there).sum(), terms.dice(at, there).sum()


def video_mask_losses(
    pairs: Matched, kernels: Tensor, pixels: Tensor, masks: Tensor, config: ReferredLossConfig
) -> tuple[Tensor, Tensor]:
    """(entropy, dice), summed over pairs; points are drawn in each frame, and a pair's are compared together."""
    rows = kernels.flatten(0, 1)[pairs.layer, pairs.query]  # (R, D)
    logits = torch.einsum("rd,tdhw->rthw", rows, pixels)
    truth = masks[:, pairs.object].transpose(0, 1)  # (R, T, H, W)
    at, there = at_points(logits.flatten(0, 1), truth.flatten(0, 1), config)
    at, there = at.reshape(len(rows), -1), there.reshape(len(rows), -1)  # (R, T P)
    return mean_entropy(at, there).sum(), terms.dice(at, there).sum()


def at_points(logits: Tensor, truth: Tensor, config: ReferredLossConfig) -> tuple[Tensor, Tensor]:
    """Logits (R, h, w) and truths (R, H, W) bool at the same P uncertain points, (R, P) each."""
    points = uncertain_points(logits.detach(), config.points, config.oversample, config.importance)
    with torch.no_grad():
        there = sample_points(truth[:, None].float(), points)[:, 0]
    return sample_points(logits[:, None], points)[:, 0], there


def mean_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """(R,): the binary entropy of (R, P), averaged over points."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)


def score_entropy(scores: Tensor, positive: Tensor, none: float) -> Tensor:
    """Entropy of the log odds (B, layers, ...), those that answer for nothing weighed by ``none``; each layer's mean by
    weight, summed over layers."""
    weight = torch.where(positive > 0, 1.0, none).transpose(0, 1).flatten(1)
    entropy = F.binary_cross_entropy_with_logits(scores, positive, reduction="none").transpose(0, 1).flatten(1)
    return ((entropy * weight).sum(1) / weight.sum(1)).sum()


def similarity_loss(
    frame_embeddings: Tensor, video_embeddings: Tensor, frames: Matched, clips: Matched, layers: int
) -> Tensor:
    """Entropy of "the same object" on the dot products of all pairs of matched embeddings of one clip, summed over the
    decoder outputs. frame_embeddings: (G, T, Q, D), of the last G of F = ``layers`` outputs.
    video_embeddings: (G, V, Q, D).

    An embedding is not paired with itself (our choice).
    """
    groups, depth = video_embeddings.shape[:2]
    total = video_embeddings.sum() * 0.0
    for g, v in np.ndindex(groups, depth):
        own, whole = frames.layer == layers - groups + g, clips.layer == g * depth + v
        of_frames = frame_embeddings[g, frames.frame[own], frames.query[own]]
        embeddings = torch.cat([of_frames, video_embeddings[g, v, clips.query[whole]]])
        objects = torch.cat([frames.object[own], clips.object[whole]])
        if len(embeddings) > 1:
            others = ~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
            same = (objects[:, None] == objects).float()
            total = total + F.binary_cross_entropy_with_logits((embeddings @ embeddings.t())[others], same[others])
    return total


def mean_counts(counts: Sequence[float], device: torch.device) -> Tensor:
    """Each at least 1; a mean over processes."""
    total = torch.tensor(counts, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return total.clamp(min=1.0)
