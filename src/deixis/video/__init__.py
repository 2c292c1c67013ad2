"""Pixels in: a film or a folder of frames, read lazily in windows; resize, normalise, pad.

T frames of a window, H W pixels of a frame, B clips. Pictures are RGB. A film is never held whole: ``Video.frames`` and
``Video.windows`` decode as they go, and may be called any number of times (every call opens the film again).
"""

from __future__ import annotations

import math
import queue
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deixis.files import natural
from deixis.types import Clip, DeixisError, Size
from deixis.video.colour import Colours
from deixis.video.frames import MAX_PIXELS, Frame, Notes, resize
from deixis.video.paths import is_there, no_such
from deixis.video.pictures import FILM_SUFFIXES, PICTURES, Pictures
from deixis.video.stream import PLAYLISTS, Stream

__all__ = [
    "FILM_SUFFIXES",
    "FOLDER_FPS",
    "MAX_PIXELS",
    "PICTURES",
    "PLAYLISTS",
    "Frame",
    "Size",
    "Video",
    "ahead",
    "check_stretch",
    "fit",
    "natural",
    "normalise",
    "resize",
]  # fmt: skip

FOLDER_FPS = 24.0  # our choice: frames per second of a folder, whose pictures carry no times
ROUNDING = 1e-9  # seconds: where a user says 2, a frame at 1.9999999999999998 s is at 2 s
SIDES_MAY_BEND = 0.04  # our choice: share by which a side may change so that no padding is needed

Item = TypeVar("Item")


