"""A film being written through PyAV, frames at the times they are given; its sound copied or encoded again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from deixis.writers.output import VideoSource

log = logging.getLogger(__name__)

TICKS = 90_000  # a second of a written film: fine enough for any frame rate, so variable rates survive
PAUSE = 3600  # seconds between two frames of a written film at most (our choice: MP4 can count 6 hours)
MOMENT = 0.0005  # seconds; the shortest packet of sound lasts five times as long, so what comes sooner steps back
COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})  # sound that players expect in an MP4
AAC_RATE = 48_000  # samples a second of sound that is encoded again


class FilmWriter:
    """A film being written through PyAV, frames at the times they are given, on the clock of its first frame.

    pixels: pixel format of the codec.  even: add a row or column (a copy of the last) where the codec wants even sides.
    """

    def __init__(
        self, path: Path, film: VideoSource, codec: str, pixels: str, options: dict[str, str], *, even: bool
    ) -> None:
        height, width = film.source_size
        self._below, self._right = (height % 2, width % 2) if even else (0, 0)
        self._container = av.open(str(path), "w")
        rate = Fraction(max(0.1, film.rate / film.every)).limit_denominator(1001)
        stream = self._container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height + self._below, width + self._right, pixels
        stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS)
        coded = film.colours.written(stream.height, full=codec != "prores_ks")  # ProRes has the limited range only
        self._colours = coded
        coded.tag(stream.codec_context)
        if film.pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = film.pixel_aspect
        self._stream = stream
        self._first: float | None = None
        self._last_tick, self._last_seconds, self._end = -1, 0.0, film.end
        self._cut = 0  # ticks that pauses were shortened by
        self._warn = film.warn
        self._sound: Sound | None = None

    def keep_sound(self, film: VideoSource) -> None:
        """Have the source's sound muxed along. Call before the first frame."""
        if film.has_audio:
            self._sound = Sound(self._container, film)

    def add(self, seconds: float, picture: np.ndarray, layout: str = "rgb24") -> None:
        """picture: (H, W, 3) RGB or (H, W, 4) RGBA uint8, as ``layout`` says."""
        if self._first is None:
            self._first = seconds
            if self._sound is not None:
                self._sound.begin(seconds)
        if self._below or self._right:
            picture = np.pad(picture, ((0, self._below), (0, self._right), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
        frame = self._colours.to_yuv(frame, self._stream.pix_fmt)
        # A film may repeat a time or step back; a written one may not.
        tick = max(round((seconds - self._first) * TICKS) - self._cut, self._last_tick + 1)
        if tick > self._last_tick + PAUSE * TICKS:
            self._shorten(tick - self._last_tick - PAUSE * TICKS)
            tick = self._last_tick + PAUSE * TICKS
        self._last_tick = tick
        frame.pts, frame.time_base = self._last_tick, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))
        self._last_seconds = seconds
        if self._sound is not None:
            self._sound.mux_until(seconds)

    def _shorten(self, ticks: int) -> None:
        """Leave out what a pause is too long for an MP4 by, and the sound after it, which would come too late."""
        self._warn(f"a frame stands for more than {PAUSE / 3600:g} h; in films that are written, for that long")
        self._cut += ticks
        if self._sound is not None:
            self._sound.mux_until(self._last_seconds + PAUSE)
            self._sound.end()

    def close(self) -> None:
        try:
            if self._first is not None:
                self._container.mux(self._stream.encode())
                if self._sound is not None:  # of a film that is left early, much sound follows
                    self._sound.mux_until(min(self._end, self._last_seconds + 1.0))
        finally:
            if self._sound is not None:
                self._sound.close()
            self._container.close()


class Sound:
    """The default sound track of a film, copied into another one; what players do not expect in an MP4 becomes AAC.

    Packets are read as the pictures need them, so that neither runs ahead of the other by more than a moment.
    """

    def __init__(self, container: av.container.OutputContainer, film: VideoSource) -> None:
        self._container, self._film = container, film
        self._source = av.open(str(film.path.absolute()), options={"protocol_whitelist": "file"})
        self._track = max(self._source.streams.audio, key=lambda track: bool(track.disposition & Disposition.default))
        pictures = self._source.streams[film.stream]
        self._origin = float((pictures.start_time or 0) * (pictures.time_base or 0))  # where its clock begins
        self._first = 0.0
        self._copies = self._track.codec_context.codec.canonical_name in COPIED
        if self._copies:
            self._stream = container.add_stream_from_template(self._track)
        else:
            layout = "mono" if self._track.codec_context.channels == 1 else "stereo"
            self._stream = container.add_stream("aac", rate=AAC_RATE, layout=layout)
        self._packets: Iterator[Any] | None = self._source.demux(self._track)
        self._held: Any = None
        self._reached: float | None = None  # where the last packet that was read begins

    def begin(self, seconds: float) -> None:
        """The written film begins at ``seconds`` of the source's pictures."""
        self._first = seconds

    def mux_until(self, seconds: float) -> None:
        """Mux what sounds before ``seconds`` of the source's pictures."""
        while (packet := self._held or self._read()) is not None:
            self._held = None
            at = self._time(packet)
            if at >= seconds:
                self._held = packet
                return
            if at >= self._first:
                self._mux(packet)

    def end(self) -> None:
        """No more sound is written."""
        self._packets = self._held = None

    def _time(self, packet: Any) -> float:
        return float(Fraction(packet.pts) * packet.time_base) - self._origin

    def _read(self) -> Any:
        """The next packet that has a time after the last one's; None at the end, and where the sound is damaged."""
        try:
            while self._packets is not None and (packet := next(self._packets, None)) is not None:
                if packet.pts is None or not packet.time_base:
                    continue
                at = self._time(packet)
                if self._reached is not None and at < self._reached + MOMENT:
                    self._film.warn("the sound steps back in time; what begins before it has reached is left out")
                    continue
                if self._reached is not None and at > self._reached + PAUSE:
                    self._film.warn(f"the sound stops for more than {PAUSE / 3600:g} h; what comes after is left out")
                    break
                self._reached = at
                return packet
        except (FFmpegError, ValueError) as error:
            self._film.warn(f"the sound is damaged ({error}); what comes after is left out")
        self._packets = None
        return None

    def _mux(self, packet: Any) -> None:
        if self._copies:
            shift = round((self._origin + self._first) / packet.time_base)
            packet.pts = packet.dts = (packet.pts or 0) - shift  # sound is not reordered
            packet.stream = self._stream
            self._container.mux(packet)
            return
        try:
            frames = packet.decode()
        except (FFmpegError, ValueError) as error:
            log.debug("%s: sound packet at %s: %s", self._film.path, packet.pts, error)
            return
        for frame in frames:
            if frame.pts is not None:
                frame.pts -= round((self._origin + self._first) / Fraction(frame.time_base))
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Flush the encoder, and let the source go."""
        try:
            if not self._copies:
                self._container.mux(self._stream.encode())
        finally:
            self._source.close()
