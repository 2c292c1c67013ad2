"""What every benchmark is made of: videos, samples, truth, problems; and the strict readers that the loaders share.

A benchmark's file has ``open_split(root, split, skip_bad) -> Benchmark`` and ``write_fixture(out)``; everything behind
``Benchmark`` (predict, score, pack, train) then knows no benchmark's name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deixis.benchmarks.pngs import present_numbers
from deixis.types import DeixisError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A film of a benchmark. frames: one image file a frame, in order, or the path of a film file.

    names: the frames' names in the benchmark's results (for a film file: their numbers, perhaps of the labelled only).
    first: the number that the first frame of a film file has.
    """

    id: str
    names: tuple[str, ...]
    frames: tuple[Path, ...] | Path
    first: int = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One expression asked of one video.

    objects: ids of the true objects it names; () says it names nothing there, None that the truth is not public.
    scored: which of the video's frames are scored, as indices; None means all of them.
    tags: kinds the expression belongs to; summaries are given for each.
    """

    video: Video
    id: str
    text: str
    objects: tuple[str, ...] | None
    scored: tuple[int, ...] | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FrameTruth:
    """All labelled objects of one frame. size: (H, W). masks: object id -> (H, W) bool; absent objects are left out.

    void: (H, W) bool, pixels that count for nobody, or None.
    """

    size: tuple[int, int]
    masks: Mapping[str, np.ndarray]
    void: np.ndarray | None = None

    def union(self, objects: Iterable[str]) -> np.ndarray:
        """The (H, W) bool mask of several objects together; empty for none."""
        found = [self.masks[key] for key in objects if key in self.masks]
        return np.logical_or.reduce(found) if found else np.zeros(self.size, bool)

    @staticmethod
    def from_ids(ids: np.ndarray, void_value: int | None = None) -> FrameTruth:
        """Split a (H, W) uint8 map of object numbers; 0 is background."""
        present = present_numbers(ids)
        masks = {str(i): ids == i for i in present if i != void_value}
        has_void = void_value is not None and void_value in present
        return FrameTruth(ids.shape, masks, ids == void_value if has_void else None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Problem:
    """Something wrong on disk: where, and what."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Benchmark:
    """One split of one benchmark, opened.

    protocol: how it is scored and how its results lie on disk:
        ``expressions``: J and F per expression; <folder>/<video>/<expression>/<frame>.png, 0 and 255
        ``davis``: J and F per object, four annotators; anno_<k>/<video>/<frame index>.png, palette of object numbers
        ``answers``: IoU of single frames; predictions.json, COCO results, one or more scored masks a sample
    truth: (video, frame index) -> FrameTruth, or None where the truth is not public.
    absent_possible: whether an expression may name nothing (else published code always answers, and so does predict).
    counts and expected: what was found, and what the complete benchmark holds (empty for generated ones).
    """

    name: str
    split: str
    root: Path
    protocol: str
    samples: tuple[Sample, ...]
    truth: Callable[[Video, int], FrameTruth] | None
    folder: str = ""
    absent_possible: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every expected count is met."""
        return all(self.counts.get(key) == value for key, value in self.expected.items())

    def by_video(self) -> dict[str, list[Sample]]:
        """Samples grouped by video, in their order."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault(sample.video.id, []).append(sample)
        return groups


def finish(benchmark: Benchmark, skip_bad: bool) -> Benchmark:
    """Refuse a benchmark with problems unless they are to be skipped; warn of counts that differ."""
    if benchmark.problems and not skip_bad:
        more = len(benchmark.problems) - 1
        raise DeixisError(
            f"{benchmark.problems[0]}"
            + (f" (and {more} more: `deixis data check {benchmark.name} {benchmark.root}` lists them)" if more else "")
            + "; mend it, or leave such annotations out with --skip-bad"
        )
    if not benchmark.samples:
        raise DeixisError(f"{benchmark.root}: split {benchmark.split!r} of {benchmark.name} holds no expression")
    if not benchmark.complete:
        differ = ", ".join(
            f"{key} {benchmark.counts.get(key, 0)} instead of {value}"
            for key, value in benchmark.expected.items()
            if benchmark.counts.get(key) != value
        )
        log.warning("%s %s is not the complete split: %s", benchmark.name, benchmark.split, differ)
    return benchmark


