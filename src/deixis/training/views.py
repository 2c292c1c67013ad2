"""Remembered views of pictures: what the frozen encoders gave, and the objects that the data engine found.

Written by ``tools/remember_views.py`` (features) and ``tools/data_engine.py`` (objects), read by the stages of light.
A view is a picture, or a crop of it, at the size the model works at: one safetensors file with the five maps of
``FrameFeatures`` in fp16, its pixels and the affine map from the picture to it. N objects; H W pixels of the view.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from deixis.synthetic.cutouts import split_of
from deixis.systems.light import FrameFeatures
from deixis.types import DeixisError
from deixis.video import normalise_pixels

MAPS = ("fine", "middle", "deep", "semantic16", "semantic32")
LEAST_AREA = 0.0008  # share of the view below which an object is left out (our choice)


@dataclass(frozen=True, eq=False)
class View:
    """features: of one frame (N = 1).  rgb: (H, W, 3) uint8.  masks: (N, H, W) uint8 0..255, how much of a pixel.
    unknown: (H, W) bool, unlabelled.  weights: (N,) how sure each object is.  objects: what the engine wrote of each.
    shown: (N,) share of each object that the view shows.  mirrored: left and right are exchanged.
    """

    features: FrameFeatures
    rgb: np.ndarray
    masks: np.ndarray
    unknown: np.ndarray
    weights: np.ndarray
    objects: tuple[dict, ...]
    name: str
    shown: np.ndarray
    mirrored: bool

    def frames(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        """(1, 3, H, W), normalised."""
        return normalise_pixels(torch.from_numpy(self.rgb).permute(2, 0, 1)[None], mean, std)


@dataclass(frozen=True)
class Part:
    """A picture in a view. affine: (2, 3) from the picture to the view.  rect: top, left, bottom, right in the view."""

    set_name: str
    image: str
    affine: np.ndarray
    rect: tuple[int, int, int, int]


def save_view(path: Path, maps: FrameFeatures, rgb: np.ndarray, parts: Sequence[Part]) -> None:
    """Write one view in one step. maps: of one frame.  rgb: (H, W, 3) uint8."""
    stored = {name: getattr(maps, name)[0].half().contiguous() for name in MAPS}
    stored |= {"rgb": torch.from_numpy(np.ascontiguousarray(rgb)), "affine": torch.tensor(parts[0].affine)}
    facts = [[p.set_name, p.image, np.asarray(p.affine).tolist(), list(p.rect)] for p in parts]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    save_file(stored, beside, metadata={"deixis": json.dumps(facts)})
    os.replace(beside, path)


class Views:
    """All views of one part of the data that have features and objects, in a fixed order.

    Args:
        features: Folder of ``VIEW/SET/STEM.safetensors``; the set "mosaic" holds several training pictures a view.
        objects: Folder of ``SET/STEM.json``.
        data: Folder of the sets, for the unlabelled regions of their masks.
        part: "train" or "development".
        sets: Names of the sets; all by default.
        fold: 0 or 1: only this half of the pictures (``fold_of``), and no mosaics; None: all.
    """

    def __init__(
        self, features: Path, objects: Path, data: Path, part: str = "train", sets: tuple[str, ...] | None = None,
        fold: int | None = None,
    ) -> None:  # fmt: skip
        self.features, self.objects, self.data = features, objects, data
        self.items: list[Path] = []
        for path in sorted(features.glob("*/*/*.safetensors")):
            set_name = path.parent.name
            if sets is not None and set_name not in sets:
                continue
            if fold is not None and (set_name == "mosaic" or fold_of(path.stem) != fold):
                continue
            if set_name == "mosaic":
                if part == "train":
                    self.items.append(path)
            elif split_of(set_name, f"images/{path.stem}.jpg") == part and self._facts(set_name, path.stem).exists():
                self.items.append(path)
        self.of_set: dict[str, list[int]] = defaultdict(list)  # numbers of a set's views
        for number, path in enumerate(self.items):
            self.of_set[path.parent.name].append(number)
        if not self.items:
            raise DeixisError(f"no view of the part {part!r} has both features in {features} and objects in {objects}")

    def __len__(self) -> int:
        return len(self.items)

    def _facts(self, set_name: str, stem: str) -> Path:
        return self.objects / set_name / f"{stem}.json"

    def __getitem__(self, index: int) -> View:
        path = self.items[index]
        with safe_open(path, "pt") as file:
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get("deixis", "null"))
        rgb = stored["rgb"].numpy()
        whole = (0, 0, *rgb.shape[:2])
        image = f"images/{path.stem}.jpg"
        parts = [Part(path.parent.name, image, stored["affine"].numpy(), whole)]
        if facts is not None:
            parts = [Part(s, i, np.array(affine), tuple(rect)) for s, i, affine, rect in facts]
        unknown = np.zeros(rgb.shape[:2], bool)
        rows: list[tuple[np.ndarray, float, dict, float]] = []
        for part in parts:
            rows += self._objects(part, unknown)
        masks = np.stack([r[0] for r in rows]) if rows else np.zeros((0, *rgb.shape[:2]), np.uint8)
        return View(
            FrameFeatures(**{name: stored[name][None].float() for name in MAPS}), rgb, masks, unknown,
            np.array([r[1] for r in rows], np.float32), tuple(r[2] for r in rows),
            f"{path.parent.name}/{path.stem}", np.array([r[3] for r in rows], np.float32),
            bool(parts[0].affine[0, 0] < 0),
        )  # fmt: skip

    def _objects(self, part: Part, unknown: np.ndarray) -> list[tuple[np.ndarray, float, dict, float]]:
        """(mask, weight, what the engine wrote, share shown) of a picture's objects; marks what is unlabelled."""
        size, (top, left, bottom, right) = unknown.shape, part.rect
        stem = Path(part.image).stem
        content = json.loads(self._facts(part.set_name, stem).read_text())
        scale = abs(np.linalg.det(part.affine[:, :2]))
        rows = []
        labelled = np.zeros(size, bool)
        for found in content["objects"]:
            mask = warp(coco_mask.decode(found["rle"]) * 255, part.affine, size)
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = mask[top:bottom, left:right]
            labelled |= inside > 19
            if inside.mean() / 255 >= LEAST_AREA:
                whole = max(1.0, scale * coco_mask.area(found["rle"]))
                weight = 1.0 if found["source"] == "truth" else 0.6
                rows.append((inside, weight, found, float(inside.sum() / 255 / whole)))
        here = np.zeros(size, bool)
        here[top:bottom, left:right] = True
        if not content.get("complete", True):  # other objects may be there without a label
            unknown |= here & ~labelled
        labels = cv2.imread(str(self.data / part.set_name / "masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        if labels is not None and (labels == 255).any():
            unknown |= here & (warp((labels == 255).astype(np.uint8) * 255, part.affine, size) > 127)
        return rows


def fold_of(name: str) -> int:
    """0 or 1: the half of the pictures that one belongs to, by its file's stem, which ends the names of views and clips
    ("coco_small/000000000192", "still:000000000192")."""
    return hashlib.sha1(re.split("[/:]", name)[-1].encode()).digest()[0] % 2


def warp(mask: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask of the picture (h, w) uint8 in the view (H, W)."""
    return cv2.warpAffine(mask, affine, (size[1], size[0]), flags=cv2.INTER_LINEAR)
