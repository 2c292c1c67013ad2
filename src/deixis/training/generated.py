"""Generated videos as training data for small models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from deixis.losses.set_loss import SetLossConfig
from deixis.synthetic.scene import SyntheticVideo
from deixis.synthetic.sentences import SentenceMix
from deixis.synthetic.world import World
from deixis.synthetic.world_config import WorldConfig
from deixis.training.clips import TrainingClip, make_target
from deixis.types import Expression

# --- generated films, small models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WorldData:
    """Generated films for a small model. All numbers are our choice."""

    size: tuple[int, int] = (48, 80)  # H, W in pixels
    frames: int = 6  # T
    films: int = 3000  # different films to train on
    objects: tuple[int, int] = (2, 3)  # least and most a film
    areas: tuple[float, float] = (0.012, 0.06)  # share of the picture that an object covers, least and most
    sentences: tuple[tuple[str, float], ...] = (("motion", 0.5), ("colour", 0.25), ("class", 0.25))  # kinds, shares
    held_out_films: int = 100  # of the validation: known shapes in new pairs with colours, on new backgrounds
    calibration_films: int = 120  # other held-out ones, that presence is calibrated on at the end; 0: it is not
    loss: SetLossConfig = field(default_factory=SetLossConfig)


def first_sentences(films: WorldData) -> list[str]:
    """Those of the first few hundred films: all words that any film has, for tokenizers made from scratch."""
    made = (generated_video(films, "train", i) for i in range(min(300, films.films)))
    return [sentence.text for film in made for sentence in film.sentences]


def generated_video(data: WorldData, split: str, index: int, absent: float = 0.0) -> SyntheticVideo:
    """absent: share of sentences that name nothing in the film, at most."""
    weights = (*data.sentences, ("none", 1.0)) if absent else data.sentences
    mix = SentenceMix(count=6, most_none=absent, weights=weights)
    config = WorldConfig(
        size=data.size, frames=data.frames, objects=data.objects, areas=data.areas, camera_moves=0.0, flow=False,
        sentences=mix,
    )  # fmt: skip
    return cached_video(config, split, index)


@lru_cache(maxsize=4000)  # about 70 kB a film at the default size; runs of several systems share them
def cached_video(config: WorldConfig, split: str, index: int) -> SyntheticVideo:
    return World(split, config).film(index)


def world_clip(
    data: WorldData, index: int, film_of: Callable[[WorldData, str, int], SyntheticVideo] = generated_video
) -> tuple[TrainingClip, tuple[int, int]]:
    """One sentence of a film; successive passes over the films take other sentences."""
    film = film_of(data, "train", index % data.films)
    sentence = film.sentences[(index // data.films + index) % len(film.sentences)]
    referred = np.isin(np.arange(film.masks.shape[1]), sentence.objects)
    frames = torch.from_numpy(np.ascontiguousarray(film.frames)).permute(0, 3, 1, 2)
    return TrainingClip(frames, Expression(sentence.text), make_target(film.masks, referred)), data.size
