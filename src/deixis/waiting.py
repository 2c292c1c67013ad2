"""What waits on disk until a film has ended: RLEs, and mask logits that lose nothing by waiting.

Bilinear interpolation asks for a cell's value only where the sign changes nearby: between four cells of one sign every
pixel has that sign. So a mask waits as one bit a cell, and the exact value of the cells next to a change of sign (or,
for soft masks, of all cells in and next to the object). The mask at source size is the same, bit for bit.
T frames, h w cells of a mask.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from deixis.types import DeixisError, Rle

SAFETY = 1.5  # times what the first window took, that must be free for the rest of a film (our choice)


class DiskFile:
    """Byte strings in an unnamed temporary file: ``append`` gives a number under which ``[number]`` reads it back.

    The file vanishes with the process, however that ends. folder: where it lies (default: the system's own place).
    Raises DeixisError where the disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = Path(tempfile.gettempdir() if folder is None else folder)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  lives as long as this object
        self._ends = array("q", [0])
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def taken(self) -> int:
        """Bytes that were written."""
        return self._ends[-1]

    def append(self, data: bytes) -> int:
        with self._lock:
            try:
                self._file.seek(self._ends[-1])
                self._file.write(data)
            except OSError as error:
                raise DeixisError(f"{self.folder}: masks that wait there cannot be kept ({error.strerror}); make room,"
                                  " or name another place in TMPDIR") from error  # fmt: skip
            self._ends.append(self._ends[-1] + len(data))
            return len(self._ends) - 2

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        with self._lock:
            self._file.seek(start)
            return self._file.read(end - start)


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


def require_room(taken: int, done: int, frames: int | None, folder: Path) -> None:
    """Refuse a film whose waiting masks will not fit: ``taken`` bytes for ``done`` frames, of ``frames`` in all."""
    if frames is None or frames <= done:
        return
    due = int(SAFETY * taken * (frames - done) / done)
    free = shutil.disk_usage(folder).free
    if due > free:
        raise DeixisError(
            f"{folder}: masks wait there until the film has ended, about {due / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB"
            " are free; make room, name another place in TMPDIR, or segment the film in parts (--start, --end)"
        )
