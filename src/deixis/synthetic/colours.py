"""Colours: which name a pixel has, and how a cut-out is dyed."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from deixis.synthetic.cutouts import Patch

# ---- colours

COLOUR_NAMES = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
# Skin and hair read as these: never a word for a person's clothes.
SKIN_COLOURS = ("orange", "brown", "pink", "grey", "purple")


@lru_cache(maxsize=1)
def _colour_tables() -> tuple[np.ndarray, np.ndarray]:
    """Two (32768, C) bool tables over RGB quantised to 5 bits: certainly this colour; perhaps this colour."""
    levels = (np.arange(32, dtype=np.float32) * 8 + 4) / 255
    r, g, b = (channel.ravel() for channel in np.meshgrid(levels, levels, levels, indexing="ij"))
    value, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    chroma = value - low
    s = chroma / np.maximum(value, 1e-6)
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(value == r, (g - b) / safe % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60

    def hues(low_hue: float, high_hue: float) -> np.ndarray:
        """Hue between two angles in degrees, through 0 when the first is larger."""
        return (hue >= low_hue) & (hue <= high_hue) if low_hue < high_hue else (hue >= low_hue) | (hue <= high_hue)

    vivid, tinted = (s > 0.5) & (value > 0.35), (s > 0.2) & (chroma > 0.06)
    sure = [
        (value < 0.2) | ((value < 0.26) & (s < 0.25)),
        (s < 0.10) & (value > 0.80),
        (s < 0.12) & (value > 0.34) & (value < 0.66),
        vivid & hues(346, 9) & (s > 0.6),
        vivid & hues(19, 36) & (value > 0.7) & (s > 0.65),
        vivid & hues(47, 63) & (value > 0.55),
        vivid & hues(85, 160),
        vivid & hues(200, 246),
        vivid & hues(264, 298),
        hues(315, 352) & (s > 0.22) & (s < 0.65) & (value > 0.75),
        hues(12, 34) & (s > 0.4) & (s < 0.85) & (value > 0.22) & (value < 0.56),
    ]
    perhaps = [
        value < 0.4,
        (s < 0.3) & (value > 0.6),
        (s < 0.3) & (value > 0.18) & (value < 0.92),
        tinted & hues(325, 22),
        tinted & hues(6, 50) & (value > 0.4),
        tinted & hues(34, 80) & (value > 0.3),
        tinted & hues(60, 185) & (value > 0.12),
        tinted & hues(170, 270) & (value > 0.12),
        tinted & hues(240, 335) & (value > 0.12),
        (s > 0.1) & hues(280, 25) & (value > 0.5),
        (s > 0.15) & hues(345, 52) & (value > 0.1) & (value < 0.85),
    ]
    certain = np.stack(sure, axis=-1)
    return certain, np.stack(perhaps, axis=-1) | certain


def colour_shares(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (P, 3) uint8 RGB pixels, the shares that certainly are, and perhaps are, each of COLOURS: (C,), (C,)."""
    if not len(pixels):
        return np.zeros(len(COLOUR_NAMES)), np.ones(len(COLOUR_NAMES))
    q = pixels[:: max(1, len(pixels) // 1500)].astype(np.int32) >> 3
    index = q[:, 0] * 1024 + q[:, 1] * 32 + q[:, 2]
    certain, perhaps = _colour_tables()
    return certain[index].mean(axis=0), perhaps[index].mean(axis=0)


# Hue in degrees, least saturation, largest saturation, factor and offset of value (all 0..1): our choice.
DYES: dict[str, tuple[float, float, float, float, float]] = {
    "black": (0, 0.0, 0.15, 0.22, 0.0), "white": (0, 0.0, 0.05, 0.3, 0.7), "grey": (0, 0.0, 0.06, 0.35, 0.32),
    "red": (358, 0.75, 1.0, 0.55, 0.4), "orange": (27, 0.8, 1.0, 0.4, 0.6), "yellow": (55, 0.7, 1.0, 0.4, 0.6),
    "green": (122, 0.6, 1.0, 0.55, 0.35), "blue": (224, 0.65, 1.0, 0.55, 0.4), "purple": (281, 0.6, 1.0, 0.5, 0.4),
    "pink": (334, 0.3, 0.5, 0.25, 0.75), "brown": (23, 0.55, 0.75, 0.35, 0.22),
}  # fmt: skip


def a_dye(rng: np.random.Generator) -> str:
    return list(DYES)[int(rng.integers(len(DYES)))]


def dye(patch: Patch, colour: str) -> Patch:
    """The cut-out in a plain colour, its light and shade kept."""
    hue, least, most, factor, offset = DYES[colour]
    hsv = cv2.cvtColor(patch.rgb, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = hue / 2
    hsv[..., 1] = 255 * (least + (most - least) * hsv[..., 1] / 255)
    hsv[..., 2] = 255 * np.clip(offset + factor * hsv[..., 2] / 255, 0, 1)
    return replace(patch, rgb=cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))
