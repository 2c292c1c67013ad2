"""Files of before 0.1.0, whose parts had other names, load to the same weights and have the same fingerprint."""

from __future__ import annotations

import re
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
from deixis.old_keys import first_keys, key_of_today

# New name -> old name, written out apart from the table that is tested.
CONVNEXT = ((r"body\.vision\.", "body.eyes."), (r"body\.text_model\.", "body.ears."))
THEN = (
    (r"words_attend\.", "words_hear."), (r"patches_attend\.", "patches_hear."),
    (r"^(reason\.\d+|find\.layers\.\d+|watch\.layers\.\d+)\.attend_text\.", r"\1.hear."),
)  # fmt: skip


def as_it_was(path: Path) -> int:
    """Give a file the keys of then; returns how many keys were others."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    stored = load_file(path)
    table = THEN + (CONVNEXT if any("body.vision." in key for key in stored) else ())
    tensors: dict[str, Tensor] = {}
    renamed = 0
    for key, tensor in stored.items():
        old = key
        for now, then in table:
            old = re.sub(now, then, old)
        tensors[old] = tensor
        renamed += old != key
    save_file(tensors, path, metadata=metadata)
    return renamed


def small(name: str) -> Any:
    torch.manual_seed(3)
    return systems.PRESETS[name]()


@pytest.mark.parametrize(("name", "count"), [("conv_clip_mevis_debug", 129), ("vlp_rvos_debug", 50)])
def test_a_checkpoint_with_the_first_keys_loads_to_the_same_weights(name: str, count: int, tmp_path: Path) -> None:
    system = small(name)
    weights.save(system, tmp_path / "old.safetensors")
    assert as_it_was(tmp_path / "old.safetensors") == count
    again = weights.load(tmp_path / "old.safetensors").state_dict()
    wanted = system.state_dict()
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[key], value) for key, value in wanted.items() if isinstance(value, Tensor))


def test_a_tower_file_with_the_first_keys_is_read_and_its_fingerprint_is_that_of_the_first_keys(tmp_path: Path) -> None:
    tower = next(part for part in small("conv_clip_mevis_debug").modules() if isinstance(part, ConvClip))
    save_tower(tower, tmp_path / "tower.safetensors")
    assert as_it_was(tmp_path / "tower.safetensors") == 99
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
    kept = ("tower.body.text_model.x", "scorer.head.weight", "find.0.weight", "find.layers.0.norm.weight")
    assert [key_of_today(key) for key in kept] == list(kept)
