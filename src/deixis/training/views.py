"""Remembered views of pictures: what the frozen encoders gave, and the objects that the data engine found.

Written by ``tools/remember_views.py`` (features) and ``tools/data_engine.py`` (objects), read by the stages of light.
A view is a picture, or a crop of it, at the size the model works at: one safetensors file with the five maps of
``FrameFeatures`` in fp16, its pixels and the affine map from the picture to it. N objects; H W pixels of the view.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch import Tensor

from deixis.synthetic.cutouts import split_of
from deixis.systems.light import FrameFeatures
from deixis.types import DeixisError

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
        x = torch.from_numpy(self.rgb).float().permute(2, 0, 1)[None] / 255
        return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class Views:
    """All views of one part that have features and objects, in a fixed order.

    Args:
        features: Folder of ``VIEW/SET/STEM.safetensors``.
        objects: Folder of ``SET/STEM.json``.
        data: Folder of the sets, for the unlabelled regions of their masks.
        part: "train" or "development".
        sets: Names of the sets; all by default.
    """

    def __init__(
        self, features: Path, objects: Path, data: Path, part: str = "train", sets: tuple[str, ...] | None = None
    ) -> None:
        self.features, self.objects, self.data = features, objects, data
        self.items: list[tuple[Path, Path, str]] = []
        images: dict[str, dict[str, str]] = {}
        for path in sorted(features.glob("*/*/*.safetensors")):
            set_name = path.parent.name
            if sets is not None and set_name not in sets:
                continue
            if set_name not in images:
                index = json.loads((data / set_name / "index.json").read_text())["images"]
                images[set_name] = {Path(e["image"]).stem: e["image"] for e in index}
            facts = objects / set_name / f"{path.stem}.json"
            if split_of(set_name, images[set_name][path.stem]) == part and facts.exists():
                self.items.append((path, facts, set_name))
        if not self.items:
            raise DeixisError(f"no view of the part {part!r} has both features in {features} and objects in {objects}")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> View:
        path, facts, set_name = self.items[index]
        stored = load_file(path)
        content = json.loads(facts.read_text())
        rgb, affine = stored["rgb"].numpy(), stored["affine"].numpy()
        size = rgb.shape[:2]
        masks, weights, kept, shown = [], [], [], []
        scale = abs(np.linalg.det(affine[:, :2]))
        for found in content["objects"]:
            mask = warp(coco_mask.decode(found["rle"]) * 255, affine, size)
            if mask.mean() / 255 >= LEAST_AREA:
                masks.append(mask)
                weights.append(1.0 if found["source"] == "truth" else 0.6)
                kept.append(found)
                whole = scale * coco_mask.area(found["rle"])
                shown.append(float(mask.sum() / 255 / max(1.0, whole)))
        unknown = np.zeros(size, bool)
        labels = cv2.imread(str(self.data / set_name / "masks" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        if labels is not None and (labels == 255).any():
            unknown = warp((labels == 255).astype(np.uint8) * 255, affine, size) > 127
        if not content.get("complete", True):  # other objects may be there without a label
            unknown |= np.stack(masks).max(0) < 20 if masks else True
        return View(
            FrameFeatures(**{name: stored[name][None].float() for name in MAPS}), rgb,
            np.stack(masks) if masks else np.zeros((0, *size), np.uint8), unknown,
            np.array(weights, np.float32), tuple(kept), f"{set_name}/{path.stem}",
            np.array(shown, np.float32), bool(affine[0, 0] < 0),
        )  # fmt: skip


def warp(mask: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask of the picture (h, w) uint8 in the view (H, W)."""
    return cv2.warpAffine(mask, affine, (size[1], size[0]), flags=cv2.INTER_LINEAR)
