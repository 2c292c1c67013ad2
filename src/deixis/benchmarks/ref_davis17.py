"""Ref-DAVIS17 (Khoreva et al., ACCV 2018) on DAVIS-2017: 30 validation videos, every object named by four annotators.

The four are two people with two texts each (first frame only, full film). The usual copy has Ref-YouTube-VOS's form;
``build`` makes it from the DAVIS download and the four text files. Expression e names object e // 4 + 1 as annotator
e % 4 called it. Results are one map of object numbers a frame for each annotator (``merge_objects``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from deixis.benchmarks.expressions import ExpressionEntry, id_list, read_expressions
from deixis.benchmarks.fixtures import WORDS, tiny_videos, write_jpegs
from deixis.benchmarks.opening import checked_benchmark, choose_split
from deixis.benchmarks.pngs import VOID, read_ids, write_ids
from deixis.benchmarks.results import ANNOTATORS
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import list_folder, read_json, read_words, require_file, require_folder, write_json
from deixis.types import DeixisError

NAME = "ref-davis17"
SPLITS = ("valid", "train")
WHERE = "build it with `deixis data build ref-davis17 DAVIS OUT --texts TEXTS` (where both are had: docs/benchmarks.md)"
EXPECTED = {"valid": {"videos": 30}, "train": {"videos": 60}}  # read
BACKGROUND = 0.1  # soft value of the ground when objects are merged (read)
THRESHOLD = 0.5  # softer pixels belong to no object (read)
TEXTS = (  # annotator 1 first frame, 1 full film, 2 first frame, 2 full film; the second person's files are latin-1
    ("Davis17_annot1.txt", "utf-8"),
    ("Davis17_annot1_full_video.txt", "utf-8"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split (default valid) of the built copy."""
    split = choose_split(split, SPLITS, NAME)
    file = root / "meta_expressions" / split / "meta_expressions.json"
    entries, problems = read_expressions(file, root / split / "JPEGImages", WHERE)
    annotations = root / split / "Annotations"
    by_video: dict[str, list[ExpressionEntry]] = {}
    for entry in entries:
        by_video.setdefault(entry.video.id, []).append(entry)
    samples: list[Sample] = []
    for video_id, entries in by_video.items():
        found = _problems_of(entries, annotations / video_id, file)
        problems += found
        if not found:
            samples += [_sample(entry, file) for entry in entries]
    counts = {"videos": len({s.video.id for s in samples}), "expressions": len(samples)}
    return checked_benchmark(
        Benchmark(
            name=NAME, split=split, root=root, protocol="davis", samples=tuple(samples),
            truth=partial(truth, annotations), counts=counts, expected=EXPECTED[split], problems=tuple(problems),
        ),
        skip_bad,
    )  # fmt: skip


