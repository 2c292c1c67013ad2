"""Was the right object chosen? T frames, N objects, H W pixels. Used on data where every object's mask is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FOUND = 0.1  # overlap above which an object counts as found (our choice, as in the prototype's table)


def overlap_with_each(chosen: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,) overlap over all frames of a (T, H, W) bool mask with each of (T, N, H, W) bool objects; 0 for empty."""
    both = np.einsum("thw,tnhw->n", chosen, truth, dtype=np.int64, optimize=True)
    either = chosen.sum(dtype=np.int64) + truth.sum((0, 2, 3), dtype=np.int64) - both
    return both / np.maximum(either, 1)


def right_object(chosen: np.ndarray, truth: np.ndarray, referred: Sequence[int]) -> tuple[bool, float]:
    """Whether the mask overlaps the referred object most, and by more than 0.1; and its overlap with that object.

    chosen: (T, H, W) bool, empty for "absent".  truth: (T, N, H, W) bool.  referred: indices; for several, their union
    counts as one object.
    """
    others = [n for n in range(truth.shape[1]) if n not in referred]
    stacked = np.concatenate([truth[:, list(referred)].any(1, keepdims=True), truth[:, others]], axis=1)
    overlaps = overlap_with_each(chosen, stacked)
    return bool(overlaps.argmax() == 0 and overlaps[0] > FOUND), float(overlaps[0])
