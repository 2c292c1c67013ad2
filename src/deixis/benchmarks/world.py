"""world: a generated benchmark with exact truth, made from a seed and nothing else.

Films of 1-5 moving objects (drawn shapes with textures; cut-outs of real objects on real pictures where a folder of
them is given), with exact visible masks, exact optical flow, and sentences about appearance, place, motion, time,
relation, several and none. ``write_mevis`` puts them on disk in the layout of MeViS, with truth for every split.
T frames, N objects, H W pixels.

What the splits hold out: ``train`` has neither HELD_OUT_SHAPES, nor held-out pairs of colour and shape, nor held-out
backgrounds, nor held-out cut-outs; ``valid_u`` has new pairs, backgrounds and cut-outs, but known shapes; ``valid`` has
new shapes too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deixis.benchmarks.cutouts import Library, Patch
from deixis.benchmarks.painting import (
    Canvas,
    Motion,
    Moving,
    canvas_of,
    finish,
    from_first,
    keep_apart,
    paste,
    scale_for,
    view,
)
from deixis.benchmarks.predicates import (
    COLOURS,
    TEXTURES,
    THRESHOLDS,
    Scene,
    Sentence,
    SentenceMix,
    Thresholds,
    WorldFilm,
)
from deixis.benchmarks.vocabulary import SHAPES
from deixis.types import DeixisError, encode_rle

log = logging.getLogger(__name__)

SPLITS = ("train", "valid_u", "valid")
SHARES = {"train": 0.8, "valid_u": 0.1, "valid": 0.1}  # of the films that are written
HELD_OUT_SHAPES = ("crescent", "drop")
HELD_OUT_BACKGROUNDS = ("stripes", "rings")
BACKGROUNDS = ("plain", "gradient", "noise", "tiles", *HELD_OUT_BACKGROUNDS)
# RGB of the drawn shapes; in the middle of what the colour predicate calls certain. Our choice.
PAINTS = {
    "black": (24, 24, 26), "white": (246, 246, 244), "grey": (128, 128, 130), "red": (206, 28, 32),
    "orange": (240, 136, 20), "yellow": (238, 216, 40), "green": (36, 168, 58), "blue": (38, 84, 214),
    "purple": (146, 44, 196), "pink": (240, 130, 180), "brown": (122, 76, 40),
}  # fmt: skip
_SIDE = 128  # pixels of a drawn shape's patch


def held_out_pair(colour: str, shape: str) -> bool:
    """Whether a colour and a shape never meet in the training split (about one pair in five)."""
    return int(hashlib.sha1(f"{colour} {shape}".encode()).hexdigest(), 16) % 5 == 0


MOST_PIXELS = 1 << 30  # of all frames of a film (our choice: 24 frames of 8K film hold 800 million)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What films are made. All numbers are our choice."""

    size: tuple[int, int] = (240, 432)  # H, W in pixels
    frames: int = 24
    rate: float = 6.0  # frames a second
    objects: tuple[int, int] = (1, 5)  # least and most
    cutouts: Path | None = None  # a folder like shared/data; None: drawn shapes only
    cutout_share: float = 0.5  # of the films, where a folder is given
    areas: tuple[float, float] = (0.012, 0.06)  # share of the picture that an object covers, least and most
    camera_moves: float = 0.25  # chance of a moving camera
    same_shape: float = 0.45  # chance that a further object has the shape (or class) of the first
    same_colour: float = 0.3  # chance that it has its colour
    pairs: float = 0.5  # chance that two objects of a film stand in a relation (one hides, or follows, the other)
    sentences: SentenceMix = field(
        default_factory=lambda: SentenceMix(
            count=10,
            most_none=0.15,
            weights=(
                ("class", 0.12), ("colour", 0.16), ("texture", 0.06), ("size", 0.2), ("place", 0.14), ("motion", 0.2),
                ("time", 0.3), ("relation", 0.3), ("several", 0.1), ("none", 0.12),
            ),
        )
    )  # fmt: skip
    flow: bool = True  # whether films carry their optical flow
    thresholds: Thresholds = field(default_factory=lambda: replace(THRESHOLDS, seen=0.3))

    def __post_init__(self) -> None:
        if not 1 <= self.objects[0] <= self.objects[1] <= 20:
            raise DeixisError(f"WorldConfig.objects must be (least, most) within 1..20, got {self.objects}")
        if self.frames < 2 or min(self.size) < 32:
            raise DeixisError(f"a film needs 2 frames and 32 pixels a side, got {self.frames} of {self.size}")
        if self.frames * self.size[0] * self.size[1] > MOST_PIXELS:
            raise DeixisError(
                f"a film of {self.frames} x {self.size} pixels is made in memory; expected {MOST_PIXELS:,} at most"
            )
        if not 0 < self.areas[0] <= self.areas[1] <= 0.5:
            raise DeixisError(f"WorldConfig.areas must be (least, most) shares within 0..0.5, got {self.areas}")


