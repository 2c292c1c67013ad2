"""The recipe of a small CLIP, trained on generated pictures to serve as a frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from deixis.config import apply_overrides
from deixis.synthetic.colours import COLOUR_NAMES
from deixis.synthetic.sentences import MOTION_WORDS, fill
from deixis.training.optimizer import parameter_groups
from deixis.training.run import Run, TrainConfig
from deixis.training.tower_model import (
    LearningTower,
    TowerConfig,
    export_tower,
    grid_of,
    named_words,
    regions_of,
    tower_losses,
)
from deixis.training.tower_pictures import (
    KNOWN_SHAPES,
    Phrase,
    PlacedShape,
    TowerData,
    collate_pictures,
    picture_of,
    sample_picture,
)
from deixis.types import DeixisError


def tower_world(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Train a small tower pair on pictures made as it goes; needs no data. ``--set model.kind=vit`` or ``conv``."""
    configs = apply_overrides(
        overrides,
        model=TowerConfig(),
        data=TowerData(),
        train=TrainConfig(
            steps=2000, batch=16, lr=2e-3, warmup_steps=100, weight_decay=0.05, clip_norm=1.0, log_every=50
        ),
    )
    model, made = configs["model"], configs["data"]
    if any(side % model.multiple for side in made.size):
        raise DeixisError(f"data.size must be multiples of {model.multiple} for this tower, got {made.size}")
    return Run(
        name="tower_world",
        system=partial(LearningTower, model),
        samples=partial(sample_picture, made, configs["train"].seed),
        collate=collate_pictures,
        losses=partial(tower_losses, made),
        groups=parameter_groups,
        validate=partial(validate_tower, made),
        train=configs["train"],
        config=model,
        export=export_tower,
    )


# --- validation -------------------------------------------------------------------------------------------------------


def validate_tower(data: TowerData, system: nn.Module) -> dict[str, float]:
    """On held-out pictures, by the likeness of regions and phrases: the share of objects whose "the COLOUR SHAPE" is
    found among all such phrases (``retrieval``), whose "the SHAPE" is, and whose "the COLOUR object" is, each with its
    chance; and the share of phrases whose most similar cell lies in their object (``pointing``), against the objects'
    share of the picture. Training never paired these colours and shapes, which weighs most on ``retrieval``.
    ``named``: the share of the words of motion phrases that are read off their own features."""
    assert isinstance(system, LearningTower)
    pairs = [PlacedShape(colour, shape) for colour in COLOUR_NAMES for shape in KNOWN_SHAPES]
    device = next(system.parameters()).device
    tables = {
        "retrieval": ([f"the {pair.colour} {pair.shape}" for pair in pairs], lambda thing: pairs.index(thing)),
        "shape": ([f"the {shape}" for shape in KNOWN_SHAPES], lambda thing: KNOWN_SHAPES.index(thing.shape)),
        "colour": ([f"the {colour} object" for colour in COLOUR_NAMES], lambda thing: COLOUR_NAMES.index(thing.colour)),
    }
    embedded = {name: system.embed_text(texts) for name, (texts, _) in tables.items()}
    hits: dict[str, list[float]] = {name: [] for name in (*tables, "pointing", "pointing_chance")}
    for start in range(0, data.held_out_pictures, 25):
        chosen = range(start, min(start + 25, data.held_out_pictures))
        pictures = [picture_of(data, True, index) for index in chosen]
        batch = collate_pictures(
            [replace(p, phrases=tuple(Phrase(f"the {t.colour} {t.shape}", "", "") for t in p.things)) for p in pictures]
        ).to(device)
        things = [thing for picture in pictures for thing in picture.things]
        maps, _ = system.encode_image(batch.frames)
        regions = [regions_of(x, batch) for x in maps]
        for name, (_, right) in tables.items():
            best = torch.stack([x @ embedded[name].t() for x in regions]).mean(0).argmax(1).tolist()
            hits[name] += [float(found == right(thing)) for found, thing in zip(best, things, strict=True)]
        size = grid_of(maps[0])
        phrases = system.embed_text(batch.phrases)
        alike = torch.stack(
            [F.interpolate(torch.einsum("rehw,re->rhw", x[batch.which], phrases)[:, None], size=size) for x in maps]
        ).mean(0)  # (R, 1, h, w)
        covered = F.adaptive_avg_pool2d(batch.masks.float(), size)  # (R, h, w)
        at = covered.flatten(1).gather(1, alike.flatten(1).argmax(1)[:, None])[:, 0] > 0.5
        hits["pointing"] += at.float().tolist()
        hits["pointing_chance"] += (covered > 0.5).float().mean((1, 2)).tolist()
    texts = [fill(form, "star") for forms in MOTION_WORDS.values() for form in forms]
    hits["named"] = named_words(system, texts).tolist()
    chances = {f"{name}_chance": 1 / len(texts) for name, (texts, _) in tables.items()}
    return {name: float(np.mean(values)) for name, values in hits.items()} | chances


RECIPES = {"tower_world": tower_world}
