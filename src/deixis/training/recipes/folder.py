"""Recipes for your own data, ``deixis.benchmarks.folder``: fine-tune the bundled light, or train SOC.

Both train on the labelled frames of the split ``train`` and are validated on those of ``valid``, if any, through
``deixis.segment``. Labelled frames of film files are kept as pictures in the cache (DEIXIS_CACHE), so that no film is
decoded twice. T frames of a clip, N objects, H W pixels.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from torch import nn

from deixis.benchmarks import splits_of
from deixis.benchmarks.folder import open_split
from deixis.benchmarks.pngs import png_size
from deixis.benchmarks.samples import Sample, VideoEntry
from deixis.config import apply_overrides
from deixis.encoders.tokenizers import word_tokenizer
from deixis.losses.proposals import ProposalWeights
from deixis.losses.set_loss import SetLossConfig
from deixis.synthetic.scene import Sentence, SyntheticVideo
from deixis.systems.light import Light, head_phrase
from deixis.systems.soc import Soc, SocConfig
from deixis.systems.soc_plus_plus import SocPlusPlus, SocPlusPlusConfig
from deixis.training.augment import AugmentConfig, augment, resize_video
from deixis.training.clips import (
    TrainingClip,
    collate,
    consecutive_windows,
    gather_clips,
    mirrored,
    shrink,
    training_clip,
)
from deixis.training.encoded_clips import Memory
from deixis.training.labelled_frames import LabelledVideos, held_out_videos, labelled_video, labelled_videos
from deixis.training.light_calibration import with_fitted_presence
from deixis.training.measure import evaluate_films
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes import soc
from deixis.training.recipes.light import (
    build,
    export_stage,
    film_number,
    light_losses,
    trained_groups,
)
from deixis.training.recipes.published import require_data
from deixis.training.recipes.soc import SMALL_SOC, YTVOS_FINETUNE, Config, soc_groups, soc_losses
from deixis.training.run import Run, TrainConfig, export_model
from deixis.training.sources import epoch_order
from deixis.types import DeixisError, Expression
from deixis.weights import system_at

log = logging.getLogger(__name__)

LEAST_TO_FIT = 20  # sentences of things that are there, and of things that are not, to fit presence on (our choice)
ALWAYS = 1e-6  # presence threshold where every expression names something


@dataclass(frozen=True, kw_only=True)
class LightFolderData:
    """How light's clips are made of your films. All numbers are our choice."""

    frames: tuple[int, ...] = (8, 4, 6)  # T of a training clip, batch by batch in turn
    short_sides: tuple[int, ...] = (320, 320, 288)  # pixels, one for each of ``frames``
    stride: int = 3  # the frames of a clip lie up to so many labelled frames apart
    sentences: int = 8  # most of a clip
    borrowed: float = 0.25  # chance that a clip also gets a sentence of another film's object, which it does not show
    complete: bool = False  # everything that might be meant has a mask; else what lies away from masks is unknown
    margin: float = 0.08  # of the diagonal: so near a mask the background is known in any case
    pool: int = 120  # clips that take turns before new ones come; about 16 MB of memory each
    uses: int = 4  # times each of them is trained on
    held_out_frames: int = 24  # labelled frames of each held-out film that a validation uses
    skip_bad: bool = False  # leave bad lines, masks and films out instead of refusing
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: ProposalWeights = field(default_factory=ProposalWeights)

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.short_sides):
            raise DeixisError(f"data.short_sides must be {len(self.frames)} numbers, one for each of data.frames")
        if min(self.frames) < 1 or min(self.short_sides) < 32 or self.stride < 1 or self.sentences < 1:
            raise DeixisError("data.frames, stride and sentences must be 1 or more, data.short_sides 32 or more")


@dataclass(frozen=True, kw_only=True)
class SocFolderData:
    """How SOC's clips are made of your films."""

    frames: int = 8  # T of a clip (read)
    flip: float = 0.5  # chance of a mirror (read)
    held_out_frames: int = 24  # as LightFolderData's
    skip_bad: bool = False
    loss: SetLossConfig = field(default_factory=SetLossConfig)


# --- the recipes -----------------------------------------------------------------------------------------------------


