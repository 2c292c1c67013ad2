"""Captioned films for pre-training: a CSV with a row for each (film, caption), of any length.

The first row names the columns: ``film`` (a path, from the CSV's folder where it is not absolute), ``caption``, and
optionally ``fps`` (frames a second of a folder of frames). One line is one row. The list is never held: where each row
begins stands in a small index in the cache, made once a list, and a row is read at its first use.
"""

from __future__ import annotations

import codecs
import csv
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deixis.files import (
    cache_path,
    column_names,
    is_blank,
    read_table_text,
    require_file,
    separator_of,
    stated_separator,
    without_empty_end,
)
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
    """The rows of a list, by number, each read at its first use; ``len`` is their count.

    Raises DeixisError for a list that is missing, has other columns, no rows, or a row that cannot be read; whether a
    film is there and decodes is for its reader to find out.
    """

    def __init__(self, path: Path) -> None:
        self.path = require_file(Path(path), WHERE)
        self.mark, self.columns = self._columns()
        self.index = cache_path(self.path, "video-captions-2").with_suffix(".rows")
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

    def _columns(self) -> tuple[str, list[str]]:
        """(what stands between cells, the names of the columns)."""
        with open(self.path, "rb") as file:
            if (head := file.peek(2)[:2]) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                what = f"not UTF-8 text (it begins with {head!r}); save the table as 'CSV UTF-8'"
                raise DeixisError(f"{self.path}: {what}")
            lines = [line for _, line in zip(range(2), (row for _, row in rows_of(file)), strict=False)]
        line = read_table_text(lines[0], self.path).strip("\r\n") if lines else ""
        if (stated := stated_separator(line)) is not None:
            line = "".join(read_table_text(line, self.path).strip("\r\n") for line in lines[1:])
        mark = stated or separator_of(line)
        try:
            names = column_names(next(csv.reader([line], delimiter=mark), []))
        except csv.Error as error:
            raise DeixisError(f"{self.path}: the first row is {line[:80]!r} ({error}); {WHERE}") from error
        if not {"film", "caption"} <= set(names) or not set(names) <= set(CAPTION_COLUMNS):
            raise DeixisError(f"{self.path}: the first row is {line[:80]!r}; {WHERE}")
        return mark, names

    def _row(self, line: bytes, number: int) -> CaptionedFilm:
        where = f"{self.path}, row {number + 1}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            values = next(csv.reader([text], delimiter=self.mark, skipinitialspace=True, strict=True))
        except (UnicodeDecodeError, csv.Error, StopIteration) as error:
            raise DeixisError(f"{where}: not a row of a CSV in UTF-8 ({error}); one line is one row") from error
        values = without_empty_end(values, len(self.columns))
        if len(values) != len(self.columns):
            raise DeixisError(f"{where}: {len(values)} values, {len(self.columns)} columns; quote texts with commas")
        row = dict(zip(self.columns, values, strict=True))
        printable = "".join(c if c.isprintable() else " " for c in row["caption"])
        caption = " ".join(printable.split())[:MAX_EXPRESSION_CHARACTERS]
        if not caption or not row["film"].strip():
            raise DeixisError(f"{where}: a film and a caption are needed, got {line[:80]!r}")
        try:
            fps = float(row.get("fps") or DEFAULT_FPS)
        except ValueError as error:
            raise DeixisError(f"{where}: fps must be a number, got {row['fps']!r}") from error
        return CaptionedFilm(film=self.path.parent / row["film"].strip(), caption=caption, fps=fps)


def rows_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(where it begins, the line) of each line that is not blank."""
    begin = 0
    for line in iter(file.readline, b""):
        if not is_blank(line.decode("utf-8", errors="replace")):
            yield begin, line
        begin += len(line)


def _write_index(path: Path, index: Path) -> None:
    """Where each row below that of the names begins, as int64; a few rows are held at a time."""
    index.parent.mkdir(parents=True, exist_ok=True)
    beside = index.with_name(f"{index.name}.{os.getpid()}.part")
    with open(path, "rb") as file, open(beside, "wb") as out:
        rows = rows_of(file)
        first = next(rows, (0, b""))[1]
        if stated_separator(first.decode("utf-8", errors="replace")):
            next(rows, None)
        for begin, _ in rows:
            out.write(np.int64(begin).tobytes())
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
