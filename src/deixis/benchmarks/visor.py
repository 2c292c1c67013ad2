"""VISOR (EPIC-KITCHENS; Darkhalil et al., NeurIPS 2022) as referring expressions: an object's name is the sentence.

No public conversion exists; this one is ours (docs/benchmarks.md says what was chosen). ``build`` turns the sparse
annotations into Ref-YouTube-VOS's form, a video for each subsequence: polygons are filled at 1920x1080 with whole
vertices, later objects over earlier ones, then brought to 854x480 (nearest for masks, bilinear for images).
Objects of one name are one object, so a name means exactly one mask a frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deixis.benchmarks.expressions import ExpressionEntry, id_list, read_expressions
from deixis.benchmarks.fixtures import tiny_videos, write_jpegs
from deixis.benchmarks.opening import checked_benchmark, choose_split
from deixis.benchmarks.pngs import read_ids, write_ids
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import field_of, read_json, require_folder, safe_name, write_json
from deixis.types import DeixisError

NAME = "visor"
SPLITS = ("val", "train")
WHERE = (
    "build it with `deixis data build visor VISOR OUT` from https://epic-kitchens.github.io/VISOR (docs/benchmarks.md)"
)
UNSEEN = frozenset(  # read: the kitchens that are not in training
    ("P07_101", "P07_103", "P07_110", "P09_02", "P09_07", "P09_103", "P09_104", "P09_106", "P21_01", "P29_04")
)
FEWEST_FRAMES = {"train": 3, "val": 2}  # read
SOURCE_SIZE, SIZE = (1080, 1920), (480, 854)  # height, width in pixels (read)
FARTHEST = 10_000  # pixels from the frame's corner at which a polygon's corner may lie (our choice)
HAND_WORDS = frozenset({"hand", "hands", "glove", "gloves"})


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split (default val) of the built copy; tags mark unseen kitchens, hands and first-frame objects."""
    split = choose_split(split, SPLITS, NAME)
    file = root / "meta_expressions" / split / "meta_expressions.json"
    entries, problems = read_expressions(file, root / split / "JPEGImages", WHERE)
    annotations = root / split / "Annotations"
    lost = {
        path
        for video in {entry.video.id: entry.video for entry in entries}.values()
        for path in (annotations / video.id / f"{name}.png" for name in video.names)
        if not path.is_file()
    }
    problems += [Problem(path, "the annotation is missing") for path in sorted(lost)]
    bad = {path.parent.name for path in lost}
    samples = tuple(_sample(entry, file) for entry in entries if entry.video.id not in bad)
    counts = {"videos": len({s.video.id for s in samples}), "expressions": len(samples)}
    return checked_benchmark(
        Benchmark(
            name=NAME, split=split, root=root, protocol="expressions", folder="Annotations", samples=samples,
            truth=partial(truth, annotations), counts=counts, problems=tuple(problems),
        ),
        skip_bad,
    )  # fmt: skip


def _sample(entry: ExpressionEntry, file: Path) -> Sample:
    objects = id_list(entry.raw, "obj_id", file)
    if objects is None:
        raise DeixisError(f"{file}: expression {entry.id} of {entry.video.id} has no obj_id")
    tags = ["hands" if HAND_WORDS & set(entry.text.split()) else "objects"]
    if any(entry.video.id.startswith(f"{kitchen}_") or entry.video.id == kitchen for kitchen in UNSEEN):
        tags.append("unseen kitchens")
    if entry.raw.get("first_frame"):
        tags.append("in the first frame")
    return Sample(video=entry.video, id=entry.id, text=entry.text, objects=objects, tags=tuple(tags))


def truth(annotations: Path, video: VideoEntry, index: int) -> FrameTruth:
    """The objects of one annotated frame."""
    path = annotations / video.id / f"{video.names[index]}.png"
    return FrameTruth.from_ids(read_ids(path, path, modes=("P",)))


