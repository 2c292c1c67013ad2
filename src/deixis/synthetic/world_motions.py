"""Motions of drawn shapes: still, straight, in a curve, closer, away, through an edge, stopping, starting."""

from __future__ import annotations

import numpy as np

from deixis.synthetic.cutouts import Patch
from deixis.synthetic.motions import Motion, Moving
from deixis.synthetic.world_config import WorldConfig

# ---- motions

WORLD_MOTIONS = ("still", "straight", "curve", "closer", "away", "enters", "leaves", "stops", "starts")
_MOTION_ODDS = (0.2, 0.24, 0.1, 0.08, 0.08, 0.1, 0.08, 0.07, 0.05)


def world_motion(rng: np.random.Generator, kind: str, config: WorldConfig, patch: Patch, scale: float) -> Motion:
    """A path of the kind; ``scale`` is film pixels per patch pixel."""
    h, w = config.size
    t = config.frames
    s = np.linspace(0, 1, t)
    heading = np.radians(float(rng.choice([0, 180, 0, 180, 90, 270])) + float(rng.normal(0, 7)))
    length = float(np.hypot(h, w)) * float(rng.uniform(0.15, 0.45))
    progress = s
    turn = 0.0
    grows = np.ones(t)
    if kind == "still":
        length = 0.0
    elif kind in ("closer", "away"):
        ratio = float(rng.uniform(1.45, 2.0))
        grows = ratio ** (s if kind == "closer" else 1 - s) / np.sqrt(ratio)
        length = 0.0
    elif kind == "curve":
        turn = float(rng.choice([-1, 1]) * np.radians(rng.uniform(80, 140)))
    elif kind in ("stops", "starts"):
        halt = float(rng.uniform(0.35, 0.6))
        progress = np.minimum(s / halt, 1.0) if kind == "stops" else np.maximum((s - 1 + halt) / halt, 0.0)
    angles = heading + turn * np.clip(progress * 2 - 0.5, 0, 1)
    steps = np.stack([np.cos(angles[1:]), np.sin(angles[1:])], axis=1) * (np.diff(progress) * length)[:, None]
    offset = np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])
    reach = np.array(patch.alpha.shape[::-1]) * scale * 0.5
    low, high = reach + 2, np.array([w, h]) - reach - 2
    if kind in ("enters", "leaves"):
        return _through_edge(rng, kind, config, reach, scale)
    spread = offset.max(axis=0) - offset.min(axis=0)
    offset = offset * float(min(1.0, *(np.maximum(high - low, 1) / np.maximum(spread, 1e-6))))
    least = low - offset.min(axis=0)
    start = rng.uniform(least, np.maximum(high - offset.max(axis=0), least + 1e-6))
    return Motion(start + offset, scale * grows, np.full(t, float(rng.normal(0, 8))))


def _through_edge(rng: np.random.Generator, kind: str, config: WorldConfig, reach: np.ndarray, scale: float) -> Motion:
    """In over one edge of the picture (or out over it): out of sight at one end of the film, well inside at the other
    end."""
    h, w = config.size
    outside = float(np.hypot(*reach)) + 2
    side = int(rng.integers(4))
    inner = rng.uniform([0.3 * w, 0.3 * h], [0.7 * w, 0.7 * h])
    outer = inner.copy()
    outer[side % 2] = -outside if side < 2 else (w, h)[side % 2] + outside
    wait = float(rng.uniform(0.0, 0.3))
    progress = np.clip((np.linspace(0, 1, config.frames) - wait) / (1 - wait), 0, 1)[:, None]
    path = outer + (inner - outer) * progress
    path = path if kind == "enters" else path[::-1]
    return Motion(path, np.full(config.frames, scale), np.zeros(config.frames))


def companion_of(
    rng: np.random.Generator, lead: Motion, config: WorldConfig, patch: Patch, scale: float
) -> Motion | None:
    """A path that follows the lead's, or a place on its way, so that one hides the other; None if it cannot be."""
    h, w = config.size
    way = lead.centre[-1] - lead.centre[0]
    length = float(np.hypot(*way))
    reach = np.array(patch.alpha.shape[::-1]) * scale * 0.5
    if length > 0.12 * np.hypot(h, w) and rng.random() < 0.6:
        gap = (float(reach.max()) * 2 + float(rng.uniform(4, 30))) * way / length
        path = lead.centre - gap
    else:
        middle = lead.centre[config.frames // 2]
        offset = np.array(
            [float(reach[0]) * rng.uniform(0.6, 1.1) * rng.choice([-1, 1]), float(reach[1]) * rng.uniform(-0.4, 0.4)]
        )
        path = np.broadcast_to(middle + offset, lead.centre.shape)
    inside = (path >= reach * 0.6).all() and (path <= np.array([w, h]) - reach * 0.6).all()
    return Motion(np.array(path), np.full(config.frames, scale), np.zeros(config.frames)) if inside else None


def any_world_motion(rng: np.random.Generator, config: WorldConfig, patch: Patch, scale: float) -> Motion:
    return world_motion(rng, str(rng.choice(WORLD_MOTIONS, p=_MOTION_ODDS)), config, patch, scale)


def share_covered(a: Moving, b: Moving) -> float:
    """The largest share of the smaller object's circle that lies within the other's, over the film, roughly (0..1)."""
    gap = np.hypot(*(a[0].centre - b[0].centre).T)
    radii = [0.45 * max(p.alpha.shape) * m.scale for m, p in (a, b)]
    return float(np.clip((radii[0] + radii[1] - gap) / (2 * np.minimum(*radii)), 0, 1).max())
