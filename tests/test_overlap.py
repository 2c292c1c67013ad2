"""oIoU, mIoU, P@K and mAP: small sums by hand, and mAP against pycocotools itself."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deixis.metrics.overlap import Overlap, mean_average_precision, mean_iou, overall_iou, overlap, precision_at
from deixis.types import DeixisError, encode_rle


def test_overlap_counts_shared_and_covered_pixels():
    a, b = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    a[:2, :3] = b[1:3, :3] = True
    assert overlap(a, b) == Overlap(3, 9)
    assert overlap(a, b).iou == pytest.approx(1 / 3)


def test_overall_weighs_pixels_and_mean_weighs_samples():
    overlaps = [Overlap(1, 2), Overlap(90, 100)]
    assert overall_iou(overlaps) == 91 / 102
    assert mean_iou(overlaps) == pytest.approx((0.5 + 0.9) / 2, abs=1e-6)


def test_mean_iou_of_nothing_and_nothing_is_one_as_in_the_published_code():
    assert mean_iou([Overlap(0, 0)]) == 1.0
    assert Overlap(0, 0).iou == 0.0


def test_precision_asks_for_strictly_more():
    overlaps = [Overlap(1, 2), Overlap(51, 100), Overlap(49, 100), Overlap(0, 0)]
    assert precision_at(overlaps, 0.5) == 0.25


def random_answers(rng, images=12, queries=7):
    """Truth masks, and for each image scored masks that partly agree; some scores tie."""
    truths, given = [], []
    for _ in range(images):
        truth = np.zeros((24, 30), bool)
        top, left = rng.integers(0, 10, 2)
        truth[top : top + 10, left : left + 12] = True
        truths.append(truth)
        masks = [np.roll(truth, rng.integers(-4, 5, 2), (0, 1)) for _ in range(queries)]
        given.append([(round(float(rng.random()), 1), mask) for mask in masks])
    return truths, given


def coco_map(truths, given):
    table = COCO()
    table.dataset = {
        "images": [{"id": i, "height": 24, "width": 30} for i in range(len(truths))],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "area": int(truth.sum()),
             "segmentation": encode_rle(truth), "bbox": coco.toBbox(encode_rle(truth)).tolist()}
            for i, truth in enumerate(truths)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        table.createIndex()
        answers = [
            {"image_id": i, "category_id": 1, "segmentation": encode_rle(mask), "score": score}
            for i, masks in enumerate(given)
            for score, mask in masks
        ]
        evaluation = COCOeval(table, table.loadRes(answers), "segm")
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(8))
def test_map_equals_pycocotools(seed):
    truths, given = random_answers(np.random.default_rng(seed))
    scores = [np.array([score for score, _ in masks]) for masks in given]
    ious = [
        coco.iou([encode_rle(mask) for _, mask in masks], [encode_rle(truth)], [0])[:, 0]
        for truth, masks in zip(truths, given, strict=True)
    ]
    assert mean_average_precision(scores, ious) == pytest.approx(coco_map(truths, given), abs=1e-12)


def test_map_of_perfect_and_of_useless_answers():
    assert mean_average_precision([np.array([0.9])] * 3, [np.array([1.0])] * 3) == pytest.approx(1.0)
    assert mean_average_precision([np.array([0.9])] * 3, [np.array([0.1])] * 3) == 0.0


def test_masks_of_unequal_size_are_refused():
    with pytest.raises(DeixisError, match="one size"):
        overlap(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
