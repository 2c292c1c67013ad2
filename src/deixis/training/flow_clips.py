"""Clips with optical flow as the target, from captioned videos."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deixis.encoders.tokenizers import UNKNOWN
from deixis.systems.slvp import SlvpConfig
from deixis.training.augment import mirror_words
from deixis.training.captions import CaptionedFilm, VideoCaptions, shuffled
from deixis.training.flow import BROKEN, FlowCache, FlowError, FlowSettings, flow_target, to_cells
from deixis.types import DeixisError
from deixis.video import Video, normalise_pixels, resize

log = logging.getLogger(__name__)

IN_A_ROW = 100  # broken films, one after the other, after which the list itself is at fault


# --- what pre-training learns from ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PretrainLoss:
    """Weights of the terms (0 leaves a term out) and what belongs to them."""

    flow: float = 1.0
    contrast: float = 0.5  # clip against sentence
    words: float = 0.5  # hidden words
    hide: float = 0.15  # share of the words that are hidden, where ``words`` is not 0
    gradient: float = 0.5  # of the differences between neighbouring cells, within the flow term
    epsilon: float = 0.5  # of Charbonnier, in units of flow: round at 0, or "nothing moves" is a trap
    temperature: float = 0.07  # of the contrast
    limit: float = 5.0  # units at which the target is clipped
    moving: float = 4.0  # weight of cells that move by half a unit or more, where the others have 1


@dataclass(frozen=True, eq=False)
class FlowClip:
    """frames: (T, 3, H, W) uint8.  flow: (T-1, 2, h, w) float32, the target, in units.  valid: (T-1, h, w) bool.
    skipped: broken films that were passed over to get here."""

    frames: Tensor
    caption: str
    flow: Tensor
    valid: Tensor
    skipped: int = 0


@dataclass(frozen=True, eq=False)
class FlowBatch:
    """frames: (B, T, 3, H, W) normalised.  padding: (B, T, H, W).  flow: (B, T-1, 2, h, w).  valid: (B, T-1, h, w)."""

    frames: Tensor
    padding: Tensor
    captions: tuple[str, ...]
    flow: Tensor
    valid: Tensor
    counts: Mapping[str, float]

    def to(self, device: torch.device | str) -> FlowBatch:
        moved = (x.to(device) for x in (self.frames, self.padding, self.flow, self.valid))
        frames, padding, flow, valid = moved
        return FlowBatch(frames, padding, self.captions, flow, valid, self.counts)


def collate_flow(model: SlvpConfig, clips: Sequence[FlowClip]) -> FlowBatch:
    """Clips of one size as a batch; it counts the films that were skipped."""
    frames = normalise_pixels(torch.stack([clip.frames for clip in clips]), model.mean, model.std)
    padding = torch.zeros(frames.shape[0], frames.shape[1], *frames.shape[-2:], dtype=torch.bool)
    flow, valid = torch.stack([clip.flow for clip in clips]), torch.stack([clip.valid for clip in clips])
    skipped = {"skipped_films": float(sum(clip.skipped for clip in clips))}
    return FlowBatch(frames, padding, tuple(clip.caption for clip in clips), flow, valid, skipped)


def special_tokens(model: Any, tokens: Tensor, padding: Tensor) -> tuple[int, Tensor]:
    """(the token that hides a word: <mask>, or <unk> in vocabularies without one; (B, L) bool of what is no word)."""
    table = model.text.tokenizer
    named = [table.token_to_id(name) for name in ("<s>", "</s>", "<pad>")]
    special = padding | torch.isin(tokens, torch.tensor([i for i in named if i is not None], device=tokens.device))
    hides = table.token_to_id("<mask>")
    return (UNKNOWN if hides is None else hides), special


# --- pre-training on a list of captioned films ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PretrainData:
    """How clips are made of captioned films."""

    size: tuple[int, int] = (224, 384)  # H, W in pixels: films are scaled to cover it, then cut at random
    frames: int = 6  # T of a clip
    flip: float = 0.5  # chance of a mirror
    flow: FlowSettings = field(default_factory=FlowSettings)
    loss: PretrainLoss = field(default_factory=PretrainLoss)


def flow_clip(
    films: VideoCaptions, cache: FlowCache, model: SlvpConfig, config: PretrainData, seed: int, index: int
) -> FlowClip:
    """The clip of a sample index; every epoch has its own order. A film that is broken is passed over for the next one
    in that order, logged, and counted. Raises DeixisError after IN_A_ROW of them."""
    epoch, turn = divmod(index, len(films))
    for skipped in range(IN_A_ROW):
        number = shuffled((turn + skipped) % len(films), len(films), seed, epoch)
        rng = np.random.default_rng([seed, index, skipped])
        try:
            return replace(read_flow_clip(films[number], cache, model, config, rng), skipped=skipped)
        except FlowError:
            raise
        except BROKEN as error:
            log.warning("row %d of %s is left out: %s", number + 1, films.path, " ".join(str(error).split()))
            last = error
    raise DeixisError(f"{IN_A_ROW} films of {films.path} in a row could not be read; the last: {last}") from last


def read_flow_clip(
    row: CaptionedFilm, cache: FlowCache, model: SlvpConfig, config: PretrainData, rng: np.random.Generator
) -> FlowClip:
    """T frames from a random place of a film, with their flow, scaled, cut and perhaps mirrored."""
    entry = cache.get(row)
    count = len(entry.seconds)
    if count < config.frames:
        raise DeixisError(f"{row.film} has {count} frames at {config.flow.rate:g} a second, {config.frames} are wanted")
    first = int(rng.integers(0, count - config.frames + 1))
    pictures = frames_at(row, entry.seconds[first : first + config.frames])
    span = slice(first, first + config.frames - 1)
    (height, width), (source_h, source_w) = config.size, pictures[0].shape[:2]
    scale = max(height / source_h, width / source_w)  # the film covers what is cut from it
    whole = tuple(max(wanted, -(-round(side * scale) // 4) * 4) for side, wanted in
                  ((source_h, height), (source_w, width)))  # fmt: skip
    cells = (whole[0] // 4, whole[1] // 4)
    pixels = np.array([whole[1] / entry.size[1], whole[0] / entry.size[0]], np.float32)
    flow = to_cells(entry.flow[span], cells) * pixels
    valid = to_cells(np.repeat(entry.valid[span][..., None], 2, -1), cells)[..., 0] >= 0.5
    top, left = (int(rng.integers(0, (whole[i] - config.size[i]) // 4 + 1)) for i in (0, 1))  # cells
    down, right = slice(top, top + height // 4), slice(left, left + width // 4)
    flow, valid = flow[:, down, right], valid[:, down, right]
    pixel_down, pixel_right = slice(4 * top, 4 * top + height), slice(4 * left, 4 * left + width)
    frames = np.stack([resize(p, (whole[0], whole[1]))[pixel_down, pixel_right] for p in pictures])
    caption = row.caption
    if rng.random() < config.flip:
        frames, flow, valid = frames[:, :, ::-1], flow[:, :, ::-1] * np.array([-1, 1], np.float32), valid[:, :, ::-1]
        caption = mirror_words(caption)
    target = flow_target(flow, config.size, model.flow_unit, config.loss.limit)
    return as_flow_clip(frames, caption, target, valid)


def as_flow_clip(frames: np.ndarray, caption: str, target: np.ndarray, valid: np.ndarray) -> FlowClip:
    """frames: (T, H, W, 3) uint8.  target: (T-1, h, w, 2).  valid: (T-1, h, w)."""
    return FlowClip(
        torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2),
        caption,
        torch.from_numpy(np.ascontiguousarray(target)).permute(0, 3, 1, 2),
        torch.from_numpy(np.ascontiguousarray(valid)),
    )


def frames_at(row: CaptionedFilm, seconds: np.ndarray) -> list[np.ndarray]:
    """The frames of a film at the times that the cache noted. Raises DeixisError where the film has others now."""
    half = 0.5 * float(np.diff(seconds).min())
    near = min(half, 1e-3)
    film = Video(row.film, start=max(0.0, float(seconds[0]) - near), end=float(seconds[-1]) + near, fps=row.fps)
    wanted = iter(seconds)
    due = next(wanted)
    found: list[np.ndarray] = []
    for frame in film.frames():
        if abs(frame.seconds - due) < near:
            found.append(frame.pixels())
            due = next(wanted, np.inf)
    if len(found) < len(seconds):
        raise DeixisError(f"{row.film}: {len(found)} of {len(seconds)} frames were found again at their times")
    return found
