"""Masks as COCO and YouTube-VIS JSON, for label tools: FiftyOne, CVAT, Datumaro, pycocotools.

``instances_default.json`` has an image a frame and an annotation for each object in it, ``youtube_vis.json`` a video
and an annotation for each object. A category is an expression. Pictures are not written: ``file_name`` is the frame's
own file for a folder, and for a film what ``ffmpeg -i FILM -fps_mode passthrough -start_number 0 %05d.jpg`` makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from pycocotools import mask as coco

from deixis.types import MaskTrack
from deixis.writers.format import Format
from deixis.writers.output import VideoSource

IMAGES, VIDEOS = "annotations/instances_default.json", "youtube_vis.json"  # as Datumaro and CVAT lay COCO out


def write_coco(folder: Path, film: VideoSource, tracks: Sequence[MaskTrack], *, model: Mapping[str, Any]) -> None:
    """``folder/annotations/instances_default.json`` and ``folder/youtube_vis.json``, item by item: a long film need
    not fit in memory.

    Args:
        folder: Made here.
        film: Whose frames they are.
        tracks: One a category, numbered from 1 in their order.
        model: Noted in ``info``.
    """
    (folder / IMAGES).parent.mkdir(parents=True)
    about = {
        "info": {"description": f"{film.path.name}, segmented by deixis", "version": "1.0", "model": dict(model)},
        "licenses": [{"id": 0, "name": "", "url": ""}],
        "categories": [
            {"id": number, "name": track.expression.text, "supercategory": "expression"}
            for number, track in enumerate(tracks, 1)
        ],
    }
    with _opened(folder / IMAGES) as file:
        _write(file, about, {"images": _images(film, tracks[0]), "annotations": _annotations(film, tracks)})
    with _opened(folder / VIDEOS) as file:
        _write(file, about, {"videos": iter([_video(film, tracks[0])]), "annotations": _followed(film, tracks)})


def _opened(path: Path) -> TextIO:
    return open(path, "w", encoding="utf-8", errors="backslashreplace")


def _write(file: TextIO, about: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    file.write(json.dumps(about, ensure_ascii=False)[:-1])
    for name, items in lists.items():
        file.write(f',\n"{name}": [')
        for number, item in enumerate(items):
            file.write((",\n" if number else "\n") + json.dumps(item, ensure_ascii=False))
        file.write("]")
    file.write("}\n")


def _images(film: VideoSource, track: MaskTrack) -> Iterator[dict[str, Any]]:
    height, width = film.source_size
    numbers = film.numbers(track.names)
    for index, name in enumerate(track.names):
        yield {
            "id": index + 1, "file_name": film.file_name(name), "height": height, "width": width, "license": 0,
            "coco_url": "", "flickr_url": "", "date_captured": "",
            "frame": numbers[index], "seconds": round(track.times[index], 6),
        }  # fmt: skip


def _annotations(film: VideoSource, tracks: Sequence[MaskTrack]) -> Iterator[dict[str, Any]]:
    number = 0
    for category, track in enumerate(tracks, 1):
        for index in range(len(track)):
            rle = track.masks.rles[index]
            if not (area := int(coco.area(rle))):
                continue
            number += 1
            yield {
                "id": number, "image_id": index + 1, "category_id": category, "segmentation": _plain(rle),
                "area": area, "bbox": coco.toBbox(rle).tolist(), "iscrowd": 0,
                "score": round(float(track.scores[index]), 4),
                "attributes": {"track_id": category, "occluded": False},
            }  # fmt: skip


def _video(film: VideoSource, track: MaskTrack) -> dict[str, Any]:
    height, width = film.source_size
    return {
        "id": 1, "name": film.path.name, "height": height, "width": width, "length": len(track), "license": 0,
        "file_names": [film.file_name(name) for name in track.names], "coco_url": "", "flickr_url": "",
        "date_captured": "",
    }  # fmt: skip


def _followed(film: VideoSource, tracks: Sequence[MaskTrack]) -> Iterator[dict[str, Any]]:
    height, width = film.source_size
    number = 0
    for category, track in enumerate(tracks, 1):
        areas = [int(area) or None for area in track.masks.areas()]
        if not any(areas):
            continue
        number += 1
        held = [track.masks.rles[index] if area else None for index, area in enumerate(areas)]
        yield {
            "id": number, "video_id": 1, "category_id": category, "iscrowd": 0, "height": height, "width": width,
            "length": len(track), "score": round(track.presence, 4), "areas": areas,
            "bboxes": [None if rle is None else coco.toBbox(rle).tolist() for rle in held],
            "segmentations": [None if rle is None else _plain(rle) for rle in held],
        }  # fmt: skip


def _plain(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


FORMAT = Format(
    item="coco", choice="COCO and YouTube-VIS", link="COCO, YouTube-VIS",
    write=lambda path, film, tracks, model, complete: write_coco(path, film, tracks, model=model),
)  # fmt: skip
