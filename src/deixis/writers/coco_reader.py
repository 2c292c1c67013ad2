"""Tracks out of COCO and YouTube-VIS JSON, of any tool, so that words can choose among them.

COCO: an image a frame, and an annotation for each object in it. YouTube-VIS: a video, and an annotation for each object
with a mask a frame. Masks come as polygons, as runs or as compressed runs (RLE), and are kept as compressed runs.
T frames, H W pixels of a frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from deixis.files import natural
from deixis.types import DeixisError, Expression, MaskTrack, Rle, RleMasks, Size, reason_of

MOST_READ = 50_000_000  # of a frame; what a Video takes
ORDER = ("frame", "frame_index", "frame_id")  # keys of an image that state its place in a video, by tool
OBJECT = ("track_id", "instance_id")  # keys that join the annotations of one object, of an annotation or its attributes


@dataclass(frozen=True, kw_only=True)
class LabelledVideo:
    """The frames of the video that is read: their size, names and times."""

    size: Size
    names: Sequence[str]
    seconds: Sequence[float]


def read_coco(path: str | Path, video: int | str | None = None) -> list[MaskTrack]:
    """Read the tracks of one video from a COCO or YouTube-VIS JSON, of any tool.

    A COCO JSON is read as a video whose frames are its images, in the order of their frame numbers, or of their file
    names where they have none. Annotations with the same `track_id` are one object; without it, every annotation of a
    single image is an object of its own.

    Args:
        path: The file.
        video: Which one, where there are several: its `id`, `name` or the folder of its frames; or the `file_name` or
            `id` of one image of a COCO JSON. Default: the only one.

    Returns:
        A track an object. Its expression is the name of its category, and its presence the highest `score` of its
        annotations, 1 where there is none.

    Raises:
        DeixisError: For a file that cannot be read or is anything else, a video that is not in it or is not the only
            one, images that nothing joins, and masks that do not fit their frames.

    Example:
        >>> import deixis
        >>> from deixis.writers import Output, read_coco, write
        >>> video = deixis.Video("film.mp4")
        >>> with Output("labels") as output:
        ...     write(output, video, deixis.segment(video, "the red square"), ["coco"], model={"name": "light"})
        >>> tracks = read_coco("labels/coco/youtube_vis.json")
        >>> len(tracks), len(tracks[0])
        (1, 12)
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise DeixisError(f"{path} holds a {type(found).__name__}; expected videos or images beside annotations")
        categories = {category["id"]: str(category["name"]) for category in found["categories"]}
        of_videos = any("file_names" in entry for entry in found.get("videos", ()))
        read = _followed if of_videos or "images" not in found else _joined
        return read(found, categories, video, str(path))
    except OSError as error:
        raise DeixisError(f"{path} cannot be read: {reason_of(error)}") from error
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError, RecursionError) as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(f"{path} is no COCO or YouTube-VIS JSON that can be read ({error!r})") from error


# ---- YouTube-VIS


def _followed(found: Any, categories: Mapping[Any, str], wanted: int | str | None, path: str) -> list[MaskTrack]:
    videos = {entry["id"]: entry for entry in found["videos"]}
    folders = {key: str(Path(entry["file_names"][0]).parent) for key, entry in videos.items() if entry["file_names"]}
    entry = videos[_chosen({key: (e.get("name"), folders.get(key)) for key, e in videos.items()}, wanted, path)]
    names = [str(name) for name in entry["file_names"]]
    frames = _frames(entry, names, [float(i) for i in range(len(names))], path)
    tracks = []
    for item in found["annotations"]:
        if item["video_id"] != entry["id"]:
            continue
        masks, place = item["segmentations"], f"{path}: annotation {item['id']}"
        if len(masks) != len(names):
            raise DeixisError(f"{place} has {len(masks)} masks, its video has {len(names)} frames")
        rles = [
            _rle(mask, frames.size, f"{place}, frame {i}") if mask else _empty(frames.size)
            for i, mask in enumerate(masks)
        ]
        shown = coco.area(rles) > 0
        tracks.append(_track(categories[item["category_id"]], item["id"], rles, shown * _score(item), frames))
    return tracks


# ---- COCO


def _joined(found: Any, categories: Mapping[Any, str], wanted: int | str | None, path: str) -> list[MaskTrack]:
    images = _images(found, wanted, path)
    if len({(image["height"], image["width"]) for image in images}) > 1:
        raise DeixisError(f"{path}: its images are of several sizes and no video; name one of them with video=")
    seconds = [float(image.get("seconds", i)) for i, image in enumerate(images)]
    frames = _frames(images[0], [str(image["file_name"]) for image in images], seconds, path)
    places = {image["id"]: i for i, image in enumerate(images)}
    objects: dict[tuple[str, Any], list[Any]] = {}
    for item in found["annotations"]:
        if item["image_id"] in places:
            objects.setdefault(_object_of(item, len(images), path), []).append(item)
    tracks = []
    for (_, key), items in objects.items():
        parts: list[list[Rle]] = [[] for _ in images]
        scores = np.zeros(len(images))
        for item in items:
            at, place = places[item["image_id"]], f"{path}: annotation {item['id']}"
            if not item.get("segmentation"):
                raise DeixisError(f"{place} has no segmentation; a box alone is no mask")
            parts[at].append(_rle(item["segmentation"], frames.size, place))
            scores[at] = max(scores[at], _score(item))
        rles = [coco.merge(several) if several else _empty(frames.size) for several in parts]
        tracks.append(_track(categories[items[0]["category_id"]], key, rles, scores, frames))
    return tracks


