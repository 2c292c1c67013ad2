"""Recipes of the frozen conv-CLIP solution: MeViS with the values of its parents, and a small one on generated films.

The report gives no training details that we could read; what stands here is LMPM's and DsHmp's (read) where not said.
B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from deixis.config import apply_overrides
from deixis.encoders.conv_clip import ConvClipConfig, convnext_base_w_320, convnext_large_d_320
from deixis.encoders.frozen import fill_towers
from deixis.encoders.tokenizers import word_tokenizer
from deixis.losses.referred_objects import ReferredLossConfig, referred_objects_loss
from deixis.systems.conv_clip_mevis import ConvClipMevis, ConvClipMevisConfig
from deixis.training.clips import (
    TrainingClip,
    collate,
    cut,
    make_target,
    mirrored,
    shrink,
    surrounding_frames,
    training_clip,
)
from deixis.training.generated import WorldData, first_sentences
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes.held_out import held_out_of, held_out_validation, with_split
from deixis.training.recipes.published import require_data
from deixis.training.run import Run, TrainConfig
from deixis.training.small_run import SMALL_TRAIN, small_run
from deixis.training.sources import MEVIS, ClipSource, Selecting, epoch_order, opened_benchmark
from deixis.training.tower_model import TowerConfig, start_from_scratch, tower_at
from deixis.types import Batch, DeixisError
from deixis.weights import load_into


@dataclass(frozen=True, kw_only=True)
class MevisData(Selecting):
    """How clips are made of MeViS's videos."""

    frames: int = 8  # T (read: DsHmp; LMPM 6)
    reach: int = 10  # frames on either side of a reference frame that the others are drawn from (read: DsHmp; LMPM 8)
    flip: float = 0.5  # chance of a mirror, of the clip and of its words (the words: our choice; LMPM leaves them)
    short_sides: tuple[int, ...] = (288, 320, 352, 384, 416, 448, 480, 512)  # pixels, sampled per clip (read)
    long_side: int = 768  # pixels, at most (read)
    crop: float = 0.5  # chance that a clip is first cut (read)
    crop_from: tuple[int, ...] = (400, 500, 600)  # short side before the cut, pixels (from memory)
    crop_sides: tuple[int, int] = (384, 600)  # least and most of the cut's height and width, pixels (read)
    loss: ReferredLossConfig = field(default_factory=ReferredLossConfig)


def mevis(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, tower: ConvClipConfig) -> Run:
    """Train on MeViS. data: ``mevis``, its folder; ``tower``, a file or folder of open_clip's weights if they are not
    to come from the hub; ``start``, one of our checkpoints to go on from.
    """
    require_data(name, data, "mevis")
    made = apply_overrides({k: v for k, v in overrides.items() if k.startswith("data.")}, data=MevisData())["data"]
    held = held_out_of((MEVIS,), data, made)
    (source,) = with_split((MEVIS,), made)
    # 55,000 steps of 8 videos, each a tenth of the rate at 40,000 and 50,000; DsHmp took 17 hours on 8 RTX 3090.
    train = TrainConfig(
        steps=55_000, batch=1, global_batch=8, lr=5e-5, warmup_steps=10, schedule="multistep",
        milestones=(40_000, 50_000), gamma=0.1, weight_decay=0.05, clip_norm=0.01, precision="bf16", workers=4,
        find_unused_parameters=True, validate_every=0 if held is None else 5_000,
    )  # fmt: skip
    configs = apply_overrides(
        overrides,
        model=conv_clip_mevis_with_tower(ConvClipMevisConfig(tower=tower), data),
        data=MevisData(),
        train=train,
    )
    model, clips = configs["model"], configs["data"]
    return Run(
        name=name,
        system=partial(build_conv_clip_mevis, model, dict(data)),
        samples=partial(sample_mevis, source, str(data["mevis"]), model, clips, configs["train"].seed),
        collate=partial(collate, model),
        losses=partial(conv_clip_mevis_losses, clips.loss),
        groups=parameter_groups,
        train=configs["train"],
        config=model,
        **held_out_validation(held, clips),
    )


def conv_clip_mevis_with_tower(config: ConvClipMevisConfig, data: Mapping[str, Path]) -> ConvClipMevisConfig:
    """The config with its tower at the place that ``data`` names; of one of our tower files, with its sizes too."""
    if "tower" not in data:
        return config
    place, own = tower_at(data["tower"], "ConvClip", ConvClipConfig)
    return replace(config, tower=replace(own or config.tower, place=place))


def build_conv_clip_mevis(config: ConvClipMevisConfig, data: Mapping[str, Path]) -> nn.Module:
    """The system with its tower read; random beside that, or as one of our checkpoints left it."""
    model = ConvClipMevis(config)
    if config.tower.place:
        fill_towers(model)
    if "start" in data:
        load_into(model, data["start"])
    return model


