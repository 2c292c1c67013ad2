"""RefCOCO, RefCOCO+ and RefCOCOg on COCO's train2014 images: one still a sentence, for pre-training and for inspection.

A split is one file in COCO's form, a record for each *sentence* with its ``caption`` and exactly one annotation:
``instances_refcoco_val.json`` in the folder itself, or in ``refcoco`` below it, as ReferFormer and SOC keep it.
``refcoco_build`` makes such files of the refer toolkit's download. For training on video a still
becomes a pseudo-clip (``deixis.training.clips``).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deixis.benchmarks.fixtures import HEIGHT, WIDTH, WORDS, tiny_videos
from deixis.benchmarks.opening import checked_benchmark, choose_split, normalise_text
from deixis.benchmarks.pngs import checked_mask, polygon_mask
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import field_of, list_folder, read_json, require_folder, safe_name
from deixis.types import encode_rle

NAME = "refcoco"
SET_SPLITS = {
    "refcoco": ("val", "testA", "testB", "train"),
    "refcoco+": ("val", "testA", "testB", "train"),
    "refcocog": ("val", "test", "train"),
}
SPLITS = tuple(f"{name}_{split}" for name, splits in SET_SPLITS.items() for split in splits)
MAX_SIDE = 20_000  # pixels (our choice: COCO's images have 640)
WHERE = (
    "get train2014 from https://cocodataset.org and the expressions from https://github.com/lichengunc/refer,"
    " and lay them out with `deixis data build refcoco DOWNLOAD OUT`; see docs/benchmarks.md"
)


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a set and split by name, such as refcoco_val or refcoco+_testA (default refcoco_val)."""
    split = choose_split(split, SPLITS, NAME)
    file = root / f"instances_{split}.json"
    below = root / split.rpartition("_")[0] / file.name
    file = below if below.is_file() and not file.is_file() else file
    table = read_json(file, WHERE)
    images = require_folder(root / "train2014", WHERE)
    present = {entry.name for entry in list_folder(images)}
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in field_of(table, "annotations", list, file):
        annotations.setdefault(field_of(annotation, "image_id", int, file), []).append(annotation)
    samples: list[Sample] = []
    problems: list[Problem] = []
    truths: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {}
    for record in field_of(table, "images", list, file):
        number = field_of(record, "id", int, file)
        picture = safe_name(field_of(record, "file_name", str, file), file)
        if picture not in present:
            problems.append(Problem(images / picture, "the image is missing"))
            continue
        if len(annotations.get(number, ())) != 1:
            found = len(annotations.get(number, ()))
            problems.append(Problem(file, f"sentence {number} must have one annotation, it has {found}"))
            continue
        size = (field_of(record, "height", int, file), field_of(record, "width", int, file))
        if not all(0 < side <= MAX_SIDE for side in size):
            problems.append(Problem(file, f"sentence {number}: an image of {size[0]}x{size[1]} pixels"))
            continue
        key = str(number)
        truths[key] = (annotations[number][0], size)
        text = normalise_text(field_of(record, "caption", str, file), file)
        video = VideoEntry(id=key, names=(Path(picture).stem,), frames=(images / picture,))
        samples.append(Sample(video=video, id=key, text=text, objects=("1",), scored=(0,)))
    if len(truths) < len(samples):
        problems.append(Problem(file, "two sentences have one id"))
    counts = {"images": len({s.video.frames for s in samples}), "samples": len(samples)}
    return checked_benchmark(
        Benchmark(
            name=NAME, split=split, root=root, protocol="answers", samples=tuple(samples),
            truth=partial(truth, file, truths), counts=counts, problems=tuple(problems),
        ),
        skip_bad,
    )  # fmt: skip


def truth(
    file: Path, truths: dict[str, tuple[dict[str, Any], tuple[int, int]]], video: VideoEntry, index: int
) -> FrameTruth:
    """The one object of a sentence, as object 1; polygons are filled as COCO's own tool fills them."""
    annotation, size = truths[video.id]
    shape = annotation.get("segmentation")
    name = f"{file}: sentence {video.id}"
    mask = polygon_mask(shape, size, name) if isinstance(shape, list) else checked_mask(shape, size, name)
    return FrameTruth(size, {"1": mask})


def write_fixture(out: Path) -> None:
    """Three images of two sentences each, in every set and split; one mask as polygons, one as RLE."""
    images, annotations = [], []
    for number, video in enumerate(tiny_videos()):
        name = f"COCO_train2014_{number:012d}"
        (out / "train2014").mkdir(parents=True, exist_ok=True)
        Image.fromarray(video.frames[0]).save(out / "train2014" / f"{name}.jpg", quality=95)
        for i, words in enumerate(WORDS):
            mask = video.ids[0] == i + 1
            y, x = np.nonzero(mask)
            left, top, right, bottom = (int(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1))
            rle = encode_rle(mask)
            shape: Any = [[left, top, right, top, right, bottom, left, bottom]]
            if i == 1:
                shape = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
            key = 2 * number + i
            images.append(
                {"id": key, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH, "caption": words,
                 "dataset_name": "refcoco", "original_id": number}
            )  # fmt: skip
            annotations.append(
                {"id": key, "image_id": key, "category_id": 1, "iscrowd": 0, "segmentation": shape,
                 "bbox": [left, top, right - left, bottom - top], "area": int(mask.sum())}
            )  # fmt: skip
    for split in SPLITS:
        (out / f"instances_{split}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
