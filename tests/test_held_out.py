"""Training on one's own machine: what is held out is in no batch, judges by predict and score, and the best is kept."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recipe_places import PUBLISHED, places_for

from deixis import systems, weights
from deixis.benchmarks import open_benchmark, write_fixture
from deixis.metrics.choice import right_object
from deixis.metrics.evaluate import score_benchmark
from deixis.predict import predict
from deixis.systems.soc import SocConfig
from deixis.training import sources
from deixis.training.calibration import PresenceSample, fitted
from deixis.training.clips import collate, training_clip
from deixis.training.generated import generated_video
from deixis.training.loop import train
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes import conv_clip_mevis as conv_clip_recipe
from deixis.training.recipes import find_recipe
from deixis.training.recipes.held_out import HeldOut, films_of, samples_of_benchmark, validate_held_out
from deixis.training.small_films import SmallFilms, small_film, spread
from deixis.types import DeixisError, Expression

SPLIT = {"data.split": "train_without_holdout"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "ref-youtube-vos"
    write_fixture("ref-youtube-vos", folder)
    return folder


def small() -> Any:
    torch.manual_seed(0)
    return systems.PRESETS["soc_debug"]()


@pytest.mark.slow
def test_training_without_the_holdout_validates_on_it_and_keeps_the_best(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"steps": "2", "validate_every": "1", "workers": "0", "global_batch": "2"}
    run = find_recipe("soc_ref_youtube_vos")(
        {"ref-youtube-vos": place, "kinetics": tmp_path / "k.pth"},
        overrides={**SPLIT, **{f"train.{key}": value for key, value in quick.items()},
                   "model.short_side": "48", "model.long_side": "72"},
    )  # fmt: skip
    read, seen = sources.read_clip, set()

    def watched(source: Any, where: str, found: Any, *rest: Any) -> Any:
        seen.add(sources.opened_benchmark(source, where).samples[found[0]].video.id)
        return read(source, where, found, *rest)

    monkeypatch.setattr(sources, "read_clip", watched)
    held = {s.video.id for s in open_benchmark("ref-youtube-vos", place, "holdout").samples}
    everything = {s.video.id for s in open_benchmark("ref-youtube-vos", place, "train").samples}
    for index in range(40):
        run.samples(index)
    assert seen == everything - held
    assert held
    done = train(replace(run, system=small, groups=whole, config=small().config), tmp_path / "run", device="cpu")
    assert seen == everything - held
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["scores"]["J&F"] for line in lines if "scores" in line]
    assert len(scores) == 2
    assert done.best_score == max(scores)
    assert (tmp_path / "run" / "best.safetensors").is_file()
    best = weights.load(tmp_path / "run" / "best_model.safetensors")
    predict(open_benchmark("ref-youtube-vos", place, "holdout"), tmp_path / "again", best, device="cpu")
    again = score_benchmark("ref-youtube-vos", place, tmp_path / "again", "holdout").summary["J&F"]
    assert again == pytest.approx(max(scores), abs=1e-6)


def whole(system: Any) -> list[dict[str, Any]]:
    return [{"params": list(system.parameters()), "scale": 1.0, "decay": True}]


@pytest.fixture(scope="module")
def folders(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``--data`` of all recipes: benchmarks in miniature, RefCOCO and MeViS with splits that share none."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name in ("mevis", "a2d-sentences", "refcoco"):
        write_fixture(name, root / name)
    shutil.copy(root / "refcoco/train2014/COCO_train2014_000000000000.jpg", root / "refcoco/train2014/other.jpg")
    table = root / "refcoco" / "instances_refcoco_val.json"
    table.write_text(re.sub(r"COCO_train2014_\d+", "other", table.read_text()))
    for film in list((root / "mevis" / "train" / "JPEGImages").iterdir()):  # the fixture has one set of films for all
        film.rename(film.with_name(f"train_{film.name}"))
        table = root / "mevis" / "train" / "meta_expressions_v2.json"
        table.write_text(table.read_text().replace(f'"{film.name}"', f'"train_{film.name}"'))
    names = {name: root / name for name in ("mevis", "a2d-sentences", "refcoco", "kinetics")}
    return {**names, "ref-youtube-vos": place, "start": root / "start.safetensors"}


SPLITS = {  # what each trains on, and what judges it, where not as published
    "soc_ref_youtube_vos": {"data.split": "train_without_holdout"},
    "soc_joint": {"data.split": "train_without_holdout"},
    "soc_refcoco": {"data.split": "refcoco_train", "data.validate": "refcoco_val"},
    "soc_plus_plus_mevis": {"data.split": "valid_u", "data.validate": "train"},
    "vlp_rvos_ref_youtube_vos": {"data.split": "train_without_holdout"},
    "vlp_rvos_a2d": {"data.validate": "test"},
    "vlp_rvos_mevis": {"data.validate": "valid_u"},
    "slvp_transfer": {"data.split": "train_without_holdout"},
    "slvp_refcoco": {"data.validate": "refcoco_val"},
    "conv_clip_mevis": {"data.split": "valid_u", "data.validate": "train"},
    "conv_clip_mevis_b": {"data.validate": "valid_u"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLITS)
def test_no_training_clip_is_of_a_video_that_is_held_out(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {k: v for k, v in folders.items() if not name.startswith("slvp") or k == DATA[name]}
    run = find_recipe(name)(data, overrides=SPLITS[name])
    taken: set[tuple[str, ...]] = set()

    def watched(benchmark: Any, sample: Any, frames: Any) -> Any:
        taken.update(films_of(replace(benchmark, samples=(sample,))))
        return training_clip(benchmark, sample, frames)

    for module in (sources, conv_clip_recipe):
        monkeypatch.setattr(module, "training_clip", watched)
    for index in range(30):
        run.samples(index)
    held: Any = run.validate.args[0]  # type: ignore[union-attr]
    asked = SPLITS[name]
    known = open_benchmark(held.benchmark, folders[held.benchmark], asked.get("data.split"))
    judging = films_of(open_benchmark(held.benchmark, folders[held.benchmark], held.split))
    assert judging
    assert taken
    assert not taken & judging
    if "data.split" in asked and name != "soc_joint":
        assert taken == films_of(known)


DATA = {"slvp_transfer": "ref-youtube-vos", "slvp_refcoco": "refcoco"}
QUICK = {"train.steps": "2", "train.validate_every": "1", "train.workers": "0", "train.global_batch": "2"}
SIZES = {"model.short_side": "48", "model.long_side": "72"}
SMALL = {
    "vlp_rvos_ref_youtube_vos": ("vlp_rvos_debug", {**SIZES, "model.square": "false", "data.crop": "0"}),
    "slvp_transfer": ("slvp_debug", SIZES),
    "conv_clip_mevis": ("conv_clip_mevis_debug", {"data.short_sides": "64", "data.long_side": "96", "data.crop": "0"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_other_systems_too_are_judged_by_predict_and_score_and_keep_the_best(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    preset, sizes = SMALL[name]
    data = {k: v for k, v in folders.items() if k in ("ref-youtube-vos", "mevis")}
    run = find_recipe(name)(data, overrides={**SPLITS[name], **QUICK, **sizes})

    def system() -> Any:
        torch.manual_seed(0)
        return systems.PRESETS[preset]()

    collated = partial(collate, system().config)
    small_run = replace(run, system=system, groups=parameter_groups, config=system().config, collate=collated)
    done = train(small_run, tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["scores"]["J&F"] for line in lines if "scores" in line]
    assert len(scores) == 2
    assert done.best_score == max(scores)
    held: Any = run.validate.args[0]  # type: ignore[union-attr]
    best = weights.load(tmp_path / "run" / "best_model.safetensors")
    predict(held.opened(), tmp_path / "again", best, device="cpu")
    again = score_benchmark(held.benchmark, Path(held.place), tmp_path / "again", held.split).summary["J&F"]
    assert again == pytest.approx(max(scores), abs=1e-6)


BENCHMARK_RECIPES = [name for name in PUBLISHED if name != "slvp_pretrain"]


@pytest.mark.parametrize("name", BENCHMARK_RECIPES)
def test_every_recipe_of_a_benchmark_takes_a_split(name: str) -> None:
    """One that is not there is refused, so the setting is read."""
    with pytest.raises(DeixisError, match="has no split 'nonesuch'; it has "):
        find_recipe(name)(places_for(name), overrides={"data.split": "nonesuch"})
    run = find_recipe(name)(places_for(name), overrides={})
    assert run.validate is None
    assert run.train.validate_every == 0


def test_a_split_that_shares_pictures_with_training_is_refused(folders: dict[str, Path]) -> None:
    data = {"refcoco": folders["refcoco"], "kinetics": folders["kinetics"]}
    with pytest.raises(DeixisError, match="3 of the 3 videos or pictures of refcoco_testA are in refcoco_train too"):
        find_recipe("soc_refcoco")(data, overrides={"data.validate": "refcoco_testA"})


def test_without_a_split_nothing_is_validated_and_the_published_clips_are_trained_on(place: Path) -> None:
    run = find_recipe("soc_ref_youtube_vos")({"ref-youtube-vos": place, "kinetics": place}, overrides={})
    assert run.validate is None
    assert run.train.validate_every == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"data.validate": "holdout"}, "train holds the videos of holdout"),
        ({"data.validate": "train"}, "must be another split than the one trained on"),
        ({"data.validate": "nonesuch"}, "has no split 'nonesuch'"),
        ({"data.calibrate": "true"}, "needs a split that is held out"),
    ],
)
def test_a_split_that_cannot_judge_is_refused(overrides: dict[str, str], says: str, place: Path) -> None:
    with pytest.raises(DeixisError, match=says):
        find_recipe("soc_ref_youtube_vos")({"ref-youtube-vos": place, "kinetics": place}, overrides=overrides)


def test_validation_is_a_fixed_part_of_the_split(place: Path) -> None:
    held = HeldOut(benchmark="ref-youtube-vos", place=str(place), split="train", samples=3)
    assert [s.id for s in held.opened().samples] == [s.id for s in held.opened().samples]
    assert len(held.opened().samples) == 3
    scores = validate_held_out(held, small())
    assert next(iter(scores)) == "J&F"
    assert 0 <= scores["J&F"] <= 1
    found = samples_of_benchmark(held, small())
    assert sum(t.present for t in found) == 3


# --- presence --------------------------------------------------------------------------------------------------------


def presence_samples(apart: float, count: int = 200) -> list[PresenceSample]:
    """Probabilities of present and absent objects whose logits are so far apart, in units of their spread."""
    draws = torch.randn(2 * count, generator=torch.Generator().manual_seed(0)).sub(2)
    rows = [(float((z + apart * (i % 2)).sigmoid()), bool(i % 2), i // 2 % 2) for i, z in enumerate(draws)]
    return [PresenceSample(presence=p, present=present, half=half) for p, present, half in rows]


def test_a_score_that_separates_presence_gets_a_threshold_and_says_what_it_is_worth() -> None:
    config = fitted(SocConfig(), "films", presence_samples(4.0))
    assert config.presence_threshold is not None
    assert config.presence_from.startswith("films: shows 0.9")
    rows = [t for t in presence_samples(4.0) if t.half == 1]
    logits = [torch.tensor(t.presence).logit() / config.presence_temperature + config.presence_shift for t in rows]
    kept = [float(x.sigmoid()) >= config.presence_threshold for x in logits]
    assert sum(k for k, t in zip(kept, rows, strict=True) if t.present) >= 0.95 * 100
    assert sum(not k for k, t in zip(kept, rows, strict=True) if not t.present) >= 0.70 * 100


@pytest.mark.parametrize(
    "rows", [presence_samples(0.5), presence_samples(4.0, 10)], ids=["scores without presence", "too few"]
)
def test_else_the_checkpoint_states_that_it_always_answers(rows: list[PresenceSample]) -> None:
    config = fitted(SocConfig(presence_threshold=0.4), "films", rows)
    assert config.presence_threshold is None
    assert config.presence_from.startswith("always answers: ")


def test_where_several_are_shown_the_stated_threshold_stays_if_none_is_worth_more() -> None:
    config = fitted(SocConfig(presence_threshold=0.4, several=True), "films", presence_samples(0.5))
    assert config.presence_threshold == 0.4
    assert config.presence_from.startswith("keeps its stated threshold of 0.4: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "films"), [("conv_clip_mevis_world", "data.calibration_films"), ("slvp_world", "data.films.calibration")]
)
def test_small_recipes_end_with_a_calibration_and_say_so(name: str, films: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for count, says in (("0", ""), ("2", "held-out generated films holds too few to calibrate on")):
        run = find_recipe(name)({}, overrides={films: count})
        run.export(run.system().eval(), tmp_path / f"{count}.safetensors")
        config = weights.load(tmp_path / f"{count}.safetensors").config
        assert says in config.presence_from
        assert bool(config.presence_from) == bool(says)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "valid_u"])
def test_films_to_calibrate_on_hold_sentences_that_name_nothing(split: str) -> None:
    found = [bool(s.objects) for i in range(4) for s in small_film(SmallFilms(), split, i, 0.5).film.sentences]
    assert 0.25 < np.mean(found) < 1
    plain = [bool(s.objects) for i in range(4) for s in small_film(SmallFilms(), split, i).film.sentences]
    assert all(plain)


@pytest.mark.parametrize("name", ["soc_world", "vlp_rvos_world", "slvp_world"])
def test_validation_on_generated_films_gives_the_figures_of_the_published_rule(name: str) -> None:
    """It is by ``segment``; here once more the query of the greatest mean probability, its raw logits, interpolated."""
    few = ("data.films.held_out", "data.films.count") if name == "slvp_world" else ("data.held_out_films", "data.films")
    run = find_recipe(name)({}, overrides=dict.fromkeys(few, "2"))
    torch.manual_seed(1)
    model: Any = run.system().eval()
    if name == "slvp_world":  # its masks begin as nothing
        model.mask_head.conv.bias.data.zero_()
    assert run.validate is not None
    with torch.no_grad():
        scores = run.validate(model)
        data = run.validate.args[0]  # type: ignore[attr-defined]
        films = [
            spread(small_film(data, "valid_u", i), data.slow) if name == "slvp_world" else
            generated_video(data, "valid_u", i) for i in range(2)
        ]  # fmt: skip
        right, overlap, region = np.mean([row for film in films for row in by_the_rule(model, film)], axis=0)
    assert scores["right"] == pytest.approx(right, abs=1e-9)
    name = "j" if name == "slvp_world" else "overlap"
    assert scores[name] == pytest.approx(region if name == "j" else overlap, abs=1e-6)
    assert overlap > 0


def by_the_rule(model: Any, film: Any) -> list[tuple[float, float, float]]:
    """Of each sentence, from the raw logits of all windows: whether its masks lie on its object; their overlap with it
    over the film, and its mean over frames."""
    config, size = model.config, film.frames.shape[1:3]
    assert size == (config.short_side, config.long_side)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    frames = (torch.from_numpy(np.ascontiguousarray(film.frames)).permute(0, 3, 1, 2) / 255 - mean) / std
    asked, memory, parts = [Expression(s.text) for s in film.sentences], None, []
    for part in frames.split(config.window):
        maps = model.encode(part[None], torch.zeros(1, len(part), *size, dtype=torch.bool))
        if hasattr(model, "step"):
            answer, memory = model.step(maps, asked, memory)
        else:
            answer = model.decode(maps, asked)
        parts.append((answer.masks, answer.scores))
    masks, probabilities = (torch.cat([part[i] for part in parts], 1) for i in (0, 1))
    best = probabilities.sigmoid().mean(1).argmax(1)
    found: list[tuple[float, float, float]] = []
    for i, sentence in enumerate(film.sentences):
        logits = torch.nn.functional.interpolate(masks[i, :, best[i]][:, None], size, mode="bilinear")[:, 0]
        masks_of_it, truth = (logits > 0).numpy(), film.masks[:, list(sentence.objects)].any(1)
        both, either = (masks_of_it & truth).sum((1, 2)), (masks_of_it | truth).sum((1, 2))
        region = float(np.where(either, both / np.maximum(either, 1), 1).mean())
        right = float(right_object(masks_of_it, film.masks, sentence.objects)[0])
        found.append((right, float(both.sum() / either.sum()), region))
    return found
