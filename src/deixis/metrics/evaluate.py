"""Results on disk against a benchmark's truth on disk, under the benchmark's own protocol. Knows no model.

Frames are read one by one, a few ahead of the one being scored, and nothing but numbers is kept: memory does not grow
with the number of videos. Videos may be shared among processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as coco
from scipy.optimize import linear_sum_assignment

from deixis.benchmarks import open_benchmark
from deixis.benchmarks.pngs import checked_mask, present_numbers, read_ids
from deixis.benchmarks.results import (
    ANNOTATORS,
    ANSWERS,
    check_presence_of_files,
    davis_path,
    mask_path,
    opened,
    read_answers,
    read_marker,
)
from deixis.benchmarks.samples import Benchmark, FrameTruth, Sample
from deixis.benchmarks.training_clips import film_index, read_frames
from deixis.metrics import overlap, presence
from deixis.metrics.region_contour import score_frame, score_pairs
from deixis.metrics.running import READERS, mapper, read_ahead
from deixis.metrics.summary import VERSION, Measure, Row, Scores, Value, bootstrap, mean_of, summarise
from deixis.types import DeixisError, encode_rle

MAX_PROPOSALS = 20  # read: the DAVIS tool's limit


# --- running over videos ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """How a worker process opens the benchmark again."""

    name: str
    root: Path
    split: str
    skip_bad: bool


_opened_here: dict[_Source, tuple[Benchmark, dict[str, list[Sample]]]] = {}


def _score_video_of(
    source: _Source, results: Path, score: Callable[..., list[Row]], least_pixels: int, video: str
) -> list[Row]:
    if source not in _opened_here:
        benchmark = open_benchmark(source.name, source.root, source.split, source.skip_bad)
        _opened_here[source] = benchmark, benchmark.by_video()
    benchmark, groups = _opened_here[source]
    with ThreadPoolExecutor(READERS) as pool:
        return score(benchmark, groups[video], results, least_pixels, pool)


def score_benchmark(
    name: str,
    root: Path,
    results: Path,
    split: str | None = None,
    *,
    workers: int = 1,
    least_pixels: int = 0,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score a folder (or a zip) of results against a benchmark.

    least_pixels: an expression counts as answered "not there" when no frame's mask has more pixels than this.
    progress: called with videos done and videos in all. Raises DeixisError for truth that is not public and for
    results that are incomplete, too many, unreadable, of another size or type; each by name.
    """
    benchmark = open_benchmark(name, root, split, skip_bad)
    if benchmark.truth is None:
        raise DeixisError(
            f"the truth of {name} {benchmark.split} is not public; hand the results to its server (`deixis pack`),"
            " or score a split that has truth"
        )
    with opened(Path(results)) as folder:
        check_presence_of_files(benchmark, folder)
        if benchmark.protocol == "answers":
            return score_answers(benchmark, folder)
        score_video = {"expressions": score_expressions_of, "davis": score_annotators_of}[benchmark.protocol]
        videos = list(benchmark.by_video())
        _opened_here.clear()
        source = _Source(name, Path(root), benchmark.split, skip_bad)
        _opened_here[source] = benchmark, benchmark.by_video()
        rows: list[Row] = []
        with mapper(workers) as over:
            task = partial(_score_video_of, source, folder, score_video, least_pixels)
            for done, found in enumerate(over(task, videos), 1):
                rows += found
                if progress is not None:
                    progress(done, len(videos))
        _opened_here.clear()
    return summarise_davis(benchmark, rows) if benchmark.protocol == "davis" else summarise_expressions(benchmark, rows)


Look = tuple[np.ndarray, np.ndarray, np.ndarray]  # frame (H, W, 3) uint8 RGB, answer and truth (H, W) bool


def look_at(benchmark: Benchmark, results: Path, rows: Sequence[Row]) -> dict[tuple[str, str], Look]:
    """The worst frame of each row, with what was answered and what is true there."""
    samples = {(sample.video.id, sample.id): sample for sample in benchmark.samples}
    answers = read_answers(benchmark, results / ANSWERS) if benchmark.protocol == "answers" else {}
    looks = {}
    for row in rows:
        sample = samples[row.video, row.id]
        assert benchmark.truth is not None
        assert sample.objects is not None
        truth = benchmark.truth(sample.video, row.worst)
        if benchmark.protocol == "expressions":
            path = results / mask_path(benchmark, sample, sample.video.names[row.worst])
            shown = read_ids(path, path, truth.size) > 0
        elif benchmark.protocol == "davis":
            path = results / davis_path(int(sample.id) % ANNOTATORS, sample.video, row.worst)
            shown = read_ids(path, path, truth.size) == int(sample.objects[0])
        else:
            best = max(answers[sample.id], key=lambda answer: answer[0])
            shown = checked_mask(best[1], truth.size, str(results / ANSWERS))
        frame = read_frames(sample.video, [film_index(sample, row.worst)])[0]
        looks[row.video, row.id] = frame, shown, truth.union(sample.objects)
    return looks


