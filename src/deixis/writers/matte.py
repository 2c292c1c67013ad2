"""Matte films: one object's mask as the alpha channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deixis.types import MaskTrack
from deixis.writers.encoder import FilmWriter
from deixis.writers.format import Format
from deixis.writers.output import VideoSource, slug


def mattes(folder: Path, film: VideoSource, tracks: Sequence[MaskTrack]) -> list[Matte]:
    """A matte film for each track, in a folder that is made here."""
    folder.mkdir()
    return [Matte(folder / f"{slug(t.expression, i)}.mov", film, i) for i, t in enumerate(tracks)]


class Matte:
    """The film with one object's mask as its alpha channel: ProRes 4444 in a .mov, straight alpha, no sound."""

    def __init__(self, path: Path, film: VideoSource, track: int) -> None:
        options = {"profile": "4444"}
        self._film, self._track = FilmWriter(path, film, "prores_ks", "yuva444p10le", options, even=False), track

    def wants(self, index: int) -> bool:
        return True

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        alpha = masks[self._track].astype(np.uint8) * 255
        self._film.add(seconds, np.dstack([picture, alpha]), "rgba")

    def close(self) -> None:
        self._film.close()


FORMAT = Format(item="matte", choice="Film with alpha", link="Matte films", paint=mattes)
