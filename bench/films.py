"""Films for the benches, made of the clip that comes with deixis or of moving squares."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

import av
import cv2
import numpy as np

from deixis.video import Video
from deixis.weights import DEMO_FILM


def write_film(path: Path, pictures: Iterator[np.ndarray], fps: int = 24) -> Path:
    with av.open(str(path), "w") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "20"})
                stream.height, stream.width, stream.pix_fmt = picture.shape[0], picture.shape[1], "yuv420p"
                stream.time_base = Fraction(1, fps)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
    return path


def real_film(path: Path, frames: int, short_side: int) -> Path:
    """The demo clip, there and back again, enlarged to ``short_side`` pixels."""
    pictures = [frame.pixels() for frame in Video(DEMO_FILM).frames()]
    height, width = pictures[0].shape[:2]
    size = 2 * round(width * short_side / height / 2), short_side
    large = [cv2.resize(p, size, interpolation=cv2.INTER_CUBIC) for p in pictures]
    return write_film(path, islice(cycle(large + large[-2:0:-1]), frames))


def drawn_film(path: Path, frames: int, height: int = 72, width: int = 128, seed: int = 0) -> Path:
    """A square that wanders over a noisy ground."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 120, (height, width, 3), np.uint8)

    def pictures() -> Iterator[np.ndarray]:
        for t in range(frames):
            picture = ground.copy()
            top = int((height - 24) * (0.5 + 0.5 * np.sin(t / 40)))
            left = int((width - 24) * (0.5 + 0.5 * np.cos(t / 57)))
            picture[top : top + 24, left : left + 24] = (220, 40, 40)
            yield picture

    return write_film(path, pictures())
