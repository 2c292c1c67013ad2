"""What is drawn frame by frame, in one second pass over the film."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Protocol

import numpy as np

from deixis.types import MaskTrack
from deixis.writers.output import VideoSource


class Painter(Protocol):
    """Something that is drawn frame by frame in the second pass over a film."""

    def wants(self, index: int) -> bool: ...
    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None: ...
    def close(self) -> None: ...


def draw(
    film: VideoSource,
    tracks: Sequence[MaskTrack],
    painters: Sequence[Painter],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Read the film again, give every frame that a painter wants to it, and close the painters, also after an error."""
    with ExitStack() as stack:
        for painter in painters:
            stack.callback(painter.close)
        for index, frame in enumerate(islice(film.frames(), len(tracks[0]))):
            wanting = [painter for painter in painters if painter.wants(index)]
            if wanting:
                picture, masks = frame.pixels(), [track.masks[index] for track in tracks]
                for painter in wanting:
                    painter.add(index, frame.seconds, picture, masks)
            if progress is not None:
                progress(index + 1)
