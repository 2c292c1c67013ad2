"""VLP-RVOS behaves: time goes through prompts, clips hand on, towers stay frozen, all ingredients can go."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import clips
from helpers.clips import batch, close
from helpers.films import moving, write_folder
from torch.nn import functional as F
from typer.testing import CliRunner

from deixis import systems, weights
from deixis.benchmarks import write_fixture
from deixis.cli import app
from deixis.encoders.clip_vit import ClipVit
from deixis.encoders.frozen import fill_towers, save_tower
from deixis.encoders.vlmo import VlmoConfig
from deixis.inference import segment
from deixis.losses.dense_loss import DenseLossConfig, dense_loss, wanted_mask
from deixis.systems.vlp_rvos import (
    CERTAIN,
    CubeAttention,
    Prompts,
    VlpRvos,
    VlpRvosConfig,
    clip_l_config,
    cube_offsets,
    debug_config,
    frame_code,
    pool_by_mask,
    vlmo_b_config,
)
from deixis.training.recipes import RECIPES, find_recipe
from deixis.training.recipes.vlp_rvos import SMALL_TOWER, even_taps, vlp_rvos_losses, vlp_rvos_with_tower
from deixis.types import DeixisError, Expression, Prediction, Target
from deixis.weights_import import load_strictly

VLMO = VlmoConfig(place="", width=32, layers=4, heads=4, patch=16, image=64, positions=40, vocabulary=192)
SWITCHES: list[dict[str, Any]] = [
    {"prompts": False}, {"capture": False}, {"history": False}, {"cube": False}, {"frame": False},
    {"words_in_reasoning": False}, {"guidance": "own"}, {"guidance": "none"}, {"capture_keys": "temporal"},
    {"order": "parallel"}, {"order": "frame"}, {"clip": None, "vlmo": VLMO},
    {"prompts": False, "capture": False, "history": False, "cube": False, "frame": False, "guidance": "none"},
]  # fmt: skip


def make(seed: int = 0, **changes: Any) -> VlpRvos:
    """A small system without dropout whose gates are open, the same weights every time."""
    torch.manual_seed(seed)
    model = VlpRvos(replace(debug_config(), dropout=0.0, **changes))
    if model.config.guidance != "none":
        model.guide.gate.data.fill_(0.5)
    return model


clip = partial(clips.clip, t=4, h=64, w=64)
target = partial(clips.target, h=64, w=64)


def same(a: Prediction, b: Prediction, tolerance: float = 1e-5) -> None:
    close(a.masks, b.masks, tolerance)
    close(a.scores, b.scores, tolerance)
    close(a.extras["pixel_text"], b.extras["pixel_text"], tolerance)


# --- the promise of every system -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"clip": None, "vlmo": VLMO}], ids=["clip", "vlmo"])
@torch.no_grad()
def test_two_different_clips_in_a_batch_give_what_each_gives_alone(changes: dict[str, Any]) -> None:
    model = make(**changes).eval()
    a, b = clip(1), clip(2)
    together = model(batch(torch.cat([a, b]), "dog", "a longer sentence"))
    for i, alone in enumerate((model(batch(a, "dog")), model(batch(b, "a longer sentence")))):
        close(together.masks[i : i + 1], alone.masks)
        close(together.scores[i : i + 1], alone.scores)


@pytest.mark.parametrize("at_once", [1, 2, 8])
@torch.no_grad()
def test_one_clip_asked_many_things_answers_as_if_asked_each_alone(at_once: int) -> None:
    model = make(expressions_at_once=at_once).eval()
    x = batch(clip(3), "dog")
    maps = model.encode(x.frames, x.padding)
    texts = ("dog", "the red cat on the left", "a")
    together, carried = model.step(maps, [Expression(t) for t in texts], None)
    again, _ = model.step(maps, [Expression(t) for t in texts], carried)
    for i, text in enumerate(texts):
        alone, handed = model.step(maps, [Expression(text)], None)
        close(together.masks[i], alone.masks[0])
        close(carried[i], handed[0])
        close(again.masks[i], model.step(maps, [Expression(text)], handed)[0].masks[0])


@torch.no_grad()
def test_several_clips_refuse_another_number_of_expressions() -> None:
    model = make().eval()
    x = batch(torch.cat([clip(1), clip(2)]), "dog", "cat")
    with pytest.raises(DeixisError, match="2 clips take 2 expressions"):
        model.decode(model.encode(x.frames, x.padding), [Expression("dog")] * 3)


@pytest.mark.parametrize(("frames", "h", "w"), [(1, 64, 64), (2, 32, 80), (9, 48, 48)])
@torch.no_grad()
def test_any_number_of_frames_of_any_size_is_answered(frames: int, h: int, w: int) -> None:
    answer = make().eval()(batch(clip(4, t=frames, h=h, w=w), "dog"))
    assert answer.masks.shape == (1, frames, 1, h // 4, w // 4)
    assert answer.scores.shape == (1, frames, 1)
    assert torch.isfinite(answer.masks).all()


@pytest.mark.parametrize("changes", [{}, *SWITCHES], ids=str)
def test_every_trained_parameter_learns_and_no_frozen_one_whatever_is_left_out(changes: dict[str, Any]) -> None:
    model = make(**changes).train()
    x = batch(torch.cat([clip(1), clip(2)]), "dog", "no such thing",
              targets=(target([1, 0, 1, 1]), target([1, 1, 1, 1], referred=False)))  # fmt: skip
    found = vlp_rvos_losses(2, DenseLossConfig(), model, x)
    assert all(torch.isfinite(v) for v in found.values())
    sum(found.values()).backward()
    trained = {n: p for n, p in model.named_parameters() if not n.startswith("tower.")}
    idle = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    assert all(p.grad is None and not p.requires_grad for p in model.tower.parameters())
    assert not any(part.training for part in model.tower.modules())


@pytest.mark.parametrize("changes", [{}, {"clip": None, "vlmo": VLMO}], ids=["clip", "vlmo"])
@torch.no_grad()
def test_a_saved_system_answers_alike(changes: dict[str, Any], tmp_path: Path) -> None:
    model = make(**changes).eval()
    weights.save(model, tmp_path / "model.safetensors")
    again = weights.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    x = batch(clip(1), "dog")
    same(again(x), model(x), 1e-7)


@torch.no_grad()
def test_wanted_frames_are_answered_alone_but_encoded_in_their_clip() -> None:
    model = make().eval()
    x = batch(clip(7), "dog")
    whole, part = model(x), model(replace(x, wanted=(2,)))
    close(part.masks, whole.masks[:, 2:3])
    assert part.extras["pixel_text"].shape[1] == 1


@torch.no_grad()
def test_bf16_keeps_masks_in_fp32_and_close() -> None:
    model = make().eval()
    x = batch(clip(1), "dog")
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model(x)
    assert reduced.masks.dtype == reduced.extras["pixel_text"].dtype == torch.float32
    close(reduced.masks, exact.masks, 0.1)


def test_a_few_steps_lower_the_loss() -> None:
    model = make().train()
    x = batch(clip(1), "dog", targets=(target([1, 1, 1, 1]),))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    totals = []
    for _ in range(15):
        loss = torch.stack(list(vlp_rvos_losses(2, DenseLossConfig(), model, x).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert min(totals[-3:]) < 0.8 * totals[0]


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"clip": None, "vlmo": VLMO}], ids=["clip", "vlmo"])
@torch.no_grad()
def test_without_prompts_and_with_gates_shut_the_tower_is_what_it_was(changes: dict[str, Any]) -> None:
    model = make(prompts=False, capture=False, history=False, **changes).eval()
    frames, texts = clip(1), ["the red cat"]
    maps = model.encode(frames, torch.zeros(1, 4, 64, 64, dtype=torch.bool))
    text = model.tower.encode_text(texts, model.prompts().language)
    assert torch.equal(text.sentence, model.tower.encode_text(texts).sentence)
    taps = model.config.taps
    plain = [x[:, 1:] for x in model.tower.encode_image(frames[0], taps)]
    for gate, equal in ((0.5, False), (0.0, True)):
        model.guide.gate.data.fill_(gate)
        seen = model.encode_with_text(maps.levels[0], text, model.prompts(), None)
        off = [float((a.flatten(2, 3)[0] - b).abs().max() / b.abs().max()) for a, b in zip(seen, plain, strict=True)]
        assert (max(off) <= 1e-6) is equal, off


@torch.no_grad()
def test_new_systems_have_their_gates_shut() -> None:
    assert not VlpRvos(debug_config()).guide.gate.any()


@pytest.mark.parametrize(
    ("capture", "keys", "gets_words"), [(True, "all", True), (True, "temporal", True), (False, "all", False)]
)
@torch.no_grad()
def test_frames_attend_to_each_other_inside_the_tower_through_temporal_prompts_alone(
    capture: bool, keys: str, gets_words: bool
) -> None:
    model = make(capture=capture, capture_keys=keys).eval()
    frames, other = clip(1), clip(1)
    other[:, 3] = clip(2)[:, 3]
    nothing = torch.zeros(1, 4, 64, 64, dtype=torch.bool)
    text, prompts = model.tower.encode_text(["dog"]), model.prompts()
    a, b = (model.encode_with_text(model.encode(x, nothing).levels[0], text, prompts, None) for x in (frames, other))
    assert torch.equal(a[0][:, :3], b[0][:, :3])  # the first layer has none yet
    assert torch.equal(a[-1][:, :3], b[-1][:, :3]) is not gets_words
    assert not torch.allclose(a[-1][:, 3], b[-1][:, 3])


@torch.no_grad()
def test_capture_runs_the_layers_own_frozen_weights_and_knows_the_order_of_frames() -> None:
    model = make().eval()
    assert model.capture is not None
    assert [n for n, _ in model.capture.named_parameters()] == ["time"]
    layer = model.tower.layers(4, 4)[1]
    temporal, tokens = torch.randn(3, 2, 32), torch.randn(3, 5, 32)
    found = model.capture(layer, temporal, tokens, 3)
    code = model.capture.time * frame_code(3, 32, torch.device("cpu"))
    x = torch.cat([torch.cat([temporal[t], tokens[t]]) + code[t] for t in range(3)])  # all frames in one row
    asked = torch.cat([temporal[t] + code[t] for t in range(3)])
    attended = layer.attend(layer.norm(asked)[None], layer.norm(x)[None])[0]
    moved = temporal.flatten(0, 1) + attended
    close(found.flatten(0, 1), moved + layer.feed(moved))
    turned = model.capture(layer, temporal.flip(0), tokens.flip(0), 3).flip(0)
    assert not torch.allclose(found, turned)


def test_the_second_clip_reads_what_the_first_passed_on_but_sends_no_gradient_back() -> None:
    model = make().eval()
    x = batch(clip(1), "dog")
    maps = model.encode(x.frames, x.padding)
    first, carried = model.step(maps, x.expressions, None)
    assert not carried.requires_grad
    assert carried.shape == (1, 4, 32)
    second, _ = model.step(maps, x.expressions, carried)
    assert not torch.allclose(first.masks, second.masks)
    other, _ = model.step(maps, x.expressions, carried + 1)
    assert not torch.allclose(other.masks, second.masks)
    forgetful = make(history=False).eval()
    maps = forgetful.encode(x.frames, x.padding)
    first, carried = forgetful.step(maps, x.expressions, None)
    assert torch.equal(forgetful.step(maps, x.expressions, carried)[0].masks, first.masks)


@torch.no_grad()
def test_what_is_passed_on_is_the_mean_of_the_cells_under_the_mask() -> None:
    cells = torch.randn(1, 1, 2, 3, 4)
    masks = torch.full((1, 1, 8, 12), -30.0)
    masks[..., 4:8, 8:12] = 30.0
    masks[..., :4, 4:6] = 30.0  # half a cell
    close(pool_by_mask(cells, masks)[0, 0], (cells[0, 0, 1, 2] + 0.5 * cells[0, 0, 0, 1]) / 1.5)


@pytest.mark.parametrize(("t", "h", "w", "side"), [(3, 4, 6, 2), (2, 5, 7, 3), (5, 3, 3, 3), (1, 1, 2, 2)])
@torch.no_grad()
def test_attention_in_cubes_is_full_attention_with_everything_outside_the_cube_forbidden(
    t: int, h: int, w: int, side: int
) -> None:
    torch.manual_seed(0)
    cubes = CubeAttention(8, 2, side, 3)
    x = torch.randn(2, t, h, w, 8)
    flat = x.flatten(1, 3)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in cubes.qkv(flat).chunk(3, -1))
    places = [(a, b, c) for a in range(t) for b in range(h) for c in range(w)]
    bias = torch.full((2, len(places), len(places)), float("-inf"))
    for i, (a, b, c) in enumerate(places):
        for j, (d, e, f) in enumerate(places):
            if (b // side, c // side) == (e // side, f // side):
                dz = max(-2, min(2, a - d)) + 2
                row = (dz * (2 * side - 1) + b - e + side - 1) * (2 * side - 1) + c - f + side - 1
                bias[:, i, j] = cubes.bias[row]
    attended = ((q @ k.mT) / 2 + bias).softmax(-1) @ v
    close(cubes(x).flatten(1, 3), cubes.out(attended.transpose(1, 2).flatten(2)), 2e-5)


def test_offsets_further_apart_than_known_count_as_the_furthest_known() -> None:
    index = cube_offsets(6, 1, 3, torch.device("cpu"))
    assert index[0].tolist() == [2, 1, 0, 0, 0, 0]
    assert index[:, 0].tolist() == [2, 3, 4, 4, 4, 4]


def test_prompts_of_all_kinds_go_through_one_transformer_and_begin_by_saying_little() -> None:
    model = VlpRvos(debug_config())
    prompts = model.prompts()
    assert isinstance(prompts, Prompts)
    assert prompts.language is not None
    assert prompts.vision is not None
    assert prompts.temporal is not None
    assert (prompts.language.shape, prompts.vision.shape, prompts.temporal.shape) == ((4, 32), (4, 2, 32), (2, 32))
    assert prompts.vision.abs().max() < 1
    prompts.temporal.sum().backward()
    assert model.prompts.tokens["language"].grad is not None  # each kind attends to the others


@torch.no_grad()
def test_the_score_is_the_surest_cell_or_always_one() -> None:
    x = batch(clip(1), "dog")
    peak, constant = make().eval()(x), make(score="constant").eval()(x)
    close(peak.scores, peak.masks.flatten(3).amax(-1))
    assert (constant.scores == CERTAIN).all()
    assert torch.equal(peak.masks, constant.masks)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip": None}, "must be none, got two of that"),
        ({"vlmo": VLMO}, "must be none, got both"),
        ({"taps": (0, 1)}, "last layer, 3"),
        ({"taps": (3,)}, "two or more"),
        ({"multiple": 24}, "multiple of the tower's patch, 16"),
        ({"language_prompts": 75}, "no word a place among 77"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DeixisError, match=words):
        VlpRvos(replace(debug_config(), **changes))


def test_the_published_sizes_have_places_for_their_parts() -> None:
    for config in (VlpRvosConfig(), clip_l_config(), vlmo_b_config()):
        side = config.short_side // config.multiple
        assert side % config.cube_side == 0
        with torch.device("meta"):
            model = VlpRvos(config)
        assert [k for k in model.state_dict() if k.startswith("tower.")] == ["tower.fingerprint"]
        assert 25e6 < sum(p.numel() for p in model.parameters()) < 45e6  # all of them trained; the tower is elsewhere


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    logits = torch.where(target([1, 0]).masks[:, 0, ::4, ::4], 20.0, -20.0)[None, :, None]
    good = Prediction(logits, logits.flatten(3).amax(-1), extras={"pixel_text": torch.zeros(1, 2, 4, 4)})
    found = dense_loss([good], [target([1, 0])], (64, 64), DenseLossConfig())
    full = F.interpolate(logits[:, :, 0], size=(64, 64), mode="bilinear").sigmoid()
    truth = target([1, 0]).masks[:, 0].float()
    dice = [1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(full[0], truth, strict=True)]
    assert float(found["dice"]) == pytest.approx(5 * float(sum(dice)) / 2, rel=1e-5)
    assert float(found["mask_focal"]) < 0.1
    half = 0.25 * 0.6931472 * torch.where(truth.bool(), 0.25, 0.75).mean()
    assert float(found["pixel_focal"]) == pytest.approx(2 * float(half), rel=1e-5)
    parts = [replace(good, masks=good.masks[:, i : i + 1], scores=good.scores[:, i : i + 1],
                     extras={"pixel_text": torch.zeros(1, 1, 4, 4)}) for i in (0, 1)]  # fmt: skip
    assert dense_loss(parts, [target([1, 0])], (64, 64), DenseLossConfig()) == found
    with pytest.raises(DeixisError, match="they must agree"):
        dense_loss(parts, [target([1, 0, 1])], (64, 64), DenseLossConfig())


def test_several_referred_objects_are_one_mask_and_nothing_referred_is_an_empty_one() -> None:
    masks = torch.zeros(1, 3, 4, 6, dtype=torch.bool)
    masks[0, 0, 0], masks[0, 1, 1], masks[0, 2, 2] = True, True, True
    two = Target(masks, torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), torch.tensor([True, False, True]))
    padded = wanted_mask(two, (8, 8))
    assert padded.shape == (1, 8, 8)
    assert padded.sum() == 12
    assert not wanted_mask(replace(two, referred=torch.zeros(3, dtype=torch.bool)), (4, 6)).any()
    with pytest.raises(DeixisError, match="larger than the padded frames"):
        wanted_mask(two, (4, 4))


# --- films, commands, recipes ----------------------------------------------------------------------------------------


def test_a_film_is_answered_in_clips_each_with_what_the_one_before_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "frames", moving(11))
    model, calls = make().eval(), []
    follow = VlpRvos.step

    def listening(self: VlpRvos, maps: Any, expressions: Any, memory: Any, wanted: Any = None) -> Any:
        answer, carried = follow(self, maps, expressions, memory)
        calls.append((memory, carried, maps.levels[0].shape))
        return answer, carried

    monkeypatch.setattr(VlpRvos, "step", listening)
    tracks = segment(folder, ["red", "a green one"], model=model)
    assert [len(track) for track in tracks] == [11, 11]
    assert tracks[0].masks[3].shape == (72, 96)
    # Square, whatever the film's shape; the last clip is short, as published.
    assert [h[2] for h in calls] == [(1, 4, 32, 4, 4)] * 2 + [(1, 3, 32, 4, 4)]
    assert calls[0][0] is None
    assert calls[1][0] is calls[0][1]
    assert calls[2][0] is calls[1][1]


@pytest.fixture(scope="module")
def tower_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tower with a tokenizer of world's words, as the recipe tower_world would leave it."""
    path = tmp_path_factory.mktemp("tower") / "tower.safetensors"
    torch.manual_seed(0)
    tower = ClipVit(replace(SMALL_TOWER, layers=3, width=32))
    save_tower(tower, path)
    return path


