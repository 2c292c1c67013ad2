"""J and F: DAVIS's golden values, exact agreement with the slow obvious form, and what is refused."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from helpers.mask_pairs import large_pair, small_pair
from helpers.slow_metric import loops_boundary, loops_contour, loops_region, plain_boundary, plain_contour, plain_region
from hypothesis import given, settings
from hypothesis import strategies as st

from deixis.metrics.region_contour import (
    recall_and_decay,
    score_frame,
    score_pairs,
    score_track,
    tolerance_pixels,
)
from deixis.types import DeixisError


def box(size, height, width, top, left):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


DAVIS = (480, 854)
TRUTH = box(DAVIS, 150, 200, 100, 200)
NOTHING = np.zeros(DAVIS, bool)
GOLDEN = {
    "the same": (TRUTH, TRUTH, 1, 1, 8),
    "5 to the right": (box(DAVIS, 150, 200, 100, 205), TRUTH, 0.951220, 1, 8),
    "8 to the right": (box(DAVIS, 150, 200, 100, 208), TRUTH, 0.923077, 1, 8),
    "9 to the right": (box(DAVIS, 150, 200, 100, 209), TRUTH, 0.913876, 0.594286, 8),
    "20 down and right": (box(DAVIS, 150, 200, 120, 220), TRUTH, 0.639344, 0.048571, 8),
    "both empty": (NOTHING, NOTHING, 1, 1, 8),
    "truth empty": (TRUTH, NOTHING, 0, 0, 8),
    "prediction empty": (NOTHING, TRUTH, 0, 0, 8),
    "small frame": (box((64, 64), 20, 20, 12, 12), box((64, 64), 20, 20, 10, 10), 0.680672, 0.075, 1),
    "whole frame has no boundary": (box((64, 64), 64, 32, 0, 0), np.ones((64, 64), bool), 0.5, 0, 1),
    "in the corner": (box((48, 32), 8, 8, 0, 1), box((48, 32), 8, 8, 0, 0), 0.777778, 0.85, 1),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values_of_the_official_tool(case):
    prediction, truth, j, f, radius = GOLDEN[case]
    assert tolerance_pixels(*truth.shape) == radius
    assert score_frame(prediction, truth) == pytest.approx((j, f), abs=5e-7)


def test_fast_form_equals_the_loops_bitwise_on_adversarial_masks():
    rng = np.random.default_rng(4)
    for _ in range(400):
        prediction, truth = small_pair(rng, largest=24)
        assert score_frame(prediction, truth) == (loops_region(prediction, truth), loops_contour(prediction, truth))


def test_fast_form_equals_the_loops_bitwise_at_64_pixels():
    rng = np.random.default_rng(5)
    for _ in range(10):
        prediction, truth = small_pair(rng, size=(64, 64))
        assert score_frame(prediction, truth) == (loops_region(prediction, truth), loops_contour(prediction, truth))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_fast_form_equals_the_loops_bitwise_on_any_masks(data):
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    prediction, truth = (data.draw(arrays.arrays(bool, shape)) for _ in range(2))
    assert score_frame(prediction, truth) == (loops_region(prediction, truth), loops_contour(prediction, truth))


def test_fast_form_equals_the_plain_form_bitwise_on_large_frames():
    rng = np.random.default_rng(6)
    for size in [(480, 854), (333, 127), (479, 640), (1, 700), (700, 1), (200, 64), (200, 65), (1080, 1920)]:
        prediction, truth = large_pair(rng, size)
        assert score_frame(prediction, truth) == (plain_region(prediction, truth), plain_contour(prediction, truth))


def test_plain_form_equals_the_loops():
    rng = np.random.default_rng(7)
    for _ in range(200):
        prediction, truth = small_pair(rng, largest=20)
        rows, columns = np.nonzero(plain_boundary(truth))
        assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == loops_boundary(truth)
        assert plain_region(prediction, truth) == loops_region(prediction, truth)
        assert plain_contour(prediction, truth) == loops_contour(prediction, truth)


def test_tolerance_wider_than_a_machine_word_is_exact():
    # A strip this long has a tolerance above 64 pixels, the length of the words that masks are packed in.
    size = (3, 9000)
    assert tolerance_pixels(*size) > 64
    for shift in (71, 72, 73):
        truth, prediction = box(size, 2, 300, 0, 400), box(size, 2, 300, 0, 400 + shift)
        assert score_frame(prediction, truth) == (plain_region(prediction, truth), plain_contour(prediction, truth))


def test_many_objects_at_once_score_as_they_do_alone():
    rng = np.random.default_rng(8)
    masks = [np.roll(large_pair(rng, (120, 200))[0], i, 0) for i in range(5)] + [np.zeros((120, 200), bool)]
    region, contour = score_pairs(masks[:4], masks[2:])
    assert region.shape == contour.shape == (4, 4)
    for i, prediction in enumerate(masks[:4]):
        for j, truth in enumerate(masks[2:]):
            assert (region[i, j], contour[i, j]) == score_frame(prediction, truth)


def test_void_pixels_count_for_neither_side():
    prediction, truth = box((90, 130), 40, 40, 10, 20), box((90, 130), 40, 40, 22, 33)
    void = box((90, 130), 30, 60, 20, 40)
    assert score_frame(prediction, truth, void) == score_frame(prediction & ~void, truth & ~void)
    assert score_frame(prediction, truth, void) != score_frame(prediction, truth)


def test_a_view_with_strides_scores_as_its_copy():
    rng = np.random.default_rng(10)
    prediction, truth = large_pair(rng, (90, 130))
    assert score_frame(prediction[::-1, ::2], truth[::-1, ::2]) == score_frame(
        prediction[::-1, ::2].copy(), truth[::-1, ::2].copy()
    )


def test_a_track_is_the_mean_of_its_frames():
    track = score_track([TRUTH, NOTHING, TRUTH], [TRUTH, NOTHING, NOTHING])
    assert track.region.tolist() == [1, 1, 0]
    assert (track.j, track.f, track.j_and_f) == (2 / 3, 2 / 3, 2 / 3)


def test_decay_is_the_first_quarter_less_the_last():
    recall, decay = recall_and_decay(np.array([1.0, 1.0, 0.6, 0.6, 0.2, 0.2, 0.1, 0.1]))
    assert recall == 0.5
    assert decay == pytest.approx((1 + 1 + 0.6) / 3 - (0.2 + 0.1 + 0.1) / 3)


@pytest.mark.parametrize(
    ("prediction", "truth", "says"),
    [
        (np.zeros((4, 5), bool), np.zeros((5, 4), bool), "one size"),
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5), bool), r"\(H, W\) bool, got \(4, 5\) uint8"),
        (np.zeros((1, 4, 5), bool), np.zeros((1, 4, 5), bool), r"got \(1, 4, 5\)"),
        (np.zeros((0, 5), bool), np.zeros((0, 5), bool), "hold pixels"),
    ],
)
def test_masks_of_another_kind_are_refused(prediction, truth, says):
    with pytest.raises(DeixisError, match=says):
        score_frame(prediction, truth)


def test_a_track_with_unequal_lengths_is_refused():
    with pytest.raises(DeixisError, match="as many"):
        score_track([TRUTH], [TRUTH, TRUTH])
    with pytest.raises(DeixisError, match="none"):
        score_track([], [])
