"""Two folders of masks against each other, <video>/<frame>.png, binary or indexed: J and F of every object."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from deixis.benchmarks.pngs import present_numbers, read_ids
from deixis.benchmarks.results import opened
from deixis.files import list_folder
from deixis.metrics.parallel import READERS, mapper, read_ahead
from deixis.metrics.region_contour import recall_and_decay, score_frame
from deixis.metrics.summary import SCORES_VERSION, Row, Scores, Value, bootstrap, mean_of, summarise
from deixis.types import DeixisError, reason_of


def score_masks(results: Path, truth: Path, *, drop_ends: bool = False, workers: int = 1) -> Scores:
    """Score two folders of `<video>/<frame>.png`, binary or indexed, by J and F; means over objects.

    In a video whose values are only 0 and 255, 255 is the object; otherwise 255 in the truth is void.

    Args:
        results: Folder or zip of predicted masks.
        truth: Folder of true masks.
        drop_ends: Leave out the first and the last frame (DAVIS's semi-supervised convention).
        workers: Processes that share the videos.

    Returns:
        The `Scores`.

    Raises:
        DeixisError: For videos or frames that only one folder has, and for unreadable or unequal masks, by name.

    Example:
        >>> from pathlib import Path
        >>> from deixis.metrics.folders import score_masks
        >>> score_masks(Path("results/video00"), Path("results/video00")).summary["J&F"]
        1.0
    """
    with opened(Path(results), _holds_masks) as folder:
        here, due = _videos(folder), _videos(Path(truth))
        for name, one, other in ((folder, here, due), (truth, due, here)):
            lacking = sorted(set(other) - set(one))
            if lacking:
                raise DeixisError(f"{name}: the video {lacking[0]} is missing" + _and_more(lacking))
        rows: list[Row] = []
        with mapper(workers) as over:
            for found in over(partial(_score_masks_of, folder, Path(truth), drop_ends), due):
                rows += found
    measures = {
        name: mean_of(name) for name in ("J&F", "J", "F", "J recall", "F recall", "J decay", "F decay")
    }  # fmt: skip
    ends = ", first and last frame not scored" if drop_ends else ""
    return Scores(
        benchmark="masks", split=str(truth), headline="J&F", row_key="J&F",
        protocol=f"J and F per object{ends}, version {SCORES_VERSION}",
        summary=summarise(rows, measures), intervals=bootstrap(rows, measures), rows=tuple(rows),
        counts={"videos": len(due), "objects": len(rows)},
    )  # fmt: skip


def _holds_masks(folder: Path) -> bool:
    return next(folder.glob("*/*.png"), None) is not None


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _videos(folder: Path) -> list[str]:
    try:
        names = [entry.name for entry in list_folder(folder) if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise DeixisError(f"{folder}: cannot be read ({reason_of(error)})") from error
    if not names:
        raise DeixisError(f"{folder} holds no folders of masks; <video>/<frame>.png is expected")
    return names


def _frames(folder: Path) -> list[str]:
    names = [e.name for e in list_folder(folder) if not e.name.startswith(".") and e.name.lower().endswith(".png")]
    if not names:
        raise DeixisError(f"{folder} holds no PNG")
    return names


class _Again(Exception):
    """A later frame shows that a folder is indexed: read the video again, knowing it."""

    def __init__(self, truth: bool) -> None:
        super().__init__()
        self.truth = truth


def _score_masks_of(results: Path, truth: Path, drop_ends: bool, video: str) -> list[Row]:
    names, given = _frames(truth / video), _frames(results / video)
    if drop_ends:
        if len(names) < 3:
            raise DeixisError(f"{truth / video}: {len(names)} frames; without the first and the last none is left")
        ends, names = {names[0], names[-1]}, names[1:-1]
        given = [name for name in given if name not in ends]
    lacking, extra = sorted(set(names) - set(given)), sorted(set(given) - set(names))
    if lacking:
        raise DeixisError(f"{results / video / lacking[0]}: the mask is missing" + _and_more(lacking))
    if extra:
        raise DeixisError(f"{results / video / extra[0]}: the truth has no such frame" + _and_more(extra))
    binary = {True: True, False: True}  # of truth and of results, until a frame shows another number than 0 and 255
    while True:
        try:
            return _score_masks_once(results / video, truth / video, names, binary[True], binary[False])
        except _Again as again:
            binary[again.truth] = False


def _score_masks_once(
    results: Path, truth: Path, names: Sequence[str], binary_truth: bool, binary_results: bool
) -> list[Row]:
    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        true = read_ids(truth / names[index], truth / names[index])
        return true, read_ids(results / names[index], results / names[index], (true.shape[0], true.shape[1]))

    scored: list[dict[int, tuple[float, float]]] = []
    objects: set[int] = set()
    with ThreadPoolExecutor(READERS) as pool:
        for name, (true, given) in zip(names, read_ahead(read, len(names), pool), strict=True):
            true_numbers, given_numbers = present_numbers(true), present_numbers(given)
            for binary, numbers, of_truth in (
                (binary_truth, true_numbers, True), (binary_results, given_numbers, False)
            ):  # fmt: skip
                if binary and numbers not in ([], [255]):
                    raise _Again(of_truth)
            void = true == 255 if not binary_truth and 255 in true_numbers else None
            if binary_truth:
                true, true_numbers = (true > 0).view(np.uint8), [1] if true_numbers else []
            if binary_results:
                given, given_numbers = (given > 0).view(np.uint8), [1] if given_numbers else []
            elif max(given_numbers, default=0) == 255:
                raise DeixisError(
                    f"{results / name}: object number 255 beside others; 255 is void, which only truth has"
                )
            there = set(true_numbers) - ({255} if void is not None else set())
            objects |= there
            scored.append(
                {number: score_frame(given == number, true == number, void) for number in there | set(given_numbers)}
            )
    answered = set().union(*scored)
    if not objects:
        raise DeixisError(f"{truth}: its masks hold no object")
    if answered - objects:
        known = ", ".join(map(str, sorted(objects)))
        raise DeixisError(f"{results}: object number {max(answered - objects)}, the truth has {known}")
    rows = []
    for number in sorted(objects):
        region, contour = np.array([frame.get(number, (1.0, 1.0)) for frame in scored]).T
        j, f = float(region.mean()), float(contour.mean())
        (j_recall, j_decay), (f_recall, f_decay) = recall_and_decay(region), recall_and_decay(contour)
        values: dict[str, Value] = {
            "J&F": (j + f) / 2, "J": j, "F": f, "J recall": j_recall, "F recall": f_recall, "J decay": j_decay,
            "F decay": f_decay, "frames": len(region),
        }  # fmt: skip
        rows.append(Row(video=truth.name, id=str(number), values=values, worst=int(np.argmin(region + contour))))
    return rows
