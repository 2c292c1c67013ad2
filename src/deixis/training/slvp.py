"""Recipes of the SLVP-style system: pre-training on captioned films and on generated ones, and the transfer to masks.

Nothing but the paper's abstract is public, so every number here is our choice. B clips, T frames, N objects, H W pixels
of a frame, h w cells of a quarter; flow is (dx, dy).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.benchmarks.augment import mirror_words
from deixis.benchmarks.mixture import Mixture
from deixis.benchmarks.predicates import SentenceMix, WorldFilm
from deixis.benchmarks.training_clips import TrainingClip, make_target
from deixis.benchmarks.video_captions import CaptionedFilm, VideoCaptions, shuffled
from deixis.benchmarks.world import World, WorldConfig
from deixis.config import apply_overrides, config_from
from deixis.encoders.text import UNKNOWN, TextConfig, word_tokenizer
from deixis.encoders.video_swin import VideoSwinConfig
from deixis.losses.mask_loss import MaskLossConfig, mask_loss
from deixis.losses.pretraining import flow_loss, hide_words, info_nce, masked_words
from deixis.metrics.choice import right_object
from deixis.metrics.region_contour import score_frame
from deixis.systems.slvp import PRETRAINING, TRANSFER, Slvp, SlvpConfig
from deixis.training import soc
from deixis.training.flow import (
    BROKEN,
    FlowCache,
    FlowError,
    FlowSettings,
    endpoint_error,
    estimate,
    find_estimator,
    median_of,
    target_of,
    to_cells,
)
from deixis.training.loop import Run, TrainConfig
from deixis.training.optimizer import parameter_groups
from deixis.training.start import misfits, system_at
from deixis.types import Batch, DeixisError, Expression
from deixis.video import Film, resize
from deixis.weights import read_header
from deixis.weights_import import load_kinetics, load_roberta

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
    mean, std = torch.tensor(model.mean)[:, None, None], torch.tensor(model.std)[:, None, None]
    frames = (torch.stack([clip.frames for clip in clips]).float() / 255 - mean) / std
    padding = torch.zeros(frames.shape[0], frames.shape[1], *frames.shape[-2:], dtype=torch.bool)
    flow, valid = torch.stack([clip.flow for clip in clips]), torch.stack([clip.valid for clip in clips])
    skipped = {"skipped_films": float(sum(clip.skipped for clip in clips))}
    return FlowBatch(frames, padding, tuple(clip.caption for clip in clips), flow, valid, skipped)


def pretrain_losses(config: PretrainLoss, system: nn.Module, batch: FlowBatch) -> dict[str, Tensor]:
    """Flow; which sentence belongs to which clip; hidden words. The pixels hear the caption without its hidden words,
    so that these cannot be read off them; clips are compared before they heard any words. Negatives of the contrast are
    the clips and sentences of the same micro-batch."""
    model: Any = system
    maps = model.encode(batch.frames, batch.padding)
    tokens, padding = model.text.tokens(batch.captions)
    heard, hidden = tokens, torch.zeros_like(padding)
    if config.words:
        mask_token, special = special_tokens(model, tokens, padding)
        draw = torch.rand(tokens.shape, device="cpu").to(tokens.device)  # the CPU's, so that devices agree
        heard, hidden = hide_words(tokens, special, mask_token, config.hide, draw)
    text = model.text.hear(heard, padding)
    flow, fused = model.foresee(maps, text)
    found = flow[:, : batch.flow.shape[1]]  # nobody has seen where the last frame's pixels go
    measured = flow_loss(found, batch.flow, batch.valid, config.epsilon, config.gradient, config.moving)
    losses = {"flow": config.flow * measured}
    if config.contrast:
        whole = model.text.hear(tokens, padding) if config.words else text
        clips, sentences = model.compare(maps, found_everywhere(flow, found), whole.sentence)
        same = torch.tensor([[a == b for b in batch.captions] for a in batch.captions], device=clips.device)
        losses["contrast"] = config.contrast * info_nce(clips, sentences, same, config.temperature)
    if config.words:
        table = model.text.encoder.embeddings.word_embeddings.weight
        losses["words"] = config.words * masked_words(model.recall(text.words, fused, table), tokens, hidden)
    return losses


def found_everywhere(flow: Tensor, found: Tensor) -> Tensor:
    """The flow with its last frame, whose next nobody has seen, moving as the frame before does."""
    return torch.cat([found, found[:, -1:]], dim=1) if found.shape[1] else flow


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


def pretrain(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, model: SlvpConfig) -> Run:
    """Pre-train on any list of (film, caption). data: ``videos``, the CSV; ``flow``, the cache that `deixis data flow`
    fills (what it does not hold is estimated on the way, and kept there); ``kinetics``, a Video Swin checkpoint to
    start the eyes from; ``roberta`` (default: the hub's roberta-base), a folder for the ears.
    """
    if "videos" not in data:
        raise DeixisError(f"the recipe {name} needs --data videos=FILE.csv with the columns film and caption")
    train = TrainConfig(
        steps=100_000, batch=8, accumulate=4, lr=1e-4, warmup_steps=1000, weight_decay=0.05, clip_norm=1.0, workers=8,
        find_unused_parameters=True,
    )  # fmt: skip
    configs = apply_overrides(overrides, model=model, train=train, data=PretrainData())
    made, config = configs["data"], configs["model"]
    if any(side % 4 for side in made.size) or made.frames < 2:
        raise DeixisError(f"data.size must be multiples of 4 and data.frames 2 or more, got {made.size}, {made.frames}")
    if config.head != "flow":
        raise DeixisError("pre-training trains the flow head; leave model.head as it is")
    find_estimator(made.flow.estimator)
    films, cache = VideoCaptions(data["videos"]), FlowCache(data.get("flow"), made.flow)
    return Run(
        name=name,
        system=partial(start_pretraining, config, dict(data)),
        samples=partial(flow_clip, films, cache, config, made, configs["train"].seed),
        collate=partial(collate_flow, config),
        losses=partial(pretrain_losses, made.loss),
        groups=parameter_groups,
        train=configs["train"],
        config=config,
    )


def start_pretraining(config: SlvpConfig, data: Mapping[str, Path]) -> nn.Module:
    """Random weights but for the eyes and ears that were given."""
    model = Slvp(config)
    if "kinetics" in data:
        load_kinetics(model.vision, data["kinetics"])
    if config.text.tokenizer != "letters":
        load_roberta(model.text, str(data.get("roberta", config.text.tokenizer)))
    return model


def flow_clip(
    films: VideoCaptions, cache: FlowCache, model: SlvpConfig, config: PretrainData, seed: int, index: int
) -> FlowClip:
    """The clip of a sample index; every epoch has its own order. A film that is broken is passed over for the next one
    in that order, told in the log, and counted. Raises DeixisError after IN_A_ROW of them."""
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
    target = target_of(flow, config.size, model.flow_unit, config.loss.limit)
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
    film = Film(row.film, start=max(0.0, float(seconds[0]) - near), end=float(seconds[-1]) + near, fps=row.fps)
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


# --- transfer to masks ------------------------------------------------------------------------------------------------

REF_YOUTUBE_VOS = soc.REF_YOUTUBE_VOS
VISOR = soc.Source(data="visor", benchmark="visor", split="train", how="windows")
SOURCES = (REF_YOUTUBE_VOS, VISOR)


@dataclass(frozen=True, kw_only=True)
class TransferData:
    """How clips are made of a benchmark's videos."""

    frames: int = 6  # T of a clip
    flip: float = 0.5  # chance of a mirror
    epochs: int = 6
    encoders: float = 0.2  # learning rate of eyes and ears, as a share of the others'
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)


