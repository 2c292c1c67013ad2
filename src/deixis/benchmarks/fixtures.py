"""Tiny true films for fixtures: three videos of four frames, 48x32, two bright boxes that walk over a dark ground.

Every benchmark's ``write_fixture`` draws from here and lays it out as the real download lies on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH, FRAMES = 48, 32, 4
WORDS = ("the red box that walks down", "the green box on the right")


@dataclass(frozen=True, eq=False)
class TinyVideo:
    """frames: (T, H, W, 3) uint8.  ids: (T, H, W) uint8, 0 ground, 1 and 2 the boxes."""

    id: str
    frames: np.ndarray
    ids: np.ndarray


def tiny_videos(count: int = 3, frames: int = FRAMES) -> list[TinyVideo]:
    """The same videos every time; box 2 is away in the last frame of the last video."""
    videos = []
    for number in range(count):
        ids = np.zeros((frames, HEIGHT, WIDTH), np.uint8)
        for t in range(frames):
            ids[t, 4 + 4 * t : 18 + 4 * t, 2 + number : 14 + number] = 1
            if not (number == count - 1 and t == frames - 1):
                ids[t, 26 : 40 - number, 18 + t : 28 + t] = 2
        colours = np.array([(30, 30, 40 + 20 * number), (210, 40, 40), (40, 200, 60)], np.uint8)
        videos.append(TinyVideo(f"video{number:02d}", colours[ids], ids))
    return videos


def write_jpegs(folder: Path, video: TinyVideo, names: list[str]) -> None:
    """Write a video's frames as <folder>/<name>.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, video.frames, strict=True):
        Image.fromarray(frame).save(folder / f"{name}.jpg", quality=95)


def write_film(path: Path, video: TinyVideo, rate: int = 8) -> None:
    """Write a video as an MPEG-4 film."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 2_000_000
        for frame in video.frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        film.mux(stream.encode())
