"""The frozen conv-CLIP solution keeps its promises: clips do not mix, films are watched whole, everything learns but
the tower; its losses match by hand; and it runs from the recipe to the score. Small random models suffice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clips import batch, clip, close
from helpers.films import moving, write_folder
from helpers.present import with_presence
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deixis import systems, weights
from deixis.benchmarks import open_benchmark, write_fixture
from deixis.blocks.levels import ClipTokens
from deixis.encoders.clip_vit import ClipVit
from deixis.encoders.conv_clip import ConvClip
from deixis.encoders.frozen import save_tower
from deixis.encoders.tokenizers import word_tokenizer
from deixis.inference import segment
from deixis.linking import Linking, Presence
from deixis.losses import referred_objects, terms
from deixis.losses.points import dice_costs, entropy_costs, sample_points, uncertain_points
from deixis.losses.referred_objects import Matched, ReferredLossConfig, referred_objects_loss, similarity_loss
from deixis.metrics.evaluate import score_benchmark
from deixis.predict import predict
from deixis.systems.conv_clip_mevis import (
    BiAttention,
    ConvClipMevis,
    ConvClipMevisConfig,
    VideoDecoder,
    WindowEncoder,
    aligned_slots,
    attention_mask,
)
from deixis.tracks import TrackBuilder, select
from deixis.training.clips import TrainingClip
from deixis.training.loop import train
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes import find_recipe
from deixis.training.recipes.conv_clip_mevis import cut
from deixis.training.tower_model import TowerConfig
from deixis.types import DeixisError, Expression, FeatureMaps, Prediction, Target, TextFeatures

DEBUG: ConvClipMevisConfig = systems.PRESETS["conv_clip_mevis_debug"]().config  # type: ignore[assignment]
STILL: dict[str, Any] = {"text_dropout": 0.0, "bi_attention_dropout": 0.0, "bi_attention_drop_path": 0.0}
ABLATIONS: tuple[dict[str, Any], ...] = (
    {}, {"words": "start"}, {"video_start": "learned"}, {"align": False}, {"words": "start", "video_start": "learned"},
)  # fmt: skip
FEW = ReferredLossConfig(points=100)


def make(**changes: Any) -> ConvClipMevis:
    """A small system without dropout, the same weights every time."""
    torch.manual_seed(0)
    return ConvClipMevis(replace(DEBUG, **{**STILL, "bi_attention_scale": 0.5, **changes}))


def target(t: int = 3, referred: tuple[bool, bool] = (True, True), h: int = 64, w: int = 96) -> Target:
    """Two objects: one in all frames, one in all but the first."""
    masks = torch.zeros(t, 2, h, w, dtype=torch.bool)
    masks[:, 0, h // 16 : h // 2 - 2, w // 24 : w // 2 - 8] = True
    masks[1:, 1, h // 2 + 2 : h - 4, w // 2 + 2 : w - 6] = True
    return Target(masks, torch.zeros(t, 2, 4), masks.flatten(2).any(2), torch.tensor(referred))


# --- the system ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
@torch.no_grad()
def test_two_different_clips_in_a_batch_give_what_each_gives_alone(changes: dict[str, Any]) -> None:
    model = make(**changes).eval()
    a, b = clip(1), clip(2)
    together = model(batch(torch.cat([a, b]), "dog", "a longer sentence"))
    for i, alone in enumerate((model(batch(a, "dog")), model(batch(b, "a longer sentence")))):
        close(together.masks[i], alone.masks[0])
        close(together.scores[i], alone.scores[0])


@torch.no_grad()
def test_what_lies_in_the_padding_is_not_attended_to() -> None:
    model = make().eval()
    maps = model.encode(torch.cat([clip(1), clip(2)]), torch.zeros(2, 3, 64, 96, dtype=torch.bool))
    maps.padding[1, :, 32:] = True
    noisy = [level.clone() for level in maps.levels]
    for level, stride in zip(noisy, maps.strides, strict=True):
        level[1, :, :, 32 // stride :] += 1.0
    text = model.encode_text([Expression("dog"), Expression("cat")])
    scenes = [ClipTokens(maps), ClipTokens(replace(maps, levels=tuple(noisy)))]
    fused, fused_noisy = (model.fuse_part(scene, text) for scene in scenes)
    close(fused_noisy[1].words, fused[1].words)
    for clean, dirty, stride in zip(fused[0], fused_noisy[0], maps.strides[1:], strict=True):
        close(dirty[3:, : 32 // stride], clean[3:, : 32 // stride])
        close(dirty[:3], clean[:3])
    queries = [model.frame_decoder(scenes[0], fused[0], fused[1], fused[2], model.frame_heads)[-1]]
    dirty = [x.clone() for x in fused[0]]
    for level, stride in zip(dirty, maps.strides[1:], strict=True):
        level[3:, 32 // stride :] += 1.0
    queries.append(model.frame_decoder(scenes[0], dirty, fused[1], fused[2], model.frame_heads)[-1])
    close(queries[1], queries[0])


@torch.no_grad()
def test_one_clip_asked_many_things_answers_as_if_asked_each_alone() -> None:
    model = make().eval()
    x = batch(clip(3), "dog")
    maps = model.encode(x.frames, x.padding)
    texts = ("dog", "the red cat on the left", "a")
    together = model.decode(maps, [Expression(t) for t in texts])
    for i, text in enumerate(texts):
        alone = model.decode(maps, [Expression(text)])
        close(together.masks[i], alone.masks[0])
        close(together.scores[i], alone.scores[0])
    assert not torch.allclose(together.masks[0], together.masks[2])
    y = batch(torch.cat([clip(1), clip(2)]), "dog", "cat")
    maps = model.encode(y.frames, y.padding)
    with pytest.raises(DeixisError, match="2 clips take 2 expressions"):
        model.decode(maps, [Expression("dog")] * 3)


@pytest.mark.parametrize("frames", [1, 2, 9, 40])
@torch.no_grad()
def test_any_number_of_frames_is_answered(frames: int) -> None:
    answer = make().eval()(batch(clip(4, frames, 32, 64), "dog"))
    assert answer.masks.shape == (1, frames, 5, 8, 16)
    assert torch.isfinite(answer.masks).all()
    assert torch.isfinite(answer.scores).all()


@torch.no_grad()
def test_frames_in_parts_give_what_all_frames_at_once_give() -> None:
    whole, parts = make(frames_at_once=100).eval(), make(frames_at_once=2).eval()
    x = batch(clip(5, 5), "dog")
    close(parts(x).masks, whole(x).masks)
    close(parts(x).scores, whole(x).scores)


@torch.no_grad()
def test_wanted_frames_are_painted_alone_but_the_whole_clip_is_watched() -> None:
    model = make().eval()
    frames, other = clip(7, 4), clip(8, 4)
    other[:, 2] = frames[:, 2]
    x = batch(frames, "dog")
    a = model(replace(x, wanted=(2,)))
    close(a.masks, model(x).masks[:, 2:3])
    assert not torch.allclose(a.masks, model(replace(x, wanted=(2,), frames=other)).masks)


@torch.no_grad()
def test_training_and_evaluation_share_their_mathematics() -> None:
    model = make()
    x = batch(torch.cat([clip(1, 5), clip(2, 5)]), "dog", "a cat")
    learnt, evaluated = model.train()(x), model.eval()(x)
    close(learnt.masks, evaluated.masks)
    close(learnt.scores, evaluated.scores)
    assert learnt.extras["frame_kernels"].shape == (2, 1 + DEBUG.frame_layers, 5, DEBUG.queries, DEBUG.width)
    assert learnt.extras["video_scores"].shape == (2, DEBUG.read_layers, DEBUG.video_layers, DEBUG.queries)
    assert not evaluated.extras


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_every_trainable_parameter_learns_and_the_tower_does_not(changes: dict[str, Any]) -> None:
    model = make(**changes).train()
    x = batch(torch.cat([clip(1), clip(2)]), "dog", "cat", targets=(target(), target(referred=(False, False))))
    losses = referred_objects_loss(model(x), x.targets or (), FEW)
    assert all(torch.isfinite(v) for v in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    trained = {id(p) for group in parameter_groups(model) for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name.startswith("tower."):
            assert parameter.grad is None, name
            assert id(parameter) not in trained
        else:
            assert parameter.grad is not None, name
            assert id(parameter) in trained
    assert not any(part.training for part in model.tower.modules())


def test_a_few_steps_lower_the_loss() -> None:
    model = make().train()
    x = batch(clip(1), "dog", targets=(target(),))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    totals = []
    for step in range(16):
        torch.manual_seed(step)
        loss = torch.stack(list(referred_objects_loss(model(x), x.targets or (), FEW).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert min(totals[-3:]) < 0.8 * totals[0]


@torch.no_grad()
def test_bf16_keeps_scores_and_masks_in_fp32_and_close() -> None:
    model = make().eval()
    x = batch(clip(1), "dog")
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model(x)
    assert reduced.scores.dtype == reduced.masks.dtype == torch.float32
    close(reduced.scores, exact.scores, 0.1)


@torch.no_grad()
def test_a_saved_system_answers_alike_and_a_named_tower_stays_out_of_it(tmp_path: Path) -> None:
    x = batch(clip(1), "dog")
    whole = make().eval()
    weights.save(whole, tmp_path / "whole.safetensors")
    close(weights.load(tmp_path / "whole.safetensors")(x).masks, whole(x).masks, 1e-7)
    save_tower(whole.tower, tmp_path / "tower.safetensors")
    named = make(tower=replace(DEBUG.tower, place=str(tmp_path / "tower.safetensors"))).eval()
    named.tower.fill()
    weights.save(named, tmp_path / "named.safetensors")
    again = weights.load(tmp_path / "named.safetensors")
    close(again(x).masks, named(x).masks, 1e-7)
    _, entries = weights.read_header(tmp_path / "named.safetensors")
    assert [key for key in entries if key.startswith("tower.")] == ["tower.fingerprint"]


def test_without_words_everywhere_they_meet_nothing() -> None:
    names = [{n.split(".")[-2] for n, _ in make(words=w).named_parameters()} for w in ("everywhere", "start")]
    assert {"pixel_query", "word_value"} <= names[0]
    assert not {"pixel_query", "word_value"} & names[1]
    model = make(words="start")
    assert all(layer.attend_text is None for layer in [*model.frame_decoder.layers, *model.video_decoder.layers])
    assert model.frame_decoder.start is None


def test_published_sizes() -> None:
    """Trainable parameters of the two presets, built without memory; the towers are named, and so not there."""
    with torch.device("meta"):
        for name in ("conv_clip_mevis_l", "conv_clip_mevis_b"):
            model = systems.PRESETS[name]()
            assert 30e6 < sum(p.numel() for p in model.parameters()) < 60e6
            assert isinstance(model, ConvClipMevis)
            assert model.tower.body is None


# --- its parts -------------------------------------------------------------------------------------------------------


def test_slots_are_put_back_in_order_however_frames_shuffle_them() -> None:
    g = torch.Generator().manual_seed(0)
    objects = torch.randn(2, 1, 6, 16, generator=g)
    noisy = objects + 0.05 * torch.randn(2, 7, 6, 16, generator=g)
    shuffles = torch.stack([torch.stack([torch.randperm(6, generator=g) for _ in range(7)]) for _ in range(2)])
    shuffles[:, 0] = torch.arange(6)
    shuffled = noisy.gather(2, shuffles[..., None].expand_as(noisy))
    order = aligned_slots(shuffled)
    back = shuffled.gather(2, order[..., None].expand_as(shuffled))
    close(back, noisy, 1e-7)
    assert torch.equal(order[:, 0], torch.arange(6).expand(2, -1))


def test_alignment_is_the_greatest_sum_of_cosines_frame_by_frame_and_teaches_nothing() -> None:
    queries = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(3), requires_grad=True)
    order = aligned_slots(queries)
    before = queries.detach()[0, 0]
    for t in range(1, 4):
        here = queries.detach()[0, t]
        cost = 1 - torch.nn.functional.cosine_similarity(before[:, None], here[None], dim=-1)
        assert order[0, t].tolist() == linear_sum_assignment(cost.numpy())[1].tolist()
        before = here[order[0, t]]
    assert not order.is_floating_point()


def test_video_queries_start_as_weighted_means_over_time_of_their_slot() -> None:
    decoder = VideoDecoder(DEBUG)
    tokens = torch.randn(2, 6, 5, 32)
    text = TextFeatures(torch.zeros(2, 3, 32), torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 32))
    first = decoder.initial_queries(tokens, text)
    assert decoder.frame_weight is not None
    share = decoder.frame_weight(tokens).squeeze(-1).exp()
    share = share / share.sum(1, keepdim=True)
    close(first, torch.einsum("ntq,ntqd->nqd", share, tokens))
    close(decoder.initial_queries(tokens[:, :1].expand(-1, 6, -1, -1), text), tokens[:, 0])
    learned = VideoDecoder(replace(DEBUG, video_start="learned"))
    assert learned.start is not None
    assert torch.equal(learned.initial_queries(tokens, text)[1], learned.start)
    said = VideoDecoder(replace(DEBUG, video_start="learned", words="start"))
    assert torch.equal(said.initial_queries(tokens, text), torch.ones(2, 5, 32))


@torch.no_grad()
def test_windows_of_frames_do_not_see_each_other_but_through_the_shift() -> None:
    torch.manual_seed(0)
    straight, shifted = WindowEncoder(replace(DEBUG, window_layers=1)), WindowEncoder(DEBUG)
    x = torch.randn(1, 5, 3, 32)  # windows of 2: frames 0-1, 2-3, 4; shifted: 0, 1-2, 3-4
    y = x.clone()
    y[:, 4] += 1
    assert torch.allclose(straight(x)[:, :4], straight(y)[:, :4], atol=1e-6)
    assert not torch.allclose(straight(x)[:, 4], straight(y)[:, 4], atol=1e-3)
    changed = (shifted(x) - shifted(y)).abs().amax((0, 2, 3)) > 1e-4
    assert changed.tolist() == [False, False, False, True, True]
    alone = torch.cat([straight(x[:, a : a + 2]) for a in (0, 2, 4)], dim=1)
    close(straight(x), alone)  # what pads the last window is not attended


@torch.no_grad()
def test_pixels_and_words_meet_by_one_similarity_and_keep_what_they_were() -> None:
    torch.manual_seed(0)
    attention = BiAttention(replace(DEBUG, bi_attention_heads=1)).eval()
    pixels, words = torch.randn(2, 7, 32), torch.randn(2, 4, 32)
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    p, w = attention(pixels, words, None, padding)
    assert 0 < float((p - pixels).abs().max()) < 1e-2  # the residual is the input itself, the change scaled by 1e-4
    queries = attention.pixel_query(attention.pixel_norm(pixels))
    keys = attention.word_query(attention.word_norm(words))
    scores = queries @ keys.mT / 32**0.5
    attended = scores.masked_fill(padding[:, None], -1e9).softmax(-1) @ attention.word_value(attention.word_norm(words))
    close(p, pixels + attention.pixel_scale * attention.pixel_out(attended))
    attended = scores.mT.softmax(-1) @ attention.pixel_value(attention.pixel_norm(pixels))
    close(w, words + attention.word_scale * attention.word_out(attended))
    other = words.clone()
    other[1, 2:] = 5.0
    close(attention(pixels, other, None, padding)[0], p, 1e-7)


def test_queries_look_only_where_they_painted_and_everywhere_if_nowhere() -> None:
    pixels = torch.tensor([[[[1.0, -1.0, 1.0]]]])
    kernels = torch.tensor([[[1.0], [-1.0], [0.0]]])
    assert attention_mask(kernels, pixels, None)[0].tolist() == [[False, True, False], [True, False, True], [False] * 3]
    nowhere = attention_mask(torch.tensor([[[1.0]]]), -torch.ones(1, 1, 1, 3), torch.tensor([[False, False, True]]))
    assert nowhere[0].tolist() == [[False, False, True]]
    hidden = attention_mask(kernels, pixels, torch.tensor([[False, True, False]]))
    assert hidden[0].tolist() == [[False, True, False], [False, True, False], [False, True, False]]


# --- a film is watched whole -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_two_passes_over_windows_answer_as_one_look_at_the_whole_film() -> None:
    model = make().eval()
    frames = clip(9, 7)
    nothing = torch.zeros(1, 7, 64, 96, dtype=torch.bool)
    asked = [Expression("dog"), Expression("a longer sentence")]
    whole = model.decode(model.encode(frames, nothing), asked)
    memory = None
    windows = [slice(0, 3), slice(3, 6), slice(6, 7)]

    def maps(part: slice) -> FeatureMaps:
        return model.encode(frames[:, part], nothing[:, part])

    for part in windows:
        memory = model.collect(maps(part), asked, memory)
    assert memory is not None
    memory = model.finalize(memory, asked)
    assert memory.queries == ()
    painted = []
    for part in windows:
        answer, memory = model.step(maps(part), asked, memory)
        painted.append(answer)
    close(torch.cat([p.masks for p in painted], 1), whole.masks)
    close(torch.cat([p.scores for p in painted], 1), whole.scores)


def test_segment_gives_the_same_masks_whatever_the_window(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "film", moving(7, shape=(64, 96), colours=("red",)))
    tracks = []
    for window in (2, 3, 7):
        model = with_presence(make(window=window), 5.0).eval()
        tracks.append(segment(folder, ["dog", "cat"], model=model, precision="fp32"))
    for other in tracks[1:]:
        for a, b in zip(tracks[0], other, strict=True):
            assert a.presence == pytest.approx(b.presence, abs=1e-5)
            assert np.mean(np.asarray(a.masks) != np.asarray(b.masks)) < 1e-3  # bytes of logits may round apart
    assert np.asarray(tracks[0][0].masks).any()


class Counting(nn.Module):
    """Counts windows: what it gathered in a first pass, and what was handed on in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(DEBUG, window=2, several=False)
        self.log: list[tuple[str, Any]] = []

    def encode(self, frames: Tensor, padding: Tensor) -> FeatureMaps:
        return FeatureMaps((frames,), (1,), padding, (frames.shape[-2], frames.shape[-1]))

    def decode(self, maps: FeatureMaps, expressions: Any, wanted: Any = None) -> Any:
        raise AssertionError("a system with a memory is asked to follow")

    def collect(self, maps: FeatureMaps, expressions: Any, memory: Any) -> int:
        self.log.append(("collect", memory))
        return (memory or 0) + maps.levels[0].shape[1]

    def finalize(self, memory: int, expressions: Any) -> tuple[int, int]:
        return memory, 0

    def step(self, maps: FeatureMaps, expressions: Any, memory: Any) -> tuple[Prediction, Any]:
        self.log.append(("step", memory))
        t = maps.levels[0].shape[1]
        masks = torch.full((len(expressions), t, 1, 16, 24), 3.0)
        return Prediction(masks, torch.full((len(expressions), t, 1), 4.0)), (memory[0], memory[1] + t)


