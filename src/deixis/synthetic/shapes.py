"""Drawn shapes and backgrounds, and which of them are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import cv2
import numpy as np

from deixis.synthetic.cutouts import Patch
from deixis.synthetic.vocabulary import SHAPES

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
