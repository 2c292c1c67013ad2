"""Pixels in: a film or a folder of frames, read lazily in windows; resize, normalise, pad.

T frames of a window, H W pixels of a frame, B clips. Pictures are RGB. A film is never held whole: ``Film.frames`` and
``Film.windows`` decode as they go, and may be called any number of times (every call opens the film again).
"""

from __future__ import annotations

import logging
import math
import queue
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import av
import cv2
import numpy as np
import torch
from av.error import FFmpegError
from av.stream import Disposition
from torch import Tensor
from torch.nn import functional as F

from deixis.types import Clip, DeixisError

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000  # our choice: pixels of one frame; 8K film holds 33 million
FOLDER_FPS = 24.0  # our choice: frames per second of a folder, whose pictures carry no times
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
# Formats that are lists of other files and may name any on this machine. (FFmpeg keeps ffconcat to files beside it.)
PLAYLISTS = frozenset({"hls", "applehttp", "dash", "imf", "sdp", "rtsp", "sap", "webm_dash_manifest", "lavfi"})
SIDES_MAY_BEND = 0.04  # our choice: share by which a side may change so that no padding is needed

Item = TypeVar("Item")
Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a film, converted to RGB when ``pixels`` is asked.

    index: its number in the stretch of the film that is read.  name: file stem, or the zero-padded number of the
    frame counted from ``start``.  seconds: its time.
    """

    index: int
    name: str
    seconds: float
    convert: Callable[[], np.ndarray] = field(repr=False)

    def pixels(self, size: Size | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB at source size, or resized to ``size``."""
        picture = self.convert()
        return picture if size is None else resize(picture, size)


class Film:
    """A film or a folder of frames, opened lazily.

    path: anything PyAV decodes, a folder of pictures (natural order: 2 before 10), or one picture.
    start, end: seconds; frames with start <= time < end are read.  every: keep each Nth of them.
    max_pixels: a frame that holds more is refused before it is decoded.  fps: frames per second of a *folder*.

    source_size: (height, width) as shown (rotation tags obeyed).  length: about how many frames will come, or None.
    rate: mean frames per second of the source.  pixel_aspect: width of a pixel over its height.
    warnings: what was wrong with the film and could be lived with; grows while the film is read.
    Raises DeixisError for what is not there, is no film, holds no frames, or is too large.
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
        self.warnings: list[str] = []
        check_stretch(self.start, self.end, every, fps)
        if not _exists(self.path):
            raise DeixisError(f"no such file or folder: {self.path}")
        if self.path.is_dir() or (self.path.suffix.lower() in PICTURES and self.path.is_file()):
            self._source: _Pictures | _Stream = _Pictures(self.path, max_pixels, fps, self.warn)
        elif self.path.is_file():
            self._source = _Stream(self.path, max_pixels, self.warn)
        else:
            raise DeixisError(f"{self.path} is neither a file nor a folder; give a film or a folder of frames")
        self.rate: float = self._source.rate
        self.pixel_aspect: Fraction = self._source.pixel_aspect
        self.has_audio: bool = self._source.has_audio
        first = next(self._frames_of_source(), None)
        if first is None:
            raise DeixisError(f"{self.path}: no frames {self._stretch()}" + self._cause())
        height, width = first.convert().shape[:2]
        self.source_size: Size = (height, width)

    @property
    def length(self) -> int | None:
        """About how many frames ``frames`` yields, or None when the film does not say."""
        if self._source.seconds is None:
            return None
        seconds = min(self.end, self._source.seconds) - self.start
        return max(1, math.ceil(round(seconds * self.rate, 3) / self.every)) if seconds > 0 else None

    def warn(self, text: str) -> None:
        """Note, once, something wrong that can be lived with."""
        if text not in self.warnings:
            self.warnings.append(text)
            log.warning("%s: %s", self.path, text)

    def frames(self) -> Iterator[Frame]:
        """The frames of the stretch, one by one; opens the film again at every call."""
        for frame in self._frames_of_source():
            yield Frame(frame.index, frame.name, frame.seconds, partial(self._at_source_size, frame))

    def windows(self, length: int, *, size: Size | None = None, overlap: int = 0, fill: bool = True) -> Iterator[Clip]:
        """Clips of ``length`` frames, in order, at ``size`` (default: source size).

        Neighbours share ``overlap`` frames. With ``fill`` the last clip is filled from the front (it begins earlier,
        and so repeats frames): every clip of a film of ``length`` frames or more is full. Without it the last clip may
        be short, as in published code. ``Clip.start`` tells where each begins.
        """
        if not 0 <= overlap < length:
            raise DeixisError(f"windows of {length} frames cannot share {overlap}; give 0..{length - 1}")
        held: deque[tuple[Frame, np.ndarray]] = deque(maxlen=length)
        fresh = 0
        for frame in self.frames():
            light = Frame(frame.index, frame.name, frame.seconds, _gone)  # lets the decoded source frame go
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
        inside = (f for f in self._source.frames(self.start, self.end) if self.start <= f.seconds < self.end)
        for index, frame in enumerate(islice(inside, 0, None, self.every)):
            yield Frame(index, frame.name, frame.seconds, frame.convert)

    def _at_source_size(self, frame: Frame) -> np.ndarray:
        picture = frame.convert()
        if picture.shape[:2] != self.source_size:
            height, width = picture.shape[:2]
            self.warn(f"frames change size, first at {frame.seconds:.2f} s ({height}x{width}); resized to the first's")
            picture = resize(picture, self.source_size)
        return picture

    def _stretch(self) -> str:
        if self.start == 0 and self.end == math.inf:
            return "in it"
        return f"between {self.start:g} and {self.end:g} seconds; give another --start or --end"

    def _cause(self) -> str:
        return f" ({'; '.join(self.warnings)})" if self.warnings else ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be looked into
        return False


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


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which ``frame2`` comes before ``frame10``."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


class _Pictures:
    """A folder of pictures, or one picture, as a source of frames."""

    has_audio = False
    pixel_aspect = Fraction(1)

    def __init__(self, path: Path, max_pixels: int, fps: float, warn: Callable[[str], None]) -> None:
        self.max_pixels, self.rate, self.warn = max_pixels, fps, warn
        try:
            found = list(path.iterdir()) if path.is_dir() else [path]
        except OSError as error:
            raise DeixisError(f"{path} cannot be read: {error.strerror}") from error
        self.files = sorted(
            (f for f in found if f.suffix.lower() in PICTURES and not f.name.startswith(".")),
            key=lambda f: natural(f.name),
        )
        if not self.files:
            kinds = " ".join(sorted(PICTURES))
            raise DeixisError(f"{path} is a folder without frames; expected pictures ({kinds})")
        stems = [f.stem for f in self.files]
        self.names = stems if len(set(stems)) == len(stems) else [f.name.replace(".", "_") for f in self.files]
        self.seconds: float | None = len(self.files) / fps

    def frames(self, start: float, end: float) -> Iterator[Frame]:
        for index, (file, name) in enumerate(zip(self.files, self.names, strict=True)):
            seconds = index / self.rate
            if start <= seconds < end and (picture := self._read(file)) is not None:
                yield Frame(index, name, seconds, partial(np.copy, picture))

    def _read(self, file: Path) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB, or None (and a warning) for a file that does not decode."""
        try:
            size = _picture_size(file) if file.is_file() else None  # a pipe would be waited for, a device read for ever
            if size is not None:
                _check_pixels(size[0] * size[1], self.max_pixels, file)
                picture = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
                if picture is not None:
                    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        except (OSError, cv2.error) as error:
            log.debug("%s: %s", file, error)
        self.warn(f"{file.name} is not a picture that decodes; left out")
        return None


