"""A folder like shared/data in miniature, written by script: pictures, drawings and videos with exact masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

H, W = 96, 160
COLOURS = {
    "car": (200, 30, 30),
    "dog": (120, 75, 40),
    "cup": (40, 80, 210),
    "boat": (240, 240, 240),
    "cat": (20, 20, 20),
}
ABSENT_VIDEO, TRAIN_VIDEO = "lucia", "bear"


def write_pictures(root: Path) -> Path:
    """Write coco_small (24 pictures), fluent_emoji3d (24 drawings) and davis_train (2 videos) under root."""
    rng = np.random.default_rng(0)
    _coco(root / "coco_small", rng)
    _drawings(root / "fluent_emoji3d")
    _videos(root / "davis_train", rng)
    return root


def _coco(folder: Path, rng: np.random.Generator) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    entries = []
    for number in range(24):
        frame = np.full((H, W, 3), 150, np.uint8) + rng.integers(0, 9, (H, W, 1), dtype=np.uint8)
        ids = np.zeros((H, W), np.uint8)
        instances = []
        for k, left in enumerate((10, 60, 112)[: 2 + number % 2]):
            name = list(COLOURS)[int(rng.integers(len(COLOURS)))]
            top = int(rng.integers(20, 40))
            box = (left, top, 36, 40)
            frame[top : top + 40, left : left + 36] = COLOURS[name]
            ids[top : top + 40, left : left + 36] = k + 1
            instances.append({"id": k + 1, "class": name, "box": box, "area": 1440, "kind": "instance"})
        stem = f"{number:012d}"
        cv2.imwrite(str(folder / "images" / f"{stem}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(folder / "masks" / f"{stem}.png"), ids)
        entries.append(
            {
                "image": f"images/{stem}.png",
                "mask": f"masks/{stem}.png",
                "width": W,
                "height": H,
                "instances": instances,
            }
        )
    (folder / "index.json").write_text(json.dumps({"meta": {}, "images": entries}))


def _drawings(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    names = ["rocket", "banana", "guitar", "tiger", "bus", "key", "owl", "crab"]
    entries = []
    for number in range(24):
        image = np.zeros((64, 64, 4), np.uint8)
        cv2.circle(image, (32, 32), 26, (40 + 7 * number, 200 - 6 * number, 90, 255), -1)
        path = f"images/{number:03d}.webp"
        cv2.imwrite(str(folder / path), image)
        entries.append({"image": path, "class": names[number % 8], "width": 64, "height": 64, "box": [6, 6, 53, 53]})
    (folder / "index.json").write_text(json.dumps({"meta": {}, "images": entries}))


def _videos(folder: Path, rng: np.random.Generator) -> None:
    entries = {}
    for name, kind in ((TRAIN_VIDEO, "bear"), (ABSENT_VIDEO, "person")):
        (folder / "JPEGImages" / name).mkdir(parents=True)
        (folder / "Annotations" / name).mkdir(parents=True)
        background = rng.integers(90, 120, (H, W, 3), dtype=np.uint8)
        for i in range(8):
            frame, mask = background.copy(), np.zeros((H, W), np.uint8)
            mask[30:70, 20 + 8 * i : 60 + 8 * i] = 255
            frame[mask > 0] = (60, 90, 130)
            cv2.imwrite(str(folder / "JPEGImages" / name / f"{i:05d}.png"), frame)
            cv2.imwrite(str(folder / "Annotations" / name / f"{i:05d}.png"), mask)
        entries[name] = {
            "class": kind,
            "expressions": [f"a big {kind}", f"a {kind} walking to the right", f"the {kind}", kind],
        }
    (folder / "expressions.json").write_text(json.dumps(entries))
