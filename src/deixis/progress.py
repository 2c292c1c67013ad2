"""Bars on a terminal, lines in a file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from deixis.training.run import Progress
    from deixis.verdicts import TrackSummary


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What `segment` prints. as_json: verdicts as lines of JSON.  quiet: nothing but verdicts and what went wrong."""

    as_json: bool = False
    quiet: bool = False

    def verdict(self, verdict: TrackSummary, run: Mapping[str, str]) -> None:
        """run: device, precision and engine, for JSON."""
        facts = {**verdict.facts(), **run}
        typer.echo(json.dumps(facts, ensure_ascii=False) if self.as_json else printable(str(verdict)))

    def note(self, line: str, *, err: bool = True) -> None:
        if not self.quiet:
            typer.echo(printable(line), err=err)

    def warn(self, line: str) -> None:
        typer.echo(printable(f"warning: {line}"), err=True)

    def frames_bar(self, words: str, frames: int | None) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda done: None) if self.quiet else frames_bar(words, frames)


def printable(line: str) -> str:
    """The line, with what is no Unicode (bytes of a file's name, say) spelt out."""
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def frames_bar(words: str, frames: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal: frames, frames per second, time left. Nothing in a file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"), TimeRemainingColumn(),
    )  # fmt: skip
    began = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=frames, rate=0.0)

        def show(done: int) -> None:
            rate = done / max(time.perf_counter() - began, 1e-6)
            bar.update(task, completed=done, total=max(done, frames or done), rate=rate)

        yield show


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; in a file and under torchrun, a line for every line of metrics.jsonl."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)

    def words(progress: Progress) -> str:
        parts = " ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
        return f"{parts} | lr {progress.lr:.1e} | {progress.samples_per_second:.1f} samples/s"

    def scores(progress: Progress) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in progress.scores.items())

    if not console.is_terminal or "RANK" in os.environ:

        def line(progress: Progress) -> None:
            if progress.logged or progress.scores:
                left = f"{progress.seconds_left / 60:.1f} min left"
                typer.echo(f"step {progress.step}/{progress.steps} | {words(progress)} | {left}", err=True)
            if progress.scores:
                typer.echo(f"step {progress.step}: {scores(progress)}", err=True)

        yield line
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("making the first batch", total=steps)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.step, description=words(progress))
            if progress.scores:
                bar.console.print(f"step {progress.step}: {scores(progress)}")

        yield show


@contextmanager
def counting_bar(words: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal: done, in all, time left. Nothing in a file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
