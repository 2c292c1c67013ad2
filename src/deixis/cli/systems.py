"""Commands over models: which there are, training, published checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from deixis.cli.options import named_values
from deixis.progress import training_bar


def models() -> None:
    """List systems, presets and checkpoints, what they need, their licences, and where each file lies."""
    from deixis.systems import NEEDS, PRESETS, SYSTEMS
    from deixis.weights import KNOWN

    typer.echo(f"systems      {', '.join(SYSTEMS)}")
    typer.echo(f"presets      {', '.join(PRESETS)}  (those named _debug load with random weights)")
    for preset, needed in NEEDS.items():
        typer.echo(f"needs        {preset}: {needed}")
    for checkpoint in KNOWN.values():
        place = checkpoint.place
        where = f"{place} ({place.stat().st_size / 1e6:.1f} MB)" if place.is_file() else f"{place} (not there)"
        typer.echo(f"checkpoint   {checkpoint.name}: preset {checkpoint.preset}; {checkpoint.licence}; {where}")


def train(
    recipe: Annotated[str, typer.Argument(help="What to train, on what: a name that `deixis recipes` lists.")],
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

    places = {name: Path(place) for name, place in named_values(data, "--data NAME=PATH").items()}
    overrides = named_values(settings, "--set FIELD=VALUE")
    with _disk_errors_as_ours(out):
        run = find_recipe(recipe)(places, overrides=overrides)
        with training_bar(run.train.steps) as report:  # under torchrun the first process reports
            outcome = train_run(run, out, device=device, resume=resume, report=report)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{outcome.stopped} at step {outcome.step} of {run.train.steps}; the model: {outcome.model}")
        for name, number in outcome.counts.items():
            typer.echo(f"{name.replace('_', ' ')}: {number:g}")
    if outcome.stopped.startswith("SIG"):
        raise typer.Exit(128 + getattr(signal, outcome.stopped))


@contextmanager
def _disk_errors_as_ours(out: Path) -> Iterator[None]:
    """What a disk refuses while a run is written, and data that is not there, as one line; what stands in OUT is
    whole."""
    from safetensors import SafetensorError

    from deixis.out_folder import disk_refuses
    from deixis.types import DeixisError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if not (disk_refuses(error) or isinstance(error, FileNotFoundError)):
            raise
        there = (out / "last.safetensors").is_file()
        kept = "the last checkpoint is whole, go on from it with --resume" if there else "nothing was written"
        reason, file = getattr(error, "strerror", None) or error, getattr(error, "filename", None)
        if file is not None and not Path(file).absolute().is_relative_to(out.absolute()):
            raise DeixisError(f"{file}: {reason}; is it what --data should name? {kept}") from error
        raise DeixisError(f"cannot write to {out} ({reason}); {kept}") from error


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe (default: all, in a table).")] = None,
) -> None:
    """List what can be trained: data, published run, batch, length, hardware, and what differs from the publication."""
    from deixis.training.recipes import RECIPES, find_recipe
    from deixis.training.recipes.statements import describe_recipe, table

    if name is None:
        typer.echo("\n".join(table(RECIPES)))
        return
    find_recipe(name)
    typer.echo("\n".join(describe_recipe(name)))


def import_weights(
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint (.pth).")],
    system: Annotated[str, typer.Option(help="Whose it is: soc or soc_plus_plus.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file; its config goes beside it.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of the tokenizer to put into the file (roberta-base's).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="How it is used: window, short_side, eval_level, ..."),
    ] = None,
) -> None:
    """Turn a published checkpoint into one of ours, strictly; every key left out is listed with its reason."""
    from safetensors import SafetensorError

    from deixis.types import DeixisError
    from deixis.weights import save
    from deixis.weights_import import import_checkpoint

    if out.suffix != ".safetensors":
        raise DeixisError(f"the output must end in .safetensors, got {out}")
    done = import_checkpoint(file, system, tokenizer=tokenizer, settings=named_values(settings, "--set FIELD=VALUE"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save(done.system, out, card={"imported_from": file.name, "left_out": done.left_out})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeixisError(f"{out}: cannot be written ({reason}); name another file with -o") from error
    for key, reason in done.left_out.items():
        typer.echo(f"left out {key}: {reason}")
    typer.echo(f"wrote {out} and {out.with_suffix('.json')}")