def test_a_memory_is_carried_from_window_to_window_for_each_group_of_expressions(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "film", moving(5, shape=(64, 96)))
    system = Counting()
    tracks = segment(folder, [f"number {i}" for i in range(17)], model=system)
    gathers = [m for verb, m in system.log if verb == "collect"]
    follows = [m for verb, m in system.log if verb == "step"]
    assert gathers == [None, None, 2, 2, 4, 4]  # two groups: 16 expressions and one
    assert follows == [(5, 0), (5, 0), (5, 2), (5, 2), (5, 4), (5, 4)]
    assert all(np.asarray(track.masks).all() for track in tracks)


def test_a_stop_in_the_first_pass_still_answers_a_window(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "film", moving(6, shape=(64, 96)))
    system = Counting()
    (track,) = segment(folder, "dog", model=system, stop=lambda: True)
    assert system.log == [("collect", None), ("step", (2, 0))]
    assert len(track) == 2


# --- which queries are shown -----------------------------------------------------------------------------------------


def film_of(scores: list[float], several: bool, threshold: float = 0.5) -> Any:
    """Three queries, each painting its own third of a 12x24 film of 4 frames, with these probabilities."""
    masks = torch.full((1, 4, 3, 3, 6), -5.0)
    for q in range(3):
        masks[:, :, q, :, 2 * q : 2 * q + 2] = 5.0
    logits = torch.tensor(scores).logit().expand(1, 4, 3)
    linking = Linking(several=several)
    builder = TrackBuilder([Expression("x")], (12, 24), linking)
    for first in (0, 2):
        part = Prediction(masks[:, first : first + 2], logits[:, first : first + 2])
        builder.add(select(part, linking, (12, 24), (12, 24)), ["a", "b"], [0.0, 1.0], first)
    (track,) = builder.finish(Presence(threshold=threshold))
    (soft,) = builder.soft(Presence(threshold=threshold))
    shown = [[bool(mask[6, 8 * q + 4]) for q in range(3)] for mask in track.masks]
    assert all(row == shown[0] for row in shown)
    assert [[bool(m[6, 8 * q + 4] > 0.5) for q in range(3)] for m in soft] == shown
    return shown[0], track


