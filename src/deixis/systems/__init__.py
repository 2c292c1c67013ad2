"""The systems, one file a paper, and their presets by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from deixis.systems.conv_clip_mevis import (
    ConvClipMevis,
    ConvClipMevisConfig,
    conv_clip_mevis_b,
    conv_clip_mevis_debug,
    conv_clip_mevis_l,
)
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
from deixis.systems.vlp_rvos import (
    VlpRvos,
    VlpRvosConfig,
    vlp_rvos_clip_b,
    vlp_rvos_clip_l,
    vlp_rvos_debug,
    vlp_rvos_vlmo_b,
    vlp_rvos_vlmo_l,
)

# What a checkpoint's header may name, with the config it is built from.
SYSTEMS: dict[str, tuple[type[nn.Module], type]] = {
    "conv_clip_mevis": (ConvClipMevis, ConvClipMevisConfig),
    "light": (Light, LightConfig),
    "slvp": (Slvp, SlvpConfig),
    "soc": (Soc, SocConfig),
    "soc_plus_plus": (SocPlusPlus, SocPlusPlusConfig),
    "vlp_rvos": (VlpRvos, VlpRvosConfig),
}

# What a person may name: functions that build a system with random weights.
PRESETS: dict[str, Callable[[], nn.Module]] = {
    "conv_clip_mevis_l": conv_clip_mevis_l,
    "conv_clip_mevis_b": conv_clip_mevis_b,
    "conv_clip_mevis_debug": conv_clip_mevis_debug,
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
    "vlp_rvos_clip_b": vlp_rvos_clip_b,
    "vlp_rvos_clip_l": vlp_rvos_clip_l,
    "vlp_rvos_vlmo_b": vlp_rvos_vlmo_b,
    "vlp_rvos_vlmo_l": vlp_rvos_vlmo_l,
    "vlp_rvos_debug": vlp_rvos_debug,
}

# What a preset needs beside its own checkpoint: the frozen towers that stay out of it.
NEEDS: dict[str, str] = {
    "conv_clip_mevis_l": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup, from the hub (or its cache) or a "
    "folder with its file and vocabulary; frozen",
    "conv_clip_mevis_b": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg, from the hub (or its cache) "
    "or a folder with its file and vocabulary; frozen",
    "vlp_rvos_clip_b": "openai/clip-vit-base-patch16, from the hub (or its cache) or a folder; frozen",
    "vlp_rvos_clip_l": "openai/clip-vit-large-patch14, from the hub (or its cache) or a folder; frozen",
    "vlp_rvos_vlmo_b": "vlmo_base_patch16_384_coco.pt, a file that may not be obtainable any more; frozen",
    "vlp_rvos_vlmo_l": "vlmo_large_patch16_384_coco.pt, a file that may not be obtainable any more; frozen",
}