def _problems_of(entries: Sequence[ExpressionEntry], folder: Path, file: Path) -> list[Problem]:
    if (
        sorted(entry.id for entry in entries) != sorted(str(i) for i in range(len(entries)))
        or len(entries) % ANNOTATORS
    ):
        what = f"video {entries[0].video.id} must have expressions 0 to 4n-1, four an object, got {len(entries)}"
        return [Problem(file, what)]
    present = {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()
    due = entries[0].video.names
    return [Problem(folder / f"{name}.png", "the annotation is missing") for name in due if name not in present]


def _sample(entry: ExpressionEntry, file: Path) -> Sample:
    own = (str(int(entry.id) // ANNOTATORS + 1),)
    if (id_list(entry.raw, "obj_id", file) or own) != own:
        raise DeixisError(f"{file}: expression {entry.id} of {entry.video.id} must name object {own[0]}")
    return Sample(
        video=entry.video, id=entry.id, text=entry.text, objects=own, tags=(f"annotator {int(entry.id) % ANNOTATORS}",)
    )  # fmt: skip


def truth(annotations: Path, video: VideoEntry, index: int) -> FrameTruth:
    """The objects of one frame; 255 is void."""
    path = annotations / video.id / f"{video.names[index]}.png"
    return FrameTruth.from_ids(read_ids(path, path, modes=("P",)), VOID)


def merge_objects(soft: Sequence[np.ndarray]) -> np.ndarray:
    """One (H, W) uint8 map from the soft masks, (H, W) in 0..1, of objects 1..n: each pixel goes to the highest.

    Below 0.5 a pixel is no object's. Where objects tie, the first wins.
    """
    planes = np.stack([np.full(soft[0].shape, BACKGROUND, np.float32), *(np.where(p < THRESHOLD, 0, p) for p in soft)])
    return planes.argmax(0).astype(np.uint8)


def build_ref_davis17(davis: Path, texts: Path, out: Path, semantics: Path | None = None) -> None:
    """Lay DAVIS-2017 (unsupervised, 480p) and the four text files out in Ref-YouTube-VOS's form.

    davis: the folder with JPEGImages/480p, Annotations_unsupervised/480p and ImageSets/2017.  texts: the folder with
    the four Davis17_annot*.txt.  semantics: davis_semantics.json, for categories. Files are linked where the disk
    allows it, copied otherwise. Raises DeixisError for whatever is missing or does not fit.
    """
    where = "get DAVIS 2017 Unsupervised TrainVal 480p from https://davischallenge.org and see docs/benchmarks.md"
    said = [_read_texts(require_file(texts / name, where), encoding) for name, encoding in TEXTS]
    categories = read_json(semantics) if semantics else {}
    for source, split in (("train", "train"), ("val", "valid")):
        videos, objects = {}, {}
        listed = read_words(davis / "ImageSets" / "2017" / f"{source}.txt", where).split()
        for video in listed:
            names = _link(davis / "JPEGImages" / "480p" / video, out / split / "JPEGImages" / video, where)
            _link(davis / "Annotations_unsupervised" / "480p" / video, out / split / "Annotations" / video, where)
            videos[video] = {"frames": names, "expressions": _interleave(video, said)}
            count = len(videos[video]["expressions"]) // ANNOTATORS
            kinds = categories.get(video, {})
            objects[video] = {"objects": {str(i): {"category": kinds.get(str(i), "")} for i in range(1, count + 1)}}
        folder = out / "meta_expressions" / split
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "meta_expressions.json", {"videos": videos})
        write_json(out / split / "meta.json", {"videos": objects})


def _read_texts(path: Path, encoding: str) -> dict[str, dict[str, str]]:
    """video -> object number -> text, from lines of: video, number, quoted text."""
    table: dict[str, dict[str, str]] = {}
    for number, line in enumerate(read_words(path, encoding=encoding).splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r'\s*(\S+)\s+(\d+)\s+"?(.*?)"?\s*', line)
        if not match:
            raise DeixisError(
                f"{path}, line {number}: must be a video, an object number and a quoted text, got {line!r}"
            )
        video, object_id, text = match.groups()
        table.setdefault(MISSPELT.get(video, video), {})[object_id] = text
    return table


def _interleave(video: str, said: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    objects = sorted(said[0].get(video, {}))  # as text, as the published copies do
    if not objects or any(sorted(texts.get(video, {})) != objects for texts in said):
        raise DeixisError(f"the four text files must name the same objects of {video}; one of them does not")
    return {
        str(ANNOTATORS * i + annotator): {"exp": texts[video][object_id], "obj_id": object_id}
        for i, object_id in enumerate(objects)
        for annotator, texts in enumerate(said)
    }


def _link(source: Path, target: Path, where: str) -> list[str]:
    require_folder(source, where)
    target.mkdir(parents=True, exist_ok=True)
    names = []
    for entry in list_folder(source):
        names.append(Path(entry.name).stem)
        if not (target / entry.name).exists():
            try:
                os.link(entry.path, target / entry.name)
            except OSError:  # another disk, or one without links
                half = target / f".{entry.name}.half"  # what is cut off is not taken for a whole one by the next run
                shutil.copyfile(entry.path, half)
                half.replace(target / entry.name)
    return names


def write_fixture(out: Path) -> None:
    """Three videos of two objects a split; some void pixels."""
    for split in SPLITS:
        videos = {}
        for video in tiny_videos():
            names = [f"{t:05d}" for t in range(len(video.frames))]
            write_jpegs(out / split / "JPEGImages" / video.id, video, names)
            for name, ids in zip(names, video.ids, strict=True):
                marked = ids.copy()
                marked[0, :3] = VOID
                write_ids(out / split / "Annotations" / video.id / f"{name}.png", marked)
            expressions = {
                str(ANNOTATORS * i + a): {"exp": f"{WORDS[i]}, said {a + 1}", "obj_id": str(i + 1)}
                for i in range(2)
                for a in range(ANNOTATORS)
            }
            videos[video.id] = {"frames": names, "expressions": expressions}
        file = out / "meta_expressions" / split / "meta_expressions.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"videos": videos}))