def conv_clip_mevis_losses(config: ReferredLossConfig, system: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert batch.targets is not None
    return referred_objects_loss(system(batch), batch.targets, config)


# --- clips of MeViS --------------------------------------------------------------------------------------------------


def sample_mevis(
    source: ClipSource, place: str, model: ConvClipMevisConfig, config: MevisData, seed: int, index: int
) -> tuple[TrainingClip, tuple[int, int]]:
    """The clip of a sample index, and its size; every epoch shows all expressions once, in its own order.

    Frames in which nothing of what is named shows are passed over for others (our choice): an expression that names
    nothing at all (MeViS v2) is kept.
    """
    benchmark = opened_benchmark(source, place)
    total = len(benchmark.samples)
    epoch, turn = divmod(index, total)
    order = epoch_order(seed, epoch, total)
    for step in range(100):
        rng = np.random.default_rng([seed, index, step])
        one = benchmark.samples[int(order[(turn + step // 4) % total])]  # four tries a video, then the next one
        length = len(one.video.names)
        frames = surrounding_frames(int(rng.integers(length)), length, config.frames, config.reach, rng)
        clip = referred_only(training_clip(benchmark, one, frames))
        if one.objects and not clip.target.visible.any():
            continue
        return scaled(mirrored(clip) if rng.random() < config.flip else clip, model, config, rng)
    raise DeixisError("a hundred clips in a row do not show their objects; are the benchmark's masks all there?")


def referred_only(clip: TrainingClip) -> TrainingClip:
    """The clip without the objects that its expression does not name: no loss counts them."""
    masks = clip.target.masks[:, clip.target.referred].numpy()
    return replace(clip, target=make_target(masks, np.ones(masks.shape[1], bool)))


def scaled(
    clip: TrainingClip, model: ConvClipMevisConfig, config: MevisData, rng: np.random.Generator
) -> tuple[TrainingClip, tuple[int, int]]:
    """The clip at a sampled size, with its size; perhaps cut first."""
    if rng.random() < config.crop:
        before = replace(model, short_side=int(rng.choice(config.crop_from)), long_side=1 << 14, multiple=1)
        clip = cut(shrink(clip, before)[0], config.crop_sides, rng)
    size = replace(model, short_side=int(rng.choice(config.short_sides)), long_side=config.long_side)
    return shrink(clip, size)


# --- generated films, small models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MevisWorldData(WorldData):
    """Generated films for a small model. All numbers are our choice."""

    size: tuple[int, int] = (64, 96)  # H, W in pixels; multiples of the tower's coarsest stride
    # 384 cells have a mask here; 12,544 points are for pictures a hundred times as large.
    loss: ReferredLossConfig = field(default_factory=lambda: ReferredLossConfig(points=256))  # type: ignore[assignment]


SMALL_CONV_CLIP_MEVIS = ConvClipMevisConfig(
    tower=TowerConfig().conv, width=64, queries=6, heads=4, fusion_layers=2, fusion_hidden=128, points=2,
    bi_attention_width=64, bi_attention_heads=2, bi_attention_scale=1e-1, bi_attention_dropout=0.0,
    bi_attention_drop_path=0.0, frame_layers=3, read_layers=2, window_layers=2, window_frames=4, video_layers=2,
    hidden=128, text_dropout=0.0, norm_groups=8, short_side=64, long_side=96, window=6,
)  # fmt: skip


def conv_clip_mevis_world(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """A small system on films made as it goes. data: ``tower``, a file of a small frozen ConvNeXt CLIP, such as the
    recipe tower_world makes; without it the tower is random, which shows that the parts work and nothing else.
    """
    configs = apply_overrides(
        overrides,
        model=conv_clip_mevis_with_tower(SMALL_CONV_CLIP_MEVIS, data),
        data=MevisWorldData(),
        train=SMALL_TRAIN,
    )
    films: MevisWorldData = configs["data"]
    if any(side % 32 for side in films.size):
        raise DeixisError(f"data.size must be multiples of 32, the tower's coarsest stride, got {films.size}")
    config = replace(configs["model"], short_side=min(films.size), long_side=max(films.size))
    return small_run(
        "conv_clip_mevis_world", model=config, films=films, train=configs["train"], build=build_small_conv_clip_mevis,
        losses=partial(conv_clip_mevis_losses, films.loss),
    )  # fmt: skip


def build_small_conv_clip_mevis(config: ConvClipMevisConfig, films: MevisWorldData) -> nn.Module:
    """Random weights beside the tower; a random tower gets a tokenizer of the words of the first films."""
    model = ConvClipMevis(config)
    if config.tower.place:
        return fill_towers(model)
    start_from_scratch(model.tower.module)
    model.tower.tokenizer = word_tokenizer(first_sentences(films), config.tower.vocabulary)
    return model


RECIPES: dict[str, Any] = {
    "conv_clip_mevis": partial(mevis, name="conv_clip_mevis", tower=convnext_large_d_320()),
    "conv_clip_mevis_b": partial(mevis, name="conv_clip_mevis_b", tower=convnext_base_w_320()),
    "conv_clip_mevis_world": conv_clip_mevis_world,
}
