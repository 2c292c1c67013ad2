"""Sine positions of words and of feature maps (arXiv:1706.03762; 2-D as in DETR, arXiv:2005.12872).

N sequences or maps, L words, h w cells, D width. ``padding`` is True where there is nothing; places are counted over
what is there and scaled so that the last one is 2 pi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deixis.blocks.constants import constant

_TEMPERATURE = 10_000.0  # of the wavelengths, as published
_EPS = 1e-6  # as published


def word_positions(padding: Tensor, width: int) -> Tensor:
    """(N, L, D) for padding (N, L)."""
    place = (~padding).cumsum(1, dtype=torch.float32)
    return _waves(place / (place[:, -1:] + _EPS), width)


def map_positions(padding: Tensor, width: int) -> Tensor:
    """(N, h, w, D) for padding (N, h, w): the first half of D encodes y, the second x."""
    there = ~padding
    y, x = there.cumsum(1, dtype=torch.float32), there.cumsum(2, dtype=torch.float32)
    y, x = (y - 0.5) / (y[:, -1:] + _EPS), (x - 0.5) / (x[:, :, -1:] + _EPS)
    return torch.cat([_waves(y, width // 2), _waves(x, width // 2)], dim=-1)


@constant
def plain_map_positions(h: int, w: int, width: int, device: torch.device) -> Tensor:
    """(1, h, w, D): map_positions where nothing is padding."""
    return map_positions(torch.zeros(1, h, w, dtype=torch.bool, device=device), width)


def _waves(share: Tensor, width: int) -> Tensor:
    """(..., D) for places (...) in 0..1: sine and cosine take turns."""
    wavelength = _TEMPERATURE ** (torch.arange(0, width, 2, device=share.device) / width)  # (D/2,)
    angle = (share * (2 * math.pi))[..., None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