@pytest.mark.parametrize(
    ("scores", "threshold", "shown"),
    [
        ([0.9, 0.6, 0.4], 0.5, [True, True, False]),
        ([0.9, 0.6, 0.4], 0.3, [True, True, True]),
        ([0.9, 0.6, 0.4], 0.7, [True, False, False]),
        ([0.4, 0.2, 0.3], 0.5, [False, False, False]),
    ],
)
def test_all_queries_above_the_threshold_are_shown_together(
    scores: list[float], threshold: float, shown: list[bool]
) -> None:
    found, track = film_of(scores, True, threshold)
    assert found == shown
    assert track.presence == pytest.approx(max(scores), abs=1e-5)
    assert track.present == any(shown)
    assert track.scores == pytest.approx([max(scores)] * 4, abs=1e-5)


def test_where_one_object_is_meant_the_best_query_alone_is_shown() -> None:
    assert film_of([0.6, 0.9, 0.8], False)[0] == [False, True, False]


# --- losses ----------------------------------------------------------------------------------------------------------


def test_points_read_a_map_between_its_cells() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.125, 1 / 6], [0.875, 5 / 6], [0.25, 1 / 6]]])  # middles of two cells, and between two
    assert sample_points(maps, points)[0, 0].tolist() == pytest.approx([0.0, 11.0, 0.5], abs=1e-5)


