"""A model over a benchmark: results on disk in the benchmark's own layout, sample by sample, resumable.

A sample is finished when its small JSON in ``.deixis/`` stands; it is written last, and every file in one step. So a
run that was stopped is taken up where it was: finished samples are passed over, half-written ones made again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deixis import weights
from deixis.benchmarks.frames import centred_window, film_index, read_frames
from deixis.benchmarks.pngs import write_binary, write_ids
from deixis.benchmarks.ref_davis17 import merge_objects
from deixis.benchmarks.results import ANNOTATORS, ANSWERS, SIDECAR, davis_path, due_files, marker_path, mask_path
from deixis.benchmarks.samples import Benchmark, Sample, Video
from deixis.files import field_of, read_json, write_json
from deixis.inference import answer, choose_device, choose_precision, film_answers, model_size, segment
from deixis.linking import Linking, Presence, sigmoid
from deixis.tracks import TrackBuilder, to_source
from deixis.types import Clip, DeixisError, Expression, MaskTrack, encode_rle
from deixis.video import Film, resize

log = logging.getLogger(__name__)

ALWAYS = 1e-6  # presence threshold where every expression names something: published code always answers
SEVERAL = ("mevis", "world")  # benchmarks whose expressions may name several objects


@dataclass(frozen=True, eq=False, kw_only=True)
class Asking:
    """The model, where it runs, and how presence is judged. threshold: None for the model's own (``ALWAYS``, where
    a benchmark's expressions all name something).
    """

    system: nn.Module
    device: torch.device
    reduced: bool
    threshold: float | None = None

    def judge(self, benchmark: Benchmark) -> Presence:
        config: Any = self.system.config
        judged = benchmark.absent_possible or self.linking(benchmark).several
        usual = getattr(config, "presence_threshold", 0.5) if judged else ALWAYS
        return Presence(
            threshold=usual if self.threshold is None else self.threshold,
            temperature=getattr(config, "presence_temperature", 1.0),
            shift=getattr(config, "presence_shift", 0.0),
        )

    def linking(self, benchmark: Benchmark) -> Linking:
        """Several objects are shown together only where the benchmark and the system both know of several."""
        config: Any = self.system.config
        return Linking(several=benchmark.name in SEVERAL and getattr(config, "several", False))


def predict(
    benchmark: Benchmark,
    results: Path,
    model: str | Path | nn.Module,
    *,
    device: str = "auto",
    precision: str = "auto",
    threshold: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Answer every sample of a benchmark that is not yet answered in ``results``.

    progress: called with samples finished and samples in all. Raises DeixisError where the folder holds another
    benchmark's, split's or model's results, and for films that cannot be read.
    """
    about = _about(benchmark, model, threshold)
    _claim(results, about)
    pending = [sample for sample in benchmark.samples if not _finished(results, sample, benchmark)]
    done, total = len(benchmark.samples) - len(pending), len(benchmark.samples)
    if progress is not None:
        progress(done, total)
    if pending:
        where = choose_device(device)
        system = model if isinstance(model, nn.Module) else weights.load(model)
        asking = Asking(
            system=system.to(where).eval(),
            device=where,
            reduced=choose_precision(precision, where),
            threshold=threshold,
        )
        ask = {"expressions": _ask_film, "davis": _ask_annotators, "answers": _ask_frames}[benchmark.protocol]
        groups: dict[str, list[Sample]] = {}
        for sample in pending:
            groups.setdefault(sample.video.id, []).append(sample)
        with _told_of_the_disk(results):
            for samples in groups.values():
                for finished in ask(benchmark, samples, results, asking):
                    done += finished
                    if progress is not None:
                        progress(done, total)
    if benchmark.protocol == "answers":
        with _told_of_the_disk(results):
            _join_answers(benchmark, results)


