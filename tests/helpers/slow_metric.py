"""J and F written from their definitions, to be read rather than run: the reference that the fast form must equal.

``loops_*`` follow the text of DAVIS's definitions pixel by pixel. ``plain_*`` are the same steps on whole frames
(boundary map, dilation with the disc by OpenCV), fast enough for 480p and 1080p; the tests show that they equal the
loops.
"""

from __future__ import annotations

import math

import cv2
import numpy as np


def tolerance(height: int, width: int) -> int:
    return math.ceil(0.008 * math.sqrt(height**2 + width**2))


def f_measure(found: int, predicted: int, covered: int, true: int) -> float:
    if predicted == 0 and true > 0:
        precision, recall = 1.0, 0.0
    elif predicted > 0 and true == 0:
        precision, recall = 0.0, 1.0
    elif predicted == 0 and true == 0:
        precision, recall = 1.0, 1.0
    else:
        precision, recall = found / predicted, covered / true
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def loops_region(prediction: np.ndarray, truth: np.ndarray) -> float:
    intersection = union = 0
    for p, g in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        intersection += p and g
        union += p or g
    return intersection / union if union else 1.0


def loops_boundary(mask: np.ndarray) -> set[tuple[int, int]]:
    """Pixels (row, column) that differ from their right, lower or lower-right neighbour."""
    height, width = mask.shape
    rows = mask.tolist()
    boundary = set()
    for y in range(height):
        for x in range(width):
            here = rows[y][x]
            if y == height - 1 and x == width - 1:
                continue
            if y == height - 1:
                differs = here != rows[y][x + 1]
            elif x == width - 1:
                differs = here != rows[y + 1][x]
            else:
                differs = here != rows[y][x + 1] or here != rows[y + 1][x] or here != rows[y + 1][x + 1]
            if differs:
                boundary.add((y, x))
    return boundary


def loops_contour(prediction: np.ndarray, truth: np.ndarray) -> float:
    radius = tolerance(*truth.shape)
    disc = [
        (y, x)
        for y in range(-radius, radius + 1)
        for x in range(-radius, radius + 1)
        if x * x + y * y <= radius * radius
    ]
    predicted, true = loops_boundary(prediction), loops_boundary(truth)

    def near(pixel: tuple[int, int], others: set[tuple[int, int]]) -> bool:
        return any((pixel[0] + y, pixel[1] + x) in others for y, x in disc)

    found = sum(near(pixel, true) for pixel in predicted)
    covered = sum(near(pixel, predicted) for pixel in true)
    return f_measure(found, len(predicted), covered, len(true))


def plain_region(prediction: np.ndarray, truth: np.ndarray) -> float:
    union = np.sum(prediction | truth)
    return float(np.sum(prediction & truth) / union) if union else 1.0


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    """The boundary map of a whole frame, (H, W) bool."""
    boundary = np.zeros_like(mask)
    boundary[:-1, :-1] = (
        (mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1]) | (mask[:-1, :-1] ^ mask[1:, 1:])
    )
    boundary[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    boundary[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return boundary


def plain_contour(prediction: np.ndarray, truth: np.ndarray) -> float:
    radius = tolerance(*truth.shape)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x * x + y * y <= radius * radius).astype(np.uint8)
    predicted, true = plain_boundary(prediction), plain_boundary(truth)
    near_predicted = cv2.dilate(predicted.astype(np.uint8), disc)
    near_true = cv2.dilate(true.astype(np.uint8), disc)
    found, covered = np.sum(predicted * near_true), np.sum(true * near_predicted)
    return f_measure(int(found), int(np.sum(predicted)), int(covered), int(np.sum(true)))
