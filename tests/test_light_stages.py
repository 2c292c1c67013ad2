"""The stages of light: tokens on disk, batches of them, and the split that nothing is trained on."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from deixis.synthetic.cutouts import split_of
from deixis.systems.light import light_debug
from deixis.training.token_batches import (
    ScorerData,
    TokenFolder,
    collate_tokens,
    heights_exchanged,
    mirror_tokens,
    one_word_changed,
    right_tracks,
    scorer_losses,
    sides_exchanged,
    thin,
    token_sample,
    upturn_tokens,
    validate_scorer,
)
from deixis.training.tokens import Said, clip_tokens, overlaps, read_tokens, save_tokens
from deixis.training.view_batches import ViewData, view_sample
from deixis.training.views import fold_of
from deixis.types import DeixisError

SENTENCES = (Said("the red square on the left", "written", (0,)), Said("a dog", "none", ()), Said("it", "place", (1,)))


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return light_debug().eval()


def tokens(system, frames=3, own_masks=True):
    pixels = torch.randn(frames, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    truth = torch.zeros(frames, 2, 64, 96)
    truth[:, 0, 8:40, 8:40] = truth[:, 1, 24:60, 50:90] = 1
    return clip_tokens(system, system.encode_frames(pixels), pixels, truth, SENTENCES, "clip", own_masks=own_masks)


def test_what_is_read_is_what_was_saved_to_half_precision(system, tmp_path):
    made = tokens(system)
    save_tokens(tmp_path / "a.safetensors", made)
    found = read_tokens(tmp_path / "a.safetensors")
    assert found.sentences == made.sentences
    assert found.name == made.name
    for f in fields(made.tracks):
        torch.testing.assert_close(getattr(found.tracks, f.name), getattr(made.tracks, f.name), atol=1e-2, rtol=2e-3)


def test_true_masks_as_tracks_overlap_their_objects_wholly_and_no_other(system):
    found = tokens(system).overlap
    assert found[:2, :2].tolist() == [[1, 0], [0, 1]]
    assert found[2:].max() == 0


@pytest.mark.parametrize("keep", [0, 10, 300, -7])
def test_a_file_of_tokens_that_is_cut_off_says_so_and_what_to_do(system, tmp_path, keep):
    place = tmp_path / "a.safetensors"
    save_tokens(place, tokens(system))
    place.write_bytes(place.read_bytes()[:keep])
    with pytest.raises(DeixisError, match=r"holds no whole tokens .* make the tokens again"):
        read_tokens(place)


def test_the_track_that_overlaps_an_object_is_right_and_what_lies_half_on_it_is_neither():
    right, doubtful = right_tracks(torch.tensor([[0.9, 0.0], [0.3, 0.1], [0.0, 0.8]]), (0,), ScorerData())
    assert right.tolist() == [True, False, False]
    assert doubtful.tolist() == [False, True, False]


def test_of_two_objects_that_a_sentence_refers_to_either_is_right():
    right, _ = right_tracks(torch.tensor([[0.9, 0.0], [0.0, 0.8]]), (0, 1), ScorerData())
    assert right.tolist() == [True, True]


def test_a_mirrored_clip_exchanges_sides_of_places_and_words(system):
    made = tokens(system)
    seen = mirror_tokens(made)
    torch.testing.assert_close(seen.tracks.geometry[..., 0], -made.tracks.geometry[..., 0])
    torch.testing.assert_close(seen.tracks.geometry[..., 1:], made.tracks.geometry[..., 1:])
    assert seen.sentences[0].text == "the red square on the right"
    assert sides_exchanged("Left of the leftmost cup") == "right of the rightmost cup"


def test_one_word_changed_is_another_colour_or_thing_and_the_rest_stays():
    rng = np.random.default_rng(0)
    for _ in range(20):
        changed = one_word_changed("the red car beside a tree", rng)
        assert changed != "the red car beside a tree"
        words = zip(changed.split(), ["the", "red", "car", "beside", "a", "tree"], strict=True)
        assert sum(a != b for a, b in words) == 1
    assert one_word_changed("the thing over there", rng) is None


def test_sentences_whose_thing_is_taken_away_refer_to_nothing(system, tmp_path):
    save_tokens(tmp_path / "a.safetensors", tokens(system))
    folder = TokenFolder([tmp_path])
    data = ScorerData(removed=1.0, swapped=0.0, borrowed=0.0)
    batch = collate_tokens(data, [token_sample({"pictures": folder}, data, 0, 0)])
    written = [i for i, text in enumerate(batch.texts) if "square" in text]
    assert batch.absent[written].all()
    assert batch.removed[written].any(1).all()
    assert not batch.right[written].any()


@pytest.mark.slow
def test_a_clip_turned_upside_down_has_its_heights_and_its_words_exchanged(system):
    made = replace(tokens(system), sentences=(Said("the upper cup on the left, moving up", "place", (0,)),))
    turned = upturn_tokens(made)
    assert turned.sentences[0].text == "the lower cup on the left, moving down"
    assert torch.equal(turned.tracks.geometry[..., 1], -made.tracks.geometry[..., 1])
    assert torch.equal(turned.tracks.geometry[..., [0, 2, 3, 4]], made.tracks.geometry[..., [0, 2, 3, 4]])
    for word in ("top", "bottom", "upper", "lower", "highest", "up", "rising", "above", "below"):  # there and back
        assert heights_exchanged(heights_exchanged(word)) == word


def test_only_tracks_that_no_sentence_needs_are_left_out(system):
    made = tokens(system)
    thinned = [thin(made, SENTENCES[:1], ScorerData(thinned=1.0), np.random.default_rng(seed)) for seed in range(30)]
    gone = torch.stack([t.tracks.absent[0] for t in thinned])
    assert not gone[:, 0].any()  # the red square is what the sentence names
    assert 0 < gone[:, 1].float().mean() < 1
    assert all((t.overlap[1] == 0).all() == absent for t, absent in zip(thinned, gone[:, 1], strict=True))
    every = thin(made, SENTENCES, ScorerData(thinned=1.0), np.random.default_rng(0))
    assert torch.equal(every.tracks.absent[0, :2], torch.tensor([False, False]))


def test_the_scorer_learns_to_choose_and_to_refuse_on_one_clip(system, tmp_path):
    save_tokens(tmp_path / "a.safetensors", tokens(system))
    save_tokens(tmp_path / "b.safetensors", tokens(system, frames=1))
    folder, data = TokenFolder([tmp_path]), ScorerData(removed=0, swapped=0, mirrored=0, noise=0, borrowed=0)
    torch.manual_seed(0)
    learner = light_debug()
    optimiser = torch.optim.AdamW(learner.scorer.parameters(), lr=1e-3)
    losses = []
    for step in range(60):
        batch = collate_tokens(data, [token_sample({"pictures": folder}, data, 0, 2 * step + i) for i in range(2)])
        loss = scorer_losses(None, learner, batch)["choice"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < losses[0]
    scores = validate_scorer({"a": folder}, data, learner.eval())
    assert scores["a_written"] == 1.0
    assert scores["a_absent"] == 1.0


def test_a_clip_is_named_by_the_namer_that_was_trained_on_the_other_half_of_the_pictures(system):
    names = [next(f"still:{i}" for i in range(9) if fold_of(f"coco_small/{i}") == fold) for fold in (0, 1)]
    made = tokens(system)
    clips = [(replace(made, name=name), [(SENTENCES[0], 1.0, False)]) for name in names]
    others = tuple(nudged_namer(system, seed) for seed in (1, 2))
    for clip, other in zip(clips, others, strict=True):
        batch = collate_tokens(ScorerData(), [clip])
        alone = light_debug().eval()
        alone.load_state_dict(system.state_dict())
        alone.namer.load_state_dict(other.state_dict())
        by_fold = scorer_losses(others, system, batch)["choice"]
        torch.testing.assert_close(by_fold, scorer_losses(None, alone, batch)["choice"])
        assert by_fold != scorer_losses(None, system, batch)["choice"]


def nudged_namer(system, seed):
    namer = copy.deepcopy(system.namer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in namer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return namer


def test_clips_of_different_lengths_share_a_batch_and_keep_their_answers(system, tmp_path):
    long, short = tokens(system), tokens(system, frames=1)
    data = ScorerData()
    batch = collate_tokens(data, [(long, [(SENTENCES[0], 1.0, False)]), (short, [(SENTENCES[0], 1.0, False)])])
    both, _ = system.score_texts(batch.tracks, system.namer(batch.tracks), [SENTENCES[0].text] * 2, torch.arange(2))
    for i, one in enumerate((long, short)):
        alone, _ = system.score_texts(one.tracks, system.namer(one.tracks), [SENTENCES[0].text], torch.zeros(1).long())
        share = one.tracks.alive.float().mean(1)  # the share of the clip is what padding changes; the choice stays
        assert both[i].argmax() == alone[0].argmax(), share


def test_overlap_is_taken_over_all_frames():
    masks = torch.zeros(2, 1, 16, 16)
    masks[0] = 1
    truth = torch.ones(2, 1, 64, 64)
    assert overlaps(masks, truth).item() == pytest.approx(0.5)


def test_no_picture_or_film_belongs_to_two_splits_and_development_is_small():
    names = [f"images/{i:012d}.jpg" for i in range(4000)]
    splits = [split_of("voc_animals", name) for name in names]
    assert 0.03 < splits.count("development") / 4000 < 0.07
    assert 0.08 < splits.count("held_out") / 4000 < 0.12
    assert split_of("davis_train", "lucia") == "held_out"
    assert split_of("davis_train", "bus") == "development"
    assert split_of("davis_train", "bear") == "train"


class NamedViews:
    """Stands for ``Views``: what is drawn is the set's name."""

    def __init__(self, **counts):
        names = [name for name, count in counts.items() for _ in range(count)]
        self.of_set = {name: [i for i, n in enumerate(names) if n == name] for name in counts}
        self.names = names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.names[index]


def test_views_are_drawn_by_their_sets_shares_however_many_views_a_set_has():
    data = ViewData(sets=("crowded", "plain", "missing"), shares=(0.6, 0.2, 0.2))
    views = NamedViews(crowded=3, plain=500)
    drawn = [view_sample(views, data, 0, i) for i in range(2000)]
    assert abs(drawn.count("crowded") / 2000 - 0.75) < 0.04
    assert drawn == [view_sample(views, data, 0, i) for i in range(2000)]
    assert {view_sample(NamedViews(other=5), data, 0, i) for i in range(9)} == {"other"}


def test_a_set_without_a_share_is_refused():
    with pytest.raises(DeixisError, match=r"data.shares needs a number for each of the 2 data.sets, got 1"):
        ViewData(sets=("crowded", "plain"), shares=(1.0,))
