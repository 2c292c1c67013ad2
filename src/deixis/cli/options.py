"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from deixis.tables import BENCHMARK_FILES, FORMAT_FILES

ModelOption = Annotated[str, typer.Option(help="A name that `deixis models` lists, or a checkpoint file.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
FormatOption = Annotated[str, typer.Option("--as", help=f"Of {', '.join(FORMAT_FILES)}; commas between.")]


def seconds_of(text: str) -> float:
    """Seconds, or minutes and seconds, or hours too: 90, 90.5, 1:30, 0:01:30. Raises ValueError for anything else."""
    if isinstance(text, float | int):
        return float(text)
    parts = text.strip().removesuffix("s").split(":")
    whole = all(part.isdecimal() for part in parts[:-1])
    if len(parts) > 3 or not whole or (len(parts) > 1 and not re.fullmatch(r"\d{1,2}(\.\d*)?", parts[-1])):
        raise ValueError(f"expected seconds or H:MM:SS, got {text!r}")
    try:
        last = float(parts[-1])
    except ValueError:
        raise ValueError(f"expected seconds or H:MM:SS, got {text!r}") from None
    return last + sum(60 ** (place + 1) * int(part) for place, part in enumerate(reversed(parts[:-1])))


StartOption = Annotated[
    float | None, typer.Option(help="Begin at this second, or H:MM:SS.", parser=seconds_of, metavar="SECONDS")
]
EndOption = Annotated[
    float | None, typer.Option(help="End before this second, or H:MM:SS.", parser=seconds_of, metavar="SECONDS")
]
EveryOption = Annotated[int, typer.Option(help="Read each Nth frame.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Presence below which masks stay empty, above 0 and below 1 (default: the model's own)."),
]
SelectionOption = Annotated[
    str | None, typer.Option(help="official: the rule of the model's paper; linked: one path (default: the model's).")
]
FpsOption = Annotated[float, typer.Option(help="Frames per second of a folder of frames.")]
PixelsOption = Annotated[int, typer.Option(help="Refuse frames that hold more pixels.")]
SplitOption = Annotated[str | None, typer.Option(help="Default: the split that is usually reported.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave bad annotations out instead of refusing.")]
BenchmarkArgument = Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARK_FILES[:-1])} or {BENCHMARK_FILES[-1]}.")]
RootArgument = Annotated[Path, typer.Argument(help="The benchmark's folder; `deixis data fixture` shows its layout.")]


def named_values(items: list[str] | None, form: str) -> dict[str, str]:
    from deixis.types import DeixisError

    for item in items or []:
        if not all(item.partition("=")[::2]):
            raise DeixisError(f"expected {form}, got {item!r}")
    return {item.partition("=")[0]: item.partition("=")[2] for item in items or []}
