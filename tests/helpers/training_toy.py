"""A toy run for the training tests: two layers with dropout that learn a sum; also a program, for torchrun and kills.

``python training_toy.py OUT [field=value ...]`` trains it; a kill at step N is asked by ``kill=N``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deixis.training.optimizer import parameter_groups
from deixis.training.run import Run, TrainConfig


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 8
    dropout: float = 0.5


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, config.width), nn.Linear(config.width, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.tanh(self.first(x))))


def sample(index: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(4)  # the feed seeds the generators by the index
    return x, x.sum(0, keepdim=True) + 0.0 * index


def collate(samples: Any) -> Tensor:
    return torch.stack([torch.cat(s) for s in samples])


def losses(system: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    error = system(batch[:, :4]) - batch[:, 4:]
    return {"square": error.square().mean(), "absolute": 0.5 * error.abs().mean()}


def save_plain(system: nn.Module, path: Path) -> None:
    save_file({name: t.clone() for name, t in system.state_dict().items()}, path)


def toy(
    *,
    config: ToyConfig = ToyConfig(),
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    **settings: Any,
) -> Run:
    train = TrainConfig(steps=6, batch=4, global_batch=8, lr=1e-2, warmup_steps=2, ema=0.9, checkpoint_minutes=60)
    return Run(
        name="toy",
        system=lambda: Toy(config),
        samples=sample,
        collate=collate,
        losses=losses,
        groups=lambda system: parameter_groups(system, {"first.": 0.5}),
        validate=validate,
        train=replace(train, **settings),
        config=config,
        export=save_plain,
    )


def main() -> None:
    from deixis.config import apply_overrides
    from deixis.training.loop import train

    out, *settings = sys.argv[1:]
    overrides = dict(setting.split("=") for setting in settings)
    kill = int(overrides.pop("kill", 0))
    run = toy(config=ToyConfig(dropout=float(overrides.pop("dropout", 0.5))))
    run = replace(run, train=apply_overrides(overrides, train=run.train)["train"])

    def report(progress: Any) -> None:
        if progress.step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    train(run, Path(out), device="cpu", resume=True, report=report)


if __name__ == "__main__":
    main()
