"""The command line: thin words over the functions of the package. Imports no torch until a command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deixis.training.loop import Progress

app = typer.Typer(
    name="deixis",
    help="Point at things in a video with words: referring video object segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="What to train, on what: a name in deixis.training.recipes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints, metrics and the model.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="model.X, train.X or data.X; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="NAME=PATH", help="Where a dataset lies; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Train a system by a recipe; several GPUs: torchrun --nproc-per-node N -m deixis.cli train ..."""
    from deixis.training.loop import train as train_run
    from deixis.training.recipes import find_recipe

    places = {name: Path(place) for name, place in _pairs(data, "--data NAME=PATH").items()}
    run = find_recipe(recipe)(places, overrides=_pairs(settings, "--set FIELD=VALUE"))
    with _training_bar(run.train.steps) as report:  # under torchrun the first process alone reports
        outcome = train_run(run, out, device=device, resume=resume, report=report)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{outcome.stopped} at step {outcome.step} of {run.train.steps}; the model: {outcome.model}")
    if outcome.stopped.startswith("SIG"):
        raise typer.Exit(128 + getattr(signal, outcome.stopped))


def _pairs(items: list[str] | None, form: str) -> dict[str, str]:
    from deixis.types import DeixisError

    for item in items or []:
        if not all(item.partition("=")[::2]):
            raise DeixisError(f"expected {form}, got {item!r}")
    return {item.partition("=")[0]: item.partition("=")[2] for item in items or []}


@contextmanager
def _training_bar(steps: int) -> Iterator[Callable[[Progress], None]]:
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


def main() -> None:
    """Run the command line; what a user caused ends in one line on stderr and exit status 2."""
    app()


if __name__ == "__main__":
    sys.exit(main())
