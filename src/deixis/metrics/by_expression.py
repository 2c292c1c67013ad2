"""J and F of every expression, as Ref-YouTube-VOS, MeViS and VISOR report them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deixis.benchmarks.pngs import read_ids
from deixis.benchmarks.results import mask_path, read_marker
from deixis.benchmarks.samples import Benchmark, FrameTruth, Sample
from deixis.metrics import presence
from deixis.metrics.parallel import read_ahead
from deixis.metrics.region_contour import score_frame
from deixis.metrics.summary import (
    SCORES_VERSION,
    Measure,
    Row,
    Scores,
    Value,
    bootstrap,
    calibration_of,
    groups_of,
    incomplete_remark,
    mean_of,
    summarise,
)

# --- J and F per expression: MeViS, Ref-YouTube-VOS, VISOR, world ----------------------------------------------------


@dataclass
class ExpressionTrack:
    """What is gathered of one expression while its video goes by."""

    region: list[float] = field(default_factory=list)
    contour: list[float] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)  # pixels
    there: list[bool] = field(default_factory=list)
    under: list[str | None] = field(default_factory=list)
    moves: list[tuple[float, float]] = field(default_factory=list)
    before: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, prediction: np.ndarray, sample: Sample, truth: FrameTruth) -> None:
        assert sample.objects is not None
        own = truth.union(sample.objects)
        j, f = score_frame(prediction, own, truth.void)
        self.region.append(j)
        self.contour.append(f)
        self.shown.append(int(np.count_nonzero(prediction)))
        self.there.append(bool(own.any()))
        others = {key: mask for key, mask in truth.masks.items() if key not in sample.objects}
        self.under.append(presence.object_under(prediction, {"": own} | others) if self.shown[-1] else None)
        if self.before is not None:
            self.moves.append(
                (presence.neighbour_iou(self.before[0], prediction), presence.neighbour_iou(self.before[1], own))
            )
        self.before = prediction, own


def score_expressions_of(
    benchmark: Benchmark, samples: Sequence[Sample], results: Path, least_pixels: int, pool: ThreadPoolExecutor
) -> list[Row]:
    """Rows of one video's expressions. J and F are means over its scored frames, those without the object included."""
    video, truth_of = samples[0].video, benchmark.truth
    assert truth_of is not None
    scored = range(len(video.names)) if samples[0].scored is None else samples[0].scored

    def read(number: int) -> tuple[FrameTruth, list[np.ndarray]]:
        index = scored[number]
        truth = truth_of(video, index)
        paths = [results / mask_path(benchmark, sample, video.names[index]) for sample in samples]
        return truth, [read_ids(path, path, truth.size) > 0 for path in paths]

    tracks = [ExpressionTrack() for _ in samples]
    for truth, predictions in read_ahead(read, len(scored), pool):
        for track, sample, prediction in zip(tracks, samples, predictions, strict=True):
            track.add(prediction, sample, truth)
    return [_row(track, sample, results, least_pixels, scored) for track, sample in zip(tracks, samples, strict=True)]


def _row(track: ExpressionTrack, sample: Sample, results: Path, least_pixels: int, scored: Sequence[int]) -> Row:
    j, f = float(np.mean(track.region)), float(np.mean(track.contour))
    marker = read_marker(results, sample)
    moves = np.array(track.moves).reshape(-1, 2)
    values: dict[str, Value] = {
        "J&F": (j + f) / 2,
        "J": j,
        "F": f,
        "frames": len(track.region),
        "no target": int(not sample.objects),
        "declared empty": int(max(track.shown) <= least_pixels),
        "there": int(any(track.there)),
        "presence": None if marker is None else float(marker["presence"]),
        "interval IoU": presence.interval_iou([pixels > 0 for pixels in track.shown], track.there),
        "identity swaps": presence.identity_swaps(track.under),
        "stability": presence.stability(moves[:, 0].tolist(), moves[:, 1].tolist()),
    }
    worst = scored[int(np.argmin(np.add(track.region, track.contour)))]
    return Row(video=sample.video.id, id=sample.id, text=sample.text, tags=sample.tags, values=values, worst=worst)


def _names_something(row: Row) -> bool:
    return not row.number("no target")


EXPRESSION_MEASURES: dict[str, Measure] = {
    "J&F": mean_of("J&F"),
    "J": mean_of("J"),
    "F": mean_of("F"),
    "interval IoU": mean_of("interval IoU"),
    "identity swaps": mean_of("identity swaps", _names_something),
    "stability": mean_of("stability", _names_something),
}
NO_TARGET_MEASURES: dict[str, Measure] = {
    "J&F with target": mean_of("J&F", _names_something),
    "J&F without target": mean_of("J&F", lambda row: not _names_something(row)),
    "N-acc": mean_of("declared empty", lambda row: not _names_something(row)),
    "T-acc": lambda row: (1.0 - (row.number("declared empty") or 0.0), 1.0) if _names_something(row) else (0.0, 0.0),
}


def summarise_expressions(benchmark: Benchmark, rows: Sequence[Row]) -> Scores:
    """Means over expressions, each of equal weight; with expressions that name nothing, also N-acc, T-acc and Final."""
    measures = dict(EXPRESSION_MEASURES)
    remarks = list(benchmark.notes)
    if any(not _names_something(row) for row in rows):
        measures |= NO_TARGET_MEASURES
        remarks.append(
            "J&F counts expressions without target (1 for an empty answer, 0 for any other); 'J&F with target' leaves"
            " them out. Whether the v2 server counts them is not published, nor how it makes Final: ours is the mean of"
            " J&F, N-acc and T-acc"
        )
    summary = summarise(rows, measures)
    intervals = bootstrap(rows, measures)
    if "N-acc" in measures:
        for name, of in (("Final", "J&F"), ("Final with target", "J&F with target")):
            parts = [summary[of], summary["N-acc"], summary["T-acc"]]
            summary[name] = None if None in parts else float(np.mean([p for p in parts if p is not None]))
    summary |= calibration_of(rows, "J&F")
    return Scores(
        benchmark=benchmark.name, split=benchmark.split, protocol=f"J and F per expression, version {SCORES_VERSION}",
        headline="J&F", row_key="J&F", summary=summary, intervals=intervals, rows=tuple(rows),
        groups=groups_of(rows, measures),
        counts=benchmark.counts, complete=benchmark.complete,
        remarks=tuple(remarks + incomplete_remark(benchmark.complete)),
    )  # fmt: skip
