"""What waits on disk until a film has ended: RLEs, and mask logits that lose nothing by waiting.

Bilinear interpolation needs a cell's value only where the sign changes nearby: between four cells of one sign every
pixel has that sign. So a mask waits as one bit a cell, and the exact value of the cells next to a change of sign (or,
for soft masks, of all cells in and next to the object). The mask at source size is the same, bit for bit.
T frames, h w cells of a mask.
"""

from __future__ import annotations

import logging
import shutil
import struct
import tempfile
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from deixis.types import DeixisError, Rle, Size, reason_of

log = logging.getLogger(__name__)

USUAL = 0.03  # of the most that a mask can take; smooth masks of the bundled model took .01, soft ones .02 (measured)
STRIDE = 4  # pixels of the model's picture in a cell of a mask, where nothing is known of it yet
SAFETY = 1.5  # times what the first window took, that must be free for the rest of a film (our choice)


class DiskFile:
    """Byte strings in an unnamed temporary file: ``append`` gives a number under which ``[number]`` reads it back.

    The file vanishes with the process, however that ends. folder: where it lies (default: the system's own place).
    Where that disk fills up or goes away, what comes after goes to the system's own place.
    Raises DeixisError where that is full too.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = Path(tempfile.gettempdir() if folder is None else folder)
        self._files = [temporary_file(folder)]
        self._begins = [0]  # the number of the first string in each file
        self._ends = array("q")  # of each string, in its file
        self.taken = 0  # bytes that were written
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, data: bytes) -> int:
        with self._lock:
            try:
                self._write(data)
            except OSError as error:
                self._go_on_elsewhere(data, error)
            self.taken += len(data)
            return len(self._ends) - 1

    def _go_on_elsewhere(self, data: bytes, error: OSError) -> None:
        elsewhere = Path(tempfile.gettempdir())
        try:
            if elsewhere == self.folder or len(self._files) > 1:
                raise error
            self._files.append(temporary_file(None))
            self._begins.append(len(self._ends))
            self._write(data)
        except OSError as last:
            raise DeixisError(
                f"{self.folder}: masks that wait there cannot be kept ({reason_of(last)}); make room, or name"
                " another place in TMPDIR"
            ) from last
        log.warning("%s takes no more (%s); masks wait in %s", self.folder, error.strerror, elsewhere)
        self.folder = elsewhere

    def _write(self, data: bytes) -> None:
        file, start = self._files[-1], self._start(len(self._ends))
        file.seek(start)
        rest = memoryview(data)
        while len(rest):
            rest = rest[file.write(rest) :]
        self._ends.append(start + len(data))

    def _start(self, number: int) -> int:
        return 0 if number in self._begins else self._ends[number - 1]

    def __getitem__(self, number: int) -> bytes:
        file = self._files[bisect_right(self._begins, number) - 1]
        start, end = self._start(number), self._ends[number]
        with self._lock:
            file.seek(start)
            parts, missing = [], end - start
            while missing and (part := file.read(missing)):
                parts.append(part)
                missing -= len(part)
            return b"".join(parts)


def temporary_file(folder: Path | None) -> Any:
    """Without a name, and without a buffer: what a full disk does not take is known at once."""
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError:
        if folder is None:
            raise
        return tempfile.TemporaryFile(buffering=0)


class DiskRles(Sequence[Rle]):
    """The RLEs of a track in a temporary file, for films whose masks must not stay in memory."""

    def __init__(self, size: tuple[int, int], folder: Path | None = None) -> None:
        self.size, self._file = list(size), DiskFile(folder)

    def append(self, rle: Rle) -> None:
        self._file.append(rle["counts"])

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {"size": self.size, "counts": self._file[index % len(self)]}


class Names(Sequence[str]):
    """Frame names, appended one by one, in one piece of memory: a list of strings would cost 60 bytes each."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])

    def append(self, name: str) -> None:
        self._text += name.encode(errors="surrogateescape")  # a file's name may be no UTF-8
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._text[self._ends[index] : self._ends[index + 1]].decode(errors="surrogateescape")


def pack_logits(logits: np.ndarray, soft: bool = False) -> bytes:
    """(T, h, w) float32 logits as bytes; ``unpack_logits`` gives what has the same mask at any larger size.

    soft: the values inside the mask are kept too, and two cells around it, for masks that compete for pixels.
    """
    here = logits > 0
    needed = near(near(here)) if soft else near(here) & near(~here)
    head = struct.pack("<3I", *logits.shape)
    return head + zlib.compress(np.packbits(np.stack([here, needed])).tobytes() + logits[needed].tobytes(), 1)


def unpack_logits(data: bytes) -> np.ndarray:
    """(T, h, w) float32: exact where it matters, 1 or -1 elsewhere."""
    shape = struct.unpack_from("<3I", data)
    body = zlib.decompress(data[12:])
    cells = shape[0] * shape[1] * shape[2]
    length = -(-2 * cells // 8)
    here, needed = np.unpackbits(np.frombuffer(body, np.uint8, length), count=2 * cells).view(bool).reshape(2, *shape)
    logits = np.where(here, np.float32(1), np.float32(-1))
    logits[needed] = np.frombuffer(body, np.float32, offset=length)
    return logits


def near(cells: np.ndarray) -> np.ndarray:
    """(T, h, w) bool: where a cell or one of its eight neighbours in the frame is True."""
    rows = cells.copy()
    rows[:, 1:] |= cells[:, :-1]
    rows[:, :-1] |= cells[:, 1:]
    found = rows.copy()
    found[:, :, 1:] |= rows[:, :, :-1]
    found[:, :, :-1] |= rows[:, :, 1:]
    return found


def most_bytes(frames: int, masks: int, cells: int) -> int:
    """What so many waiting masks of a frame can take at most, over a film: five bytes a cell."""
    return frames * masks * (5 * cells + 100)


def check_room(frames: int | None, masks: int, size: Size, folder: Path) -> None:
    """Before a film is read: say what its waiting masks can take, and refuse it where what they usually take is not
    there. frames: of the film, if it states them.  masks: that wait for a frame.  size: of the model's picture."""
    if frames is None or not masks:
        return
    most = most_bytes(frames, masks, -(-size[0] // STRIDE) * -(-size[1] // STRIDE))
    free = free_bytes(folder)
    if free is not None and USUAL * most > free:
        raise DeixisError(no_room(folder, USUAL * most, free))
    say = log.info if free is None or most <= free else log.warning
    say("masks wait in %s until the film has ended, at most %.0f MB of them, usually about %.0f MB%s",
        folder, most / 1e6, USUAL * most / 1e6, "" if free is None else f"; {free / 1e6:,.0f} MB are free")  # fmt: skip


def require_room(taken: int, done: int, frames: int | None, folder: Path) -> None:
    """After the first window: refuse a film whose waiting masks will not fit. taken: bytes for the ``done`` frames, of
    ``frames`` in all."""
    if frames is None or frames <= done:
        return
    due, free = SAFETY * taken * (frames - done) / done, free_bytes(folder)
    if free is not None and due > free:
        raise DeixisError(no_room(folder, due, free))


def free_bytes(folder: Path) -> int | None:
    """None where the folder went away: what waits then goes elsewhere."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def no_room(folder: Path, due: float, free: int) -> str:
    return (
        f"{folder}: masks wait there until the film has ended, about {due / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB"
        " are free; make room, name another place in TMPDIR, or segment the film in parts (--start, --end)"
    )
