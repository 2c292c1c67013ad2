"""Run a study: arms that differ in one part, the same films, the same steps, several seeds; stop and go on anywhere.

All arms of all seeds take the same number of steps: they go on, a block of steps at a time, until no arm's validation
curve rises any more (``flat``), or to the study's limit. The rate is constant after a short warm-up and the weights
are averaged, so that a run that goes on is the run that it would have been. The state of every arm and seed is saved
after each block; the films of a step are a function of seed and step.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from _grid import cells, slug
from torch import Tensor, nn
from torch.nn import functional as F

Films = dict[str, Tensor]  # every tensor has the films as its first axis
Draw = Callable[[int, torch.Generator], Films]
VALIDATION, TEST = 10_000_019, 20_000_003  # seeds of films that no training draws
POINTS = 4  # of the validation curve in a block
RISE = 0.01  # a curve is flat when a block's mean is less than this above the one before


class Chooser(nn.Module):
    """What an arm is: logits of the objects of each film. Subclasses override what differs."""

    def prepare(self, folder: Path, seed: int) -> None:
        """Whatever must be trained before, kept in the study's folder for all arms of a seed."""

    def forward(self, films: Films) -> Tensor:
        """(B, K) logits, one an object."""
        raise NotImplementedError

    def loss(self, films: Films) -> Tensor:
        return F.cross_entropy(self(films), films["truth"])

    def right(self, films: Films) -> Tensor:
        """(B,) in 0..1: how far each film is answered rightly."""
        return (self(films).argmax(-1) == films["truth"]).float()

    def facts(self, films: Films) -> dict[str, float]:
        """What else is read off the trained arm, for the page."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A verdict: the gain of ``arm`` over every one of ``controls`` on a test, against the margin."""

    claim: str
    arm: str
    controls: tuple[str, ...]
    test: str = ""
    margin: float = 0.02
    chance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Study:
    """arms: a fresh module each.  draw: films for training.  tests: films for the verdict, by name; "" is the first.
    pools: how many films an arm may train on, where they are few.  block, least, most: steps; a curve
    may stay at chance for a while before it rises.
    """

    name: str
    arms: Mapping[str, Callable[[], Chooser]]
    draw: Draw
    comparisons: Sequence[Comparison]
    tests: Mapping[str, Draw] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)
    batch: int = 32
    rate: float = 1e-3
    block: int = 200
    least: int = 600
    most: int = 2000
    test_films: int = 1000

    def all_tests(self) -> dict[str, Draw]:
        return {"": self.draw, **self.tests}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a study's runs lie and on what they run."""

    out: Path
    device: str = "cpu"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(films: Films, device: str) -> Films:
    return {name: value.to(device) for name, value in films.items()}


