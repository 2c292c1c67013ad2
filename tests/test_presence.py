"""Presence, time and identity: what J and F do not measure, checked on cases small enough to do by hand."""

from itertools import pairwise

import numpy as np
import pytest

from deixis.metrics.presence import (
    calibration_error,
    identity_swaps,
    interval_iou,
    neighbour_iou,
    no_target_accuracy,
    object_under,
    risk_coverage,
    stability,
    target_accuracy,
)
from deixis.types import DeixisError


def test_no_target_accuracy_asks_only_of_expressions_without_target():
    no_target, empty = [True, True, False, False, False], [True, False, False, True, False]
    assert no_target_accuracy(no_target, empty) == 1 / 2
    assert target_accuracy(no_target, empty) == 2 / 3


def test_accuracies_are_none_where_there_is_nothing_to_judge():
    assert no_target_accuracy([False], [True]) is None
    assert target_accuracy([True], [True]) is None


def test_calibration_error_is_zero_for_honest_probabilities_and_large_for_boasting():
    assert calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert calibration_error([1.0] * 4, [False] * 4) == 1.0
    # Two bins of unequal weight: three answers are 0.1 off, one is 0.4 off.
    assert calibration_error([0.1] * 3 + [0.6], [False] * 3 + [True]) == pytest.approx((3 * 0.1 + 0.4) / 4)


def test_risk_falls_when_confidence_knows_where_the_errors_are():
    wise = risk_coverage([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1])
    assert wise.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert wise.risk.tolist() == [0, 0, 1 / 3, 1 / 2]
    foolish = risk_coverage([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert wise.area < foolish.area


def test_risk_of_equal_confidences_does_not_depend_on_their_order():
    assert risk_coverage([0.5, 0.5, 0.5], [0, 1, 0]).area == risk_coverage([0.5, 0.5, 0.5], [1, 0, 0]).area


@pytest.mark.parametrize("bad", [[float("nan")], [1.5], [-0.1], []])
def test_confidences_that_are_no_probabilities_are_refused(bad):
    with pytest.raises(DeixisError, match=r"0\.\.1"):
        calibration_error(bad, [True] * len(bad))


def test_interval_iou_compares_when_not_where():
    assert interval_iou([True, True, False, False], [False, True, True, False]) == 1 / 3
    assert interval_iou([False, False], [False, False]) == 1.0
    assert interval_iou([True, False], [False, False]) == 0.0


def test_a_swap_is_a_change_of_object_and_gaps_are_none():
    assert identity_swaps(["a", "a", None, "a"]) == 0
    assert identity_swaps(["a", None, "b", "b", "a"]) == 2
    assert identity_swaps([]) == 0


def test_the_object_under_a_mask_is_the_one_it_mostly_covers():
    left, right = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    left[:, :5] = right[:, 5:] = True
    mostly_right = right.copy()
    mostly_right[:, 4] = True
    assert object_under(mostly_right, {"l": left, "r": right}) == "r"
    assert object_under(np.ones((10, 10), bool), {"l": left, "r": right}) is None  # half of each: on neither
    assert object_under(np.zeros((10, 10), bool), {"gone": np.zeros((10, 10), bool)}) is None


def test_stability_is_one_when_the_mask_moves_as_the_object_does():
    masks = [np.roll(np.eye(8, dtype=bool), t, 1) for t in range(4)]
    moves = [neighbour_iou(a, b) for a, b in pairwise(masks)]
    assert stability(moves, moves) == 1.0
    assert stability([1.0, 0.0, 1.0], [1.0, 1.0, 1.0]) == pytest.approx(2 / 3)  # one flicker in three steps
    assert stability([], []) is None
