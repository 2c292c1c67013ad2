"""Overlap of masks in single frames, as A2D-Sentences, JHMDB-Sentences and RefCOCO report it: oIoU, mIoU, P@K, mAP.

A sample is one expression and one frame, with exactly one true mask; a model answers with one or more scored masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deixis.types import DeixisError, require

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
COCO_IOUS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # answers a sample (COCO)
SMOOTH = 1e-6  # added to both sides of each ratio in mIoU, as published code does (read)


@dataclass(frozen=True)
class Overlap:
    """Pixels two masks share, and pixels either covers."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 0 where both masks are empty, as in the published code."""
        return self.intersection / self.union if self.union else 0.0


def overlap(prediction: np.ndarray, truth: np.ndarray) -> Overlap:
    """Count the pixels of two (H, W) bool masks of one size."""
    for mask in (prediction, truth):
        require(mask.ndim == 2 and mask.dtype == np.bool_, "a mask to score", "(H, W) bool", mask, "threshold it first")
    if prediction.shape != truth.shape:
        raise DeixisError(f"masks to score must share one size, got {prediction.shape} and {truth.shape}")
    return Overlap(int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(prediction | truth)))


def overall_iou(overlaps: Sequence[Overlap]) -> float:
    """oIoU: all intersections over all unions; large objects weigh more."""
    union = sum(o.union for o in overlaps)
    return sum(o.intersection for o in overlaps) / union if union else 0.0


def mean_iou(overlaps: Sequence[Overlap]) -> float:
    """mIoU: the mean over samples of (intersection + 1e-6) / (union + 1e-6)."""
    return float(np.mean([(o.intersection + SMOOTH) / (o.union + SMOOTH) for o in overlaps]))


def precision_at(overlaps: Sequence[Overlap], threshold: float) -> float:
    """P@K: the share of samples whose IoU is strictly above the threshold."""
    return float(np.mean([o.iou > threshold for o in overlaps]))


def mean_average_precision(scores: Sequence[np.ndarray], ious: Sequence[np.ndarray]) -> float:
    """COCO's mAP over IoU 0.50:0.05:0.95 for samples with one true mask each, without classes.

    scores[i], ious[i]: one value for each answer to sample i. Equal to pycocotools' COCOeval (segm, useCats=0, area
    all, maxDets 100): in a sample the highest score that reaches the threshold takes the true mask, all others are
    false; all answers are then ranked together, and precision, made monotone, is read at 101 recalls.
    """
    ranked_scores, ranked_hits = [], []
    for sample_scores, sample_ious in zip(scores, ious, strict=True):
        order = np.argsort(-np.asarray(sample_scores, float), kind="stable")[:MAX_DETECTIONS]
        reaches = np.asarray(sample_ious, float)[order] >= np.minimum(COCO_IOUS, 1 - 1e-10)[:, None]  # (10, answers)
        first = np.cumsum(reaches, axis=1) == 1
        ranked_scores.append(np.asarray(sample_scores, float)[order])
        ranked_hits.append(reaches & first)
    order = np.argsort(-np.concatenate(ranked_scores), kind="stable")
    hits = np.concatenate(ranked_hits, axis=1)[:, order]  # (10, all answers)
    return float(np.mean([_average_precision(row, len(scores)) for row in hits]))


def _average_precision(hits: np.ndarray, truths: int) -> float:
    if not len(hits):
        return 0.0
    found = np.cumsum(hits)
    recall = found / truths
    precision = found / (np.arange(len(hits)) + 1 + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, COCO_RECALLS, side="left")
    return float(np.where(at < len(hits), precision[np.minimum(at, len(hits) - 1)], 0.0).mean())