def test_uncertain_points_lie_where_the_mask_ends() -> None:
    torch.manual_seed(0)
    logits = torch.linspace(-10, 10, 32).expand(1, 32, 32)  # crosses zero at x = 0.5
    near = uncertain_points(logits, 200, 3.0, 0.75)[0, :150, 0]
    chance = uncertain_points(logits, 200, 3.0, 0.0)[0, :, 0]
    assert float((near - 0.5).abs().mean()) < 0.5 * float((chance - 0.5).abs().mean())


def test_pairwise_costs_are_the_terms_of_every_pair() -> None:
    g = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(2, 3, 20, generator=g), (torch.rand(2, 4, 20, generator=g) > 0.5).float()
    for b, q, n in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[b, q], truth[b, n])
        assert float(entropy_costs(logits, truth)[b, q, n]) == pytest.approx(float(entropy), abs=1e-5)
        dice = terms.dice(logits[b, q][None], truth[b, n][None])
        assert float(dice_costs(logits, truth)[b, q, n]) == pytest.approx(float(dice), abs=1e-5)


def perfect(t: int = 3, q: int = 4) -> tuple[Prediction, Target]:
    """Extras whose pixels hold both objects' masks as channels 0 and 1; queries 2 and 1 paint them, others nothing."""
    aim = target(t, h=32, w=48)
    cells = torch.nn.functional.avg_pool2d(aim.masks.float(), 4)
    pixels = torch.cat([cells * 12 - 6, torch.full((t, 1, *cells.shape[-2:]), -6.0)], dim=1)  # (T, 3, h, w)
    kernels, scores = torch.zeros(q, 3), torch.full((q,), -20.0)
    kernels[:, 2] = 1
    for query, obj in ((2, 0), (1, 1)):
        kernels[query] = torch.eye(3)[obj]
        scores[query] = 20.0
    marks = 10 * torch.eye(q)
    frame_scores = scores.repeat(2, t, 1)
    frame_scores[:, 0, 1] = -20.0  # the second object is not in the first frame
    extras = {
        "frame_scores": frame_scores, "frame_kernels": kernels.repeat(2, t, 1, 1),
        "frame_embeddings": marks.repeat(1, t, 1, 1),
        "video_scores": scores.repeat(1, 2, 1), "video_kernels": kernels.repeat(1, 2, 1, 1),
        "video_embeddings": marks.repeat(1, 2, 1, 1), "frame_pixels": pixels, "video_pixels": pixels,
    }  # fmt: skip
    extras = {name: x[None] for name, x in extras.items()}
    return Prediction(torch.zeros(1, t, q, 8, 12), torch.zeros(1, t, q), extras=extras), aim


