"""Tokens of light: what the scorer reads of a clip, written once, read many times.

Encoding and proposing cost a hundred times what the scorer costs, and nothing of them changes while the scorer is
trained. A clip becomes one safetensors file: its ``TrackFeatures`` in fp16, how much each track overlaps each object,
and its sentences as JSON in the header. Q tracks, N objects, T frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deixis.systems.light import FrameFeatures, Light, TrackFeatures, link
from deixis.types import DeixisError

BOOLEAN = ("alive",)
OVER_TIME = ("geometry", "alive")  # (T, Q, ...); all others have no time


@dataclass(frozen=True)
class Said:
    """A sentence about a clip. objects: indices of those that it refers to, () where there is no such thing.
    kind: class, colour, place, motion, written, none ..."""

    text: str
    kind: str
    objects: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """One clip. tracks: with B = 1.  overlap: (Q, N) IoU of each track with each object over all frames."""

    tracks: TrackFeatures
    overlap: Tensor
    sentences: tuple[Said, ...]
    name: str


@torch.no_grad()
def clip_tokens(
    system: Light,
    features: FrameFeatures,
    frames: Tensor,
    truth: Tensor,
    sentences: Sequence[Said],
    name: str,
    *,
    own_masks: bool = False,
) -> Tokens:
    """The tokens of a clip.

    Args:
        features: Of its T frames.
        frames: (T, 3, H, W), normalised.
        truth: (T, N, H, W) 0..1, the objects' masks.
        own_masks: The tracks are the true masks themselves instead of the system's proposals.
    """
    padding = torch.zeros(len(frames), *frames.shape[-2:], dtype=torch.bool, device=frames.device)
    quarter = F.avg_pool2d(truth.float().flatten(0, 1)[:, None], 4)[:, 0].unflatten(0, truth.shape[:2])
    if own_masks:
        count = system.config.queries
        masks = F.pad(quarter[:, :count], (0, 0, 0, 0, 0, max(0, count - quarter.shape[1])))[None]
        scores = (masks.flatten(3).sum(3) > 0.5).float()
    else:
        logits, scores = link(system.propose(features, frames, padding), features.deep, 1)
        masks = logits.float().sigmoid()
    tracks = system.pool_tracks(features, frames[None], masks, scores)
    return Tokens(tracks, overlaps(masks[0], truth.float()), tuple(sentences), name)


def overlaps(masks: Tensor, truth: Tensor) -> Tensor:
    """(Q, N) IoU over all frames of tracks (T, Q, h, w) 0..1 at stride 4 with objects (T, N, H, W) 0..1."""
    quarter = F.avg_pool2d(truth.flatten(0, 1)[:, None], 4)[:, 0].unflatten(0, truth.shape[:2])
    flat, goal = (masks > 0.5).float(), (quarter > 0.5).float()
    both = torch.einsum("tqhw,tnhw->qn", flat, goal)
    either = flat.sum((0, 2, 3))[:, None] + goal.sum((0, 2, 3))[None] - both
    return both / either.clamp(min=1)


def save_tokens(path: Path, tokens: Tokens) -> None:
    """Write one file, in one step."""
    stored = {
        f.name: (v if v.dtype == torch.bool else v.half()).contiguous().cpu()
        for f in fields(tokens.tracks) for v in [getattr(tokens.tracks, f.name)[0]]
    }  # fmt: skip
    stored["overlap"] = tokens.overlap.half().contiguous().cpu()
    facts = {"name": tokens.name, "sentences": [[s.text, s.kind, list(s.objects)] for s in tokens.sentences]}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    save_file(stored, beside, metadata={"deixis": json.dumps(facts)})
    os.replace(beside, path)


def read_tokens(path: Path) -> Tokens:
    """Read one file. Raises DeixisError where it is cut off or no such file: make it anew."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["deixis"])
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        values = {f.name: stored[f.name][None] for f in fields(TrackFeatures)}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DeixisError(f"{path} holds no whole tokens ({error}); delete it and make the tokens again") from error
    tracks = TrackFeatures(**{k: v if k in BOOLEAN else v.float() for k, v in values.items()})
    sentences = tuple(Said(text, kind, tuple(objects)) for text, kind, objects in facts["sentences"])
    return Tokens(tracks, stored["overlap"].float(), sentences, facts["name"])


def batch_tracks(clips: Sequence[TrackFeatures]) -> TrackFeatures:
    """Clips with as many tracks but different lengths as one batch; frames that are missing hold no track."""
    most = max(c.alive.shape[1] for c in clips)

    def joined(name: str) -> Tensor:
        rows = [getattr(c, name) for c in clips]
        if name in OVER_TIME:
            rows = [F.pad(r, (0, 0) * (r.ndim - 2) + (0, most - r.shape[1])) for r in rows]
        return torch.cat(rows)

    return TrackFeatures(**{f.name: joined(f.name) for f in fields(TrackFeatures)})
