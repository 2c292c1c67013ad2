"""A published recipe is the same run on any number of processes: a step has the same clips, and there are as many."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.recipe_places import PUBLISHED, places_for

from deixis.training.feed import sample_indices
from deixis.training.recipes import find_recipe
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
