"""The command line: thin words over the functions of the package. Imports no torch until a command runs.

A command is a function in the file of its group, and a line in the table below.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from deixis import __version__
from deixis.cli.benchmarks import build, check, fixture, flow, pack, predict, score, world
from deixis.cli.errors import OneLineErrors
from deixis.cli.systems import import_weights, models, recipes, train
from deixis.cli.videos import batch, demo, segment, serve

app = typer.Typer(
    name="deixis",
    cls=OneLineErrors,
    help="Point at things in a video with words: referring video object segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Benchmarks on disk: check, build, and make tiny copies of them.", no_args_is_help=True)
weights = typer.Typer(help="Checkpoints: read those of others.", no_args_is_help=True)

COMMANDS: tuple[Callable[..., None], ...] = (
    segment, demo, batch, models, serve, train, recipes, world, predict, score, pack
)  # fmt: skip
DATA_COMMANDS: tuple[Callable[..., None], ...] = (check, fixture, build, flow)

for command in COMMANDS:
    app.command()(command)
for command in DATA_COMMANDS:
    data.command()(command)
weights.command("import")(import_weights)
app.add_typer(data, name="data")
app.add_typer(weights, name="weights")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deixis {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
]


@app.callback()
def deixis(version: VersionOption = False) -> None:
    """Point at things in a video with words: referring video object segmentation."""


def main() -> None:
    """Run the command line; what a user caused ends in one line on stderr and exit status 2."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries warn of is for programmers
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # errors of decoding are reported in our own words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal, or a file's name, may not be UTF-8
    app()
