"""A library of real pictures, cut-outs and short clips from a folder like ``shared/data``, and its hold-out rule.

Nothing is decoded before its first use. Reads COCO-like folders (index.json, images, masks), drawn objects with an
alpha channel, and DAVIS videos. Held out from training, always the same: the DAVIS videos in HELD_OUT_VIDEOS; of
``coco_small`` the pictures with sha1(image) % 4 == 0; of every other set % 10 == 0. The development split (validation,
calibration, choices) is sha1(image) % 20 == 1 of the rest, and the DAVIS videos in DEVELOPMENT_VIDEOS.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from deixis.synthetic.vocabulary import (
    COCO_NAMES,
    DRAWN_NAMES,
    EVERYWHERE,
    INDOOR_GROUPS,
    NOUNS,
    SAME_AS,
    UNLABELLED_FOOD,
    VOC_NAMES,
    Noun,
)
from deixis.types import DeixisError

SPLITS = ("train", "development", "held_out")
PICTURE_SETS = ("coco_small", "voc_animals", "weizmann_horses")  # that objects are cut out of
# Whose pictures are training views of ``light``; ``tools/data_engine.py`` finds what their own masks leave out.
VIEW_SETS = ("coco_small", "voc_animals", "sysu_shapes", "caltech101_outlines", "weizmann_horses")
HELD_OUT_VIDEOS = ("car-turn", "lucia", "rhino")
DEVELOPMENT_VIDEOS = ("bus", "elephant", "hike", "soccerball")
# Masks that hold more than the class that they carry; they would teach that a person includes the horse.
SKIPPED_VIDEOS = {
    "bmx-bumps": "rider and bicycle in one mask; half of the film is out of focus",
    "horsejump-low": "rider and horse in one mask",
    "kite-walk": "person, board and kite lines in one mask",
    "motocross-bumps": "rider and motorcycle in one mask",
    "motorbike": "two riders and motorcycle in one mask",
    "paragliding": "person and glider, far apart, in one mask",
    "scooter-gray": "rider and scooter in one mask",
    "stroller": "woman and stroller in one mask",
    "surf": "the mask is mostly the sail, its class is person",
    "swing": "child, seat and chains of the swing in one mask",
}
# Others of the class stand in the background without a mask: its name alone does not say which. The sentences that do.
CROWDED_VIDEOS: dict[str, tuple[int, ...]] = {"flamingo": (0, 2), "dance-jump": (0, 1, 3), "drift-turn": (0, 1, 2, 3)}
_FOOD_WORDS = frozenset({"food", "fruit", "vegetable"})
_OFTEN_SEVERAL = frozenset({"sheep", "cow", "person", "chair", "bottle", "potted plant", "car"})

T = TypeVar("T")


def split_of(set_name: str, image: str) -> str:
    """The split that a picture or film of the data sets belongs to.

    Args:
        set_name: Name of the set; "davis_train" for films.
        image: As its index writes it (``images/000000391895.jpg``), or the film's name.

    Returns:
        "train"; "development", for validation, calibration and the choice of a checkpoint; or "held_out", for testing.
    """
    if set_name == "davis_train":
        return "held_out" if image in HELD_OUT_VIDEOS else "development" if image in DEVELOPMENT_VIDEOS else "train"
    number = int(hashlib.sha1(image.encode()).hexdigest(), 16)
    if number % (4 if set_name == "coco_small" else 10) == 0:
        return "held_out"
    return "development" if number % 20 == 1 else "train"


def held_out(set_name: str, image: str) -> bool:
    """Whether an image (as its index writes it, e.g. ``images/000000391895.jpg``) is kept for testing."""
    return split_of(set_name, image) == "held_out"


@dataclass(frozen=True, eq=False)
class Instance:
    """A labelled object of a picture. id: its value in the mask.  box: x, y, w, h in pixels.
    single: it is exactly one object (a connected component of a class may be several, or a part)."""

    id: int
    noun: Noun
    box: tuple[int, int, int, int]
    area: int
    single: bool


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with labels. open_classes: classes that may stand in it without a label; everywhere: words never
    certain. size: (height, width) in pixels."""

    set_name: str
    image: Path
    mask: Path
    size: tuple[int, int]
    instances: tuple[Instance, ...]
    open_classes: frozenset[str]
    everywhere: frozenset[str]