def test_every_object_has_a_query_of_its_own_and_a_perfect_answer_costs_little() -> None:
    torch.manual_seed(0)
    right, aim = perfect()
    losses = referred_objects_loss(right, [aim], FEW)
    for name in ("frame_score", "video_score"):
        assert float(losses[name]) < 1e-3, (name, losses)
    extras = {k: v[0] for k, v in right.extras.items()}
    masks = referred_objects.referred_masks(aim, (8, 12))
    frames = referred_objects.match_frames(
        extras["frame_scores"], extras["frame_kernels"], extras["frame_pixels"], masks, FEW
    )
    pairs = sorted(zip(frames.frame.tolist(), frames.query.tolist(), frames.object.tolist(), strict=True))
    assert pairs == sorted([(0, 2, 0), (1, 2, 0), (1, 1, 1), (2, 2, 0), (2, 1, 1)] * 2)  # not in the first frame
    clips = referred_objects.match_clips(
        extras["video_scores"], extras["video_kernels"], extras["video_pixels"], masks, FEW
    )
    assert list(zip(clips.layer.tolist(), clips.query.tolist(), clips.object.tolist(), strict=True)) == [
        (0, 1, 1), (0, 2, 0), (1, 1, 1), (1, 2, 0),
    ]  # fmt: skip
    blind = {**right.extras}
    for name in ("frame_kernels", "video_kernels"):
        blind[name] = torch.zeros_like(blind[name]) + torch.tensor([0.0, 0.0, 1.0])
    nothing = referred_objects_loss(replace(right, extras=blind), [aim], FEW)
    for name, ratio in (("frame_mask", 2), ("frame_dice", 3), ("video_mask", 2), ("video_dice", 3)):
        assert float(nothing[name]) > ratio * float(losses[name]), (name, losses, nothing)
    swapped = {**right.extras, "video_scores": right.extras["video_scores"].roll(2, -1)}
    assert float(referred_objects_loss(replace(right, extras=swapped), [aim], FEW)["video_score"]) > 10


