"""Frames as the model takes them, for benches that call its parts."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from deixis.inference import model_size
from deixis.video import normalise_pixels


def at_model_size(frames: np.ndarray, config: Any) -> torch.Tensor:
    """(T, 3, h, w), normalised and padded below and to the right, of frames (T, H, W, 3) uint8."""
    size = model_size(frames.shape[1:3], config)
    small = np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames])
    x = normalise_pixels(torch.from_numpy(small).permute(0, 3, 1, 2), config.mean, config.std)
    return F.pad(x, (0, -size[1] % config.multiple, 0, -size[0] % config.multiple))
