"""What the published runs on benchmarks share: their data, the split that is held out, and the run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deixis.config import apply_overrides
from deixis.training.clips import collate
from deixis.training.recipes.held_out import HeldOut, held_out_of, held_out_validation, with_split
from deixis.training.run import Run, TrainConfig
from deixis.training.sources import ClipSource, Selecting, SocData, list_clips, sample_clip
from deixis.types import DeixisError


def require_data(
    name: str, data: Mapping[str, Path], *needed: str, value: str = "FOLDER",
    about: str = "docs/benchmarks.md describes its layout",
) -> None:  # fmt: skip
    """Raise DeixisError for what the recipe ``name`` needs and ``data`` lacks."""
    for place in needed:
        if place not in data:
            raise DeixisError(f"the recipe {name} needs --data {place}={value}; {about}")


@dataclass(frozen=True, kw_only=True)
class PublishedClips:
    """The clips of a run. places: each source with its folder.  count: of clips.  settings: the data's config."""

    places: tuple[tuple[ClipSource, str], ...]
    count: int
    held: HeldOut | None
    settings: Any

    def validate_every(self, steps: int) -> int:
        """``steps`` where a split is held out, else 0: never."""
        return 0 if self.held is None else max(1, steps)


def published_clips(
    sources: Sequence[ClipSource],
    data: Mapping[str, Path],
    overrides: Mapping[str, str],
    settings: Selecting,
    frames: Callable[[Any], int],
) -> PublishedClips:
    """The clips that ``settings``, with the overrides of ``data.``, select. frames: of a clip, from the settings."""
    own = {key: text for key, text in overrides.items() if key.startswith("data.")}
    settings = apply_overrides(own, data=settings)["data"]
    held = held_out_of(sources, data, settings)
    places = tuple((source, str(data[source.data])) for source in with_split(sources, settings))
    count = sum(len(list_clips(source, place, frames(settings))) for source, place in places)
    return PublishedClips(places=places, count=count, held=held, settings=settings)


def published_run(
    name: str,
    clips: PublishedClips,
    *,
    model: Any,
    train: TrainConfig,
    sampling: SocData,
    build: Callable[[Any, dict[str, Path]], nn.Module],
    data: Mapping[str, Path],
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
    groups: Callable[[nn.Module], list[dict[str, Any]]],
) -> Run:
    """A run on ``clips``. sampling: how a clip is sampled and augmented.  build: the model from its config and data."""
    return Run(
        name=name,
        system=partial(build, model, dict(data)),
        samples=partial(sample_clip, clips.places, model, sampling, train.seed),
        collate=partial(collate, model),
        losses=losses,
        groups=groups,
        train=train,
        config=model,
        **held_out_validation(clips.held, clips.settings),
    )
