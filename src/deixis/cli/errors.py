"""What a user caused, on one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

try:
    from typer._click.exceptions import UsageError  # newer ones bring their own
except ImportError:
    from click.exceptions import UsageError  # type: ignore[assignment]


class OneLineErrors(TyperGroup):
    """What a user caused ends in one line on stderr and exit status 2; Ctrl-C in status 130."""

    def invoke(self, ctx: Any) -> Any:
        words = [*ctx._protected_args, *ctx.args]
        if (empty := empty_option(words)) is not None:
            typer.echo(f"deixis: {empty} is given nothing; is a variable of the shell not set?", err=True)
            raise typer.Exit(2)
        try:
            return super().invoke(ctx)
        except UsageError as error:
            line = meant(words)
            if line is None:
                raise
            typer.echo(f"deixis: {line}", err=True)
            raise typer.Exit(2) from error
        except ValueError as error:
            types = sys.modules.get("deixis.types")  # unless a command has imported it, the error cannot be ours
            if types is None or not isinstance(error, types.DeixisError):
                raise
            typer.echo(f"deixis: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("deixis: stopped", err=True)
            raise typer.Exit(130) from error


def meant(words: list[str]) -> str | None:
    """What to say of words that are no command line, where it is plain what was meant."""
    dashed = next((word for word in words if word.startswith("-") and Path(word).exists()), None)
    if dashed is not None:
        return f"{dashed} is taken for an option, since it begins with a dash; write ./{dashed}"
    if words and Path(words[0]).exists():
        return f"{words[0]} is no command; to segment it, write `deixis segment VIDEO WORDS -o OUT`"
    spoken = next((word for word in words if word.startswith("-") and " " in word and "=" not in word), None)
    if spoken is not None:
        return f"{spoken!r} is taken for an option, since it begins with a dash; leave the dash out"
    return None


def empty_option(words: list[str]) -> str | None:
    """The first option whose value is empty or blank: as a path that would be the folder one is in."""
    for word, after in zip(words, [*words[1:], "value"], strict=True):
        name, equals, value = word.partition("=")
        if word == "--":
            return None
        if word.startswith("--") and equals and not value.strip():
            return name
        if re.fullmatch(r"--?[a-z][a-z-]*", word) and not after.strip():
            return word
    return None