def build_visor(visor: Path, out: Path, narrations: Mapping[str, str] | None = None) -> None:
    """Lay VISOR's sparse annotations out in Ref-YouTube-VOS's form.

    visor: the folder with annotations/{train,val}/<video>.json and rgb_frames/{train,val}/<kitchen>/<video>/<frame>.jpg
    (the zips unpacked in place).  narrations: subsequence -> narration, appended to each name. Raises DeixisError for
    whatever is missing or not understood.
    """
    for split in SPLITS:
        files = sorted(require_folder(visor / "annotations" / split, WHERE).glob("*.json"))
        videos: dict[str, Any] = {}
        names_of: dict[str, dict[str, int]] = {}
        for file in files:
            for subsequence, frames in _subsequences(file).items():
                numbers = {name: i for i, name in enumerate(sorted({o["name"] for _, a in frames for o in a}), 1)}
                if len(frames) < FEWEST_FRAMES[split]:
                    continue
                if len(numbers) > 255:
                    raise DeixisError(
                        f"{file}: subsequence {subsequence} has {len(numbers)} objects, 255 can be written"
                    )
                _write_frames(visor, out, split, subsequence, frames, numbers)
                first = {o["name"] for o in frames[0][1]}
                more = f" {narrations[subsequence].lower()}" if narrations and subsequence in narrations else ""
                videos[subsequence] = {
                    "frames": [Path(image["name"]).stem for image, _ in frames],
                    "expressions": {
                        str(i - 1): {"exp": name.lower() + more, "obj_id": str(i), "first_frame": name in first}
                        for name, i in numbers.items()
                    },
                }
                names_of[subsequence] = numbers
        folder = out / "meta_expressions" / split
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "meta_expressions.json", {"videos": videos})
        write_json(out / f"{split}_names.json", names_of)


Labelled = tuple[dict[str, Any], list[dict[str, Any]]]  # image, its objects


def _subsequences(file: Path) -> dict[str, list[Labelled]]:
    """subsequence -> its frames that hold a mask, in order of their image path."""
    groups: dict[str, list[Labelled]] = {}
    frames = field_of(read_json(file, WHERE), "video_annotations", list, file)
    for frame in sorted(frames, key=lambda f: field_of(field_of(f, "image", dict, file), "image_path", str, file)):
        image = frame["image"]
        safe_name(field_of(image, "name", str, file), file)
        safe_name(field_of(image, "video", str, file), file)
        objects = [
            o for o in field_of(frame, "annotations", list, file)
            if field_of(o, "segments", list, file) and field_of(o, "name", str, file)
        ]  # fmt: skip
        if objects:
            groups.setdefault(safe_name(field_of(image, "subsequence", str, file), file), []).append((image, objects))
    return groups


def _write_frames(
    visor: Path, out: Path, split: str, subsequence: str, frames: Iterable[Labelled], numbers: Mapping[str, int]
) -> None:
    for image, objects in frames:
        video, name = image["video"], image["name"]
        source = visor / "rgb_frames" / split / video.split("_")[0] / video / name
        picture = cv2.imread(str(source))
        if picture is None:
            raise DeixisError(f"{source}: the frame is missing or no image; {WHERE}")
        target = out / split / "JPEGImages" / subsequence / f"{Path(name).stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(target), cv2.resize(picture, SIZE[::-1], interpolation=cv2.INTER_LINEAR)):
            raise DeixisError(f"could not write {target}; is the disk full?")
        write_ids(out / split / "Annotations" / subsequence / f"{Path(name).stem}.png", rasterise(objects, numbers))


def rasterise(objects: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> np.ndarray:
    """(480, 854) uint8 object numbers from polygons at 1920x1080: one fill an object, later ones over earlier."""
    ids = np.zeros(SOURCE_SIZE, np.uint8)
    for labelled in objects:
        polygons = [_corners(points, labelled["name"]) for points in labelled["segments"] if points]
        cv2.fillPoly(ids, polygons, numbers[labelled["name"]])
    return cv2.resize(ids, SIZE[::-1], interpolation=cv2.INTER_NEAREST)


def _corners(points: Any, name: str) -> np.ndarray:
    """(n, 2) int32 x, y of a polygon given as [[x, y], ...]."""
    try:
        corners = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DeixisError(f"object {name!r}: a segment must be a list of corners [x, y]") from error
    if not (np.abs(corners) <= FARTHEST).all():
        raise DeixisError(f"object {name!r}: a segment has a corner far outside the frame")
    return corners.astype(np.int32)


def write_fixture(out: Path) -> None:
    """Three subsequences a split (one of an unseen kitchen) of two objects, hands among them, in the built form."""
    for split in SPLITS:
        videos = {}
        for number, video in enumerate(tiny_videos()):
            subsequence = f"{('P01_01', 'P02_03', 'P07_101')[number]}_seq_{number:05d}"
            names = [f"{subsequence}_frame_{t:010d}" for t in range(len(video.frames))]
            write_jpegs(out / split / "JPEGImages" / subsequence, video, names)
            for name, ids in zip(names, video.ids, strict=True):
                write_ids(out / split / "Annotations" / subsequence / f"{name}.png", ids)
            expressions = {
                str(i): {"exp": text, "obj_id": str(i + 1), "first_frame": True}
                for i, text in enumerate(("left hand", "green box"))
            }
            videos[subsequence] = {"frames": names, "expressions": expressions}
        file = out / "meta_expressions" / split / "meta_expressions.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"videos": videos}))
