"""What writers need of a film, the folder that they write to, and the names of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from deixis.out_folder import Output
from deixis.types import Expression

__all__ = ["Output", "VideoSource", "slug"]


class VideoSource(Protocol):
    """What the writers need of a ``Video``."""

    path: Path
    source_size: tuple[int, int]
    rate: float
    start: float
    end: float
    every: int
    pixel_aspect: Fraction
    has_audio: bool
    stream: int
    colours: Any  # video.colour.Colours

    def frames(self) -> Iterator[Any]: ...
    def numbers(self, names: Iterable[str]) -> list[int]: ...
    def file_name(self, name: str) -> str: ...
    def warn(self, text: str, kind: str | None = None, which: str = "") -> None: ...


def slug(expression: Expression, index: int) -> str:
    """A name for files: ``00_a_grey_rhino``."""
    words = "".join(c if c.isalnum() else " " for c in expression.text.lower()).split()
    return f"{index:02d}_" + "_".join(words).encode()[:80].decode(errors="ignore")
