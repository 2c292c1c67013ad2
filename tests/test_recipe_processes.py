"""A published recipe is the same run on any number of processes: a step has the same clips, and there are as many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recipe_places import PUBLISHED, places_for

from deixis.training.feed import sample_indices
from deixis.training.recipes import find_recipe
from deixis.training.sources import read_clip
from deixis.types import DeixisError


def drawn(train: Any, processes: int, step: int) -> list[int]:
    """The sample indices of a step, over all processes."""
    batch, accumulate = train.share(processes)
    return sorted(
        index
        for micro in range(accumulate)
        for rank in range(processes)
        for index in sample_indices(step, micro, rank, accumulate=accumulate, ranks=processes, batch=batch)
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_are_of_the_same_clips_on_any_number_of_processes(name: str) -> None:
    train = find_recipe(name)(places_for(name), overrides={}).train
    whole = train.global_batch
    assert whole, "a published run states its global batch"
    for processes in (1, 2, 8):
        if whole % processes:
            with pytest.raises(DeixisError, match="cannot be shared by 8 processes"):
                train.share(processes)
            continue
        for step in (0, 1, train.steps - 1):
            assert drawn(train, processes, step) == list(range(step * whole, (step + 1) * whole))


def test_vlp_rvos_draws_anchored_frames_of_the_whole_video_in_other_colours() -> None:
    run = find_recipe("vlp_rvos_ref_youtube_vos")(places_for("vlp_rvos_ref_youtube_vos"), overrides={})
    places, _, data, _ = run.samples.args  # type: ignore[attr-defined]
    (source, place) = places[0]
    assert (source.how, data.colours, data.crop) == ("anchored", 0.5, 0.5)
    plain, other = (
        read_clip(source, place, (0, (1,)), replace(data, frames=3, flip=0, colours=chance, crop=0.0), rng(5))
        for chance in (0.0, 1.0)
    )
    assert torch.equal(plain.target.masks, other.target.masks)
    assert not torch.equal(plain.frames, other.frames)
    again = read_clip(source, place, (0, (1,)), replace(data, frames=3, flip=0, colours=1.0, crop=0.0), rng(5))
    assert torch.equal(other.frames, again.frames)
    cut = read_clip(source, place, (0, (1,)), replace(data, frames=3, flip=0, colours=0.0, crop=1.0), rng(5))
    assert cut.frames.shape[-2:] == cut.target.masks.shape[-2:]
    assert min(cut.frames.shape[-2:]) >= 384
    assert max(cut.frames.shape[-2:]) <= 600
    sample, size = run.samples(0)
    assert bool(sample.target.visible[:, sample.target.referred].any())
    assert size == (336, 336)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
