"""The nouns of deixis: frozen dataclasses whose shapes are validated on construction, and protocols of systems.

Letters used everywhere: B clips, T frames, N objects, Q queries, L words, C channels, H W pixels of a frame,
h w cells of a feature map or mask. ``padding`` is True where there is nothing (PyTorch's polarity).
"""

from deixis.types.config import SystemConfig, bounded
from deixis.types.errors import DeixisError, reason_of, require
from deixis.types.inputs import MAX_EXPRESSION_CHARACTERS, Batch, Clip, Expression, Size, Target
from deixis.types.masks import MaskTrack, Rle, RleMasks, Verdict, decode_rle, encode_rle, verdict_of
from deixis.types.outputs import FeatureMaps, Prediction, TextFeatures
from deixis.types.system import Accelerated, EncodingSystem, RecurrentSystem, System, TwoPassSystem

__all__ = [
    "MAX_EXPRESSION_CHARACTERS",
    "Accelerated",
    "Batch",
    "Clip",
    "DeixisError",
    "EncodingSystem",
    "Expression",
    "FeatureMaps",
    "MaskTrack",
    "Prediction",
    "RecurrentSystem",
    "Rle",
    "RleMasks",
    "Size",
    "System",
    "SystemConfig",
    "Target",
    "TextFeatures",
    "TwoPassSystem",
    "Verdict",
    "bounded",
    "decode_rle",
    "encode_rle",
    "reason_of",
    "require",
    "verdict_of",
]
