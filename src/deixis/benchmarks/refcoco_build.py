"""RefCOCO, RefCOCO+ and RefCOCOg from the files that people have: the refer toolkit's data folder.

It holds ``refs(unc).p``, ``refs(umd).p`` or ``refs(google).p`` beside ``instances.json``, and COCO's train2014 images.
The .p files are pickles, and a pickle can name any function to be called. These hold nothing but lists, dicts, texts
and numbers, so they are read by an unpickler that has no more: a file that wants to run code is refused.
"""

from __future__ import annotations

import json
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from deixis.benchmarks.fixtures import HEIGHT, WIDTH, WORDS, tiny_videos
from deixis.files import field_of, list_folder, parse_json, require_file, require_folder
from deixis.types import DeixisError, reason_of

SETS: dict[str, tuple[str, ...]] = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
}  # who split each set, the one that papers report first
SPLITS = {"train": "train", "val": "val", "test": "test", "testA": "testA", "testB": "testB"}
# below the folder of the download
TRAIN2014_PLACES = ("train2014", "images/train2014", "images/mscoco/images/train2014")
LARGEST = 2_000_000_000  # bytes of a .p file (our choice: the real ones have below 100 million)
WHERE = (
    "get refcoco, refcoco+ and refcocog from https://github.com/lichengunc/refer, and train2014 from"
    " https://cocodataset.org"
)


# What lists, dicts, texts and numbers are written with; all else of pickle is refused by its absence.
OPCODES = (
    "MARK STOP POP POP_MARK DUP PROTO FRAME NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT"
    " BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 LIST EMPTY_LIST APPEND"
    " APPENDS DICT EMPTY_DICT SETITEM SETITEMS TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE"
    " GET BINGET LONG_BINGET"
)


_CODES = [getattr(pickle, name)[0] for name in OPCODES.split()]
REFUSED = {ord(op.code): op.name for op in pickletools.opcodes if op.name not in OPCODES.split()}


class _PlainUnpickler(pickle._Unpickler):
    """Python's own unpickler, without the steps that find a name, call something, or make room that a file only
    claims to need."""

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in _CODES}  # noqa: RUF012  as in the class it extends

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")  # never reached: no step is left that calls this


def read_refs(path: Path) -> list[dict[str, Any]]:
    """The references of a ``refs(...).p`` file, written by Python 2 or 3.

    Args:
        path: The pickle.

    Returns:
        One dict a reference, as the refer toolkit keeps them.

    Raises:
        DeixisError: For a file that is missing or damaged, that wants to run code, or that holds something else.

    Example:
        >>> read_refs(Path("refcoco/refs(unc).p"))[0]["sentences"][0]["sent"]  # doctest: +SKIP
        'the lady with the blue shirt'
    """
    if require_file(path, WHERE).stat().st_size > LARGEST:
        raise DeixisError(f"{path} holds more than {LARGEST:,} bytes; a file of references holds below 100 million")
    try:
        with open(path, "rb") as file:
            table = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except KeyError as error:  # an opcode that is not in the table, or a memo that was never written
        if name := REFUSED.get(error.args[0]):
            raise DeixisError(
                f"{path} is a pickle that may run code (it holds {name}); nothing of it was run, use the original file"
            ) from error
        raise DeixisError(f"{path} is not a whole pickle; get it again") from error
    except (Exception, MemoryError) as error:  # a damaged pickle may fail in any way
        raise DeixisError(f"{path} is not a whole pickle ({type(error).__name__}: {error}); get it again") from error
    if not isinstance(table, list) or not all(isinstance(one, dict) for one in table):
        raise DeixisError(f"{path} must hold a list of references, it holds {type(table).__name__}")
    return table


