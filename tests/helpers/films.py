"""Made-up films and a tiny system that keeps the promise, for the tests of the path.

The films show coloured squares on black; the system finds the squares whose colour an expression names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.types import Batch, Expression, FeatureMaps, Prediction, SystemConfig

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}


def square(shape: tuple[int, int], colour: str, top: int, left: int, side: int = 24) -> np.ndarray:
    """A black (H, W, 3) uint8 picture with one square."""
    picture = np.zeros((*shape, 3), np.uint8)
    picture[top : top + side, left : left + side] = COLOURS[colour]
    return picture


def moving(frames: int, shape: tuple[int, int] = (72, 96), colours: Sequence[str] = ("red",)) -> list[np.ndarray]:
    """Squares that move right by a pixel a frame, one row a colour."""
    pictures = [np.zeros((*shape, 3), np.uint8) for _ in range(frames)]
    for row, colour in enumerate(colours):
        for t, picture in enumerate(pictures):
            left = (4 + t) % (shape[1] - 24)
            top = min(4 + 34 * row, shape[0] - 26)
            picture[top : top + 24, left : left + 24] = COLOURS[colour]
    return pictures


def write_film(
    path: Path,
    pictures: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    fps: int = 12,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    tone: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """A film of RGB pictures. times: seconds of each (variable rate).  rotation: degrees of the display tag."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = None
        sound = container.add_stream("aac", rate=16000, layout="mono") if tone else None
        count = 0
        for index, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(codec, rate=fps)
                stream.height, stream.width, stream.pix_fmt = picture.shape[0], picture.shape[1], pixels
                if codec == "libx264":
                    stream.options = {"crf": "12", "g": "12"}
                stream.time_base = stream.codec_context.time_base = Fraction(1, 1000 if times else fps)
                if rotation:
                    stream.set_display_rotation(rotation)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index if times is None else round(times[index] * 1000)
            container.mux(stream.encode(frame))
            count = index + 1
        if stream is not None:
            container.mux(stream.encode())
        if sound is not None:
            write_tone(container, sound, max(1.0, count / fps))
    return path


def write_tone(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    wave = (8000 * np.sin(np.arange(int(16000 * seconds)) / 10)).astype(np.int16)
    for start in range(0, len(wave) - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_folder(folder: Path, pictures: Iterable[np.ndarray], names: Iterable[str] | None = None) -> Path:
    folder.mkdir(parents=True)
    for index, (picture, name) in enumerate(zip(pictures, names or (f"{i:05d}" for i in range(10**6)), strict=False)):
        assert cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1]), index
    return folder


@dataclass(frozen=True, kw_only=True)
class ColoursConfig(SystemConfig):
    """sharpness: logits per unit of colour (0..1)."""

    sharpness: float = 40.0
    short_side: int = 72
    long_side: int = 128
    window: int = 5
    multiple: int = 8
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    presence_threshold: float | None = 0.5
    selection: Literal["official", "linked"] = "linked"


class Colours(nn.Module):
    """Three queries, the red, the green and the blue pixels; the words choose one, and whether it is there."""

    def __init__(self, config: ColoursConfig) -> None:
        super().__init__()
        self.config = config
        self.mix = nn.Parameter(torch.eye(3) * 1.5 - 0.5)  # (3 queries, RGB): a colour less the mean of all
        self.note = nn.Linear(4, 4)
        self.encoded = 0  # calls, for tests that count them

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(b"words"), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        assert bytes(state.tolist()) == b"words"

    def encode(self, frames: Tensor, padding: Tensor, wanted: tuple[int, ...] | None = None) -> FeatureMaps:
        self.encoded += 1
        shape = frames.shape
        picture = frames * 0.25 + 0.5
        small = F.avg_pool2d(picture.flatten(0, 1), 2).view(*shape[:3], shape[3] // 2, shape[4] // 2)
        return FeatureMaps((small,), (2,), padding, (shape[3], shape[4]))

    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: tuple[int, ...] | None = None
    ) -> Prediction:
        masks = (torch.einsum("qc,btchw->btqhw", self.mix, maps.levels[0]) - 0.3) * self.config.sharpness
        masks = masks.expand(len(expressions), *masks.shape[1:])
        seen = (masks.flatten(3) > 0).any(3)  # (K, T, Q)
        names = torch.tensor([[name in e.text for name in COLOURS] for e in expressions])[:, None]
        scores = torch.where(names, 6.0, -6.0) - torch.where(seen, 0.0, 4.0)
        there = (seen & names).any(1).any(1)
        return Prediction(masks, scores, presence=torch.where(there, 5.0, -5.0))

    def forward(self, batch: Batch) -> Prediction:
        return self.decode(self.encode(batch.frames, batch.padding), batch.expressions)


def colours() -> Colours:
    return Colours(ColoursConfig())