@dataclass(frozen=True, eq=False)
class Patch:
    """A cut-out. rgb: (h, w, 3) uint8.  alpha: (h, w) uint8.  drawn: not a photograph."""

    rgb: np.ndarray
    alpha: np.ndarray
    noun: Noun
    drawn: bool


@dataclass(frozen=True, eq=False)
class MaskedVideo:
    """A DAVIS video: one masked object. alone: nothing else of its class is in it. written: sentences that name it."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    noun: Noun
    alone: bool
    written: tuple[str, ...]
    open_classes: frozenset[str]


class _Recent:
    """A small cache of decoded things, least recently used out first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key in self.held:
            self.held.move_to_end(key)
        else:
            self.held[key] = make()
            if len(self.held) > self.limit:
                self.held.popitem(last=False)
        return self.held[key]


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DeixisError(f"{path} is not a readable picture")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_labels(path: Path) -> np.ndarray:
    """(H, W) uint8 as stored."""
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2:
        raise DeixisError(f"{path} is not a readable one-channel mask")
    return labels


def _index(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "index.json").read_text())["images"]


def _open_classes(set_name: str, present: set[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Classes that may be in a picture of this set without a label, and the words never certain there."""
    groups = {group for name in present if name in NOUNS for group in NOUNS[name].groups}
    indoor_picture = bool(groups & (INDOOR_GROUPS | {"furniture"})) or bool(present & {"cat", "potted plant", "tv"})
    everywhere = EVERYWHERE | UNLABELLED_FOOD if indoor_picture else EVERYWHERE - _FOOD_WORDS
    if set_name == "coco_small":
        return frozenset(), everywhere
    labelled = VOC_NAMES if set_name == "voc_animals" else frozenset({"horse"})
    unlabelled = {name for name in COCO_NAMES - labelled if "animal" not in NOUNS[name].groups}
    if not indoor_picture:
        unlabelled = {name for name in unlabelled if not INDOOR_GROUPS & set(NOUNS[name].groups)}
    return frozenset(unlabelled), everywhere


def _is_single(kind: str, name: str, names: list[str]) -> bool:
    """Whether a region is exactly one object. Of VOC's lone sheep regions one in three is a flock (counted)."""
    return kind == "instance" or (names.count(name) == 1 and name != "sheep")


class Library:
    """Pictures, cut-outs and videos of one split, found under ``root``. Deterministic order; decoded lazily.

    Raises DeixisError if the split is unknown or none of the known folders is under root.
    """

    def __init__(self, root: Path | str, split: str = "train", recent: int = 256) -> None:
        if split not in SPLITS:
            raise DeixisError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        self.root, self.split = Path(root), split
        self._cache = _Recent(recent)
        self.pictures = [picture for name in PICTURE_SETS for picture in self._pictures(name)]
        self.drawn = self._drawn()
        self.videos = self._videos()
        if not (self.pictures or self.drawn):
            raise DeixisError(f"{root} holds none of {', '.join((*PICTURE_SETS, 'fluent_emoji3d'))}; see docs/data.md")
        self.photo_classes: dict[str, list[tuple[Picture, Instance]]] = defaultdict(list)
        for picture in self.pictures:
            for instance in picture.instances:
                if self._worth_cutting(picture, instance):
                    self.photo_classes[instance.noun.name].append((picture, instance))
        self._by_set: dict[str, list[Picture]] = defaultdict(list)
        for picture in self.pictures:
            self._by_set[picture.set_name].append(picture)
        self.drawn_classes: dict[str, list[Path]] = defaultdict(list)
        for path, name in self.drawn:
            self.drawn_classes[name].append(path)

    def _wanted(self, set_name: str, image: str) -> bool:
        return split_of(set_name, image) == self.split

    def _pictures(self, set_name: str) -> list[Picture]:
        folder = self.root / set_name
        if not folder.is_dir():
            return []
        found = []
        for entry in sorted(_index(folder), key=lambda e: e["image"]):
            if not self._wanted(set_name, entry["image"]) or not entry["instances"]:
                continue
            names = [SAME_AS.get(i["class"], i["class"]) for i in entry["instances"]]
            instances = tuple(
                Instance(i["id"], NOUNS[name], tuple(i["box"]), i["area"], _is_single(i["kind"], name, names))
                for i, name in zip(entry["instances"], names, strict=True)
            )
            size = (entry["height"], entry["width"])
            closed = _open_classes(set_name, set(names))
            found.append(Picture(set_name, folder / entry["image"], folder / entry["mask"], size, instances, *closed))
        return found

    def _drawn(self) -> list[tuple[Path, str]]:
        folder = self.root / "fluent_emoji3d"
        if not folder.is_dir():
            return []
        entries = sorted(_index(folder), key=lambda e: e["image"])
        return [
            (folder / e["image"], DRAWN_NAMES[e["class"]])
            for e in entries
            if e["class"] in DRAWN_NAMES and self._wanted("fluent_emoji3d", e["image"])
        ]

    def _videos(self) -> list[MaskedVideo]:
        folder = self.root / "davis_train"
        if not folder.is_dir():
            return []
        entries = json.loads((folder / "expressions.json").read_text())
        return [
            read_video(folder, name, entries[name])
            for name in sorted(entries)
            if split_of("davis_train", name) == self.split and name not in SKIPPED_VIDEOS
        ]

    @staticmethod
    def _worth_cutting(picture: Picture, instance: Instance) -> bool:
        x, y, w, h = instance.box
        height, width = picture.size
        inside = x > 1 and y > 1 and x + w < width - 1 and y + h < height - 1
        component = picture.set_name == "voc_animals" and instance.noun.name in _OFTEN_SEVERAL
        return (
            inside
            and instance.area >= 1000
            and instance.single
            and not component
            and instance.noun.name != "dining table"
        )

    def load(self, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
        """A picture's (H, W, 3) uint8 RGB pixels and (H, W) uint8 labels (ids; 255 unknown)."""
        return self._cache.get(picture.image, lambda: (read_rgb(picture.image), read_labels(picture.mask)))

    def crowded(self, picture: Picture) -> bool:
        """Whether a COCO picture has an unlabelled crowd (mask value 255)."""
        return picture.set_name == "coco_small" and bool((self.load(picture)[1] == 255).any())

    def photo(self, picture: Picture, instance: Instance) -> Patch | None:
        """The cut-out of an instance, or None if it is hidden in part, in pieces, or ragged."""
        return self._cache.get((picture.image, instance.id), lambda: self._cut(picture, instance))

    def _cut(self, picture: Picture, instance: Instance) -> Patch | None:
        rgb, labels = self.load(picture)
        x, y, w, h = instance.box
        pad = 4
        top, left = max(0, y - pad), max(0, x - pad)
        window = (slice(top, y + h + pad), slice(left, x + w + pad))
        mask = (labels[window] == instance.id).astype(np.uint8)
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if count < 2:
            return None
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[largest, cv2.CC_STAT_AREA] < 0.93 * mask.sum():
            return None
        mask = (pieces == largest).astype(np.uint8)
        ring = cv2.dilate(mask, np.ones((9, 9), np.uint8)) - mask
        others = (labels[window] != 0) & (labels[window] != 255) & (labels[window] != instance.id)
        if (others & (ring > 0)).sum() > 0.1 * ring.sum():
            return None
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        hull = cv2.contourArea(cv2.convexHull(np.concatenate(contours)))
        if mask.sum() < 0.45 * hull or mask.sum() < 900:
            return None
        alpha = cv2.GaussianBlur(cv2.erode(mask * 255, np.ones((2, 2), np.uint8)), (3, 3), 0)
        return Patch(rgb[window].copy(), alpha, instance.noun, drawn=False)

    def drawing(self, path: Path) -> Patch:
        """A drawn object, cropped to its alpha, at most 200 pixels long."""
        return self._cache.get(path, lambda: self._draw(path))

    def _draw(self, path: Path) -> Patch:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3 or image.shape[2] != 4:
            raise DeixisError(f"{path} is not a picture with an alpha channel")
        ys, xs = np.nonzero(image[..., 3] > 8)
        image = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        name = next(n for p, n in self.drawn if p == path)
        image = cv2.copyMakeBorder(image, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
        return Patch(cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB), image[..., 3].copy(), NOUNS[name], drawn=True)

    def any_picture(self, rng: np.random.Generator, shares: dict[str, float], most: int = 1000) -> Picture:
        """A picture of at most ``most`` labelled objects and no crowd; its set is drawn by shares."""
        names = [name for name in shares if name in self._by_set]
        odds = np.array([shares[name] for name in names])
        for _ in range(1000):
            options = self._by_set[names[int(rng.choice(len(names), p=odds / odds.sum()))]]
            picture = options[int(rng.integers(len(options)))]
            if len(picture.instances) <= most and not self.crowded(picture):
                return picture
        raise DeixisError(f"{self.root} has no picture of at most {most} labelled objects")

    def background(self, rng: np.random.Generator) -> Picture:
        """A picture to paste on."""
        return self.any_picture(rng, {"coco_small": 0.5, "voc_animals": 0.42, "weizmann_horses": 0.08}, most=8)

    def any_patch(
        self,
        rng: np.random.Generator,
        open_classes: frozenset[str],
        *,
        like: Noun | None = None,
        avoid: frozenset[str] = frozenset(),
        drawn: float = 0.2,
        same_class: float = 0.35,
        same_group: float = 0.3,
    ) -> Patch:
        """A cut-out whose class is not among ``open_classes`` (if that can be had) nor ``avoid``.

        like: with the chances same_class and same_group, it is of this class or of one of its groups.
        drawn: the chance of a drawing instead of a photograph.
        """
        for attempt in range(60):
            draws = bool(self.drawn_classes) and (rng.random() < drawn or not self.photo_classes)
            counts: dict[str, list[Any]] = self.drawn_classes if draws else self.photo_classes  # type: ignore[assignment]
            names = sorted(counts)
            chance = rng.random()
            if like is not None and attempt < 20 and chance < same_class and like.name in counts:
                names = [like.name]
            elif like is not None and attempt < 20 and same_class <= chance < same_class + same_group:
                names = [n for n in names if set(NOUNS[n].groups) & set(like.groups)] or names
            odds = np.sqrt([len(counts[n]) for n in names])
            name = names[int(rng.choice(len(names), p=odds / odds.sum()))]
            if name in avoid or (attempt < 40 and name in open_classes):
                continue
            option = counts[name][int(rng.integers(len(counts[name])))]
            patch = self.photo(*option) if isinstance(option, tuple) else self.drawing(option)
            if patch is not None:
                return patch
        raise DeixisError(f"{self.root} has no cut-out that fits; add fluent_emoji3d or more pictures")

    def frame(self, video: MaskedVideo, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame ``index`` of a video: (H, W, 3) uint8 RGB and (H, W) bool mask."""
        key = (video.name, index)
        return self._cache.get(key, lambda: (read_rgb(video.frames[index]), read_labels(video.masks[index]) > 0))


def read_video(folder: Path, name: str, entry: dict[str, Any]) -> MaskedVideo:
    """A DAVIS video and what is known of it. ``entry``: its part in expressions.json."""
    alone = name not in CROWDED_VIDEOS
    noun = NOUNS[entry["class"]]
    closed_groups = {"animal", "toy_thing"} | INDOOR_GROUPS
    unlabelled = {n for n, other in NOUNS.items() if not closed_groups & set(other.groups)} - (
        {noun.name} if alone else set()
    )
    if not alone:
        unlabelled |= {noun.name, *(("bird", "duck") if "wing" in noun.groups else ())}
    written = entry["expressions"]
    return MaskedVideo(
        name,
        tuple(sorted((folder / "JPEGImages" / name).iterdir())),
        tuple(sorted((folder / "Annotations" / name).iterdir())),
        noun,
        alone,
        tuple(written[i] for i in CROWDED_VIDEOS.get(name, range(len(written)))),
        frozenset(unlabelled),
    )
