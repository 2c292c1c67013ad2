"""The contact sheet: six frames a row, one row an expression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from deixis.types import MaskTrack
from deixis.writers.lettering import legible
from deixis.writers.overlay import TRACK_COLOURS, tint

SHEET_COLUMNS = 6  # frames a row of the contact sheet
SHEET_WIDTH = 256  # pixels of one of its frames
SHEET_HEIGHT = 768  # at most (our choice: phones film 9:16; a film two pixels wide would need a sheet of gigabytes)


class ContactSheet:
    """A picture of six frames a row, evenly spread over the film, one row per expression under its words."""

    def __init__(self, path: Path, tracks: Sequence[MaskTrack]) -> None:
        self._path, self._tracks = path, tracks
        frames = len(tracks[0])
        height, width = tracks[0].masks.size
        scale = min(SHEET_WIDTH / width, SHEET_HEIGHT / height)
        self._tile = max(1, round(height * scale)), max(1, round(width * scale))
        spread = np.linspace(0, frames - 1, min(SHEET_COLUMNS, frames)).round().astype(int)
        self._columns = {int(index): column for column, index in enumerate(spread)}
        self._head = 24  # pixels above a row for its words
        rows = len(tracks) * (self._tile[0] + self._head)
        self._sheet = np.full((rows, SHEET_COLUMNS * SHEET_WIDTH, 3), 24, np.uint8)

    def wants(self, index: int) -> bool:
        return index in self._columns

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        height, width = self._tile
        left = self._columns[index] * SHEET_WIDTH
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        for row, mask in enumerate(masks):
            tile = small.copy()
            share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
            tint(tile, share > 0.5, TRACK_COLOURS[row % len(TRACK_COLOURS)])
            top = row * (height + self._head) + self._head
            self._sheet[top : top + height, left : left + width] = tile

    def close(self) -> None:
        picture = Image.fromarray(self._sheet)
        pen = ImageDraw.Draw(picture)
        for row, track in enumerate(self._tracks):
            top = row * (self._tile[0] + self._head)
            words, font = legible(track.expression.text[:120], row, 14)
            words += f"   [{track.verdict}, {track.presence:.2f}]"
            pen.text((6, top + 4), words, fill=TRACK_COLOURS[row % len(TRACK_COLOURS)], font=font)
        picture.save(self._path, "png")
