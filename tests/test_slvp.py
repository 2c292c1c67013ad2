"""The SLVP-style system: the promise of all systems for both fusions, pre-training, and a transfer that is strict."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from typer.testing import CliRunner

from deixis import systems, weights
from deixis.benchmarks import write_fixture
from deixis.benchmarks.fixtures import tiny_videos, write_film
from deixis.cli import app
from deixis.losses.set_loss import MaskLossConfig, mask_loss
from deixis.systems.slvp import DEBUG, PRETRAINING, Slvp, SlvpConfig, local_correlation
from deixis.training import flow_clips
from deixis.training.captions import VideoCaptions, write_list
from deixis.training.flow import CacheEntry, FlowCache, FlowSettings
from deixis.training.flow_clips import FlowClip, PretrainData, PretrainLoss, collate_flow, flow_clip, read_flow_clip
from deixis.training.flow_validation import errors_of, flow_picture
from deixis.training.loop import train
from deixis.training.recipes import find_recipe
from deixis.training.recipes.slvp import adopt, config_of_start, pretrain, pretrain_losses
from deixis.training.run import Run
from deixis.training.small_films import SmallFilms, side_by_side, small_film, spread
from deixis.types import DeixisError, Prediction

NAMES = ("slvp_debug", "slvp_language_debug")
FUSIONS = ("vision", "language")
STILL = replace(DEBUG, vision=replace(DEBUG.vision, drop_path=0.0), text=replace(DEBUG.text, dropout=0.0))
TINY = replace(STILL, head="flow")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))


def make(name: str, **changes: Any) -> Any:
    """A small system without dropout, the same weights every time."""
    torch.manual_seed(0)
    preset: Any = systems.PRESETS[name]()
    torch.manual_seed(0)
    return Slvp(replace(STILL, fusion=preset.config.fusion, **changes))


# --- the promise of every system --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_shapes_are_those_of_the_promise(name: str) -> None:
    model = make(name).eval()
    answer = model(batch(torch.cat([clip(1), clip(2)]), "dog", "cat"))
    queries = 1 if name == "slvp_debug" else model.config.queries
    assert isinstance(answer, Prediction)
    assert answer.masks.shape == (2, 3, queries, 16, 24)
    assert answer.scores.shape == (2, 3, queries)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_two_different_clips_in_a_batch_give_what_each_gives_alone(name: str) -> None:
    model = make(name).eval()
    a, b = clip(1), clip(2)
    together = model(batch(torch.cat([a, b]), "dog", "a longer sentence"))
    for i, one in enumerate((model(batch(a, "dog")), model(batch(b, "a longer sentence")))):
        close(together.masks[i : i + 1], one.masks)
        close(together.scores[i : i + 1], one.scores)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_clip_asked_many_things_answers_as_if_asked_each_alone(name: str) -> None:
    together = check_many_questions_are_answered_as_each_alone(make(name).eval())
    assert not torch.allclose(together.masks[0], together.masks[1])  # the words are attended to


@torch.no_grad()
def test_several_clips_refuse_another_number_of_expressions() -> None:
    check_another_number_of_expressions_is_refused(make("slvp_debug").eval())


@pytest.mark.parametrize("frames", [1, 2, 9, 40])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_number_of_frames_is_answered(name: str, frames: int) -> None:
    answer = make(name).eval()(batch(clip(4, frames, 32, 48), "dog"))
    assert answer.masks.shape[1] == frames
    assert torch.isfinite(answer.masks).all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_wanted_frames_are_answered_alone_but_encoded_in_their_window(name: str) -> None:
    check_wanted_frames_are_answered_alone_but_encoded_in_their_window(make(name).eval())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_lies_in_the_padding_is_not_attended_to(name: str) -> None:
    """Neither by the cells of a frame (vision queries), nor by the queries (language queries), nor by hidden words."""
    model = make(name, head="flow").eval()
    frames, padding = clip(5, 2, 64, 128), torch.zeros(1, 2, 64, 128, dtype=torch.bool)
    padding[..., 64:] = True
    maps, text = model.encode(frames, padding), model.text(["dog"])
    changed = [level.clone() for level in maps.levels]
    for level in changed[1:]:
        level[..., level.shape[-1] // 2 :] += 5.0
    other = replace(maps, levels=tuple(changed))
    one, two = model.fuse_text(maps, text), model.fuse_text(other, text)
    close(two.queries, one.queries)
    assert one.padding is not None
    if name == "slvp_debug":
        assert not torch.allclose(one.tokens, two.tokens)
        close(two.tokens[~one.padding], one.tokens[~one.padding])
    table = model.text.encoder.embeddings.word_embeddings.weight
    close(model.word_head(text.words, two, table), model.word_head(text.words, one, table))


@pytest.mark.parametrize("name", NAMES)
def test_clips_whose_objects_are_visible_in_different_frames_train_together(name: str) -> None:
    model = make(name).train()
    x = batch(
        torch.cat([clip(1), clip(2), clip(3)]), "dog", "cat", "no such thing",
        targets=(target([1, 0, 1]), target([0, 0, 0]), target([1, 1, 1], referred=False)),
    )  # fmt: skip
    losses = mask_loss(model(x), x.targets or (), MaskLossConfig())
    assert all(torch.isfinite(v) for v in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == [], unused


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    model = make(name).train()
    x = batch(clip(1), "dog", targets=(target([1, 1, 1]),))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(12):
        loss = torch.stack(list(mask_loss(model(x), x.targets or (), MaskLossConfig()).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert min(totals[-3:]) < 0.8 * totals[0]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bf16_keeps_scores_and_masks_in_fp32_and_close(name: str) -> None:
    model = make(name).eval()
    x = batch(clip(1), "dog")
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model(x)
    assert reduced.scores.dtype == reduced.masks.dtype == torch.float32
    close(reduced.masks, exact.masks, 0.1)


@pytest.mark.parametrize("head", ["mask", "flow"])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_system_is_the_same_and_keeps_its_tokenizer(name: str, head: str, tmp_path: Path) -> None:
    model = make(name, head=head).eval()
    weights.save(model, tmp_path / "model.safetensors")
    again = weights.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    own, found = model.state_dict(), again.state_dict()
    assert own.keys() == found.keys()
    assert all(torch.equal(own[key], found[key]) for key in own)


@pytest.mark.parametrize("name", NAMES)
def test_it_segments_a_film_and_predicts_and_scores_a_benchmark(name: str, tmp_path: Path) -> None:
    write_film(tmp_path / "film.mp4", tiny_videos(1)[0])
    run = CliRunner().invoke(
        app, ["segment", str(tmp_path / "film.mp4"), "a red box", "-o", str(tmp_path / "out"), "--model", name, "--as",
              "rle", "--device", "cpu"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    write_fixture("visor", tmp_path / "visor")
    words = ["predict", "visor", str(tmp_path / "visor"), "-o", str(tmp_path / "results"), "--model", name]
    run = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["score", "visor", str(tmp_path / "visor"), str(tmp_path / "results")])
    assert run.exit_code == 0, run.output
    assert "unseen kitchens" in run.output
    assert "hands" in run.output


def test_the_published_sizes_fit_the_claim_of_few_parameters() -> None:
    for name in ("slvp_vision", "slvp_language"):
        with torch.device("meta"):
            model = systems.PRESETS[name]()
        own = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("text.encoder."))
        assert 25e6 < own < 45e6  # Video Swin T has 28 M of them


# --- pre-training -----------------------------------------------------------------------------------------------------


def flow_batch(model: SlvpConfig, b: int = 3) -> Any:
    g = torch.Generator().manual_seed(0)
    clips = []
    for i in range(b):
        frames = torch.randint(0, 80, (3, 3, 32, 48), generator=g, dtype=torch.uint8)
        frames[:, i] += 150  # red, green, blue
        flow = torch.randn(1, 2, 1, 1, generator=g).expand(2, 2, 8, 12)  # each clip goes its own way
        valid = torch.ones(2, 8, 12, dtype=torch.bool)
        clips.append(FlowClip(frames, ("a dog", "the red cat", "two boats")[i], flow, valid, skipped=i))
    return collate_flow(model, clips)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_part_of_pre_training_learns(fusion: Any) -> None:
    torch.manual_seed(0)
    model = Slvp(replace(TINY, fusion=fusion)).train()
    x = flow_batch(model.config)
    assert x.counts == {"skipped_films": 3.0}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rows = []
    for _ in range(25):
        torch.manual_seed(1)  # the same words are hidden
        losses = pretrain_losses(PretrainLoss(), model, x)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        rows.append({name: float(value.detach()) for name, value in losses.items()})
    assert set(rows[0]) == {"flow", "contrast", "words"}
    assert all(rows[-1][name] < 0.97 * rows[0][name] for name in rows[0]), (rows[0], rows[-1])
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == [], unused


def test_terms_of_weight_nothing_are_left_out() -> None:
    model = Slvp(TINY)
    losses = pretrain_losses(PretrainLoss(contrast=0.0, words=0.0), model, flow_batch(model.config))
    assert set(losses) == {"flow"}


@torch.no_grad()
def test_clips_are_compared_before_they_attend_to_any_words() -> None:
    """What stands for a clip may not hold its caption: else the contrast would be won by reading."""
    model = Slvp(TINY).eval()
    x = flow_batch(model.config, 2)
    maps, flow = model.encode(x.frames, x.padding), torch.rand(2, 3, 2, 8, 12)
    texts = (["dog", "cat"], ["bird", "a"])
    one, two = (model.contrast_head(maps, flow, model.text(pair).sentence)[0] for pair in texts)
    assert torch.equal(one, two)
    moved = model.contrast_head(maps, flow * torch.linspace(0, 9, 12), model.text(["dog", "cat"]).sentence)[0]
    assert not torch.allclose(one, moved)  # but where it moves counts


def test_the_pixels_attend_to_the_caption_without_its_hidden_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slvp(TINY).train()
    x = flow_batch(model.config)
    tokens, padding = model.text.tokens(x.captions)
    encoded_tokens = []
    plain = model.text.encode_tokens
    monkeypatch.setattr(model.text, "encode_tokens", lambda t, p: (encoded_tokens.append(t), plain(t, p))[1])
    pretrain_losses(PretrainLoss(contrast=0.0), model, x)
    assert len(encoded_tokens) == 1
    hidden = encoded_tokens[0] != tokens
    assert hidden.any(1).all()
    assert not (hidden & padding).any()


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-1, 2), (2, -2)])
def test_a_cell_is_most_alike_where_it_went_and_where_it_came_from(down: int, right: int) -> None:
    first = torch.randn(1, 6, 9, 11, generator=torch.Generator().manual_seed(0))
    pair = torch.stack([first, first.roll((down, right), (-2, -1))], dim=1)
    alike = local_correlation(pair, None, reach=2)  # 5 x 5 steps
    assert alike.shape == (1, 2, 50, 9, 11)
    inside = (..., slice(2, -2), slice(2, -2))  # what went over the edge came back on the other side
    after, before = alike[0, 0, :25], alike[0, 1, 25:]
    assert (after.argmax(0)[inside] == 5 * (2 + down) + 2 + right).all()
    assert (before.argmax(0)[inside] == 5 * (2 - down) + 2 - right).all()
    assert torch.allclose(after.amax(0)[inside], torch.ones(5, 7), atol=1e-5)
    assert not alike[0, 0, 25:].any()  # before the first frame and
    assert not alike[0, 1, :25].any()  # after the last there is nothing


def test_nothing_is_alike_to_padding_and_what_lies_there_is_not_attended_to() -> None:
    level = torch.randn(1, 3, 6, 7, 12, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(1, 3, 7, 12, dtype=torch.bool)
    hidden[..., 8:] = True
    other = level.clone()
    other[..., 8:] += 5.0
    one, two = local_correlation(level, hidden, reach=2), local_correlation(other, hidden, reach=2)
    assert torch.equal(one, two)
    assert not one[..., 8:].any()
    left = local_correlation(level[..., :8], None, reach=2)
    assert torch.allclose(one[..., :8], left, atol=1e-6)  # as if it were not there


@torch.no_grad()
def test_where_language_is_the_query_each_kernel_adds_flow_to_its_share_of_the_pixels() -> None:
    model = Slvp(replace(TINY, fusion="language")).eval()
    channels = TINY.pixel_channels
    reads = torch.zeros(2, channels + 1)
    reads[0, 3], reads[1, 5], reads[1, -1] = 1.5, -2.0, 0.5  # dx is 1.5 of channel 3, dy 0.5 less 2 of channel 5
    model.flow_head.kernel.last.bias.copy_(reads.flatten() * (channels + 1) ** 0.5)
    x = flow_batch(model.config, 1)
    flow, fused = model.predict_flow(model.encode(x.frames, x.padding), model.text(["dog"]))
    assert torch.allclose(flow[:, :, 0], 1.5 * fused.pixels[:, :, 3], atol=1e-5)  # whatever the shares, they sum to 1
    assert torch.allclose(flow[:, :, 1], 0.5 - 2 * fused.pixels[:, :, 5], atol=1e-5)


def test_a_model_that_was_only_pre_trained_says_that_it_cannot_segment() -> None:
    model = Slvp(TINY).eval()
    with pytest.raises(DeixisError, match="deixis train slvp_transfer"):
        model(batch(clip(1), "dog"))


# --- films ------------------------------------------------------------------------------------------------------------

MADE = PretrainData(size=(32, 24), frames=3, flow=FlowSettings(rate=8.0, short_side=32))


@pytest.fixture
def films(tmp_path: Path) -> VideoCaptions:
    for video in tiny_videos(2, frames=6):
        write_film(tmp_path / f"{video.id}.mp4", video)
    (tmp_path / "broken.mp4").write_bytes(b"no film at all")
    rows = [("video00.mp4", "a red box on the left"), ("broken.mp4", "nothing"), ("video01.mp4", "two boxes, moving")]
    write_list(tmp_path / "list.csv", [*rows, ("gone.mp4", "not there")])
    return VideoCaptions(tmp_path / "list.csv")


def test_broken_films_are_passed_over_and_counted(
    films: VideoCaptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FlowCache(tmp_path / "flow", MADE.flow)
    with caplog.at_level(logging.WARNING):
        clips = [flow_clip(films, cache, TINY, MADE, 0, i) for i in range(12)]
    assert {c.caption.split()[0] for c in clips} == {"a", "two"}
    assert all(c.frames.shape == (3, 3, 32, 24) and c.flow.shape == (2, 2, 8, 6) for c in clips)
    assert sum(c.skipped for c in clips) == caplog.text.count("is left out") >= 6  # half of the rows, three epochs
    again = flow_clip(films, cache, TINY, MADE, 0, 5)
    assert torch.equal(again.frames, clips[5].frames)
    assert torch.equal(again.flow, clips[5].flow)


def test_a_list_of_broken_films_alone_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_clips, "IN_A_ROW", 5)
    write_list(tmp_path / "list.csv", [(f"{i}.mp4", "x") for i in range(9)])
    with pytest.raises(DeixisError, match=r"5 films of .*list.csv in a row could not be read; the last: no such film"):
        flow_clip(VideoCaptions(tmp_path / "list.csv"), FlowCache(tmp_path), TINY, MADE, 0, 0)


def test_a_mirror_turns_frames_flow_and_words(films: VideoCaptions, tmp_path: Path) -> None:
    cache, row = FlowCache(tmp_path / "flow", MADE.flow), films[0]
    straight, turned = (
        read_flow_clip(row, cache, TINY, replace(MADE, size=(48, 32), frames=6, flip=chance), rng)
        for chance, rng in ((0.0, np.random.default_rng(0)), (1.0, np.random.default_rng(0)))
    )
    assert torch.equal(turned.frames.flip(-1), straight.frames)
    assert torch.allclose(turned.flow.flip(-1)[:, 0], -straight.flow[:, 0], atol=1e-3)
    assert torch.allclose(turned.flow.flip(-1)[:, 1], straight.flow[:, 1], atol=1e-3)
    assert (straight.caption, turned.caption) == ("a red box on the left", "a red box on the right")


def test_flow_keeps_its_scale_through_resizing_cutting_and_units(films: VideoCaptions, tmp_path: Path) -> None:
    """The cache saw frames twice as large in which the left quarter goes (8, -4) pixels, under a camera's (2, 2)."""
    flow = np.full((5, 24, 16, 2), 2.0, np.float32)
    flow[:, :, :4] = [10.0, -2.0]
    valid = np.ones((5, 24, 16), bool)
    valid[:, :8] = False
    cache = FlowCache(tmp_path / "flow", MADE.flow)
    seconds = cache.get(films[0]).seconds
    cache.get = lambda row: CacheEntry(flow, valid, seconds, (96, 64))  # type: ignore[method-assign]
    config = replace(MADE, size=(48, 32), frames=4, flip=0.0)
    found = read_flow_clip(films[0], cache, TINY, config, np.random.default_rng(0))
    pixels = found.flow * TINY.flow_unit * float(np.hypot(48, 32))
    assert pixels.shape == (3, 2, 12, 8)
    assert torch.allclose(pixels[:, 0, :, :2], torch.tensor(4.0), atol=1e-4)
    assert torch.allclose(pixels[:, 1, :, :2], torch.tensor(-2.0), atol=1e-4)
    assert pixels[:, :, :, 2:].abs().max() < 1e-4
    assert found.valid[:, 4:].all()
    assert not found.valid[:, :4].any()


