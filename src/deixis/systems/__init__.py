"""The systems, one file a paper, and their presets by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import nn

from deixis.tables import SYSTEM_FILES

_MODULES = {name: import_module(f"deixis.systems.{name}") for name in SYSTEM_FILES}

# What a checkpoint's header may name, with the config it is built from.
SYSTEMS: dict[str, tuple[type[nn.Module], type]] = {name: module.SYSTEM for name, module in _MODULES.items()}

# What a person may name: functions that build a system with random weights.
PRESETS: dict[str, Callable[[], nn.Module]] = {
    preset.__name__: preset for module in _MODULES.values() for preset in module.PRESETS
}

# What a preset needs beside its own checkpoint: the frozen towers that stay out of it.
NEEDS: dict[str, str] = {
    name: needed for module in _MODULES.values() for name, needed in getattr(module, "NEEDS", {}).items()
}
