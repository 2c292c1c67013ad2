"""The video stream of a film file as a source of frames, through PyAV."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from deixis.types import DeixisError, reason_of
from deixis.video.colour import NO_CODES, Colours, Turn, colours_of, to_rgb, turn_of
from deixis.video.frames import Frame, check_pixels

log = logging.getLogger(__name__)

# Formats that are lists of other files and may name any on this machine. (FFmpeg keeps ffconcat to files beside it.)
PLAYLISTS = frozenset({"hls", "applehttp", "dash", "imf", "sdp", "rtsp", "sap", "webm_dash_manifest", "lavfi"})
ARCHIVES = (b"PK\3\4", b"Rar!\x1a", b"7z\xbc\xaf", b"\x1f\x8b")  # zip, rar, 7z, gzip
PICTURES_OF = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image  # streams beside a film


class Stream:
    """The video stream that players show of a film, through PyAV."""

    def __init__(self, path: Path, max_pixels: int, warn: Callable[..., None]) -> None:
        # A relative name with a colon (12:30.mp4) would be taken for a protocol.
        self.path, self.max_pixels, self.warn = path.absolute(), max_pixels, warn
        self.colours, self._turn = Colours(), Turn()  # of the last frame that was decoded
        self._rotation: int | None = None  # degrees, as FFmpeg states them of the frame that ``_turn`` was read from
        with self._open() as container:
            stream = self._video(container)
            self.stream = stream.index
            context = stream.codec_context
            check_pixels(context.width * context.height, max_pixels, path)
            rate = stream.average_rate or stream.guessed_rate
            self.rate = float(rate) if rate else 25.0
            self.has_audio = bool(container.streams.audio)
            self._aspect = Fraction(stream.sample_aspect_ratio or 1)
            self._origin = float((stream.start_time or 0) * (stream.time_base or 0))  # where its clock begins
            self.seconds = _seconds_of(container, stream)

    def _open(self) -> av.container.InputContainer:
        # A film of unknown origin may not have others of this machine shown, nor open sockets.
        options = {
            "max_pixels": str(self.max_pixels), "protocol_whitelist": "file",
            "format_whitelist": ",".join(sorted(av.formats_available - PLAYLISTS)),
        }  # fmt: skip
        if any(self._begins(mark) for mark in ARCHIVES):  # FFmpeg would show a picture that lies in it
            raise DeixisError(f"{self.path} is an archive; unpack it, and give the film or the folder that was in it")
        if self._begins(b"#EXTM3U"):
            raise DeixisError(
                f"{self.path} is a playlist, which may name any file; if you trust it, make a film of it with"
                " `ffmpeg -i IN -c copy OUT.mp4`"
            )
        try:
            return av.open(str(self.path), options=options)
        except av.error.PermissionError as error:
            raise DeixisError(f"{self.path} may not be read: {reason_of(error)}") from error
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

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel over its height, as shown; known when a frame has been decoded."""
        return 1 / self._aspect if self._turn.swap else self._aspect

    def number_of(self, name: str) -> int:
        """A frame's number in the film, from 0."""
        return int(name)

    def file_name(self, name: str) -> str:
        """What a picture of a frame is called."""
        return f"{name}.jpg"

    def _video(self, container: av.container.InputContainer) -> av.VideoStream:
        """The stream that is marked as the default one, else the largest that moves; a song's cover is no film."""
        films = [stream for stream in container.streams.video if not stream.disposition & PICTURES_OF]
        known = [stream for stream in films if stream.codec_context is not None]
        if not known:
            if films:
                raise DeixisError(f"{self.path}: its video is in a format that this PyAV cannot decode")
            raise DeixisError(f"{self.path} has no video stream; expected a film")
        best = max(known, key=rank)  # of equals the first
        if len(known) > 1:
            context = best.codec_context
            self.warn(
                f"the film holds {len(known)} video streams; stream {best.index} is used"
                f" ({context.width}x{context.height}, {context.name})"
            )
        return best

    def frames(self, start: float, end: float) -> Iterator[Frame]:
        """Frames at or after ``start`` and before ``end`` seconds, with the numbers they have in the whole film."""
        yield from self._read(start, end, seek=start > 0)

    def _read(self, start: float, end: float, *, seek: bool) -> Iterator[Frame]:
        """As ``frames``; where nothing can be sought or counted, the film is read from its beginning."""
        with self._open() as container:
            stream = self._video(container)
            stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
            stream.thread_type = "AUTO"
            sought = seek and self._seek(container, stream, start)
            number, last = None if sought else 0, None
            index = 0
            for decoded, frame in enumerate(self._decode(container, stream)):
                seconds = decoded / self.rate if frame.time is None else max(0.0, frame.time - self._origin)
                last = seconds
                if sought and not decoded and seconds >= start:
                    break  # the key frame that was found lies too late, as in MPEG-TS
                if seconds >= end:
                    return
                if seconds < start:
                    number = None if number is None else number + 1
                    continue
                if number is None:
                    number = self._count_before(frame.pts)
                    if number is None:
                        break
                self._note(frame, stream.codec_context)
                convert = partial(self._convert, frame, self.colours, self._turn)
                yield Frame(index, f"{number:05d}", seconds, convert, number)
                index, number = index + 1, number + 1
            else:
                self._check_whole(last)
                return
        yield from self._read(start, end, seek=False)

    def _count_before(self, pts: int | None) -> int | None:
        """How many frames come before a time, by the packets' times; None where these do not say."""
        times: set[int] = set()
        with self._open() as container:
            stream = self._video(container)
            try:
                for packet in container.demux(stream) if pts is not None else ():
                    if packet.size == 0 or packet.is_discard:
                        continue
                    if packet.pts is None or packet.dts is None:
                        return None
                    if packet.pts < pts:  # type: ignore[operator]  # no packets where it is None
                        times.add(packet.pts)
                    elif packet.dts >= pts:  # type: ignore[operator]
                        break
            except (FFmpegError, ValueError) as error:
                log.debug("%s: counting: %s", self.path, error)
                return None
        return len(times) if pts is not None else None

    def _note(self, frame: av.VideoFrame, context: av.VideoCodecContext) -> None:
        """Learn a frame's colours and how it is turned, and warn of what they rule out."""
        self.colours = colours_of(frame, context)
        if frame.rotation != self._rotation:
            # A frame and its side data refer to each other, so a reader of it keeps the frame until Python's next
            # search for such circles: memory grew by 6 MB per 1,000 small frames.
            self._turn, self._rotation = turn_of(frame), frame.rotation
        if self.colours.hdr:
            self.warn(
                f"the film is HDR ({self.colours.hdr}); its colours are brought to SDR (BT.709) by a fixed curve, for"
                " the model and in what is written"
            )
        if self.colours.matrix in NO_CODES:
            self.warn(f"the film's colours are coded as {NO_CODES[self.colours.matrix]}, and shown as if by BT.709")
        if not self._turn.exact:
            self.warn("the film is turned by no right angle; it is shown turned by the nearest one")

    def _seek(self, container: av.container.InputContainer, stream: av.VideoStream, start: float) -> bool:
        """Go to a key frame before ``start``; False where that is not possible: then it is read from the beginning."""
        if stream.time_base is None or stream.start_time is None:
            return False  # without times nothing can be sought
        try:
            # A second early: with frames out of order the sought key frame may otherwise be shown after ``start``.
            wanted = (stream.start_time or 0) + int(max(0.0, start - 1) / stream.time_base)
            container.seek(wanted, stream=stream, backward=True)
            return True
        except (FFmpegError, OverflowError) as error:  # a start of 1e308 s is no number of ticks
            log.debug("%s: cannot seek (%s), decoding from the beginning", self.path, error)
            return False

    def _decode(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        """Frames in order; damaged packets are passed over and noted, a damaged container ends the film."""
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
                check_pixels(frame.width * frame.height, self.max_pixels, self.path)
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
    def _convert(frame: av.VideoFrame, colours: Colours, turn: Turn) -> np.ndarray:
        return turn(to_rgb(frame, colours))


def rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
    """What players go by when they choose among streams: marked as the default, moving, large."""
    context = stream.codec_context
    return bool(stream.disposition & Disposition.default), stream.frames != 1, context.width * context.height


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
