"""Clips with many sentences each, as batches. B clips, T frames, N objects, K sentences of all clips together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deixis.benchmarks.predicates import WorldFilm
from deixis.types import Target


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """frames: (B, T, 3, H, W) uint8.  unknown: (B, T, H, W) bool, pixels whose truth is not known.
    targets: B of them (``referred`` is not used).  texts: K.  which: (K,) the clip of each.
    referred: K tuples of object indices, () where the named object is absent.
    """

    frames: Tensor
    unknown: Tensor
    targets: tuple[Target, ...]
    texts: tuple[str, ...]
    which: Tensor
    referred: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device | str) -> ClipBatch:
        return ClipBatch(
            self.frames.to(device, non_blocking=True),
            self.unknown.to(device),
            tuple(t.to(device) for t in self.targets),
            self.texts,
            self.which.to(device),
            self.referred,
        )

    def pixels(self, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """(frames (B, T, 3, H, W) normalised float, padding (B, T, H, W), nowhere True)."""
        x = self.frames.float() / 255
        x = (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
        return x, torch.zeros_like(self.unknown)


def target_of(film: WorldFilm) -> Target:
    """A film's masks as a Target; boxes are not used by who trains on clips, and left 0."""
    masks = torch.from_numpy(np.ascontiguousarray(film.masks))
    t, n = masks.shape[:2]
    return Target(masks, torch.zeros(t, n, 4), masks.flatten(2).any(2), torch.zeros(n, dtype=torch.bool))


def gather_clips(films: Sequence[WorldFilm]) -> ClipBatch:
    """Films of one size as a batch."""
    frames = torch.stack([torch.from_numpy(np.ascontiguousarray(f.frames)).permute(0, 3, 1, 2) for f in films])
    unknown = torch.stack(
        [
            torch.zeros(f.frames.shape[:3], dtype=torch.bool) if f.ignore is None else torch.from_numpy(f.ignore)
            for f in films
        ]
    )
    sentences = [(i, s) for i, f in enumerate(films) for s in f.sentences]
    return ClipBatch(
        frames,
        unknown,
        tuple(target_of(f) for f in films),
        tuple(s.text for _, s in sentences),
        torch.tensor([i for i, _ in sentences], dtype=torch.long),
        tuple(tuple(s.objects) for _, s in sentences),
    )