def _picture_size(file: Path) -> Size | None:
    """(height, width) from the file's header alone; None when it has none."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                return picture.height, picture.width
    except Image.DecompressionBombError as error:
        raise DeixisError(f"{file}: a picture bomb, refused ({error})") from error
    except (OSError, ValueError, SyntaxError):
        return None


def _check_pixels(pixels: int, limit: int, path: Path) -> None:
    if pixels > limit:
        raise DeixisError(
            f"{path}: a frame holds {pixels:,} pixels, more than the limit of {limit:,}; "
            f"if you trust the file, raise it with --max-pixels {pixels}"
        )


class _Stream:
    """The first video stream of a film, through PyAV."""

    def __init__(self, path: Path, max_pixels: int, warn: Callable[[str], None]) -> None:
        self.path, self.max_pixels, self.warn = path, max_pixels, warn
        with self._open() as container:
            stream = self._video(container)
            context = stream.codec_context
            _check_pixels(context.width * context.height, max_pixels, path)
            rate = stream.average_rate or stream.guessed_rate
            self.rate = float(rate) if rate else 25.0
            self.has_audio = bool(container.streams.audio)
            self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
            self.seconds = _seconds_of(container, stream)

    def _open(self) -> av.container.InputContainer:
        # A film of somebody else's may not have others of this machine shown, nor open sockets.
        options = {
            "max_pixels": str(self.max_pixels), "protocol_whitelist": "file",
            "format_whitelist": ",".join(sorted(av.formats_available - PLAYLISTS)),
        }  # fmt: skip
        if self._begins(b"#EXTM3U"):
            raise DeixisError(
                f"{self.path} is a playlist, which may name any file; if you trust it, make a film of it with"
                " `ffmpeg -i IN -c copy OUT.mp4`"
            )
        try:
            return av.open(str(self.path), options=options)
        except av.error.PermissionError as error:
            raise DeixisError(f"{self.path} may not be read: {error.strerror}") from error
        except (FFmpegError, ValueError) as error:
            if self.path.stat().st_size == 0:
                raise DeixisError(f"{self.path} is not a film: the file is empty") from error
            raise DeixisError(
                f"{self.path} is not a film that can be decoded, or is cut off before its index ({_reason(error)})"
            ) from error

    def _begins(self, signature: bytes) -> bool:
        try:
            with open(self.path, "rb") as file:
                return file.read(len(signature)) == signature
        except OSError:  # PyAV will say why
            return False

    def _video(self, container: av.container.InputContainer) -> av.VideoStream:
        for stream in container.streams.video:
            if not stream.disposition & Disposition.attached_pic:  # a song's cover is no film
                if stream.codec_context is None:
                    raise DeixisError(f"{self.path}: its video is in a format that this PyAV cannot decode")
                return stream
        raise DeixisError(f"{self.path} has no video stream; expected a film")

    def frames(self, start: float, end: float) -> Iterator[Frame]:
        """Frames from the key frame before ``start`` (numbered from the first frame at or after it) up to ``end``."""
        with self._open() as container:
            stream = self._video(container)
            stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
            stream.thread_type = "AUTO"
            origin = float((stream.start_time or 0) * (stream.time_base or 0))
            if start > 0:
                self._seek(container, stream, start)
            number, last = 0, None
            for number_decoded, frame in enumerate(self._decode(container, stream)):
                seconds = number_decoded / self.rate if frame.time is None else max(0.0, frame.time - origin)
                last = seconds
                if seconds >= end:
                    return
                if seconds >= start:
                    yield Frame(number, f"{number:05d}", seconds, partial(self._convert, frame))
                    number += 1
            self._check_whole(last)

    def _seek(self, container: av.container.InputContainer, stream: av.VideoStream, start: float) -> None:
        if stream.time_base is None or stream.start_time is None:
            return  # without times nothing can be sought: decode from the beginning
        try:
            # A second early: with frames out of order the sought key frame may otherwise be shown after ``start``.
            wanted = stream.start_time + int(max(0.0, start - 1) / stream.time_base)
            container.seek(wanted, stream=stream, backward=True)
        except (FFmpegError, OverflowError) as error:  # a start of 1e308 s is no number of ticks
            log.debug("%s: cannot seek (%s), decoding from the beginning", self.path, error)

    def _decode(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        """Frames in order; damaged packets are passed over and told of, a damaged container ends the film."""
        packets = container.demux(stream)
        decoded = damaged = 0
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
            except (FFmpegError, ValueError) as error:
                self.warn(
                    f"the film is cut off or damaged after frame {decoded} ({_reason(error)}); the rest is left out"
                )
                break
            try:
                frames = packet.decode()
            except (FFmpegError, ValueError) as error:
                log.debug("%s: packet at %s: %s", self.path, packet.pts, error)
                damaged += 1
                continue
            for frame in frames:
                _check_pixels(frame.width * frame.height, self.max_pixels, self.path)
                decoded += 1
                damaged += frame.is_corrupt
                yield frame
        if damaged:
            self.warn("parts of the film are damaged; what decodes was used")

    def _check_whole(self, last: float | None) -> None:
        """Warn when the film ends well before the length that its header states."""
        if last is not None and self.seconds is not None:
            missing = self.seconds - last
            if missing > max(0.5, 4 / self.rate):  # our choice: half a second, or four frames of a slow film
                self.warn(
                    f"the film is cut off: it states {self.seconds:.1f} s, and {last:.1f} s decode; "
                    "what decodes was used"
                )

    @staticmethod
    def _convert(frame: av.VideoFrame) -> np.ndarray:
        picture = frame.to_ndarray(format="rgb24")
        quarter_turns = round(frame.rotation / 90)  # counter-clockwise, as np.rot90 counts
        return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns % 4 else picture


def _seconds_of(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """How long the video is by the film's own header, or None."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    stated = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if stated:  # Matroska's "00:00:03.750000000"
        return int(stated[1]) * 3600 + int(stated[2]) * 60 + float(stated[3])
    if container.duration and not container.streams.audio:  # sound may be longer than the pictures
        return container.duration / av.time_base
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def resize(picture: np.ndarray, size: Size) -> np.ndarray:
    """A (H, W, 3) uint8 picture at ``size`` (height, width): area mean when it shrinks, bilinear when it grows."""
    height, width = size
    if picture.shape[:2] == size:
        return picture
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def fit(source: Size, short_side: int, long_side: int, multiple: int = 1) -> Size:
    """(height, width) for the model: short side as asked unless the long one passes ``long_side``, shape kept.

    A side goes to the nearest ``multiple`` when that bends the picture by less than 4 %, so that no padding is needed.
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
    """What ``System.encode`` takes: frames (1, T, 3, H, W) float and padding (1, T, H, W) bool, on ``device``.

    mean, std: of RGB in 0..1. Zeros (the mean colour) are added on the right and below, up to ``multiple``.
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
        except BaseException as error:  # handed over to the reader, who raises it
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