# --- J and F per expression: MeViS, Ref-YouTube-VOS, VISOR, world ----------------------------------------------------


@dataclass
class _Track:
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

    tracks = [_Track() for _ in samples]
    for truth, predictions in read_ahead(read, len(scored), pool):
        for track, sample, prediction in zip(tracks, samples, predictions, strict=True):
            track.add(prediction, sample, truth)
    return [_row(track, sample, results, least_pixels, scored) for track, sample in zip(tracks, samples, strict=True)]


def _row(track: _Track, sample: Sample, results: Path, least_pixels: int, scored: Sequence[int]) -> Row:
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
    summary |= _calibration(rows, "J&F")
    return Scores(
        benchmark=benchmark.name, split=benchmark.split, protocol=f"J and F per expression, version {VERSION}",
        headline="J&F", row_key="J&F", summary=summary, intervals=intervals, rows=tuple(rows),
        groups=_groups(rows, measures),
        counts=benchmark.counts, complete=benchmark.complete, remarks=tuple(remarks + _incomplete(benchmark)),
    )  # fmt: skip


def _calibration(rows: Sequence[Row], key: str) -> dict[str, float | None]:
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


def _groups(rows: Sequence[Row], measures: Mapping[str, Measure]) -> dict[str, dict[str, float | None]]:
    tags = list(dict.fromkeys(tag for row in rows for tag in row.tags))
    return {tag: summarise([row for row in rows if tag in row.tags], measures) for tag in sorted(tags)}


def _incomplete(benchmark: Benchmark) -> list[str]:
    return [] if benchmark.complete else ["this is not the complete split: its counts differ from the published ones"]


# --- Ref-DAVIS17: four annotators, legacy and strict -----------------------------------------------------------------


def score_annotators_of(
    benchmark: Benchmark, samples: Sequence[Sample], results: Path, least_pixels: int, pool: ThreadPoolExecutor
) -> list[Row]:
    """Rows of one video: every object as each annotator named it, matched as DAVIS does (legacy) and not (strict).

    Void pixels are left out; the number of objects is the highest number in the first frame's truth.
    """
    video, truth_of = samples[0].video, benchmark.truth
    assert truth_of is not None
    count = max((int(key) for key in truth_of(video, 0).masks), default=0)
    if not count:
        raise DeixisError(f"{video.id}: the truth of its first frame holds no object")
    named = {(int(sample.id) % ANNOTATORS, int(sample.objects[0])): sample for sample in samples if sample.objects}
    asked = [[named.get((annotator, i)) for i in range(1, count + 1)] for annotator in range(ANNOTATORS)]
    if any(sample is None for row in asked for sample in row):
        raise DeixisError(f"{video.id}: its first frame shows {count} objects, and no expression names one of them")

    def read(index: int) -> tuple[FrameTruth, list[np.ndarray]]:
        truth = truth_of(video, index)
        paths = [results / davis_path(annotator, video, index) for annotator in range(ANNOTATORS)]
        maps = [read_ids(path, path, truth.size, ("P",)) for path in paths]
        for path, ids in zip(paths, maps, strict=True):
            if ids.max() > MAX_PROPOSALS:
                raise DeixisError(f"{path}: object number {ids.max()}; {MAX_PROPOSALS} is the most DAVIS allows")
        return truth, maps

    annotators = [_Annotator(annotator, count) for annotator in range(ANNOTATORS)]
    for truth, maps in read_ahead(read, len(video.names), pool):
        nothing = np.zeros(truth.size, bool)
        objects = [truth.masks.get(str(i), nothing) for i in range(1, count + 1)]
        for annotator, ids in zip(annotators, maps, strict=True):
            annotator.add(ids, objects, truth.void)
    return [
        row
        for annotator, row_samples in zip(annotators, asked, strict=True)
        for row in annotator.rows([sample for sample in row_samples if sample is not None], results)
    ]


