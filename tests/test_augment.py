"""Augmentation keeps frames, masks, boxes, flow and words in agreement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deixis.synthetic.scene import Sentence, SyntheticVideo
from deixis.training.augment import AugmentConfig, augment, boxes_of, crop, flip, jitter, mirror_words, resize_video
from deixis.types import DeixisError

RED, BLUE = (210, 30, 30), (30, 60, 210)


def film(text: str = "the red box on the left") -> SyntheticVideo:
    """A red box on the left that moves down, a blue one on the right that stands, 4 frames of 48 x 80."""
    frames, masks = np.full((4, 48, 80, 3), 128, np.uint8), np.zeros((4, 2, 48, 80), bool)
    flow = np.zeros((3, 48, 80, 2), np.float32)
    for t in range(4):
        masks[t, 0, 10 + 4 * t : 22 + 4 * t, 8:24] = True
        masks[t, 1, 16:32, 52:72] = True
        frames[t][masks[t, 0]], frames[t][masks[t, 1]] = RED, BLUE
        if t < 3:
            flow[t][masks[t, 0]] = (2, 4)
    return SyntheticVideo(
        frames, masks, (Sentence(text, "colour", (0,)), Sentence("the blue box", "colour", (1,))), flow=flow
    )


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the bright dog on the left", "the bright dog on the right"),
        ("the leftmost cup", "the rightmost cup"),
        ("Left-hand lane, upper-right sign", "Right-hand lane, upper-left sign"),
        ("a car turning left, then right", "a car turning right, then left"),
        ("copyright on the upright, cleft stone", "copyright on the upright, cleft stone"),
        ("the cat right behind the one on the right", "the cat right behind the one on the left"),
        ("moves right behind the bus", "moves left behind the bus"),
        ("the dog that left", "the dog that left"),
        ("the dog that is just left of the tree", "the dog that is just right of the tree"),
        ("the bag left behind on the left side", "the bag left behind on the right side"),
        ("RIGHT ONE", "LEFT ONE"),
        ("turning counter-clockwise", "turning clockwise"),
        ("spins clockwise", "spins counterclockwise"),
    ],
)
def test_a_mirror_swaps_left_and_right_as_whole_words_that_name_a_side(text: str, mirrored: str) -> None:
    assert mirror_words(text) == mirrored


@given(
    st.lists(
        st.sampled_from(["left", "right", "leftmost", "the", "bright", "dog", "RIGHT", "Left", "lefthand"]), max_size=9
    )
)
def test_a_mirror_of_a_mirror_is_the_sentence(words: list[str]) -> None:
    text = " ".join(words)
    assert mirror_words(mirror_words(text)) == text


def test_a_flip_keeps_pixels_masks_boxes_and_flow_together() -> None:
    before, after = film(), flip(film())
    assert (after.frames[after.masks[:, 0]] == RED).all()
    assert (after.frames[after.masks[:, 1]] == BLUE).all()
    expected = boxes_of(before.masks)
    expected[..., 0] = 1 - expected[..., 0]
    np.testing.assert_allclose(boxes_of(after.masks), expected, atol=1e-6)
    assert after.flow is not None
    assert (after.flow[0][after.masks[0, 0]] == (-2, 4)).all()
    assert after.sentences[0].text == "the red box on the right"


def test_boxes_hold_centre_and_size_as_shares_and_are_zero_where_nothing_is_visible() -> None:
    masks = np.zeros((1, 2, 20, 40), bool)
    masks[0, 0, 5:15, 10:30] = True
    np.testing.assert_allclose(boxes_of(masks)[0], [[0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0]])


def test_a_crop_cuts_everything_alike_and_refuses_a_window_outside() -> None:
    after = crop(film(), 8, 4, 36, 60)
    assert after.frames.shape == (4, 36, 60, 3)
    assert (after.frames[after.masks[:, 0]] == RED).all()
    np.testing.assert_array_equal(after.masks, film().masks[:, :, 8:44, 4:64])
    with pytest.raises(DeixisError, match="must lie within 48x80"):
        crop(film(), 20, 0, 40, 40)


def test_a_resize_scales_masks_with_frames_and_flow_with_pixels() -> None:
    after = resize_video(film(), (96, 160))
    assert after.frames.shape == (4, 96, 160, 3)
    np.testing.assert_allclose(boxes_of(after.masks), boxes_of(film().masks), atol=0.02)
    assert after.flow is not None
    assert (after.flow[0][40, 30] == (4, 8)).all()
    smaller = resize_video(film(), (24, 40))
    np.testing.assert_allclose(boxes_of(smaller.masks), boxes_of(film().masks), atol=0.04)


def test_a_film_without_objects_can_be_resized() -> None:
    empty = SyntheticVideo(
        np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 0, 16, 16), bool), (Sentence("a cat", "none", ()),)
    )
    assert resize_video(empty, (8, 8)).masks.shape == (2, 0, 8, 8)


def test_light_changes_no_mask_and_no_sentence_and_the_whole_film_alike() -> None:
    before = film()
    after = jitter(before, 1.1, 0.9, 1.1)
    assert after.sentences == before.sentences
    np.testing.assert_array_equal(after.masks, before.masks)
    reds = after.frames[after.masks[:, 0]]
    assert (reds == reds[0]).all()
    assert reds[0][0] > 2 * max(reds[0][1], reds[0][2])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_what_augment_draws_leaves_every_sentence_true(seed: int) -> None:
    after = augment(film(), np.random.default_rng(seed), AugmentConfig(size=(64, 96)))
    assert after.frames.shape == (4, 64, 96, 3)
    assert after.masks.shape == (4, 2, 64, 96)
    boxes = boxes_of(after.masks)
    side = "left" if boxes[0, 0, 0] < boxes[0, 1, 0] else "right"
    assert after.sentences[0].text == f"the red box on the {side}"
    red, blue = (after.frames[after.masks[:, k]].mean(axis=0) for k in (0, 1))
    assert red[0] > 1.8 * red[2]
    assert blue[2] > 1.8 * blue[0]
    assert (boxes[..., 2:] > 0).all(), "a window must not lose an object"


def test_augment_is_the_same_for_the_same_seed() -> None:
    one, two = (augment(film(), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one.frames, two.frames)
    assert one.sentences == two.sentences
