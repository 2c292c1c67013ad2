"""Short small videos with flow for SLVP-style training: drawn, or composed of real pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from deixis.losses.set_loss import MaskLossConfig
from deixis.synthetic.mixture import Mixture
from deixis.synthetic.scene import SyntheticVideo
from deixis.synthetic.sentences import SentenceMix
from deixis.synthetic.world import World
from deixis.synthetic.world_config import WorldConfig
from deixis.systems.slvp import SlvpConfig
from deixis.training.clips import TrainingClip, make_target
from deixis.training.flow import estimate, flow_target, to_cells
from deixis.training.flow_clips import FlowClip, PretrainLoss, as_flow_clip
from deixis.types import DeixisError, Expression
from deixis.video import resize

# --- generated films, small models ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SmallFilms:
    """Short small films, made at their first use and kept in memory. With ``pictures`` (a folder like shared/data)
    they are cut-outs on real pictures and DAVIS clips; otherwise drawn, with flow that is exact."""

    size: tuple[int, int] = (48, 80)  # H, W in pixels
    frames: int = 5  # T of a clip
    slow: int = 2  # films are made with slow * (T - 1) + 1 frames: pre-training takes T side by side, the transfer all
    count: int = 1000  # different films to train on
    first: int = 0  # number of the first of them; those of pre-training lie elsewhere
    objects: tuple[int, int] = (2, 3)  # least and most a drawn film
    camera_moves: float = 0.25  # chance of a moving camera
    sentences: tuple[tuple[str, float], ...] = (("motion", 0.4), ("colour", 0.3), ("class", 0.3))  # kinds, shares
    held_out: int = 100  # films of the validation
    calibration: int = 120  # other held-out ones, that presence is calibrated on after the transfer; 0: it is not
    pictures: Path | None = None


class SmallFilm(NamedTuple):
    """film: with flow (float16), exact or estimated.  valid: (T-1, H, W) bool, where the flow can be trusted."""

    film: SyntheticVideo
    valid: np.ndarray


def length_of(films: SmallFilms) -> int:
    return films.slow * (films.frames - 1) + 1


def side_by_side(small: SmallFilm, frames: int, first: int) -> SmallFilm:
    """Frames ``first`` and the next ones of a film, with the flow between them."""
    film, span, steps = small.film, slice(first, first + frames), slice(first, first + frames - 1)
    assert film.flow is not None
    flow = film.flow[steps].astype(np.float32)
    return SmallFilm(replace(film, frames=film.frames[span], masks=film.masks[span], flow=flow), small.valid[steps])


def spread(small: SmallFilm, slow: int) -> SyntheticVideo:
    """Every ``slow``-th frame of a film, from its first to its last: what its sentences are true of."""
    film = small.film
    return replace(film, frames=film.frames[::slow], masks=film.masks[::slow], flow=None, times=film.times[::slow])


@lru_cache(maxsize=12_000)  # about 0.3 MB a film at the default size
def small_film(films: SmallFilms, split: str, number: int, absent: float = 0.0) -> SmallFilm:
    """Film ``number`` of a split, "train" or "valid_u". absent: share of sentences that name nothing in it, at most."""
    if films.pictures is not None:
        return real_film(films, split, number, absent)
    film = _world(films, split, absent).film(number)
    assert film.flow is not None
    everywhere = np.broadcast_to(np.ones(1, bool), film.flow.shape[:3])
    return SmallFilm(replace(film, flow=film.flow.astype(np.float16)), everywhere)


def _sentences(films: SmallFilms, absent: float) -> SentenceMix:
    weights = (*films.sentences, ("none", 1.0)) if absent else films.sentences
    return SentenceMix(count=6, most_none=absent, weights=weights)


@lru_cache(maxsize=4)
def _world(films: SmallFilms, split: str, absent: float) -> World:
    config = WorldConfig(
        size=films.size, frames=length_of(films), objects=films.objects, camera_moves=films.camera_moves,
        sentences=_sentences(films, absent),
    )  # fmt: skip
    return World(split, config)


def real_film(films: SmallFilms, split: str, number: int, absent: float = 0.0) -> SmallFilm:
    """A film of the mixture, made and its flow estimated (DIS) at twice the size, then shrunk."""
    film = _mixture(films, split, absent).film(number)
    while not film.sentences:  # rare; the next seed that no other film has
        number += 10_000_000
        film = _mixture(films, split, absent).film(number)
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
def _mixture(films: SmallFilms, split: str, absent: float) -> Mixture:
    assert films.pictures is not None
    return Mixture(
        films.pictures, split="train" if split == "train" else "held_out", frames=length_of(films),
        size=(2 * films.size[0], 2 * films.size[1]), stills=0.1, composites=0.5, twins=0.2, davis=0.2,
        sentences=_sentences(films, absent),
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


def small_flow_clip(data: SmallPretrain, model: SlvpConfig, index: int) -> FlowClip:
    """A film, its flow, and one of its sentences as the caption; successive passes take other sentences."""
    films = data.films
    whole = small_film(films, "train", films.first + index % films.count)
    places = length_of(films) - films.frames + 1
    film, valid = side_by_side(whole, films.frames, (index // films.count + index) % places)
    assert film.flow is not None
    sentence = film.sentences[(index // films.count + index) % len(film.sentences)]
    cells = (films.size[0] // 4, films.size[1] // 4)
    target = flow_target(to_cells(film.flow, cells), films.size, model.flow_unit, data.loss.limit)
    trusted = to_cells(np.repeat(valid[..., None], 2, -1), cells)[..., 0] >= 0.5
    return as_flow_clip(film.frames, sentence.text, target, trusted)


def small_clip(data: SmallTransfer, index: int) -> tuple[TrainingClip, tuple[int, int]]:
    """One sentence of a film, with its masks; successive passes over the films take other sentences."""
    films = data.films
    count = max(1, round(films.count * data.share))
    film = spread(small_film(films, "train", films.first + index % count), films.slow)
    sentence = film.sentences[(index // count + index) % len(film.sentences)]
    return labelled_clip(film, sentence.text, sentence.objects), films.size


def labelled_clip(film: SyntheticVideo, text: str, objects: Sequence[int]) -> TrainingClip:
    referred = np.isin(np.arange(film.masks.shape[1]), objects)
    frames = torch.from_numpy(np.ascontiguousarray(film.frames)).permute(0, 3, 1, 2)
    return TrainingClip(frames, Expression(text), make_target(np.ascontiguousarray(film.masks), referred))
