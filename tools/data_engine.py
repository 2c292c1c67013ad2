"""Label every training picture and film with all its objects: masks, names with confidences, surroundings.

    python tools/data_engine.py --data ../shared/data --weights ../shared/weights -o OBJECTS [--only davis_train]

Resumable: a picture whose file is there is not done again. Held-out pictures are never touched. One JSON a picture
(``OUT/SET/STEM.json``):

    {"set", "image", "size": [H, W], "surroundings": {"classes": RLE-free base64 PNG of 128 x 128 classes, "names"},
     "objects": [{"rle": COCO RLE, "box": [x, y, w, h], "source": "truth" or "teacher", "id": value in the mask or None,
                  "kind", "class": the true name or None, "score": of the box, "overlap", "stability": of the mask,
                  "names": {"labeler": [[name, p], ...], "nanodet": [[name, p], ...]}}]}

True masks win: a teacher's mask that repeats one, is a part of one, or joins several is dropped. A DAVIS film gets one
JSON a frame and a number ``track`` for each object, the same along the film.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from sam import BoxSegmenter
from scipy.optimize import linear_sum_assignment
from teachers import Labeler, Localizer, NanoDet, Surroundings, box_overlap

from deixis.synthetic.cutouts import HELD_OUT_VIDEOS, VIEW_SETS, held_out

SETS = (*VIEW_SETS, "coco_minicoco")
LEAST_BOX = 0.2  # score of a teacher's box
LEAST_OVERLAP, LEAST_STABILITY = 0.72, 0.8  # of a mask, as MobileSAM predicts them
LEAST_AREA, MOST_AREA = 0.002, 0.85  # share of the picture


@dataclass
class Found:
    """An object of a picture: its mask (H, W) bool and what is known of it."""

    mask: np.ndarray
    facts: dict[str, Any]


class Engine:
    """All teachers together.

    Args:
        weights: Folder with ``mobile_sam.fp16.safetensors`` and ``teachers/``.
        side: Long side of MobileSAM's input, pixels.
    """

    def __init__(self, weights: Path, side: int) -> None:
        self.segmenter = BoxSegmenter(weights / "mobile_sam.fp16.safetensors", side)
        folder = weights / "teachers"
        self.nanodet, self.localizer = NanoDet(folder), Localizer(folder)
        self.labeler, self.surroundings = Labeler(folder), Surroundings(folder)

    def objects(self, rgb: np.ndarray, truth: list[Found]) -> list[Found]:
        """The true objects and those that the teachers add, all with names."""
        boxes, scores, names = self.boxes(rgb)
        true_boxes = [box_of(t.mask) for t in truth]
        for found, box in zip(truth, true_boxes, strict=True):
            same = [i for i in range(len(boxes)) if box_overlap(box, boxes[i]) > 0.6 and names[i]]
            found.facts["names"] = {"nanodet": names[max(same, key=lambda i: scores[i])] if same else []}
        new = [i for i in range(len(boxes)) if all(box_overlap(b, boxes[i]) < 0.8 for b in true_boxes)]
        added: list[Found] = []
        if new:
            masks, quality = self.segmenter(rgb, boxes[new])
            for k, i in enumerate(new):
                facts = {"source": "teacher", "id": None, "kind": None, "class": None, "score": float(scores[i]),
                         "overlap": float(quality.overlap[k]), "stability": float(quality.stability[k]),
                         "names": {"nanodet": names[i]}}  # fmt: skip
                if facts["overlap"] >= LEAST_OVERLAP and facts["stability"] >= LEAST_STABILITY:
                    added.append(Found(masks[k], facts))
        kept = truth + without_repeats(truth, added)
        for found in kept:
            p = self.labeler(rgb, box_of(found.mask))
            top = [i for i in np.argsort(-p)[:12] if p[i] >= 0.05]
            found.facts["names"]["labeler"] = [[self.labeler.names[i], round(float(p[i]), 3)] for i in top]
        return kept

    def boxes(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[list]]:
        """Boxes of both detectors without repeats, their scores, and NanoDet's names where it found them."""
        boxes, p = self.nanodet(rgb, least=LEAST_BOX)
        scores = list(p.max(1)) if len(p) else []
        names = [[[self.nanodet.names[j], round(float(row[j]), 3)] for j in np.argsort(-row)[:3]] for row in p]
        both = list(boxes)
        for box, score in zip(*self.localizer(rgb), strict=True):
            if score >= LEAST_BOX and all(box_overlap(box, other) < 0.7 for other in both):
                both.append(box)
                scores.append(score)
                names.append([])
        return np.array(both).reshape(-1, 4), np.array(scores), names


def without_repeats(truth: list[Found], added: list[Found]) -> list[Found]:
    """The teachers' masks that show something new, best first."""
    kept: list[Found] = []
    for found in sorted(added, key=lambda f: -f.facts["score"] * f.facts["overlap"]):
        area = found.mask.sum()
        if not LEAST_AREA <= found.mask.mean() <= MOST_AREA:
            continue
        inside = [(t.mask & found.mask).sum() / area for t in truth]
        covers = [(t.mask & found.mask).sum() / max(1, t.mask.sum()) for t in truth]
        if sum(inside) > 0.6 or any(c > 0.5 and i > 0.3 for c, i in zip(covers, inside, strict=True)):
            continue
        again = False
        for other in kept:
            both = (other.mask & found.mask).sum()
            part = both / min(area, other.mask.sum())
            named = bool(found.facts["names"]["nanodet"]) and bool(other.facts["names"]["nanodet"])
            again |= both / (area + other.mask.sum() - both) > 0.5 or (part > 0.8 and not named)
        if not again:
            kept.append(found)
    return kept


