"""A small system, trained from scratch on generated videos and validated on held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from deixis.training.clips import collate
from deixis.training.generated import WorldData, world_clip
from deixis.training.optimizer import parameter_groups
from deixis.training.run import Run, TrainConfig
from deixis.training.validation import export_world, validate_generated

SMALL_TRAIN = TrainConfig(  # our choice
    steps=600, batch=8, lr=1e-3, warmup_steps=50, clip_norm=1.0, weight_decay=0.01, log_every=50,
    find_unused_parameters=True,
)  # fmt: skip


def small_run(
    name: str,
    *,
    model: Any,
    films: WorldData,
    train: TrainConfig,
    build: Callable[[Any, Any], nn.Module],
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
) -> Run:
    """build: the system from its config and the films' settings."""
    return Run(
        name=name,
        system=partial(build, model, films),
        samples=partial(world_clip, films),
        collate=partial(collate, model),
        losses=losses,
        groups=parameter_groups,
        validate=partial(validate_generated, films),
        export=partial(export_world, films),
        train=train,
        config=model,
    )