class Video:
    """A video file or a folder of frames, opened lazily.

    Frames are decoded as they are read. A video may be read any number of times; every pass opens it again.

    Args:
        path: Anything PyAV decodes, a folder of pictures (natural order: 2 before 10), or one picture.
        start: Seconds from which frames are read. Default: the beginning.
        end: Seconds up to which frames are read, exclusive. Default: the end.
        every: Keep each Nth frame.
        max_pixels: A frame with more pixels is refused before it is decoded.
        fps: Frames per second of a folder of pictures.

    Attributes:
        source_size: (height, width) in pixels as displayed (rotation tags obeyed).
        rate: Mean frames per second of the source.
        pixel_aspect: Width of a pixel over its height.
        has_audio: Whether the file holds sound.
        colours: How the pixels are coded.
        stream: Index of the video stream in the file.

    Raises:
        DeixisError: For a path that does not exist, is no video, holds no frames, or is too large.

    Example:
        >>> import deixis
        >>> video = deixis.Video("film.mp4", every=2)
        >>> video.source_size, video.length
        ((96, 160), 6)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        start: float | None = None,
        end: float | None = None,
        every: int = 1,
        max_pixels: int = MAX_PIXELS,
        fps: float = FOLDER_FPS,
    ) -> None:
        self.path, self.every, self.max_pixels = Path(path), every, max_pixels
        self.start = 0.0 if start is None else start
        self.end = math.inf if end is None else end
        self._notes = Notes(self.path)
        check_stretch(self.start, self.end, every, fps)
        check_max_pixels(max_pixels)
        if not str(path).strip():
            raise DeixisError("the name of the film is empty; give a film, or a folder of frames")
        if not is_there(self.path):
            raise DeixisError(no_such(str(path)))
        if self.path.is_dir() or (self.path.suffix.lower() in PICTURES and self.path.is_file()):
            self._source: Pictures | Stream = Pictures(self.path, max_pixels, fps, self.warn)
        elif self.path.is_file():
            self._source = Stream(self.path, max_pixels, self.warn)
        else:
            raise DeixisError(f"{self.path} is neither a file nor a folder; give a film or a folder of frames")
        self.rate: float = self._source.rate
        self.has_audio: bool = self._source.has_audio
        first = next(self._frames_of_source(), None)
        if first is None:
            raise DeixisError(f"{self.path}: no frames {self._stretch()}" + self._cause())
        height, width = first.convert().shape[:2]
        self.source_size: Size = (height, width)
        self.pixel_aspect: Fraction = self._source.pixel_aspect
        self.colours: Colours = self._source.colours
        self.stream: int = self._source.stream

    @property
    def length(self) -> int | None:
        """Number of frames that `frames` yields, about, or None when the file does not state it."""
        if self._source.seconds is None:
            return None
        seconds = min(self.end, self._source.seconds) - self.start
        return max(1, math.ceil(round(seconds * self.rate, 3) / self.every)) if seconds > 0 else None

    @property
    def warnings(self) -> list[str]:
        """Recoverable problems found so far, a line a kind; the list grows while the video is read."""
        return self._notes.lines()

    def warn(self, text: str, kind: str | None = None, which: str = "") -> None:
        """Record a recoverable problem, once for each kind.

        Args:
            text: The problem, in a few words.
            kind: Kind of the problem. Default: the text.
            which: Name of the frame or file concerned.

        Example:
            >>> import deixis
            >>> video = deixis.Video("film.mp4")
            >>> video.warn("a frame is damaged")
            >>> video.warnings
            ['a frame is damaged']
        """
        self._notes.add(text, kind, which)

    def numbers(self, names: Iterable[str]) -> list[int]:
        """Return the numbers that frames have in the whole video, from 0.

        Args:
            names: Names of frames.

        Returns:
            One number per name.

        Example:
            >>> import deixis
            >>> deixis.Video("film.mp4").numbers(["00003"])
            [3]
        """
        return [self._source.number_of(name) for name in names]

    def file_name(self, name: str) -> str:
        """Return the name that the picture of a frame has.

        Args:
            name: Name of a frame.

        Returns:
            The frame's own file in a folder; for a video file, what ffmpeg's `%05d.jpg` makes.

        Example:
            >>> import deixis
            >>> deixis.Video("film.mp4").file_name("00003")
            '00003.jpg'
        """
        return self._source.file_name(name)

    def frames(self) -> Iterator[Frame]:
        """Iterate over the frames; every call opens the video again.

        Yields:
            Every `Frame` of the stretch, in order.

        Example:
            >>> import deixis
            >>> video = deixis.Video("film.mp4", start=0.2)
            >>> [frame.index for frame in video.frames()][:3]
            [0, 1, 2]
        """
        for frame in self._frames_of_source():
            yield Frame(frame.index, frame.name, frame.seconds, partial(self._at_source_size, frame), frame.number)

    def windows(self, length: int, *, size: Size | None = None, overlap: int = 0, fill: bool = True) -> Iterator[Clip]:
        """Iterate over windows of consecutive frames; `Clip.start` states where each begins.

        Args:
            length: Frames in a window.
            size: (height, width) that frames are resized to. Default: source size.
            overlap: Frames that neighbouring windows share.
            fill: Let the last window begin earlier, so that every window of a video of `length` frames or more is full.
                Otherwise it may be short, as in published code.

        Yields:
            Every `Clip`, in order.

        Raises:
            DeixisError: For an overlap outside 0..length-1.

        Example:
            >>> import deixis
            >>> video = deixis.Video("film.mp4")
            >>> [(clip.start, len(clip)) for clip in video.windows(8, size=(48, 80))]
            [(0, 8), (4, 8)]
        """
        if not 0 <= overlap < length:
            raise DeixisError(f"windows of {length} frames cannot share {overlap}; give 0..{length - 1}")
        held: deque[tuple[Frame, np.ndarray]] = deque(maxlen=length)
        fresh = 0
        for frame in self.frames():
            # Lets the decoded source frame go.
            light = Frame(frame.index, frame.name, frame.seconds, _gone, frame.number)
            held.append((light, frame.pixels(size)))
            fresh += 1
            if len(held) == length and fresh >= length - (overlap if frame.index >= length else 0):
                yield self._clip(held)
                fresh = 0
        if fresh:
            yield self._clip(held if fill else list(held)[-fresh:])

    def _clip(self, held: Sequence[tuple[Frame, np.ndarray]]) -> Clip:
        frames = torch.from_numpy(np.stack([picture for _, picture in held]))  # (T, H, W, 3)
        return Clip(
            frames.permute(0, 3, 1, 2),
            tuple(frame.name for frame, _ in held),
            tuple(frame.seconds for frame, _ in held),
            self.source_size,
            start=held[0][0].index,
        )

    def _frames_of_source(self) -> Iterator[Frame]:
        start, end = self.start - ROUNDING, self.end - ROUNDING
        inside = (f for f in self._source.frames(start, end) if start <= f.seconds < end)
        for index, frame in enumerate(islice(inside, 0, None, self.every)):
            yield Frame(index, frame.name, frame.seconds, frame.convert, frame.number)

    def _at_source_size(self, frame: Frame) -> np.ndarray:
        picture = frame.convert()
        if picture.shape[:2] != self.source_size:
            height, width = picture.shape[:2]
            self.warn(
                f"frames change size, first at {frame.seconds:.2f} s ({height}x{width}); resized to the first's",
                kind="size", which=frame.name,
            )  # fmt: skip
            picture = resize(picture, self.source_size)
        return picture

    def _stretch(self) -> str:
        if self.start == 0 and self.end == math.inf:
            return "in it"
        return f"between {self.start:g} and {self.end:g} seconds; give another --start or --end"

    def _cause(self) -> str:
        return f" ({'; '.join(self.warnings)})" if self.warnings else ""


def __getattr__(name: str) -> Any:
    if name == "Film":  # alias for one release
        warnings.warn("deixis.video.Film is now called deixis.video.Video", DeprecationWarning, stacklevel=2)
        return Video
    raise AttributeError(f"module 'deixis.video' has no attribute {name!r}")


def _gone() -> np.ndarray:
    raise AssertionError("the pixels of this frame were let go")


def check_stretch(start: float, end: float, every: int, fps: float) -> None:
    """Raise DeixisError unless the seconds, the step and the rate can be those of a stretch of a film."""
    if not (0 <= start < math.inf):
        raise DeixisError(f"start must be 0 seconds or more, got {start}")
    if not end > start:
        raise DeixisError(f"end must come after start ({start:g} s), got {end:g} s")
    if every < 1:
        raise DeixisError(f"every must be 1 or more (keep each Nth frame), got {every}")
    if not (0 < fps < math.inf):
        raise DeixisError(f"fps must be above 0, got {fps}")


def check_max_pixels(count: int) -> None:
    """Raise DeixisError unless a frame may hold some pixels."""
    if count < 1:
        raise DeixisError(f"max_pixels must be 1 or more, got {count}")


def fit(source: Size, short_side: int, long_side: int, multiple: int = 1) -> Size:
    """Compute the size at which a system encodes frames, keeping their shape.

    A side is rounded to the nearest `multiple` when that changes it by less than 4 %, so that no padding is needed.

    Args:
        source: (height, width) of the video.
        short_side: Wanted short side in pixels.
        long_side: Upper bound of the long side in pixels.
        multiple: Number that both sides are rounded to where possible.

    Returns:
        (height, width) in pixels.

    Example:
        >>> from deixis.video import fit
        >>> fit((1080, 1920), short_side=360, long_side=640, multiple=8)
        (360, 640)
    """
    height, width = source
    scale = min(short_side / min(height, width), long_side / max(height, width))

    def side(pixels: float) -> int:
        rounded = round(pixels / multiple) * multiple
        near = abs(rounded - pixels) < SIDES_MAY_BEND * pixels
        return rounded if near and rounded <= max(long_side, multiple) else max(1, round(pixels))

    return side(height * scale), side(width * scale)


def normalise(
    clip: Clip,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    multiple: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Convert a clip to the input of `System.encode`.

    Args:
        clip: Frames at the size that `fit` computed.
        mean: Mean of RGB in 0..1.
        std: Standard deviation of RGB in 0..1.
        multiple: Zeros (the mean colour) are added on the right and below, up to this multiple.
        device: Device of the result.

    Returns:
        frames (1, T, 3, H, W) float and padding (1, T, H, W) bool, True where there is no picture.

    Example:
        >>> import deixis
        >>> from deixis.video import normalise
        >>> clip = next(deixis.Video("film.mp4").windows(4))
        >>> frames, padding = normalise(clip, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), multiple=64)
        >>> frames.shape, int(padding[0, 0].sum())
        (torch.Size([1, 4, 3, 128, 192]), 9216)
    """
    frames = clip.frames.to(device, non_blocking=True).float()  # (T, 3, H, W)
    scale = torch.tensor(std, device=frames.device).mul(255).reciprocal()[:, None, None]
    shift = (torch.tensor(mean) / torch.tensor(std)).to(frames.device)[:, None, None]
    frames = frames.mul_(scale).sub_(shift).contiguous()
    height, width = frames.shape[-2:]
    below, right = -height % multiple, -width % multiple
    padding = torch.zeros(len(frames), height, width, dtype=torch.bool, device=frames.device)
    if below or right:
        frames = F.pad(frames, (0, right, 0, below))
        padding = F.pad(padding, (0, right, 0, below), value=True)
    return frames[None], padding[None]


def normalise_pixels(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (..., 3, H, W) float: 0..255 scaled to 0..1, less the mean, over the deviation. For training, on CPU."""
    return (pixels.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items in the same order, made by a thread that may be ``depth`` items ahead of the reader.

    What ``items`` raises is raised here. Closing the generator stops the thread.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop, end = threading.Event(), object()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:  # handed over to the reader, which raises it
            put(_Failed(error))

    thread = threading.Thread(target=make, name="deixis-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()