@dataclass
class _Annotator:
    """What is gathered of the answers to one annotator's expressions while their video goes by.

    region, contour: a frame's J and F of every answer number (up to 20) against every object.
    """

    number: int
    count: int
    region: list[np.ndarray] = field(default_factory=list)
    contour: list[np.ndarray] = field(default_factory=list)
    shown: list[list[bool]] = field(default_factory=list)
    there: list[list[bool]] = field(default_factory=list)
    moves: list[list[tuple[float, float]]] = field(default_factory=list)
    before: tuple[np.ndarray, Sequence[np.ndarray]] | None = None
    answers: int = 0

    def add(self, ids: np.ndarray, objects: Sequence[np.ndarray], void: np.ndarray | None) -> None:
        here = present_numbers(ids)
        self.answers = max([self.answers, self.count, *here])
        # What is not shown in this frame scores as an empty mask does, so one empty mask stands for all of them.
        j, f = score_pairs([*(ids == i for i in here), np.zeros_like(objects[0])], objects, void)
        for values, found in ((self.region, j), (self.contour, f)):
            values.append(np.tile(found[-1], (MAX_PROPOSALS, 1)))
            values[-1][[i - 1 for i in here]] = found[:-1]
        self.shown.append([i in here for i in range(1, self.count + 1)])
        self.there.append([bool(mask.any()) for mask in objects])
        if self.before is not None:
            self.moves.append(
                [
                    (
                        presence.neighbour_iou(self.before[0] == i + 1, ids == i + 1),
                        presence.neighbour_iou(self.before[1][i], objects[i]),
                    )
                    for i in range(self.count)
                ]
            )
        self.before = ids, objects

    def rows(self, samples: Sequence[Sample], results: Path) -> list[Row]:
        """One row for each object. Legacy: answers are assigned to objects so that the mean of (J + F) / 2 is highest,
        whatever they were asked for (the DAVIS-2017 unsupervised tool); strict: object i is held against answer i.
        """
        region = np.stack(self.region)[:, : self.answers]  # (T, answers, objects)
        contour = np.stack(self.contour)[:, : self.answers]
        taken, wanted = linear_sum_assignment((region.mean(0) + contour.mean(0)) / 2, maximize=True)
        match = dict(zip(wanted.tolist(), taken.tolist(), strict=True))
        return [self._row(i, match[i], region, contour, sample, results) for i, sample in enumerate(samples)]

    def _row(self, own: int, match: int, region: np.ndarray, contour: np.ndarray, sample: Sample, results: Path) -> Row:
        legacy_j, legacy_f = region[:, match, own], contour[:, match, own]
        strict_j, strict_f = region[:, own, own], contour[:, own, own]
        shown, there = np.array(self.shown)[:, own], np.array(self.there)[:, own]
        moves = np.array(self.moves).reshape(-1, self.count, 2)[:, own]
        # Where answer i lies on an object (J above one half), which one it is: the change of it is a swap.
        under = [
            str(frame.argmax()) if seen and frame.max() > presence.SWAP_IOU else None
            for frame, seen in zip(region[:, own], shown, strict=True)
        ]
        marker = read_marker(results, sample)
        values: dict[str, Value] = {
            "legacy J&F": float((legacy_j.mean() + legacy_f.mean()) / 2),
            "legacy J": float(legacy_j.mean()),
            "legacy F": float(legacy_f.mean()),
            "strict J&F": float((strict_j.mean() + strict_f.mean()) / 2),
            "strict J": float(strict_j.mean()),
            "strict F": float(strict_f.mean()),
            "annotator": self.number,
            "object": own + 1,
            "matched answer": match + 1,
            "frames": len(region),
            "there": int(there.any()),
            "presence": None if marker is None else float(marker["presence"]),
            "interval IoU": presence.interval_iou(shown.tolist(), there.tolist()),
            "identity swaps": presence.identity_swaps(under),
            "stability": presence.stability(moves[:, 0].tolist(), moves[:, 1].tolist()),
        }
        worst = int(np.argmin(strict_j + strict_f))
        return Row(video=sample.video.id, id=sample.id, text=sample.text, tags=sample.tags, values=values, worst=worst)


