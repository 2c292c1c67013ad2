"""Files of before 0.1.0, whose parts had other names, load to the same weights and have the same fingerprint."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from deixis import systems, weights
from deixis.encoders.conv_clip import ConvClip
from deixis.encoders.frozen import fingerprint_of, read_own, save_tower
from deixis.old_keys import RENAMED_FIELDS, first_keys, key_of_today
from deixis.systems import slvp
from deixis.training.checkpoint import pack_state, unpack_state

# Of the debug systems at d1e4d32, before anything was renamed: {system: {"keys": {key: shape}, "config": its fields}}.
FIRST: dict[str, Any] = json.loads(gzip.decompress((Path(__file__).parent / "data/first_keys.json.gz").read_bytes()))


def small(name: str) -> Any:
    torch.manual_seed(3)
    if name.endswith("_flow"):
        return slvp.Slvp(replace(slvp.DEBUG, head="flow", fusion="language" if "language" in name else "vision"))
    return systems.PRESETS[name]()


def first_fields(config: dict[str, Any]) -> dict[str, Any]:
    first = {new: old for old, new in RENAMED_FIELDS.items()}
    return {first.get(k, k): first_fields(v) if isinstance(v, dict) else v for k, v in config.items()}


@pytest.mark.parametrize("name", FIRST)
def test_every_key_of_the_first_files_has_its_key_of_today_and_its_shape(name: str) -> None:
    now = {k: list(v.shape) for k, v in small(name).state_dict().items() if isinstance(v, Tensor)}
    found = {key_of_today(key): shape for key, shape in FIRST[name]["keys"].items()}
    assert found == now
    assert list(found) == list(now)  # an optimiser numbers parameters by their order
    assert [key_of_today(key) for key in now] == list(now)


@pytest.mark.parametrize("name", [name for name in FIRST if not name.endswith("_flow")])
def test_a_file_with_the_first_keys_and_fields_loads_to_the_same_weights(name: str, tmp_path: Path) -> None:
    system, path = small(name), tmp_path / "old.safetensors"
    weights.save(system, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["deixis"])
    facts["config"] = first_fields(facts["config"])
    assert facts["config"].keys() >= FIRST[name]["config"].keys()
    stored, first = load_file(path), {key_of_today(key): key for key in FIRST[name]["keys"]}
    assert any(key != first.get(key, key) for key in stored)
    metadata["deixis"] = json.dumps(facts)
    save_file({first.get(key, key): tensor for key, tensor in stored.items()}, path, metadata=metadata)
    loaded = weights.load(path)
    again, wanted = loaded.state_dict(), system.state_dict()
    assert loaded.config == system.config
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[key], value) for key, value in wanted.items() if isinstance(value, Tensor))


def test_every_renamed_field_is_one_of_a_system() -> None:
    fields = {field for _, config in systems.SYSTEMS.values() for field in config.__dataclass_fields__}
    assert set(RENAMED_FIELDS.values()) <= fields
    assert not set(RENAMED_FIELDS) & fields


def test_a_training_goes_on_from_a_file_with_the_first_keys(tmp_path: Path) -> None:
    system = small("soc_debug")
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=1e-3)
    for parameter in system.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    first = {key_of_today(key): key for key in FIRST["soc_debug"]["keys"]}
    state = pack_state(system, optimizer, None)
    named = {name: name.partition("/") for name in state}
    old = {f"{part}/{first.get(key, key)}": state[name] for name, (part, _, key) in named.items()}
    assert old.keys() != state.keys()
    other = small("soc_debug")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    again = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-3)
    unpack_state(old, other, again, None)
    for one, two in zip(system.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(optimizer.state[one]["exp_avg"], again.state[two]["exp_avg"])


def with_first_keys(path: Path) -> int:
    """Give a tower's file its first keys; returns how many keys were others."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    stored = load_file(path)
    listed = [key for key in FIRST["conv_clip_mevis_debug"]["keys"] if key.startswith("tower.")]
    first = {key_of_today(key).removeprefix("tower."): key.removeprefix("tower.") for key in listed}
    save_file({first.get(key, key): tensor for key, tensor in stored.items()}, path, metadata=metadata)
    return sum(first.get(key, key) != key for key in stored)


def test_a_tower_file_with_the_first_keys_is_read_and_its_fingerprint_is_that_of_the_first_keys(tmp_path: Path) -> None:
    tower = next(part for part in small("conv_clip_mevis_debug").modules() if isinstance(part, ConvClip))
    save_tower(tower, tmp_path / "tower.safetensors")
    assert with_first_keys(tmp_path / "tower.safetensors") == 99
    found = read_own(tmp_path / "tower.safetensors", "ConvClip", tower.config)
    assert found is not None
    assert found.state.keys() == tower.module.state_dict().keys()

    class Then(torch.nn.Module):
        def state_dict(self, *args: Any, **named: Any) -> dict[str, Any]:
            now = tower.module.state_dict()
            return {re.sub("^vision", "eyes", re.sub("^text_model", "ears", key)): now[key] for key in now}

    assert torch.equal(fingerprint_of(Then()), fingerprint_of(tower.module))


def test_keys_of_other_towers_stay() -> None:
    clip = ["logit_scale", "text_model.embeddings.weight", "vision_model.embeddings.weight"]
    assert first_keys(clip) == {key: key for key in clip}
    kept = ("tower.body.text_model.x", "scorer.head.weight", "tiny_vit.stem.0.weight")
    assert [key_of_today(key) for key in kept] == list(kept)
