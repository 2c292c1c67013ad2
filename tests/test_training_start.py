"""``--data start=CHECKPOINT``: every recipe goes on from a checkpoint of its own system, and refuses others by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deixis import weights
from deixis.training.recipes import soc, vlp_rvos
from deixis.training.recipes.conv_clip_mevis import build_conv_clip_mevis
from deixis.training.recipes.light import build
from deixis.types import DeixisError

Start = Callable[[Any, Mapping[str, Path]], nn.Module]
STARTS: dict[str, Start] = {
    "light_debug": build, "soc_debug": soc.build_soc, "soc_plus_plus_debug": soc.build_soc,
    "vlp_rvos_debug": vlp_rvos.build_vlp_rvos, "conv_clip_mevis_debug": build_conv_clip_mevis,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    places = {name: folder / f"{name}.safetensors" for name in STARTS}
    for name, place in places.items():
        weights.save(weights.load(name), place)
    return places


@pytest.mark.parametrize("name", STARTS)
def test_a_run_begins_with_the_very_weights_of_its_start(name: str, checkpoints: dict[str, Path]) -> None:
    there = weights.load(checkpoints[name])
    begun = STARTS[name](there.config, {"start": checkpoints[name]})
    found = dict(begun.named_parameters())
    assert found.keys() == dict(there.named_parameters()).keys()
    assert all(torch.equal(found[key], value) for key, value in there.named_parameters())


@pytest.mark.parametrize("name", STARTS)
def test_a_checkpoint_of_another_system_is_refused(name: str, checkpoints: dict[str, Path]) -> None:
    other = "soc_debug" if name != "soc_debug" else "light_debug"
    with pytest.raises(DeixisError, match=r"--data start=.* is a checkpoint of \w+, expected one of \w+"):
        STARTS[name](weights.load(name).config, {"start": checkpoints[other]})


@pytest.mark.parametrize(("name", "field"), [("soc_debug", "hidden"), ("soc_plus_plus_debug", "hidden")])
def test_a_checkpoint_of_other_sizes_is_refused_with_its_tensors(
    name: str, field: str, checkpoints: dict[str, Path]
) -> None:
    config: Any = weights.load(name).config
    changed = replace(config, **{field: 2 * getattr(config, field)})
    with pytest.raises(DeixisError, match=r"does not fit this model, at \d+ tensors: .*leave out the --set model"):
        STARTS[name](changed, {"start": checkpoints[name]})
