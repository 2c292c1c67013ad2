"""Single frames: A2D-Sentences, JHMDB-Sentences, RefCOCO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from deixis.benchmarks.pngs import checked_mask
from deixis.benchmarks.results import ANSWERS, read_answers
from deixis.benchmarks.samples import Benchmark
from deixis.metrics import overlap, presence
from deixis.metrics.summary import SCORES_VERSION, Measure, Row, Scores, Value, bootstrap, incomplete_remark, summarise
from deixis.types import encode_rle

# --- single frames: A2D-Sentences, JHMDB-Sentences, RefCOCO -----------------------------------------------------------


def score_answers(benchmark: Benchmark, results: Path) -> Scores:
    """P@K, oIoU and mIoU of the highest-scored mask of each sample; mAP over all answers (legacy) and over it alone."""
    path = results / ANSWERS
    answers = read_answers(benchmark, path)
    rows, scores, ious = [], [], []
    assert benchmark.truth is not None
    for sample in benchmark.samples:
        assert sample.scored is not None
        assert sample.objects is not None
        truth = benchmark.truth(sample.video, sample.scored[0])
        own = truth.union(sample.objects)
        given = sorted(answers[sample.id], key=lambda answer: -answer[0])
        name = f"{path}: {sample.id}"
        masks = [checked_mask(rle, truth.size, name) for _, rle in given]
        best = overlap.overlap(masks[0], own)
        scores.append(np.array([score for score, _ in given]))
        ious.append(coco.iou([encode_rle(mask) for mask in masks], [encode_rle(own)], [0])[:, 0])
        values: dict[str, Value] = {
            "IoU": best.iou,
            "intersection": best.intersection,
            "union": best.union,
            "answers": len(given),
            "score": given[0][0],
        }
        rows.append(Row(video=sample.video.id, id=sample.id, text=sample.text, values=values, worst=sample.scored[0]))
    measures: dict[str, Measure] = {
        "mIoU": lambda row: (
            ((row.number("intersection") or 0) + overlap.SMOOTH) / ((row.number("union") or 0) + overlap.SMOOTH),
            1.0,
        ),
        "oIoU": lambda row: (row.number("intersection") or 0.0, row.number("union") or 0.0),
    }
    measures |= {f"P@{threshold}": _above(threshold) for threshold in overlap.PRECISION_AT}
    summary = summarise(rows, measures)
    first = [np.argsort(-s, kind="stable")[:1] for s in scores]
    legacy = summary["mAP"] = overlap.mean_average_precision(scores, ious)
    strict = summary["strict mAP"] = overlap.mean_average_precision(
        [s[i] for s, i in zip(scores, first, strict=True)], [o[i] for o, i in zip(ious, first, strict=True)]
    )
    intervals = bootstrap(rows, measures)
    remarks = [
        f"mAP ranks all answers of a model ({100 * legacy:.2f}); over the one answer that a user gets it is"
        f" {100 * strict:.2f}"
    ]
    sure = np.array([row.number("score") or 0.0 for row in rows])
    if sure.min() >= 0 and sure.max() <= 1:
        losses = [1 - (row.number("IoU") or 0.0) for row in rows]
        summary["score ECE"] = presence.calibration_error(sure.tolist(), [loss < 0.5 for loss in losses])
        summary["risk-coverage area"] = presence.risk_coverage(sure.tolist(), losses).area
        remarks.append("score ECE holds the best answer's score against 'its IoU is above 0.5'")
    return Scores(
        benchmark=benchmark.name, split=benchmark.split, headline="mIoU", row_key="IoU",
        protocol=f"IoU of single frames, version {SCORES_VERSION}", summary=summary, intervals=intervals,
        rows=tuple(rows),
        counts=benchmark.counts, complete=benchmark.complete,
        remarks=(*remarks, *benchmark.notes, *incomplete_remark(benchmark.complete)),
    )  # fmt: skip


def _above(threshold: float) -> Measure:
    return lambda row: (float((row.number("IoU") or 0.0) > threshold), 1.0)