def test_only_referred_objects_are_learnt_and_none_is_a_lesson_too() -> None:
    right, aim = perfect()
    one = referred_objects_loss(right, [replace(aim, referred=torch.tensor([True, False]))], FEW)
    none = referred_objects_loss(right, [replace(aim, referred=torch.tensor([False, False]))], FEW)
    assert float(one["video_score"]) > 1  # the query of the other object should have stayed silent
    assert float(none["video_score"]) > float(one["video_score"])
    assert all(float(none[name]) == 0 for name in none if not name.endswith("score"))


def test_more_objects_than_queries_are_answered_as_far_as_queries_go() -> None:
    model = make(queries=1)
    x = batch(clip(1), "dogs", targets=(target(),))
    losses = referred_objects_loss(model.train()(x), x.targets or (), FEW)
    assert all(torch.isfinite(v) for v in losses.values())


def test_similarity_by_hand() -> None:
    frames = Matched(*(torch.tensor(x) for x in ([0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0])))
    clips = Matched(*(torch.tensor(x) for x in ([0], [0], [1], [0])))
    marks, video = torch.tensor([[[[2.0]], [[3.0]]]]), torch.tensor([[[[9.0], [1.0]]]])
    found = similarity_loss(marks, video, frames, clips, layers=2)  # embeddings 2, 3 (frames) and 1 (clip), one object
    pairs = torch.tensor([6.0, 2.0, 3.0])
    assert float(found) == pytest.approx(float(torch.nn.functional.softplus(-pairs).mean()), abs=1e-6)
    apart = Matched(clips.layer, clips.frame, clips.query, torch.tensor([1]))
    found = similarity_loss(marks, video, frames, apart, layers=2)
    wanted = torch.nn.functional.softplus(torch.tensor([-6.0, 2.0, 3.0])).mean()
    assert float(found) == pytest.approx(float(wanted), abs=1e-6)


