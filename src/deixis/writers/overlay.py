"""The overlay film: each object's mask, contour and words in its own colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from deixis.types import MaskTrack
from deixis.writers.encoder import FilmWriter
from deixis.writers.format import Format
from deixis.writers.lettering import legible
from deixis.writers.output import VideoSource

TRACK_COLOURS = (  # RGB, one an expression, then again from the first (our choice: far apart in hue, bright on film)
    (255, 64, 64), (64, 144, 255), (64, 208, 96), (255, 192, 32), (200, 96, 255), (32, 216, 216), (255, 128, 192),
    (160, 160, 64),
)  # fmt: skip

LABEL_NOTES = {"there": "", "unsure": " (a guess)", "not there": ""}  # after the words of a label


class Overlay:
    """The film with each object's mask, contour and words in its own colour; H.264, the sound kept."""

    def __init__(self, path: Path, film: VideoSource, tracks: Sequence[MaskTrack]) -> None:
        options = {"crf": "18", "preset": "veryfast"}
        self._film = FilmWriter(path, film, "libx264", "yuv420p", options, even=True)
        self._film.keep_sound(film)
        self._labels = [
            Label(t.expression.text, i, TRACK_COLOURS[i % len(TRACK_COLOURS)], film.source_size, LABEL_NOTES[t.verdict])
            for i, t in enumerate(tracks)
        ]

    def wants(self, index: int) -> bool:
        return True

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        picture = picture.copy()
        for i, mask in enumerate(masks):
            tint(picture, mask, TRACK_COLOURS[i % len(TRACK_COLOURS)])
        taken: list[tuple[int, int, int, int]] = []
        for label, mask in zip(self._labels, masks, strict=True):
            if mask.any():
                taken.append(label.put(picture, mask, taken))
        self._film.add(seconds, picture)

    def close(self) -> None:
        self._film.close()


def tint(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Tint a (H, W, 3) picture under a (H, W) bool mask, and draw the mask's contour; changes ``picture``."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = picture[top:bottom, left:right]
    inside = np.ascontiguousarray(mask[top:bottom, left:right]).view(np.uint8)
    tinted = cv2.addWeighted(part, 0.6, np.full_like(part, colour), 0.4, 0)
    cv2.copyTo(tinted, inside, part)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(int(left), int(top)))
    thickness = max(1, round(min(picture.shape[:2]) / 300))
    cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)


class Label:
    """The words of an expression as a small picture, drawn once and put on every frame beside the object."""

    def __init__(
        self, text: str, number: int, colour: tuple[int, int, int], size: tuple[int, int], note: str = ""
    ) -> None:
        text, font = legible(text + note, number, max(10, min(size) / 24))
        text = text.removesuffix(note)
        while font.getlength(text + note) > max(size[1] - 8, 8) and len(text) > 1:
            text = text.rstrip("…")[:-1].rstrip() + "…"
        text += note
        right, bottom = (round(v) for v in font.getbbox(text)[2:])
        patch = Image.new("RGB", (right + 8, bottom + 6), colour)
        dark = sum(colour) > 380  # our choice: black words on bright colours, white on dark ones
        ImageDraw.Draw(patch).text((4, 3), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
        self._patch = np.asarray(patch)[: size[0], : size[1]]

    def put(
        self, picture: np.ndarray, mask: np.ndarray, taken: Sequence[tuple[int, int, int, int]]
    ) -> tuple[int, int, int, int]:
        """Draw above the mask, or lower where another label already is; returns (top, left, bottom, right)."""
        height, width = self._patch.shape[:2]
        top = int(max(0, np.flatnonzero(mask.any(1))[0] - height))
        left = int(min(np.flatnonzero(mask.any(0))[0], picture.shape[1] - width))
        for other in sorted(taken):
            if top < other[2] and top + height > other[0] and left < other[3] and left + width > other[1]:
                top = other[2]
        top = min(top, picture.shape[0] - height)
        picture[top : top + height, left : left + width] = self._patch
        return top, left, top + height, left + width


FORMAT = Format(
    item="overlay.mp4", choice="Overlay film", link="Overlay film",
    paint=lambda path, film, tracks: [Overlay(path, film, tracks)],
)  # fmt: skip
