"""Transforms that keep frames, masks, boxes, flow and words in agreement. T frames, N objects, H W pixels.

Each takes a film with its sentences and returns a new one; ``augment`` draws them from a config. Boxes are always
computed from the masks (``boxes_of``), so that they cannot disagree with them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import cv2
import numpy as np

from deixis.synthetic.colours import COLOUR_NAMES
from deixis.synthetic.scene import SyntheticVideo
from deixis.types import DeixisError

_SWAPS = {
    "left": "right", "leftmost": "rightmost", "leftward": "rightward", "leftwards": "rightwards",
    "lefthand": "righthand", "leftside": "rightside", "clockwise": "counterclockwise",
}  # fmt: skip
_SWAPS |= {b: a for a, b in _SWAPS.items()} | {"anticlockwise": "clockwise"}
# "right behind" only stresses, "has left" is a form of "leave": a mirror does not change them. After a verb of motion
# ("moves right behind the car") the word is a side all the same.
_STRESSED = frozenset({
    "behind", "in", "next", "beside", "before", "after", "away", "now", "above", "below", "under", "there", "here",
    "at", "into", "through", "against", "on",
})  # fmt: skip
_LEFT_AS_VERB = (
    frozenset({"has", "have", "had", "who", "that", "which", "be", "being", "all"}),
    frozenset({"alone", "behind", "over"}),
)
_MOTIONS = re.compile(
    r"(?:mov|go|turn|head|walk|run|driv|swim|fl[yi]|fac|look|step|slid|drift|travel|lean|point|shift|jump|roll|rid|swerv)\w*$"
)
_WORDS = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")
_COLOUR_WORDS = re.compile(
    r"\b(?:" + "|".join((*COLOUR_NAMES, "gray", "dark", "light", "golden", "silver", "beige")) + r")\b", re.IGNORECASE
)


def mirror_words(text: str) -> str:
    """A sentence about the mirrored film: left and right change places, as whole words that name a side.

    >>> mirror_words("the bright dog on the left, right behind the leftmost tree")
    'the bright dog on the right, right behind the rightmost tree'
    """
    words = list(_WORDS.finditer(text))
    out, done = [], 0
    for index, match in enumerate(words):
        before = words[index - 1][0].lower() if index else ""
        after = words[index + 1][0].lower() if index + 1 < len(words) else ""
        out += [text[done : match.start()], _mirrored(match[0], before, after)]
        done = match.end()
    return "".join(out) + text[done:]


def _mirrored(word: str, before: str, after: str) -> str:
    """One word of a mirrored sentence; a word with hyphens is turned part by part."""
    lower = word.lower().replace("counter-", "counter").replace("anti-", "anti")
    if lower not in _SWAPS:
        parts = word.split("-")
        return "-".join(_mirrored(part, "", "") for part in parts) if len(parts) > 1 else word
    if lower == "right" and before == "all":
        return word
    if lower == "right" and after in _STRESSED and before not in ("the", "to", "far") and not _MOTIONS.match(before):
        return word
    if lower == "left" and (before in _LEFT_AS_VERB[0] or after in _LEFT_AS_VERB[1]) and after not in ("of", "side"):
        return word
    other = _SWAPS[lower]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """(T, N, H, W) bool masks -> (T, N, 4) float32 boxes, cx cy w h as shares of the frame; 0 where not visible."""
    t, n, h, w = masks.shape
    columns: np.ndarray = np.any(masks, axis=2)  # (T, N, W)
    rows: np.ndarray = np.any(masks, axis=3)  # (T, N, H)
    x0, x1 = columns.argmax(axis=2), w - np.flip(columns, 2).argmax(axis=2)
    y0, y1 = rows.argmax(axis=2), h - np.flip(rows, 2).argmax(axis=2)
    boxes = np.stack([(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h], axis=-1)
    boxes[masks.sum(axis=(2, 3)) == 0] = 0.0
    return boxes.astype(np.float32).reshape(t, n, 4)


def flip(film: SyntheticVideo) -> SyntheticVideo:
    """The film in a mirror: pixels, masks and flow are turned over, and left and right swapped in the sentences."""
    flow = None if film.flow is None else np.ascontiguousarray(film.flow[:, :, ::-1]) * np.array([-1, 1], np.float32)
    return replace(
        film,
        frames=np.ascontiguousarray(film.frames[:, :, ::-1]),
        masks=np.ascontiguousarray(film.masks[..., ::-1]),
        ignore=None if film.ignore is None else np.ascontiguousarray(film.ignore[..., ::-1]),
        flow=flow,
        sentences=tuple(replace(s, text=mirror_words(s.text)) for s in film.sentences),
    )


def crop(film: SyntheticVideo, top: int, left: int, height: int, width: int) -> SyntheticVideo:
    """A window of the film, in pixels. Raises DeixisError if it does not lie within the frames."""
    h, w = film.frames.shape[1:3]
    if min(top, left) < 0 or min(height, width) < 1 or top + height > h or left + width > w:
        raise DeixisError(
            f"crop {(top, left, height, width)} must lie within {h}x{w} pixels; give top, left, height, width"
        )
    window = (slice(None), slice(top, top + height), slice(left, left + width))
    return replace(
        film,
        frames=np.ascontiguousarray(film.frames[window]),
        masks=np.ascontiguousarray(film.masks[..., top : top + height, left : left + width]),
        ignore=None if film.ignore is None else np.ascontiguousarray(film.ignore[window]),
        flow=None if film.flow is None else np.ascontiguousarray(film.flow[window]),
    )


def resize_video(film: SyntheticVideo, size: tuple[int, int]) -> SyntheticVideo:
    """The film at (H, W) pixels; masks are resized smoothly and cut at one half, flow is scaled with the pixels."""
    h, w = film.frames.shape[1:3]
    if size == (h, w):
        return film
    to, how = (size[1], size[0]), cv2.INTER_AREA if size[0] * size[1] < h * w else cv2.INTER_LINEAR
    t, n = film.masks.shape[:2]

    def masks_at(masks: np.ndarray) -> np.ndarray:
        flat = masks.reshape(-1, h, w).astype(np.uint8) * 255
        small = [cv2.resize(m, to, interpolation=how) > 127 for m in flat]
        return (
            np.stack(small).reshape(*masks.shape[:-2], *size) if small else np.zeros((*masks.shape[:-2], *size), bool)
        )

    flow = film.flow
    if flow is not None:
        scaled = np.stack([cv2.resize(f, to, interpolation=cv2.INTER_NEAREST) for f in flow])
        flow = scaled * np.array([size[1] / w, size[0] / h], np.float32)
    return replace(
        film,
        frames=np.stack([cv2.resize(f, to, interpolation=how) for f in film.frames]),
        masks=masks_at(film.masks).reshape(t, n, *size),
        ignore=None if film.ignore is None else masks_at(film.ignore),
        flow=flow,
    )


def jitter(film: SyntheticVideo, brightness: float, contrast: float, saturation: float) -> SyntheticVideo:
    """Other light, the same for the whole film: factors around 1. The hue is never turned, so that red stays red."""
    x = film.frames.astype(np.float32)
    grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    x = grey + (x - grey) * saturation
    middle = float(grey.mean())
    x = ((x - middle) * contrast + middle) * brightness
    return replace(film, frames=np.clip(x, 0, 255).astype(np.uint8))


def speaks_of_colour(film: SyntheticVideo) -> bool:
    """Whether a sentence of the film has a colour word."""
    return any(_COLOUR_WORDS.search(s.text) for s in film.sentences)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What ``augment`` draws. All numbers are our choice unless marked; chances and factors in 0..1."""

    flip: float = 0.5  # chance of a mirror (read: common to RVOS code)
    crop: float = 0.5  # chance of a window
    least_window: float = 0.7  # its least height and width, as shares
    kept: float = 0.75  # share of every visible object, in every frame, that a window must keep
    light: float = 0.2  # brightness, contrast and saturation vary by this factor at most
    light_with_colours: float = 0.08  # the same where a sentence has a colour word: pale red is soon pink
    size: tuple[int, int] | None = None  # H, W in pixels of the result; None: as it comes


