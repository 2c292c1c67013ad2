"""Ref-YouTube-VOS (URVOS, ECCV 2020): 3,471 training videos; validation and test truth are not public.

Trap: the valid expression file lists 507 videos, 202 of validation and 305 of test; those of the test file are taken
out. The frames that count are those listed, every fifth of the film.

Training videos have categories in ``train/meta.json`` (65 in the whole download). Their order is nowhere given: here
they are sorted by name, over the whole training set, whatever the split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from deixis.benchmarks.expressions import ExpressionEntry, id_list, read_expressions, video_ids
from deixis.benchmarks.fixtures import WORDS, tiny_videos, write_jpegs
from deixis.benchmarks.opening import checked_benchmark, choose_split
from deixis.benchmarks.pngs import read_ids, write_ids
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import Missing, field_of, read_json
from deixis.types import DeixisError

NAME = "ref-youtube-vos"
SPLITS = ("valid", "train", "train_without_holdout", "holdout", "test")
WHERE = "get Ref-YouTube-VOS from https://youtube-vos.org/dataset/rvos/ and see docs/benchmarks.md for its layout"
EXPECTED = {
    "valid": {"videos": 202, "expressions": 834},  # read: asserted by published code
    "train": {"videos": 3471},
    "train_without_holdout": {"videos": 3271},
    "holdout": {"videos": 200},
    "test": {"videos": 305},
}
HOLDOUT = 200  # videos; our choice


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split (default valid). ``holdout`` is 200 train videos, those whose id has the lowest SHA-1."""
    split = choose_split(split, SPLITS, NAME)
    source = split if split in ("valid", "test") else "train"
    file = expression_file(root, source)
    keep: frozenset[str] | None = None
    notes: tuple[str, ...] = ()
    if split == "valid":
        keep, notes = valid_ids(root, video_ids(file, WHERE))
    elif split in ("holdout", "train_without_holdout"):
        held = holdout_ids(video_ids(file, WHERE))
        keep = held if split == "holdout" else video_ids(file, WHERE) - held
    entries, problems = read_expressions(file, root / source / "JPEGImages", WHERE, keep=keep)
    public = source == "train"
    if public:
        problems += [
            p for folder in {e.video.id: e.video for e in entries}.values() for p in _missing_truth(root, folder)
        ]
    bad = {problem.path.parent.name for problem in problems}
    kinds = read_categories(root / "train" / "meta.json") if public else {}
    samples = tuple(_sample(entry, file, public, kinds) for entry in entries if entry.video.id not in bad)
    counts = {"videos": len({s.video.id for s in samples}), "expressions": len(samples)}
    return checked_benchmark(
        Benchmark(
            name=NAME, split=split, root=root, protocol="expressions", folder="Annotations", samples=samples,
            truth=partial(truth, root / source / "Annotations") if public else None,
            categories=tuple(sorted(set(kinds.values()))),
            counts=counts, expected=EXPECTED[split], problems=tuple(problems), notes=notes,
        ),
        skip_bad,
    )  # fmt: skip


def valid_ids(root: Path, listed: frozenset[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The videos of validation among those that its file lists, and a note.

    Without the test file, which is hard to get, those that have frames: the download has none for the others.
    """
    file = expression_file(root, "test")
    if file.is_file():
        return listed - video_ids(file, WHERE), ()
    images = root / "valid" / "JPEGImages"
    keep = frozenset(video for video in listed if (images / video).is_dir())
    due = EXPECTED["valid"]["videos"]
    if not keep or (len(listed) > due and len(keep) != due):  # a small copy holds as many as it likes
        raise Missing(
            f"{file} is missing: it separates the listed videos of validation from those of the test"
            f" ({len(listed)} in all), and of {due} of validation {len(keep)} have frames in {images}; {WHERE}",
            file,
        )
    return keep, (f"{len(listed) - len(keep)} videos without frames are taken for the test's, whose file is not there",)


def expression_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"


def holdout_ids(ids: frozenset[str]) -> frozenset[str]:
    """The 200 videos whose id has the lowest SHA-1 (a third, of a small copy): fixed, and blind to what they show."""
    count = min(HOLDOUT, len(ids) // 3)
    return frozenset(sorted(ids, key=lambda video: hashlib.sha1(video.encode()).hexdigest())[:count])


def read_categories(file: Path) -> dict[tuple[str, str], str]:
    """The category of each object, by the ids of video and object; empty where the file is not there."""
    if not file.is_file():
        return {}
    return {
        (video, key): field_of(one, "category", str, file)
        for video, content in field_of(read_json(file, WHERE), "videos", dict, file).items()
        for key, one in field_of(content, "objects", dict, file).items()
    }


def _sample(entry: ExpressionEntry, file: Path, public: bool, kinds: Mapping[tuple[str, str], str]) -> Sample:
    objects = id_list(entry.raw, "obj_id", file) if public else None
    if public and objects is None:
        raise DeixisError(f"{file}: expression {entry.id} of {entry.video.id} has no obj_id")
    found = {kinds.get((entry.video.id, key)) for key in objects or ()}
    category = found.pop() if len(found) == 1 else None
    return Sample(video=entry.video, id=entry.id, text=entry.text, objects=objects, category=category)


def _missing_truth(root: Path, video: VideoEntry) -> list[Problem]:
    folder = root / "train" / "Annotations" / video.id
    present = {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()
    return [Problem(folder / f"{name}.png", "the annotation is missing") for name in video.names if name not in present]


def truth(annotations: Path, video: VideoEntry, index: int) -> FrameTruth:
    """The objects of one frame. Raises DeixisError unless the annotation is a whole palette PNG."""
    path = annotations / video.id / f"{video.names[index]}.png"
    return FrameTruth.from_ids(read_ids(path, path, modes=("P",)))


def write_fixture(out: Path) -> None:
    """Three videos of training, two of validation, one of test, in the layout of the download."""
    expressions: dict[str, dict[str, object]] = {"train": {}, "valid": {}, "test": {}}
    objects = {}
    for number, video in enumerate(tiny_videos()):
        names = [f"{5 * t:05d}" for t in range(len(video.frames))]
        for split in ("train", "test" if number == 2 else "valid"):
            write_jpegs(out / split / "JPEGImages" / video.id, video, names)
            said = {
                str(i): {"exp": words} | ({"obj_id": str(i + 1)} if split == "train" else {})
                for i, words in enumerate(WORDS)
            }
            expressions[split][video.id] = {"expressions": said, "frames": names}
        expressions["valid"].setdefault(video.id, expressions["test"].get(video.id))  # the trap: valid lists test too
        for name, ids in zip(names, video.ids, strict=True):
            write_ids(out / "train" / "Annotations" / video.id / f"{name}.png", ids)
        kinds = {"1": "red_box", "2": "green_box"}
        objects[video.id] = {"objects": {key: {"category": kind, "frames": names} for key, kind in kinds.items()}}
    (out / "train" / "meta.json").write_text(json.dumps({"videos": objects}))
    for split, videos in expressions.items():
        file = expression_file(out, split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"videos": videos}))