# ---- drawing


def _polygon(points: np.ndarray) -> np.ndarray:
    """A filled polygon, points in -1..1, as a (_SIDE, _SIDE) uint8 alpha with soft edges."""
    big = np.zeros((_SIDE * 4, _SIDE * 4), np.uint8)
    cv2.fillPoly(big, [np.round((np.asarray(points) * 0.94 + 1) * _SIDE * 2).astype(np.int32)], 255)
    return cv2.resize(big, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def _round_points(radii: np.ndarray, start: float = -90.0) -> np.ndarray:
    """Points around the centre at equal angles, with the radii given."""
    angles = np.radians(start + np.arange(len(radii)) * 360 / len(radii))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 200)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 17, (y + 2) / 17], axis=1)


def _drop() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 200)
    return np.stack([0.9 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], axis=1)


def _disc_less(cx: float, radius: float) -> np.ndarray:
    """The unit disc without a disc of the given centre and radius, as alpha."""
    disc, hole = np.zeros((_SIDE * 4,) * 2, np.uint8), np.zeros((_SIDE * 4,) * 2, np.uint8)
    middle, unit = _SIDE * 2, _SIDE * 2 * 0.94
    cv2.circle(disc, (middle, middle), int(unit), 255, -1)
    cv2.circle(hole, (int(middle + cx * unit), middle), int(radius * unit), 255, -1)
    disc[hole > 0] = 0
    return cv2.resize(disc, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


_CROSS = [
    (-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3), (.3, 1), (-.3, 1), (-.3, .3), (-1, .3), (-1, -.3),
    (-.3, -.3),
]  # fmt: skip
_ARROW = [(-1, -.3), (.1, -.3), (.1, -.8), (1, 0), (.1, .8), (.1, .3), (-1, .3)]  # fmt: skip
SHAPE_ALPHAS: dict[str, Callable[[], np.ndarray]] = {
    "circle": lambda: _polygon(_round_points(np.ones(90))),
    "square": lambda: _polygon(np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)])),
    "triangle": lambda: _polygon(_round_points(np.ones(3))),
    "star": lambda: _polygon(_round_points(np.tile([1.0, 0.42], 5))),
    "heart": lambda: _polygon(_heart()),
    "cross": lambda: _polygon(np.array(_CROSS)),
    "hexagon": lambda: _polygon(_round_points(np.ones(6), 0.0)),
    "crescent": lambda: _disc_less(0.45, 0.8),
    "arrow": lambda: _polygon(np.array(_ARROW)),
    "hoop": lambda: _disc_less(0.0, 0.58),
    "rhombus": lambda: _polygon(np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)])),
    "drop": lambda: _polygon(_drop()),
}