def augment(film: SyntheticVideo, rng: np.random.Generator, config: AugmentConfig | None = None) -> SyntheticVideo:
    """A film changed at random in ways that leave its sentences true (left and right are renamed by a mirror)."""
    config = config or AugmentConfig()
    if rng.random() < config.flip:
        film = flip(film)
    if rng.random() < config.crop:
        film = _window(film, rng, config)
    reach = config.light_with_colours if speaks_of_colour(film) else config.light
    film = jitter(film, *(float(f) for f in rng.uniform(1 - reach, 1 + reach, 3)))
    return film if config.size is None else resize_video(film, config.size)


def _window(film: SyntheticVideo, rng: np.random.Generator, config: AugmentConfig) -> SyntheticVideo:
    """A random window that keeps enough of every object, or the film itself where none is found in eight tries."""
    h, w = film.frames.shape[1:3]
    before = film.masks.sum(axis=(2, 3))  # (T, N) pixels
    for _ in range(8):
        height, width = (round(n * float(rng.uniform(config.least_window, 1.0))) for n in (h, w))
        top, left = int(rng.integers(0, h - height + 1)), int(rng.integers(0, w - width + 1))
        after = film.masks[:, :, top : top + height, left : left + width].sum(axis=(2, 3))
        if (after >= config.kept * before).all():
            return crop(film, top, left, height, width)
    return film
