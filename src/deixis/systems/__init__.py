"""The systems, one file a paper, and their presets by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from deixis.systems.light import Light, LightConfig, light, light_debug

# What a checkpoint's header may name, with the config it is built from.
SYSTEMS: dict[str, tuple[type[nn.Module], type]] = {
    "light": (Light, LightConfig),
}

# What a person may name: functions that build a system with random weights.
PRESETS: dict[str, Callable[[], nn.Module]] = {
    "light": light,
    "light_debug": light_debug,
}
