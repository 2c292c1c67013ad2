"""Films from real pictures and clips, with sentences: what the default model learns from, and is measured on.

A film is a pure function of (library, config, seed). Kinds of films: a real still under a moving camera; a composite of
cut-outs on a real picture; twins (one cut-out several times, told apart by place or motion only); a DAVIS clip, with or
without cut-outs pasted on it. T frames, N objects, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from deixis.benchmarks.cutouts import HELD_OUT_VIDEOS, Library, Patch, Picture, Video, read_labels, read_rgb, read_video
from deixis.benchmarks.predicates import (
    Judge,
    Scene,
    Sentence,
    SentenceMix,
    Thing,
    WorldFilm,
    Writer,
    colour_shares,
)
from deixis.benchmarks.vocabulary import EVERYWHERE, NOUNS, Noun

MAX_OBJECTS = 16  # objects whose masks a film keeps; the sentences know them all


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What films a Mixture makes. All numbers are our choice."""

    size: tuple[int, int] = (224, 384)  # H, W in pixels
    frames: int = 3
    stills: float = 0.32  # shares of the kinds of films
    composites: float = 0.34
    twins: float = 0.17
    davis: float = 0.17
    drawn: float = 0.2  # share of cut-outs that are drawings
    same_class: float = 0.35  # chance that a further cut-out has the class of the first
    same_group: float = 0.3  # or that it is of its group (another animal, another vehicle)
    recoloured: float = 0.15  # chance that a cut-out of a composite is dyed in a plain colour
    rows: float = 0.35  # chance that twins stand side by side, all but touching
    camera_moves: float = 0.25  # chance that the camera moves over a composite
    still_camera_moves: float = 0.6  # and over a still
    distractors: float = 0.45  # chance that cut-outs are pasted on a DAVIS clip
    sentences: SentenceMix = field(default_factory=SentenceMix)


# ------------------------------------------------------------------------------------------------------------- rendering


@dataclass(frozen=True, eq=False)
class _Path:
    """An object's motion. centre: (T, 2) pixels.  scale: (T,) pixels of the film per pixel of the patch.  angle: (T,) degrees."""

    centre: np.ndarray
    scale: np.ndarray
    angle: np.ndarray


@dataclass(eq=False)
class _Canvas:
    """A film while it is painted. labels: (T, H, W) uint8, index of a thing + 1, 0 nothing, 255 unknown."""

    frames: np.ndarray
    labels: np.ndarray
    nouns: list[Noun]
    single: list[bool]
    paths: list[np.ndarray]  # (T, 2) pixels in the picture
    worlds: list[np.ndarray | None]
    scales: list[np.ndarray]
    world_scales: list[np.ndarray | None]
    whole: list[np.ndarray]  # (T,) pixels that the whole object would cover


def _view(
    rng: np.random.Generator, source: tuple[int, int], size: tuple[int, int], frames: int, moves: bool, tight: float
) -> np.ndarray:
    """Affine maps (T, 2, 3) from a source picture to the film: a window inside the picture that may pan and zoom.

    tight: the smallest window, as a share of the largest that fits. The picture is stretched by 15 % at most.
    """
    height, width = source
    aspect = size[1] / size[0]
    stretch = float(np.clip((width / height) / aspect, 1 / 1.15, 1.15))
    aspect *= stretch
    w_max = min(width, height * aspect)

    def window() -> np.ndarray:
        w = w_max * rng.uniform(tight, 1.0)
        h = w / aspect
        return np.array([rng.uniform(0, width - w), rng.uniform(0, height - h), w, h])

    first = window()
    last = first
    if moves:
        goal = window()
        last = first + (goal - first) * rng.uniform(0.2, 0.8)
    s = np.linspace(0, 1, frames)[:, None]
    x, y, w, h = (first + (last - first) * s).T
    maps = np.zeros((frames, 2, 3))
    maps[:, 0, 0], maps[:, 1, 1] = size[1] / w, size[0] / h
    maps[:, 0, 2], maps[:, 1, 2] = -x * size[1] / w, -y * size[0] / h
    return maps


