"""Frames of a benchmark's video, by index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from deixis.benchmarks.samples import Sample, VideoEntry
from deixis.types import DeixisError
from deixis.video import Video


def centred_window(centre: int, count: int) -> list[int]:
    """A2D's choice: count // 2 frames before, the rest after; indices below 0 or past the end are to be clamped."""
    return list(range(centre - count // 2, centre + (count + 1) // 2))


# --- pixels and targets ----------------------------------------------------------------------------------------------


def read_frames(video: VideoEntry, indices: Sequence[int]) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB of frames by index; indices outside the video are clamped to its ends.

    Of a film file an index counts the film's own frames from 0. Raises DeixisError for what cannot be read, and for
    frames of different sizes.
    """
    if isinstance(video.frames, tuple):
        files = [video.frames[min(max(i, 0), len(video.frames) - 1)] for i in indices]
        pictures = [_read_image(str(file)) for file in files]
        for file, picture in zip(files, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                (height, width), first = picture.shape[:2], pictures[0].shape
                raise DeixisError(
                    f"{file} is {height}x{width} pixels, {files[0].name} of the same video {first[0]}x{first[1]}; the"
                    " frames of a video must have one size"
                )
        return np.stack(pictures)
    wanted = {max(i, 0) for i in indices}
    found: dict[int, np.ndarray] = {}
    last = None
    for frame in Video(video.frames).frames():
        last = frame
        if frame.index in wanted:
            found[frame.index] = frame.pixels()
        if frame.index >= max(wanted):
            break
    assert last is not None, "a Video without frames is refused when it is opened"
    end = last.pixels() if len(found) < len(wanted) else next(iter(found.values()))
    return np.stack([found.get(max(i, 0), end) for i in indices])


def _read_image(path: str) -> np.ndarray:
    # A pipe would be waited for.
    picture = cv2.imread(path, cv2.IMREAD_COLOR_RGB) if Path(path).is_file() else None
    if picture is None:
        raise DeixisError(f"{path}: not a readable image; is the download whole?")
    return picture


def film_index(sample: Sample, index: int) -> int:
    """Which frame of the film, from 0, the video's frame ``index`` is; frame names of film files are numbers."""
    return index if isinstance(sample.video.frames, tuple) else int(sample.video.names[index]) - sample.video.first
