"""What tests of systems run on: random clips, batches of them, and how near two answers must be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deixis.types import Batch, DeixisError, Expression, Prediction, Target


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


# --- what several systems promise in the same words ------------------------------------------------------------------


def check_many_questions_are_answered_as_each_alone(model: Any) -> Prediction:
    """The answer to all of three questions together."""
    x = batch(clip(3), "dog")
    maps = model.encode(x.frames, x.padding)
    texts = ("dog", "the red cat on the left", "a")
    together = model.decode(maps, [Expression(t) for t in texts])
    assert len(together.masks) == 3
    for i, text in enumerate(texts):
        alone = model.decode(maps, [Expression(text)])
        close(together.masks[i], alone.masks[0])
        close(together.scores[i], alone.scores[0])
    return together


def check_another_number_of_expressions_is_refused(model: Any) -> None:
    x = batch(torch.cat([clip(1), clip(2)]), "dog", "cat")
    with pytest.raises(DeixisError, match="2 clips take 2 expressions"):
        model.decode(model.encode(x.frames, x.padding), [Expression("dog")] * 3)


def check_wanted_frames_are_answered_alone_but_encoded_in_their_window(model: Any) -> None:
    frames, other = clip(7, 4), clip(8, 4)
    other[:, 2] = frames[:, 2]
    x = batch(frames, "dog")
    a = model(replace(x, wanted=(2,)))
    b = model(replace(x, wanted=(2,), frames=other))
    assert a.masks.shape[1] == 1
    assert not torch.allclose(a.masks, b.masks)  # the backbone has seen the neighbours
