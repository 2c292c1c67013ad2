"""Stage 2 of light: the namer. What lies under an object's mask becomes a vector beside its name's.

A region's target is a mixture of its true name, what a teacher called it (``tools/data_engine.py``), and
EfficientNet's own classifier. R regions, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deixis.systems.light import Light, TrackFeatures
from deixis.training.views import View, Views

SAME_NAMES = {"aeroplane": "airplane", "motorbike": "motorcycle", "tvmonitor": "tv", "diningtable": "dining table",
        "pottedplant": "potted plant", "sofa": "couch"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NamerData:
    """Shares of a region's target, and how often a region is drawn."""

    truth: float = 0.5
    teacher: float = 0.35
    classifier: float = 0.15
    sharpness: float = 1.5  # power of the teacher's probabilities
    rare: float = 0.5  # a region is drawn by its name's count to the power of minus this
    fold: int | None = None  # 0 or 1: train on this half of the pictures only, for the scorer's training on the other


@dataclass(frozen=True, eq=False)
class Regions:
    """features: (R, C) of ``Namer.inputs``.  head: (R, net_head).  truth: (R,) index of the true name or -1.
    teacher: (R, 12) indices of the teacher's names or -1, and ``sure`` (R, 12) their probabilities.
    area: (R,) share of the view.  sets: (R,) name of each region's set.
    """

    features: Tensor
    head: Tensor
    truth: Tensor
    teacher: Tensor
    sure: Tensor
    area: Tensor
    sets: tuple[str, ...]


def known_names(weights: Path, data: Path) -> list[str]:
    """The names of the namer's classes: ImageNet's, the labeler's, and those of the data sets, each once, sorted."""
    names = {synonyms[0].lower() for synonyms in json.loads((weights / "imagenet_names.json").read_text())}
    labels = json.loads((weights / "teachers" / "labels.json").read_text())
    names |= {n.lower() for key in ("google_object_labeler_631", "coco80") for n in labels[key]}
    for index in sorted(data.glob("*/index.json")):
        if index.parent.name != "fluent_emoji3d":
            content = json.loads(index.read_text())
            names |= {n.lower() for n in content["meta"].get("classes", {})}
    return sorted({SAME_NAMES.get(n, n) for n in names})


@torch.no_grad()
def labelled_regions(system: Light, views: Views, names: Sequence[str]) -> Regions:
    """The labelled regions of all views, with what the frozen encoders hold under their true masks."""
    place = {name: i for i, name in enumerate(names)}
    rows: dict[str, list] = {k: [] for k in ("features", "head", "truth", "teacher", "sure", "area", "sets")}
    for index in range(len(views)):
        view = views[index]
        if not len(view.masks):
            continue
        tracks = pool_view(system, view)
        rows["features"].append(system.namer.inputs(tracks)[0].half())
        rows["head"].append(tracks.head[0].half())
        for found, mask in zip(view.objects, view.masks, strict=True):
            said = [(place[n], p) for n, p in found["names"].get("labeler", []) if n in place][:12]
            rows["truth"].append(place.get(SAME_NAMES.get(found["class"], found["class"]), -1))
            rows["teacher"].append([i for i, _ in said] + [-1] * (12 - len(said)))
            rows["sure"].append([p for _, p in said] + [0.0] * (12 - len(said)))
            rows["area"].append(float(mask.mean()) / 255)
            rows["sets"].append(view.name.split("/")[0])
    return Regions(
        torch.cat(rows["features"]), torch.cat(rows["head"]), torch.tensor(rows["truth"]),
        torch.tensor(rows["teacher"]), torch.tensor(rows["sure"]), torch.tensor(rows["area"]), tuple(rows["sets"]),
    )  # fmt: skip


def pool_view(system: Light, view: View) -> TrackFeatures:
    """Track features of a view's own objects (one frame)."""
    frames = view.frames(system.config.mean, system.config.std)
    masks = F.avg_pool2d(torch.from_numpy(view.masks).float()[None] / 255, 4)
    assert view.features is not None
    return system.pool_tracks(view.features, frames[None], masks[None], torch.ones(1, 1, len(view.masks)))


def classifier_names(weights: Path, names: Sequence[str]) -> Tensor:
    """(classes,) the known name of each ImageNet class."""
    place = {name: i for i, name in enumerate(names)}
    listed = json.loads((weights / "imagenet_names.json").read_text())
    return torch.tensor([place[SAME_NAMES.get(s[0].lower(), s[0].lower())] for s in listed])


def targets_of(data: NamerData, system: Light, regions: Regions, classes: Tensor, rows: Tensor) -> Tensor:
    """(n, names) the target of each region in ``rows``; its sum says how sure it is."""
    target = torch.zeros(len(rows), len(system.namer.bias))
    truth = regions.truth[rows]
    known = truth >= 0
    target[known] += data.truth * F.one_hot(truth[known], target.shape[1])
    sure = regions.sure[rows] ** data.sharpness
    sure = sure / sure.sum(1, keepdim=True).clamp(min=1e-6) * regions.sure[rows].amax(1, keepdim=True)
    target.scatter_add_(1, regions.teacher[rows].clamp(min=0), data.teacher * sure * (regions.teacher[rows] >= 0))
    with torch.no_grad():
        own = system.efficient_net.classify(regions.head[rows].float()).softmax(1)
    target.index_add_(1, classes, data.classifier * own)
    return target


def namer_losses(
    data: NamerData, regions: Regions, classes: Tensor, system: Light, batch: NameBatch
) -> dict[str, Tensor]:
    target = targets_of(data, system, regions, classes, batch.rows)
    x = regions.features[batch.rows].float()
    return {"names": -(target * system.namer.log_probabilities(system.namer.embed(x))).sum(1).mean()}


@dataclass(frozen=True, eq=False)
class NameBatch:
    """rows: (n,) indices of regions."""

    rows: Tensor

    def to(self, device: torch.device | str) -> NameBatch:
        return NameBatch(self.rows.to(device))


def region_sample(chances: np.ndarray, seed: int, index: int) -> int:
    """The region of a sample index."""
    return int(np.random.default_rng([seed, index]).choice(len(chances), p=chances))


def chances_of(data: NamerData, regions: Regions) -> np.ndarray:
    """(R,) how likely each region is drawn."""
    counts = torch.bincount(regions.truth + 1)[regions.truth + 1].float()
    weight = counts.pow(-data.rare).numpy().astype(np.float64)
    return weight / weight.sum()


@torch.no_grad()
def validate_namer(regions: Regions, system: nn.Module) -> dict[str, float]:
    """Top-1 and top-3 among the COCO names that occur, for development regions over 1 % of the picture; and its mean
    over names."""
    assert isinstance(system, Light)
    rows = torch.tensor([i for i, s in enumerate(regions.sets) if s == "coco_small" and regions.area[i] > 0.01
                         and regions.truth[i] >= 0])  # fmt: skip
    choices = torch.unique(regions.truth[[i for i, s in enumerate(regions.sets) if s == "coco_small"]])
    choices = choices[choices >= 0]
    scores = system.namer.log_probabilities(system.namer.embed(regions.features[rows].float()))[:, choices]
    truth = regions.truth[rows]
    ranked = choices[scores.argsort(1, descending=True)]
    right = (ranked[:, 0] == truth).float()
    per_name = [float(right[truth == n].mean()) for n in torch.unique(truth)]
    return {"top1": float(right.mean()), "top3": float((ranked[:, :3] == truth[:, None]).any(1).float().mean()),
            "by_name": float(np.mean(per_name)), "regions": float(len(rows))}  # fmt: skip
