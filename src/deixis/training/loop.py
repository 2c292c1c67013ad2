"""The training loop: one for every system. A ``Run`` says what is trained on what; ``train`` does it.

The result depends on the run alone: samples and random states are functions of (seed, step), so a run that was cut
and resumed gives, on CPU, the same bits, and a step has the same samples on any number of processes (a loss that is a
mean over the batch is the same too; one normalised by a count of objects is averaged over the processes instead).

OUT holds ``run.json`` (what was run), ``last.safetensors`` and ``best.safetensors`` (checkpoints to resume from),
``metrics.jsonl``, ``curves.png``, and at the end ``model.safetensors``, the model to use.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deixis.config import to_plain
from deixis.files import write_atomically
from deixis.training.checkpoint import (
    check_facts,
    load_checkpoint,
    pack_state,
    read_facts,
    save_checkpoint,
    unpack_state,
)
from deixis.training.distributed import ProcessGroup, process_group
from deixis.training.feed import micro_batches, seed_everything
from deixis.training.optimizer import WeightAverage, build_optimizer, set_learning_rate
from deixis.training.record import Record
from deixis.training.run import Outcome, Progress, Run, TrainConfig
from deixis.types import DeixisError

log = logging.getLogger(__name__)


class NotFiniteError(DeixisError):
    """A loss part or a gradient became nan or inf; the message names it."""


class _LossModule(nn.Module):
    """Model and losses as one module, so that DDP's hooks cover everything between parameters and loss."""

    def __init__(self, system: nn.Module, losses: Callable[[nn.Module, Any], dict[str, Tensor]]) -> None:
        super().__init__()
        self.system, self.losses = system, losses

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.losses(self.system, batch)