def _images(found: Any, wanted: int | str | None, path: str) -> list[Mapping[str, Any]]:
    """The images that are the frames of the video, in order; or the one that was named."""
    if wanted is not None:
        for key in ("file_name", "id"):
            for image in found["images"]:
                if image[key] == wanted and not (key == "id" and "video_id" in image):
                    return [image]
    videos = {entry["id"]: entry.get("name") for entry in found.get("videos", ())}
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for image in found["images"]:
        groups.setdefault(image.get("video_id", str(Path(image["file_name"]).parent)), []).append(image)
    names = {key: (videos.get(key), str(Path(group[0]["file_name"]).parent)) for key, group in groups.items()}
    images = groups[_chosen(names, wanted, path)]
    number = next((key for key in ORDER if all(key in image for image in images)), None)
    return sorted(images, key=lambda i: natural(i["file_name"]) if number is None else i[number])


def _object_of(item: Mapping[str, Any], images: int, path: str) -> tuple[str, Any]:
    """What all annotations of one object have in common."""
    for facts in (item, item.get("attributes") or {}):
        for key in OBJECT:
            if facts.get(key) is not None:
                return key, facts[key]
    if images == 1:
        return "id", item["id"]
    raise DeixisError(
        f"{path}: annotation {item['id']} has no track_id, and nothing else joins the objects of {images} images; "
        "name one image with video="
    )


# ---- both


def _chosen(known: Mapping[Any, Iterable[Any]], wanted: int | str | None, path: str) -> Any:
    """The key of the wanted entry. known: key -> what else it may be called."""
    labels = [str(next((name for name in names if name), key)) for key, names in known.items()]
    listed = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
    if wanted is None:
        if len(known) == 1:
            return next(iter(known))
        raise DeixisError(f"{path} holds {len(known)} videos" + (f"; name one with video=: {listed}" if known else ""))
    for key, names in known.items():
        if wanted == key or wanted in names:
            return key
    raise DeixisError(f"{path} has no video {wanted!r}; it has {listed}")


def _frames(entry: Mapping[str, Any], files: Sequence[str], seconds: Sequence[float], path: str) -> LabelledVideo:
    height, width = int(entry["height"]), int(entry["width"])
    if min(height, width) < 1 or height * width > MOST_READ:
        raise DeixisError(f"{path}: frames of {height} x {width} pixels; at most {MOST_READ:,} can be read")
    return LabelledVideo(size=(height, width), names=[Path(name).stem for name in files], seconds=seconds)


def _track(name: str, key: Any, rles: Sequence[Rle], scores: np.ndarray, frames: LabelledVideo) -> MaskTrack:
    masks, most = RleMasks(rles, frames.size), float(scores.max(initial=0))
    return MaskTrack(Expression(name, str(key)), masks, scores.astype(np.float32), most, frames.names, frames.seconds)


def _score(item: Mapping[str, Any]) -> float:
    score = item.get("score")
    return 1.0 if score is None else float(np.clip(float(score), 0, 1))


def _empty(size: Size) -> Rle:
    return _from_runs([size[0] * size[1]], size)


def _from_runs(runs: Sequence[int], size: Size) -> Rle:
    return coco.frPyObjects({"size": list(size), "counts": list(runs)}, *size)


def _rle(mask: Any, size: Size, place: str) -> Rle:
    """A mask as compressed runs. place: what an error begins with."""
    if isinstance(mask, list):
        return coco.merge(coco.frPyObjects([_polygon(points, size, place) for points in mask], *size))
    if tuple(mask["size"]) != size:
        raise DeixisError(f"{place}: a mask of {tuple(mask['size'])}, the frames are of {size}")
    counts = mask["counts"]
    runs = counts if isinstance(counts, list) else unpacked(counts)
    if any(not isinstance(run, int) or run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise DeixisError(f"{place}: its runs do not sum to the {size[0] * size[1]} pixels of a frame")
    return _from_runs(runs, size)


def _polygon(points: Sequence[Any], size: Size, place: str) -> list[float]:
    """x and y in turn. What lies a little outside of the frame is cut off; far outside is another frame's."""
    numbers = [float(value) for value in points]
    if len(numbers) < 6 or len(numbers) % 2:
        raise DeixisError(f"{place}: a polygon of {len(numbers)} numbers; expected x and y of three points or more")
    for value, side in zip(numbers, (size[1], size[0]) * (len(numbers) // 2), strict=True):
        if not math.isfinite(value) or not -side <= value <= 2 * side:
            raise DeixisError(f"{place}: a polygon that goes to {value:g}, the frames are of {size}")
    return numbers


def unpacked(counts: str) -> list[int]:
    """The runs of COCO's compressed counts; [-1] where they are damaged.

    Five bits a character from "0" on, low ones first. Its sixth bit says that the number goes on, the fifth of its last
    character that it is negative. From the fourth on, a number is what is added to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("ascii"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [-1] if shift else runs
