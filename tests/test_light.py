"""light: shapes, agreement between one and many, what the words may change, and the promise of every system."""

import pytest
import torch

from deixis.encoders.efficientnet_lite import EfficientNetLite, efficient_net_state
from deixis.encoders.tiny_vit import TinyVit, fold, tiny_vit_state
from deixis.losses.proposals import ProposalWeights as Weights
from deixis.losses.proposals import assign, heat_loss, mask_losses, middle_cells, truth_of
from deixis.systems.light import colours_named, head_phrase, light_debug, link, peaks
from deixis.types import Batch, DeixisError, Expression, Target


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


def test_no_query_comes_from_the_padding(system):
    frames, padding = clips(b=1)
    padding[..., 64:] = True
    maps = system.encode(frames, padding)
    columns = maps.heat.shape[-1]
    hottest = maps.heat.flatten(2).argmax(-1) % columns
    assert (hottest < 4).all()
    assert (maps.heat[..., 4:] == -20).all()


def test_only_wanted_frames_are_returned(system):
    maps = system.encode(*clips(b=1))
    every, one = system.decode(maps, ASKED[:1]), system.decode(maps, ASKED[:1], wanted=(1,))
    torch.testing.assert_close(one.masks, every.masks[:, 1:2])


def test_every_trained_parameter_gets_a_gradient_and_frozen_ones_none():
    torch.manual_seed(0)
    system = light_debug().train()
    maps = system.encode(*clips())
    scores, similarity, none = system.hear_texts(maps, ["a dog", "a cat"], torch.arange(2))
    (maps.masks.sum() + maps.heat.sum() + maps.seen.sum() + scores.sum() + similarity.sum() + none.sum()).backward()
    for name, parameter in system.named_parameters():
        frozen = name.startswith(("tiny_vit.", "efficient_net.", "text."))
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name


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


def test_colour_words_are_heard_as_whole_words():
    rows = colours_named(["a grey cat", "the bored infrared camera", "black and white dog"])
    assert rows.sum(1).tolist() == [1, 0, 2]


def test_peaks_are_local_maxima_first():
    heat = torch.full((1, 5, 6), -9.0)
    heat[0, 1, 1], heat[0, 1, 2], heat[0, 3, 4] = 5.0, 4.0, 1.0
    assert peaks(heat, 2).tolist() == [[7, 22]]  # the neighbour of the highest is no peak


def test_linking_gives_one_index_to_one_object_when_queries_are_shuffled():
    torch.manual_seed(0)
    masks = torch.full((1, 2, 3, 16, 16), -9.0)
    for q, (y, x) in enumerate([(0, 0), (0, 9), (9, 4)]):
        masks[0, 0, q, y : y + 5, x : x + 5] = 9.0
        masks[0, 1, (q + 1) % 3, y + 1 : y + 6, x + 1 : x + 6] = 9.0
    inside = torch.eye(3)[None].repeat(2, 1, 1)
    inside[1] = inside[0].roll(1, 0)
    geometry = torch.zeros(2, 3, 5)
    order, spare = link(masks, {"inside": inside, "geometry": geometry}, torch.zeros(1, 2, 3))
    assert order[0].tolist() == [[0, 1, 2], [1, 2, 0]]
    assert not spare.any()


def square(size=(64, 96), top=16, left=32, side=32, frames=2):
    masks = torch.zeros(frames, 1, *size, dtype=torch.bool)
    masks[:, :, top : top + side, left : left + side] = True
    return Target(masks, torch.zeros(frames, 1, 4), masks.flatten(2).any(2), torch.tensor([True]))


def test_the_middle_of_a_ring_lies_on_the_ring():
    ring = torch.zeros(1, 8, 8)
    ring[0, 1:7, 1:7], ring[0, 3:5, 3:5] = 1.0, 0.0
    cell = middle_cells(ring).item()
    assert ring.flatten()[cell] == 1


def test_heat_loss_prefers_the_middle_to_anywhere_else():
    truth = truth_of([square()])
    losses = []
    for cell in (truth.middles[0, 0, 0].item(), 0):
        heat = torch.full((1, 2, 4, 6), -5.0)
        heat.view(1, 2, -1)[..., cell] = 5.0
        losses.append(heat_loss(heat, truth).item())
    assert losses[0] < losses[1] / 5


def test_mask_losses_vanish_for_the_true_mask_and_only_for_it():
    truth = truth_of([square()])

    def painted(sign):
        return lambda cells: (truth.quarter[0, :, :1].expand(-1, cells.shape[1], -1, -1) * 2 - 1) * 12 * sign

    good, bad = mask_losses(painted(1), truth), mask_losses(painted(-1), truth)
    assert max(good).item() < 0.02
    assert min(bad).item() > 0.8


def test_a_query_answers_for_the_object_it_lies_on_and_overlaps_best():
    truth = truth_of([square()])
    logits = truth.quarter[:, :, :1] * 20 - 10
    masks = torch.cat([logits, torch.full_like(logits, -10.0), logits], dim=2)
    chosen = truth.middles.repeat(1, 1, 3)
    chosen[..., 2] = 0  # the third paints the object from a cell that lies elsewhere
    right, doubtful, by_frame = assign(masks, chosen, truth, Weights())
    assert right[0, :, 0].tolist() == [True, False, False]
    assert doubtful[0, :, 0].tolist() == [False, True, True]
    torch.testing.assert_close(by_frame[0, 0, :, 0], torch.tensor([1.0, 0.0, 1.0]))


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
