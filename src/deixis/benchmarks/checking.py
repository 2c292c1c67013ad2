"""Reading a benchmark through before anything rests on it: counts, and every annotation that is wrong, by path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deixis.benchmarks import open_benchmark, splits_of
from deixis.benchmarks.pngs import png_size
from deixis.benchmarks.samples import Benchmark, VideoEntry
from deixis.files import Missing
from deixis.types import DeixisError

TAIL = 4096  # bytes at a picture's end in which its last mark must lie


@dataclass(frozen=True)
class Findings:
    """lines: a table for people.  problems: how many annotations or files are wrong."""

    lines: tuple[str, ...]
    problems: int


def check_benchmark(
    name: str, root: Path, split: str | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Findings:
    """Open every split that is there (or one), read all its truth, and report what was found.

    Raises DeixisError where no split can be opened at all, and says what is missing for the usual one.
    """
    lines: list[str] = []
    problems = opened = 0
    reasons: list[DeixisError] = []
    for candidate in [split] if split is not None else splits_of(name, root):
        try:
            benchmark = open_benchmark(name, root, candidate, skip_bad=True)
        except DeixisError as error:
            reasons.append(error)
            lines.append(f"{candidate}: not to be opened: {error}")
            # A split that was never fetched is no problem; one that is there in part, or damaged, is.
            problems += not isinstance(error, Missing) or (root / candidate).exists()
            continue
        opened += 1
        lines += _table(benchmark)
        found = [str(problem) for problem in benchmark.problems] + list(_read_truth(benchmark, progress))
        problems += len(found)
        lines += [f"  problem: {text}" for text in found]
    if not opened:
        if not reasons:
            open_benchmark(name, root, split)  # raises, and says what is expected there
        raise reasons[0]
    return Findings(tuple(lines), problems)


def broken_picture(path: Path) -> str | None:
    """What is wrong with a frame's file, None for a whole one. Only a doubtful one is decoded."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            tail = file.read().rstrip(b"\0\r\n ")
        if head.startswith(b"\xff\xd8") and tail.endswith(b"\xff\xd9"):
            return None
        if head.startswith(b"\x89PNG") and b"IEND" in tail[-12:]:
            return None
        with Image.open(path) as picture:
            picture.load()
        return None
    except (OSError, ValueError, SyntaxError) as error:
        return f"not a picture that decodes ({str(error)[:80]})"


def _table(benchmark: Benchmark) -> list[str]:
    truth = "truth there" if benchmark.truth else "no public truth"
    lines = [f"{benchmark.split}: {truth}" + "".join(f", {note}" for note in benchmark.notes)]
    for key in {**benchmark.counts, **benchmark.expected}:
        count, expected = benchmark.counts.get(key, 0), benchmark.expected.get(key)
        said = "" if expected is None else ", as published" if count == expected else f", published: {expected}"
        lines.append(f"  {key} {count:,}{said}")
    return lines


def _read_truth(benchmark: Benchmark, progress: Callable[[int, int], None]) -> Iterator[str]:
    groups = benchmark.by_video()
    for done, samples in enumerate(groups.values(), 1):
        video = samples[0].video
        scored = sorted({i for s in samples for i in (range(len(video.names)) if s.scored is None else s.scored)})
        try:
            yield from _read_video(benchmark, video, scored)
        except DeixisError as error:
            yield str(error)
        progress(done, len(groups))


def _read_video(benchmark: Benchmark, video: VideoEntry, scored: list[int]) -> Iterator[str]:
    if isinstance(video.frames, tuple):
        yield from (f"{frame}: {wrong}" for frame in video.frames if (wrong := broken_picture(frame)))
    size = png_size(video.frames[0]) if isinstance(video.frames, tuple) else None
    for index in scored if benchmark.truth is not None else []:
        assert benchmark.truth is not None
        try:
            truth = benchmark.truth(video, index)
        except DeixisError as error:
            yield str(error)
            continue
        if size is not None and truth.size != size:
            where = f"{video.id}, frame {video.names[index]}"
            yield f"{where}: truth is {truth.size}, the frames are {size} (height, width)"
