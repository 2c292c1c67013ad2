"""Systems with random weights whose presence is set, so that they show what they find at the threshold they state."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deixis import weights
from deixis.systems import PRESETS

PLACE = "DEIXIS_TESTS_PRESENT"  # so that processes which a test starts use the same file


def with_presence(model: Any, shift: float) -> Any:
    """The model, its presence logits shifted: far up, everything asked counts as there; far down, nothing does."""
    model.config = replace(model.config, presence_shift=shift)
    return model


def present_model() -> str:
    """A file of ``light_debug`` for which everything asked is there; kept for the run of the tests."""
    if PLACE not in os.environ:
        folder, own = tempfile.mkdtemp(prefix="deixis-present-"), os.getpid()
        atexit.register(lambda: os.getpid() == own and shutil.rmtree(folder, ignore_errors=True))
        os.environ[PLACE] = str(Path(folder) / "light_debug.safetensors")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights.save(with_presence(PRESETS["light_debug"](), 3.0), Path(os.environ[PLACE]))
    return os.environ[PLACE]