class _Opened:
    """Counts the films that are open at a time."""

    now = most = 0


def test_clips_stream_one_film_is_open_at_a_time_and_nothing_is_kept(
    films: VideoCaptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deixis import video

    plain = video.Stream._open

    class Container:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __enter__(self) -> Any:
            _Opened.now += 1
            _Opened.most = max(_Opened.most, _Opened.now)
            return self.inner.__enter__()

        def __exit__(self, *args: Any) -> None:
            _Opened.now -= 1
            self.inner.__exit__(*args)

    monkeypatch.setattr(video.Stream, "_open", lambda self: Container(plain(self)))
    cache = FlowCache(tmp_path / "flow", MADE.flow)
    for i in range(8):
        flow_clip(films, cache, TINY, MADE, 0, i)
        assert _Opened.now == 0
    assert _Opened.most <= 2  # the film, and for a moment once more to find the number of its first frame
    assert all(np.size(value) < 100 for value in vars(cache).values() if not isinstance(value, Path | FlowSettings))


# --- recipes ----------------------------------------------------------------------------------------------------------


def pretraining(films: VideoCaptions, tmp_path: Path, fusion: Any = "vision") -> Run:
    overrides = {
        "train.steps": "4", "train.batch": "2", "train.global_batch": "2", "train.workers": "0",
        "train.warmup_steps": "1", "data.size": "32,24", "data.frames": "3", "data.flow.rate": "8",
        "data.flow.short_side": "32", "train.log_every": "1",
    }  # fmt: skip
    model = replace(DEBUG, head="flow", fusion=fusion, queue=3)  # with dropout and drop path: random states matter
    places = {"videos": films.path, "flow": tmp_path / "flow"}
    return pretrain(places, overrides=overrides, name="slvp_pretrain", model=model)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_pre_training_on_a_list_resumes_to_the_same_bits_and_counts_on(
    films: VideoCaptions, tmp_path: Path, fusion: Any
) -> None:
    run = pretraining(films, tmp_path, fusion)
    whole = train(run, tmp_path / "whole", device="cpu")

    def stop(progress: Any) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    cut = replace(run, train=replace(run.train, checkpoint_minutes=0.0))
    with pytest.raises(KeyboardInterrupt):
        train(cut, tmp_path / "cut", device="cpu", report=stop)
    resumed = train(cut, tmp_path / "cut", device="cpu", resume=True)
    a, b = (weights.load(outcome.model).state_dict() for outcome in (whole, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert whole.counts == resumed.counts
    assert whole.counts["skipped_films"] > 0
    assert '"skipped_films"' in (tmp_path / "cut" / "metrics.jsonl").read_text()


def test_the_command_says_how_many_films_were_skipped(
    films: VideoCaptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deixis.training.recipes import RECIPES

    run = pretraining(films, tmp_path)
    monkeypatch.setitem(RECIPES, "slvp_pretrain", lambda data, overrides: run)
    done = CliRunner().invoke(app, ["train", "slvp_pretrain", "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "skipped films: " in done.output


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("slvp_pretrain", (), "needs --data videos=FILE.csv"),
        ("slvp_transfer", (), "needs --data ref-youtube-vos=FOLDER or --data visor=FOLDER"),
        ("slvp_transfer", ("ref-davis17",), "Ref-DAVIS17 is not trained on"),
    ],
)
def test_a_recipe_says_what_it_needs(name: str, data: tuple[str, ...], words: str) -> None:
    with pytest.raises(DeixisError, match=words):
        find_recipe(name)(dict.fromkeys(data, Path("x")), overrides={})


@pytest.mark.parametrize("benchmark", ["ref-youtube-vos", "visor"])
def test_the_transfer_makes_batches_of_its_benchmark_and_takes_a_step(benchmark: str, tmp_path: Path) -> None:
    write_fixture(benchmark, tmp_path / "data")
    start = tmp_path / "start.safetensors"
    weights.save(Slvp(TINY), start)
    run = find_recipe("slvp_transfer")({benchmark: tmp_path / "data", "start": start}, overrides={"data.frames": "3"})
    assert run.config == replace(TINY, head="mask")
    batch_ = run.collate([run.samples(i) for i in (0, 1)])
    assert batch_.frames.shape[:2] == (2, 3)
    model = run.system().train()
    torch.stack(list(run.losses(model, batch_).values())).sum().backward()
    assert {g["scale"] for g in run.groups(model)} == {1.0, 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_small_films_pre_train_transfer_and_are_scored(fusion: str, tmp_path: Path) -> None:
    small = {"data.films.held_out": "2", "data.films.count": "6", "train.steps": "2", "train.batch": "2"}
    first = find_recipe("slvp_pretrain_world")({}, overrides={**small, "model.fusion": fusion})
    before = train(first, tmp_path / "pre", device="cpu")
    second = find_recipe("slvp_world")(
        {"start": before.model}, overrides={**small, "data.share": "0.5", "data.films.calibration": "2"}
    )
    assert second.config.fusion == fusion
    after = train(second, tmp_path / "transfer", device="cpu")
    assert first.validate is not None
    assert second.validate is not None
    errors = first.validate(weights.load(before.model))
    assert errors["epe_median"] <= errors["epe_zero"]
    assert errors["gain"] == pytest.approx(1 - errors["epe_found"] / errors["epe_median"])
    scores = second.validate(weights.load(after.model))
    assert 0 <= scores["jf"] <= 1
    assert {second.samples(i)[0].frames.sum().item() for i in range(6)} == {
        spread(small_film(first_films(second), "train", i), 2).frames.astype(np.int64).sum() for i in range(3)
    }  # half of the six films, every second frame


def first_films(run: Run) -> SmallFilms:
    return run.samples.args[0].films  # type: ignore[attr-defined]


# --- the named list ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_transfer_takes_all_but_the_head(fusion: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    pretrained = Slvp(replace(TINY, fusion=fusion, queue=8))  # with every part that only pre-training has
    weights.save(pretrained, tmp_path / "start.safetensors")
    model = Slvp(replace(STILL, fusion=fusion))
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    left = adopt(model, tmp_path / "start.safetensors")
    assert {key.split(".")[0] for key in left} == {name.rstrip(".") for name in PRETRAINING}
    own, theirs = model.state_dict(), pretrained.state_dict()
    for key in own:
        assert torch.equal(own[key], fresh[key] if key.startswith("mask_head.") else theirs[key]), key
    shared = sum(own[k].numel() for k in own if k in theirs)
    assert shared > 0.9 * sum(value.numel() for value in own.values())


def test_a_transfer_from_a_transfer_takes_the_head_too(tmp_path: Path) -> None:
    torch.manual_seed(4)
    start = Slvp(STILL)
    weights.save(start, tmp_path / "start.safetensors")
    model = Slvp(STILL)
    assert adopt(model, tmp_path / "start.safetensors") == []
    assert torch.equal(model.mask_head.conv.weight, start.mask_head.conv.weight)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"fusion": "language"}, "fuse"),
        ({"pixel_channels": 8}, "pixel_decoder"),
        ({"blocks": 2}, "fuse.levels.0.1"),
        ({"space": (8, 16, 32)}, "fuse.levels.0.0.spatial_attention"),
    ],
)
def test_a_start_that_differs_in_more_than_the_head_is_refused_by_name(
    changes: dict[str, Any], names: str, tmp_path: Path
) -> None:
    weights.save(Slvp(replace(TINY, **changes)), tmp_path / "start.safetensors")
    model = Slvp(STILL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(DeixisError, match=f"does not fit this model, at .* tensors: .*{names}"):
        adopt(model, tmp_path / "start.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_system_is_refused_as_a_start(tmp_path: Path) -> None:
    weights.save(systems.PRESETS["soc_debug"](), tmp_path / "soc.safetensors")
    with pytest.raises(DeixisError, match="a checkpoint of Soc, expected one of Slvp"):
        adopt(Slvp(STILL), tmp_path / "soc.safetensors")
    with pytest.raises(DeixisError, match="holds a system 'soc'; the transfer starts from slvp"):
        config_of_start({"start": tmp_path / "soc.safetensors"}, STILL)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_errors_of_a_perfect_and_of_no_flow() -> None:
    film, valid = side_by_side(small_film(SmallFilms(camera_moves=1.0), "valid_u", 0), 5, 0)
    assert film.flow is not None
    camera = np.median(film.flow, axis=(1, 2), keepdims=True)
    perfect, nothing = errors_of(film.flow - camera, film, valid), errors_of(0 * film.flow, film, valid)
    assert perfect["found"] == pytest.approx(0.0, abs=1e-5)
    assert nothing["found"] == pytest.approx(nothing["median"])
    assert nothing["zero"] == pytest.approx(float(np.linalg.norm(film.flow, axis=-1).mean()), rel=1e-5)


def test_flow_is_shown_by_hue_and_fullness() -> None:
    flow = np.zeros((1, 3, 2), np.float32)
    flow[0, 1] = [5, 0]
    flow[0, 2] = [-5, 0]
    still, right, left = flow_picture(flow, 5.0)[0].tolist()
    assert still == [255, 255, 255]
    assert right == [255, 0, 0]
    assert left == [0, 255, 255]