@contextlib.contextmanager
def _told_of_the_disk(results: Path) -> Iterator[None]:
    """What the disk refuses as a DeixisError: it is full, or something else lies where a file of results belongs."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or results
        raise DeixisError(f"{where}: {error.strerror}; what was finished is kept, the run can be taken up") from error


def _about(benchmark: Benchmark, model: str | Path | nn.Module, threshold: float | None) -> dict[str, Any]:
    described = type(model).__name__ if isinstance(model, nn.Module) else weights.describe(model)
    return {"benchmark": benchmark.name, "split": benchmark.split, "root": str(benchmark.root.absolute()),
            "model": described, "threshold": threshold}  # fmt: skip


def _claim(results: Path, about: dict[str, Any]) -> None:
    """Write run.json, or make sure that the one that stands tells of the same run."""
    run = results / SIDECAR / "run.json"
    if run.is_file():
        before = read_json(run)
        for key in ("benchmark", "split", "model", "threshold"):
            if not isinstance(before, dict) or before.get(key) != about[key]:
                was = before.get(key) if isinstance(before, dict) else before
                raise DeixisError(
                    f"{results} holds results of another run ({key}: {json.dumps(was)}, now {json.dumps(about[key])});"
                    " name a new folder"
                )
    elif results.exists() and (not results.is_dir() or any(results.iterdir())):
        raise DeixisError(f"{results} is not empty and not a run of `deixis predict`; name a new folder")
    try:
        write_json(run, about)
    except OSError as error:
        raise DeixisError(f"{results}: cannot be written ({error.strerror})") from error


def _finished(results: Path, sample: Sample, benchmark: Benchmark) -> bool:
    if not marker_path(results, sample).is_file():
        return False
    return benchmark.protocol == "answers" or all(
        (results / name).is_file() for name, _ in due_files(benchmark, [sample])
    )


def _mark(results: Path, sample: Sample, presence: float, scores: Sequence[float], **more: Any) -> None:
    # Rounded to what a score can mean, so that the files stay small.
    marker = {"presence": round(float(presence), 6), "scores": [round(float(s), 4) for s in scores], **more}
    write_json(marker_path(results, sample), marker)


@contextlib.contextmanager
def film_of(video: Video) -> Iterator[Film]:
    """The listed frames of a video as a film, whatever else lies in their folder."""
    if isinstance(video.frames, Path):
        yield Film(video.frames)
        return
    with tempfile.TemporaryDirectory(prefix="deixis-") as folder:
        for index, frame in enumerate(video.frames):
            (Path(folder) / f"{index:08d}{frame.suffix}").symlink_to(frame.absolute())
        film = Film(folder)
        yield film
        if film.warnings:  # a frame that cannot be read is filled in for people; a score must not rest on that
            raise DeixisError(f"video {video.id}: {film.warnings[0]}")


# --- J and F per expression ------------------------------------------------------------------------------------------


def _ask_film(benchmark: Benchmark, samples: Sequence[Sample], results: Path, asking: Asking) -> Iterator[int]:
    """One film, all its expressions at once; a PNG for every frame of each."""
    video = samples[0].video
    judge = asking.judge(benchmark)
    with film_of(video) as film, tempfile.TemporaryDirectory(prefix="deixis-") as scratch:
        tracks = segment(
            film, [Expression(sample.text, sample.id) for sample in samples], model=asking.system,
            device=str(asking.device), precision="bf16" if asking.reduced else "fp32", threshold=judge.threshold,
            linking=asking.linking(benchmark), folder=Path(scratch),
        )  # fmt: skip
        for sample, track in zip(samples, tracks, strict=True):
            _check_length(video, len(track))
            _write_track(benchmark, sample, track, results)
            yield 1


def _write_track(benchmark: Benchmark, sample: Sample, track: MaskTrack, results: Path) -> None:
    for name, mask in zip(sample.video.names, track.masks, strict=True):
        write_binary(results / mask_path(benchmark, sample, name), np.ascontiguousarray(mask))
    _mark(results, sample, track.presence, track.scores.tolist())


def _check_length(video: Video, frames: int) -> None:
    if frames != len(video.names):
        raise DeixisError(f"video {video.id}: {frames} frames could be read, {len(video.names)} are listed")


# --- Ref-DAVIS17: objects compete for pixels, annotator by annotator -------------------------------------------------


def _ask_annotators(benchmark: Benchmark, samples: Sequence[Sample], results: Path, asking: Asking) -> Iterator[int]:
    """One film: for each annotator, the soft masks of all objects merged to a map of object numbers a frame."""
    video = samples[0].video
    everything = [s for s in benchmark.samples if s.video.id == video.id]
    due = sorted({int(sample.id) % ANNOTATORS for sample in samples})
    asked = [s for a in due for s in everything if int(s.id) % ANNOTATORS == a]
    with film_of(video) as film:
        builder = _answer_film(film, [Expression(s.text, s.id) for s in asked], asking)
        judge = asking.judge(benchmark)
        tracks, soft = builder.finish(judge), builder.soft(judge)
        _check_length(video, len(builder.names))
        count = len(everything) // ANNOTATORS
        for number, annotator in enumerate(due):
            own = slice(number * count, (number + 1) * count)
            for index, planes in enumerate(zip(*soft[own], strict=True)):
                write_ids(results / davis_path(annotator, video, index), merge_objects(planes))
            for sample, track in zip(asked[own], tracks[own], strict=True):
                _mark(results, sample, track.presence, track.scores.tolist())
            yield sum(int(sample.id) % ANNOTATORS == annotator for sample in samples)


def _answer_film(film: Film, expressions: Sequence[Expression], asking: Asking) -> TrackBuilder:
    """All windows of a film, remembered; as ``segment`` does, before it decides."""
    config: Any = asking.system.config
    linking, size = Linking(), model_size(film.source_size, config)
    builder = TrackBuilder(expressions, film.source_size, linking)

    def windows(overlap: int) -> Iterator[Clip]:
        return film.windows(config.window, size=size, overlap=overlap)

    for clip, found in film_answers(asking.system, windows, expressions, linking, asking.device, asking.reduced):
        builder.add(found, clip.names, clip.times, clip.start)
    return builder


# --- single frames: every query is an answer -------------------------------------------------------------------------


def _ask_frames(benchmark: Benchmark, samples: Sequence[Sample], results: Path, asking: Asking) -> Iterator[int]:
    """A window around each labelled frame; all queries' masks of that frame, with their mean scores over the window."""
    config: Any = asking.system.config
    by_frame: dict[int, list[Sample]] = {}
    for sample in samples:
        assert sample.scored is not None
        by_frame.setdefault(film_index(sample, sample.scored[0]), []).append(sample)
    for centre, asked in by_frame.items():
        still = isinstance(asked[0].video.frames, tuple) and len(asked[0].video.frames) == 1
        indices = [0] if still else centred_window(centre, config.window)
        frames = read_frames(asked[0].video, indices)
        clip = _clip(frames, model_size((frames.shape[1], frames.shape[2]), config))
        linking = Linking(candidates=1_000_000, keep=0.0)  # every query, not the best few
        found = answer(
            asking.system, clip, [Expression(s.text, s.id) for s in asked], linking, asking.device, asking.reduced
        )
        at = indices.index(centre)
        for sample, candidates in zip(asked, found, strict=True):
            probabilities = sigmoid(candidates.frame_scores).mean(1)
            answers = [
                {
                    "segmentation": _plain(to_source(logits[at], candidates.inside, clip.source_size)),
                    "score": float(score),
                }
                for logits, score in zip(candidates.logits, probabilities, strict=True)
            ]
            presence = float(sigmoid(asking.judge(benchmark).calibrated(candidates.presence)))
            _mark(results, sample, presence, [float(probabilities.max())], answers=answers)
            yield 1