class Run:
    """One arm with one seed: trains to a step, saves, tests."""

    def __init__(self, study: Study, arm: str, seed: int, place: Place) -> None:
        self.study, self.arm, self.seed, self.device = study, arm, seed, place.device
        self.folder = place.out / study.name / f"{slug(arm)}-{seed}"
        torch.manual_seed(seed)
        self.model = study.arms[arm]()
        self.model.prepare(place.out / study.name, seed)
        self.model.to(place.device)
        self.mean = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=study.rate, weight_decay=1e-4)
        self.step, self.curve, self.seconds = 0, list[list[float]](), 0.0
        self._read()

    def train(self, goal: int, points: int = POINTS) -> None:
        """Go on to step ``goal``, with ``points`` measures of validation on the way, and save."""
        if self.step >= goal:
            return
        began, every = time.process_time(), max(1, (goal - self.step) // points)
        self.model.train()
        while self.step < goal:
            for group in self.optimizer.param_groups:
                group["lr"] = self.study.rate * min(1.0, (self.step + 1) / 50)
            loss = self.model.loss(moved(self._films(), self.device))
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
            self.optimizer.step()
            self.step += 1
            self._average()
            if self.step % every == 0:
                self.curve.append([self.step, float(self._score(self.study.draw, 400, VALIDATION).mean())])
        self.seconds += time.process_time() - began
        self._save()

    def test(self) -> dict[str, Any]:
        """Every test's films, how far each was answered rightly; saved with the step at which that was."""
        done = self.folder / "scores.json"
        if done.is_file():
            found = json.loads(done.read_text())
            if found["step"] == self.step:
                return found
        right = {
            name: [round(x, 4) for x in self._score(draw, self.study.test_films, TEST + i).tolist()]
            for i, (name, draw) in enumerate(self.study.all_tests().items())
        }
        with self._averaged():
            facts = self.model.facts(moved(self.study.draw(400, generator(VALIDATION)), self.device))
        found = {
            "arm": self.arm, "seed": self.seed, "step": self.step, "curve": self.curve, "right": right, "facts": facts,
            "seconds": round(self.seconds, 1), "device": self.device, "torch": torch.__version__, "commit": commit(),
            "trained": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        }  # fmt: skip
        write(done, json.dumps(found).encode())
        return found

    def _films(self) -> Films:
        pool, batch = self.study.pools.get(self.arm), self.study.batch
        draw = generator(1_000_003 * (self.seed + 1) + self.step)
        if pool is None:
            return self.study.draw(batch, draw)
        chosen = torch.randint(pool, (batch,), generator=draw)
        return {name: value[chosen] for name, value in self._pool.items()}

    @cached_property
    def _pool(self) -> Films:
        """The few films that the arm may train on."""
        return self.study.draw(self.study.pools[self.arm], generator(1_000_003 * (self.seed + 1)))

    def _average(self) -> None:
        keep = min(0.98, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - keep)

    def _averaged(self) -> Averaged:
        return Averaged(self.model, self.mean)

    @torch.no_grad()
    def _score(self, draw: Draw, count: int, seed: int) -> Tensor:
        with self._averaged():
            films = moved(draw(count, generator(seed)), self.device)
            parts = [{k: v[i : i + 200] for k, v in films.items()} for i in range(0, count, 200)]
            return torch.cat([self.model.right(part) for part in parts]).cpu()

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(), "mean": self.mean, "optimizer": self.optimizer.state_dict(),
            "step": self.step, "curve": self.curve, "seconds": self.seconds,
        }  # fmt: skip
        half = self.folder / "state.part"
        torch.save(state, half)
        os.replace(half, self.folder / "state.pt")

    def _read(self) -> None:
        if not (self.folder / "state.pt").is_file():
            return
        state = torch.load(self.folder / "state.pt", weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve, self.seconds = state["step"], state["curve"], state["seconds"]


class Averaged:
    """The model in evaluation with its averaged weights, as long as the ``with`` lasts."""

    def __init__(self, model: nn.Module, mean: dict[str, Tensor]) -> None:
        self.model, self.mean = model, mean

    def __enter__(self) -> None:
        self.own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean)
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.load_state_dict(self.own)
        self.model.train()


@cache
def commit() -> str:
    """The checkout's commit, short; "unknown" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_bytes(content)
    os.replace(half, path)


def flat(curves: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether the mean over seeds of an arm's curve rose by less than RISE from the last block but one to the last."""
    values = torch.tensor([[right for _, right in curve] for curve in curves]).mean(0)
    if len(values) < 2 * POINTS:
        return False
    return float(values[-POINTS:].mean() - values[-2 * POINTS : -POINTS].mean()) < RISE


def run(study: Study, seeds: Sequence[int], place: Place, steps: int | None = None) -> list[dict[str, Any]]:
    """All arms and seeds to the step at which every arm's curve is flat (or to ``steps``), then their tests."""
    end = place.out / study.name / "ended.json"
    if steps is None and end.is_file() and set(seeds) <= set(json.loads(end.read_text())["seeds"]):
        return cells(end.parent)
    goal = steps or study.block
    while True:
        curves: dict[str, list[Any]] = {arm: [] for arm in study.arms}
        for seed in seeds:  # all arms of a seed first, so that a stop leaves a fair comparison
            for arm in study.arms:
                one = Run(study, arm, seed, place)
                if one.step < goal:
                    one.train(goal)
                    print(f"{study.name}: {arm}, seed {seed}, step {one.step}: {one.curve[-1][1]:.3f}", flush=True)
                curves[arm].append([point for point in one.curve if point[0] <= goal])
        if steps or goal >= study.most or (goal >= study.least and all(flat(curve) for curve in curves.values())):
            break
        goal += study.block
    found = [Run(study, arm, seed, place).test() for seed in seeds for arm in study.arms]
    ended = {"goal": goal, "flat": {arm: flat(curve) for arm, curve in curves.items()}, "seeds": list(seeds)}
    write(end, json.dumps(ended).encode())
    return found
