"""Masks out: overlay film, PNG folders, RLE JSON, matte films, contact sheet.

Everything is made in a hidden folder beside OUT and moved into place when it is whole (``Output``). T frames, H W
pixels of the source. Pictures are RGB.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import av
import cv2
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageDraw, ImageFont

from deixis.types import DeixisError, Expression, MaskTrack, RleMasks

log = logging.getLogger(__name__)

FORMATS = ("overlay", "png", "rle", "matte")
SCHEMA = "deixis.masks/1"  # of the RLE JSON, see docs/rle.md; the number rises when a reader of the old one would fail
COLOURS = (  # RGB, one an expression, then again from the first (our choice: far apart in hue, bright on film)
    (255, 64, 64), (64, 144, 255), (64, 208, 96), (255, 192, 32), (200, 96, 255), (32, 216, 216), (255, 128, 192),
    (160, 160, 64),
)  # fmt: skip
TICKS = 90_000  # a second of a written film: fine enough for any frame rate, so variable rates survive
PAUSE = 3600  # seconds between two frames of a written film at most (our choice: MP4 can count 6 hours)
MOMENT = 0.0005  # seconds; the shortest packet of sound lasts five times as long, so what comes sooner steps back
COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})  # sound that players expect in an MP4
AAC_RATE = 48_000  # samples a second of sound that is encoded again
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SHEET_COLUMNS = 6  # frames a row of the contact sheet
SHEET_WIDTH = 256  # pixels of one of its frames
SHEET_HEIGHT = 768  # at most (our choice: phones film 9:16; a film two pixels wide would need a sheet of gigabytes)


class Source(Protocol):
    """What the writers need of a ``Film``."""

    path: Path
    source_size: tuple[int, int]
    rate: float
    every: int
    end: float
    pixel_aspect: Fraction
    has_audio: bool

    def frames(self) -> Iterator[Any]: ...
    def warn(self, text: str) -> None: ...


class Output(AbstractContextManager["Output"]):
    """OUT, while it is being made.

    Items are finished one after the other in ``scratch``, a hidden folder beside OUT, and moved to OUT when the block
    ends: all of them, or, on Ctrl-C, those that are whole. On any other error nothing is left behind.
    Raises DeixisError at once when OUT exists and holds something (unless ``overwrite``: then items of the same name
    are replaced), and when the disk is full.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        self.out, self.overwrite = Path(out).absolute(), overwrite
        self.finished: list[str] = []

    def __enter__(self) -> Self:
        try:
            if self.out.exists() and not self.out.is_dir():
                raise DeixisError(f"{self.out} is a file; give a folder with -o")
            if self.out.is_dir() and any(self.out.iterdir()) and not self.overwrite:
                raise DeixisError(f"{self.out} exists and is not empty; give another folder, or --overwrite")
            self._made = [p for p in self.out.parents if not p.exists()]
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.scratch = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.part-", dir=self.out.parent))
        except OSError as error:
            raise DeixisError(f"cannot write to {self.out.parent}: {error.strerror}") from error
        return self

    @contextmanager
    def item(self, name: str) -> Iterator[Path]:
        """A place to make the file or folder ``name``; it counts as finished when the block ends without an error."""
        place = self.scratch / f"part-{name}"
        yield place
        os.replace(place, self.scratch / name)
        self.finished.append(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self._publish()
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if not self.out.exists():
                for folder in self._made:
                    folder.rmdir()
        if isinstance(error, OSError | FFmpegError) and error.errno in NO_ROOM:
            raise DeixisError(f"no room left on the disk of {self.out.parent}; nothing was written") from error

    def _publish(self) -> None:
        """Move what is finished to OUT: where nothing is yet, in one step, so that a kill leaves all of it or none."""
        if not self.finished:
            return
        if not self.out.exists() or not (self.out.is_symlink() or any(self.out.iterdir())):
            whole = self.scratch / "whole"
            whole.mkdir()
            if self.out.exists():
                shutil.copymode(self.out, whole)
            for name in self.finished:
                os.replace(self.scratch / name, whole / name)
            os.replace(whole, self.out)
            return
        for name in self.finished:
            place = self.out / name
            if place.is_dir():
                os.replace(place, self.scratch / f"old-{name}")
            os.replace(self.scratch / name, place)

    @property
    def paths(self) -> list[Path]:
        return [self.out / name for name in self.finished]


def check_formats(text: str) -> tuple[str, ...]:
    """``overlay,rle`` as a tuple. Raises DeixisError for one that is unknown."""
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise DeixisError(f"unknown format {(unknown or [text])[0]!r}; expected {', '.join(FORMATS)}, commas between")
    return formats


def write(
    output: Output,
    film: Source,
    tracks: Sequence[MaskTrack],
    formats: Sequence[str],
    *,
    model: Mapping[str, Any],
    complete: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write tracks in ``formats`` (of FORMATS), and a contact sheet always.

    model: what the JSON says of the model.  complete: False when the film was not answered to its end.
    progress: called with the number of frames drawn.
    """
    if "rle" in formats:
        with output.item("masks.json") as path:
            write_rle(path, film, tracks, model=model, complete=complete)
    if "png" in formats:
        with output.item("masks") as path:
            write_pngs(path, tracks)
    with ExitStack() as items:  # one pass over the film serves every kind of picture
        painters: list[Painter] = [ContactSheet(items.enter_context(output.item("contact_sheet.png")), tracks)]
        if "overlay" in formats:
            painters.append(Overlay(items.enter_context(output.item("overlay.mp4")), film, tracks))
        if "matte" in formats:
            folder = items.enter_context(output.item("matte"))
            folder.mkdir()
            painters += [Matte(folder / f"{slug(t.expression, i)}.mov", film, i) for i, t in enumerate(tracks)]
        draw(film, tracks, painters, progress)


class Painter(Protocol):
    """Something that is drawn frame by frame in the second pass over a film."""

    def wants(self, index: int) -> bool: ...
    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None: ...
    def close(self) -> None: ...


def draw(
    film: Source,
    tracks: Sequence[MaskTrack],
    painters: Sequence[Painter],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Read the film again, give every frame that a painter wants to it, and close the painters, also after an error."""
    with ExitStack() as stack:
        for painter in painters:
            stack.callback(painter.close)
        for index, frame in enumerate(islice(film.frames(), len(tracks[0]))):
            wanting = [painter for painter in painters if painter.wants(index)]
            if wanting:
                picture, masks = frame.pixels(), [track.masks[index] for track in tracks]
                for painter in wanting:
                    painter.add(index, frame.seconds, picture, masks)
            if progress is not None:
                progress(index + 1)


def slug(expression: Expression, index: int) -> str:
    """A name for files: ``00_a_grey_rhino``."""
    words = "".join(c if c.isalnum() else " " for c in expression.text.lower()).split()
    return f"{index:02d}_" + "_".join(words).encode()[:80].decode(errors="ignore")


def write_rle(
    path: Path, film: Source, tracks: Sequence[MaskTrack], *, model: Mapping[str, Any], complete: bool = True
) -> None:
    """One JSON of all tracks (docs/rle.md), written track by track so that a long film need not fit in memory."""
    height, width = film.source_size
    first = tracks[0]
    # A file's name may be no UTF-8; a backslash and its number is what JSON writes for such a character.
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        facts = {
            "schema": SCHEMA,
            "film": {"name": film.path.name, "height": height, "width": width, "every": film.every},
            "model": dict(model),
            "complete": complete,
        }
        file.write(json.dumps(facts, ensure_ascii=False)[:-1])
        file.write(',\n"times": ')
        _write_list(file, (f"{seconds:.6f}" for seconds in first.times))
        file.write(',\n"names": ')
        _write_list(file, (json.dumps(name, ensure_ascii=False) for name in first.names))
        file.write(',\n"tracks": [')
        for number, track in enumerate(tracks):
            about = {
                "expression": track.expression.text,
                "id": track.expression.id,
                "presence": round(track.presence, 6),
                "present": track.present,
            }
            file.write((",\n" if number else "\n") + json.dumps(about, ensure_ascii=False)[:-1] + ',\n"scores": ')
            _write_list(file, (f"{score:.4f}" for score in track.scores))
            file.write(',\n"masks": ')
            rles = (track.masks.rles[i] for i in range(len(track)))
            _write_list(file, (json.dumps({**rle, "counts": rle["counts"].decode("ascii")}) for rle in rles))
            file.write("}")
        file.write("\n]}\n")


def _write_list(file: TextIO, items: Iterator[str]) -> None:
    file.write("[")
    for index, item in enumerate(items):
        file.write(f",{item}" if index else item)
    file.write("]")


def read_rle(path: str | Path) -> list[MaskTrack]:
    """The tracks of a JSON that ``write_rle`` wrote. Raises DeixisError for anything else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise DeixisError(f"{path} has schema {found['schema']!r}, expected {SCHEMA!r}")
        size = found["film"]["height"], found["film"]["width"]
        return [
            MaskTrack(
                Expression(track["expression"], track["id"]),
                RleMasks([{**m, "counts": m["counts"].encode("ascii")} for m in track["masks"]], size),
                np.array(track["scores"], np.float32),
                track["presence"],
                found["names"],
                found["times"],
            )
            for track in found["tracks"]
        ]
    except OSError as error:
        raise DeixisError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(f"{path} is not a JSON of masks as deixis writes it ({error!r})") from error


def write_pngs(folder: Path, tracks: Sequence[MaskTrack], workers: int = 2) -> None:
    """``folder/NN_words/FRAME.png``: one 8-bit 0/255 mask per frame and expression, at source size."""
    with ThreadPoolExecutor(workers, "deixis-png") as pool:
        pending: deque[Future] = deque()
        try:
            for index, track in enumerate(tracks):
                place = folder / slug(track.expression, index)
                place.mkdir(parents=True)
                empty = encode_png(np.zeros(track.masks.size, bool))
                areas = track.masks.areas()
                for i, name in enumerate(track.names):
                    pending.append(pool.submit(_write_png, place / f"{name}.png", track.masks, i, areas[i], empty))
                    if len(pending) > 4 * workers:
                        pending.popleft().result()
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _write_png(path: Path, masks: RleMasks, index: int, area: int, empty: bytes) -> None:
    path.write_bytes(encode_png(masks[index]) if area else empty)


def encode_png(mask: np.ndarray) -> bytes:
    """A (H, W) bool mask as the bytes of an 8-bit grey PNG, 0/255 (a benchmark's reader may not know 1-bit files)."""
    done, data = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, f"OpenCV could not encode a mask of {mask.shape}"
    return data.tobytes()


class FilmWriter:
    """A film being written through PyAV, frames at the times they are given, on the clock of its first frame.

    pixels: pixel format of the codec.  even: add a row or column (a copy of the last) where the codec wants even sides.
    """

    def __init__(
        self, path: Path, film: Source, codec: str, pixels: str, options: dict[str, str], *, even: bool
    ) -> None:
        height, width = film.source_size
        self._below, self._right = (height % 2, width % 2) if even else (0, 0)
        self._container = av.open(str(path), "w")
        rate = Fraction(max(0.1, film.rate / film.every)).limit_denominator(1001)
        stream = self._container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height + self._below, width + self._right, pixels
        stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS)
        if film.pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = film.pixel_aspect
        self._stream = stream
        self._first: float | None = None
        self._last_tick, self._last_seconds, self._end = -1, 0.0, film.end
        self._cut = 0  # ticks that pauses were shortened by
        self._warn = film.warn
        self._sound: Sound | None = None

    def keep_sound(self, film: Source) -> None:
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
        # One thread: on several, libswscale leaves half-transparent patches in an alpha plane of odd height.
        frame = frame.reformat(format=self._stream.pix_fmt, threads=1)
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
    """The first sound track of a film, copied into another one; what players do not expect in an MP4 becomes AAC.

    Packets are read as the pictures need them, so that neither runs ahead of the other by more than a moment.
    """

    def __init__(self, container: av.container.OutputContainer, film: Source) -> None:
        self._container, self._film = container, film
        self._source = av.open(str(film.path), options={"protocol_whitelist": "file"})
        self._track = self._source.streams.audio[0]
        pictures = self._source.streams.video[0]
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
        """Nothing more is heard."""
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


class Overlay:
    """The film with each object's mask, contour and words in its own colour; H.264, the sound kept."""

    def __init__(self, path: Path, film: Source, tracks: Sequence[MaskTrack]) -> None:
        options = {"crf": "18", "preset": "veryfast"}
        self._film = FilmWriter(path, film, "libx264", "yuv420p", options, even=True)
        self._film.keep_sound(film)
        self._labels = [
            Label(t.expression.text, COLOURS[i % len(COLOURS)], film.source_size) for i, t in enumerate(tracks)
        ]

    def wants(self, index: int) -> bool:
        return True

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        picture = picture.copy()
        for i, mask in enumerate(masks):
            paint(picture, mask, COLOURS[i % len(COLOURS)])
        taken: list[tuple[int, int, int, int]] = []
        for label, mask in zip(self._labels, masks, strict=True):
            if mask.any():
                taken.append(label.put(picture, mask, taken))
        self._film.add(seconds, picture)

    def close(self) -> None:
        self._film.close()


class Matte:
    """The film with one object's mask as its alpha channel: ProRes 4444 in a .mov, straight alpha, no sound."""

    def __init__(self, path: Path, film: Source, track: int) -> None:
        options = {"profile": "4444"}
        self._film, self._track = FilmWriter(path, film, "prores_ks", "yuva444p10le", options, even=False), track

    def wants(self, index: int) -> bool:
        return True

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        alpha = masks[self._track].astype(np.uint8) * 255
        self._film.add(seconds, np.dstack([picture, alpha]), "rgba")

    def close(self) -> None:
        self._film.close()


class ContactSheet:
    """A picture of six frames a row, evenly spread over the film, one row per expression under its words."""

    def __init__(self, path: Path, tracks: Sequence[MaskTrack]) -> None:
        self._path, self._tracks = path, tracks
        frames = len(tracks[0])
        height, width = tracks[0].masks.size
        scale = min(SHEET_WIDTH / width, SHEET_HEIGHT / height)
        self._tile = max(1, round(height * scale)), max(1, round(width * scale))
        spread = np.linspace(0, frames - 1, min(SHEET_COLUMNS, frames)).round().astype(int)
        self._columns = {int(index): column for column, index in enumerate(spread)}
        self._head = 24  # pixels above a row for its words
        rows = len(tracks) * (self._tile[0] + self._head)
        self._sheet = np.full((rows, SHEET_COLUMNS * SHEET_WIDTH, 3), 24, np.uint8)

    def wants(self, index: int) -> bool:
        return index in self._columns

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        height, width = self._tile
        left = self._columns[index] * SHEET_WIDTH
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        for row, mask in enumerate(masks):
            tile = small.copy()
            share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
            paint(tile, share > 0.5, COLOURS[row % len(COLOURS)])
            top = row * (height + self._head) + self._head
            self._sheet[top : top + height, left : left + width] = tile

    def close(self) -> None:
        picture = Image.fromarray(self._sheet)
        pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
        for row, track in enumerate(self._tracks):
            top = row * (self._tile[0] + self._head)
            verdict = "present" if track.present else "not there"
            words = f"{track.expression.text[:120]}   [{verdict}, {track.presence:.2f}]"
            pen.text((6, top + 4), words, fill=COLOURS[row % len(COLOURS)], font=font)
        picture.save(self._path, "png")


def paint(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Tint a (H, W, 3) picture under a (H, W) bool mask, and draw the mask's contour; changes ``picture``."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = picture[top:bottom, left:right]
    inside = np.ascontiguousarray(mask[top:bottom, left:right]).view(np.uint8)
    tinted = cv2.addWeighted(part, 0.6, np.full_like(part, colour), 0.4, 0)
    cv2.copyTo(tinted, inside, part)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(int(left), int(top)))
    thickness = max(1, round(min(picture.shape[:2]) / 300))
    cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)


class Label:
    """The words of an expression as a small picture, drawn once and put on every frame beside the object."""

    def __init__(self, text: str, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
        font = ImageFont.load_default(max(10, min(size) / 24))
        while font.getlength(text) > max(size[1] - 8, 8) and len(text) > 1:
            text = text.rstrip("…")[:-1].rstrip() + "…"
        right, bottom = (round(v) for v in font.getbbox(text)[2:])
        patch = Image.new("RGB", (right + 8, bottom + 6), colour)
        dark = sum(colour) > 380  # our choice: black words on bright colours, white on dark ones
        ImageDraw.Draw(patch).text((4, 3), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
        self._patch = np.asarray(patch)[: size[0], : size[1]]

    def put(
        self, picture: np.ndarray, mask: np.ndarray, taken: Sequence[tuple[int, int, int, int]]
    ) -> tuple[int, int, int, int]:
        """Draw above the mask, or lower where another label already is; returns (top, left, bottom, right)."""
        height, width = self._patch.shape[:2]
        top = int(max(0, np.flatnonzero(mask.any(1))[0] - height))
        left = int(min(np.flatnonzero(mask.any(0))[0], picture.shape[1] - width))
        for other in sorted(taken):
            if top < other[2] and top + height > other[0] and left < other[3] and left + width > other[1]:
                top = other[2]
        top = min(top, picture.shape[0] - height)
        picture[top : top + height, left : left + width] = self._patch
        return top, left, top + height, left + width
