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
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
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
from deixis.benchmarks.samples import Benchmark, Sample, VideoEntry
from deixis.files import field_of, read_json, write_json
from deixis.inference import Setup, every_query, finish_tracks, follow_film, model_size, predict_clip, prepare
from deixis.linking import sigmoid
from deixis.out_folder import results_in
from deixis.selection import threshold_at_input
from deixis.tracks import TrackBuilder
from deixis.types import Clip, DeixisError, Expression, MaskTrack, Prediction, Size, encode_rle, reason_of
from deixis.video import Video, resize

log = logging.getLogger(__name__)


def setup_for(benchmark: Benchmark, setup: Setup, threshold: float | None = None) -> Setup:
    """The setup by the rules of a benchmark.

    Several objects are shown together only where the benchmark and the system both have several. Where every
    expression names something, every one is answered, as published code does. The published rule ranks queries over the
    whole film, but on Ref-DAVIS17, where each window is a clip by itself.
    """
    several = benchmark.several and setup.several
    rule = setup.presence_rule
    if threshold is None and not (benchmark.absent_possible or several):
        rule = replace(rule, threshold=None)
    return replace(
        setup,
        presence_rule=rule,
        several=several,
        linking=None if setup.linking is None else replace(setup.linking, several=several),
        over="window" if benchmark.protocol == "davis" else "film",
    )


