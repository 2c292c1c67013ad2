"""Ref-DAVIS17: four annotators, legacy (Hungarian matching) and strict."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from deixis.benchmarks.pngs import present_numbers, read_ids
from deixis.benchmarks.results import ANNOTATORS, davis_path, read_marker
from deixis.benchmarks.samples import Benchmark, FrameTruth, Sample
from deixis.metrics import presence
from deixis.metrics import summary as scoring
from deixis.metrics.parallel import read_ahead
from deixis.metrics.region_contour import score_pairs
from deixis.metrics.summary import SCORES_VERSION, Row, Scores, Value
from deixis.types import DeixisError

MAX_PROPOSALS = 20  # read: the DAVIS tool's limit


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
    table = [[named.get((annotator, i)) for i in range(1, count + 1)] for annotator in range(ANNOTATORS)]
    if any(sample is None for row in table for sample in row):
        raise DeixisError(f"{video.id}: its first frame shows {count} objects, and no expression names one of them")

    def read(index: int) -> tuple[FrameTruth, list[np.ndarray]]:
        truth = truth_of(video, index)
        paths = [results / davis_path(annotator, video, index) for annotator in range(ANNOTATORS)]
        maps = [read_ids(path, path, truth.size, ("P",)) for path in paths]
        for path, ids in zip(paths, maps, strict=True):
            if ids.max() > MAX_PROPOSALS:
                raise DeixisError(f"{path}: object number {ids.max()}; {MAX_PROPOSALS} is the most DAVIS allows")
        return truth, maps

    annotators = [Annotator(annotator, count) for annotator in range(ANNOTATORS)]
    for truth, maps in read_ahead(read, len(video.names), pool):
        nothing = np.zeros(truth.size, bool)
        objects = [truth.masks.get(str(i), nothing) for i in range(1, count + 1)]
        for annotator, ids in zip(annotators, maps, strict=True):
            annotator.add(ids, objects, truth.void)
    return [
        row
        for annotator, row_samples in zip(annotators, table, strict=True)
        for row in annotator.rows([sample for sample in row_samples if sample is not None], results)
    ]


@dataclass
class Annotator:
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
        whatever their expressions (the DAVIS-2017 unsupervised tool); strict: object i is held against answer i.
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
            str(frame.argmax()) if drawn and frame.max() > presence.SWAP_IOU else None
            for frame, drawn in zip(region[:, own], shown, strict=True)
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
        f"{kind}{name}": scoring.mean_of(f"{kind or 'legacy '}{name}")
        for kind in ("", "strict ")
        for name in ("J&F", "J", "F")
    }
    measures["answers given to another object"] = lambda row: (
        float(row.values["matched answer"] != row.values["object"]),
        1.0,
    )
    measures |= {name: scoring.mean_of(name) for name in ("interval IoU", "identity swaps", "stability")}
    groups = scoring.groups_of(rows, measures)
    # Objects per annotator are equally many, so the mean over rows is the mean of the four annotators' means.
    summary = scoring.summarise(rows, measures)
    gap = (summary["J&F"] or 0.0) - (summary["strict J&F"] or 0.0)
    summary["legacy - strict"] = gap
    summary |= scoring.calibration_of(rows, "strict J&F")
    remark = (
        f"legacy J&F is {100 * gap:.2f} points above strict: DAVIS's matching gives an answer to the object it fits"
        " best, so an expression answered with another named object is forgiven"
    )
    return Scores(
        benchmark=benchmark.name, split=benchmark.split, headline="J&F", row_key="strict J&F",
        protocol=f"DAVIS-2017 unsupervised, four annotators, legacy (Hungarian) and strict, version {SCORES_VERSION}",
        summary=summary, intervals=scoring.bootstrap(rows, measures), rows=tuple(rows),
        groups=groups, counts=benchmark.counts, complete=benchmark.complete,
        remarks=(remark, *benchmark.notes, *scoring.incomplete_remark(benchmark.complete)),
    )  # fmt: skip
