"""Benchmarks as training data: which clips of which splits, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from deixis.benchmarks import open_benchmark
from deixis.benchmarks.frames import centred_window, film_index
from deixis.benchmarks.samples import Benchmark
from deixis.losses.set_loss import SetLossConfig
from deixis.training.clips import (
    TrainingClip,
    anchored_frames,
    consecutive_windows,
    cut,
    distorted,
    make_target,
    mirrored,
    pseudo_clip,
    shrink,
    training_clip,
)
from deixis.types import DeixisError, SystemConfig

CROP_FROM, CROP_SIDES = (400, 500, 600), (384, 600)  # pixels: short side before a cut, its least and most side (read)
How = Literal["windows", "anchored", "labelled", "still", "pseudo"]


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A split to train on. data: its name under --data.  benchmark, split: as ``deixis data`` names them.

    how: ``windows`` of 8 frames side by side; ``anchored``, a frame, two near it and others from the whole video
    (ReferFormer's choice; a clip is kept where any referred object shows in any frame); a window around a ``labelled``
    frame; ``still``, one frame; ``pseudo``, a still set in motion.
    """

    data: str
    benchmark: str
    split: str
    how: How


REF_YOUTUBE_VOS = ClipSource(data="ref-youtube-vos", benchmark="ref-youtube-vos", split="train", how="windows")
MEVIS = ClipSource(data="mevis", benchmark="mevis", split="train", how="windows")
A2D = ClipSource(data="a2d-sentences", benchmark="a2d-sentences", split="train", how="labelled")
STILLS = tuple(
    ClipSource(data="refcoco", benchmark="refcoco", split=f"{name}_train", how="still")
    for name in ("refcoco", "refcoco+", "refcocog")
)
PSEUDO = tuple(replace(source, how="pseudo") for source in STILLS)


@dataclass(frozen=True, kw_only=True)
class Selecting:
    """What a published recipe trains on, and what it is judged by while it does. All our choice."""

    split: str = ""  # to train on; empty: the published one
    validate: str = ""  # split to validate on; empty: what ``split`` holds out, if it does
    validate_samples: int = 40  # of that split, the first by the hash of their video
    calibrate: bool = False  # whether presence is calibrated on that split at the end


@dataclass(frozen=True, kw_only=True)
class SocData(Selecting):
    """How clips are made of a benchmark's videos."""

    frames: int = 8  # T of a clip, as published
    flip: float = 0.5  # chance of a mirror (the authors' code reaches 0.31 on videos, by a slip)
    colours: float = 0.0  # chance of other colours
    crop: float = 0.0  # chance that a clip is first cut
    loss: SetLossConfig = field(default_factory=SetLossConfig)


# --- which clips -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)  # once a process
def opened_benchmark(source: ClipSource, place: str) -> Benchmark:
    return open_benchmark(source.benchmark, Path(place), source.split)


@lru_cache(maxsize=8)
def list_clips(source: ClipSource, place: str, frames: int) -> list[tuple[int, tuple[int, ...]]]:
    """(index of the sample, its frames) of all clips of a source."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for i, one in enumerate(opened_benchmark(source, place).samples):
        if source.how == "windows":
            found += [(i, tuple(window)) for window in consecutive_windows(len(one.video.names), frames)]
        elif source.how == "anchored":
            found += [(i, (anchor,)) for anchor in range(0, len(one.video.names), frames)]
        elif source.how == "labelled":
            assert one.scored is not None
            found.append((i, tuple(centred_window(film_index(one, one.scored[0]), frames))))
        else:
            found.append((i, (0,)))
    return found


def sample_clip(
    places: Sequence[tuple[ClipSource, str]], model: Any, config: SocData, seed: int, index: int
) -> tuple[TrainingClip, tuple[int, int]]:
    """The clip of a sample index, at the model's size, and that size; every epoch has its own order.

    A window in which a referred object never shows is passed over for the next one in the order, as the authors drop it
    (on MeViS, all referred objects must show).
    """
    tables = [list_clips(source, place, config.frames) for source, place in places]
    total = sum(len(table) for table in tables)
    epoch, turn = divmod(index, total)
    order = epoch_order(seed, epoch, total)
    for step in range(100):
        number = int(order[(turn + step) % total])
        for (source, place), table in zip(places, tables, strict=True):
            if number < len(table):
                clip = read_clip(source, place, table[number], config, np.random.default_rng([seed, index, step]))
                break
            number -= len(table)
        shows = clip.target.visible[:, clip.target.referred].any(0)
        if bool(shows.any() if source.how == "anchored" else shows.all()):
            return shrink(clip, model)
    raise DeixisError("a hundred clips in a row do not show their objects; are the benchmark's masks all there?")


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(total)


def read_clip(
    source: ClipSource, place: str, found: tuple[int, tuple[int, ...]], config: SocData, rng: np.random.Generator
) -> TrainingClip:
    benchmark = opened_benchmark(source, place)
    sample, indices = benchmark.samples[found[0]], list(found[1])
    if source.how == "anchored":
        indices = anchored_frames(indices[0], len(sample.video.names), config.frames, rng)
    clip = training_clip(benchmark, sample, indices)
    if source.how == "pseudo":
        image, masks = clip.frames[0].permute(1, 2, 0).numpy(), clip.target.masks[0].numpy()
        frames, moved = pseudo_clip(image, masks, config.frames, rng)
        target = make_target(moved.reshape(len(frames), *masks.shape), clip.target.referred.numpy())
        clip = replace(clip, frames=torch.from_numpy(frames).permute(0, 3, 1, 2), target=target, wanted=None)
    clip = mirrored(clip) if rng.random() < config.flip else clip
    if config.colours and rng.random() < config.colours:
        clip = distorted(clip, rng)
    if config.crop and rng.random() < config.crop:
        before = SystemConfig(short_side=int(rng.choice(CROP_FROM)), long_side=1 << 14, multiple=1)
        clip = cut(shrink(clip, before)[0], CROP_SIDES, rng)
    return clip
