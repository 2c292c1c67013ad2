"""What the loaders of benchmarks share: the split, the files of a video's frames, texts, and the check at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deixis.benchmarks.samples import Benchmark, Problem
from deixis.files import list_folder
from deixis.types import DeixisError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def checked_benchmark(benchmark: Benchmark, skip_bad: bool) -> Benchmark:
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
    """The named split, or the first of the known ones."""
    if split is not None and split not in splits:
        raise DeixisError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return split or splits[0]


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
