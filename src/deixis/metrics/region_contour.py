"""J (region) and F (contour), the two measures of DAVIS (Perazzi et al., CVPR 2016; arXiv:1704.00675).

H, W pixels of a frame, T frames, P predictions, G true objects, K masks, S 64-bit words a row, h rows of the crop.

The definitions are DAVIS's, to the last bit; only the way to them is ours. A mask is packed to one bit a pixel and cut
to the box that holds all masks of the frame; boundaries, the dilation with a disc and the counts are then a few shifts,
ors and popcounts on that small array. Every count is an integer, so J and F *equal* those of the plain algorithm
(tests/slow_metric.py holds it, loops and all); they are not merely close.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from deixis.types import DeixisError, require

WORD = 64  # bits
TOLERANCE = 0.008  # share of the frame's diagonal within which a boundary pixel is found (read: DAVIS)


def tolerance_pixels(height: int, width: int) -> int:
    """How far apart, in pixels, two boundaries may lie and still agree: ceil(0.008 * diagonal)."""
    return math.ceil(TOLERANCE * math.sqrt(height * height + width * width))


def score_frame(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> tuple[float, float]:
    """Compute J and F of one mask in one frame.

    A frame in which both masks are empty scores 1 and 1.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.
        void: (H, W) bool, pixels that are taken out of both masks first, or None.

    Returns:
        J and F, both in 0..1.

    Raises:
        DeixisError: For other shapes or types.

    Example:
        >>> import numpy as np
        >>> from deixis.metrics.region_contour import score_frame
        >>> truth = np.zeros((60, 80), bool)
        >>> truth[10:30, 10:30] = True
        >>> j, f = score_frame(np.roll(truth, 2, axis=1), truth)
        >>> round(j, 3), round(f, 3)
        (0.818, 0.525)
    """
    region, contour = score_pairs([prediction], [truth], void)
    return float(region[0, 0]), float(contour[0, 0])


def score_pairs(
    predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray], void: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every prediction against every true object of one frame: two (P, G) float64 arrays.

    All masks are (H, W) bool of one size. Each boundary is made once, however many pairs use it.
    """
    masks = [*predictions, *truths]
    if not predictions or not truths:
        return np.zeros((len(predictions), len(truths))), np.zeros((len(predictions), len(truths)))
    height, width = _check(masks, void)
    radius = tolerance_pixels(height, width)
    packed, last_column = _pack(masks, void, radius)
    if packed is None:
        return np.ones((len(predictions), len(truths))), np.ones((len(predictions), len(truths)))
    edges = _boundaries(packed, last_column)
    reach = _dilate(edges, radius)
    k, p = len(masks), len(predictions)
    masks_flat, edges_flat, reach_flat = packed.reshape(k, -1), edges.reshape(k, -1), reach.reshape(k, -1)
    areas, lengths = _count(masks_flat), _count(edges_flat)
    region, contour = np.empty((p, k - p)), np.empty((p, k - p))
    for i in range(p):
        common = _count(masks_flat[p:] & masks_flat[i])
        found = _count(edges_flat[i] & reach_flat[p:])  # predicted boundary near the true one
        covered = _count(edges_flat[p:] & reach_flat[i])  # true boundary near the predicted one
        for j in range(k - p):
            union = areas[i] + areas[p + j] - common[j]
            region[i, j] = common[j] / union if union else 1.0
            contour[i, j] = _f(found[j], lengths[i], covered[j], lengths[p + j])
    return region, contour


