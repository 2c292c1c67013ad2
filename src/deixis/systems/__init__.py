"""The systems, one file a paper, and their presets by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from deixis.systems.light import Light, LightConfig, light, light_debug
from deixis.systems.slvp import Slvp, SlvpConfig, slvp_debug, slvp_language, slvp_language_debug, slvp_vision
from deixis.systems.soc import Soc, SocConfig, soc_debug, soc_swin_b, soc_swin_t
from deixis.systems.soc_plus_plus import (
    SocPlusPlus,
    SocPlusPlusConfig,
    soc_plus_plus_debug,
    soc_plus_plus_swin_b,
    soc_plus_plus_swin_t,
)

# What a checkpoint's header may name, with the config it is built from.
SYSTEMS: dict[str, tuple[type[nn.Module], type]] = {
    "light": (Light, LightConfig),
    "slvp": (Slvp, SlvpConfig),
    "soc": (Soc, SocConfig),
    "soc_plus_plus": (SocPlusPlus, SocPlusPlusConfig),
}

# What a person may name: functions that build a system with random weights.
PRESETS: dict[str, Callable[[], nn.Module]] = {
    "light": light,
    "light_debug": light_debug,
    "slvp_vision": slvp_vision,
    "slvp_language": slvp_language,
    "slvp_debug": slvp_debug,
    "slvp_language_debug": slvp_language_debug,
    "soc_swin_t": soc_swin_t,
    "soc_swin_b": soc_swin_b,
    "soc_debug": soc_debug,
    "soc_plus_plus_swin_t": soc_plus_plus_swin_t,
    "soc_plus_plus_swin_b": soc_plus_plus_swin_b,
    "soc_plus_plus_debug": soc_plus_plus_debug,
}
