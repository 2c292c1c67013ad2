"""Results on disk against a benchmark's truth on disk, under the benchmark's own protocol. No model is needed.

Frames are read one by one, a few ahead of the one being scored, and nothing but numbers is kept: memory does not grow
with the number of videos. Videos may be shared among processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deixis.benchmarks import open_benchmark
from deixis.benchmarks.frames import film_index, read_frames
from deixis.benchmarks.pngs import checked_mask, read_ids
from deixis.benchmarks.results import (
    ANNOTATORS,
    ANSWERS,
    check_presence_of_files,
    davis_path,
    holds,
    mask_path,
    opened,
    read_answers,
)
from deixis.benchmarks.samples import Benchmark, Sample
from deixis.metrics.by_annotator import score_annotators_of, summarise_davis
from deixis.metrics.by_expression import score_expressions_of, summarise_expressions
from deixis.metrics.by_frame import score_answers
from deixis.metrics.parallel import READERS, mapper
from deixis.metrics.summary import Row, Scores
from deixis.types import DeixisError

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
    """Score a folder (or a zip) of results against a benchmark, by its own protocol.

    Args:
        name: Name listed in `BENCHMARKS`.
        root: Folder of the benchmark.
        results: Folder or zip in the benchmark's own layout, of any program.
        split: Name of a split. Default: the one that is usually reported.
        workers: Processes that share the videos.
        least_pixels: A result counts as "not there" when no frame's mask has more pixels than this.
        skip_bad: Leave bad annotations out.
        progress: Called with the number of videos scored and of all videos.

    Returns:
        The `Scores`: summary, intervals, groups and one row per expression.

    Raises:
        DeixisError: For truth that is not public, and for results that are incomplete, superfluous, unreadable, or of
            another size or type; each by name.

    Example:
        >>> from pathlib import Path
        >>> from deixis.metrics.evaluate import score_benchmark
        >>> scores = score_benchmark("mevis", Path("mevis"), Path("results"))
        >>> scores.headline, 0 <= scores.summary["J&F"] <= 1
        ('J&F', True)
    """
    benchmark = open_benchmark(name, root, split, skip_bad)
    if benchmark.truth is None:
        raise DeixisError(
            f"the truth of {name} {benchmark.split} is not public; hand the results to its server (`deixis pack`),"
            " or score a split that has truth"
        )
    with opened(Path(results), holds(benchmark)) as folder:
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


def score_opened(benchmark: Benchmark, results: Path) -> Scores:
    """Score a folder of results against an opened benchmark, or part of one, in this process."""
    check_presence_of_files(benchmark, results)
    if benchmark.protocol == "answers":
        return score_answers(benchmark, results)
    score_video = {"expressions": score_expressions_of, "davis": score_annotators_of}[benchmark.protocol]
    rows: list[Row] = []
    with ThreadPoolExecutor(READERS) as pool:
        for samples in benchmark.by_video().values():
            rows += score_video(benchmark, samples, results, 0, pool)
    return summarise_davis(benchmark, rows) if benchmark.protocol == "davis" else summarise_expressions(benchmark, rows)


WorstFrame = tuple[np.ndarray, np.ndarray, np.ndarray]  # frame (H, W, 3) uint8 RGB, answer and truth (H, W) bool


def worst_frames(benchmark: Benchmark, results: Path, rows: Sequence[Row]) -> dict[tuple[str, str], WorstFrame]:
    """The worst frame of each row, with what was answered and what is true there."""
    samples = {(sample.video.id, sample.id): sample for sample in benchmark.samples}
    answers = read_answers(benchmark, results / ANSWERS) if benchmark.protocol == "answers" else {}
    worst = {}
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
        worst[row.video, row.id] = frame, shown, truth.union(sample.objects)
    return worst