def _clip(frames: np.ndarray, size: tuple[int, int]) -> Clip:
    resized = np.stack([resize(frame, size) for frame in frames])
    count, height, width = frames.shape[:3]
    return Clip(
        torch.from_numpy(resized).permute(0, 3, 1, 2), tuple(map(str, range(count))), tuple(map(float, range(count))),
        (height, width),
    )  # fmt: skip


def _plain(mask: np.ndarray) -> dict[str, Any]:
    rle = encode_rle(np.ascontiguousarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _join_answers(benchmark: Benchmark, results: Path) -> None:
    """predictions.json in COCO's results form, from the finished samples' own files, one after the other."""
    half = results / (ANSWERS + ".half")
    try:
        with open(half, "w", encoding="ascii") as file:
            separator = "["
            for sample in benchmark.samples:
                for given in _answers(marker_path(results, sample)):
                    entry = {"image_id": sample.id, "category_id": 1, **given}
                    file.write(separator + "\n" + json.dumps(entry, allow_nan=False))
                    separator = ","
            file.write("\n]\n")
        half.replace(results / ANSWERS)
    finally:
        half.unlink(missing_ok=True)


def _answers(marker: Path) -> Iterator[dict[str, Any]]:
    """The answers in a finished sample's own file. Raises DeixisError for what ``_ask_frames`` never wrote."""
    for given in field_of(read_json(marker), "answers", list, marker):
        mask = field_of(given, "segmentation", dict, marker)
        size, counts = field_of(mask, "size", list, marker), field_of(mask, "counts", str, marker)
        score = float(field_of(given, "score", (int, float), marker))
        if len(size) != 2 or not all(isinstance(side, int) for side in size) or not math.isfinite(score):
            raise DeixisError(f"{marker} is damaged: an answer of size {size!r:.60}, score {score}; delete it")
        yield {"segmentation": {"size": size, "counts": counts}, "score": score}
