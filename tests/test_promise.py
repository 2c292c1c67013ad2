"""What every system promises, asked of every debug preset: encode, decode, forward; clips that do not mix; any number
of expressions and frames; frozen parts that stay frozen; a file that brings the same model back; films of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clips import batch
from helpers.films import moving, write_folder
from helpers.present import with_presence
from torch import Tensor

from deixis import systems, weights
from deixis.encoders.frozen import FrozenTower
from deixis.inference import segment
from deixis.training.optimizer import parameter_groups
from deixis.types import Expression, Prediction

NAMES = [name for name in systems.PRESETS if name.endswith("_debug")]
SIDE = 64  # pixels: a multiple of every stride, and square for the systems that want squares


def load(name: str) -> Any:
    return weights.load(name)


def clips(count: int, frames: int = 3) -> Tensor:
    return torch.randn(count, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))


def same(a: Prediction, b: Prediction, row: int = 0) -> None:
    for name in ("masks", "scores"):
        x, y = getattr(a, name)[row], getattr(b, name)[0]
        assert x.shape == y.shape, name
        assert float((x - y).abs().max()) <= 2e-5 * max(1e-3, float(y.abs().max())), name


def test_every_system_has_a_debug_preset_and_its_config_a_place_in_the_table() -> None:
    kinds = {type(systems.PRESETS[name]()) for name in NAMES}
    assert kinds == {kind for kind, _ in systems.SYSTEMS.values()}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_answers_are_finite_and_of_the_promised_shapes(name: str) -> None:
    model = load(name)
    x = batch(clips(2), "dog", "a longer sentence about it")
    answer = model(x)
    q = answer.scores.shape[2]
    assert answer.masks.shape[:3] == (2, 3, q)
    assert torch.isfinite(answer.masks).all()
    assert torch.isfinite(answer.scores).all()
    again = model.decode(model.encode(x.frames, x.padding), x.expressions)
    assert torch.equal(again.masks, answer.masks)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_batch_gives_what_each_clip_gives_alone(name: str) -> None:
    model, frames, texts = load(name), clips(2), ("dog", "a longer sentence about it")
    together = model(batch(frames, *texts))
    for i, text in enumerate(texts):
        same(together, model(batch(frames[i : i + 1], text)), i)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_clip_is_encoded_once_and_asked_many_things(name: str) -> None:
    model, texts = load(name), ("dog", "the red cat on the left", "a")
    x = batch(clips(1), "dog")
    maps = model.encode(x.frames, x.padding)
    together = model.decode(maps, [Expression(text) for text in texts])
    assert len(together.masks) == 3
    for i, text in enumerate(texts):
        same(together, model.decode(maps, [Expression(text)]), i)


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_keeps_frozen_towers_frozen(name: str) -> None:
    model = load(name).train()
    trained = {id(p) for group in parameter_groups(model) for p in group["params"]}
    for part in model.modules():
        if isinstance(part, FrozenTower):
            assert not any(inner.training for inner in part.modules())
            assert not any(p.requires_grad or id(p) in trained for p in part.parameters())
    assert trained


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_saved_model_comes_back_the_same(name: str, tmp_path: Path) -> None:
    model = load(name)
    weights.save(model, tmp_path / "model.safetensors")
    x = batch(clips(1), "the dog")
    same(weights.load(tmp_path / "model.safetensors")(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_film_of_any_size_and_length_is_segmented(name: str, tmp_path: Path) -> None:
    film = write_folder(tmp_path / "film", moving(11, shape=(61, 83)))
    for shift in (20.0, -20.0):
        model = with_presence(load(name), shift)
        one, two = segment(film, ["the red square", "a dog"], model=model)
        for track in (one, two):
            assert len(track) == 11
            assert np.asarray(track.masks).shape == (11, 61, 83)
            assert np.isfinite(track.scores).all()
            assert track.presence == pytest.approx(float(shift > 0), abs=1e-3)
            if model.config.presence_threshold is not None:
                assert track.present == np.asarray(track.masks).any() == (shift > 0)
