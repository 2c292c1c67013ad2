"""How answers are judged on films with exact truth, and how presence is calibrated."""

import numpy as np
import pytest

from deixis.metrics.choice import overlap_with_each, right_object
from deixis.systems.light import light_debug
from deixis.training.light_calibration import SURE, with_fitted_presence
from deixis.training.measure import (
    NEVER_SURE,
    SentenceScore,
    changes_object,
    chosen_threshold,
    fit_presence,
    sure_bound,
    wilson,
)


def two_objects(frames=16):
    truth = np.zeros((frames, 2, 8, 8), dtype=bool)
    truth[:, 0, :4], truth[:, 1, 4:] = True, True
    return truth


def test_the_object_overlapped_most_is_the_chosen_one():
    truth = two_objects()
    assert right_object(truth[:, 0], truth, [0]) == (True, 1.0)
    assert right_object(truth[:, 1], truth, [0]) == (False, 0.0)
    assert right_object(np.zeros_like(truth[:, 0]), truth, [0]) == (False, 0.0)


def test_several_referred_objects_count_as_one():
    truth = two_objects()
    assert right_object(truth.any(1), truth, [0, 1]) == (True, 1.0)


def test_overlap_is_taken_over_all_frames():
    truth = two_objects(frames=2)
    chosen = truth[:, 0].copy()
    chosen[1] = False
    assert overlap_with_each(chosen, truth).tolist() == [0.5, 0.0]


def test_a_mask_that_moves_to_another_object_is_a_change_and_one_that_vanishes_is_not():
    truth = two_objects()
    stays, moves, vanishes = truth[:, 0].copy(), truth[:, 0].copy(), truth[:, 0].copy()
    moves[8:] = truth[8:, 1]
    vanishes[8:] = False
    assert [changes_object(x, truth) for x in (stays, moves, vanishes)] == [False, True, False]


def test_calibration_recovers_the_temperature_and_shift_that_made_the_facts():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, 20_000)
    there = rng.random(20_000) < 1 / (1 + np.exp(-(logits / 2.0 + 0.7)))
    predicted = 1 / (1 + np.exp(-logits))
    assert fit_presence(predicted, there, 1.0, 0.0) == pytest.approx((2.0, 0.7), abs=0.1)


def test_calibration_starts_from_the_calibration_that_predicted():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, 20_000)
    there = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    predicted = 1 / (1 + np.exp(-(logits / 3.0 + 1.0)))
    assert fit_presence(predicted, there, 3.0, 1.0) == pytest.approx((1.0, 0.0), abs=0.1)


def test_the_threshold_parts_present_from_absent():
    found = [(p, True) for p in np.linspace(0.4, 1.0, 50)]
    absent = list(np.linspace(0.0, 0.2, 50))
    assert 0.2 < chosen_threshold(found, absent, 1.0) <= 0.4


def test_the_threshold_is_no_higher_than_the_wanted_share_of_absent_needs():
    found = [(p, True) for p in np.linspace(0.3, 1.0, 50)]
    absent = [*np.linspace(0.0, 0.2, 95), 0.5, 0.5, 0.5, 0.5, 0.5]
    assert chosen_threshold(found, absent, 0.95) == pytest.approx(0.21)
    assert chosen_threshold(found, absent, 0.5) == pytest.approx(0.11)


def test_wilson_intervals_hold_the_share_and_narrow_with_more_answers():
    low, high = wilson(80, 100)
    assert low < 0.8 < high
    assert wilson(8000, 10_000)[0] > low
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_sure_bound_is_the_least_presence_from_which_enough_is_right() -> None:
    wrong, right = [(0.86 + i / 1000, i % 2 == 0) for i in range(40)], [(0.95 + i / 10000, True) for i in range(100)]
    found = [(0.3, False)] * 500 + wrong + right  # half of those at .86 to .90 are there, and all from .95 on
    bound = sure_bound(found, 0.85, 0.95)
    above = [there for p, there in found if p >= bound]
    assert 0.86 < bound < 0.95
    assert sum(above) / len(above) >= 0.95
    assert sum(above) / len(above) > sum(t for p, t in found if p >= 0.85) / 140
    assert sure_bound(right, 0.85, 0.95) == 0.85  # all that is shown is there: nothing is a guess
    assert sure_bound(wrong, 0.85, 0.95) == NEVER_SURE
    assert sure_bound(right[:19], 0.85, 0.95) == NEVER_SURE  # too few to rest on


def test_a_calibration_states_a_sure_bound_at_or_above_its_threshold() -> None:
    rng = np.random.default_rng(0)
    there = rng.random(600) < 0.6
    logits = np.where(there, 1.5, -1.5) + rng.normal(0, 1.2, 600)
    right = there & (logits > rng.normal(0.3, 0.8, 600))  # the surer, the more often the right thing is shown
    found = [
        SentenceScore(film="f", text="x", kind="class", present=bool(t), right=bool(r), overlap=1.0, empty=False,
                      changed=False, presence=float(1 / (1 + np.exp(-z))))
        for t, r, z in zip(there, right, logits, strict=True)
    ]  # fmt: skip
    config = with_fitted_presence(light_debug().config, found)
    assert config.presence_sure is not None
    assert config.presence_threshold is not None
    assert config.presence_threshold < config.presence_sure < 0.99
    p = 1 / (1 + np.exp(-(logits / config.presence_temperature + config.presence_shift)))
    assert right[p >= config.presence_sure].mean() >= SURE - 0.005
    assert right[p >= config.presence_threshold].mean() < SURE