def build_refcoco(source: Path, out: Path, images: Path | None = None) -> dict[str, int]:
    """Lay the download of the refer toolkit out as ``open_split`` reads it: a record for each sentence.

    Args:
        source: The folder with ``refcoco``, ``refcoco+`` and ``refcocog``, those that there are, each with its
            ``refs(...).p`` and ``instances.json``. Of several ``refs`` the one that papers report is taken: unc, umd.
        out: The folder to write to: ``instances_<set>_<split>.json`` and ``train2014``, a link to the images.
        images: COCO's ``train2014``; default: where the toolkit expects it below ``source``.

    Returns:
        The number of sentences of every file that was written.

    Raises:
        DeixisError: For what is missing or damaged, and for a pickle that wants to run code.

    Example:
        >>> build(Path("refer/data"), Path("data/refcoco"))["refcoco_val"]  # doctest: +SKIP
        10834
    """
    found = [name for name in SETS if (source / name).is_dir()]
    if not found:
        raise DeixisError(f"{source} holds none of {', '.join(SETS)}; {WHERE}")
    pictures = _pictures(source, images)
    counts: dict[str, int] = {}
    out.mkdir(parents=True, exist_ok=True)
    for name in found:
        refs = next((p for by in SETS[name] if (p := source / name / f"refs({by}).p").is_file()), None)
        if refs is None:
            raise DeixisError(f"{source / name} holds none of refs({'|'.join(SETS[name])}).p; {WHERE}")
        for split, table in _tables(name, refs, source / name / "instances.json").items():
            key = f"{name}_{split}"
            counts[key] = len(table["images"])
            half = out / f".instances_{key}.json.part"
            half.write_text(json.dumps(table), encoding="utf-8")
            half.replace(out / f"instances_{key}.json")
    link = out / "train2014"
    if not link.exists():
        try:
            link.symlink_to(pictures.absolute(), target_is_directory=True)
        except OSError as error:
            raise DeixisError(
                f"{link}: cannot be linked to {pictures} ({reason_of(error)}); copy the folder there"
            ) from error
    return counts


def _pictures(source: Path, images: Path | None) -> Path:
    if images is not None:
        return require_folder(images, WHERE)
    for place in TRAIN2014_PLACES:
        if (source / place).is_dir():
            return source / place
    raise DeixisError(f"{source} holds none of {', '.join(TRAIN2014_PLACES)}; name COCO's train2014 with --images")


def _tables(name: str, refs: Path, instances: Path) -> dict[str, dict[str, Any]]:
    """split -> what ``instances_<set>_<split>.json`` is to hold."""
    table = parse_json(require_file(instances, WHERE).read_bytes(), instances)
    images = {field_of(one, "id", int, instances): one for one in field_of(table, "images", list, instances)}
    annotations = {field_of(one, "id", int, instances): one for one in field_of(table, "annotations", list, instances)}
    made: dict[str, dict[str, Any]] = {}
    for ref in read_refs(refs):
        split = str(field_of(ref, "split", str, refs))
        if split not in SPLITS:
            raise DeixisError(f"{refs}: a reference of split {split!r:.40}, expected one of {', '.join(SPLITS)}")
        image = _known(images, ref, "image_id", refs, instances)
        annotation = _known(annotations, ref, "ann_id", refs, instances)
        size = (field_of(image, "height", int, instances), field_of(image, "width", int, instances))
        into = made.setdefault(split, {"images": [], "annotations": []})
        for sentence in field_of(ref, "sentences", list, refs):
            key = len(into["images"])
            into["images"].append(
                {"id": key, "file_name": field_of(image, "file_name", str, instances), "height": size[0],
                 "width": size[1], "caption": field_of(sentence, "sent", str, refs), "dataset_name": name,
                 "original_id": ref["image_id"]}
            )  # fmt: skip
            into["annotations"].append(
                {"id": key, "image_id": key, "category_id": annotation.get("category_id", 1), "iscrowd": 0,
                 "segmentation": _shape(annotation, size, instances), "bbox": annotation.get("bbox"),
                 "area": annotation.get("area"), "original_id": ref["ann_id"]}
            )  # fmt: skip
    return made


def _known(
    table: Mapping[int, dict[str, Any]], ref: dict[str, Any], key: str, refs: Path, file: Path
) -> dict[str, Any]:
    number = field_of(ref, key, int, refs)
    if number not in table:
        raise DeixisError(f"{refs}: a reference has {key} {number}, which {file} does not list; are they of one set?")
    return table[number]