def predict(
    benchmark: Benchmark,
    results: Path,
    model: str | Path | nn.Module,
    *,
    device: str = "auto",
    precision: str = "fp32",
    threshold: float | None = None,
    selection: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Predict every sample of a benchmark that is not yet finished in a folder of results.

    Args:
        benchmark: As `open_benchmark` returns it.
        results: The folder, new or of an earlier call with the same arguments, which is resumed.
        model: As for `segment`.
        device: As for `segment`.
        precision: "fp32", as published figures are computed, "bf16" or "auto".
        threshold: Presence probability below which a result is empty. Default: that of the protocol and the model.
        selection: "official", the rule of the model's paper and the benchmark, or "linked". Default: the model's own.
        progress: Called with the number of samples finished and of all samples.

    Raises:
        DeixisError: Where the folder holds results of another benchmark, split or model, and for videos that cannot be
            read.

    Example:
        >>> from pathlib import Path
        >>> from deixis.benchmarks import open_benchmark
        >>> from deixis.predict import predict
        >>> predict(open_benchmark("mevis", Path("mevis")), Path("predicted"), "light")
        >>> sorted(path.name for path in Path("predicted").iterdir())[:2]
        ['.deixis', 'video00']
    """
    setup = prepare(model, device=device, precision=precision, threshold=threshold, selection=selection)
    setup = setup_for(benchmark, setup, threshold)
    _claim(results, _about(benchmark, model, setup, threshold))
    pending = [sample for sample in benchmark.samples if not _finished(results, sample, benchmark)]
    done, total = len(benchmark.samples) - len(pending), len(benchmark.samples)
    if progress is not None:
        progress(done, total)
    if pending:
        protocols = {"expressions": _predict_film, "davis": _predict_annotators, "answers": _predict_frames}
        predict_samples = protocols[benchmark.protocol]
        due = {(sample.video.id, sample.id) for sample in pending}
        with _disk_errors_as_ours(results):
            for video, samples in benchmark.by_video().items():
                own = {sample.id for sample in samples if (video, sample.id) in due}
                if not own:
                    continue
                for finished in predict_samples(benchmark, samples, own, results, setup):
                    done += finished
                    if progress is not None:
                        progress(done, total)
    if benchmark.protocol == "answers":
        with _disk_errors_as_ours(results):
            _join_parts(benchmark, results)


@contextlib.contextmanager
def _disk_errors_as_ours(results: Path) -> Iterator[None]:
    """What the disk refuses as a DeixisError: it is full, or something else lies where a file of results belongs."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or results
        reason = reason_of(error)
        raise DeixisError(f"{where}: {reason}; what was finished is kept, the run can be taken up") from error


def _about(
    benchmark: Benchmark, model: str | Path | nn.Module, setup: Setup, threshold: float | None
) -> dict[str, Any]:
    """What a run is: read again before it goes on, and the record of how its figures were made."""
    described = type(model).__name__ if isinstance(model, nn.Module) else weights.describe(model)
    return {
        "benchmark": benchmark.name, "split": benchmark.split, "root": str(benchmark.root.absolute()),
        "model": described, "threshold": threshold, "selection": setup.selection,
        "precision": "bf16" if setup.reduced else "fp32", "device": setup.device.type,
        "presence_threshold": setup.presence_rule.threshold, "window": setup.system.config.window,
    }  # fmt: skip


SAME = ("benchmark", "split", "model", "threshold", "selection", "precision")  # of what a run is, to be taken up


def _claim(results: Path, about: dict[str, Any]) -> None:
    """Write run.json, or make sure that the one that stands is of the same run."""
    run = results / SIDECAR / "run.json"
    if run.is_file():
        before = read_json(run)
        for key in SAME:
            if not isinstance(before, dict) or before.get(key) != about[key]:
                was = before.get(key) if isinstance(before, dict) else before
                raise DeixisError(
                    f"{results} holds results of another run ({key}: {json.dumps(was)}, now {json.dumps(about[key])});"
                    " name a new folder"
                )
    elif results.exists() and not (results.is_dir() and all(begun(path) for path in results_in(results))):
        raise DeixisError(f"{results} is not empty and not a run of `deixis predict`; name a new folder")
    try:
        write_json(run, about)
    except OSError as error:
        raise DeixisError(f"{results}: cannot be written ({reason_of(error)})") from error


def begun(path: Path) -> bool:
    """Whether it is what a run leaves in RESULTS that is killed before its run.json stands."""
    return path.name == SIDECAR and path.is_dir() and all(p.name == "run.json.half" for p in path.iterdir())


def _finished(results: Path, sample: Sample, benchmark: Benchmark) -> bool:
    if not marker_path(results, sample).is_file():
        return False
    return benchmark.protocol == "answers" or all(
        (results / name).is_file() for name, _ in due_files(benchmark, [sample])
    )


def _mark(results: Path, sample: Sample, presence: float, scores: Sequence[float], **more: Any) -> None:
    marker = {"presence": round(float(presence), 8), "scores": [round(float(s), 8) for s in scores], **more}
    write_json(marker_path(results, sample), marker)


@contextlib.contextmanager
def film_of(video: VideoEntry) -> Iterator[Video]:
    """The listed frames of a video as a film, whatever else lies in their folder."""
    if isinstance(video.frames, Path):
        yield Video(video.frames)
        return
    with tempfile.TemporaryDirectory(prefix="deixis-") as folder:
        for index, frame in enumerate(video.frames):
            (Path(folder) / f"{index:08d}{frame.suffix}").symlink_to(frame.absolute())
        film = Video(folder)
        yield film
        _check_read(video, film)


# Each protocol gets all samples of a film, and the ids of those that are due. What a cut-off run has finished is
# predicted again with the others, but not written: a number's last digit depends on what is predicted together.

# --- J and F per expression ------------------------------------------------------------------------------------------


def _predict_film(
    benchmark: Benchmark, samples: Sequence[Sample], due: Set[str], results: Path, setup: Setup
) -> Iterator[int]:
    """One film, all its expressions at once; a PNG for every frame of each."""
    video = samples[0].video
    with film_of(video) as film, tempfile.TemporaryDirectory(prefix="deixis-") as scratch:
        wanted = [Expression(sample.text, sample.id) for sample in samples]
        builder = follow_film(setup, film, wanted, folder=Path(scratch))
        _check_read(video, film, len(builder.names))
        for sample, track in zip(samples, finish_tracks(builder, setup), strict=True):
            if sample.id in due:
                _write_track(benchmark, sample, track, results)
                yield 1


def _write_track(benchmark: Benchmark, sample: Sample, track: MaskTrack, results: Path) -> None:
    for name, mask in zip(sample.video.names, track.masks, strict=True):
        write_binary(results / mask_path(benchmark, sample, name), np.ascontiguousarray(mask))
    _mark(results, sample, track.presence, track.scores.tolist())


def _check_read(video: VideoEntry, film: Video, frames: int | None = None) -> None:
    """Refuse a film of which a listed frame is left out or made to fit: that is for people, no score may rest on it.

    Called when the film has been read, before anything of it is written. frames: how many were read, where known.
    """
    notes = "; ".join(film.warnings)
    if isinstance(video.frames, tuple):  # the frames' own names mean more than those in the temporary folder
        for index, frame in enumerate(video.frames):
            notes = notes.replace(f"{index:08d}{frame.suffix}", frame.name)
    if frames is not None and frames != len(video.names):
        why = f" ({notes})" if notes else ""
        raise DeixisError(f"video {video.id}: {frames} frames could be read, {len(video.names)} are listed{why}")
    if notes and isinstance(video.frames, tuple):
        raise DeixisError(f"video {video.id}: {notes}; mend its frames, or fetch them again")


# --- Ref-DAVIS17: objects compete for pixels, annotator by annotator -------------------------------------------------


def _predict_annotators(
    benchmark: Benchmark, samples: Sequence[Sample], due: Set[str], results: Path, setup: Setup
) -> Iterator[int]:
    """One film: for each annotator, the soft masks of all objects merged to a map of object numbers a frame."""
    video = samples[0].video
    wanted = [s for a in range(ANNOTATORS) for s in samples if int(s.id) % ANNOTATORS == a]
    with film_of(video) as film, tempfile.TemporaryDirectory(prefix="deixis-") as scratch:
        expressions = [Expression(s.text, s.id) for s in wanted]
        builder = follow_film(setup, film, expressions, folder=Path(scratch), soft=True)
        _check_read(video, film, len(builder.names))
        tracks = finish_tracks(builder, setup)
        soft = builder.soft(setup.presence_rule) if isinstance(builder, TrackBuilder) else builder.soft()
        count = len(samples) // ANNOTATORS
        for annotator in sorted({int(sample) % ANNOTATORS for sample in due}):
            own = slice(annotator * count, (annotator + 1) * count)
            for index, planes in enumerate(zip(*soft[own], strict=True)):
                write_ids(results / davis_path(annotator, video, index), merge_objects(planes))
            for sample, track in zip(wanted[own], tracks[own], strict=True):
                _mark(results, sample, track.presence, track.scores.tolist())
            yield sum(int(sample) % ANNOTATORS == annotator for sample in due)


# --- single frames: every query is an answer -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Every:
    """All queries of one frame. masks: (Q, H, W) bool at source size.  scores: (Q,) logits.  presence: logit."""

    masks: np.ndarray
    scores: np.ndarray
    presence: float


def _predict_frames(
    benchmark: Benchmark, samples: Sequence[Sample], due: Set[str], results: Path, setup: Setup
) -> Iterator[int]:
    """A window around each labelled frame; the masks of all queries in that frame, with their scores there.

    The system gets the wanted frame, as in training: what comes after its backbone may then get that one alone.
    """
    system = setup.system
    by_frame: dict[int, list[Sample]] = {}
    for sample in samples:
        assert sample.scored is not None
        by_frame.setdefault(film_index(sample, sample.scored[0]), []).append(sample)
    for centre, wanted in by_frame.items():
        if not any(sample.id in due for sample in wanted):
            continue
        still = isinstance(wanted[0].video.frames, tuple) and len(wanted[0].video.frames) == 1
        indices = [0] if still else centred_window(centre, system.config.window)
        frames = read_frames(wanted[0].video, indices)
        clip = _clip(frames, model_size((frames.shape[1], frames.shape[2]), system.config))
        at = indices.index(centre)

        def read(prediction: Prediction, size: Size, padded: Size, first: int, at: int = at, clip: Clip = clip) -> Any:
            frame = at if prediction.masks.shape[1] > 1 else 0  # a system may give all frames all the same
            scores = prediction.scores[:, frame].float().cpu()  # (K, Q)
            presence = scores.amax(1) if prediction.presence is None else prediction.presence
            masks = prediction.masks[:, frame].cpu()
            return [
                Every(threshold_at_input(own, size, padded, clip.source_size).numpy(), ranks.numpy(), float(there))
                for own, ranks, there in zip(masks, scores, presence, strict=True)
            ]

        with every_query(system):
            expressions = [Expression(s.text, s.id) for s in wanted]
            found = predict_clip(system, clip, expressions, read, setup.device, setup.reduced, wanted=(at,))
        for sample, every in zip(wanted, found, strict=True):
            if sample.id not in due:
                continue
            probabilities = torch.from_numpy(every.scores).sigmoid().tolist()
            answers = [
                {"segmentation": _plain(mask), "score": score}
                for mask, score in zip(every.masks, probabilities, strict=True)
            ]
            presence = float(sigmoid(setup.presence_rule.calibrated(every.presence)))
            _mark(results, sample, presence, [max(probabilities)], answers=answers)
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


def _join_parts(benchmark: Benchmark, results: Path) -> None:
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
    """The answers in a finished sample's own file. Raises DeixisError for what ``_predict_frames`` never wrote."""
    for given in field_of(read_json(marker), "answers", list, marker):
        mask = field_of(given, "segmentation", dict, marker)
        size, counts = field_of(mask, "size", list, marker), field_of(mask, "counts", str, marker)
        score = float(field_of(given, "score", (int, float), marker))
        if len(size) != 2 or not all(isinstance(side, int) for side in size) or not math.isfinite(score):
            raise DeixisError(f"{marker} is damaged: an answer of size {size!r:.60}, score {score}; delete it")
        yield {"segmentation": {"size": size, "counts": counts}, "score": score}
