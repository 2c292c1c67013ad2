"""Keys and config fields of files that were written before they had the names of today; such files are read all the
same."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

_FUSED = r"^(fuse(?:\.levels\.\d+\.\d+|\.layers\.\d+))"  # SLVP's fusion blocks and language query layers
_ATTENTIONS = {"words": "text", "time": "temporal", "space": "spatial", "pixels": "pixel"}
_DECODER = {"sample": "cross_attention", "sample_norm": "cross_norm", "among_norm": "self_norm"}
RENAMED = (
    # a ConvNeXt CLIP
    (r"(^|\.)body\.eyes\.", r"\1body.vision."),
    (r"(^|\.)body\.ears\.", r"\1body.text_model."),
    # VLP-RVOS
    (r"^fuse\.words_hear\.", "fuse.words_attend."),
    (r"^fuse\.patches_hear\.", "fuse.patches_attend."),
    (r"^reason\.(\d+)\.hear\.", r"reason.\1.attend_text."),
    (r"^paint\.", "mask_head."),
    (r"^compare\.(adapt|log_temperature|shift)\b", r"pixel_text.\1"),
    # conv-CLIP on MeViS
    (r"^(find|watch)\.layers\.(\d+)\.hear\.", r"\1.layers.\2.attend_text."),
    (r"^find\.(layers|start|position|level|norm)\b", r"frame_decoder.\1"),
    (r"^watch\.read\.", "video_decoder.project."),
    (r"^watch\.share\.", "video_decoder.frame_weight."),
    (r"^watch\.", "video_decoder."),
    (r"^(frame_decoder|video_decoder)\.layers\.(\d+)\.look\.", r"\1.layers.\2.cross_attention."),
    (r"^(frame|video)_heads\.mark\.", r"\1_heads.embedding."),
    (r"^fuse\.layers\.(\d+)\.meet\.", r"fuse.layers.\1.bi_attention."),
    (r"^fuse\.layers\.(\d+)\.sample\.sample\.", r"fuse.layers.\1.deformable.attention."),
    (r"^fuse\.layers\.(\d+)\.sample\.", r"fuse.layers.\1.deformable."),
    # SOC and SOC++
    (r"^find\.", "transformer."),
    (r"^(transformer\.encoder\.\d+)\.sample\.", r"\1.attention."),
    *((rf"^(transformer\.decoder\.\d+)\.{old}\.", rf"\1.{new}.") for old, new in _DECODER.items()),
    (r"^cluster\.decoder\.cross\.", "cluster.decoder.cross_attention."),
    (r"^pixels\.", "pixel_decoder."),
    # SLVP
    (r"^over_time\.", "temporal_attention."),
    (r"^after_time\.", "temporal_feed_forward."),
    (r"^neighbours\.(\d+)\.sign\.", r"neighbours.\1.signature."),
    (r"^neighbours\.(\d+)\.moved\.", r"neighbours.\1.project_correlation."),
    *((rf"{_FUSED}\.{old}\.", rf"\1.{new}_attention.") for old, new in _ATTENTIONS.items()),
    (r"^mask\.paint\.", "mask_head.conv."),
    (r"^mask\.", "mask_head."),
    (r"^flow(\.dense)?\.read\.", r"flow\1.conv."),
    (r"^flow\.", "flow_head."),
    (r"^compare\.(clip|sentence)\.", r"contrast_head.\1."),
    (r"^recall\.look\.", "word_head.cross_attention."),
    (r"^recall\.", "word_head."),
    # parts of several systems
    (r"(^|\.)among(?=\.)", r"\1self_attention"),
    (r"(^|\.)feed(?=\.)", r"\1feed_forward"),
)
RENAMED_FIELDS = {
    "painted": "kept_queries", "asked_at_once": "expressions_at_once", "meet_width": "bi_attention_width",
    "meet_heads": "bi_attention_heads", "meet_scale": "bi_attention_scale", "meet_dropout": "bi_attention_dropout",
    "meet_drop_path": "bi_attention_drop_path",
}  # fmt: skip
_FIRST = {"vision": "eyes", "text_model": "ears"}  # parts of a ConvNeXt CLIP, as the first files name them


_PATTERNS = tuple((re.compile(old), new) for old, new in RENAMED)


@lru_cache(maxsize=1 << 14)  # keys of some dozen files
def key_of_today(key: str) -> str:
    """The key that a tensor of a checkpoint or of a tower's file has today."""
    for old, new in _PATTERNS:
        key = old.sub(new, key)
    return key


def fields_of_today(config: Any) -> Any:
    """The JSON of a system's config with the field names of today."""
    if not isinstance(config, dict):
        return config
    return {RENAMED_FIELDS.get(name, name): fields_of_today(value) for name, value in config.items()}


def first_keys(keys: Iterable[str]) -> dict[str, str]:
    """{key as the first files had it: key of a frozen body}. Fingerprints are taken over the first keys, for good."""
    keys = list(keys)
    if not any(key.startswith("vision.") for key in keys):
        return {key: key for key in keys}
    parts = [key.partition(".") for key in keys]
    return {_FIRST.get(part, part) + dot + rest: part + dot + rest for part, dot, rest in parts}
