"""SOC and SOC++ behave: clips do not mix, one clip may be asked many things, any length, any visibility, any precision.

The numbers themselves are compared with the authors' in test_parity.py; here small random models suffice.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.clips import (
    batch,
    check_another_number_of_expressions_is_refused,
    check_many_questions_are_answered_as_each_alone,
    check_wanted_frames_are_answered_alone_but_encoded_in_their_window,
    clip,
    close,
    target,
)
from helpers.plain_soc import plainly
from torch.nn import functional as F

from deixis import systems, weights
from deixis.blocks.deformable import sample_by_bag, sample_by_grid
from deixis.blocks.mask_head import kernel_numbers, predict_masks
from deixis.encoders.video_swin import VideoSwin, VideoSwinConfig, plan_windows
from deixis.inference import every_query
from deixis.losses import terms
from deixis.losses.matching import match
from deixis.losses.set_loss import SetLossConfig, referred_track, set_loss
from deixis.types import DeixisError, Prediction, Target

NAMES = ("soc_debug", "soc_plus_plus_debug")


def make(name: str, **changes: Any) -> Any:
    """A small system without dropout, the same weights every time."""
    torch.manual_seed(0)
    preset: Any = systems.PRESETS[name]()
    config = preset.config
    still = {"vision": replace(config.vision, drop_path=0.0), "text": replace(config.text, dropout=0.0), "dropout": 0.0}
    torch.manual_seed(0)
    return type(preset)(replace(config, **still, **changes))


def same(a: Prediction, b: Prediction, tolerance: float = 1e-5) -> None:
    for name in ("masks", "scores", "boxes", "similarity"):
        close(getattr(a, name), getattr(b, name), tolerance)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_two_different_clips_in_a_batch_give_what_each_gives_alone(name: str) -> None:
    model = make(name).eval()
    a, b = clip(1), clip(2)
    together = model(batch(torch.cat([a, b]), "dog", "a longer sentence"))
    alone = [model(batch(a, "dog")), model(batch(b, "a longer sentence"))]
    for i, one in enumerate(alone):
        kept = {k: getattr(together, k)[i : i + 1] for k in ("masks", "scores", "boxes", "similarity")}
        same(Prediction(**kept), one)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_clip_asked_many_things_answers_as_if_asked_each_alone(name: str) -> None:
    check_many_questions_are_answered_as_each_alone(make(name).eval())


@torch.no_grad()
def test_several_clips_refuse_another_number_of_expressions() -> None:
    check_another_number_of_expressions_is_refused(make("soc_debug").eval())


@pytest.mark.parametrize("frames", [1, 2, 9, 100])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_number_of_frames_is_answered(name: str, frames: int) -> None:
    answer = make(name).eval()(batch(clip(4, frames, 32, 48), "dog"))
    assert answer.masks.shape == (1, frames, 4, 8, 12)
    assert torch.isfinite(answer.masks).all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_frames_in_parts_give_what_all_frames_at_once_give(name: str) -> None:
    whole, parts = make(name, frames_at_once=100).eval(), make(name, frames_at_once=2).eval()
    parts.load_state_dict(whole.state_dict())
    x = batch(clip(5, 5), "dog")
    same(parts(x), whole(x))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_kept_queries_are_the_best_of_all(name: str) -> None:
    few, every = make(name, kept_queries=2).eval(), make(name, kept_queries=5).eval()
    every.load_state_dict(few.state_dict())
    x = batch(clip(6), "dog")
    a, b = few(x), every(x)
    best = b.scores.sigmoid().mean(1)[0].topk(2).indices
    close(a.masks, b.masks[:, :, best])
    close(a.similarity, b.similarity[:, best])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_where_every_query_is_ranked_all_are_returned_in_their_order(name: str) -> None:
    few, every = make(name, kept_queries=2).eval(), make(name, kept_queries=5).eval()
    every.load_state_dict(few.state_dict())
    x = batch(clip(6), "dog")
    with every_query(few):
        close(few(x).masks, every(x).masks)
    assert few(x).masks.shape[2] == 2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_wanted_frames_are_answered_alone_but_encoded_in_their_window(name: str) -> None:
    check_wanted_frames_are_answered_alone_but_encoded_in_their_window(make(name).eval())


@torch.no_grad()
def test_official_evaluation_pairs_the_last_view_of_the_clip_with_the_first_level() -> None:
    last = make("soc_debug", kept_queries=5).eval()
    official = make("soc_debug", kept_queries=5, eval_level="official").eval()
    official.load_state_dict(last.state_dict())
    x = batch(clip(9), "dog")
    a, b, trained = official(x), last(x), last.train()(x)
    same(trained, b)  # training and evaluation share their mathematics
    close(a.similarity, b.similarity)
    assert not torch.allclose(a.masks, b.masks)
    assert not torch.allclose(a.masks, trained.aux[0].masks)


@pytest.mark.parametrize("name", NAMES)
def test_clips_whose_objects_are_visible_in_different_frames_train_together(name: str) -> None:
    model = make(name).train()
    x = batch(
        torch.cat([clip(1), clip(2), clip(3)]), "dog", "cat", "no such thing",
        targets=(target([1, 0, 1]), target([0, 0, 0]), target([1, 1, 1], referred=False)),
    )  # fmt: skip
    assert x.targets is not None
    losses = set_loss(model(x), x.targets, SetLossConfig())
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert all("pooler" in n for n in unused), unused


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    model = make(name).train()
    x = batch(clip(1), "dog", targets=(target([1, 1, 1]),))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(12):
        loss = torch.stack(list(set_loss(model(x), x.targets or (), SetLossConfig()).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert min(totals[-3:]) < 0.8 * totals[0]


def test_training_works_after_the_same_sizes_were_seen_in_inference_mode() -> None:
    model = make("soc_debug").eval()
    x = batch(clip(1), "dog", targets=(target([1, 1, 1]),))
    with torch.inference_mode():
        model(x)
    losses = set_loss(model.train()(x), x.targets or (), SetLossConfig())
    torch.stack(list(losses.values())).sum().backward()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bf16_keeps_scores_and_masks_in_fp32_and_close(name: str) -> None:
    model = make(name, kept_queries=5).eval()
    x = batch(clip(1), "dog")
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model(x)
    assert reduced.scores.dtype == reduced.masks.dtype == torch.float32
    close(reduced.scores, exact.scores, 0.05)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_saved_system_answers_alike_and_keeps_its_tokenizer(name: str, tmp_path: Path) -> None:
    model = make(name).eval()
    weights.save(model, tmp_path / "model.safetensors")
    again = weights.load(tmp_path / "model.safetensors")
    x = batch(clip(1), "dog")
    same(again(x), model(x), 1e-7)


@torch.no_grad()
def test_the_fast_path_equals_the_textbook_one_for_odd_and_padded_sizes() -> None:
    fast, plain = make("soc_debug", kept_queries=5).eval(), plainly(make("soc_debug", kept_queries=5)).eval()
    x = batch(torch.cat([clip(1, 6, 76, 100), clip(2, 6, 76, 100)]), "dog", "the cat")
    x.padding[1, :, 60:] = True
    x.padding[1, :, :, 90:] = True
    for eval_level in ("last", "official"):
        for model in (fast, plain):
            model.config = replace(model.config, eval_level=eval_level)
        same(fast(x), plain(x), 2e-5)


def test_the_fast_path_has_the_gradients_of_the_textbook_one() -> None:
    norms = []
    for model in (make("soc_debug", kept_queries=5), plainly(make("soc_debug", kept_queries=5))):
        x = batch(clip(1), "dog", targets=(target([1, 0, 1]),))
        model.train()
        torch.manual_seed(1)
        for key, value in model.named_parameters():
            if "sampling_offsets" in key:  # new ones point at whole cells, where bilinear samples have a kink
                value.data.add_(torch.rand_like(value) * 0.1)
        torch.stack(list(set_loss(model(x), x.targets or (), SetLossConfig()).values())).sum().backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(norms[0], norms[1], rtol=1e-4, atol=1e-6)


def test_bags_of_rows_equal_bilinear_samples_inside_outside_and_at_the_border() -> None:
    shapes = ((5, 7), (3, 4))
    g = torch.Generator().manual_seed(0)
    value = torch.randn(2, 47, 2, 6, generator=g)
    cells = torch.rand(2, 9, 2, 2, 3, 2, generator=g) * 12 - 3
    cells[0, 0] = torch.tensor([6.0, 4.0])
    cells[0, 1] = torch.tensor([-1.0, 5.0])
    cells[0, 2] = torch.tensor([-0.5, -0.5])
    share = torch.rand(2, 9, 2, 2, 3, generator=g)
    close(sample_by_bag(value, shapes, cells, share), sample_by_grid(value, shapes, cells, share))


def test_painting_equals_a_network_run_for_each_query() -> None:
    g = torch.Generator().manual_seed(0)
    pixels, centres = torch.randn(2, 2, 4, 5, 6, generator=g), torch.rand(2, 2, 3, 2, generator=g) * 24
    kernels = torch.randn(2, 2, 3, kernel_numbers(4, 8, 3), generator=g)
    found = predict_masks(pixels, kernels, centres, 4)
    x, y = torch.arange(6) * 4 + 2.0, torch.arange(5) * 4 + 2.0
    for b, t, q in [(0, 0, 0), (1, 1, 2), (0, 1, 1)]:
        w1, w2, w3, b1, b2, b3 = kernels[b, t, q].split([48, 64, 8, 8, 8, 1])
        dx, dy = (centres[b, t, q, 0] - x).expand(5, 6), (centres[b, t, q, 1] - y)[:, None].expand(5, 6)
        z = torch.cat([pixels[b, t], dx[None], dy[None]]).flatten(1)
        z = (w1.view(8, 6) @ z + b1[:, None]).relu()
        z = (w2.view(8, 8) @ z + b2[:, None]).relu()
        close(found[b, t, q].flatten()[None], w3.view(1, 8) @ z + b3[:, None])


def test_kernels_of_another_length_are_refused() -> None:
    with pytest.raises(DeixisError, match="169"):
        predict_masks(torch.zeros(1, 1, 8, 2, 2), torch.zeros(1, 1, 1, 100), torch.zeros(1, 1, 1, 2), 4)


@pytest.mark.parametrize("size", [(3, 9, 13), (17, 4, 8), (8, 7, 7), (1, 1, 1)])
def test_a_window_plan_sends_every_token_out_and_back(size: tuple[int, int, int]) -> None:
    for shifted in (False, True):
        plan = plan_windows(size, (8, 7, 7), shifted, torch.device("cpu"))
        assert torch.equal(plan.gather[plan.scatter], torch.arange(size[0] * size[1] * size[2]))
        assert sum(count for count, _ in plan.kinds) * plan.length == len(plan.gather)
        assert len(plan.kinds) <= 8


@torch.no_grad()
def test_backbone_levels_have_the_strides_they_say() -> None:
    encoder = VideoSwin(VideoSwinConfig(dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=(2, 3, 3))).eval()
    sizes = [tuple(level.shape) for level in encoder(torch.randn(1, 2, 3, 45, 70))]
    assert sizes == [(1, 2, 8, 12, 18), (1, 2, 16, 6, 9), (1, 2, 32, 3, 5), (1, 2, 64, 2, 3)]


def test_matching_gives_each_query_away_once_at_the_least_cost() -> None:
    cost = torch.tensor([[1.0, 0.9], [0.5, 0.1], [3.0, 2.0]])
    assert match(cost).tolist() == [0, 1]
    with pytest.raises(DeixisError, match="not finite"):
        match(cost * float("nan"))
    with pytest.raises(DeixisError, match=r"raise model\.queries"):
        match(cost.t())


def test_several_referred_objects_become_one_whose_box_covers_the_visible_ones() -> None:
    a, b = target([1, 1]), target([1, 0])
    boxes = torch.cat([a.boxes, b.boxes], dim=1)
    boxes[0, 1] = torch.tensor([0.9, 0.5, 0.1, 0.2])
    both = Target(
        torch.cat([a.masks, b.masks], dim=1),
        boxes,
        torch.cat([a.visible, b.visible], dim=1),
        torch.tensor([True, True]),
    )
    track = referred_track(both)
    assert track is not None
    assert track.boxes_cxcywh[0].tolist() == pytest.approx([0.6, 0.5, 0.7, 0.5])
    assert track.boxes_cxcywh[1].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5])  # not stretched by the unseen one
    assert referred_track(target([1, 1], referred=False)) is None


def test_invisible_frames_teach_boxes_only_in_official_mode() -> None:
    g = torch.Generator().manual_seed(0)
    answer = Prediction(
        torch.randn(1, 2, 1, 16, 24, generator=g), torch.randn(1, 2, 1, generator=g),
        torch.rand(1, 2, 1, 4, generator=g), torch.randn(1, 1, generator=g),
    )  # fmt: skip
    masked, official = (
        set_loss(answer, [target([1, 0])], SetLossConfig(invisible=mode))  # type: ignore[arg-type]
        for mode in ("masked", "official")
    )
    assert official["box_l1"] > masked["box_l1"]
    assert official["score"] == masked["score"]


@pytest.mark.parametrize(
    ("name", "logits", "truth", "expected"),
    [
        ("focal is a quarter of the entropy, damped by the error squared", [0.0], [1.0], 0.25 * 0.25 * 0.6931472),
        ("focal weighs negatives by three quarters", [0.0], [0.0], 0.75 * 0.25 * 0.6931472),
    ],
)
def test_focal_loss_by_hand(name: str, logits: list[float], truth: list[float], expected: float) -> None:
    assert float(terms.sigmoid_focal(torch.tensor(logits), torch.tensor(truth)).sum()) == pytest.approx(expected), name


def test_dice_of_a_perfect_mask_is_nothing_and_of_a_missed_one_almost_all() -> None:
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[:, 2:6, 2:6] = True
    sure = torch.where(truth, 40.0, -40.0)
    assert float(terms.dice(sure, truth)) == pytest.approx(0.0, abs=1e-6)
    assert float(terms.dice(torch.full((1, 8, 8), -40.0), truth)) == pytest.approx(1 - 1 / 17)


def test_generalised_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    assert terms.generalised_iou(a, b).tolist() == pytest.approx([2 / 6, -2 / 6, 1.0], abs=1e-5)


def test_contrast_prefers_the_matched_query_of_the_same_clip() -> None:
    queries = F.one_hot(torch.arange(3), 4).float()[None] * 10
    sentence = queries[:, 1]
    right, wrong = (float(terms.contrastive(queries, sentence, torch.tensor([i]), 1.0)) for i in (1, 0))
    assert right < 1e-3 < wrong