def train(*words: str) -> str:
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


TINY = ["--set", "data.films=4", "--set", "data.held_out_films=1", "--set", "data.calibration_films=2", "--set",
        "data.frames=4", "--set", "train.steps=2", "--set", "train.batch=2", "--set", "train.validate_every=2",
        "--device", "cpu"]  # fmt: skip


@pytest.mark.slow
def test_the_world_recipe_trains_on_a_tower_file_and_its_model_segments(tower_file: Path, tmp_path: Path) -> None:
    train("vlp_rvos_world", "-o", str(tmp_path / "run"), "--data", f"tower={tower_file}", *TINY)
    model = tmp_path / "run" / "model.safetensors"
    facts, entries = weights.read_header(model)
    assert [k for k in entries if k.startswith("tower.")] == ["tower.fingerprint"]
    assert facts["config"]["clip"]["place"] == str(tower_file)
    folder = write_folder(tmp_path / "frames", moving(5))
    out = str(tmp_path / "out")
    arguments = ["segment", str(folder), "the red square", "-o", out, "--as", "rle", "--model", str(model)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    torch.manual_seed(5)
    other = tmp_path / "other.safetensors"
    save_tower(ClipVit(replace(SMALL_TOWER, layers=3, width=32)), other)
    made: Any = weights.load(model)
    swapped = VlpRvos(replace(made.config, clip=replace(made.config.clip, place=str(other))))
    with pytest.raises(DeixisError, match="other weights"):
        fill_towers(swapped).load_state_dict(made.state_dict())
    kept = tower_file.read_bytes()
    tower_file.unlink()
    try:
        result = CliRunner().invoke(app, [*arguments, "--overwrite"])
        assert result.exit_code == 2
        assert "no frozen tower at" in result.stderr
        (model.parent / tower_file.name).write_bytes(kept)  # beside the model it is found too
        assert isinstance(weights.load(model), VlpRvos)
    finally:
        tower_file.write_bytes(kept)


@pytest.mark.slow
def test_the_world_recipe_goes_without_a_tower_file_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    changes = ["--set", "model.dropout=0.1", "--set", "train.steps=3"]
    train("vlp_rvos_world", "-o", str(tmp_path / "whole"), *TINY, *changes)
    part = [*TINY[:-2], *changes, "--device", "cpu"]
    train("vlp_rvos_world", "-o", str(tmp_path / "cut"), *part, "--set", "train.time_limit_minutes=1e-9")
    train("vlp_rvos_world", "-o", str(tmp_path / "cut"), *part, "--resume")
    whole, cut = (weights.load(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert "tower.body.logit_scale" in whole


@pytest.mark.parametrize("name", ["mevis", "ref-davis17", "a2d-sentences"])
def test_a_benchmark_is_predicted_and_scored(name: str, tmp_path: Path) -> None:
    write_fixture(name, tmp_path / "data")
    runner = CliRunner()
    predicted = runner.invoke(
        app, ["predict", name, str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--model", "vlp_rvos_debug"]
    )
    assert predicted.exit_code == 0, predicted.output
    scored = runner.invoke(app, ["score", name, str(tmp_path / "data"), str(tmp_path / "out")])
    assert scored.exit_code == 0, scored.output


def test_models_lists_what_each_tower_needs() -> None:
    listed = CliRunner().invoke(app, ["models"]).stdout
    for words in ("vlp_rvos_debug", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14",
                  "vlmo_base_patch16_384_coco.pt", "may not be obtainable any more"):  # fmt: skip
        assert words in listed
    assert {"vlp_rvos_clip_b", "vlp_rvos_clip_l", "vlp_rvos_vlmo_b"} <= set(systems.NEEDS)


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("vlp_rvos") and not n.endswith("world")])
def test_a_published_recipe_says_what_it_needs(name: str) -> None:
    with pytest.raises(DeixisError, match="needs --data"):
        find_recipe(name)({}, overrides={})


@pytest.mark.parametrize(
    ("name", "benchmark", "frames", "labelled"),
    [
        ("vlp_rvos_refcoco", "refcoco", 1, 1),
        ("vlp_rvos_ref_youtube_vos", "ref-youtube-vos", 6, 6),
        ("vlp_rvos_mevis", "mevis", 6, 6),
        ("vlp_rvos_a2d", "a2d-sentences", 3, 1),
    ],
)
def test_a_published_recipe_takes_a_step_on_its_benchmark(
    name: str, benchmark: str, frames: int, labelled: int, tower_file: Path, tmp_path: Path
) -> None:
    write_fixture(benchmark, tmp_path / "data")
    small = {"model.width": "32", "model.heads": "4", "model.mask_width": "16", "model.norm_groups": "4",
             "model.prompt_width": "32", "model.prompt_heads": "4", "model.language_prompts": "4",
             "model.short_side": "32", "model.long_side": "32", "model.cube_side": "2", "data.frames": "3",
             "model.vision_prompts": "2"}  # fmt: skip
    places = {benchmark: tmp_path / "data", "tower": tower_file}
    if name.endswith("a2d"):  # goes on from another run: its tower's and its own sizes
        from deixis.config import apply_overrides

        fields = {k: v for k, v in small.items() if k.startswith("model.")}
        base = vlp_rvos_with_tower(RECIPES[name].keywords["model"], places)  # type: ignore[attr-defined]
        before = VlpRvos(apply_overrides(fields, model=base)["model"])
        weights.save(fill_towers(before), tmp_path / "start.safetensors")
        places["start"] = tmp_path / "start.safetensors"
    run = find_recipe(name)(places, overrides=small)
    system = run.system().train()
    made = run.collate([run.samples(i) for i in (0, 1)])
    assert made.frames.shape == (2, frames, 3, 32, 32)
    assert made.targets is not None
    assert all(len(t.masks) == labelled for t in made.targets)
    total = torch.stack(list(run.losses(system, made).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    rates = {g["scale"] for g in run.groups(system)}
    assert rates == {0.5, 1.0}
    trained = sum(len(g["params"]) for g in run.groups(system))
    assert trained == len([p for n, p in system.named_parameters() if not n.startswith("tower.")])
    if name.endswith("a2d"):
        load_strictly(system, before.state_dict(), "start")  # type: ignore[arg-type]
        assert system.config.score == "constant"


def test_two_clips_in_one_step_have_the_gradients_of_each_with_the_token_detached() -> None:
    x = batch(clip(1), "dog", targets=(target([1, 0, 1, 1]),))
    model = make().train()
    sum(vlp_rvos_losses(2, DenseLossConfig(), model, x).values()).backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    memory = None
    for part in (slice(0, 2), slice(2, 4)):
        maps = model.encode(x.frames[:, part], x.padding[:, part])
        answer, memory = model.step(maps, x.expressions, memory)
        whole = target([1, 0, 1, 1])
        half = Target(whole.masks[part], whole.boxes[part], whole.visible[part], whole.referred)
        (0.5 * sum(dense_loss([answer], [half], (64, 64), DenseLossConfig()).values())).backward()
    for name, parameter in model.named_parameters():
        if name in together:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, together[name], rtol=1e-3, atol=1e-6), name


def test_a_labelled_frame_leaves_no_room_for_a_second_clip(tmp_path: Path) -> None:
    write_fixture("a2d-sentences", tmp_path / "data")
    places = {"a2d-sentences": tmp_path / "data", "start": tmp_path / "x"}
    with pytest.raises(DeixisError, match=r"data\.clips must be 1"):
        find_recipe("vlp_rvos_a2d")(places, overrides={"data.clips": "2"})


def test_even_taps_are_those_read_for_twelve_layers() -> None:
    assert even_taps(12) == (3, 7, 9, 11)
    assert even_taps(24) == (7, 15, 19, 23)
    assert np.array_equal(even_taps(4), (0, 2, 3))
