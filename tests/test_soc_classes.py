"""SOC with several class outputs: where categories come from, what the loss makes of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clips import batch, clip, target
from torch import Tensor

from deixis import systems, weights
from deixis.benchmarks import open_benchmark, write_fixture
from deixis.losses.set_loss import SetLossConfig, set_loss
from deixis.predict import predict
from deixis.training.clips import TrainingClip, collate, cut, distorted, mirrored, shrink, training_clip
from deixis.training.loop import train
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes import find_recipe
from deixis.training.recipes.statements import describe_recipe
from deixis.types import DeixisError, Prediction

LN2 = 0.6931472
SMALL = {"model.short_side": "48", "model.long_side": "72", "train.workers": "0"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_fixture("ref-youtube-vos", tmp_path / "data")
    return tmp_path / "data"


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content["videos"])
    file.write_text(json.dumps({"videos": content["videos"]}))


def expressions(place: Path) -> Path:
    return place / "meta_expressions" / "train" / "meta_expressions.json"


def categories(place: Path, split: str = "train") -> list[str | None]:
    return [sample.category for sample in open_benchmark("ref-youtube-vos", place, split).samples]


# --- where categories come from --------------------------------------------------------------------------------------


def test_training_samples_have_the_category_of_the_object_they_name(place: Path) -> None:
    assert categories(place) == ["red_box", "green_box"] * 3
    assert open_benchmark("ref-youtube-vos", place, "train").categories == ("green_box", "red_box")
    assert open_benchmark("ref-youtube-vos", place, "valid").categories == ()
    assert set(categories(place, "valid")) == {None}


def test_the_order_of_categories_is_that_of_the_whole_training_set(place: Path) -> None:
    videos = sorted(json.loads(expressions(place).read_text())["videos"])
    held = {sample.video.id for sample in open_benchmark("ref-youtube-vos", place, "holdout").samples}

    def rename(content: Any) -> None:
        for video in set(videos) - held:
            content[video]["objects"]["1"]["category"] = "ape"

    edit(place / "train" / "meta.json", rename)
    for split in ("train", "holdout", "train_without_holdout"):
        assert open_benchmark("ref-youtube-vos", place, split).categories == ("ape", "green_box", "red_box")


def test_several_objects_have_a_category_only_if_it_is_one(place: Path) -> None:
    edit(expressions(place), lambda videos: videos["video00"]["expressions"]["0"].update(obj_id=["1", "2"]))
    assert categories(place)[:2] == [None, "green_box"]
    edit(place / "train" / "meta.json", lambda videos: videos["video00"]["objects"]["1"].update(category="green_box"))
    assert categories(place)[:2] == ["green_box", "green_box"]


def test_without_the_file_there_are_none_and_a_file_of_another_form_is_named(place: Path) -> None:
    file = place / "train" / "meta.json"
    file.write_text('{"videos": {"video00": {"objects": {"1": {}}}}}')
    with pytest.raises(DeixisError, match=r"meta\.json: 'category' must be str, got nothing"):
        categories(place)
    file.unlink()
    assert set(categories(place)) == {None}


def test_a_clips_category_survives_all_that_is_done_to_it(place: Path) -> None:
    benchmark = open_benchmark("ref-youtube-vos", place, "train")
    config, rng = systems.PRESETS["soc_debug"]().config, np.random.default_rng(0)
    steps: list[Callable[[TrainingClip], TrainingClip]] = [
        mirrored,
        lambda x: cut(x, (20, 40), rng),
        lambda x: distorted(x, rng),
        lambda x: shrink(x, config)[0],
    ]
    made = training_clip(benchmark, benchmark.samples[0], [0, 1])
    assert made.category == 1
    for step in steps:
        made = step(made)
        assert made.category == 1
    height, width = made.frames.shape[-2:]
    targets = collate(config, [(made, (height, width))]).to("cpu").targets
    assert targets is not None
    assert targets[0].category == 1


# --- the loss --------------------------------------------------------------------------------------------------------


def answer(classes: Tensor) -> Prediction:
    """Two queries with nothing but class logits (1, 2, 2, K), the same at an auxiliary level; ranked by the first."""
    one = Prediction(
        torch.zeros(1, 2, 2, 16, 24), classes[..., 0], torch.full((1, 2, 2, 4), 0.5), torch.zeros(1, 2),
        extras={"classes": classes},
    )  # fmt: skip
    return replace(one, aux=(one,))


def test_the_loss_of_classes_by_hand() -> None:
    classes = torch.zeros(1, 2, 2, 3, requires_grad=True)
    losses = set_loss(answer(classes), [replace(target([1, 0]), category=2)], SetLossConfig())
    one_positive, eleven_negatives = 0.25 * 0.25 * LN2, 11 * 0.75 * 0.25 * LN2
    expected = 2.0 * (one_positive + eleven_negatives) / 2  # weight 2; two frames
    assert float(losses["score"].detach()) == pytest.approx(expected)
    assert float(losses["score_0"].detach()) == pytest.approx(expected)
    (slope,) = torch.autograd.grad(losses["score"], classes)
    up = (slope < 0).nonzero().tolist()  # what the loss pushes up: one query, in the frame that shows it, at its class
    assert [[frame, kind] for _, frame, _, kind in up] == [[0, 2]]
    assert int((slope > 0).sum()) == 11


def test_the_matching_reads_the_class_of_the_object() -> None:
    classes = torch.full((1, 2, 2, 3), -2.0)
    classes[0, :, 0, 0] = 5.0  # the first query is sure of another class
    classes[0, :, 1, 2] = 1.0
    classes.requires_grad_()
    losses = set_loss(answer(classes), [replace(target([1, 1]), category=2)], SetLossConfig())
    (slope,) = torch.autograd.grad(losses["score"], classes)
    assert (slope < 0).nonzero().tolist() == [[0, 0, 1, 2], [0, 1, 1, 2]]


def test_a_clip_that_shows_nothing_pushes_all_classes_down() -> None:
    classes = torch.zeros(1, 2, 2, 3, requires_grad=True)
    losses = set_loss(answer(classes), [target([1, 1], referred=False)], SetLossConfig())
    (slope,) = torch.autograd.grad(losses["score"], classes)
    assert bool((slope > 0).all())


def test_without_a_category_the_score_alone_is_supervised() -> None:
    made = answer(torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(0)))
    plain = replace(made, extras={}, aux=(replace(made.aux[0], extras={}),))
    with_classes, without = (set_loss(x, [target([1, 0])], SetLossConfig()) for x in (made, plain))
    assert with_classes == without


def test_one_class_is_supervised_as_ever_whatever_the_category() -> None:
    made = answer(torch.randn(1, 2, 2, 1, generator=torch.Generator().manual_seed(0)))
    plain = replace(made, extras={}, aux=())
    assert set_loss(plain, [replace(target([1, 0]), category=7)], SetLossConfig()) == set_loss(
        plain, [target([1, 0])], SetLossConfig()
    )


def test_a_category_beyond_the_classes_is_refused() -> None:
    with pytest.raises(DeixisError, match="category 3, but the system has 3 classes"):
        set_loss(answer(torch.zeros(1, 2, 2, 3)), [replace(target([1, 1]), category=3)], SetLossConfig())


@pytest.mark.parametrize("name", ["soc_debug", "soc_plus_plus_debug"])
def test_class_logits_are_at_hand_in_training_at_every_level(name: str) -> None:
    preset: Any = systems.PRESETS[name]()
    x = batch(clip(1), "dog")
    made = type(preset)(replace(preset.config, classes=7)).train()(x)
    assert made.aux
    for level in (made, *made.aux):
        assert level.extras["classes"].shape == (*level.scores.shape, 7)
    assert "classes" not in preset.train()(x).extras
    with torch.no_grad():
        assert "classes" not in type(preset)(replace(preset.config, classes=7)).eval()(x).extras


# --- the recipe ------------------------------------------------------------------------------------------------------


def made_run(place: Path, **overrides: str) -> Any:
    data = {"ref-youtube-vos": place, "kinetics": place / "k.pth"}
    return find_recipe("soc_ref_youtube_vos")(
        data, overrides={key.replace("__", "."): v for key, v in overrides.items()}
    )


def test_the_recipe_says_what_the_switch_is() -> None:
    assert "--set model.classes=65" in " ".join(describe_recipe("soc_ref_youtube_vos"))
    assert "model.classes" not in " ".join(describe_recipe("soc_joint"))


def test_what_cannot_be_learned_is_refused_before_anything_is_built(place: Path) -> None:
    assert made_run(place).config.classes == 1
    assert made_run(place, model__classes="2").config.classes == 2
    edit(place / "train" / "meta.json", lambda videos: videos["video01"]["objects"]["1"].update(category="ape"))
    fresh = place.rename(place.with_name("three"))  # an opened benchmark is remembered by its place
    with pytest.raises(DeixisError, match="but ref-youtube-vos has 3 categories; set it to that"):
        made_run(fresh, model__classes="2")
    (fresh / "train" / "meta.json").unlink()
    bare = fresh.rename(fresh.with_name("bare"))
    with pytest.raises(
        DeixisError, match=r"gives no category for expression 0 of video00; .* leave model\.classes at 1"
    ):
        made_run(bare, model__classes="65")
    assert made_run(bare).config.classes == 1


@pytest.mark.parametrize("name", ["soc_world", "soc_plus_plus_world"])
def test_films_without_categories_take_one_class(name: str) -> None:
    with pytest.raises(DeixisError, match="these films have no categories; leave it at 1"):
        find_recipe(name)({}, overrides={"model.classes": "65"})


def test_two_steps_with_65_classes_and_the_model_predicts(place: Path, tmp_path: Path) -> None:
    overrides = {**SMALL, "model.classes": "65", "train.steps": "2", "train.global_batch": "2"}
    run = made_run(place, **overrides)
    batch = run.collate([run.samples(i) for i in range(4)])
    assert {one.category for one in batch.targets} == {0, 1}
    preset: Any = systems.PRESETS["soc_debug"]()
    config = replace(preset.config, classes=65)

    def system() -> Any:
        torch.manual_seed(0)
        return type(preset)(config)

    model = system().train()
    torch.stack(list(run.losses(model, batch).values())).sum().backward()
    for layer in model.heads.score:
        assert bool((layer.weight.grad.abs().amax(1) > 0).all())  # all 65 learn, at every level
    done = train(replace(run, system=system, groups=parameter_groups, config=config), tmp_path / "run", device="cpu")
    assert (done.step, done.stopped) == (2, "finished")
    model = weights.load(done.model)
    assert model.config.classes == 65
    opened = open_benchmark("ref-youtube-vos", place, "valid")
    predict(opened, tmp_path / "results", model, device="cpu")
    assert len(list((tmp_path / "results").rglob("*.png"))) == 4 * len(opened.samples)