def choose_split(split: str | None, splits: Sequence[str], name: str) -> str:
    """The split asked for, or the first of the known ones."""
    if split is not None and split not in splits:
        raise DeixisError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return split or splits[0]


def safe_name(name: Any, source: Path) -> str:
    """A name from a file, fit to be one part of a path; anything that could leave its folder is refused."""
    bad = not isinstance(name, str) or not name or name in (".", "..") or len(name) > 200
    if bad or any(c in "/\\:" or not c.isprintable() for c in name):
        raise DeixisError(
            f"{source}: {str(name)[:80]!r} is no name of a video, frame or expression (it may leave its folder)"
        )
    return name


def require_file(path: Path, where: str) -> Path:
    """The path, if there is such a file; else a DeixisError that says how to get it."""
    if not path.is_file():
        raise DeixisError(f"{path} is missing; {where}")
    return path


def require_folder(path: Path, where: str) -> Path:
    """The path, if there is such a folder; else a DeixisError that says how to get it."""
    if not path.is_dir():
        raise DeixisError(f"the folder {path} is missing; {where}")
    return path


def list_folder(path: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name. Raises DeixisError where it cannot be read (a symlink loop, say)."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DeixisError(f"{path}: cannot be listed ({error.strerror})") from error


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
        raise DeixisError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_json(text, path)


def read_words(path: Path, where: str = "", encoding: str = "utf-8") -> str:
    """The contents of a text file. Raises DeixisError where it is missing, cannot be read, or is no such text."""
    try:
        return require_file(path, where or "it belongs to the benchmark").read_text(encoding=encoding)
    except OSError as error:
        raise DeixisError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DeixisError(f"{path}: not {encoding} text ({error.reason} at byte {error.start})") from error


def field_of(table: Any, key: str, kind: type | tuple[type, ...], source: Path) -> Any:
    """table[key], checked to be there and of a kind."""
    if not isinstance(table, dict) or not isinstance(table.get(key), kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        got = type(table.get(key)).__name__ if isinstance(table, dict) and key in table else "nothing"
        raise DeixisError(f"{source}: {key!r} must be {wanted}, got {got}")
    return table[key]


def frame_files(folder: Path, names: Sequence[str]) -> tuple[tuple[Path, ...], list[Problem]]:
    """The image file of every frame name in a folder, and a problem for each that is missing."""
    if not folder.is_dir():
        return (), [Problem(folder, "the video's folder is missing")]
    present = {entry.name for entry in list_folder(folder)}
    files, problems = [], []
    for name in names:
        file = next((name + suffix for suffix in IMAGE_SUFFIXES if name + suffix in present), None)
        if file is None:
            problems.append(Problem(folder / f"{name}.jpg", "the frame is missing"))
        else:
            files.append(folder / file)
    return tuple(files), problems


def normalise_text(text: Any, source: Path) -> str:
    """Lower case, single blanks. Raises DeixisError for what is not text or holds no word."""
    words = " ".join(text.lower().split()) if isinstance(text, str) else ""
    if not words:
        raise DeixisError(f"{source}: an expression must be text with words, got {text!r}")
    return words


def cache_folder() -> Path:
    """Where indexes of large files are kept: DEIXIS_CACHE, or ~/.cache/deixis."""
    return Path(os.environ.get("DEIXIS_CACHE") or Path.home() / ".cache" / "deixis")


def cache_path(source: Path, kind: str) -> Path:
    """A place in the cache that changes when the source's path, size or time does."""
    status = source.stat()
    key = f"{source.absolute()}|{status.st_size}|{status.st_mtime_ns}|{kind}|1"
    return cache_folder() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    half.write_text(json.dumps(value, allow_nan=False))
    half.replace(path)
