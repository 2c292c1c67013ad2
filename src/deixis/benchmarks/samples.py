"""What every benchmark is made of: videos, samples, truth, problems.

A benchmark's file has ``open_split(root, split, skip_bad) -> Benchmark`` and ``write_fixture(out)``; everything behind
``Benchmark`` (predict, score, pack, train) then needs no benchmark's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deixis.benchmarks.pngs import present_numbers


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
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
    """One expression about one video.

    objects: ids of the true objects it names; () says it names nothing there, None that the truth is not public.
    scored: which of the video's frames are scored, as indices; None means all of them.
    tags: kinds the expression belongs to; summaries are given for each.
    category: what kind of thing the objects are, to train on; None where the benchmark does not say, or says several.
    """

    video: VideoEntry
    id: str
    text: str
    objects: tuple[str, ...] | None
    scored: tuple[int, ...] | None = None
    tags: tuple[str, ...] = ()
    category: str | None = None


@dataclass(frozen=True, eq=False)
class FrameTruth:
    """All labelled objects of one frame. size: (H, W). masks: object id -> (H, W) bool; absent objects are left out.

    void: (H, W) bool, pixels that do not count, or None.
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
    several: whether an expression may name several objects.
    categories: all that samples of any split may have; the place in this order is the number of the class.
    counts and expected: what was found, and what the complete benchmark holds (empty for generated ones).
    """

    name: str
    split: str
    root: Path
    protocol: str
    samples: tuple[Sample, ...]
    truth: Callable[[VideoEntry, int], FrameTruth] | None
    folder: str = ""
    absent_possible: bool = False
    several: bool = False
    categories: tuple[str, ...] = ()
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
