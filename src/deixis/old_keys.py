"""Keys of files that were written before their parts had the names of today; such files are read all the same."""

from __future__ import annotations

import re
from collections.abc import Iterable

RENAMED = (
    (r"(^|\.)body\.eyes\.", r"\1body.vision."),
    (r"(^|\.)body\.ears\.", r"\1body.text_model."),
    (r"^fuse\.words_hear\.", "fuse.words_attend."),
    (r"^fuse\.patches_hear\.", "fuse.patches_attend."),
    (r"^reason\.(\d+)\.hear\.", r"reason.\1.attend_text."),
    (r"^(find|watch)\.layers\.(\d+)\.hear\.", r"\1.layers.\2.attend_text."),
)
_FIRST = {"vision": "eyes", "text_model": "ears"}  # parts of a ConvNeXt CLIP, as the first files name them


def key_of_today(key: str) -> str:
    """The key that a tensor of a checkpoint or of a tower's file has today."""
    for old, new in RENAMED:
        key = re.sub(old, new, key)
    return key


def first_keys(keys: Iterable[str]) -> dict[str, str]:
    """{key as the first files had it: key of a frozen body}. Fingerprints are taken over the first keys, for good."""
    keys = list(keys)
    if not any(key.startswith("vision.") for key in keys):
        return {key: key for key in keys}
    parts = [key.partition(".") for key in keys]
    return {_FIRST.get(part, part) + dot + rest: part + dot + rest for part, dot, rest in parts}