def light_folder(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Fine-tune light. data: ``folder``, your data; ``start`` (optional), a checkpoint of light, by default the bundled
    one. Both encoders and the text encoder stay frozen unless ``model.train_vision=true`` (a GPU).
    """
    place, start = _folder(data, "light_folder"), str(data.get("start", "light"))
    configs = apply_overrides(
        overrides,
        model=system_at(start, Light).config,
        data=LightFolderData(),
        train=TrainConfig(
            steps=400, batch=4, lr=1e-4, warmup_steps=20, clip_norm=1.5, ema=0.99, precision="bf16", workers=1,
            weight_decay=0.05, validate_every=100, checkpoint_minutes=5.0, log_every=10, find_unused_parameters=True,
        ),
    )  # fmt: skip
    model, films, train = configs["model"], configs["data"], configs["train"]
    labelled_videos(place, "train", films.skip_bad)  # refuses bad data, and unpacks films, before any process starts
    return Run(
        name="light_folder",
        system=partial(build, model, {"start": Path(start)}),
        samples=partial(light_film, place, films, train.batch, train.seed),
        collate=gather_clips,
        losses=partial(light_losses, films.loss, Memory(films.pool)),
        groups=partial(trained_groups, model),
        validate=_validation(place, films.held_out_frames, films.skip_bad, threshold=None),
        train=train,
        config=model,
        export=partial(export_light, place, films),
    )


def soc_folder(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Train SOC, or go on with SOC or SOC++. data: ``folder``, your data; ``start``, one of our checkpoints; or
    ``kinetics`` (and ``roberta``), as the published recipes take them. With neither, a small SOC from scratch.

    Sentences that name nothing are left out: SOC is not trained to answer "not there".
    """
    place = _folder(data, "soc_folder")
    model = _soc_config(data)
    scratch = not {"start", "kinetics"} & set(data)
    films = SocFolderData(frames=model.window)
    skip_bad = overrides.get("data.skip_bad", "false") == "true"
    clips = len(soc_windows(place, films.frames, skip_bad))
    configs = apply_overrides(overrides, model=model, data=films, train=_scratch() if scratch else _finetune(clips))
    model, films, train = configs["model"], configs["data"], configs["train"]
    if "start" not in data:
        soc.require_categories(model.classes, ())
    plan = YTVOS_FINETUNE
    scales = {"vision.": plan.backbone / plan.lr, "text.encoder.": plan.text / plan.lr}
    return Run(
        name="soc_folder",
        system=partial(_small_soc, model, place, films.skip_bad)
        if scratch
        else partial(soc.build_soc, model, dict(data)),
        samples=partial(soc_clip, place, model, films, train.seed),
        collate=partial(collate, model),
        losses=partial(soc_losses, films.loss),
        groups=parameter_groups if scratch else partial(_finetune_groups, scales),
        validate=_validation(place, films.held_out_frames, films.skip_bad, threshold=ALWAYS),
        train=train,
        config=model,
    )


def _folder(data: Mapping[str, Path], name: str) -> str:
    require_data(name, data, "folder", about="docs/train_on_your_data.md describes its layout")
    return str(data["folder"])


def _soc_config(data: Mapping[str, Path]) -> SocConfig | SocPlusPlusConfig:
    if "start" in data:
        return system_at(data["start"], Soc, SocPlusPlus).config
    if "kinetics" in data:
        return SocConfig()
    return SocConfig(**{**SMALL_SOC, "short_side": 96, "long_side": 176})


def _scratch() -> TrainConfig:
    return TrainConfig(
        steps=3000, batch=8, lr=1e-3, warmup_steps=50, clip_norm=1.0, weight_decay=0.01, log_every=50, workers=1,
        validate_every=500, find_unused_parameters=True,
    )  # fmt: skip


def _finetune(clips: int) -> TrainConfig:
    plan = YTVOS_FINETUNE
    steps = plan.epochs * max(1, clips // plan.batch)
    return TrainConfig(
        steps=steps, batch=1, global_batch=plan.batch, lr=plan.lr, schedule="multistep", gamma=plan.gamma,
        milestones=tuple(steps * drop // plan.epochs for drop in plan.drops), weight_decay=1e-4, clip_norm=0.1,
        precision="fp32", workers=4, validate_every=max(1, steps // 10), find_unused_parameters=True,
    )  # fmt: skip


def _finetune_groups(scales: Mapping[str, float], system: nn.Module) -> list[dict[str, Any]]:
    """Published rates; a frozen text encoder has no group."""
    trained = {name for name, parameter in system.named_parameters() if parameter.requires_grad}
    return soc_groups({key: s for key, s in scales.items() if any(n.startswith(key) for n in trained)}, system)


def _small_soc(config: SocConfig, place: str, skip_bad: bool) -> Soc:
    """Random weights, and a tokenizer of the words of the training sentences."""
    model: Any = Soc(config)
    texts = [sample.text for _, own in labelled_videos(place, "train", skip_bad).films for sample in own]
    model.text.tokenizer = word_tokenizer(texts, config.text.vocabulary)
    return model


# --- clips for light -------------------------------------------------------------------------------------------------


def light_film(place: str, data: LightFolderData, batch: int, seed: int, index: int) -> SyntheticVideo:
    """The clip of a sample index; all clips of a batch have the shape of its first."""
    # film_number reads frames, pool and uses of its data, which LightFolderData has too.
    number, lane = film_number(cast(Any, data), batch, seed, index)
    first, _ = film_number(cast(Any, data), batch, seed, index - index % batch)
    source = labelled_videos(place, "train", data.skip_bad)
    size = _grid_size(_size_of(video_of(source, seed, first)[0]), data.short_sides[lane])
    rng = np.random.default_rng([seed, number, 1])
    video, samples = video_of(source, seed, number)
    moment = _moment(source, video, samples, data, data.frames[lane], rng)
    film, _ = labelled_video(source.truth, video, samples, moment)
    larger = (size[0] * 5 // 4, size[1] * 5 // 4)  # cropping still finds pixels, and large films cost no time
    film = resize_video(film, larger) if film.frames.shape[1] > larger[0] else film
    film = _few_sentences(film, source, samples, data, rng)
    film = augment(film, rng, replace(data.augment, size=size))
    return film if data.complete else replace(film, ignore=_unknown(film, data.margin))


def video_of(source: LabelledVideos, seed: int, number: int) -> tuple[VideoEntry, tuple[Sample, ...]]:
    """Every film is as likely as any other, however long."""
    return source.films[int(np.random.default_rng([seed, number]).integers(len(source.films)))]


def _size_of(video: VideoEntry) -> tuple[int, int]:
    assert isinstance(video.frames, tuple)
    return png_size(video.frames[0])


def _grid_size(source: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(H, W) of about this short side and the film's shape, in multiples of 32."""
    scale = short_side / min(source)
    height, width = (max(32, round(side * scale / 32) * 32) for side in source)
    return height, width


def _moment(
    source: LabelledVideos, video: VideoEntry, samples: Sequence[Sample], data: LightFolderData, count: int,
    rng: np.random.Generator,
) -> list[int]:  # fmt: skip
    """Frames of a clip in which a sentence's objects show; a film with fewer labelled frames repeats some."""
    length = len(video.names)
    for _ in range(20):
        stride = int(rng.integers(1, max(1, min(data.stride, length // count)) + 1))
        first = int(rng.integers(0, max(0, length - (count - 1) * stride - 1) + 1))
        found = [min(first + i * stride, length - 1) for i in range(count)]
        there = frozenset().union(*(source.truth.present(video, i) for i in found))
        if any(set(sample.objects or ()) <= there for sample in samples):
            return found
    wanted = samples[int(rng.integers(len(samples)))].objects or ()
    shown = [i for i in range(length) if set(wanted) & source.truth.present(video, i)]
    return sorted((shown * count)[:count])


def _few_sentences(
    film: SyntheticVideo, source: LabelledVideos, own: Sequence[Sample], data: LightFolderData, rng: np.random.Generator
) -> SyntheticVideo:
    sentences = list(film.sentences)
    if len(sentences) > data.sentences:
        sentences = [sentences[i] for i in rng.permutation(len(sentences))[: data.sentences]]
    if rng.random() < data.borrowed:
        absent = _absent_sentence(source, own, rng)
        sentences += [Sentence(absent, "none", ())] if absent else []
    return replace(film, sentences=tuple(sentences))


def _absent_sentence(source: LabelledVideos, own: Sequence[Sample], rng: np.random.Generator) -> str | None:
    """A sentence of another film that shares no word with what is said of this one, as far as it names the thing."""
    said = {word for sample in own for word in sample.text.split()}
    for _ in range(8):
        _, others = source.films[int(rng.integers(len(source.films)))]
        other = others[int(rng.integers(len(others)))]
        if not said & set(head_phrase(other.text).split()):
            return other.text
    return None


def _unknown(film: SyntheticVideo, margin: float) -> np.ndarray:
    """(T, H, W) bool: void pixels, and those further from every mask than ``margin`` of the diagonal."""
    assert film.ignore is not None
    height, width = film.frames.shape[1:3]
    reach = margin * float(np.hypot(height, width))
    far = [
        cv2.distanceTransform((~masks.any(0)).astype(np.uint8), cv2.DIST_L2, 3) > reach
        if masks.any()
        else np.ones((height, width), bool)
        for masks in film.masks
    ]
    return film.ignore | np.stack(far)


# --- clips for SOC ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def soc_windows(place: str, frames: int, skip_bad: bool) -> list[tuple[Sample, tuple[int, ...]]]:
    """Every sentence with every window of labelled frames in which its objects show."""
    source = labelled_videos(place, "train", skip_bad)
    found = []
    for video, samples in source.films:
        for window in consecutive_windows(len(video.names), frames):
            there = frozenset().union(*(source.truth.present(video, i) for i in window))
            found += [(s, tuple(window)) for s in samples if s.objects and set(s.objects) <= there]
    if not found:
        raise DeixisError(f"{place}: no sentence of the split train names an object that its film shows")
    return found


def soc_clip(
    place: str, model: Config, data: SocFolderData, seed: int, index: int
) -> tuple[TrainingClip, tuple[int, int]]:
    """The clip of a sample index, at the model's size; every epoch has its own order."""
    table = soc_windows(place, data.frames, data.skip_bad)
    epoch, turn = divmod(index, len(table))
    sample, window = table[int(epoch_order(seed, epoch, len(table))[turn])]
    clip = training_clip(_as_benchmark(place, data.skip_bad), sample, window)
    clip = replace(clip, expression=Expression(sample.text, sample.id))
    if np.random.default_rng([seed, index]).random() < data.flip:
        clip = mirrored(clip)
    return shrink(clip, model)


@lru_cache(maxsize=4)
def _as_benchmark(place: str, skip_bad: bool) -> Any:
    return open_split(Path(place), "train", skip_bad)


# --- while it trains, and at the end ---------------------------------------------------------------------------------


def _validation(
    place: str, frames: int, skip_bad: bool, threshold: float | None
) -> Callable[[nn.Module], dict[str, float]] | None:
    """A validation on the split valid, or None where there is none."""
    if "valid" not in splits_of("folder", Path(place)):
        log.warning("%s holds no film of the split valid: nothing is measured while training", place)
        return None
    labelled_videos(place, "valid", skip_bad)
    return partial(validate_folder, place, frames, skip_bad, threshold)


def validate_folder(
    place: str, frames: int, skip_bad: bool, threshold: float | None, system: nn.Module
) -> dict[str, float]:
    """overlap: mean over all sentences (for what is not there: 1 where the answer is empty).  right: share of present
    objects on which the mask lies, more than on any other.  absent: share of absent ones answered with nothing.
    Where ``threshold`` leaves no answer empty, sentences of absent objects do not count.
    """
    device = str(next(system.parameters()).device)
    hits: dict[str, list[float]] = defaultdict(list)
    for answer in evaluate_films(system, held_out_videos(place, frames, skip_bad), threshold=threshold, device=device):
        if threshold == ALWAYS and not answer.present:
            continue
        hits["overlap"].append(answer.overlap)
        hits["right" if answer.present else "absent"].append(float(answer.right))
        if answer.present:
            hits[f"right_{answer.kind}"].append(float(answer.right))
    if "right_written" in hits and len([name for name in hits if name.startswith("right_")]) == 1:
        del hits["right_written"]  # no kinds in the table: it would repeat "right"
    return {name: float(np.mean(hits[name])) for name in ("overlap", *sorted(hits)) if name in hits}


def export_light(place: str, data: LightFolderData, system: nn.Module, path: Path) -> None:
    """Write the model as the bundled one is written; presence is fitted anew where enough was held out to do so."""
    assert isinstance(system, Light)
    system.eval()
    if "valid" in splits_of("folder", Path(place)):
        films = held_out_videos(place, data.held_out_frames, data.skip_bad)
        device = str(next(system.parameters()).device)
        found = list(evaluate_films(system, films, threshold=ALWAYS, device=device))
        present = sum(answer.present for answer in found)
        if min(present, len(found) - present) >= LEAST_TO_FIT:
            system.config = with_fitted_presence(system.config, found)
        else:
            log.info("presence stays as it was: too few held-out sentences of things that are and are not there")
    if system.config.train_vision:
        export_model(system, path)
        return
    export_stage(system, path)


RECIPES = {"light_folder": light_folder, "soc_folder": soc_folder}
