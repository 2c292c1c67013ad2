"""``deixis.choose``: words choose among any tool's tracks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers.films import colours, moving
from helpers.present import with_presence

import deixis
from deixis.systems.light import light_debug
from deixis.systems.soc import soc_debug
from deixis.types import DeixisError


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return with_presence(light_debug().eval(), 3.0)


@pytest.fixture
def folder(tmp_path):
    for i, picture in enumerate(moving(6, colours=("red", "blue"))):
        cv2.imwrite(str(tmp_path / f"{i:03d}.png"), picture[..., ::-1])
    return tmp_path


def two_tracks(frames=6, shape=(72, 96)):
    red, blue = np.zeros((2, frames, *shape), bool)
    for t in range(frames):
        red[t, 4:28, 4 + t : 28 + t] = blue[t, 38:62, 4 + t : 28 + t] = True
    return [red, blue]


def test_every_expression_gets_probabilities_that_sum_to_its_presence(system, folder):
    found = deixis.choose(folder, two_tracks(), ["the red one", "a dog"], model=system)
    assert [c.expression.text for c in found] == ["the red one", "a dog"]
    for choice in found:
        assert 0.5 < choice.presence < 1
        assert sum(choice.probabilities) == pytest.approx(choice.presence, abs=1e-5)
        assert choice.track == int(np.argmax(choice.probabilities))


def test_below_the_threshold_no_track_is_chosen(system, folder):
    (choice,) = deixis.choose(folder, two_tracks(), "a dog", model=system, threshold=0.999)
    assert choice.track is None
    (choice,) = deixis.choose(folder, two_tracks(), "a dog", model=with_presence(system, -3.0))
    assert choice.presence < 0.5
    assert choice.track is None


def test_of_a_typed_question_the_phrase_alone_is_read_as_by_segment(system, folder):
    asked = ["Where is the red one?", deixis.Expression("Where is the red one?"), "the red one"]
    typed, as_it_stands, phrase = deixis.choose(folder, two_tracks(), asked, model=system, precision="fp32")
    assert typed.expression.text == "Where is the red one?"
    assert typed.presence == pytest.approx(phrase.presence, abs=1e-5)
    assert typed.probabilities == pytest.approx(phrase.probabilities, abs=1e-5)
    assert as_it_stands.presence != pytest.approx(phrase.presence, abs=1e-5)


def test_the_order_of_the_tracks_changes_nothing_but_their_numbers(system, folder):
    tracks = two_tracks()
    (one,) = deixis.choose(folder, tracks, "the red one", model=system, precision="fp32")
    (other,) = deixis.choose(folder, tracks[::-1], "the red one", model=system, precision="fp32")
    assert one.probabilities == pytest.approx(other.probabilities[::-1], abs=1e-4)


def test_more_tracks_than_the_model_proposes_itself_are_fine(system, folder):
    (choice,) = deixis.choose(folder, two_tracks() * 10, "the red one", model=system)
    assert len(choice.probabilities) == 20


def test_tracks_of_segment_can_be_chosen_among(system, folder):
    tracks = deixis.segment(folder, ["the red square", "the blue square"], model=colours())
    assert all(track.present for track in tracks)
    assert len(deixis.choose(folder, tracks, "the red one", model=system)) == 1


def test_a_stretch_whose_length_is_only_estimated_takes_as_many_masks_as_it_has_frames(system, folder):
    stretch = deixis.Video(folder, start=0.05)
    frames = sum(1 for _ in stretch.frames())
    assert frames != stretch.length
    assert len(deixis.choose(stretch, two_tracks(frames), "the red one", model=system)) == 1


@pytest.mark.parametrize(
    ("tracks", "message"),
    [
        ([], "there are no tracks to choose among"),
        ([np.zeros((6, 72, 96), bool)], "no track has a mask"),
        ([np.ones((6, 36, 48), bool)], r"track 0 has masks of \(36, 48\), the video has frames of \(72, 96\)"),
        ([np.ones((5, 72, 96), bool)], "the tracks have 5 frames, but the video has 6; give one mask a frame"),
        ([np.ones((7, 72, 96), bool)], "the tracks have 7 frames, but the video has 6"),
        (
            [np.ones((6, 72, 96), bool), np.ones((7, 72, 96), bool)],
            r"the tracks have \[6, 7\] frames; all must be as long as the video",
        ),
        ([np.ones((6, 72, 96), np.uint8)], "track 0 must be a MaskTrack or bool"),
        ([np.ones((72, 96), bool)], "track 0 must be a MaskTrack or bool"),
        ([np.zeros((0, 72, 96), bool)], "track 0 has masks of"),
    ],
)
def test_tracks_that_do_not_fit_are_one_clear_line(system, folder, tracks, message):
    with pytest.raises(DeixisError, match=message) as caught:
        deixis.choose(folder, tracks, "the red one", model=system)
    assert "\n" not in str(caught.value)


def test_a_system_that_needs_the_words_to_propose_says_so(folder):
    with pytest.raises(DeixisError, match="cannot score given tracks"):
        deixis.choose(folder, two_tracks(), "the red one", model=soc_debug())
