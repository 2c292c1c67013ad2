"""A frame, and what every source of frames shares: sizes, limits, notes of what was wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from deixis.types import DeixisError, Size

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000  # our choice: pixels of one frame; 8K film holds 33 million
MAX_COUNTED = 100_000  # things of one kind that are kept apart in a note (our choice: bounds memory)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video, converted to RGB on demand.

    Attributes:
        index: Number of the frame in the stretch that is read.
        name: File stem, or the zero-padded `number`.
        seconds: Time of the frame.
        convert: Decodes the pixels; use `pixels`.
        number: Number of the frame in the whole video, from 0.

    Example:
        >>> import deixis
        >>> frame = next(deixis.Video("film.mp4").frames())
        >>> frame.name, frame.pixels().shape
        ('00000', (96, 160, 3))
    """

    index: int
    name: str
    seconds: float
    convert: Callable[[], np.ndarray] = field(repr=False)
    number: int = 0

    def pixels(self, size: Size | None = None) -> np.ndarray:
        """Return the pixels as RGB.

        Args:
            size: (height, width) to resize to. Default: source size.

        Returns:
            (H, W, 3) uint8.

        Example:
            >>> import deixis
            >>> next(deixis.Video("film.mp4").frames()).pixels((48, 80)).dtype
            dtype('uint8')
        """
        picture = self.convert()
        return picture if size is None else resize(picture, size)


def resize(picture: np.ndarray, size: Size) -> np.ndarray:
    """Resize a picture: area mean when it shrinks, bilinear when it grows.

    Args:
        picture: (H, W, 3) uint8.
        size: (height, width) of the result.

    Returns:
        (height, width, 3) uint8.

    Example:
        >>> import numpy as np
        >>> from deixis.video import resize
        >>> resize(np.zeros((96, 160, 3), np.uint8), (48, 80)).shape
        (48, 80, 3)
    """
    height, width = size
    if picture.shape[:2] == size:
        return picture
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def check_pixels(pixels: int, limit: int, path: Path) -> None:
    """Raise DeixisError where a frame holds more pixels than the limit."""
    if pixels > limit:
        raise DeixisError(
            f"{path}: a frame holds {pixels:,} pixels, more than the limit of {limit:,}; "
            f"if you trust the file, raise it with --max-pixels {pixels}"
        )


class Notes:
    """What was wrong with a film and could be lived with: one line a kind of problem, however often it came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kinds: dict[str, tuple[str, set[str]]] = {}

    def add(self, text: str, kind: str | None = None, which: str = "") -> None:
        """Note a problem. kind: what counts as the same problem (default: the same text).  which: what has it."""
        kind = text if kind is None else kind
        if kind not in self._kinds:
            self._kinds[kind] = (text, {which})
            log.warning("%s: %s", self._path, text)
        elif len(self._kinds[kind][1]) < MAX_COUNTED:
            self._kinds[kind][1].add(which)

    def lines(self) -> list[str]:
        """A line a kind: the first one's text, and how many there are."""
        return [f"{text} ({len(all_):,} in all)" if len(all_) > 1 else text for text, all_ in self._kinds.values()]
