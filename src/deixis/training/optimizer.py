"""AdamW over named parameter groups, the learning rate of a step, and the running average of the weights (EMA)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deixis.types import DeixisError


def schedule_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    schedule: str,
    floor: float = 0.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """What the learning rate is multiplied by at ``step`` (0 is the first): a pure function, so nothing to save.

    Linear warm-up: (step + 1) / warmup_steps. Then "cosine" falls from 1 at the end of the warm-up to ``floor`` at
    ``steps``; "multistep" multiplies by ``gamma`` at each milestone reached.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "multistep":
        return gamma ** sum(step >= milestone for milestone in milestones)
    raise DeixisError(f"train.schedule must be 'cosine' or 'multistep', got {schedule!r}")


def parameter_groups(system: nn.Module, scales: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """The parameters of ``system`` that require gradients, in groups for ``build_optimizer``.

    ``scales`` maps a prefix of parameter names to a multiple of the learning rate ({"vision.": 0.15}); the longest
    prefix wins, 0 leaves the parameters out (they are then frozen), no prefix means 1. Parameters of one dimension
    (biases, norms) get no weight decay. A prefix that no parameter has raises DeixisError: a typo must not train.
    """
    scales = dict(scales or {})
    names = [name for name, _ in system.named_parameters()]
    for prefix in scales:
        if not any(name.startswith(prefix) for name in names):
            tops = sorted({name.split(".")[0] for name in names})
            raise DeixisError(f"no parameter begins with {prefix!r}; the model's parts are {', '.join(tops)}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in system.named_parameters():
        prefix = max((p for p in scales if name.startswith(p)), key=len, default="")
        scale = scales.get(prefix, 1.0)
        if scale > 0 and parameter.requires_grad:
            groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    return [{"params": params, "scale": scale, "decay": decay} for (scale, decay), params in sorted(groups.items())]


def build_optimizer(
    groups: Sequence[Mapping[str, Any]], *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over ``groups``: dicts with "params", and optionally "scale" (of the learning rate) and "decay" (bool)."""
    known = {"params", "scale", "decay"}
    for group in groups:
        if not known >= set(group) or not group.get("params"):
            raise DeixisError(f"a parameter group needs 'params' and may have 'scale' and 'decay', got {sorted(group)}")
    if not groups:
        raise DeixisError("there is nothing to train: the recipe's groups hold no parameter")
    options: list[dict[str, Any]] = [
        {
            "params": list(group["params"]),
            "scale": float(group.get("scale", 1.0)),
            "weight_decay": weight_decay if group.get("decay", True) else 0.0,
        }
        for group in groups
    ]
    fused = all(p.device.type in ("cpu", "cuda") for group in options for p in group["params"])
    return torch.optim.AdamW(options, lr=lr, betas=betas, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group ``lr`` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


class WeightAverage:
    """Exponential moving average of the trained parameters, by name.

    The decay is ramped, min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise DeixisError(f"train.ema must be in 0..1 (0 = off), got {decay}")
        self.parameters, self.decay = dict(parameters), decay
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move the averages towards the weights; ``updates`` counts those made before."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; the trained ones come back at the end, whatever happens."""
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self._write(self.averages)
            yield
        finally:
            self._write(trained)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