def _f(found: int, predicted: int, covered: int, true: int) -> float:
    """F from boundary counts in pixels, with DAVIS's rules for boundaries that are not there."""
    if predicted and true:
        precision, recall = found / predicted, covered / true
    else:
        precision, recall = float(not predicted), float(not true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _check(masks: Sequence[np.ndarray], void: np.ndarray | None) -> tuple[int, int]:
    shape = masks[0].shape
    for mask in masks if void is None else [*masks, void]:
        require(mask.ndim == 2 and mask.dtype == np.bool_, "a mask to score", "(H, W) bool", mask, "threshold it first")
        if mask.shape != shape:
            raise DeixisError(f"masks to score must share one size, got {shape} and {mask.shape}; none is resized")
    if 0 in shape:
        raise DeixisError(f"masks to score must hold pixels, got {shape}")
    return shape[0], shape[1]


def _pack(masks: Sequence[np.ndarray], void: np.ndarray | None, radius: int) -> tuple[np.ndarray | None, int]:
    """K masks as (K, h, S) uint64, column x of the crop at bit x, cut to the box around all of them.

    Every row ends in at least ``radius`` zero bits, so that a row shifted by up to that much as part of one long bit
    string never reaches its neighbours' pixels. Returns None for the array when all masks are empty; then
    where the frame's last column lies, counted from the crop's first.
    """
    height, width = masks[0].shape
    words = -(-width // WORD)
    rows = np.zeros((len(masks), height, words * 8), np.uint8)
    size = -(-width // 8)
    for i, mask in enumerate(masks):
        rows[i, :, :size] = np.packbits(mask if void is None else mask & ~void, axis=1, bitorder="little")
    bits = rows.view("<u8")
    used_rows = np.flatnonzero(bits.any(axis=(0, 2)))
    if not len(used_rows):
        return None, 0
    # One row more on each side: boundary pixels may lie above a mask, and its lowest row needs what is below.
    top, bottom = max(0, used_rows[0] - 1), min(height, used_rows[-1] + 2)
    bits = bits[:, top:bottom]
    columns = np.bitwise_or.reduce(bits, axis=(0, 1))
    used = np.flatnonzero(columns)
    left, right = int(used[0]), int(used[-1]) + 1
    if left and int(columns[left]) & 1:  # the boundary pixel left of the mask falls in the word before
        left -= 1
    free = WORD - int(columns[right - 1]).bit_length()
    guard = -(-max(0, radius - free) // WORD)
    packed = np.zeros((len(masks), bottom - top, right - left + guard), np.uint64)
    packed[:, :, : right - left] = bits[:, :, left:right]
    return packed, width - 1 - left * WORD


def _boundaries(packed: np.ndarray, last_column: int) -> np.ndarray:
    """Boundary maps one pixel wide, (K, h, S): a pixel that differs from its right, lower or lower-right neighbour.

    The frame's last row is compared to the right only, its last column downwards only; the corner of both is never
    boundary. A crop's last row that is not the frame's is background, so it has no boundary, as it should.
    """
    right = packed >> 1  # the neighbour to the right of every pixel, moved onto it
    right[:, :, :-1] |= packed[:, :, 1:] << (WORD - 1)
    edges = packed ^ right
    edges[:, :-1] |= packed[:, :-1] ^ right[:, 1:]
    word, bit = divmod(last_column, WORD)
    if word < packed.shape[2]:
        edges[:, :, word] &= ~np.uint64(1 << bit)
    edges[:, :-1] |= packed[:, :-1] ^ packed[:, 1:]
    return edges


@lru_cache(maxsize=64)
def _disc(radius: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The disc x² + y² <= r² by rows: pairs (half width, the row distances that have it), narrow rows first."""
    rows: dict[int, list[int]] = {}
    for y in range(radius, -1, -1):
        rows.setdefault(math.isqrt(radius * radius - y * y), []).append(y)
    return tuple((half, tuple(distances)) for half, distances in sorted(rows.items()))


def _dilate(edges: np.ndarray, radius: int) -> np.ndarray:
    """Every map grown by the disc, (K, h, S); bits past a row's end are left unclean.

    The disc is a union of rows of growing half width: the maps are widened step by step, and each width is laid on the
    rows above and below that have it.
    """
    k, h, s = edges.shape
    wide = edges.reshape(k, -1).copy()
    reach = np.zeros_like(wide)
    more, less = np.empty_like(wide), np.empty_like(wide)
    reached = 0
    for half, distances in _disc(radius):
        while reached < half:
            # [-a, a] moved by d to both sides is [-a-d, a+d] without a gap as long as d <= 2a + 1.
            step = min(half - reached, 2 * reached + 1, WORD - 1)
            np.left_shift(wide, step, out=more)
            more[:, 1:] |= wide[:, :-1] >> (WORD - step)
            np.right_shift(wide, step, out=less)
            less[:, :-1] |= wide[:, 1:] << (WORD - step)
            wide |= more
            wide |= less
            reached += step
        for distance in distances:
            offset = distance * s
            if distance == 0:
                reach |= wide
            elif distance < h:
                reach[:, offset:] |= wide[:, :-offset]
                reach[:, :-offset] |= wide[:, offset:]
    return reach.reshape(k, h, s)


def _count(bits: np.ndarray) -> list[int]:
    """Set bits of each row of a (K, n) array."""
    return [int(total) for total in np.bitwise_count(bits).sum(axis=1, dtype=np.int64)]


@dataclass(frozen=True, eq=False)
class TrackScore:
    """J and F of one object through T frames: two (T,) float64 arrays in 0..1."""

    region: np.ndarray
    contour: np.ndarray

    @property
    def j(self) -> float:
        """Mean J over the frames."""
        return float(self.region.mean())

    @property
    def f(self) -> float:
        """Mean F over the frames."""
        return float(self.contour.mean())

    @property
    def j_and_f(self) -> float:
        """(mean J + mean F) / 2."""
        return (self.j + self.f) / 2


def score_track(
    predictions: Iterable[np.ndarray], truths: Iterable[np.ndarray], voids: Iterable[np.ndarray | None] | None = None
) -> TrackScore:
    """Score the masks of one object frame by frame; only two numbers a frame are kept.

    Args:
        predictions: T masks, (H, W) bool each.
        truths: T masks.
        voids: T masks of void pixels, or None.

    Returns:
        The `TrackScore`, with J and F of every frame and their means.

    Raises:
        DeixisError: For unequal lengths, or no frame.

    Example:
        >>> import numpy as np
        >>> from deixis.metrics.region_contour import score_track
        >>> masks = [np.eye(8, dtype=bool)] * 3
        >>> score_track(masks, masks).j_and_f
        1.0
    """
    pairs = zip(predictions, truths, strict=True)
    try:
        if voids is None:
            scores = [score_frame(p, g) for p, g in pairs]
        else:
            scores = [score_frame(p, g, v) for (p, g), v in zip(pairs, voids, strict=True)]
    except ValueError as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError("a track's predictions, truths and voids must be as many, one a frame") from error
    if not scores:
        raise DeixisError("a track to score must hold frames, got none")
    region, contour = np.array(scores).T
    return TrackScore(region, contour)


def recall_and_decay(values: np.ndarray) -> tuple[float, float]:
    """DAVIS's statistics of (T,) values: the share above 0.5, and the mean of the first quarter minus that of the last.

    The quarters share their border frames, as in DAVIS's own tool.
    """
    borders = np.floor(np.linspace(0, len(values) - 1, 5) + 0.5 + 1e-10).astype(int)
    quarters = [values[start : end + 1] for start, end in pairwise(borders)]
    return float((values > 0.5).mean()), float(quarters[0].mean() - quarters[-1].mean())
