"""A2D-Sentences (Gavrilyuk et al., CVPR 2018): 3,782 films, three to five labelled frames in each.

A sample is a sentence and a labelled frame in which its object is. Frames are scored one
by one. The truth is one HDF5 file a frame; its masks lie
transposed (W x H), and frame numbers begin at 1.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from deixis.benchmarks.fixtures import FRAMES, WORDS, tiny_videos, write_film
from deixis.benchmarks.opening import checked_benchmark, choose_split, normalise_text
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import cache_path, read_json, read_words, require_file, require_folder, safe_name, write_json
from deixis.types import DeixisError

log = logging.getLogger(__name__)

NAME = "a2d-sentences"
SPLITS = ("test", "train")
WHERE = (
    "get A2D from https://web.eecs.umich.edu/~jjcorso/r/a2d/ and the sentences from https://kgavrilyuk.github.io/"
    "publication/actor_action/, and see docs/benchmarks.md for the layout"
)
EXPECTED = {"videos in the list": 3782, "sentences in the list": 6655}  # read, both splits together


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split (default test): every sentence with every labelled frame in which its object exists."""
    split = choose_split(split, SPLITS, NAME)
    texts = root / "text_annotations"
    rows = _rows(require_file(texts / "a2d_annotation.txt", WHERE))
    listed = _rows(require_file(root / "Release" / "videoset.csv", WHERE))
    labels = require_folder(texts / "a2d_annotation_with_instances", WHERE)
    missed_file = texts / "a2d_missed_videos.txt"
    missed = set(read_words(missed_file).split()) if missed_file.is_file() else set()
    wanted = {row[0] for row in listed if row and row[-1].strip() == ("1" if split == "test" else "0")} - missed
    said = [row for row in rows if len(row) >= 3 and row[0] != "video_id"]
    index = _labelled_frames(labels)
    samples: list[Sample] = []
    problems: list[Problem] = []
    for video_id, instance, *words in said:
        if video_id not in wanted or not instance.strip().isdecimal():  # one row has the instance "1 (copy)"
            continue
        safe_name(video_id, texts / "a2d_annotation.txt")
        film = root / "Release" / "clips320H" / f"{video_id}.mp4"
        if not film.is_file():
            problems.append(Problem(film, "the film is missing"))
            continue
        frames = index.get(video_id, {})
        video = VideoEntry(id=video_id, names=tuple(frames), frames=film)
        text = normalise_text(",".join(words), texts / "a2d_annotation.txt")
        for number, (frame, present) in enumerate(frames.items()):
            if int(instance) in present:
                key = f"v_{video_id}_f_{int(frame)}_i_{int(instance)}"
                samples.append(Sample(video=video, id=key, text=text, objects=(str(int(instance)),), scored=(number,)))
    twice = {key for key, times in Counter(sample.id for sample in samples).items() if times > 1}
    problems += [Problem(texts / "a2d_annotation.txt", f"the sentence of {key} stands twice") for key in sorted(twice)]
    samples = [sample for sample in samples if sample.id not in twice]
    counts = {
        "videos in the list": len(listed),
        "sentences in the list": len(said),
        "videos": len({s.video.id for s in samples}),
        "samples": len(samples),
    }
    return checked_benchmark(
        Benchmark(
            name=NAME, split=split, root=root, protocol="answers", samples=tuple(samples),
            truth=partial(truth, labels), counts=counts, expected=EXPECTED, problems=tuple(dict.fromkeys(problems)),
        ),
        skip_bad,
    )  # fmt: skip


def _rows(path: Path) -> list[list[str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [row for row in csv.reader(file, skipinitialspace=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DeixisError(f"{path}: not a table of comma-separated text ({error})") from error


def _labelled_frames(labels: Path) -> dict[str, dict[str, list[int]]]:
    """video -> frame name -> instances labelled there. Some 12,000 small files: read once and kept in the cache."""
    kept = cache_path(labels, "a2d").with_suffix(".json")
    if kept.is_file():
        return read_json(kept)
    index: dict[str, dict[str, list[int]]] = {}
    log.info("indexing the labels in %s once", labels)
    for file in sorted(labels.glob("*/*.h5")):
        index.setdefault(file.parent.name, {})[file.stem] = [int(i) for i in _read_label(file, "instance").ravel()]
    try:
        write_json(kept, index)
    except OSError as error:
        log.warning("the index of %s cannot be kept: %s", labels, error)
    return index


def _read_label(file: Path, name: str) -> np.ndarray:
    try:
        import h5py
    except ImportError as error:
        raise DeixisError("A2D-Sentences needs h5py: pip install 'deixis[data]'") from error
    require_file(file, WHERE)  # a pipe would be waited for
    try:
        with h5py.File(file, "r") as label:
            numbers = np.asarray(label[name])
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError) as error:
        raise DeixisError(f"{file}: not a label of A2D-Sentences ({str(error)[:100]})") from error
    if numbers.dtype.kind not in "biuf" or not np.isfinite(numbers).all():
        raise DeixisError(f"{file}: not a label of A2D-Sentences ({name} holds {numbers.dtype}, or no finite numbers)")
    return numbers


def truth(labels: Path, video: VideoEntry, index: int) -> FrameTruth:
    """The instances of a labelled frame, turned upright."""
    file = labels / video.id / f"{video.names[index]}.h5"
    instances = [int(i) for i in _read_label(file, "instance").ravel()]
    masks = _read_label(file, "reMask")
    masks = masks[None] if masks.ndim == 2 else masks  # (N, W, H)
    if masks.ndim != 3 or len(masks) != len(instances):
        raise DeixisError(f"{file}: {len(instances)} instances, but masks of shape {masks.shape}")
    upright = masks.transpose(0, 2, 1).astype(bool)
    return FrameTruth(upright.shape[1:], {str(i): upright[n] for n, i in enumerate(instances)})


def write_fixture(out: Path) -> None:
    """Three films of eight frames (two of test), two labelled frames each, with the odd rows of the real files."""
    import h5py

    texts = out / "text_annotations"
    rows, listed = ["video_id,instance_id,query"], []
    for number, video in enumerate(tiny_videos(frames=2 * FRAMES)):
        write_film(out / "Release" / "clips320H" / f"{video.id}.mp4", video)
        listed.append(f"{video.id},1,0,0,{48},{32},8,2,{int(number > 0)}")
        rows += [f"{video.id},{i + 1},{words}" for i, words in enumerate(WORDS)]
        for t in (2, 5):
            present = [i for i in (1, 2) if (video.ids[t] == i).any()]
            masks = np.stack([i == video.ids[t].T for i in present]).astype(np.uint8)
            label = texts / "a2d_annotation_with_instances" / video.id / f"{t + 1:05d}.h5"
            label.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(label, "w") as file:
                file["instance"] = np.array(present)
                file["reMask"] = masks[0] if len(present) == 1 else masks
    rows.append(f"{video.id},1 (copy),{WORDS[0]}")
    (out / "Release" / "videoset.csv").write_text("\n".join(listed) + "\n")
    (texts / "a2d_annotation.txt").write_text("\n".join(rows) + "\n")
    (texts / "a2d_missed_videos.txt").write_text("none\n")