def transfer(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, model: SlvpConfig) -> Run:
    """Train for masks. data: ``ref-youtube-vos`` and/or ``visor`` (the folder that `deixis data build visor` made);
    ``start``, a pre-trained checkpoint, whose config is then taken; without it, ``kinetics`` and ``roberta`` as in
    pre-training. Ref-DAVIS17 is evaluated with the model of Ref-YouTube-VOS, never trained on.
    """
    if "ref-davis17" in data:
        raise DeixisError(
            "Ref-DAVIS17 is not trained on; train on ref-youtube-vos, then: deixis predict ref-davis17 FOLDER ..."
        )
    sources = [source for source in SOURCES if source.data in data]
    if not sources:
        known = " or ".join(f"--data {source.data}=FOLDER" for source in SOURCES)
        raise DeixisError(f"the recipe {name} needs {known}; docs/benchmarks.md tells their layouts")
    places = tuple((source, str(data[source.data])) for source in sources)
    asked = apply_overrides({k: v for k, v in overrides.items() if k.startswith("data.")}, data=TransferData())["data"]
    clips = sum(len(soc.list_clips(source, place, asked.frames)) for source, place in places)
    train = TrainConfig(
        steps=asked.epochs * max(1, clips // 8), batch=1, accumulate=8, lr=5e-5, warmup_steps=100, weight_decay=0.05,
        clip_norm=1.0, workers=4, find_unused_parameters=True,
    )  # fmt: skip
    configs = apply_overrides(overrides, model=config_of_start(data, model), train=train, data=TransferData())
    made, config = configs["data"], configs["model"]
    scales = {"vision.": made.encoders} | ({} if config.text.frozen else {"text.encoder.": made.encoders})
    return Run(
        name=name,
        system=partial(start_transfer, config, dict(data)),
        samples=partial(soc.sample, places, config, soc.SocData(frames=made.frames, flip=made.flip),
                        configs["train"].seed),
        collate=partial(soc.collate, config),
        losses=partial(transfer_losses, made.loss),
        groups=partial(parameter_groups, scales=scales),
        train=configs["train"],
        config=config,
    )  # fmt: skip


def transfer_losses(config: MaskLossConfig, system: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert batch.targets is not None
    return mask_loss(system(batch), batch.targets, config)


def config_of_start(data: Mapping[str, Path], model: SlvpConfig) -> SlvpConfig:
    """The config of the checkpoint to start from, with a mask head; ``model`` where none is given."""
    if "start" not in data:
        return model
    facts, _ = read_header(data["start"])
    if facts["system"] != "slvp":
        raise DeixisError(f"{data['start']} holds a system {facts['system']!r}; the transfer starts from slvp")
    return replace(config_from(SlvpConfig, facts["config"], str(data["start"])), head="mask")


def start_transfer(config: SlvpConfig, data: Mapping[str, Path]) -> nn.Module:
    """The system as pre-training left it, with a new head; or, without ``start``, as pre-training would begin."""
    if "start" not in data:
        return start_pretraining(config, data)
    model = Slvp(config)
    adopt(model, data["start"])
    return model


def adopt(model: Slvp, place: Path) -> list[str]:
    """Load all but the head, strictly, from one of our checkpoints; returns the keys that were left behind.

    Left behind are the parts named in ``PRETRAINING``; those of ``TRANSFER`` begin anew if the checkpoint was
    pre-trained on flow. Everything else must be there, and fit: otherwise DeixisError names what does not.
    """
    start: Slvp = system_at(place, Slvp)
    own, found = model.state_dict(), start.state_dict()
    left = [key for key in found if key.startswith(PRETRAINING)]
    new = [key for key in own if key.startswith(TRANSFER)] if start.config.head == "flow" else []
    kept = {key: value for key, value in found.items() if key not in set(left)}
    wrong = misfits({key: value for key, value in own.items() if key not in set(new)}, kept)
    if wrong:
        raise DeixisError(
            f"{place} does not fit this model, at {len(wrong)} tensors: {', '.join(wrong[:5])}; "
            "only the head may differ, so leave the other fields of model as the checkpoint has them"
        )
    model.load_state_dict({**own, **kept})
    return left


# --- generated films, small models ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SmallFilms:
    """Short small films, made as they are asked for and kept in memory. With ``pictures`` (a folder like shared/data)
    they are cut-outs on real pictures and DAVIS clips; otherwise drawn, with flow that is exact."""

    size: tuple[int, int] = (48, 80)  # H, W in pixels
    frames: int = 5  # T of a clip
    slow: int = 2  # films are made with slow * (T - 1) + 1 frames: pre-training sees T side by side, the transfer all
    count: int = 1000  # different films to train on
    first: int = 0  # number of the first of them; those of pre-training lie elsewhere
    objects: tuple[int, int] = (2, 3)  # least and most a drawn film
    camera_moves: float = 0.25  # chance of a moving camera
    sentences: tuple[tuple[str, float], ...] = (("motion", 0.4), ("colour", 0.3), ("class", 0.3))  # kinds, shares
    held_out: int = 100  # films of the validation
    pictures: Path | None = None


class SmallFilm(NamedTuple):
    """film: a WorldFilm with flow (float16), exact or estimated.  valid: (T-1, H, W) bool, where it can be trusted."""

    film: WorldFilm
    valid: np.ndarray


def length_of(films: SmallFilms) -> int:
    return films.slow * (films.frames - 1) + 1


def side_by_side(small: SmallFilm, frames: int, first: int) -> SmallFilm:
    """Frames ``first`` and the next ones of a film, with the flow between them."""
    film, span, steps = small.film, slice(first, first + frames), slice(first, first + frames - 1)
    assert film.flow is not None
    flow = film.flow[steps].astype(np.float32)
    return SmallFilm(replace(film, frames=film.frames[span], masks=film.masks[span], flow=flow), small.valid[steps])


def spread(small: SmallFilm, slow: int) -> WorldFilm:
    """Every ``slow``-th frame of a film, from its first to its last: what its sentences are true of."""
    film = small.film
    return replace(film, frames=film.frames[::slow], masks=film.masks[::slow], flow=None, times=film.times[::slow])


@lru_cache(maxsize=12_000)  # about 0.3 MB a film at the default size
def small_film(films: SmallFilms, split: str, number: int) -> SmallFilm:
    """Film ``number`` of a split, "train" or "valid_u"."""
    if films.pictures is not None:
        return real_film(films, split, number)
    film = _world(films, split).film(number)
    assert film.flow is not None
    everywhere = np.broadcast_to(np.ones(1, bool), film.flow.shape[:3])
    return SmallFilm(replace(film, flow=film.flow.astype(np.float16)), everywhere)


@lru_cache(maxsize=4)
def _world(films: SmallFilms, split: str) -> World:
    mix = SentenceMix(count=6, most_none=0.0, weights=films.sentences)
    config = WorldConfig(
        size=films.size, frames=length_of(films), objects=films.objects, camera_moves=films.camera_moves,
        sentences=mix,
    )  # fmt: skip
    return World(split, config)


def real_film(films: SmallFilms, split: str, number: int) -> SmallFilm:
    """A film of the mixture, made and its flow estimated (DIS) at twice the size, then shrunk."""
    film = _mixture(films, split).film(number)
    while not film.sentences:  # rare; the next seed that nobody else asks for
        number += 10_000_000
        film = _mixture(films, split).film(number)
    flow, valid = estimate(film.frames)
    return SmallFilm(
        replace(
            film,
            frames=np.stack([resize(frame, films.size) for frame in film.frames]),
            masks=film.masks[:, :, 1::2, 1::2],
            ignore=None,
            flow=(to_cells(flow, films.size) / 2).astype(np.float16),
        ),
        valid[:, 1::2, 1::2],
    )


@lru_cache(maxsize=4)
def _mixture(films: SmallFilms, split: str) -> Mixture:
    assert films.pictures is not None
    mix = SentenceMix(count=6, most_none=0.0, weights=films.sentences)
    return Mixture(
        films.pictures, split="train" if split == "train" else "held_out", frames=length_of(films),
        size=(2 * films.size[0], 2 * films.size[1]), stills=0.1, composites=0.5, twins=0.2, davis=0.2, sentences=mix,
    )  # fmt: skip


SMALL = SlvpConfig(
    vision=VideoSwinConfig(dim=24, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), window=(5, 4, 4), drop_path=0.0),
    text=TextConfig(
        vocabulary=512, width=64, layers=2, heads=4, hidden=128, positions=66, dropout=0.0, frozen=False,
        tokenizer="letters",
    ),
    width=64, heads=4, blocks=1, space=(16, 32), compared=(4, 8), signature=16, queries=5, layers=2, pixel_channels=32,
    norm_groups=8, pixel_groups=4, contrast=64, short_side=48, long_side=80, window=5,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SmallPretrain:
    """Pre-training on small films: their sentences are the captions."""

    films: SmallFilms = field(default_factory=lambda: SmallFilms(count=2000, first=1_000_000))
    loss: PretrainLoss = field(default_factory=PretrainLoss)


@dataclass(frozen=True, kw_only=True)
class SmallTransfer:
    """Training for the masks of small films."""

    films: SmallFilms = field(default_factory=SmallFilms)
    share: float = 1.0  # of the films whose masks may be used, 0..1
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DeixisError(f"data.share must be above 0 and at most 1, got {self.share}")


def pretrain_world(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, model: SlvpConfig) -> Run:
    """A small system, pre-trained from scratch on films made as it goes. data: nothing, or ``pictures``, a folder."""
    configs = apply_overrides(
        overrides,
        model=model,
        data=with_pictures(SmallPretrain(), data),
        train=TrainConfig(
            steps=1000, batch=16, lr=1e-3, warmup_steps=50, weight_decay=0.01, log_every=50,
            find_unused_parameters=True,
        ),
    )  # fmt: skip
    made, config = configs["data"], configs["model"]
    return Run(
        name=name,
        system=partial(start_small, config, made.films, {}),
        samples=partial(small_flow_clip, made, config),
        collate=partial(collate_flow, config),
        losses=partial(pretrain_losses, made.loss),
        groups=parameter_groups,
        validate=partial(validate_flow, made.films),
        train=configs["train"],
        config=config,
    )


def transfer_world(data: Mapping[str, Path], *, overrides: Mapping[str, str], name: str, model: SlvpConfig) -> Run:
    """A small system, trained for the masks of films made as it goes. data: nothing, or ``start``, what
    slvp_pretrain_world left; ``pictures``, a folder."""
    configs = apply_overrides(
        overrides,
        model=config_of_start(data, model),
        data=with_pictures(SmallTransfer(), data),
        train=TrainConfig(
            steps=400, batch=8, lr=1e-3, warmup_steps=40, weight_decay=0.01, log_every=50, find_unused_parameters=True
        ),
    )
    made, config = configs["data"], configs["model"]
    return Run(
        name=name,
        system=partial(start_small, config, made.films, dict(data)),
        samples=partial(small_clip, made),
        collate=partial(soc.collate, config),
        losses=partial(transfer_losses, made.loss),
        groups=parameter_groups,
        validate=partial(validate_masks, made.films),
        train=configs["train"],
        config=config,
    )


def with_pictures(config: Any, data: Mapping[str, Path]) -> Any:
    """The config of small films, set to real pictures where a folder of them is given."""
    if "pictures" not in data:
        return config
    return replace(config, films=replace(config.films, pictures=Path(data["pictures"])))


def start_small(config: SlvpConfig, films: SmallFilms, data: Mapping[str, Path]) -> nn.Module:
    """As a checkpoint left it, or random weights and a tokenizer that knows the words of a few hundred films."""
    model = Slvp(config)
    if "start" in data:
        adopt(model, data["start"])
    else:
        texts = [s.text for i in range(min(300, films.count)) for s in small_film(films, "train", i).film.sentences]
        model.text.tokenizer = word_tokenizer(texts, config.text.vocabulary)
    return model


def small_flow_clip(data: SmallPretrain, model: SlvpConfig, index: int) -> FlowClip:
    """A film, its flow, and one of its sentences as the caption; successive passes take other sentences."""
    films = data.films
    whole = small_film(films, "train", films.first + index % films.count)
    places = length_of(films) - films.frames + 1
    film, valid = side_by_side(whole, films.frames, (index // films.count + index) % places)
    assert film.flow is not None
    sentence = film.sentences[(index // films.count + index) % len(film.sentences)]
    cells = (films.size[0] // 4, films.size[1] // 4)
    target = target_of(to_cells(film.flow, cells), films.size, model.flow_unit, data.loss.limit)
    trusted = to_cells(np.repeat(valid[..., None], 2, -1), cells)[..., 0] >= 0.5
    return as_flow_clip(film.frames, sentence.text, target, trusted)


def small_clip(data: SmallTransfer, index: int) -> tuple[TrainingClip, tuple[int, int]]:
    """One sentence of a film, with its masks; successive passes over the films take other sentences."""
    films = data.films
    count = max(1, round(films.count * data.share))
    film = spread(small_film(films, "train", films.first + index % count), films.slow)
    sentence = film.sentences[(index // count + index) % len(film.sentences)]
    return labelled(film, sentence.text, sentence.objects), films.size


def labelled(film: WorldFilm, text: str, objects: Sequence[int]) -> TrainingClip:
    referred = np.isin(np.arange(film.masks.shape[1]), objects)
    frames = torch.from_numpy(np.ascontiguousarray(film.frames)).permute(0, 3, 1, 2)
    return TrainingClip(frames, Expression(text), make_target(np.ascontiguousarray(film.masks), referred))


# --- measures ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def flow_pixels(system: nn.Module, frames: np.ndarray, caption: str) -> np.ndarray:
    """(T-1, H, W, 2) float32 pixels: the flow that a pre-trained system foresees, camera motion not included.

    frames: (T, H, W, 3) uint8, at a size the system knows.
    """
    model: Any = system
    device = next(model.parameters()).device
    clip = FlowClip(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), caption,
                    torch.zeros(0), torch.zeros(0))  # fmt: skip
    batch = collate_flow(model.config, [clip]).to(device)
    flow, _ = model.foresee(model.encode(batch.frames, batch.padding), model.text([caption]))
    size = (frames.shape[1], frames.shape[2])
    grown = F.interpolate(flow[0, :-1].float(), size=size, mode="bilinear", align_corners=False)
    return grown.permute(0, 2, 3, 1).cpu().numpy() * model.config.flow_unit * float(np.hypot(*size))


def errors_of(found: np.ndarray, film: WorldFilm, valid: np.ndarray) -> dict[str, float]:
    """Mean endpoint errors in pixels over a film, of *raw* flow, the camera's motion included.

    found: (T-1, H, W, 2), camera motion not included; the frame's median is added to it. The same median alone is the
    baseline ``median``; ``zero`` is no motion at all. ``_moving``: over the pixels that move against the median by more
    than half a pixel (nan where there are none).
    """
    assert film.flow is not None
    camera = median_of(film.flow)
    moving = valid & (endpoint_error(film.flow, camera) > 0.5)
    rows: dict[str, float] = {}
    for name, flow in (("found", found + camera), ("median", camera), ("zero", np.zeros_like(camera))):
        error = endpoint_error(np.broadcast_to(flow, film.flow.shape), film.flow)
        rows[name] = float(error[valid].mean()) if valid.any() else float("nan")
        rows[f"{name}_moving"] = float(error[moving].mean()) if moving.any() else float("nan")
    return rows


def validate_flow(films: SmallFilms, system: nn.Module) -> dict[str, float]:
    """On held-out films: mean endpoint errors of ``errors_of``, and first the share by which the median's is cut."""
    rows = []
    for number in range(films.held_out):
        film, valid = side_by_side(
            small_film(films, "valid_u", number), films.frames, (length_of(films) - films.frames) // 2
        )
        rows.append(errors_of(flow_pixels(system, film.frames, film.sentences[0].text), film, valid))
    means = {f"epe_{name}": float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
    return {"gain": 1 - means["epe_found"] / means["epe_median"], **means}


def validate_masks(films: SmallFilms, system: nn.Module) -> dict[str, float]:
    """On held-out films: mean J&F, J, F and share of right objects over all sentences, and J&F by kind."""
    rows = mask_rows(films, system)
    scores = {name: float(np.mean([row[name] for row in rows])) for name in ("jf", "j", "f", "right")}
    kinds = sorted({row["kind"] for row in rows})
    return scores | {f"jf_{k}": float(np.mean([row["jf"] for row in rows if row["kind"] == k])) for k in kinds}


@torch.no_grad()
def mask_rows(films: SmallFilms, system: nn.Module) -> list[dict[str, Any]]:
    """A row for each sentence of the held-out films: film, kind, J, F, J&F, whether it is the right object."""
    rows = []
    for number in range(films.held_out):
        film = spread(small_film(films, "valid_u", number), films.slow)
        masks = masks_of(system, film.frames, [s.text for s in film.sentences])
        for mask, sentence in zip(masks, film.sentences, strict=True):
            truth: np.ndarray = np.any(film.masks[:, list(sentence.objects)], axis=1)
            region, contour = np.mean([score_frame(m, t) for m, t in zip(mask, truth, strict=True)], axis=0)
            right, _ = right_object(mask, film.masks, sentence.objects)
            rows.append({"film": number, "kind": sentence.kind, "j": float(region), "f": float(contour),
                         "jf": float((region + contour) / 2), "right": float(right)})  # fmt: skip
    return rows


def masks_of(system: nn.Module, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """(K, T, H, W) bool: the best query's masks for K sentences. frames: (T, H, W, 3) uint8."""
    model: Any = system
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()[None] / 255
    mean, std = torch.tensor(model.config.mean)[:, None, None], torch.tensor(model.config.std)[:, None, None]
    padding = torch.zeros(1, len(frames), *frames.shape[1:3], dtype=torch.bool, device=device)
    maps = model.encode(((pixels - mean) / std).to(device), padding)
    answer = model.decode(maps, [Expression(text) for text in texts])
    best = answer.scores.sigmoid().mean(1).argmax(1)  # (K,)
    chosen = answer.masks[torch.arange(len(best)), :, best]  # (K, T, h, w)
    grown = F.interpolate(chosen, size=frames.shape[1:3], mode="bilinear", align_corners=False)
    return (grown > 0).cpu().numpy()


def flow_picture(flow: np.ndarray, fastest: float) -> np.ndarray:
    """(H, W, 3) uint8: a (H, W, 2) flow in colours; the hue is where it goes, ``fastest`` pixels and more are full."""
    angle = np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360
    speed = np.clip(np.linalg.norm(flow, axis=-1) / max(fastest, 1e-6), 0, 1)
    hsv = np.stack([angle / 2, 255 * speed, np.full_like(angle, 255)], axis=-1)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


SLVP_RECIPES: dict[str, Any] = {
    "slvp_pretrain": partial(pretrain, name="slvp_pretrain", model=SlvpConfig(head="flow")),
    "slvp_pretrain_world": partial(pretrain_world, name="slvp_pretrain_world", model=replace(SMALL, head="flow")),
    "slvp_transfer": partial(transfer, name="slvp_transfer", model=SlvpConfig()),
    "slvp_world": partial(transfer_world, name="slvp_world", model=SMALL),
}
