"""A small tower pair learns a space of words and regions from generated pictures, and other systems stand on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deixis.encoders.clip_vit import ClipVit
from deixis.encoders.conv_clip import ConvClip
from deixis.encoders.frozen import FrozenTower, fill_towers, tower_facts
from deixis.synthetic.shapes import HELD_OUT_SHAPES, held_out_pair
from deixis.systems.soc import Soc
from deixis.training.generated import WorldData, generated_video
from deixis.training.loop import train
from deixis.training.recipes import find_recipe
from deixis.training.tower_model import LearningTower, TowerConfig, region_loss, tower_losses
from deixis.training.tower_pictures import (
    Phrase,
    PlacedShape,
    TowerData,
    collate_pictures,
    phrase_of,
    picture_of,
    sample_picture,
)
from deixis.types import DeixisError
from deixis.weights import load, save

TINY = {
    "model.vit.width": "32", "model.vit.layers": "2", "model.vit.text_width": "32", "model.vit.joint": "24",
    "model.conv.channels": "8,16,16,24", "model.conv.text_width": "32", "model.conv.joint": "24",
    "data.pictures": "24", "data.held_out_pictures": "6", "train.batch": "6", "train.threads": "1",
}  # fmt: skip


@pytest.fixture(scope="module", params=["vit", "conv"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param)
    steps = {"model.kind": request.param, "train.steps": "12", "train.warmup_steps": "2", "train.log_every": "1"}
    return request.param, train(find_recipe("tower_world")({}, overrides=TINY | steps), out, device="cpu").model


def tower_at(kind: str, path: Path) -> FrozenTower:
    from deixis.config import config_from
    from deixis.encoders.clip_vit import ClipVitConfig
    from deixis.encoders.conv_clip import ConvClipConfig

    facts = tower_facts(path)
    assert facts is not None
    config_kind = {"vit": ClipVitConfig, "conv": ConvClipConfig}[kind]
    config = replace(config_from(config_kind, facts["config"], str(path)), place=str(path))
    tower = ClipVit(config) if kind == "vit" else ConvClip(config)
    tower.fill()
    return tower


def test_what_is_written_is_a_frozen_tower_for_other_systems(trained: tuple[str, Path]) -> None:
    kind, path = trained
    tower = tower_at(kind, path)
    assert not any(p.requires_grad for p in tower.parameters())
    texts = ["the red circle", "a blue star moving to the left"]
    text_features = tower.encode_text(texts)  # type: ignore[attr-defined]
    assert text_features.words.isfinite().all()
    assert not torch.allclose(text_features.sentence[0], text_features.sentence[1])
    assert tower.tokenizer is not None
    assert tower.tokenizer.encode("the red circle").tokens == ["<s>", "the", "red", "circle", "</s>"]


def test_the_losses_fall(trained: tuple[str, Path]) -> None:
    _, path = trained
    import json

    rows = [json.loads(line)["losses"] for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for name in ("region", "words"):
        term = [row[name] for row in rows]
        assert np.mean(term[-3:]) < np.mean(term[:3])


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_every_part_of_a_learning_tower_gets_a_gradient(kind: str) -> None:
    overrides = TINY | {"model.kind": kind}
    run = find_recipe("tower_world")({}, overrides=overrides)
    system = run.system()
    sum(run.losses(system, run.collate([run.samples(i) for i in range(4)])).values()).backward()
    without = [name for name, p in system.named_parameters() if p.grad is None]
    assert without == []


def test_words_of_generated_films_are_all_known() -> None:
    system = LearningTower(TowerConfig())
    assert system.tower.tokenizer is not None
    kinds = ("class", "colour", "texture", "size", "place", "motion", "time", "relation", "several", "none")
    films = WorldData(sentences=tuple((kind, 1.0) for kind in kinds), objects=(2, 4), frames=6)
    texts = {s.text for i in range(25) for s in generated_video(films, "valid", i).sentences}
    unknown = {t for text in texts for t in system.tower.tokenizer.encode(text).tokens if t == "<unk>"}
    assert len(texts) > 60
    assert unknown == set()


def test_training_never_shows_a_held_out_shape_or_pair() -> None:
    data = TowerData()
    shown = [thing for i in range(60) for thing in picture_of(data, False, i).things]
    held = [thing for i in range(30) for thing in picture_of(data, True, i).things]
    assert not any(held_out_pair(t.colour, t.shape) or t.shape in HELD_OUT_SHAPES for t in shown)
    assert all(held_out_pair(t.colour, t.shape) and t.shape not in HELD_OUT_SHAPES for t in held)


def test_phrases_are_true_of_their_thing_and_of_no_other_colour() -> None:
    rng = np.random.default_rng(0)
    red, blue = PlacedShape("red", "circle"), PlacedShape("blue", "circle")
    phrases = [phrase_of(red, rng) for _ in range(200)]
    assert all(phrase.fits(red) for phrase in phrases)
    for phrase in phrases:
        assert phrase.fits(blue) == ("red" not in phrase.text.replace("-", " ").split()), phrase.text
    assert {"", "red"} == {phrase.colour for phrase in phrases}
    assert Phrase("a circle", "", "circle").fits(PlacedShape("red", "hexagon")), "from afar it may be one"


def test_a_phrase_that_fits_another_region_is_not_held_against_it() -> None:
    regions = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    phrases, nothing = regions.clone(), torch.zeros(0, 8)
    phrases[1] = phrases[0]  # the same phrase for the first two regions
    scale, alone = torch.tensor(10.0), torch.eye(3, dtype=torch.bool)
    both = alone.clone()
    both[0, 1] = both[1, 0] = True
    assert region_loss(regions, nothing, phrases, both, scale) < region_loss(regions, nothing, phrases, alone, scale)


def test_a_background_that_looks_like_the_phrase_is_held_against_it() -> None:
    regions = torch.eye(2, 8)
    fits, scale = torch.eye(2, dtype=torch.bool), torch.tensor(10.0)
    far, near = torch.eye(3, 8)[2:], torch.eye(1, 8)
    assert region_loss(regions, far, regions, fits, scale) < region_loss(regions, near, regions, fits, scale)


def test_samples_are_functions_of_their_index() -> None:
    data = TowerData(pictures=10)
    one, two, later = (collate_pictures([sample_picture(data, 0, i)]) for i in (3, 3, 13))
    assert torch.equal(one.frames, two.frames)
    assert one.phrases == two.phrases
    batches = [collate_pictures([sample_picture(data, 0, i)]) for i in range(3, 103, 10)]
    assert len({phrase for batch in batches for phrase in batch.phrases}) > 10
    assert later.frames.shape == one.frames.shape


def test_a_size_that_the_tower_cannot_see_whole_is_refused() -> None:
    with pytest.raises(DeixisError, match="multiples of 32"):
        find_recipe("tower_world")({}, overrides={"model.kind": "conv", "data.size": "48,80"})
    with pytest.raises(DeixisError, match="trained from scratch"):
        TowerConfig(conv=replace(TowerConfig().conv, place="somewhere"))


# --- SOC on the same tower --------------------------------------------------------------------------------------------


def soc_run(path: Path, **changes: str):  # type: ignore[no-untyped-def]
    overrides = {"data.size": "64,96", "data.films": "4", "data.held_out_films": "1", "data.frames": "2"} | changes
    return find_recipe("soc_world")({"tower": path}, overrides=overrides)


def test_soc_stands_on_a_convolutional_tower_and_leaves_it_alone(trained: tuple[str, Path], tmp_path: Path) -> None:
    kind, path = trained
    if kind == "vit":
        with pytest.raises(DeixisError, match="kind ConvClip"):
            soc_run(path)
        return
    run = soc_run(path)
    system = run.system().train()
    assert isinstance(system, Soc)
    sum(run.losses(system, run.collate([run.samples(i) for i in range(2)])).values()).backward()
    frozen = {name for name, p in system.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith("vision.tower.") for name in frozen)
    assert [n for n, p in system.named_parameters() if p.requires_grad and p.grad is None] == []
    save(system.eval(), tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    batch = run.collate([run.samples(0)])
    with torch.inference_mode():
        assert torch.equal(system(batch).masks, again(batch).masks)
    assert not any("body" in key for key in system.state_dict())
    assert fill_towers(again) is again


def test_soc_refuses_a_tower_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match="--data tower="):
        soc_run(tmp_path / "nothing.safetensors")


def test_losses_name_region_picture_and_words() -> None:
    data = TowerData(picture=0.0)
    system = LearningTower(TowerConfig())
    terms = tower_losses(data, system, collate_pictures([sample_picture(data, 0, i) for i in range(3)]))
    assert set(terms) == {"region", "picture", "words"}
    assert terms["picture"].item() == 0.0
    assert terms["region"].item() > 0
