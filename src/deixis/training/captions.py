"""Captioned films for pre-training: a CSV with a row for each (film, caption), of any length.

The first row names the columns: ``film`` (a path, from the CSV's folder where it is not absolute), ``caption``, and
optionally ``fps`` (frames a second of a folder of frames). One line is one row. The list is never held: where each row
begins stands in a small index in the cache, made once a list, and a row is read when it is asked for.
"""

from __future__ import annotations

import csv
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deixis.files import cache_path, require_file
from deixis.types import MAX_EXPRESSION_CHARACTERS, DeixisError

log = logging.getLogger(__name__)

CAPTION_COLUMNS = ("film", "caption", "fps")
WHERE = "it is a CSV with the columns film and caption (and fps, for folders of frames), one row a line"
DEFAULT_FPS = 24.0  # frames a second of a folder whose row does not say (our choice)


@dataclass(frozen=True, kw_only=True)
class CaptionedFilm:
    """film: a film or a folder of frames.  caption: what is said of it.  fps: frames a second, of a folder only."""

    film: Path
    caption: str
    fps: float = DEFAULT_FPS


class VideoCaptions:
    """The rows of a list, by number, each read when it is asked for; ``len`` is their count.

    Raises DeixisError for a list that is missing, has other columns, no rows, or a row that cannot be read; whether a
    film is there and decodes is for its reader to find out.
    """

    def __init__(self, path: Path) -> None:
        self.path = require_file(Path(path), WHERE)
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            self.columns = self._columns(file.readline())
        self.index = cache_path(self.path, "video-captions").with_suffix(".rows")
        if not self.index.is_file():
            _write_index(self.path, self.index)
        self.count = self.index.stat().st_size // 8
        if self.count == 0:
            raise DeixisError(f"{self.path} names no film; {WHERE}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> CaptionedFilm:
        if not 0 <= number < self.count:
            raise IndexError(number)
        with open(self.index, "rb") as file:
            file.seek(8 * number)
            begin = int(np.frombuffer(file.read(8), np.int64)[0])
        with open(self.path, "rb") as file:
            file.seek(begin)
            return self._row(file.readline(), number)

    def _columns(self, line: str) -> list[str]:
        names = [name.strip().lower() for name in next(csv.reader([line]), [])]
        if not {"film", "caption"} <= set(names) or not set(names) <= set(CAPTION_COLUMNS):
            raise DeixisError(f"{self.path}: the first row is {line.strip()[:80]!r}; {WHERE}")
        return names

    def _row(self, line: bytes, number: int) -> CaptionedFilm:
        where = f"{self.path}, row {number + 1}"
        try:
            values = next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True))
        except (UnicodeDecodeError, csv.Error, StopIteration) as error:
            raise DeixisError(f"{where}: not a row of a CSV in UTF-8 ({error}); one line is one row") from error
        if len(values) != len(self.columns):
            raise DeixisError(f"{where}: {len(values)} values, {len(self.columns)} columns; quote texts with commas")
        row = dict(zip(self.columns, values, strict=True))
        caption = " ".join(row["caption"].split())[:MAX_EXPRESSION_CHARACTERS]
        if not caption or not row["film"].strip():
            raise DeixisError(f"{where}: a film and a caption are needed, got {line[:80]!r}")
        try:
            fps = float(row.get("fps") or DEFAULT_FPS)
        except ValueError as error:
            raise DeixisError(f"{where}: fps must be a number, got {row['fps']!r}") from error
        return CaptionedFilm(film=self.path.parent / row["film"].strip(), caption=caption, fps=fps)


def _write_index(path: Path, index: Path) -> None:
    """Where each row after the first begins, as int64, without the blank ones; a few rows are held at a time."""
    index.parent.mkdir(parents=True, exist_ok=True)
    beside = index.with_name(f"{index.name}.{os.getpid()}.part")
    with open(path, "rb") as rows, open(beside, "wb") as out:
        rows.readline()
        begin = rows.tell()
        for line in iter(rows.readline, b""):
            if line.strip():
                out.write(np.int64(begin).tobytes())
            begin += len(line)
    beside.replace(index)
    log.info("indexed %s", path)


def shuffled(number: int, count: int, *key: int) -> int:
    """Where ``number`` in 0..count-1 goes in a shuffle that depends on ``key`` alone: computed, not stored.

    A Feistel network over the next power of four, walked until it lands inside (arXiv:2106.06161 and older).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    rounds = [int(x) for x in np.random.SeedSequence([count, *key]).generate_state(4, np.uint64)]
    at = number
    while True:
        left, right = at >> half, at & mask
        for secret in rounds:
            left, right = right, left ^ (_mixed(right ^ secret) & mask)
        at = (left << half) | right
        if at < count:
            return at


def _mixed(x: int) -> int:
    """64 bits, well stirred (the finaliser of SplitMix64)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def write_list(path: Path, rows: list[tuple[Path | str, str]]) -> None:
    """Write a list of (film, caption)."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["film", "caption"])
        writer.writerows([str(film), caption] for film, caption in rows)