def _shape(annotation: Mapping[str, Any], size: tuple[int, int], file: Path) -> Any:
    """Polygons as they are; an RLE whose counts are numbers, as COCO keeps crowds, with counts as text."""
    shape = annotation.get("segmentation")
    if not isinstance(shape, dict) or not isinstance(shape.get("counts"), list):
        return shape
    try:
        packed = coco.frPyObjects({"size": list(size), "counts": shape["counts"]}, *size)
    except Exception as error:
        raise DeixisError(f"{file}: annotation {annotation.get('id')} has an RLE that cannot be read") from error
    return {"size": packed["size"], "counts": packed["counts"].decode("ascii")}


# --- tiny copies of what people download ------------------------------------------------------------------------------


def write_download(out: Path) -> None:
    """A tiny copy of the refer toolkit's data folder: pickles, instances.json and images, three images a set."""
    (out / "images" / "mscoco" / "images" / "train2014").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, video in enumerate(tiny_videos()):
        picture = f"COCO_train2014_{number + 1:012d}.jpg"
        Image.fromarray(video.frames[0]).save(out / TRAIN2014_PLACES[2] / picture, quality=95)
        images.append({"id": number + 1, "file_name": picture, "height": HEIGHT, "width": WIDTH, "license": 1})
        for i in (1, 2):
            mask = video.ids[0] == i
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            top, bottom, left, right = (int(n) for n in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
            annotations.append(
                {"id": 10 * (number + 1) + i, "image_id": number + 1, "category_id": 1, "iscrowd": 0,
                 "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                 "bbox": [left, top, right - left, bottom - top], "area": int(mask.sum())}
            )  # fmt: skip
    splits = {"refcoco": ("train", "val", "testA"), "refcoco+": ("train", "val", "testB"),
              "refcocog": ("train", "val", "test")}  # fmt: skip
    for name, by in SETS.items():
        (out / name).mkdir(exist_ok=True)
        (out / name / "instances.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]})
        )
        refs = [_ref(number, i, split) for number, split in enumerate(splits[name], 1) for i in (1, 2)]
        for split_by in by:
            (out / name / f"refs({split_by}).p").write_bytes(_as_python_2(refs))


def _ref(number: int, i: int, split: str) -> dict[str, Any]:
    words = WORDS[i - 1]
    sentences = [
        {"tokens": said.split(), "raw": said.title(), "sent_id": 4 * number + 2 * i + j, "sent": said}
        for j, said in enumerate((words, f"{words}, here"))
    ]
    return {
        "sent_ids": [one["sent_id"] for one in sentences], "file_name": f"COCO_train2014_{number:012d}_{i}.jpg",
        "ann_id": 10 * number + i, "ref_id": 2 * number + i, "image_id": number, "split": split,
        "sentences": sentences, "category_id": 1,
    }  # fmt: skip


def _as_python_2(value: Any) -> bytes:
    """A pickle of protocol 0 as Python 2's: texts are ``str``, the opcode S."""

    def written(one: Any) -> bytes:
        if isinstance(one, str):
            return b"S" + repr(one).encode("ascii") + b"\n"
        if isinstance(one, int):
            return b"I%d\n" % one
        if isinstance(one, list):
            return b"(l" + b"".join(written(part) + b"a" for part in one)
        return b"(d" + b"".join(written(key) + written(part) + b"s" for key, part in one.items())

    return written(value) + b"."


def write_rearranged(out: Path) -> None:
    """A tiny copy in the layout that ReferFormer and SOC read: ``refcoco/instances_refcoco_train.json`` and so on."""
    write_download(out / "download")
    build_refcoco(out / "download", out / "flat")
    for file in sorted((out / "flat").glob("instances_*.json")):
        name = file.name.removeprefix("instances_").rpartition("_")[0]
        (out / name).mkdir(exist_ok=True)
        file.replace(out / name / file.name)
    (out / "train2014").mkdir(exist_ok=True)
    for entry in list_folder(out / "download" / TRAIN2014_PLACES[2]):
        Path(entry.path).replace(out / "train2014" / entry.name)
