"""Recipes of VLP-RVOS: the published runs as far as they are known, and a small one on generated films.

Two clips with history: the authors step after the first clip, then run the second one with what the first passed on,
detached. Here both clips make one step, of the mean of their losses, since nothing may be carried from step to step: a
resumed run must equal an uncut one. What the second clip gets is detached all the same, so the gradients are those of
the two clips; only the step between them is missing.

B clips, T frames of a clip, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deixis.config import apply_overrides
from deixis.encoders.clip_vit import ClipVitConfig
from deixis.encoders.frozen import fill_towers
from deixis.encoders.tokenizers import word_tokenizer
from deixis.losses.dense_loss import DenseLossConfig, dense_loss
from deixis.systems.vlp_rvos import VlpRvos, VlpRvosConfig, check_vlp_rvos, clip_l_config, vlmo_b_config, vlmo_l_config
from deixis.training.generated import WorldData, first_sentences
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes.published import published_clips, published_run, require_data
from deixis.training.run import Run, TrainConfig
from deixis.training.small_run import SMALL_TRAIN, small_run
from deixis.training.sources import (
    A2D,
    MEVIS,
    REF_YOUTUBE_VOS,
    STILLS,
    ClipSource,
    Selecting,
    SocData,
)
from deixis.training.tower_model import tower_at
from deixis.types import Batch, DeixisError, Expression, FeatureMaps
from deixis.weights import load_into

# Shares of the learning rate of the parts that are not trained at all of it (read; which part is whose: inferred).
RATES = {"prompts.": 0.5, "capture.": 0.5, "mask_head.": 0.5}


@dataclass(frozen=True, kw_only=True)
class VlpData(Selecting):
    """How clips are made of a benchmark's videos."""

    frames: int = 8  # T of a clip (inferred)
    clips: int = 2  # successive ones of a sample; the second gets the first's memory (read); 1: no history is trained
    flip: float = 0.5  # chance of a mirror (our choice)
    colours: float = 0.5  # chance of other colours (inferred: ReferFormer's family)
    crop: float = 0.5  # chance that a clip is first cut (inferred)
    loss: DenseLossConfig = field(default_factory=DenseLossConfig)

    def __post_init__(self) -> None:
        if self.clips not in (1, 2) or self.frames < 1:
            raise DeixisError(f"data.clips must be 1 or 2 and data.frames 1 or more, got {self.clips}, {self.frames}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run: epochs, those at which the rate drops to a tenth, and clips a sample (all our choice, but for clips)."""

    sources: tuple[ClipSource, ...]
    epochs: int
    drops: tuple[int, ...]
    clips: int
    start: bool = False  # whether it goes on from another run


# ReferFormer's sampling, from whose family the authors' loaders come (inferred).
ANCHORED_YOUTUBE_VOS, ANCHORED_MEVIS = replace(REF_YOUTUBE_VOS, how="anchored"), replace(MEVIS, how="anchored")
STAGES: dict[str, Stage] = {
    "refcoco": Stage(sources=STILLS, epochs=12, drops=(8, 10), clips=1),
    "ref_youtube_vos": Stage(sources=(ANCHORED_YOUTUBE_VOS,), epochs=12, drops=(8,), clips=2),
    "ref_youtube_vos_finetune": Stage(sources=(ANCHORED_YOUTUBE_VOS,), epochs=6, drops=(3, 5), clips=2, start=True),
    "a2d": Stage(sources=(A2D,), epochs=6, drops=(3, 5), clips=1, start=True),
    "mevis": Stage(sources=(ANCHORED_MEVIS,), epochs=12, drops=(8,), clips=2),
}
BATCH = 4  # samples a step, over all GPUs (inferred)


def published_vlp_rvos(
    data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, plan: Stage, model: VlpRvosConfig
) -> Run:
    """A published run. data: the benchmark's folder; ``tower``, where the frozen tower lies if not at its usual place;
    ``start``, one of our checkpoints to go on from (a run that follows a pre-training needs it).
    """
    require_data(name, data, *{source.data for source in plan.sources})
    if plan.start and "start" not in data:
        raise DeixisError(f"the recipe {name} goes on from another run and needs --data start=FILE, its model")
    settings = VlpData(clips=plan.clips)
    clips = published_clips(plan.sources, data, overrides, settings, lambda made: made.frames * made.clips)
    steps = plan.epochs * max(1, clips.count // BATCH)
    train = TrainConfig(
        steps=steps, batch=1, global_batch=BATCH, lr=1e-4, schedule="multistep",
        milestones=tuple(steps * drop // plan.epochs for drop in plan.drops), gamma=0.1, weight_decay=5e-4,
        clip_norm=0.1, precision="fp32", workers=4, seed=42, find_unused_parameters=True,
        validate_every=clips.validate_every(steps // plan.epochs),
    )  # fmt: skip
    model = vlp_rvos_with_tower(model, data)
    configs = apply_overrides(overrides, model=model, train=train, data=settings)
    made, config = configs["data"], configs["model"]
    check_vlp_rvos(config)
    if made.clips > 1 and any(source.how == "labelled" for source in plan.sources):
        raise DeixisError(f"{name} has one labelled frame a video, so data.clips must be 1, got {made.clips}")
    return published_run(
        name, clips, model=config, train=configs["train"], build=build_vlp_rvos, data=data,
        sampling=SocData(frames=made.frames * made.clips, flip=made.flip, colours=made.colours, crop=made.crop),
        losses=partial(vlp_rvos_losses, made.clips, made.loss), groups=vlp_rvos_groups,
    )  # fmt: skip


def vlp_rvos_with_tower(config: VlpRvosConfig, data: Mapping[str, Path]) -> VlpRvosConfig:
    """The config with its tower at the place that ``data`` names; of one of our tower files, with its sizes too."""
    if "tower" not in data:
        return config
    place, own = tower_at(data["tower"], "ClipVit", ClipVitConfig)
    if own is not None:
        clip = replace(own, place=place)
        return replace(config, clip=clip, vlmo=None, taps=even_taps(clip.layers), multiple=clip.patch)
    if config.clip is not None:
        return replace(config, clip=replace(config.clip, place=place))
    assert config.vlmo is not None
    return replace(config, vlmo=replace(config.vlmo, place=place))


def even_taps(layers: int) -> tuple[int, ...]:
    """Layers to tap of a tower that deep, as 3, 7, 9 and 11 of 12 (our choice)."""
    return tuple(sorted({max(round(layers * share) - 1, 0) for share in (1 / 3, 2 / 3, 5 / 6, 1)}))


def build_vlp_rvos(config: VlpRvosConfig, data: Mapping[str, Path]) -> nn.Module:
    """The system with its tower read; random beside that, or as one of our checkpoints left it."""
    model = VlpRvos(config)
    fill_towers(model)
    if "start" in data:
        load_into(model, data["start"])
    return model


def vlp_rvos_groups(system: nn.Module) -> list[dict[str, Any]]:
    """The read rates; everything decays, as in the code that it grew from."""
    names = [name for name, _ in system.named_parameters()]
    scales = {prefix: scale for prefix, scale in RATES.items() if any(n.startswith(prefix) for n in names)}
    return [{**group, "decay": True} for group in parameter_groups(system, scales)]


def vlp_rvos_losses(clips: int, config: DenseLossConfig, system: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Of successive clips of the batch's frames; each gets, without gradient, the memory of the one before."""
    assert batch.targets is not None
    model: Any = system
    size = (batch.frames.shape[-2], batch.frames.shape[-1])
    maps = model.encode(batch.frames, batch.padding)
    if clips == 1:
        predictions = [model.decode(maps, batch.expressions, batch.wanted)]
    else:
        predictions = predict_in_clips(model, maps, batch.expressions, -(-batch.frames.shape[1] // clips))
    return dense_loss(predictions, batch.targets, size, config)


def predict_in_clips(model: Any, maps: FeatureMaps, expressions: Sequence[Expression], frames: int) -> list[Any]:
    """Predictions of successive clips of ``frames`` frames, the state of each carried to the next."""
    predictions, memory = [], None
    for first in range(0, maps.levels[0].shape[1], frames):
        part = slice(first, first + frames)
        clip = FeatureMaps((maps.levels[0][:, part],), maps.strides, maps.padding[:, part], maps.size)
        prediction, memory = model.step(clip, expressions, memory)
        predictions.append(prediction)
    return predictions


# --- generated films, small models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VlpWorldData(WorldData):
    """Generated films for a small model. All numbers are our choice."""

    frames: int = 8  # of a film: ``clips`` clips, one after the other
    clips: int = 2
    loss: DenseLossConfig = field(default_factory=DenseLossConfig)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not 1 <= self.clips <= self.frames:
            raise DeixisError(f"data.clips must be in 1..data.frames ({self.frames}), got {self.clips}")


SMALL_TOWER = ClipVitConfig(
    place="", width=64, layers=4, heads=4, patch=8, image=64, text_width=64, text_layers=2, text_heads=4, positions=40,
    vocabulary=512, joint=64,
)  # fmt: skip
SMALL_VLP_RVOS = VlpRvosConfig(
    clip=SMALL_TOWER, width=64, heads=4, expand=2, dropout=0.0, language_prompts=4, vision_prompts=4,
    temporal_prompts=4, prompt_width=64, prompt_heads=4, guidance_rank=32, taps=even_taps(4), cube_side=3, frames=8,
    mask_width=32, norm_groups=4, square=False, short_side=48, long_side=80, window=4, multiple=8,
)  # fmt: skip


def vlp_rvos_world(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str) -> Run:
    """A small system on films made as it goes. data: ``tower``, a file of a small frozen tower, such as the recipe
    tower_world makes; without it the frozen tower is random, which shows that the parts work and nothing else.
    """
    configs = apply_overrides(
        overrides, model=vlp_rvos_with_tower(SMALL_VLP_RVOS, data), data=VlpWorldData(), train=SMALL_TRAIN
    )
    films: VlpWorldData = configs["data"]
    config: Any = configs["model"]
    check_vlp_rvos(config)
    if "model.window" not in overrides:
        config = replace(config, window=-(-films.frames // films.clips))
    if films.size[0] % config.multiple or films.size[1] % config.multiple:
        raise DeixisError(f"data.size must be multiples of the tower's patch, {config.multiple}, got {films.size}")
    config = replace(config, short_side=min(films.size), long_side=max(films.size))
    return small_run(
        name, model=config, films=films, train=configs["train"], build=build_small_vlp_rvos,
        losses=partial(vlp_rvos_losses, films.clips, films.loss),
    )  # fmt: skip


def build_small_vlp_rvos(config: VlpRvosConfig, films: VlpWorldData) -> nn.Module:
    """Random weights beside the tower; a random tower gets a tokenizer of the words of the first films."""
    model = VlpRvos(config)
    fill_towers(model)
    if not config.tower.place:
        model.tower.tokenizer = word_tokenizer(first_sentences(films), config.tower.vocabulary)
    return model


def _published() -> dict[str, Any]:
    """Every plan for every tower; a model scored as A2D is always has the score 1, as published."""
    towers = {"": VlpRvosConfig(), "clip_l_": clip_l_config(), "vlmo_b_": vlmo_b_config(), "vlmo_l_": vlmo_l_config()}
    made = {}
    for tower, model in towers.items():
        for stage, plan in STAGES.items():
            name = f"vlp_rvos_{tower}{stage}"
            config = replace(model, score="constant", window=8) if stage == "a2d" else model
            made[name] = partial(published_vlp_rvos, name=name, plan=plan, model=config)
    return made


RECIPES: dict[str, Any] = {"vlp_rvos_world": partial(vlp_rvos_world, name="vlp_rvos_world"), **_published()}
