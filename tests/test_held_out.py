"""Training on one's own machine: what is held out is in no batch, judges by predict and score, and the best is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deixis import systems, weights
from deixis.benchmarks import open_benchmark, write_fixture
from deixis.metrics.evaluate import score_benchmark
from deixis.predict import predict
from deixis.systems.soc import SocConfig
from deixis.training import sources
from deixis.training.calibration import PresenceSample, fitted
from deixis.training.generated import generated_video
from deixis.training.loop import train
from deixis.training.measure import answers
from deixis.training.recipes import find_recipe
from deixis.training.recipes.held_out import HeldOut, samples_of_benchmark, validate_held_out
from deixis.training.small_films import SmallFilms, small_film
from deixis.types import DeixisError

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
    assert sum(t.there for t in found) == 3


# --- presence --------------------------------------------------------------------------------------------------------


def presence_samples(apart: float, count: int = 200) -> list[PresenceSample]:
    """Probabilities of present and absent objects whose logits are so far apart, in units of their spread."""
    draws = torch.randn(2 * count, generator=torch.Generator().manual_seed(0)).sub(2)
    rows = [(float((z + apart * (i % 2)).sigmoid()), bool(i % 2), i // 2 % 2) for i, z in enumerate(draws)]
    return [PresenceSample(presence=p, there=there, half=half) for p, there, half in rows]


def test_a_score_that_knows_presence_gets_a_threshold_and_says_what_it_is_worth() -> None:
    config = fitted(SocConfig(), "films", presence_samples(4.0))
    assert config.presence_threshold is not None
    assert config.presence_from.startswith("films: shows 0.9")
    rows = [t for t in presence_samples(4.0) if t.half == 1]
    logits = [torch.tensor(t.presence).logit() / config.presence_temperature + config.presence_shift for t in rows]
    kept = [float(x.sigmoid()) >= config.presence_threshold for x in logits]
    assert sum(k for k, t in zip(kept, rows, strict=True) if t.there) >= 0.95 * 100
    assert sum(not k for k, t in zip(kept, rows, strict=True) if not t.there) >= 0.70 * 100


@pytest.mark.parametrize(
    "rows", [presence_samples(0.5), presence_samples(4.0, 10)], ids=["scores that do not know", "too few"]
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


@pytest.mark.parametrize("name", ["soc_world", "vlp_rvos_world"])
def test_validation_on_generated_films_gives_the_figures_of_segment(name: str) -> None:
    """It calls the network without a detour over files; its masks, and so its scores, are those of ``segment``."""
    run = find_recipe(name)(
        {}, overrides={"data.held_out_films": "4", "data.films": "4", "data.calibration_films": "0"}
    )
    torch.manual_seed(1)
    model = run.system().eval()
    assert run.validate is not None
    with torch.inference_mode():
        scores = run.validate(model)
    data = run.samples.args[0]  # type: ignore[attr-defined]
    rows = list(answers(model, (generated_video(data, "valid_u", i) for i in range(4)), precision="fp32", device="cpu"))
    assert rows
    assert scores["right"] == pytest.approx(sum(row.right for row in rows) / len(rows), abs=1e-9)
    assert scores["overlap"] == pytest.approx(sum(row.overlap for row in rows) / len(rows), abs=1e-4)
