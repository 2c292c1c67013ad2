"""What tests of systems ask with: random clips, batches of them, and how near two answers must be."""

from __future__ import annotations

import torch
from torch import Tensor

from deixis.types import Batch, Expression, Target


def clip(seed: int, t: int = 3, h: int = 64, w: int = 96) -> Tensor:
    return torch.randn(1, t, 3, h, w, generator=torch.Generator().manual_seed(seed))


def batch(frames: Tensor, *texts: str, targets: tuple[Target, ...] | None = None) -> Batch:
    b, t, _, h, w = frames.shape
    nothing = torch.zeros(b, t, h, w, dtype=torch.bool)
    return Batch(frames, nothing, tuple(Expression(x) for x in texts), ((h, w),) * b, None, targets)


def close(a: Tensor | None, b: Tensor | None, tolerance: float = 1e-5) -> None:
    """tolerance: share of the largest value."""
    assert a is not None
    assert b is not None
    assert a.shape == b.shape
    assert (a - b).detach().abs().max() <= tolerance * b.detach().abs().max().clamp(min=1e-3)


def target(visible: list[int], h: int = 64, w: int = 96, referred: bool = True) -> Target:
    """One object in the middle of the frame, in the frames where ``visible`` is 1."""
    masks = torch.zeros(len(visible), 1, h, w, dtype=torch.bool)
    boxes = torch.zeros(len(visible), 1, 4)
    for t, seen in enumerate(visible):
        if seen:
            masks[t, 0, h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = True
            boxes[t, 0] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    return Target(masks, boxes, torch.tensor(visible, dtype=torch.bool)[:, None], torch.tensor([referred]))
