"""deixis: point at things in a video with words (referring video object segmentation).

``import deixis`` is cheap: torch is imported when the first name below is used.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library is silent by default

_HOMES = {
    "segment": "inference",
    "choose": "choosing",
    "Choice": "choosing",
    "load": "weights",
    "Video": "video",
    "Clip": "types",
    "Expression": "types",
    "MaskTrack": "types",
    "DeixisError": "types",
}

__all__ = [
    "Choice", "Clip", "DeixisError", "Expression", "MaskTrack", "Video", "__version__", "choose", "load", "segment"
]  # fmt: skip

if TYPE_CHECKING:
    from deixis.choosing import Choice, choose
    from deixis.inference import segment
    from deixis.types import Clip, DeixisError, Expression, MaskTrack
    from deixis.video import Video
    from deixis.weights import load


def __getattr__(name: str) -> Any:
    if name == "Film":  # alias for one release
        from deixis.video import Video

        warnings.warn("deixis.Film is now called deixis.Video", DeprecationWarning, stacklevel=2)
        return Video
    if name not in _HOMES:
        raise AttributeError(f"module 'deixis' has no attribute {name!r}; it offers {', '.join(__all__)}")
    from importlib import import_module

    value = getattr(import_module(f"deixis.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
