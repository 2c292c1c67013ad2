"""What frozen encoders gave for clips that come again. B clips, T frames."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import fields

import torch
from torch import Tensor

from deixis.systems.light import FrameFeatures, Light


class Memory:
    """What frozen encoders gave for the last ``films`` clips, by the clips' pixels; nothing where they train."""

    def __init__(self, films: int) -> None:
        self.films, self.known = films, OrderedDict[bytes, FrameFeatures]()

    def encode_frames(self, system: Light, frames: Tensor, pixels: Tensor) -> FrameFeatures:
        """``system.encode_frames`` of frames (B, T, 3, H, W). pixels: the same frames as uint8, on any device."""
        if system.config.train_vision:
            return system.encode_frames(frames.flatten(0, 1))
        clips = [self._clip(system, *pair) for pair in zip(frames, pixels, strict=True)]
        return FrameFeatures(*(torch.cat([getattr(c, f.name) for c in clips]) for f in fields(FrameFeatures)))

    def _clip(self, system: Light, frames: Tensor, pixels: Tensor) -> FrameFeatures:
        key = hashlib.blake2b(pixels.cpu().contiguous().numpy().data, digest_size=16).digest()
        if key not in self.known:
            kind = torch.bfloat16 if torch.is_autocast_enabled(frames.device.type) else frames.dtype
            maps = system.encode_frames(frames)
            self.known[key] = FrameFeatures(*(getattr(maps, f.name).detach().to(kind) for f in fields(FrameFeatures)))
            if len(self.known) > self.films:
                self.known.popitem(last=False)
        return self.known[key]
