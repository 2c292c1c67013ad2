"""light: shapes, agreement between one and many, what the words may change, and the promise of every system."""

import numpy as np
import pytest
import torch

from deixis.blocks.paths import REACH, best_paths
from deixis.blocks.proposals import best_beside, peaks, suppress_duplicates
from deixis.encoders.efficientnet_lite import EfficientNetLite, efficient_net_state
from deixis.encoders.tiny_vit import TinyVit, fold, tiny_vit_state
from deixis.losses.proposals import ProposalWeights as Weights
from deixis.losses.proposals import centre_cells, choice_loss, labelled_frame, objectness_loss, proposal_losses
from deixis.systems.light import Proposals, colours_named, filled, head_phrase, light_debug, link, trajectories
from deixis.types import Batch, DeixisError, Expression


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return light_debug().eval()


def clips(b=2, t=3, h=64, w=96):
    frames = torch.randn(b, t, 3, h, w, generator=torch.Generator().manual_seed(1))
    return frames, torch.zeros(b, t, h, w, dtype=torch.bool)


ASKED = [Expression("the dog on the left"), Expression("a red cat"), Expression("something else")]


def test_one_clip_answers_any_number_of_expressions_as_if_each_were_alone(system):
    maps = system.encode(*clips(b=1))
    together = system.decode(maps, ASKED)
    assert together.masks.shape == (3, 3, 6, 16, 24)
    for i, expression in enumerate(ASKED):
        alone = system.decode(maps, [expression])
        torch.testing.assert_close(alone.scores[0], together.scores[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.presence[0], together.presence[i], atol=1e-4, rtol=1e-4)


def test_a_batch_of_two_clips_equals_each_alone(system):
    frames, padding = clips()
    both = system(Batch(frames, padding, tuple(ASKED[:2]), ((64, 96),) * 2))
    for i in range(2):
        one = system(Batch(frames[i : i + 1], padding[i : i + 1], (ASKED[i],), ((64, 96),)))
        torch.testing.assert_close(one.masks[0], both.masks[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.scores[0], both.scores[i], atol=1e-4, rtol=1e-4)


def test_the_maps_that_names_rest_on_are_in_fp32_under_bf16_too(system):
    """In bf16 they are off by so much that another object is chosen where two have nearly equal scores."""
    frames, _ = clips(b=1)
    exact = system.encode_frames(frames[0])
    with torch.autocast("cpu", torch.bfloat16):
        reduced = system.encode_frames(frames[0])
    torch.testing.assert_close(reduced.semantic16, exact.semantic16, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reduced.semantic32, exact.semantic32, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(reduced.deep.float(), exact.deep, atol=1e-5)  # the others are reduced


def test_no_proposal_comes_from_the_padding(system):
    frames, padding = clips(b=1)
    padding[..., 64:] = True
    features = system.encode_frames(frames[0])
    found = system.propose(features, frames[0], padding[0])
    real = found.scores > 0
    assert real.any()
    assert (found.cells[real] % 12 < 8).all()


def test_only_wanted_frames_are_returned(system):
    maps = system.encode(*clips(b=1))
    every, one = system.decode(maps, ASKED[:1]), system.decode(maps, ASKED[:1], wanted=(1,))
    torch.testing.assert_close(one.masks, every.masks[:, 1:2])


def test_every_trained_parameter_gets_a_gradient_and_frozen_ones_none():
    torch.manual_seed(0)
    system = light_debug().train()
    maps = system.encode(*clips())
    similarity, none = system.score_texts(maps.tracks, maps.embedding, ["a dog", "a cat"], torch.arange(2))
    frames, padding = clips()
    features = system.encode_frames(frames.flatten(0, 1))
    cells, pixels, objectness = system.pixel_decoder(features, frames.flatten(0, 1), padding.flatten(0, 1))
    truth = labelled_frame(square(), torch.zeros(64, 96, dtype=torch.bool))
    terms = proposal_losses(system.kernels, 8, cells[:1], pixels[:1], objectness[:1], truth, Weights())
    names = system.namer.log_probabilities(maps.embedding).sum()
    (sum(terms.values()) + similarity.sum() + none.sum() + names).backward()
    without = {n for n, p in system.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    frozen = [p for n, p in system.named_parameters() if n.startswith(("tiny_vit.", "efficient_net.", "text."))]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_a_tiny_frame_with_fewer_cells_than_queries_still_answers(system):
    frames, padding = clips(b=1, t=1, h=32, w=32)
    assert system.decode(system.encode(frames, padding), ASKED[:1]).masks.shape == (1, 1, 6, 8, 8)


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("the black dog on the left", "dog"),
        ("a traffic light", "traffic light"),
        ("the car that moves faster", "car"),
        ("the left one", "the left one"),
        ("Red and white tennis ball near the fence", "tennis ball"),
    ],
)
def test_the_head_noun_is_found(text, head):
    assert head_phrase(text) == head


def test_colour_words_are_matched_as_whole_words():
    rows = colours_named(["a grey cat", "the bored infrared camera", "black and white dog"])
    assert rows.sum(1).tolist() == [1, 0, 2]


def test_peaks_are_local_maxima_first():
    heat = torch.full((1, 5, 6), -9.0)
    heat[0, 1, 1], heat[0, 1, 2], heat[0, 3, 4] = 5.0, 4.0, 1.0
    assert peaks(heat, 2).tolist() == [[7, 22]]  # the neighbour of the highest is no peak


def test_the_mask_of_the_best_neighbour_counts_half_where_the_scores_are_equal_and_not_where_they_differ():
    scores = torch.full((1, 4, 5), 0.1)
    scores[0, 1, 1], scores[0, 2, 2] = 0.5, 0.5
    scores[0, 0, 4], scores[0, 0, 3] = 0.8, 0.4
    beside, weight = best_beside(scores, torch.tensor([[6, 4]]))
    assert beside.tolist() == [[12, 3]]
    assert weight[0].tolist() == pytest.approx([0.5, 0.0], abs=1e-6)


def test_the_neighbour_of_a_cell_in_a_corner_lies_in_the_map():
    beside, weight = best_beside(torch.tensor([[[0.9]]]), torch.tensor([[0]]))
    assert (beside.item(), weight.item()) == (0, 0.0)
    beside, _ = best_beside(torch.arange(12.0).view(1, 3, 4) / 12, torch.tensor([[0, 3, 8, 11]]))
    assert beside.tolist() == [[5, 7, 9, 10]]


def test_a_mask_changes_little_where_the_scores_of_two_neighbouring_cells_change_their_order():
    torch.manual_seed(1)
    system = light_debug().eval()
    frames, padding = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    cells, pixels = torch.randn(1, 32, 8, 12), torch.randn(1, 8, 16, 24)

    def masks(gain):
        """Proposals where only cells 40 and 41 hold something; gain: what the second has more than the first."""
        objectness = torch.full((1, 8, 12), -9.0)
        objectness[0, 3, 4], objectness[0, 3, 5] = 0.0, gain
        system.pixel_decoder.forward = lambda *_: (cells, pixels, objectness)
        system.kernels.fit = lambda flat: torch.zeros(flat.shape[:2])
        found = system.propose(None, frames, padding)
        return found.cells[0, 0].item(), found.masks[0, 0]

    (first, one), (second, other), (_, far) = masks(-1e-3), masks(1e-3), masks(2.0)
    assert (first, second) == (40, 41)
    assert (one - other).abs().max() < 0.02 * one.abs().max()
    assert (far - other).abs().max() > 0.1 * one.abs().max()


def test_of_two_masks_that_overlap_the_better_one_is_kept():
    masks = torch.full((1, 3, 8, 8), -5.0)
    masks[0, 0, :4, :4] = masks[0, 1, :4, :5] = masks[0, 2, 5:, 5:] = 5.0
    kept, scores = suppress_duplicates(masks, torch.tensor([[0.5, 0.9, 0.3]]), 3, limit=0.6, least=0.1)
    assert kept[0, :2].tolist() == [1, 2]
    assert scores[0].tolist() == pytest.approx([0.9, 0.3, 0.0])


def moving_squares(order):
    """Proposals of frames in which three squares move a little; ``order``: which proposal shows which, by frame."""
    masks = torch.full((len(order), 3, 16, 16), -9.0)
    for i, places in enumerate(order):
        for square_number, proposal in enumerate(places):
            if proposal is not None:
                y, x = ((0, 0), (0, 9), (9, 4))[square_number]
                masks[i, proposal, y + i : y + 5 + i, x + i : x + 5 + i] = 9.0
    scores = (masks > 0).flatten(2).any(2).float() * 0.8
    return Proposals(torch.zeros(len(order), 3, dtype=torch.long), masks, scores)


def deep_map(frames):
    """Features that change slowly over the frame, as those of an encoder do."""
    corners = torch.randn(1, 7, 2, 2, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(corners, size=(8, 8), mode="bilinear").expand(frames, -1, -1, -1)


def test_one_object_keeps_one_index_whatever_the_order_of_the_proposals():
    found = moving_squares([(0, 1, 2), (2, 0, 1), (1, 2, 0)])
    masks, scores = link(found, deep_map(3), 1)
    assert (scores > 0).all()
    for track in range(3):
        centres = [(masks[0, i, track] > 0).nonzero().float().mean(0) - i for i in range(3)]
        torch.testing.assert_close(centres[0], centres[1])
        torch.testing.assert_close(centres[0], centres[2])


def test_an_object_that_is_not_proposed_in_one_frame_comes_back_under_its_index():
    masks, scores = link(moving_squares([(0, 1, 2), (None, 0, 1), (2, 0, 1)]), deep_map(3), 1)
    track = next(k for k in range(3) if masks[0, 0, k, 0:5, 0:5].min() > 0)
    assert scores[0, 1, track] == 0
    assert (masks[0, 1, track] < 0).all()
    assert masks[0, 2, track, 2:7, 2:7].min() > 0


def test_a_part_that_fits_the_last_frame_does_not_take_the_track_from_the_whole_object():
    """In frame 1 the object is half hidden; in frames 2 and 3 its part is proposed beside it, with a lower score."""
    masks = torch.full((4, 3, 16, 16), -9.0)
    masks[0, 0, 2:10, 2:10] = masks[1, 0, 2:10, 2:6] = 9.0
    masks[2:, 0, 2:10, 2:6] = masks[2:, 1, 2:10, 2:10] = 9.0
    masks[:, 2, 11:16, 11:16] = 9.0  # something else
    scores = torch.tensor([[0.9, 0.0, 0.5], [0.6, 0.0, 0.5], [0.3, 0.9, 0.5], [0.3, 0.9, 0.5]])
    found, _ = link(Proposals(torch.zeros(4, 3, dtype=torch.long), masks, scores), deep_map(4), 1)
    areas = (found[0] > 0).flatten(2).sum(2)
    assert areas.T.tolist() == [[64, 32, 64, 64], [25, 25, 25, 25], [0, 0, 32, 32]]


def test_paths_may_miss_two_frames_but_not_three():
    apart = np.full((REACH, 6, 2, 2), -1.0, np.float32)
    joined = apart.copy()
    for back in range(REACH):
        joined[back, :, 0, 0] = 0.5
    scores = np.array([[0.9, 0.2], [0.0, 0.2], [0.0, 0.2], [0.9, 0.0], [0.9, 0.0], [0.0, 0.0]])
    assert best_paths(joined, scores)[:, 0].tolist() == [0, -1, -1, 0, 0, -1]
    several = best_paths(apart, np.full((6, 2), 0.5))
    assert (several >= 0).sum() == 2  # as many tracks as a frame has proposals; those that fit nothing stay alone
    scores[4, 0], scores[3, 0] = 0.8, 0.0
    assert best_paths(joined, scores)[:, 0].tolist() == [0, -1, -1, -1, -1, -1]


def test_geometry_of_frames_without_the_track_is_that_of_the_nearest_before():
    geometry = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 1, 5)
    alive = torch.tensor([False, True, False, True]).view(1, 4, 1)
    assert filled(geometry, alive)[0, :, 0, 0].tolist() == [1, 1, 1, 3]
    assert trajectories(geometry, alive)[1][0, 0, -1] == 0.5  # share of the clip in which it is there


def square(top=16, left=32, side=32):
    masks = torch.zeros(1, 64, 96)
    masks[:, top : top + side, left : left + side] = 1
    return masks


def test_the_centre_of_a_ring_lies_on_the_ring():
    ring = torch.zeros(1, 8, 8)
    ring[0, 1:7, 1:7], ring[0, 3:5, 3:5] = 1.0, 0.0
    assert ring.flatten()[centre_cells(ring).item()] == 1


def test_objectness_is_best_at_the_centre():
    truth = labelled_frame(square(), torch.zeros(64, 96, dtype=torch.bool))
    cells = torch.nn.functional.avg_pool2d(truth.masks[:, None], 2)[:, 0]
    centre, losses = centre_cells(cells), []
    for cell in (centre.item(), 0):
        logits = torch.full((8, 12), -5.0)
        logits.view(-1)[cell] = 5.0
        losses.append(objectness_loss(logits, cells, centre, truth.weights, truth.unknown).item())
    assert losses[0] < losses[1] / 5


def test_what_is_not_labelled_is_no_mistake_where_the_truth_is_unknown():
    known, unknown = (labelled_frame(square(), torch.full((64, 96), u)) for u in (False, True))
    cells = torch.nn.functional.avg_pool2d(known.masks[:, None], 2)[:, 0]
    logits = torch.full((8, 12), -5.0)
    logits[7, 0] = 5.0
    centre = centre_cells(cells)
    losses = [objectness_loss(logits, cells, centre, t.weights, t.unknown).item() for t in (known, unknown)]
    assert losses[1] < losses[0] / 2


def test_the_choice_is_right_where_a_right_track_or_for_absent_things_none_is_best():
    right = torch.tensor([[True, False], [False, False]])
    absent, one = torch.tensor([False, True]), torch.ones(2)
    ignored = torch.zeros(2, 2, dtype=torch.bool)
    good = choice_loss(torch.tensor([[9.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, 9.0]), right, ignored, absent, one)
    bad = choice_loss(torch.tensor([[0.0, 9.0], [0.0, 9.0]]), torch.tensor([0.0, 0.0]), right, ignored, absent, one)
    assert good.item() < 0.01
    assert bad.item() > 5


def test_folding_a_batch_norm_changes_nothing():
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 5, 3, bias=False), torch.nn.BatchNorm2d(5).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.normal_(), norm.bias.data.normal_()
    state = {f"c.{k}": v for k, v in conv.state_dict().items()} | {f"n.{k}": v for k, v in norm.state_dict().items()}
    weight, bias = fold(state, "c", "n", norm.eps)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(torch.conv2d(x, weight, bias), norm(conv(x)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("read", [tiny_vit_state, efficient_net_state])
def test_published_weights_with_a_missing_key_are_refused_by_name(read):
    with pytest.raises(DeixisError, match="is missing"):
        read({})


def test_encoders_return_maps_at_their_strides():
    x = torch.randn(1, 3, 64, 96)
    vit = TinyVit((8, 8, 16, 16), (1, 1, 1, 1), (1, 1, 1, 1), (7, 7, 14, 7))(x)
    assert [tuple(level.shape[-2:]) for level in vit] == [(16, 24), (8, 12), (4, 6), (4, 6)]
    levels, names = EfficientNetLite(head=16, names=7)(x)
    assert [tuple(level.shape[1:]) for level in levels] == [(48, 8, 12), (120, 4, 6), (352, 2, 3)]
    assert names.shape == (1, 7, 2, 3)
