"""Files, written in one step and read strictly; and the folder of the cache."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deixis.types import DeixisError, reason_of


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which ``frame2`` comes before ``frame10``."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def safe_name(name: Any, source: Path) -> str:
    """A name from a file, fit to be one part of a path; anything that could leave its folder is refused."""
    bad = not isinstance(name, str) or not name or name in (".", "..") or len(name) > 200
    if bad or any(c in "/\\:" or not c.isprintable() for c in name):
        raise DeixisError(
            f"{source}: {str(name)[:80]!r} is no name of a video, frame or expression (it may leave its folder)"
        )
    return name


SEPARATORS = ",;\t"  # what Excel writes between cells, by country


def read_table_text(data: bytes, source: Path | str) -> str:
    """The text of a table: UTF-8, or UTF-16 where its first bytes say so. Raises DeixisError for anything else."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise DeixisError(f"{source}: not UTF-8 text ({where}); save the table as 'CSV UTF-8'") from error
    if "\0" in text.partition("\n")[0]:
        raise DeixisError(f"{source}: not UTF-8 text (its first line holds NUL); save the table as 'CSV UTF-8'")
    return text


def is_blank(line: str) -> bool:
    """Whether a line of a table holds nothing but what stands between cells."""
    return not line.strip(f'{SEPARATORS}" \r\n\ufeff')


def stated_separator(line: str) -> str | None:
    """What the line ``sep=;`` says that Excel puts before a table; None for any other line."""
    found = re.fullmatch(r'\ufeff?"?sep=(.)"?', line.strip("\r\n"), re.IGNORECASE)
    return found[1] if found else None


def separator_of(line: str) -> str:
    """What stands between the cells of a table whose names are in this line."""
    return max(SEPARATORS, key=line.count)


def read_cells(text: str, source: Path | str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of a table's columns, in small letters, and (line number, cells) of every row that is not blank.

    Commas, semicolons or tabs stand between cells, as in the line of the names. Blank lines, ``sep=;`` and what is
    empty beyond the last name are passed over. Raises DeixisError for what is no table.
    """
    first = next((line for line in text.splitlines() if not is_blank(line)), "")
    stated = stated_separator(first)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=stated or separator_of(first), skipinitialspace=True, strict=True
    )
    rows: list[tuple[int, list[str]]] = []
    try:
        rows += ((reader.line_num, cells) for cells in reader if any(cell.strip(" \ufeff") for cell in cells))
    except csv.Error as error:
        raise DeixisError(f"{source}: line {reader.line_num}: not a line of a CSV file ({error})") from error
    rows = rows[1:] if stated else rows
    if not rows:
        return [], []
    names = column_names(rows[0][1])
    return names, [(line, without_empty_end(cells, len(names))) for line, cells in rows[1:]]


def column_names(cells: Sequence[str]) -> list[str]:
    return [cell.strip(" \ufeff").lower() for cell in without_empty_end(cells, 0)]


def without_empty_end(cells: Sequence[str], least: int) -> list[str]:
    """The cells without the empty ones at the end, but at least so many."""
    count = len(cells)
    while count > least and not cells[count - 1].strip():
        count -= 1
    return list(cells[:count])


class Missing(DeixisError):
    """A file or folder is not there; it was not damaged, but perhaps never fetched. path: where it belongs."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Missing, (str(self), self.path)


def require_file(path: Path, where: str) -> Path:
    """The path, if there is such a file; else a DeixisError that says how to get it."""
    if not path.is_file():
        raise Missing(f"{path} is missing; {where}", path)
    return path


def require_folder(path: Path, where: str) -> Path:
    """The path, if there is such a folder; else a DeixisError that says how to get it."""
    if not path.is_dir():
        raise Missing(f"the folder {path} is missing; {where}", path)
    return path


def list_folder(path: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name. Raises DeixisError where it cannot be read (a symlink loop, say)."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DeixisError(f"{path}: cannot be listed ({reason_of(error)})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return table


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def parse_json(text: str | bytes, source: Path) -> Any:
    """JSON without doubled keys, NaN or infinity; anything else is a DeixisError that names the file."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DeixisError(f"{source}: not valid JSON ({error})") from error


def read_json(path: Path, where: str = "") -> Any:
    """The contents of a JSON file; see ``parse_json``."""
    try:
        text = require_file(path, where or "it belongs to the benchmark").read_bytes()
    except OSError as error:
        raise DeixisError(f"{path}: cannot be read ({reason_of(error)})") from error
    return parse_json(text, path)


def read_words(path: Path, where: str = "", encoding: str = "utf-8") -> str:
    """The contents of a text file. Raises DeixisError where it is missing, cannot be read, or is no such text."""
    try:
        return require_file(path, where or "it belongs to the benchmark").read_text(encoding=encoding)
    except OSError as error:
        raise DeixisError(f"{path}: cannot be read ({reason_of(error)})") from error
    except UnicodeDecodeError as error:
        raise DeixisError(f"{path}: not {encoding} text ({error.reason} at byte {error.start})") from error


def field_of(table: Any, key: str, kind: type | tuple[type, ...], source: Path) -> Any:
    """table[key], checked to be there and of a kind."""
    if not isinstance(table, dict) or not isinstance(table.get(key), kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        got = type(table.get(key)).__name__ if isinstance(table, dict) and key in table else "nothing"
        raise DeixisError(f"{source}: {key!r} must be {wanted}, got {got}")
    return table[key]


def cache_folder() -> Path:
    """Where indexes of large files are kept: DEIXIS_CACHE, or ~/.cache/deixis."""
    return Path(os.environ.get("DEIXIS_CACHE") or Path.home() / ".cache" / "deixis")


def cache_path(source: Path, kind: str) -> Path:
    """A place in the cache that changes when the source's path, size or time does."""
    status = source.stat()
    key = f"{source.absolute()}|{status.st_size}|{status.st_mtime_ns}|{kind}|1"
    return cache_folder() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step: a reader finds the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    half.write_text(json.dumps(value, allow_nan=False))
    half.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and put it in place in one move."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
