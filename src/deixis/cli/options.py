"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deixis.tables import BENCHMARK_FILES, FORMAT_FILES

ModelOption = Annotated[str, typer.Option(help="A name that `deixis models` lists, or a checkpoint file.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
FormatOption = Annotated[str, typer.Option("--as", help=f"Of {', '.join(FORMAT_FILES)}; commas between.")]
StartOption = Annotated[float | None, typer.Option(help="Begin at this second.")]
EndOption = Annotated[float | None, typer.Option(help="End before this second.")]
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