def box_of(mask: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1 of a mask."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float)


def written(found: Found) -> dict[str, Any]:
    x0, y0, x1, y1 = (int(v) for v in box_of(found.mask))
    rle = coco_mask.encode(np.asfortranarray(found.mask.astype(np.uint8)))
    rle["counts"] = rle["counts"].decode()
    return {"rle": rle, "box": [x0, y0, x1 - x0, y1 - y0], **found.facts}


def picture_file(engine: Engine, set_name: str, image: str, rgb: np.ndarray, objects: list[Found]) -> dict[str, Any]:
    classes = cv2.imencode(".png", engine.surroundings(rgb))[1].tobytes()
    return {"set": set_name, "image": image, "size": list(rgb.shape[:2]),
            "surroundings": base64.b64encode(classes).decode(), "objects": [written(f) for f in objects]}  # fmt: skip


def save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content), encoding="utf-8")
    os.replace(beside, path)


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None, path
    return np.ascontiguousarray(image[..., ::-1])


def true_objects(labels: np.ndarray, instances: list[dict[str, Any]]) -> list[Found]:
    found = []
    for i in instances:
        mask = labels == i["id"]
        if mask.sum() >= 40:
            facts = {"source": "truth", "id": i["id"], "kind": i["kind"], "class": i["class"], "score": 1.0,
                     "overlap": 1.0, "stability": 1.0}  # fmt: skip
            found.append(Found(mask, facts))
    return found


def label_pictures(engine: Engine, data: Path, out: Path, set_name: str) -> Iterator[str]:
    folder = data / set_name
    for entry in sorted(json.loads((folder / "index.json").read_text())["images"], key=lambda e: e["image"]):
        path = out / set_name / (Path(entry["image"]).stem + ".json")
        if held_out(set_name, entry["image"]) or path.exists():
            continue
        rgb = read(folder / entry["image"])
        labels = cv2.imread(str(folder / entry["mask"]), cv2.IMREAD_UNCHANGED)
        objects = engine.objects(rgb, true_objects(labels, entry["instances"]))
        save(path, picture_file(engine, set_name, entry["image"], rgb, objects))
        yield f"{set_name}/{path.stem}: {len(objects)} objects"


def label_films(engine: Engine, data: Path, out: Path) -> Iterator[str]:
    """DAVIS: the film's own object is track 1; what the teachers find in a frame goes on the track it overlaps most."""
    folder = data / "davis_train"
    told = json.loads((folder / "expressions.json").read_text())
    for name in sorted(told):
        frames = sorted((folder / "JPEGImages" / name).glob("*.jpg")) or sorted(folder.glob(f"**/{name}/*.jpg"))
        masks = [next(iter(folder.glob(f"**/{name}/{f.stem}.png"))) for f in frames]
        done = out / "davis_train" / name / f"{frames[-1].stem}.json"
        if name in HELD_OUT_VIDEOS or done.exists():
            continue
        tracks: dict[int, np.ndarray] = {}
        for frame, mask in zip(frames, masks, strict=True):
            rgb, label = read(frame), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED) > 0
            facts = {"source": "truth", "id": 1, "kind": "film", "class": told[name].get("class"), "score": 1.0,
                     "overlap": 1.0, "stability": 1.0, "track": 1}  # fmt: skip
            truth = [Found(label, facts)] if label.sum() >= 40 else []
            objects = engine.objects(rgb, truth)
            follow(tracks, objects[len(truth) :])
            path = out / "davis_train" / name / f"{frame.stem}.json"
            save(path, picture_file(engine, "davis_train", f"{name}/{frame.stem}", rgb, objects))
        yield f"davis_train/{name}: {len(frames)} frames, {len(tracks) + 1} tracks"


def follow(tracks: dict[int, np.ndarray], objects: list[Found]) -> None:
    """Give each object the number of the track whose last mask it overlaps most (IoU over .3), or a new one."""
    numbers = list(tracks)
    overlap = np.zeros((len(objects), len(numbers)))
    for i, found in enumerate(objects):
        for j, number in enumerate(numbers):
            both = (found.mask & tracks[number]).sum()
            overlap[i, j] = both / (found.mask.sum() + tracks[number].sum() - both)
    pairs = dict(zip(*linear_sum_assignment(-overlap), strict=True)) if overlap.size else {}
    for i, found in enumerate(objects):
        old = i in pairs and overlap[i, pairs[i]] > 0.3
        number = numbers[pairs[i]] if old else max([1, *tracks]) + 1
        tracks[number] = found.mask
        found.facts["track"] = number


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("-o", "--out", type=Path, required=True)
    options.add_argument("--side", type=int, default=768, help="long side of MobileSAM's input, pixels")
    options.add_argument("--only", default=",".join((*SETS, "davis_train")))
    asked = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    engine = Engine(asked.weights, asked.side)
    began, done = time.time(), 0
    for name in asked.only.split(","):
        steps = label_films(engine, asked.data, asked.out) if name == "davis_train" else label_pictures(
            engine, asked.data, asked.out, name)  # fmt: skip
        for line in steps:
            done += 1
            if done % 50 == 0 or name == "davis_train":
                print(f"{line}; {(time.time() - began) / done:.2f} s each", flush=True)


if __name__ == "__main__":
    main()
