"""Pairs of masks (prediction, truth) meant to break a metric: empty, full, one pixel, at borders, holes, 1xN, noise.

Used by the tests and, with many more seeds, by bench/exact_scoring.py.
"""

from __future__ import annotations

import cv2
import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def small_pair(rng: np.random.Generator, largest: int = 64, size: tuple[int, int] | None = None) -> Pair:
    """Two bool masks of one size, every side from 1 to ``largest`` equally likely."""
    if size is None:
        height, width = (int(side) for side in rng.integers(1, largest + 1, 2))
        if rng.random() < 0.1:
            height, width = ((1, width), (height, 1))[rng.integers(2)]
        size = height, width
    truth = shape(rng, size)
    return (disturb(rng, truth) if rng.random() < 0.6 else shape(rng, size)), truth


def large_pair(rng: np.random.Generator, size: tuple[int, int]) -> Pair:
    """Two masks of partial agreement, made of ellipses with a ragged rim, at a size such as 480x854."""
    truth = blobs(rng, size)
    return disturb(rng, truth), truth


def shape(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    mask = np.zeros(size, bool)
    kind = rng.integers(9)
    if kind == 1:
        mask[:] = True
    elif kind == 2:
        mask[rng.integers(height), rng.integers(width)] = True
    elif kind == 3:
        mask = rng.random(size) < rng.choice([0.03, 0.5, 0.97])
    elif kind == 4:  # a box that may touch any border
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
    elif kind == 5:  # full with a hole
        mask[:] = True
        mask[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = False
    elif kind == 6:  # checkerboard: every pixel a boundary
        mask = np.indices(size).sum(0) % 2 == 0
    elif kind == 7:  # one border line
        line = rng.integers(4)
        mask[(0, slice(None), -1, slice(None))[line], (slice(None), 0, slice(None), -1)[line]] = True
    elif kind == 8:
        mask = blobs(rng, size)
    return mask


def blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    y, x = np.ogrid[:height, :width]
    mask = np.zeros(size, bool)
    for _ in range(rng.integers(1, 4)):
        centre_y, centre_x = rng.random(2) * size
        radius_y, radius_x = (0.05 + 0.3 * rng.random(2)) * size
        mask |= ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1
    return mask


def disturb(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Shift, grow or shrink, speckle, or invert."""
    kind = rng.integers(5)
    if kind == 0:
        return np.roll(mask, rng.integers(-6, 7, 2), (0, 1))
    if kind == 1:
        kernel = np.ones(rng.integers(1, 6, 2), np.uint8)
        return (cv2.dilate, cv2.erode)[rng.integers(2)](mask.astype(np.uint8), kernel).astype(bool)
    if kind == 2:
        return mask ^ (rng.random(mask.shape) < 0.02)
    if kind == 3:
        return ~mask
    return mask.copy()