def train(
    run: Run,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Train a run into a folder.

    SIGTERM and SIGINT end it in order after the current step.

    Args:
        run: As a recipe returns it.
        out: Folder for checkpoints, metrics and the final model.
        device: "auto", "cpu", "cuda" or "mps".
        resume: Continue from the last checkpoint in `out` (from step 0 if there is none).
        report: Called with the `Progress` after every step.

    Returns:
        The `Outcome`: last step, why it stopped, best score, path of the model.

    Raises:
        NotFiniteError: For a loss or gradient that is not finite; the last checkpoint stays.
        DeixisError: Where `out` holds a run and `resume` is not set.

    Example:
        >>> from pathlib import Path
        >>> from deixis.training.loop import train
        >>> from deixis.training.recipes import find_recipe
        >>> tiny = {"train.steps": "2", "train.batch": "1", "train.workers": "0", "data.calibration_films": "2"}
        >>> outcome = train(find_recipe("soc_world")({}, overrides=tiny), Path("out"), device="cpu")
        >>> outcome.step, outcome.stopped, outcome.model.name
        (2, 'finished', 'model.safetensors')
    """
    with process_group(device) as world, _stop_signals() as received:
        trainer = _Trainer(run, Path(out), world, resume)
        try:
            return trainer.run_steps(received, report)
        finally:
            trainer.close()


class _Trainer:
    """The mutable state of one process: model, optimiser, average, step."""

    def __init__(self, run: Run, out: Path, world: ProcessGroup, resume: bool) -> None:
        self.run, self.out, self.world, self.config = run, out, world, run.train
        self.batch, self.accumulate = run.train.share(world.size)  # before anything is written
        self.last, self.best = out / "last.safetensors", out / "best.safetensors"
        resumed = resume and self.last.exists()
        if self.last.exists() and not resume:
            raise DeixisError(
                f"{out} already holds a run at step {read_facts(self.last)['step']}; "
                "go on with --resume, or choose another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)

        seed_everything(self.config.seed, 0)
        self.system = run.system().to(world.device)
        groups = run.groups(self.system)
        trained = {id(p) for group in groups for p in group["params"]}
        for parameter in self.system.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.parameters = {n: p for n, p in self.system.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(
            groups, lr=self.config.lr, weight_decay=self.config.weight_decay, betas=self.config.betas
        )
        self.average = WeightAverage(self.parameters, self.config.ema) if self.config.ema else None
        self.step, self.seconds = 0, 0.0
        self.best_score: float | None = None
        self.counts: dict[str, float] = {}  # sums, over the run and all processes, of what batches count
        self.recent: list[dict[str, float]] = []  # loss parts of the steps since the last line of metrics.jsonl
        if resumed:
            self._restore()
        # After restoring, because DDP sends the first process's weights to the others when it is made.
        module = _LossModule(self.system, run.losses)
        self.module: nn.Module = module
        if world.size > 1:
            self.module = DistributedDataParallel(
                module, find_unused_parameters=self.config.find_unused_parameters, gradient_as_bucket_view=True
            )
        self.record = Record(out, from_step=self.step) if world.first else None
        if world.first:
            write_atomically(out / "run.json", json.dumps(self._facts(), indent=1) + "\n")

    def run_steps(self, received: list[str], report: Callable[[Progress], None] | None) -> Outcome:
        """All steps to the end, a signal or the time limit; then the last checkpoint and the model to use."""
        config, world = self.config, self.world
        batches = micro_batches(
            self.run.samples,
            self.run.collate,
            start=self.step,
            steps=config.steps,
            rank=world.rank,
            ranks=world.size,
            accumulate=self.accumulate,
            batch=self.batch,
            seed=config.seed,
            workers=config.workers,
        )
        with closing(batches):
            stopped = self._steps(batches, received, report)
        if world.first:
            self._save(self.last)
            self.system.eval()
            with torch.no_grad(), self._averaged():
                self.run.export(self.system, self.out / "model.safetensors")
        world.wait()
        return Outcome(
            step=self.step,
            stopped=stopped,
            best_score=self.best_score,
            model=self.out / "model.safetensors",
            counts=self.counts,
        )

    def _steps(self, batches: Iterator[Any], received: list[str], report: Callable[[Progress], None] | None) -> str:
        """Steps until one of the reasons to stop of ``Outcome``; returns which."""
        config, world = self.config, self.world
        clock = _Clock(config)
        stopped = "finished"
        while self.step < config.steps and stopped == "finished":
            clock.step_begins()
            losses, norm, stopping, waited = self._one_step(batches, lambda: bool(received) or clock.over_limit())
            pace = clock.step_ends(waited)
            self.seconds += pace.seconds
            if stopping:
                stopped = received[0] if received else "time limit" if clock.over_limit() else "SIGTERM"
            every = config.validate_every
            due = every > 0 and (self.step % every == 0 or self.step == config.steps)
            scores = self._validate() if due else {}
            if world.first:
                self._note_step(losses, norm, pace, scores, report, last=stopped != "finished")
                if clock.checkpoint_due() and stopped == "finished":
                    self._save(self.last)
        return stopped

    def _one_step(
        self, batches: Iterator[Any], due_to_stop: Callable[[], bool]
    ) -> tuple[dict[str, float], float, bool, float]:
        """One optimiser step: loss parts (means over micro-batches and processes), gradient norm, whether any process
        shall stop, seconds without a batch."""
        config, world = self.config, self.world
        lr = config.learning_rate(self.step)
        set_learning_rate(self.optimizer, lr)
        self.module.train()
        sums: dict[str, Tensor] = {}
        counted: dict[str, float] = {}
        waited = 0.0
        for micro in range(self.accumulate):
            began = time.perf_counter()
            batch = next(batches).to(world.device)
            waited += time.perf_counter() - began
            for name, number in getattr(batch, "counts", {}).items():
                counted[name] = counted.get(name, 0.0) + number
            seed_everything(config.seed, 2, self.step, micro, world.rank)
            last = micro == self.accumulate - 1
            together = nullcontext() if last or world.size == 1 else self.module.no_sync()  # type: ignore[operator]
            with together:
                with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
                    losses = self.module(batch)
                total = torch.stack([part.float() for part in losses.values()]).sum()
                (total / self.accumulate).backward()
            if sums and sums.keys() != losses.keys():
                raise DeixisError(f"losses must have the same names always: {sorted(sums)} then {sorted(losses)}")
            for name, part in losses.items():
                sums[name] = sums.get(name, 0.0) + part.detach().float() / self.accumulate
        limit = config.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        # One transfer a step: the numbers, and whether to stop, of all processes.
        stop = torch.tensor(float(due_to_stop()), device=world.device)
        totals = torch.tensor(list(counted.values()), device=world.device)
        numbers = world.mean(torch.cat([torch.stack([stop, norm.float(), *sums.values()]), totals])).tolist()
        parts = dict(zip(sums, numbers[2 : 2 + len(sums)], strict=True))
        for name, number in zip(counted, numbers[2 + len(sums) :], strict=True):
            self.counts[name] = self.counts.get(name, 0) + round(number * world.size)
        self._require_finite(parts, numbers[1])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        return parts, numbers[1], numbers[0] > 0, waited

    def _require_finite(self, parts: Mapping[str, float], norm: float) -> None:
        wrong = [f"loss part {name!r} ({value})" for name, value in parts.items() if not math.isfinite(value)]
        if not wrong and not math.isfinite(norm):
            names = [n for n, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
            wrong = [f"gradient of {name}" for name in names[:5]] or ["gradient norm"]
        if wrong:
            kept = (
                f"the last good checkpoint is {self.last} at step {read_facts(self.last)['step']}"
                if self.last.exists()
                else "no checkpoint was made yet"
            )
            raise NotFiniteError(f"not finite at step {self.step + 1}: {', '.join(wrong)}; stopped, {kept}")

    def _validate(self) -> dict[str, float]:
        """Scores of the averaged weights (by the first process; the others wait), and the best checkpoint."""
        scores: dict[str, float] = {}
        if self.run.validate is not None and self.world.first:
            self.system.eval()
            with torch.no_grad(), self._averaged():
                scores = {name: float(value) for name, value in self.run.validate(self.system).items()}
            score = next(iter(scores.values()), -math.inf)
            if self.best_score is None or score > self.best_score:
                self.best_score = score
                self._save(self.best)
                if self.run.export_best is not None:
                    self.run.export_best(self.system, self.out / "best_model.safetensors")
        self.world.wait()
        return scores

    def _note_step(
        self,
        losses: dict[str, float],
        norm: float,
        pace: _Pace,
        scores: dict[str, float],
        report: Callable[[Progress], None] | None,
        *,
        last: bool,
    ) -> None:
        logged = last or self.step % self.config.log_every == 0 or self.step == self.config.steps
        lr = self.config.learning_rate(self.step - 1)
        assert self.record is not None
        self.recent.append(losses)
        if logged:
            means = {name: sum(parts[name] for parts in self.recent) / len(self.recent) for name in losses}
            self.recent.clear()
            values = {"losses": means, "total": sum(means.values()), "lr": lr, "grad_norm": norm}
            values |= {"samples_per_second": pace.samples_per_second, "waiting": pace.waiting, "seconds": self.seconds}
            values |= {"counts": dict(self.counts)} if self.counts else {}
            self.record.add("train", self.step, values)
        if scores:
            self.record.add("validate", self.step, {"scores": scores})
            log.info("step %d: %s", self.step, ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        if report is not None:
            report(
                Progress(
                    step=self.step,
                    steps=self.config.steps,
                    losses=losses,
                    lr=lr,
                    grad_norm=norm,
                    samples_per_second=pace.samples_per_second,
                    waiting=pace.waiting,
                    seconds_left=pace.seconds_a_step * (self.config.steps - self.step),
                    scores=scores,
                    logged=logged,
                )
            )

    def _averaged(self) -> Any:
        return self.average.swapped_in() if self.average is not None else nullcontext()

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.run.name,
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "counts": self.counts,
            "processes": self.world.size,
            "config": to_plain(self.run.config),
            "train": to_plain(self.config),
        }

    def _save(self, path: Path) -> None:
        save_checkpoint(path, pack_state(self.system, self.optimizer, self.average), self._facts())
        assert self.record is not None
        self.record.draw()
        log.info("checkpoint of step %d: %s", self.step, path)

    def _restore(self) -> None:
        tensors, facts = load_checkpoint(self.last)
        check_facts(self.last, facts)
        now = self._facts()
        changed = _differences(facts["config"], now["config"], "model")
        if facts["name"] != now["name"] or changed:
            raise DeixisError(
                f"{self.last} is of run {facts['name']!r} and cannot go on as {now['name']!r}"
                + (f": {', '.join(changed)} differ" if changed else "")
            )
        for change in _differences(facts["train"], now["train"], "train"):
            log.warning("resumed with another %s: the result is not that of an uncut run", change)
        if facts["processes"] != now["processes"]:
            log.warning("resumed with %d processes instead of %d", now["processes"], facts["processes"])
        unpack_state(tensors, self.system, self.optimizer, self.average)
        self.step, self.seconds, self.best_score = facts["step"], facts["seconds"], facts["best_score"]
        self.counts = dict(facts.get("counts", {}))
        log.info("resumed %s at step %d", self.last, self.step)

    def close(self) -> None:
        if self.record is not None:
            self.record.close()


@dataclass(frozen=True)
class _Pace:
    seconds: float
    seconds_a_step: float
    samples_per_second: float
    waiting: float


class _Clock:
    """Smoothed times of steps (without validation and checkpoints), when to save, and when to stop."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.samples_a_step = config.samples_a_step
        self.began = self.step_began = self.saved = time.monotonic()
        self.smooth = self.smooth_wait = 0.0

    def over_limit(self) -> bool:
        limit = self.config.time_limit_minutes * 60
        return limit > 0 and time.monotonic() - self.began >= limit

    def step_begins(self) -> None:
        self.step_began = time.monotonic()

    def step_ends(self, waited: float) -> _Pace:
        seconds = time.monotonic() - self.step_began
        self.smooth = 0.9 * self.smooth + 0.1 * seconds if self.smooth else seconds
        self.smooth_wait = 0.9 * self.smooth_wait + 0.1 * waited if self.smooth_wait else waited
        step = max(self.smooth, 1e-9)
        return _Pace(seconds, step, self.samples_a_step / step, min(1.0, self.smooth_wait / step))

    def checkpoint_due(self) -> bool:
        due = time.monotonic() - self.saved >= self.config.checkpoint_minutes * 60
        if due:
            self.saved = time.monotonic()
        return due


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """The names of the SIGTERM and SIGINT received, as they come; a second SIGINT interrupts at once."""
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python takes signal handlers in the main thread only
        return

    def note(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _differences(before: Any, now: Any, path: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [d for key in keys for d in _differences(before.get(key), now.get(key), f"{path}.{key}")]
    return [] if before == now else [f"{path} ({before} -> {now})"]