def _apply(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(T, 2, 3) maps on (2,) or (T, 2) points: (T, 2)."""
    points = np.broadcast_to(points, (len(maps), 2))
    return np.einsum("tij,tj->ti", maps[:, :, :2], points) + maps[:, :, 2]


def _canvas_of(
    library: Library, picture: Picture, maps: np.ndarray, size: tuple[int, int], mirrored: bool, gain: float
) -> _Canvas:
    """A picture, seen through the maps, as the start of a film; its labelled objects are the first things."""
    rgb, ids = library.load(picture)
    lut = np.zeros(256, dtype=np.uint8)
    lut[255] = 255
    for index, instance in enumerate(picture.instances[:250]):
        lut[instance.id] = index + 1
    labels = lut[ids]
    if mirrored:
        rgb, labels = np.ascontiguousarray(rgb[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])
    if gain != 1.0:
        rgb = cv2.convertScaleAbs(rgb, alpha=gain)
    t, (h, w) = len(maps), size
    frames, painted = np.empty((t, h, w, 3), np.uint8), np.empty((t, h, w), np.uint8)
    for i in range(t):
        if i and np.array_equal(maps[i], maps[0]):
            frames[i], painted[i] = frames[0], painted[0]
            continue
        shrink = maps[i, 0, 0] < 0.7
        frames[i] = cv2.warpAffine(
            rgb, maps[i], (w, h), flags=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        painted[i] = cv2.warpAffine(labels, maps[i], (w, h), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    canvas = _Canvas(frames, painted, [], [], [], [], [], [], [])
    scale = np.sqrt(maps[:, 0, 0] * maps[:, 1, 1])
    for instance in picture.instances[:250]:
        x, y, bw, bh = instance.box
        middle = np.array([x + bw / 2, y + bh / 2])
        if mirrored:
            middle[0] = picture.size[1] - middle[0]
        path = _apply(maps, middle)
        canvas.nouns.append(instance.noun)
        canvas.single.append(instance.single)
        canvas.paths.append(path)
        canvas.worlds.append(np.broadcast_to(path[0], path.shape))
        canvas.scales.append(scale / scale[0])
        canvas.world_scales.append(np.ones(t))
        canvas.whole.append(instance.area * maps[:, 0, 0] * maps[:, 1, 1])
    return canvas


def _paste(
    canvas: _Canvas,
    patch: Patch,
    motion: _Path,
    camera: np.ndarray | None,
    gain: float,
    mirrored: bool,
    known: bool = True,
) -> None:
    """Paint a cut-out over the film. camera: (T, 2, 3) from the first frame to frame t, or None where it stands still.
    known: whether the motion against the world is known (it is not over a filmed clip)."""
    t, h, w = canvas.labels.shape
    rgb, alpha = patch.rgb, patch.alpha
    if mirrored:
        rgb, alpha = rgb[:, ::-1], alpha[:, ::-1]
    if gain != 1.0:
        rgb = cv2.convertScaleAbs(np.ascontiguousarray(rgb), alpha=gain)
    ph, pw = alpha.shape
    four = np.ascontiguousarray(np.dstack([rgb, alpha]))
    path, scale, angle = motion.centre, motion.scale, motion.angle
    if camera is not None:
        path = _apply(camera, path)
        scale = scale * np.sqrt(camera[:, 0, 0] * camera[:, 1, 1])
    label = len(canvas.nouns) + 1
    for i in range(t):
        reach = 0.5 * np.hypot(ph, pw) * scale[i] + 2
        x0, y0 = max(0, int(path[i, 0] - reach)), max(0, int(path[i, 1] - reach))
        x1, y1 = min(w, int(path[i, 0] + reach) + 1), min(h, int(path[i, 1] + reach) + 1)
        if x1 <= x0 or y1 <= y0:
            continue
        matrix = cv2.getRotationMatrix2D((pw / 2, ph / 2), float(angle[i]), float(scale[i]))
        matrix[:, 2] += path[i] - np.array([pw / 2 + x0, ph / 2 + y0])
        source = four
        if scale[i] < 0.5:  # shrink smoothly first: a bilinear warp would skip pixels
            small = (max(2, round(pw * scale[i] * 1.4)), max(2, round(ph * scale[i] * 1.4)))
            source = cv2.resize(four, small, interpolation=cv2.INTER_AREA)
            matrix[:, :2] = matrix[:, :2] @ np.diag([pw / small[0], ph / small[1]])
        warped = cv2.warpAffine(
            source, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )
        share = warped[..., 3:].astype(np.uint16)
        region = canvas.frames[i, y0:y1, x0:x1]
        region[:] = ((warped[..., :3] * share + region * (255 - share)) // 255).astype(np.uint8)
        canvas.labels[i, y0:y1, x0:x1][warped[..., 3] > 127] = label
    canvas.nouns.append(patch.noun)
    canvas.single.append(True)
    canvas.paths.append(path)
    canvas.scales.append(scale / scale[0])
    canvas.worlds.append(motion.centre if known else None)
    canvas.world_scales.append(motion.scale / motion.scale[0] if known else None)
    canvas.whole.append((patch.alpha > 127).sum() * scale**2)


def _things(canvas: _Canvas) -> tuple[list[Thing], list[int], np.ndarray]:
    """The things that can be seen, which label each has, and the (C,) colours of everything else."""
    t, h, w = canvas.labels.shape
    count, diagonal = len(canvas.nouns), float(np.hypot(h, w))
    xs, ys = np.tile((np.arange(w) + 0.5) / w, h), np.repeat((np.arange(h) + 0.5) / h, w)
    flat = canvas.labels.reshape(t, -1)
    number = np.stack([np.bincount(row, minlength=256) for row in flat])[:, 1 : count + 1].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.stack([np.bincount(row, xs, minlength=256) for row in flat])[:, 1 : count + 1] / number
        y = np.stack([np.bincount(row, ys, minlength=256) for row in flat])[:, 1 : count + 1] / number
    things, labels = [], []
    for i in range(count):
        if not number[:, i].any():
            continue
        best = int(np.argmax(number[:, i]))
        certain, perhaps = colour_shares(canvas.frames[best][canvas.labels[best] == i + 1])
        shown = number[:, i] / np.maximum(canvas.whole[i], 1)
        world, world_scale = canvas.worlds[i], canvas.world_scales[i]
        things.append(
            Thing(
                canvas.nouns[i], number[:, i] / (h * w), np.stack([x[:, i], y[:, i]], axis=1), canvas.paths[i] / diagonal,
                None if world is None else world / diagonal, canvas.scales[i], world_scale, certain, perhaps,
                canvas.single[i], bool((shown > 0.35).mean() >= 0.6),
            )
        )  # fmt: skip
        labels.append(i + 1)
    _, background = colour_shares(canvas.frames[0][canvas.labels[0] == 0])
    return things, labels, background


def _finish(
    canvas: _Canvas,
    scene_of: Scene,
    mix: SentenceMix,
    rng: np.random.Generator,
    name: str,
    written: tuple[Sentence, ...] = (),
    keep: int = MAX_OBJECTS,
) -> WorldFilm:
    """Draw the sentences and keep the masks of the objects that they name, then of the largest others."""
    things, labels, background = _things(canvas)
    scene = replace(scene_of, things=tuple(things), background=background)
    judge = Judge(scene)
    drawn = Writer(judge, rng, motions=dict(mix.weights).get("motion", 0) > 0).draw(mix)
    known = {label: i for i, label in enumerate(labels)}
    kept = [
        replace(s, objects=tuple(known[label] for label in s.objects))
        for s in written
        if all(x in known for x in s.objects)
    ]
    kept = [s for s in kept if all(judge.referable[i] for i in s.objects)]
    sentences = (*drawn[: mix.count - len(kept)], *kept) if kept else drawn
    named = {i for s in sentences for i in s.objects}
    largest = sorted(range(len(things)), key=lambda i: -float(things[i].area.max()))
    order = sorted([*named, *[i for i in largest if i not in named][: max(0, keep - len(named))]])
    place = {i: k for k, i in enumerate(order)}
    masks = (
        np.stack([canvas.labels == labels[i] for i in order], axis=1)
        if order
        else np.zeros((len(canvas.frames), 0, *canvas.labels.shape[1:]), bool)
    )
    return WorldFilm(
        frames=canvas.frames,
        masks=masks,
        sentences=tuple(replace(s, objects=tuple(place[i] for i in s.objects)) for s in sentences),
        ignore=canvas.labels == 255,
        times=tuple(i / 6 for i in range(len(canvas.frames))),
        classes=tuple(things[i].noun.name for i in order),
        name=name,
    )


# ---------------------------------------------------------------------------------------------------------------- motions

MOTIONS = ("still", "straight", "zoom", "curve")


def _motion(
    rng: np.random.Generator, kind: str, frames: int, size: tuple[int, int], scale: float, heading: float | None = None
) -> _Path:
    """A path inside the picture. heading: degrees, 0 right, 90 down; drawn (mostly along an axis) where None."""
    h, w = size
    diagonal = float(np.hypot(h, w))
    s = np.linspace(0, 1, frames)
    low, high = np.array([0.1 * w, 0.14 * h]), np.array([0.9 * w, 0.86 * h])
    if heading is None:
        heading = (
            float(rng.choice([0, 180, 0, 180, 90, 270])) + float(rng.normal(0, 8))
            if rng.random() < 0.8
            else float(rng.uniform(0, 360))
        )
    turn = 0.0
    length = 0.0
    if kind in ("straight", "curve"):
        length = diagonal * float(rng.uniform(0.08, 0.42))
        turn = 0.0 if kind == "straight" else float(rng.choice([-1, 1]) * rng.uniform(60, 130))
    angles = np.radians(heading + turn * np.clip((s[:-1] + s[1:]) / 2 * 2 - 0.5, 0, 1))
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * length / max(1, frames - 1)
    offset = np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])
    spread = offset.max(axis=0) - offset.min(axis=0)
    shrink = float(min(1.0, *((high - low) / np.maximum(spread, 1e-6))))
    offset = offset * shrink
    start = rng.uniform(
        low - offset.min(axis=0), np.maximum(high - offset.max(axis=0), low - offset.min(axis=0) + 1e-6)
    )
    grows = np.ones(frames)
    if kind == "zoom":
        ratio = float(rng.uniform(1.3, 1.9))
        grows = ratio**s if rng.random() < 0.6 else ratio ** (1 - s)
        grows = grows / np.sqrt(ratio)
    tilt = float(rng.normal(0, 6))
    return _Path(start + offset, scale * grows, np.full(frames, tilt))


# Hue in degrees, least saturation, largest saturation, factor and offset of value (all 0..1): our choice.
DYES: dict[str, tuple[float, float, float, float, float]] = {
    "black": (0, 0.0, 0.15, 0.22, 0.0), "white": (0, 0.0, 0.05, 0.3, 0.7), "grey": (0, 0.0, 0.06, 0.35, 0.32),
    "red": (358, 0.75, 1.0, 0.55, 0.4), "orange": (27, 0.8, 1.0, 0.4, 0.6), "yellow": (55, 0.7, 1.0, 0.4, 0.6),
    "green": (122, 0.6, 1.0, 0.55, 0.35), "blue": (224, 0.65, 1.0, 0.55, 0.4), "purple": (281, 0.6, 1.0, 0.5, 0.4),
    "pink": (334, 0.3, 0.5, 0.25, 0.75), "brown": (23, 0.55, 0.75, 0.35, 0.22),
}  # fmt: skip


def _a_dye(rng: np.random.Generator) -> str:
    return list(DYES)[int(rng.integers(len(DYES)))]


def _dye(patch: Patch, colour: str) -> Patch:
    """The cut-out in a plain colour, its light and shade kept."""
    hue, least, most, factor, offset = DYES[colour]
    hsv = cv2.cvtColor(patch.rgb, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = hue / 2
    hsv[..., 1] = 255 * (least + (most - least) * hsv[..., 1] / 255)
    hsv[..., 2] = 255 * np.clip(offset + factor * hsv[..., 2] / 255, 0, 1)
    return replace(patch, rgb=cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))


def _boxes_overlap(a: tuple[_Path, Patch], b: tuple[_Path, Patch]) -> float:
    """The largest share of the smaller box that the other covers, at the start and the end."""
    worst = 0.0
    for i in (0, len(a[0].centre) // 2, -1):
        sides = [np.array(p.alpha.shape[::-1]) * m.scale[i] for m, p in (a, b)]
        gap = np.minimum(a[0].centre[i] + sides[0] / 2, b[0].centre[i] + sides[1] / 2) - np.maximum(
            a[0].centre[i] - sides[0] / 2, b[0].centre[i] - sides[1] / 2
        )
        if (gap > 0).all():
            worst = max(worst, float(gap.prod() / min(sides[0].prod(), sides[1].prod())))
    return worst


def _scale_for(
    rng: np.random.Generator, patch: Patch, size: tuple[int, int], share: tuple[float, float] = (0.012, 0.13)
) -> float:
    """Pixels of the film per pixel of the patch, so that the object covers a share of the picture; at most 3."""
    wanted = float(np.exp(rng.uniform(*np.log(share)))) * size[0] * size[1]
    scale = np.sqrt(wanted / max(1, int((patch.alpha > 127).sum())))
    fits = 0.85 * min(size[0] / patch.alpha.shape[0], size[1] / patch.alpha.shape[1])
    return float(min(scale, 3.0, fits))


# ----------------------------------------------------------------------------------------------------------------- films


class Mixture:
    """Films for training or testing: ``film(seed)`` is the same for the same root, split, config and seed.

    >>> Mixture("../shared/data", split="train", size=(224, 384), frames=3).film(0).sentences   # doctest: +SKIP
    """

    def __init__(
        self, root: Path | str, *, split: str = "train", config: MixtureConfig | None = None, **changes: object
    ) -> None:
        self.config = replace(config or MixtureConfig(), **changes)  # type: ignore[arg-type]
        self.library = Library(root, split)
        self._by_set: dict[str, list[Picture]] = {}
        for picture in self.library.pictures:
            self._by_set.setdefault(picture.set_name, []).append(picture)
        self._photo_names = sorted(self.library.photo_classes)
        self._drawn_names = sorted(self.library.drawn_classes)

    def film(self, seed: int) -> WorldFilm:
        """The film of a seed, of a kind drawn by the config's shares; retried until it has at least two sentences."""
        c = self.config
        shares = np.array([c.stills, c.composites, c.twins, c.davis])
        rng = np.random.default_rng([seed, 0])
        kind = int(rng.choice(4, p=shares / shares.sum()))
        makers = (self.still, self.composite, self.twin, self.clip)
        film = makers[kind](rng)
        for _ in range(6):
            if len(film.sentences) >= 2:
                break
            film = makers[kind](rng)
        return film

    # ---- choosing

    def _background(self, rng: np.random.Generator) -> Picture:
        """A picture to paste on: few labelled objects, no crowd."""
        names = [n for n in ("coco_small", "voc_animals", "weizmann_horses") if n in self._by_set]
        odds = np.array([{"coco_small": 0.5, "voc_animals": 0.42, "weizmann_horses": 0.08}[n] for n in names])
        while True:
            options = self._by_set[names[int(rng.choice(len(names), p=odds / odds.sum()))]]
            picture = options[int(rng.integers(len(options)))]
            if len(picture.instances) <= 8 and not self.library.crowded(picture):
                return picture

    def _patch(self, rng: np.random.Generator, scene: Scene, like: Noun | None, avoid: set[str]) -> Patch:
        """A cut-out whose name is certain in the scene; of the class or group of ``like`` where that is wanted and found."""
        for attempt in range(40):
            drawn = bool(self._drawn_names) and rng.random() < self.config.drawn
            names = self._drawn_names if drawn or not self._photo_names else self._photo_names
            counts = self.library.drawn_classes if names is self._drawn_names else self.library.photo_classes
            if like is not None and attempt < 20:
                draw = rng.random()
                if draw < self.config.same_class:
                    names = [like.name] if like.name in counts else names
                elif draw < self.config.same_class + self.config.same_group:
                    group = [n for n in names if set(NOUNS[n].groups) & set(like.groups)]
                    names = group or names
            odds = np.sqrt([len(counts[n]) for n in names])
            name = names[int(rng.choice(len(names), p=odds / odds.sum()))]
            if name in avoid or (attempt < 30 and name in scene.open_classes):
                continue
            options = counts[name]
            option = options[int(rng.integers(len(options)))]
            patch = self.library.photo(*option) if isinstance(option, tuple) else self.library.drawing(option)
            if patch is not None:
                return patch
        return self.library.drawing(self.library.drawn[int(rng.integers(len(self.library.drawn)))][0])

    def _kinds(self, rng: np.random.Generator, count: int) -> list[str]:
        return [MOTIONS[int(rng.choice(4, p=(0.36, 0.40, 0.12, 0.12)))] for _ in range(count)]

    def _place(
        self,
        rng: np.random.Generator,
        patches: list[Patch],
        kinds: list[str],
        share: tuple[float, float] = (0.012, 0.13),
    ) -> list[_Path]:
        """Paths for all patches that keep them mostly apart."""
        placed: list[tuple[_Path, Patch]] = []
        for patch, kind in zip(patches, kinds, strict=True):
            best, least = None, 9.0
            for _ in range(10):
                motion = _motion(
                    rng, kind, self.config.frames, self.config.size, _scale_for(rng, patch, self.config.size, share)
                )
                overlap = max([_boxes_overlap((motion, patch), other) for other in placed], default=0.0)
                if overlap < least:
                    best, least = motion, overlap
                if overlap < 0.2:
                    break
            assert best is not None
            placed.append((best, patch))
        return [motion for motion, _ in placed]

    def _start(
        self, rng: np.random.Generator, picture: Picture, moves: bool, tight: float
    ) -> tuple[_Canvas, Scene, np.ndarray | None]:
        c = self.config
        maps = _view(rng, picture.size, c.size, c.frames, moves, tight)
        gain = float(rng.uniform(0.85, 1.12)) if self.library.split == "train" else 1.0
        canvas = _canvas_of(self.library, picture, maps, c.size, bool(rng.random() < 0.5), gain)
        scene = Scene((), picture.open_classes, picture.everywhere, fixed=not moves)
        return canvas, scene, _from_first(maps) if moves else None

    # ---- kinds of films

    def still(self, rng: np.random.Generator) -> WorldFilm:
        """A real picture, nothing pasted, under a camera that may pan and zoom."""
        names = [n for n in ("coco_small", "voc_animals", "weizmann_horses") if n in self._by_set]
        odds = np.array([{"coco_small": 0.6, "voc_animals": 0.36, "weizmann_horses": 0.04}[n] for n in names])
        while True:
            options = self._by_set[names[int(rng.choice(len(names), p=odds / odds.sum()))]]
            picture = options[int(rng.integers(len(options)))]
            if not self.library.crowded(picture):
                break
        moves = bool(rng.random() < self.config.still_camera_moves)
        canvas, scene, _ = self._start(rng, picture, moves, tight=0.72)
        return _finish(canvas, scene, self.config.sentences, rng, f"still:{picture.image.stem}")

    def composite(self, rng: np.random.Generator, objects: int | None = None) -> WorldFilm:
        """1-4 cut-outs on a real picture, each standing still or moving."""
        picture = self._background(rng)
        moves = bool(rng.random() < self.config.camera_moves)
        canvas, scene, camera = self._start(rng, picture, moves, tight=0.8)
        count = objects or int(rng.choice([1, 2, 3, 4], p=(0.12, 0.4, 0.32, 0.16)))
        patches: list[Patch] = []
        for _ in range(count):
            patches.append(self._patch(rng, scene, patches[0].noun if patches else None, set()))
        paths = self._place(rng, patches, self._kinds(rng, count))
        dyed = rng.random(count) < self.config.recoloured
        patches = [_dye(patch, _a_dye(rng)) if dye else patch for patch, dye in zip(patches, dyed, strict=True)]
        for patch, motion in zip(patches, paths, strict=True):
            _paste(canvas, patch, motion, camera, float(rng.uniform(0.88, 1.12)), bool(rng.random() < 0.5))
        return _finish(canvas, scene, self.config.sentences, rng, f"composite:{picture.image.stem}")

    def twin(self, rng: np.random.Generator, by: str | None = None) -> WorldFilm:
        """One cut-out two or three times, told apart by one thing only. by: place, motion, colour; drawn where None."""
        picture = self._background(rng)
        canvas, scene, _ = self._start(rng, picture, False, tight=0.8)
        present = {instance.noun.name for instance in picture.instances}
        patch = self._patch(rng, scene, None, present)
        by = by or str(rng.choice(["place", "motion", "colour"], p=[0.45, 0.3, 0.25]))
        count = 2 if by == "motion" or rng.random() < 0.65 else 3
        scale = _scale_for(rng, patch, self.config.size, (0.012, 0.09))
        mirrored, gain = bool(rng.random() < 0.5), float(rng.uniform(0.9, 1.1))
        kinds = (
            ["still", "straight"]
            if by == "motion" and rng.random() < 0.5
            else [str(rng.choice(["still", "straight"]))] * count
        )
        heading = float(rng.choice([0, 180, 90, 270]))
        headings = [heading, heading + 180.0] if by == "motion" else [heading] * count
        if by == "motion" and kinds[0] == "still" and kinds[1] == "still":
            kinds = ["straight", "straight"]
        if by != "motion" and rng.random() < self.config.rows:
            paths = self._row(
                rng, patch, _motion(rng, kinds[0], self.config.frames, self.config.size, scale, heading), count
            )
        else:
            paths = self._apart(rng, patch, scale, kinds, headings)
        dyes = rng.permutation(list(DYES))
        for k, motion in enumerate(paths):
            _paste(canvas, _dye(patch, str(dyes[k])) if by == "colour" else patch, motion, None, gain, mirrored)
        shares = {"class": 0.1, "colour": 0.1, "place": 0.1, "motion": 0.1, "none": 0.15, "several": 0.05} | {by: 0.6}
        mix = replace(self.config.sentences, weights=tuple(shares.items()))
        film = _finish(canvas, scene, mix, rng, f"twin_{by}:{picture.image.stem}")
        twins = {i for i, name in enumerate(film.classes) if name == patch.noun.name}
        renamed = tuple(
            replace(s, kind=f"twin_{s.kind}")
            if s.kind == by != "colour" and set(s.objects) <= twins and s.objects
            else s
            for s in film.sentences
        )
        return replace(film, sentences=renamed)

    def _apart(
        self, rng: np.random.Generator, patch: Patch, scale: float, kinds: list[str], headings: list[float]
    ) -> list[_Path]:
        """Paths of one patch, several times, that do not cover each other where that can be had."""
        placed: list[tuple[_Path, Patch]] = []
        for kind, heading in zip(kinds, headings, strict=True):
            best, least = None, 9.0
            for _ in range(14):
                near = scale * float(rng.uniform(0.93, 1.07))
                motion = _motion(rng, kind, self.config.frames, self.config.size, near, heading)
                overlap = max([_boxes_overlap((motion, patch), other) for other in placed], default=0.0)
                if overlap < least:
                    best, least = motion, overlap
                if overlap < 0.05:
                    break
            assert best is not None
            placed.append((best, patch))
        return [motion for motion, _ in placed]

    def _row(self, rng: np.random.Generator, patch: Patch, motion: _Path, count: int) -> list[_Path]:
        """One patch several times side by side (or one above the other), all but touching, on parallel paths."""
        axis = int(rng.random() < 0.25)
        room = self.config.size[1 - axis]
        side = patch.alpha.shape[1 - axis] * float(motion.scale.max())
        gap = float(rng.uniform(1.0, 1.35))
        shrink = min(1.0, 0.92 * room / (side * gap * count))
        step = side * gap * shrink
        offsets = (np.arange(count) - (count - 1) / 2) * step
        centre = motion.centre.copy()
        reach = offsets[-1] + side * shrink / 2
        low, high = reach - centre[:, axis].min(), room - reach - centre[:, axis].max()
        centre[:, axis] += np.clip(0.0, min(low, high), max(low, high)) if low > 0 or high < 0 else 0.0
        shifts = np.zeros((count, 2))
        shifts[:, axis] = offsets
        return [_Path(centre + shift, motion.scale * shrink, motion.angle) for shift in shifts]

    def clip(self, rng: np.random.Generator, video: Video | None = None) -> WorldFilm:
        """Frames of a DAVIS video, perhaps with cut-outs pasted over them."""
        video = video or self.library.videos[int(rng.integers(len(self.library.videos)))]
        c = self.config
        total = len(video.frames)
        step = int(rng.integers(1, max(2, min(8, (total - 1) // max(1, c.frames - 1)) + 1)))
        start = int(rng.integers(0, max(1, total - step * (c.frames - 1))))
        indices = [min(total - 1, start + step * k) for k in range(c.frames)]
        canvas = self._filmed(rng, video, indices, tight=0.8)
        scene = Scene((), video.open_classes, EVERYWHERE)
        alien = True
        if rng.random() < c.distractors:
            patches: list[Patch] = []
            like = video.noun if rng.random() < 0.5 else None
            for _ in range(int(rng.integers(1, 3))):
                patches.append(self._patch(rng, scene, like, {"person"}))
            for patch, motion in zip(
                patches, self._place(rng, patches, self._kinds(rng, len(patches)), (0.01, 0.07)), strict=True
            ):
                _paste(
                    canvas, patch, motion, None, float(rng.uniform(0.88, 1.12)), bool(rng.random() < 0.5), known=False
                )
                alien &= not (set(patch.noun.groups) & set(video.noun.groups)) and patch.noun.name != video.noun.name
        written: tuple[Sentence, ...] = ()
        if alien:
            picks = rng.permutation(len(video.written))[:2]
            written = tuple(
                Sentence(video.written[int(i)], "written", (1,)) for i in picks if not _sided(video.written[int(i)])
            )
        return _finish(canvas, scene, c.sentences, rng, f"davis:{video.name}", written)

    def _filmed(self, rng: np.random.Generator, video: Video, indices: list[int], tight: float) -> _Canvas:
        """Frames of a video through one window; its object is thing 1, of unknown motion."""
        c = self.config
        h, w = c.size
        first, _ = self.library.frame(video, indices[0])
        maps = _view(rng, first.shape[:2], c.size, 1, False, tight)[0]
        mirrored = bool(rng.random() < 0.5) and tight < 1
        frames, labels = np.empty((len(indices), h, w, 3), np.uint8), np.empty((len(indices), h, w), np.uint8)
        whole = np.empty(len(indices))
        for k, i in enumerate(indices):
            rgb, mask = self.library.frame(video, i)
            frames[k] = cv2.warpAffine(rgb, maps, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            labels[k] = cv2.warpAffine(mask.astype(np.uint8), maps, (w, h), flags=cv2.INTER_NEAREST)
            whole[k] = mask.sum() * maps[0, 0] * maps[1, 1]
        if mirrored:
            frames, labels = np.ascontiguousarray(frames[:, :, ::-1]), np.ascontiguousarray(labels[:, :, ::-1])
        path = np.zeros((len(indices), 2))
        ones = np.ones(len(indices))
        return _Canvas(frames, labels, [video.noun], [video.alone], [path], [None], [ones], [None], [whole])


def _from_first(maps: np.ndarray) -> np.ndarray:
    """Maps (T, 2, 3) from the film's first frame to frame t, of maps from a source picture to frame t (no rotation)."""
    out = np.zeros_like(maps)
    ratio = np.stack([maps[:, 0, 0] / maps[0, 0, 0], maps[:, 1, 1] / maps[0, 1, 1]], axis=1)
    out[:, 0, 0], out[:, 1, 1] = ratio[:, 0], ratio[:, 1]
    out[:, :, 2] = maps[:, :, 2] - ratio * maps[0, :, 2]
    return out


def _sided(text: str) -> bool:
    """Whether a sentence speaks of left or right (a mirrored clip would make it false)."""
    return any(word in ("left", "right") for word in text.split())


# ------------------------------------------------------------------------------------------------------- evaluation sets

_FOUR_KINDS = (("class", 0.22), ("colour", 0.22), ("place", 0.2), ("motion", 0.2), ("none", 0.16))


def composites(
    root: Path | str,
    split: str = "held_out",
    *,
    seed: int = 0,
    films: int = 460,
    objects: tuple[int, int] = (2, 4),
    size: tuple[int, int] = (224, 384),
    frames: int = 8,
) -> Iterator[WorldFilm]:
    """Films of ``objects`` (least, most) cut-outs on a real picture; kinds class, colour, place, motion and none."""
    mixture = Mixture(
        root, split=split, size=size, frames=frames, sentences=SentenceMix(count=8, weights=_FOUR_KINDS), recoloured=0.0
    )
    for index in range(films):
        rng = np.random.default_rng([seed, index, 1])
        yield mixture.composite(rng, objects=int(rng.integers(objects[0], objects[1] + 1)))


def stills(root: Path | str, split: str = "held_out", *, seed: int = 0, frames: int = 3) -> Iterator[WorldFilm]:
    """Every ``coco_small`` picture with two or more labelled objects and no crowd, nothing pasted, whole, at its own
    size, ``frames`` times; kinds class, colour, place and none."""
    library = Library(root, split)
    weights = (("class", 0.25), ("colour", 0.3), ("place", 0.25), ("none", 0.2))
    identity = np.tile(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (frames, 1, 1))
    for index, picture in enumerate(library.pictures):
        if picture.set_name != "coco_small" or len(picture.instances) < 2 or library.crowded(picture):
            continue
        rng = np.random.default_rng([seed, index, 2])
        canvas = _canvas_of(library, picture, identity, picture.size, False, 1.0)
        scene = Scene((), picture.open_classes, picture.everywhere, fixed=True)
        mix = SentenceMix(count=20, weights=weights)
        film = _finish(canvas, scene, mix, rng, f"still:{picture.image.stem}", keep=64)
        if film.sentences:
            yield film


def twins(
    root: Path | str,
    split: str = "held_out",
    *,
    seed: int = 0,
    films: int = 250,
    size: tuple[int, int] = (224, 384),
    frames: int = 8,
) -> Iterator[WorldFilm]:
    """One cut-out two or three times, told apart by place or by motion; only the sentences that tell them apart."""
    mixture = Mixture(root, split=split, size=size, frames=frames)
    for index in range(films):
        film = mixture.twin(np.random.default_rng([seed, index, 3]), by=("place", "motion")[index % 2])
        told = tuple(s for s in film.sentences if s.kind.startswith("twin_"))
        if told:
            yield replace(film, sentences=told)


def long_films(
    root: Path | str,
    split: str = "held_out",
    *,
    seed: int = 0,
    films: int = 80,
    size: tuple[int, int] = (224, 384),
    frames: int = 60,
) -> Iterator[WorldFilm]:
    """Composites and twins of ``frames`` frames (several windows), to see whether a track changes object."""
    mix = SentenceMix(count=6, weights=(("class", 0.3), ("colour", 0.2), ("place", 0.25), ("motion", 0.25)))
    mixture = Mixture(root, split=split, size=size, frames=frames, sentences=mix)
    for index in range(films):
        rng = np.random.default_rng([seed, index, 4])
        film = mixture.twin(rng) if index % 3 == 2 else mixture.composite(rng, objects=int(rng.integers(2, 5)))
        yield replace(film, sentences=tuple(s for s in film.sentences if s.objects))


def davis(root: Path | str, names: tuple[str, ...] = HELD_OUT_VIDEOS) -> Iterator[WorldFilm]:
    """Whole DAVIS videos at their own size with the sentences written for them (every second frame, 12 a second)."""
    folder = Path(root) / "davis_train"
    told = json.loads((folder / "expressions.json").read_text())
    for name in names:
        video = read_video(folder, name, told[name])
        frames = np.stack([read_rgb(path) for path in video.frames])
        masks = np.stack([read_labels(path) > 0 for path in video.masks])[:, None]
        sentences = tuple(Sentence(text, "written", (0,)) for text in video.written)
        times = tuple(i / 12 for i in range(len(frames)))
        yield WorldFilm(frames, masks, sentences, times=times, classes=(video.noun.name,), name=f"davis:{name}")
