"""Rows of values, their means over a benchmark, and how sure those are: what every protocol's scores have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deixis.metrics import presence

SCORES_VERSION = 1  # of the protocols; raised when a number could change
DRAWS, BOOTSTRAP_SEED = 2000, 0  # of the bootstrap (our choice)

Value = float | int | str | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing scored: an expression (or an object of one annotator, or a sample) and its values.

    worst: index of the frame to show when this row is bad.
    """

    video: str
    id: str
    text: str = ""
    tags: tuple[str, ...] = ()
    values: Mapping[str, Value]
    worst: int = 0

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        return None if value is None or isinstance(value, str) else float(value)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result of scoring.

    Attributes:
        benchmark: Name of the benchmark.
        split: Name of the split.
        protocol: Name and version of the protocol.
        headline: Main name of the summary.
        row_key: Name of that value in a row.
        summary: Name to mean in 0..1, or None where there is nothing to average.
        intervals: Name to 95 % interval; videos are drawn with replacement.
        rows: One row per expression, object or sample.
        groups: Tag to the summary of its rows.
        counts: Numbers of videos, expressions and so on.
        complete: Whether the benchmark's counts are the published ones.
        remarks: Sentences that a reader must not miss.

    Example:
        >>> from pathlib import Path
        >>> from deixis.metrics.folders import score_masks
        >>> score_masks(Path("results/video00"), Path("results/video00")).counts["videos"]
        4
    """

    benchmark: str
    split: str
    protocol: str
    headline: str
    row_key: str
    summary: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float] | None]
    rows: tuple[Row, ...]
    groups: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    complete: bool = True
    remarks: tuple[str, ...] = ()


# A measure gives a row's (numerator, denominator); a summary is the sum of the one over the sum of the other.
Measure = Callable[[Row], tuple[float, float]]


def mean_of(key: str, only: Callable[[Row], bool] | None = None) -> Measure:
    """The mean of a value over the rows that have it (and that ``only`` keeps)."""

    def measure(row: Row) -> tuple[float, float]:
        value = row.number(key)
        return (0.0, 0.0) if value is None or (only is not None and not only(row)) else (value, 1.0)

    return measure


def summarise(rows: Sequence[Row], measures: Mapping[str, Measure]) -> dict[str, float | None]:
    """Each measure over all rows; None where no row counts."""
    totals = _per_video(rows, measures)[0].sum(0) if rows else np.zeros((len(measures), 2))
    return {name: float(n / d) if d else None for name, (n, d) in zip(measures, totals, strict=True)}


def _per_video(rows: Sequence[Row], measures: Mapping[str, Measure]) -> tuple[np.ndarray, list[str]]:
    """(videos, measures, 2) sums of numerators and denominators."""
    videos = list(dict.fromkeys(row.video for row in rows))
    place = {video: i for i, video in enumerate(videos)}
    sums = np.zeros((len(videos), len(measures), 2))
    for row in rows:
        sums[place[row.video]] += [measure(row) for measure in measures.values()]
    return sums, videos


def bootstrap(rows: Sequence[Row], measures: Mapping[str, Measure]) -> dict[str, tuple[float, float] | None]:
    """95% intervals of the summaries: whole videos are drawn with replacement, as expressions of one video go together.

    None where there are fewer than two videos or nothing to take a mean of.
    """
    sums, videos = _per_video(rows, measures)
    if len(videos) < 2:
        return dict.fromkeys(measures)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    times = rng.multinomial(len(videos), np.full(len(videos), 1 / len(videos)), size=DRAWS)  # (draws, videos)
    drawn = np.einsum("dv,vmx->mdx", times, sums)
    intervals: dict[str, tuple[float, float] | None] = {}
    for name, values in zip(measures, drawn, strict=True):
        kept = values[values[:, 1] > 0]
        low, high = np.percentile(kept[:, 0] / kept[:, 1], [2.5, 97.5]) if len(kept) else (0.0, 0.0)
        intervals[name] = (float(low), float(high)) if len(kept) else None
    return intervals


def calibration_of(rows: Sequence[Row], key: str) -> dict[str, float | None]:
    """ECE of presence against the truth, and the risk-coverage area of 1 - key, where every row carries a presence."""
    confidence = [p for p in (row.number("presence") for row in rows) if p is not None]
    if len(confidence) < len(rows):
        return {}
    losses = [1 - (row.number(key) or 0.0) for row in rows]
    sure = [max(p, 1 - p) for p in confidence]  # of "there" or of "not there"
    return {
        "presence ECE": presence.calibration_error(confidence, [bool(row.number("there")) for row in rows]),
        "risk-coverage area": presence.risk_coverage(sure, losses).area,
    }


def groups_of(rows: Sequence[Row], measures: Mapping[str, Measure]) -> dict[str, dict[str, float | None]]:
    tags = list(dict.fromkeys(tag for row in rows for tag in row.tags))
    return {tag: summarise([row for row in rows if tag in row.tags], measures) for tag in sorted(tags)}


def incomplete_remark(complete: bool) -> list[str]:
    return [] if complete else ["this is not the complete split: its counts differ from the published ones"]
