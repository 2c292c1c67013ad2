"""Views of pictures: a picture, or a crop of it, at the size the model works at, with the objects of the data engine.

``Views`` are remembered: ``tools/remember_views.py`` wrote what the frozen encoders gave, one safetensors file a view
with the five maps of ``FrameFeatures`` in fp16, its pixels and the affine map from the picture to it. ``PictureViews``
are made of the pictures at each use, for encoders that train. Both read the objects that
``tools/data_engine.py`` wrote. N objects; H W pixels of the view.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from deixis.synthetic.cutouts import read_rgb, split_of
from deixis.systems.light import FrameFeatures
from deixis.types import DeixisError
from deixis.video import normalise_pixels

MAPS = ("fine", "middle", "deep", "semantic16", "semantic32")
LEAST_AREA = 0.0008  # share of the view below which an object is left out (our choice)


@dataclass(frozen=True, eq=False)
class View:
    """features: of one frame (N = 1); None: they are yet to be encoded.  rgb: (H, W, 3) uint8.
    masks: (N, H, W) uint8 0..255, how much of a pixel.
    unknown: (H, W) bool, unlabelled.  weights: (N,) how sure each object is.  objects: what the engine wrote of each.
    shown: (N,) share of each object that the view shows.  mirrored: left and right are exchanged.
    """

    features: FrameFeatures | None
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
        self.objects, self.data = objects, data
        self._take(features.glob("*/*/*.safetensors"), part, sets, fold)
        if not self.items:
            raise DeixisError(f"no view of the part {part!r} has both features in {features} and objects in {objects}")

    def _take(
        self, paths: Iterable[Path], part: str, sets: tuple[str, ...] | None, fold: int | None = None, above: int = 1
    ) -> None:
        """Keep the paths of the part; ``above`` says how many folders up the set's name stands."""
        self.items: list[Path] = []
        self.of_set: dict[str, list[int]] = defaultdict(list)  # numbers of a set's views
        for path in sorted(paths):
            set_name = path.parts[-1 - above]
            if sets is not None and set_name not in sets:
                continue
            if fold is not None and (set_name == "mosaic" or fold_of(path.stem) != fold):
                continue
            if set_name == "mosaic":
                wanted = part == "train"
            else:
                of_part = split_of(set_name, f"images/{path.stem}.jpg") == part
                wanted = of_part and self._facts(set_name, path.stem).exists()
            if wanted:
                self.of_set[set_name].append(len(self.items))
                self.items.append(path)

    def __len__(self) -> int:
        return len(self.items)

    def place(self, index: int) -> tuple[str, str]:
        """(kind of view, set), such as ("v0", "coco_small")."""
        path = self.items[index]
        return path.parent.parent.name, path.parent.name

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
        features = FrameFeatures(**{name: stored[name][None].float() for name in MAPS})
        return self._view(rgb, parts, features, f"{path.parent.name}/{path.stem}")

    def _view(self, rgb: np.ndarray, parts: Sequence[Part], features: FrameFeatures | None, name: str) -> View:
        unknown = np.zeros(rgb.shape[:2], bool)
        rows: list[tuple[np.ndarray, float, dict, float]] = []
        for part in parts:
            rows += self._objects(part, unknown)
        masks = np.stack([r[0] for r in rows]) if rows else np.zeros((0, *rgb.shape[:2]), np.uint8)
        return View(
            features, rgb, masks, unknown, np.array([r[1] for r in rows], np.float32), tuple(r[2] for r in rows), name,
            np.array([r[3] for r in rows], np.float32), bool(parts[0].affine[0, 0] < 0),
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


class PictureViews(Views):
    """Views of one part of the data, made of the pictures at each use; without features.

    Args:
        objects: Folder of ``SET/STEM.json``.
        data: Folder of the sets.
        part: "train" or "development".
        sets: Names of the sets; all by default.
        number: Which view of every picture: 0 is the whole one, higher numbers are crops; see ``view_of``.
        short: Short side of a view, pixels.
        together: So many crops in a row have one shape, to be encoded together; see ``crop``.
    """

    def __init__(
        self, objects: Path, data: Path, part: str = "train", sets: tuple[str, ...] | None = None, *,
        number: int = 0, short: int = 320, together: int = 1,
    ) -> None:  # fmt: skip
        self.objects, self.data = objects, data
        self.number, self.short, self.together = number, short, together
        self._take(data.glob("*/images/*.jpg"), part, sets, above=2)
        if not self.items:
            raise DeixisError(f"no picture of the part {part!r} in {data} has objects in {objects}")

    def __getitem__(self, index: int) -> View:
        rgb = read_rgb(self.items[index])
        image = f"images/{self.items[index].stem}.jpg"
        affine, shape = view_of((rgb.shape[0], rgb.shape[1]), self.number, image, self.short)
        return self._made(index, rgb, affine, shape)

    def place(self, index: int) -> tuple[str, str]:
        return f"v{self.number}", self.items[index].parent.parent.name

    def crop(self, index: int, seed: int, draw: int) -> View:
        """A random crop, perhaps mirrored, whose shape is that of its ``together`` neighbours. draw: its number."""
        rgb = read_rgb(self.items[index])
        of_all = np.random.default_rng([seed, draw // self.together, 1])
        rng = np.random.default_rng([seed, draw, 2])
        height, width = view_size(1.0, float(of_all.choice(LONG_SIDES)), self.short)
        shape = (width, height) if of_all.random() < UPRIGHT else (height, width)
        return self._made(index, rgb, crop_of((rgb.shape[0], rgb.shape[1]), shape, rng), shape)

    def _made(self, index: int, rgb: np.ndarray, affine: np.ndarray, shape: tuple[int, int]) -> View:
        path, (_, set_name) = self.items[index], self.place(index)
        view = cv2.warpAffine(rgb, affine, shape[::-1], borderMode=cv2.BORDER_REFLECT)
        whole = Part(set_name, f"images/{path.stem}.jpg", affine, (0, 0, *shape))
        return self._view(view, [whole], None, f"{set_name}/{path.stem}")


def views_of(
    data: Mapping[str, Path], part: str, sets: tuple[str, ...] | None = None, *, short: int = 320, together: int = 1
) -> Views:
    """Remembered views where ``data`` names their ``features``; else those made of the pictures."""
    if "features" in data:
        return Views(data["features"], data["objects"], data["pictures"], part, sets)
    return PictureViews(data["objects"], data["pictures"], part, sets, short=short, together=together)


LONG_SIDES = (1.0, 1.2, 1.4, 1.6, 1.8)  # of the short one
UPRIGHT = 0.25  # share of upright crops (our choice)


def view_size(height: float, width: float, short: int) -> tuple[int, int]:
    """(H, W) of the view of a region: the nearest of the shapes."""
    ratio = max(height, width) / min(height, width)
    long = round(short * min(LONG_SIDES, key=lambda r: abs(np.log(r / ratio))) / 32) * 32
    return (short, long) if width >= height else (long, short)


def view_of(size: tuple[int, int], number: int, image: str, short: int) -> tuple[np.ndarray, tuple[int, int]]:
    """(2, 3) affine map from the picture to view ``number``, and the view's size. The odd ones are mirrored."""
    height, width = size
    if number == 0:
        out = view_size(height, width, short)
        return np.array([[out[1] / width, 0, 0], [0, out[0] / height, 0]]), out
    rng = np.random.default_rng([number, int(hashlib.sha1(image.encode()).hexdigest(), 16) % 2**32])
    zoom = rng.uniform(0.5, 0.9)
    tall, wide = (min(n, n * zoom * rng.uniform(0.85, 1.15)) for n in (height, width))
    top, left = rng.uniform(0, height - tall), rng.uniform(0, width - wide)
    out = view_size(tall, wide, short)
    return _affine((top, left, tall, wide), out, mirrored=number % 2 == 1), out


def crop_of(size: tuple[int, int], shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(2, 3) affine map from a picture to a random crop of it, of a given shape (H, W)."""
    largest = min(size[0] / shape[0], size[1] / shape[1])
    zoom = largest * rng.uniform(0.5, 1.0)
    tall, wide = (min(n, side * zoom * rng.uniform(0.9, 1.1)) for n, side in zip(size, shape, strict=True))
    top, left = rng.uniform(0, size[0] - tall), rng.uniform(0, size[1] - wide)
    return _affine((top, left, tall, wide), shape, mirrored=bool(rng.random() < 0.5))


def _affine(box: tuple[float, float, float, float], shape: tuple[int, int], *, mirrored: bool) -> np.ndarray:
    """(2, 3) from a picture to its box (top, left, height, width) at a shape (H, W)."""
    top, left, tall, wide = box
    y, x = shape[0] / tall, shape[1] / wide
    across = [-x, 0, shape[1] + left * x] if mirrored else [x, 0, -left * x]
    return np.array([across, [0, y, -top * y]])


def warp(mask: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask of the picture (h, w) uint8 in the view (H, W)."""
    return cv2.warpAffine(mask, affine, (size[1], size[0]), flags=cv2.INTER_LINEAR)
