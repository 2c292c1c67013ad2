"""Presence, its time and its calibration, and changes of object: what J and F do not measure.

No-target accuracies follow GRES (CVPR 2023) with "no target" as the positive class; calibration is the usual expected
calibration error and risk-coverage curve; interval IoU, identity swaps and stability are defined here (our choice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deixis.types import DeixisError

BINS = 15  # equal widths of confidence (our choice; the usual number)
SWAP_IOU = 0.5  # a mask is on an object when their IoU is above this (our choice)


def no_target_accuracy(no_target: Sequence[bool], declared_empty: Sequence[bool]) -> float | None:
    """N-acc: the share of expressions that name nothing which were answered with no mask. None where there are none."""
    answers = [empty for nothing, empty in zip(no_target, declared_empty, strict=True) if nothing]
    return float(np.mean(answers)) if answers else None


def target_accuracy(no_target: Sequence[bool], declared_empty: Sequence[bool]) -> float | None:
    """T-acc: the share of expressions that name something that were answered with a mask. None without any."""
    answers = [not empty for nothing, empty in zip(no_target, declared_empty, strict=True) if not nothing]
    return float(np.mean(answers)) if answers else None


def calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    """ECE: |mean confidence - share correct| in bins of equal width over 0..1, weighed by their counts.

    confidence: the probability given to "the object is there"; correct: whether it is.
    """
    p, y = _probabilities(confidence), np.asarray(correct, float)
    place = np.minimum((p * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, p, bins) - np.bincount(place, y, bins))  # sums, so the weights are in them
    return float(gaps[counts > 0].sum() / len(p))


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """risk[i]: mean loss of the i + 1 most confident answers.  coverage[i]: their share.  area: mean risk (AURC)."""

    coverage: np.ndarray
    risk: np.ndarray
    area: float


def risk_coverage(confidence: Sequence[float], loss: Sequence[float]) -> RiskCoverage:
    """How the mean loss (1 - J&F, say) falls when only the most confident answers are kept.

    Answers of equal confidence share the mean of their losses, so that their order in the file does not matter.
    """
    p, losses = _probabilities(confidence), np.asarray(loss, float)
    _, group = np.unique(-p, return_inverse=True)
    shared = np.bincount(group, losses) / np.bincount(group)
    order = np.argsort(group, kind="stable")
    risk = np.cumsum(shared[group[order]]) / np.arange(1, len(p) + 1)
    return RiskCoverage(np.arange(1, len(p) + 1) / len(p), risk, float(risk.mean()))


def _probabilities(confidence: Sequence[float]) -> np.ndarray:
    p = np.asarray(confidence, float)
    if not len(p) or not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        raise DeixisError("confidences must be numbers in 0..1, at least one; a NaN or another scale came")
    return p


def interval_iou(predicted: Sequence[bool], true: Sequence[bool]) -> float:
    """IoU of the frames in which the object was shown and those in which it is; 1 where both are none."""
    shown, there = np.asarray(predicted, bool), np.asarray(true, bool)
    union = np.count_nonzero(shown | there)
    return float(np.count_nonzero(shown & there) / union) if union else 1.0


def object_under(prediction: np.ndarray, masks: Mapping[str, np.ndarray]) -> str | None:
    """The id of the true object that a (H, W) bool mask lies on (highest IoU, above 0.5), or None."""
    best, best_iou = None, SWAP_IOU
    for key, mask in masks.items():
        iou = neighbour_iou(prediction, mask) if mask.any() else 0.0
        if iou > best_iou:
            best, best_iou = key, iou
    return best


def identity_swaps(objects: Sequence[str | None]) -> int:
    """How often a track changes from one true object to another; frames where it lies on none are passed over."""
    shown = [key for key in objects if key is not None]
    return sum(a != b for a, b in pairwise(shown))


def stability(predicted: Sequence[float], true: Sequence[float]) -> float | None:
    """1 - mean |IoU of neighbouring predicted masks - IoU of neighbouring true masks|: 1 where the mask moves as the
    object does, less where it flickers or freezes.

    predicted[t], true[t]: ``neighbour_iou`` of frames t and t + 1. None for fewer than two frames.
    """
    if not len(predicted):
        return None
    return float(1 - np.mean(np.abs(np.asarray(predicted, float) - np.asarray(true, float))))


def neighbour_iou(before: np.ndarray, after: np.ndarray) -> float:
    """IoU of two (H, W) bool masks, of neighbouring frames say; 1 where both are empty."""
    union = np.count_nonzero(before | after)
    return float(np.count_nonzero(before & after) / union) if union else 1.0
