"""A run: everything that a training is, as functions and numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deixis.training.optimizer import schedule_factor
from deixis.types import DeixisError
from deixis.weights import save


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run trains. All defaults are our choice; a recipe sets those its paper gives."""

    steps: int  # optimiser steps of the whole run; the schedule ends there
    batch: int  # samples a process takes at once, at most: what its memory holds
    global_batch: int = 0  # samples a step, over all processes and micro-batches; 0: batch
    lr: float = 1e-4  # peak learning rate of the groups with scale 1
    warmup_steps: int = 0  # steps of linear warm-up
    schedule: str = "cosine"  # "cosine" or "multistep"
    lr_floor: float = 0.0  # share of lr that cosine ends at
    milestones: tuple[int, ...] = ()  # steps at which multistep multiplies lr by gamma
    gamma: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0  # largest norm of the whole gradient; 0: not clipped
    ema: float = 0.0  # decay a step of the running average of the weights; 0: none
    precision: str = "fp32"  # "fp32" or "bf16" (autocast; weights stay fp32)
    seed: int = 0
    validate_every: int = 0  # steps; 0: never
    log_every: int = 20  # steps a line of metrics.jsonl (its losses: means over them)
    checkpoint_minutes: float = 10.0  # 0: after every step
    workers: int = 0  # background processes that make samples; 0: none
    threads: int = 0  # CPU threads of the main process; 0: as torch likes
    time_limit_minutes: float = 0.0  # stop in order after so long (the schedule still follows steps); 0: no limit
    find_unused_parameters: bool = False  # with torchrun: parameters may have no part in a step's loss

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every"):
            if getattr(self, name) < 1:
                raise DeixisError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.global_batch < 0:
            raise DeixisError(f"train.global_batch must be 0 (train.batch) or more, got {self.global_batch}")
        if self.precision not in ("fp32", "bf16"):
            raise DeixisError(f"train.precision must be 'fp32' or 'bf16', got {self.precision!r}")
        if not 0 <= self.ema < 1:
            raise DeixisError(f"train.ema must be in 0..1 (0 = off), got {self.ema}")
        self.learning_rate(0)  # an unknown schedule is refused here

    @property
    def samples_a_step(self) -> int:
        """Over all processes: the same on any number of them."""
        return self.global_batch or self.batch

    def share(self, processes: int) -> tuple[int, int]:
        """How each of the processes makes its share of a step.

        Args:
            processes: How many there are.

        Returns:
            (samples of a micro-batch, micro-batches): their product, times ``processes``, is the global batch.

        Raises:
            DeixisError: Where the global batch does not divide.

        Example:
            >>> TrainConfig(steps=1, batch=1, global_batch=8).share(4)
            (1, 2)
        """
        whole = self.samples_a_step
        own, left = divmod(whole, processes)
        if left or own < 1:
            raise DeixisError(
                f"a step of {whole} samples (train.global_batch) cannot be shared by {processes} processes; start a"
                " number of them that divides it, or set another train.global_batch"
            )
        batch = min(self.batch, own)
        if own % batch:
            raise DeixisError(
                f"each of {processes} processes makes {own} samples a step (of train.global_batch {whole}), no multiple"
                f" of train.batch {self.batch}; set a train.batch that divides {own}"
            )
        return batch, own // batch

    def learning_rate(self, step: int) -> float:
        """The learning rate at ``step`` (0 is the first) for groups with scale 1."""
        return self.lr * schedule_factor(
            step,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
            floor=self.lr_floor,
            milestones=self.milestones,
            gamma=self.gamma,
        )


def export_model(system: nn.Module, path: Path) -> None:
    """Write the model that users load."""
    save(system, path)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole training, as functions. Recipes return one.

    system: builds the model (the generators are seeded before).  samples: index -> sample; a pure function of its
    index, called in background processes.  collate: samples -> a batch with ``.to(device)``; if it has ``counts`` (name
    to number, films left out say; the same names at every step), their sums over the run go to metrics.jsonl.
    losses: named and already weighted terms, the same names at every step; they are summed.  groups: see
    ``parameter_groups``; what is left out is frozen.  validate: scores, higher is better, the first picks ``best``;
    gets the averaged weights in eval mode without gradients.  config: the system's config, kept as JSON.
    export: writes the final model; gets it as validate does.  export_best: writes the best one, as ``best_model``.
    """

    name: str
    system: Callable[[], nn.Module]
    samples: Callable[[int], Any]
    collate: Callable[[Sequence[Any]], Any]
    losses: Callable[[nn.Module, Any], dict[str, Tensor]]
    groups: Callable[[nn.Module], list[dict[str, Any]]]
    train: TrainConfig
    config: Any
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    export: Callable[[nn.Module, Path], None] = export_model
    export_best: Callable[[nn.Module, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What ``report`` gets after every step. step: finished ones.  waiting: share of the time without a batch.
    scores: of a validation that just ran, or empty.  logged: this step went to metrics.jsonl."""

    step: int
    steps: int
    losses: Mapping[str, float]
    lr: float
    grad_norm: float
    samples_per_second: float
    waiting: float
    seconds_left: float
    scores: Mapping[str, float]
    logged: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How ``train`` ended. stopped: "finished", "time limit", "SIGTERM" or "SIGINT".  counts: sums over the run."""

    step: int
    stopped: str
    best_score: float | None
    model: Path
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