def summarise_davis(benchmark: Benchmark, rows: Sequence[Row]) -> Scores:
    """Means over objects for each annotator, then over the four; ``J&F`` is the legacy one, as in published tables."""
    measures = {
        f"{kind}{name}": mean_of(f"{kind or 'legacy '}{name}") for kind in ("", "strict ") for name in ("J&F", "J", "F")
    }
    measures["answers given to another object"] = lambda row: (
        float(row.values["matched answer"] != row.values["object"]),
        1.0,
    )
    measures |= {name: mean_of(name) for name in ("interval IoU", "identity swaps", "stability")}
    groups = _groups(rows, measures)
    # Objects per annotator are equally many, so the mean over rows is the mean of the four annotators' means.
    summary = summarise(rows, measures)
    gap = (summary["J&F"] or 0.0) - (summary["strict J&F"] or 0.0)
    summary["legacy - strict"] = gap
    summary |= _calibration(rows, "strict J&F")
    remark = (
        f"legacy J&F is {100 * gap:.2f} points above strict: DAVIS's matching gives an answer to the object it fits"
        " best, so an expression answered with another named object is forgiven"
    )
    return Scores(
        benchmark=benchmark.name, split=benchmark.split, headline="J&F", row_key="strict J&F",
        protocol=f"DAVIS-2017 unsupervised, four annotators, legacy (Hungarian) and strict, version {VERSION}",
        summary=summary, intervals=bootstrap(rows, measures), rows=tuple(rows),
        groups=groups, counts=benchmark.counts, complete=benchmark.complete,
        remarks=(remark, *benchmark.notes, *_incomplete(benchmark)),
    )  # fmt: skip


# --- single frames: A2D-Sentences, JHMDB-Sentences, RefCOCO -----------------------------------------------------------


def score_answers(benchmark: Benchmark, results: Path) -> Scores:
    """P@K, oIoU and mIoU of the highest-scored mask of each sample; mAP over all answers (legacy) and over it alone."""
    path = results / ANSWERS
    answers = read_answers(benchmark, path)
    rows, scores, ious = [], [], []
    assert benchmark.truth is not None
    for sample in benchmark.samples:
        assert sample.scored is not None
        assert sample.objects is not None
        truth = benchmark.truth(sample.video, sample.scored[0])
        own = truth.union(sample.objects)
        given = sorted(answers[sample.id], key=lambda answer: -answer[0])
        name = f"{path}: {sample.id}"
        masks = [checked_mask(rle, truth.size, name) for _, rle in given]
        best = overlap.overlap(masks[0], own)
        scores.append(np.array([score for score, _ in given]))
        ious.append(coco.iou([encode_rle(mask) for mask in masks], [encode_rle(own)], [0])[:, 0])
        values: dict[str, Value] = {
            "IoU": best.iou,
            "intersection": best.intersection,
            "union": best.union,
            "answers": len(given),
            "score": given[0][0],
        }
        rows.append(Row(video=sample.video.id, id=sample.id, text=sample.text, values=values, worst=sample.scored[0]))
    measures: dict[str, Measure] = {
        "mIoU": lambda row: (
            ((row.number("intersection") or 0) + overlap.SMOOTH) / ((row.number("union") or 0) + overlap.SMOOTH),
            1.0,
        ),
        "oIoU": lambda row: (row.number("intersection") or 0.0, row.number("union") or 0.0),
    }
    measures |= {f"P@{threshold}": _above(threshold) for threshold in overlap.PRECISION_AT}
    summary = summarise(rows, measures)
    first = [np.argsort(-s, kind="stable")[:1] for s in scores]
    legacy = summary["mAP"] = overlap.mean_average_precision(scores, ious)
    strict = summary["strict mAP"] = overlap.mean_average_precision(
        [s[i] for s, i in zip(scores, first, strict=True)], [o[i] for o, i in zip(ious, first, strict=True)]
    )
    intervals = bootstrap(rows, measures)
    remarks = [
        f"mAP ranks all answers of a model ({100 * legacy:.2f}); over the one answer a user would see it is"
        f" {100 * strict:.2f}"
    ]
    sure = np.array([row.number("score") or 0.0 for row in rows])
    if sure.min() >= 0 and sure.max() <= 1:
        losses = [1 - (row.number("IoU") or 0.0) for row in rows]
        summary["score ECE"] = presence.calibration_error(sure.tolist(), [loss < 0.5 for loss in losses])
        summary["risk-coverage area"] = presence.risk_coverage(sure.tolist(), losses).area
        remarks.append("score ECE holds the best answer's score against 'its IoU is above 0.5'")
    return Scores(
        benchmark=benchmark.name, split=benchmark.split, headline="mIoU", row_key="IoU",
        protocol=f"IoU of single frames, version {VERSION}", summary=summary, intervals=intervals, rows=tuple(rows),
        counts=benchmark.counts, complete=benchmark.complete,
        remarks=(*remarks, *benchmark.notes, *_incomplete(benchmark)),
    )  # fmt: skip


def _above(threshold: float) -> Measure:
    return lambda row: (float((row.number("IoU") or 0.0) > threshold), 1.0)