def test_scores_that_are_not_finite_and_targets_that_do_not_fit_are_refused() -> None:
    right, aim = perfect()
    broken = replace(right, extras={**right.extras, "frame_kernels": right.extras["frame_kernels"] * float("nan")})
    with pytest.raises(DeixisError, match="not finite"):
        referred_objects_loss(broken, [aim], FEW)
    with pytest.raises(DeixisError, match=r"larger than the padded frames' \(32, 48\)"):
        referred_objects_loss(right, [target()], FEW)
    with pytest.raises(DeixisError, match="1 predictions, but 2 targets"):
        referred_objects_loss(right, [aim, aim], FEW)


# --- recipes, and from training to score -----------------------------------------------------------------------------


def test_the_mevis_recipe_says_what_it_needs_and_makes_batches(tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match="needs --data mevis=FOLDER"):
        find_recipe("conv_clip_mevis")({}, overrides={})
    write_fixture("mevis", tmp_path / "mevis")
    few = {"data.short_sides": "32,64", "data.crop_from": "48,64", "data.crop_sides": "32,48"}
    run = find_recipe("conv_clip_mevis_b")({"mevis": tmp_path / "mevis"}, overrides=few)
    assert run.config.tower.place.startswith("laion/CLIP-convnext_base_w_320")
    sizes = set()
    for index in range(6):
        x = run.collate([run.samples(index)])
        assert x.targets is not None
        assert x.frames.shape[1] == 8
        assert x.targets[0].referred.all()
        assert x.targets[0].visible.any() or not x.targets[0].masks.shape[1]  # MeViS v2 also names what is not there
        assert all(side % 32 == 0 for side in x.frames.shape[-2:])
        assert torch.equal(x.frames, run.collate([run.samples(index)]).frames)
        sizes.add(x.sizes[0])
    assert len(sizes) > 1
    assert run.train.clip_norm == 0.01
    assert [run.train.learning_rate(step) for step in (20, 45_000, 54_000)] == pytest.approx([5e-5, 5e-6, 5e-7])


