"""What a file of this folder states of the format that it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deixis.types import MaskTrack
from deixis.writers.output import VideoSource
from deixis.writers.painter import Painter


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write tracks.

    Attributes:
        item: The file or folder below OUT.
        choice: What the web page calls it where it is chosen.
        link: What the page calls it where it is downloaded (a folder as a zip).
        write: Writes it from the tracks alone: path, video, tracks, what is stated of the model, complete.
        paint: Makes what draws it in the one pass over the frames: path, video, tracks.
    """

    item: str
    choice: str
    link: str
    write: Callable[[Path, VideoSource, Sequence[MaskTrack], Mapping[str, Any], bool], None] | None = None
    paint: Callable[[Path, VideoSource, Sequence[MaskTrack]], Sequence[Painter]] | None = None
