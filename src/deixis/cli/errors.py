"""What a user caused, on one line."""

from __future__ import annotations

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
        try:
            return super().invoke(ctx)
        except UsageError as error:
            dashed = next((word for word in words if word.startswith("-") and Path(word).exists()), None)
            if dashed is None:
                raise
            line = f"{dashed} is taken for an option, since it begins with a dash; write ./{dashed}"
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