def test_a_cut_keeps_frames_and_masks_together() -> None:
    frames = torch.zeros(3, 3, 64, 96, dtype=torch.uint8)
    aim = target()
    frames[:, 0] = aim.masks.any(1).to(torch.uint8) * 200
    made = cut(TrainingClip(frames, Expression("x"), aim), (20, 40), np.random.default_rng(0))
    h, w = made.frames.shape[-2:]
    assert 20 <= h <= 40
    assert 20 <= w <= 40
    assert torch.equal(made.frames[:, 0] > 0, made.target.masks.any(1))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    tower = ConvClip(TowerConfig().conv)
    tower.tokenizer = word_tokenizer(["the red square"], 512)
    save_tower(tower, folder / "conv.safetensors")
    save_tower(ClipVit(TowerConfig().vit), folder / "vit.safetensors")
    return folder


TINY = {
    "data.films": "8", "data.held_out_films": "2", "data.frames": "4", "data.loss.points": "64", "train.steps": "2",
    "train.batch": "2", "train.validate_every": "2", "model.fusion_layers": "1", "model.window": "2",
    "data.calibration_films": "2",
}  # fmt: skip


@pytest.mark.slow
def test_from_the_small_recipe_to_a_model_that_segments(tmp_path: Path) -> None:
    run = find_recipe("conv_clip_mevis_world")({}, overrides=TINY)
    outcome = train(run, tmp_path / "out", device="cpu")
    assert outcome.step == 2
    assert 0 <= (outcome.best_score or 0.0) <= 1
    film = write_folder(tmp_path / "film", moving(5, shape=(64, 96)))
    (track,) = segment(film, "the red square", model=outcome.model)
    assert len(track) == 5
    assert np.isfinite(track.scores).all()


def test_the_small_recipe_takes_a_tower_file_and_leaves_it_out_of_its_model(towers: Path, tmp_path: Path) -> None:
    run = find_recipe("conv_clip_mevis_world")({"tower": towers / "conv.safetensors"}, overrides=TINY)
    model: Any = run.system().train()
    assert model.tower.encode_text(["the red square"]).words.shape[1] == 5  # the tower's own tokenizer: a token a word
    sum(run.losses(model, run.collate([run.samples(0), run.samples(1)])).values()).backward()
    assert all(p.grad is None for p in model.tower.parameters())
    run.export(model.eval(), tmp_path / "model.safetensors")
    _, entries = weights.read_header(tmp_path / "model.safetensors")
    assert [key for key in entries if key.startswith("tower.")] == ["tower.fingerprint"]
    x = batch(clip(1), "the red square")
    with torch.no_grad():
        close(weights.load(tmp_path / "model.safetensors")(x).masks, model(x).masks, 1e-7)


def test_the_small_recipe_refuses_another_kind_of_tower_and_odd_sizes(towers: Path) -> None:
    world = find_recipe("conv_clip_mevis_world")
    with pytest.raises(DeixisError, match="kind ClipVit; expected one of ConvClip"):
        world({"tower": towers / "vit.safetensors"}, overrides={})
    with pytest.raises(DeixisError, match="multiples of 32"):
        world({}, overrides={"data.size": "48,80"})


def test_a_benchmark_is_predicted_and_scored_with_the_union_of_its_objects(tmp_path: Path) -> None:
    write_fixture("mevis", tmp_path / "mevis")
    benchmark = open_benchmark("mevis", tmp_path / "mevis", None)
    model = with_presence(make(), 5.0).eval()
    predict(benchmark, tmp_path / "results", model, device="cpu")
    table = score_benchmark("mevis", tmp_path / "mevis", tmp_path / "results")
    assert table.rows
    shown = [np.asarray(t.masks) for t in segment(
        benchmark.samples[0].video.frames[0].parent, benchmark.samples[0].text, model=model, precision="fp32"
    )]  # fmt: skip
    assert shown[0].any()


def test_models_lists_what_each_preset_needs() -> None:
    assert "laion/CLIP-convnext_large_d_320" in systems.NEEDS["conv_clip_mevis_l"]
    assert "laion/CLIP-convnext_base_w_320" in systems.NEEDS["conv_clip_mevis_b"]
