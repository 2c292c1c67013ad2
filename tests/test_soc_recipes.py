"""The recipes of SOC and SOC++: they name what they need, keep rates and words as published, and make true batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deixis.benchmarks import write_fixture
from deixis.encoders.roberta import TextConfig, TextEncoder
from deixis.encoders.tokenizers import roberta_letter_tokenizer, word_tokenizer
from deixis.systems.soc import Soc, SocConfig
from deixis.training.clips import mirrored
from deixis.training.recipes import RECIPES, find_recipe, soc
from deixis.training.recipes.soc import RECIPES as SOC_RECIPES
from deixis.training.sources import MEVIS, PSEUDO, SocData, epoch_order, read_clip
from deixis.types import DeixisError
from deixis.weights_import import load_roberta


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("soc") and "world" not in name])
def test_a_published_recipe_says_what_it_needs(name: str) -> None:
    with pytest.raises(DeixisError, match="needs --data"):
        find_recipe(name)({}, overrides={})


@pytest.mark.parametrize(
    ("name", "benchmark", "frames", "labelled"),
    [
        ("soc_ref_youtube_vos", "ref-youtube-vos", 8, 8),
        ("soc_plus_plus_mevis", "mevis", 8, 8),
        ("soc_a2d", "a2d-sentences", 8, 1),
        ("soc_refcoco", "refcoco", 1, 1),
    ],
)
def test_a_published_recipe_makes_batches_of_its_benchmark(
    name: str, benchmark: str, frames: int, labelled: int, tmp_path: Path
) -> None:
    write_fixture(benchmark, tmp_path / "data")
    run = find_recipe(name)({benchmark: tmp_path / "data", "kinetics": tmp_path / "k.pth"}, overrides={})
    batch = run.collate([run.samples(i) for i in (0, 1)])
    assert batch.frames.shape[:2] == (2, frames)
    assert batch.targets is not None
    assert all(len(t.masks) == labelled for t in batch.targets)
    assert all(bool(t.visible[:, t.referred].any(0).all()) for t in batch.targets)
    assert (batch.wanted is None) == (labelled == frames and frames > 1)
    again = run.collate([run.samples(i) for i in (0, 1)])
    assert torch.equal(batch.frames, again.frames)


def test_pseudo_clips_move_a_still_and_its_mask_together(tmp_path: Path) -> None:
    write_fixture("refcoco", tmp_path)
    source = replace(PSEUDO[0], data="x")
    clip = read_clip(source, str(tmp_path), (0, (0,)), SocData(flip=0.0), np.random.default_rng(0))
    assert len(clip.frames) == len(clip.target.masks) == 8
    assert clip.wanted is None


def test_a_mirror_turns_frames_masks_boxes_and_words(tmp_path: Path) -> None:
    write_fixture("mevis", tmp_path)
    source = replace(MEVIS, split="train")
    clip = read_clip(source, str(tmp_path), (0, tuple(range(3))), SocData(flip=0.0), np.random.default_rng(0))
    clip = replace(clip, expression=replace(clip.expression, text="the bright one on the left"))
    turned = mirrored(clip)
    assert turned.expression.text == "the bright one on the right"
    assert torch.equal(turned.frames.flip(-1), clip.frames)
    seen = clip.target.visible
    assert torch.allclose(turned.target.boxes[seen][:, 0], 1 - clip.target.boxes[seen][:, 0], atol=1e-6)


def test_every_epoch_shows_all_clips_once_in_its_own_order() -> None:
    first, second = epoch_order(42, 0, 50), epoch_order(42, 1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)


def test_rates_are_those_of_the_papers_groups() -> None:
    torch.manual_seed(0)
    model: Any = Soc(SOC_RECIPES["soc_world"].keywords["model"])
    groups = soc.soc_groups({"vision.": 0.1, "text.encoder.": 0.05}, model)
    assert {g["scale"] for g in groups} == {1.0, 0.1, 0.05}
    assert all(g["decay"] for g in groups)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["soc_world", "soc_plus_plus_world"])
def test_the_small_recipe_takes_a_step_and_validates(name: str) -> None:
    run = find_recipe(name)({}, overrides={"data.held_out_films": "2", "data.films": "10"})
    model = run.system().train()
    batch = run.collate([run.samples(i) for i in range(2)])
    total = torch.stack(list(run.losses(model, batch).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert run.validate is not None
    with torch.inference_mode():
        scores = run.validate(model.eval())
    assert 0 <= scores["right"] <= 1


def test_the_ablation_has_no_cluster_and_otherwise_the_same_parts() -> None:
    with_it = find_recipe("soc_world")({}, overrides={}).config
    without = find_recipe("soc_world")({}, overrides={"model.cluster": "false"}).config
    assert isinstance(with_it, SocConfig)
    names = [{k for k, _ in Soc(config).named_parameters()} for config in (with_it, without)]
    assert {k.split(".")[0] for k in names[0] - names[1]} == {"cluster"}


def test_a_word_tokenizer_gives_known_words_a_token_each_and_unknown_ones_none() -> None:
    tokenizer = word_tokenizer(["the red dog", "The dog, left"], 10)
    ids = tokenizer.encode("the zebra dog").ids
    assert len(ids) == 5
    assert ids[2] == 3
    assert tokenizer.get_vocab_size() <= 10


def test_roberta_files_start_the_text_encoder_but_for_the_pooler(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    config = TextConfig(vocabulary=64, width=32, layers=1, heads=2, hidden=64, positions=40, tokenizer="letters")
    torch.manual_seed(0)
    source, target = TextEncoder(config, 16), TextEncoder(config, 16)
    source.encoder.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=roberta_letter_tokenizer(), pad_token="<pad>").save_pretrained(tmp_path)
    missing = load_roberta(target, str(tmp_path))
    assert all(key.startswith("pooler.") for key in missing)
    same = target.encoder.embeddings.word_embeddings.weight
    assert torch.equal(same, source.encoder.embeddings.word_embeddings.weight)
    with pytest.raises(DeixisError, match="neither a folder nor"):
        load_roberta(target, str(tmp_path / "nothing"))
