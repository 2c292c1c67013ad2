"""Paths of objects through a video: of cut-outs, and of drawn shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deixis.synthetic.cutouts import Patch


@dataclass(frozen=True, eq=False)
class Motion:
    """An object's motion. centre: (T, 2) pixels.  scale: (T,) film pixels per patch pixel.  angle: (T,) degrees."""

    centre: np.ndarray
    scale: np.ndarray
    angle: np.ndarray


# ---- motions

MOTIONS = ("still", "straight", "zoom", "curve")


def a_motion(
    rng: np.random.Generator, kind: str, frames: int, size: tuple[int, int], scale: float, heading: float | None = None
) -> Motion:
    """A path inside the picture. heading: degrees, 0 right, 90 down; drawn (mostly along an axis) where None."""
    h, w = size
    diagonal = float(np.hypot(h, w))
    s = np.linspace(0, 1, frames)
    low, high = np.array([0.1 * w, 0.14 * h]), np.array([0.9 * w, 0.86 * h])
    if heading is None:
        heading = (
            float(rng.choice([0, 180, 0, 180, 90, 270])) + float(rng.normal(0, 8))
            if rng.random() < 0.8
            else float(rng.uniform(0, 360))
        )
    turn = 0.0
    length = 0.0
    if kind in ("straight", "curve"):
        length = diagonal * float(rng.uniform(0.08, 0.42))
        turn = 0.0 if kind == "straight" else float(rng.choice([-1, 1]) * rng.uniform(60, 130))
    angles = np.radians(heading + turn * np.clip((s[:-1] + s[1:]) / 2 * 2 - 0.5, 0, 1))
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * length / max(1, frames - 1)
    offset = np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])
    spread = offset.max(axis=0) - offset.min(axis=0)
    shrink = float(min(1.0, *((high - low) / np.maximum(spread, 1e-6))))
    offset = offset * shrink
    start = rng.uniform(
        low - offset.min(axis=0), np.maximum(high - offset.max(axis=0), low - offset.min(axis=0) + 1e-6)
    )
    grows = np.ones(frames)
    if kind == "zoom":
        ratio = float(rng.uniform(1.3, 1.9))
        grows = ratio**s if rng.random() < 0.6 else ratio ** (1 - s)
        grows = grows / np.sqrt(ratio)
    tilt = float(rng.normal(0, 6))
    return Motion(start + offset, scale * grows, np.full(frames, tilt))


Moving = tuple[Motion, Patch]