def draw_shape(shape: str, colour: str, texture: str, rng: np.random.Generator) -> Patch:
    """A drawn shape: one colour, its texture a darker or lighter shade of it."""
    alpha = SHAPE_ALPHAS[shape]()
    paint = np.array(PAINTS[colour], dtype=np.float32)
    dark = float(paint.mean()) < 60
    shade = paint + 34 if dark else paint * (0.84 if colour in ("white", "grey") else 0.72)
    y, x = np.mgrid[0:_SIDE, 0:_SIDE]
    period = int(rng.integers(14, 22))
    mark = {
        "plain": np.zeros_like(x, bool),
        "striped": (x + y) % period < period * 0.45,
        "dotted": ((x % period - period / 2) ** 2 + (y % period - period / 2) ** 2) < (period * 0.28) ** 2,
        "checkered": (x // (period // 2) + y // (period // 2)) % 2 == 0,
    }[texture]
    rgb = np.where(mark[..., None], shade, paint) + rng.normal(0, 2.0, (_SIDE, _SIDE, 1))
    return Patch(np.clip(rgb, 0, 255).astype(np.uint8), alpha, SHAPES[shape], drawn=True)


def draw_background(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A muted picture (h, w, 3) uint8 in which no shape of the vocabulary stands."""
    h, w = size
    tint = np.array([150.0, 150.0, 150.0]) + rng.uniform(-26, 26) + rng.uniform(-9, 9, 3)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    shade: np.ndarray
    if kind == "plain":
        shade = np.zeros((h, w), np.float32)
    elif kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        shade = ((x - w / 2) * np.cos(angle) + (y - h / 2) * np.sin(angle)) / max(h, w) * 60
    elif kind == "noise":
        coarse = rng.normal(0, 1, (max(2, h // 24), max(2, w // 24))).astype(np.float32)
        shade = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC) * 14
    elif kind == "tiles":
        side = int(rng.integers(18, 40))
        shade = ((x // side + y // side) % 2) * 18 - 9
    elif kind == "stripes":
        period = int(rng.integers(24, 50))
        shade = ((x + rng.uniform(-1, 1) * y) % period < period / 2) * 20.0 - 10
    else:
        centre = rng.uniform(0.2, 0.8, 2) * (w, h)
        shade = np.sin(np.hypot(x - centre[0], y - centre[1]) / rng.uniform(5, 9)) * 11
    grain = rng.normal(0, 3.0, (h, w))
    return np.clip(tint + (shade + grain)[..., None], 0, 255).astype(np.uint8)


# ---- motions

MOTIONS = ("still", "straight", "curve", "closer", "away", "enters", "leaves", "stops", "starts")
_MOTION_ODDS = (0.2, 0.24, 0.1, 0.08, 0.08, 0.1, 0.08, 0.07, 0.05)


def _world_motion(rng: np.random.Generator, kind: str, config: WorldConfig, patch: Patch, scale: float) -> Motion:
    """A path of the kind; ``scale`` is film pixels per patch pixel."""
    h, w = config.size
    t = config.frames
    s = np.linspace(0, 1, t)
    heading = np.radians(float(rng.choice([0, 180, 0, 180, 90, 270])) + float(rng.normal(0, 7)))
    length = float(np.hypot(h, w)) * float(rng.uniform(0.15, 0.45))
    progress = s
    turn = 0.0
    grows = np.ones(t)
    if kind == "still":
        length = 0.0
    elif kind in ("closer", "away"):
        ratio = float(rng.uniform(1.45, 2.0))
        grows = ratio ** (s if kind == "closer" else 1 - s) / np.sqrt(ratio)
        length = 0.0
    elif kind == "curve":
        turn = float(rng.choice([-1, 1]) * np.radians(rng.uniform(80, 140)))
    elif kind in ("stops", "starts"):
        halt = float(rng.uniform(0.35, 0.6))
        progress = np.minimum(s / halt, 1.0) if kind == "stops" else np.maximum((s - 1 + halt) / halt, 0.0)
    angles = heading + turn * np.clip(progress * 2 - 0.5, 0, 1)
    steps = np.stack([np.cos(angles[1:]), np.sin(angles[1:])], axis=1) * (np.diff(progress) * length)[:, None]
    offset = np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])
    reach = np.array(patch.alpha.shape[::-1]) * scale * 0.5
    low, high = reach + 2, np.array([w, h]) - reach - 2
    if kind in ("enters", "leaves"):
        return _through_edge(rng, kind, config, reach, scale)
    spread = offset.max(axis=0) - offset.min(axis=0)
    offset = offset * float(min(1.0, *(np.maximum(high - low, 1) / np.maximum(spread, 1e-6))))
    least = low - offset.min(axis=0)
    start = rng.uniform(least, np.maximum(high - offset.max(axis=0), least + 1e-6))
    return Motion(start + offset, scale * grows, np.full(t, float(rng.normal(0, 8))))


def _through_edge(rng: np.random.Generator, kind: str, config: WorldConfig, reach: np.ndarray, scale: float) -> Motion:
    """In over one edge of the picture (or out over it): out of sight at one end of the film, well inside at the other
    end."""
    h, w = config.size
    outside = float(np.hypot(*reach)) + 2
    side = int(rng.integers(4))
    inner = rng.uniform([0.3 * w, 0.3 * h], [0.7 * w, 0.7 * h])
    outer = inner.copy()
    outer[side % 2] = -outside if side < 2 else (w, h)[side % 2] + outside
    wait = float(rng.uniform(0.0, 0.3))
    progress = np.clip((np.linspace(0, 1, config.frames) - wait) / (1 - wait), 0, 1)[:, None]
    path = outer + (inner - outer) * progress
    path = path if kind == "enters" else path[::-1]
    return Motion(path, np.full(config.frames, scale), np.zeros(config.frames))


def _companion(
    rng: np.random.Generator, lead: Motion, config: WorldConfig, patch: Patch, scale: float
) -> Motion | None:
    """A path that follows the lead's, or a place on its way, so that one hides the other; None if it cannot be."""
    h, w = config.size
    way = lead.centre[-1] - lead.centre[0]
    length = float(np.hypot(*way))
    reach = np.array(patch.alpha.shape[::-1]) * scale * 0.5
    if length > 0.12 * np.hypot(h, w) and rng.random() < 0.6:
        gap = (float(reach.max()) * 2 + float(rng.uniform(4, 30))) * way / length
        path = lead.centre - gap
    else:
        middle = lead.centre[config.frames // 2]
        offset = np.array(
            [float(reach[0]) * rng.uniform(0.6, 1.1) * rng.choice([-1, 1]), float(reach[1]) * rng.uniform(-0.4, 0.4)]
        )
        path = np.broadcast_to(middle + offset, lead.centre.shape)
    inside = (path >= reach * 0.6).all() and (path <= np.array([w, h]) - reach * 0.6).all()
    return Motion(np.array(path), np.full(config.frames, scale), np.zeros(config.frames)) if inside else None


def _any_motion(rng: np.random.Generator, config: WorldConfig, patch: Patch, scale: float) -> Motion:
    return _world_motion(rng, str(rng.choice(MOTIONS, p=_MOTION_ODDS)), config, patch, scale)


def _overlap(a: Moving, b: Moving) -> float:
    """The largest share of the smaller object's circle that lies within the other's, over the film, roughly (0..1)."""
    gap = np.hypot(*(a[0].centre - b[0].centre).T)
    radii = [0.45 * max(p.alpha.shape) * m.scale for m, p in (a, b)]
    return float(np.clip((radii[0] + radii[1] - gap) / (2 * np.minimum(*radii)), 0, 1).max())


# ---- films


class World:
    """The films of one split: ``film(seed)`` is the same for the same config, split and seed, on every machine.

    >>> film = World(split="train").film(7)
    >>> film.frames.shape, film.masks.shape[0], film.flow.shape
    ((24, 240, 432, 3), 24, (23, 240, 432, 2))
    """

    def __init__(self, split: str = "train", config: WorldConfig | None = None) -> None:
        if split not in SPLITS:
            raise DeixisError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        self.split, self.config = split, config or WorldConfig()
        folder = self.config.cutouts
        self.library = None if folder is None else Library(folder, "train" if split == "train" else "held_out")

    def film(self, seed: int) -> WorldFilm:
        """A film with frames, visible masks, sentences and flow. seed: any integer of 0 or more."""
        rng = np.random.default_rng([seed, SPLITS.index(self.split)])
        for _ in range(20):
            real = self.library is not None and rng.random() < self.config.cutout_share
            film = self._film(rng, real, f"{self.split}_{seed:05d}")
            if film.sentences:
                return film
        raise AssertionError("twenty films in a row without a sentence")

    def _film(self, rng: np.random.Generator, real: bool, name: str) -> WorldFilm:
        c = self.config
        moves = bool(rng.random() < c.camera_moves)
        canvas, scene, maps = self._real_scene(rng, moves) if real else self._drawn_scene(rng, moves)
        camera = from_first(maps) if moves else None
        objects = self._objects(rng, int(rng.integers(c.objects[0], c.objects[1] + 1)), scene if real else None)
        for (patch, texture), motion in zip(objects, self._motions(rng, [p for p, _ in objects]), strict=True):
            paste(canvas, patch, motion, camera, 1.0, False, texture=texture)
        film = finish(canvas, scene, c.sentences, rng, name, keep=20, thresholds=c.thresholds)
        sentences = tuple(s for s in film.sentences if real or self._allowed(s))
        times = tuple(i / c.rate for i in range(c.frames))
        return replace(film, sentences=sentences, flow=exact_flow(canvas, maps) if c.flow else None, times=times)

    def _allowed(self, sentence: Sentence) -> bool:
        """Training never speaks of a held-out shape, or of a held-out pair of colour and shape."""
        if self.split != "train":
            return True
        words = sentence.text.replace("-", " ").split()
        shapes = [n.name for n in SHAPES.values() if any(w in words for w in n.true if w != "shape")]
        colours = [c for c in COLOURS if c in words]
        if any(s in HELD_OUT_SHAPES for s in shapes):
            return False
        return not any(held_out_pair(c, s) for c in colours for s in shapes)

    def _drawn_scene(self, rng: np.random.Generator, moves: bool) -> tuple[Canvas, Scene, np.ndarray]:
        c = self.config
        new = self.split != "train"
        kinds = HELD_OUT_BACKGROUNDS if new else tuple(b for b in BACKGROUNDS if b not in HELD_OUT_BACKGROUNDS)
        source = (int(c.size[0] * 1.4), int(c.size[1] * 1.4))
        picture = draw_background(kinds[int(rng.integers(len(kinds)))], source, rng)
        maps = view(rng, source, c.size, c.frames, moves, tight=0.72)
        h, w = c.size
        frames = np.stack(
            [cv2.warpAffine(picture, m, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) for m in maps]
        )
        known = {n: s for n, s in SHAPES.items() if new or n not in HELD_OUT_SHAPES}
        scene = Scene((), frozenset(), frozenset(), plain=True, fixed=not moves, nouns=known, everyday=frozenset(known))
        return Canvas(frames, np.zeros(frames.shape[:3], np.uint8)), scene, maps

    def _real_scene(self, rng: np.random.Generator, moves: bool) -> tuple[Canvas, Scene, np.ndarray]:
        assert self.library is not None
        c = self.config
        picture = self.library.background(rng)
        maps = view(rng, picture.size, c.size, c.frames, moves, tight=0.8)
        canvas = canvas_of(self.library, picture, maps, c.size, False, 1.0)
        return canvas, Scene((), picture.open_classes, picture.everywhere, fixed=not moves), maps

    def _objects(self, rng: np.random.Generator, count: int, real: Scene | None) -> list[tuple[Patch, str]]:
        """Cut-outs (for a real scene) or drawn shapes, with their texture."""
        c = self.config
        made: list[tuple[Patch, str]] = []
        if real is not None:
            assert self.library is not None
            for _ in range(count):
                like = made[0][0].noun if made else None
                patch = self.library.any_patch(rng, real.open_classes, like=like, same_class=c.same_shape)
                made.append((patch, ""))
            return made
        first: tuple[str, str] | None = None
        for _ in range(count):
            shape, colour = self._pair(rng, first)
            first = first or (shape, colour)
            texture = TEXTURES[int(rng.choice(4, p=(0.55, 0.15, 0.15, 0.15)))]
            made.append((draw_shape(shape, colour, texture, rng), texture))
        return made

    def _pair(self, rng: np.random.Generator, first: tuple[str, str] | None) -> tuple[str, str]:
        """A shape and a colour that the split allows; held-out ones never in training, and often in the others."""
        c, train = self.config, self.split == "train"
        while True:
            shape = str(rng.choice(list(SHAPES)))
            colour = str(rng.choice(COLOURS))
            if first is not None:
                shape = first[0] if rng.random() < c.same_shape else shape
                colour = first[1] if rng.random() < c.same_colour else colour
            new_pair, new_shape = held_out_pair(colour, shape), shape in HELD_OUT_SHAPES
            if new_shape and self.split != "valid":
                continue
            if train and new_pair:
                continue
            if not train and not (new_pair or new_shape) and rng.random() < 0.6:
                continue
            return shape, colour

    def _motions(self, rng: np.random.Generator, patches: list[Patch]) -> list[Motion]:
        """A path for each; the last of a pair may follow, or stand by, the first; others keep apart where they can."""
        c = self.config
        placed: list[tuple[Motion, Patch]] = []
        paired = len(patches) > 1 and rng.random() < c.pairs
        for index, patch in enumerate(patches):
            scale = scale_for(rng, patch, c.size, c.areas)
            companion = _companion(rng, placed[0][0], c, patch, scale) if paired and index == 1 else None
            if companion is not None:
                placed.append((companion, patch))
                continue
            draw = partial(_any_motion, rng, c, patch, scale)
            placed.append((keep_apart(draw, patch, placed, _overlap, tries=12, enough=0.05), patch))
        return [motion for motion, _ in placed]


def exact_flow(canvas: Canvas, maps: np.ndarray) -> np.ndarray:
    """(T-1, H, W, 2) float32: where what stands at a pixel of frame t goes in frame t+1 (dx, dy, pixels).

    Of the visible surface at t; it may be hidden, or outside, at t+1. maps: (T, 2, 3) of the background.
    """
    t, h, w = canvas.labels.shape
    flow = np.zeros((t - 1, h, w, 2), np.float32)
    for i in range(t - 1):
        if not np.array_equal(maps[i], maps[i + 1]):
            y, x = np.ogrid[0:h, 0:w]
            flow[i] = _displacement(maps[i], maps[i + 1], x.astype(np.float32), y.astype(np.float32))
        for label, layer in enumerate(canvas.layers, start=1):
            if layer.affine is not None:
                y, x = np.nonzero(canvas.labels[i] == label)
                flow[i, y, x] = _displacement(layer.affine[i], layer.affine[i + 1], x, y)
    return flow


def _displacement(now: np.ndarray, then: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(..., 2): how far the points x, y go when what they show is mapped by ``then`` instead of ``now``."""
    step = then @ np.linalg.inv(np.vstack([now, [0.0, 0.0, 1.0]]))  # (2, 3): from one frame to the next
    dx = (step[0, 0] - 1) * x + step[0, 1] * y + step[0, 2]
    dy = step[1, 0] * x + (step[1, 1] - 1) * y + step[1, 2]
    return np.stack([dx, dy], axis=-1).astype(np.float32)


def world_films(split: str, films: int, *, seed: int = 0, config: WorldConfig | None = None) -> Iterator[WorldFilm]:
    """``films`` films of a split, one after the other."""
    world = World(split, config)
    for index in range(films):
        yield world.film(seed * 1_000_003 + index)


# ---- on disk


def films_per_split(films: int) -> dict[str, int]:
    """How many of ``films`` go to each split: by SHARES, at least one each where there are three or more."""
    held = {split: max(1, round(films * SHARES[split])) if films >= len(SPLITS) else 0 for split in SPLITS[1:]}
    return {"train": films - sum(held.values()), **held}


def write_mevis(
    folder: Path,
    films: int,
    *,
    seed: int = 0,
    config: WorldConfig | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Write films in MeViS's layout (train, valid_u, valid; JPEGImages, mask_dict.json, meta_expressions.json).

    Every split has its truth; an expression has the extra key "kind", a video "fps" and "classes". Written beside
    ``folder`` and renamed when complete; ``progress`` hears how many films are done. Returns the films of each split.
    Raises DeixisError if the folder exists and is not empty, films is below 1, or seed below 0.
    """
    folder = Path(folder)
    if seed < 0:
        raise DeixisError(f"the seed must be 0 or more, got {seed}")
    if films < 1:
        raise DeixisError(f"the number of films must be 1 or more, got {films}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeixisError(f"{folder} exists already and is not an empty folder; name a new one")
    config = replace(config or WorldConfig(), flow=False)
    counts = films_per_split(films)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        done = 0
        for split, count in counts.items():
            for film in _written(part / split, world_films(split, count, seed=seed, config=config), config.rate):
                done += 1
                progress(done)
                log.debug("wrote %s", film)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return counts


def _written(folder: Path, films: Iterator[WorldFilm], rate: float) -> Iterator[str]:
    """Write a split film by film, naming each; its two indices at the end."""
    masks: dict[str, list[dict[str, Any] | None]] = {}
    videos: dict[str, Any] = {}
    for film in films:
        names = [f"{i:05d}" for i in range(len(film.frames))]
        _write_frames(folder / "JPEGImages" / film.name, names, film.frames)
        first = len(masks)
        for k in range(film.masks.shape[1]):
            masks[str(first + k)] = [_plain_rle(frame) for frame in film.masks[:, k]]
        expressions = {
            str(i): {
                "exp": s.text,
                "obj_id": list(s.objects),
                "anno_id": [first + k for k in s.objects],
                "kind": s.kind,
            }
            for i, s in enumerate(film.sentences)
        }
        videos[film.name] = {"frames": names, "expressions": expressions, "fps": rate, "classes": list(film.classes)}
        yield film.name
    if videos:
        (folder / "mask_dict.json").write_text(json.dumps(masks))
        (folder / "meta_expressions.json").write_text(json.dumps({"videos": videos}, indent=1))


def _write_frames(folder: Path, names: list[str], frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, frame in zip(names, frames, strict=True):
        path = folder / f"{name}.jpg"
        if not cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise DeixisError(f"could not write {path}; is the disk full?")


def _plain_rle(mask: np.ndarray) -> dict[str, Any] | None:
    """COCO's compressed RLE with text counts (for JSON), or None where nothing is visible."""
    if not mask.any():
        return None
    rle = encode_rle(np.ascontiguousarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
