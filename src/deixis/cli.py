"""The command line: thin words over the functions of the package. Imports no torch until a command runs."""

from __future__ import annotations

import sys

import typer

app = typer.Typer(
    name="deixis",
    help="Point at things in a video with words: referring video object segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; what a user caused ends in one line on stderr and exit status 2."""
    app()


if __name__ == "__main__":
    sys.exit(main())
