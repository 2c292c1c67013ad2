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

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deixis.out_folder import Output
from deixis.synthetic.colours import COLOUR_NAMES
from deixis.synthetic.compositing import Canvas, canvas_of, finish_video, from_first, keep_apart, paste, scale_for, view
from deixis.synthetic.cutouts import Library, Patch
from deixis.synthetic.motions import Motion
from deixis.synthetic.predicates import TEXTURES
from deixis.synthetic.scene import Scene, Sentence, SyntheticVideo
from deixis.synthetic.shapes import (
    BACKGROUNDS,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_SHAPES,
    draw_background,
    draw_shape,
    held_out_pair,
)
from deixis.synthetic.vocabulary import SHAPES
from deixis.synthetic.world_config import WorldConfig
from deixis.synthetic.world_motions import any_world_motion, companion_of, share_covered
from deixis.types import DeixisError, encode_rle

log = logging.getLogger(__name__)

SPLITS = ("train", "valid_u", "valid")
SHARES = {"train": 0.8, "valid_u": 0.1, "valid": 0.1}  # of the films that are written


# ---- films


class World:
    """The generated videos of one split, a function of config, split and seed.

    Args:
        split: "train", "valid_u" or "valid".
        config: Sizes, objects, motions and sentences. Default: `WorldConfig()`.

    Raises:
        DeixisError: For an unknown split.

    Example:
        >>> from deixis.synthetic.world import World, WorldConfig
        >>> video = World("train", WorldConfig(size=(96, 160), frames=4)).film(7)
        >>> video.frames.shape, video.flow.shape
        ((4, 96, 160, 3), (3, 96, 160, 2))
    """

    def __init__(self, split: str = "train", config: WorldConfig | None = None) -> None:
        if split not in SPLITS:
            raise DeixisError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        self.split, self.config = split, config or WorldConfig()
        folder = self.config.cutouts
        self.library = None if folder is None else Library(folder, "train" if split == "train" else "held_out")

    def film(self, seed: int) -> SyntheticVideo:
        """Generate a video with frames, visible masks, sentences and flow.

        Args:
            seed: Any integer of 0 or more.

        Returns:
            The video; the same for the same seed, on every machine.

        Example:
            >>> from deixis.synthetic.world import World, WorldConfig
            >>> video = World("train", WorldConfig(size=(96, 160), frames=4)).film(7)
            >>> len(video.sentences) > 0
            True
        """
        rng = np.random.default_rng([seed, SPLITS.index(self.split)])
        for _ in range(20):
            real = self.library is not None and rng.random() < self.config.cutout_share
            film = self._film(rng, real, f"{self.split}_{seed:05d}")
            if film.sentences:
                return film
        raise AssertionError("twenty films in a row without a sentence")

    def _film(self, rng: np.random.Generator, real: bool, name: str) -> SyntheticVideo:
        c = self.config
        moves = bool(rng.random() < c.camera_moves)
        canvas, scene, maps = self._real_scene(rng, moves) if real else self._drawn_scene(rng, moves)
        camera = from_first(maps) if moves else None
        objects = self._objects(rng, int(rng.integers(c.objects[0], c.objects[1] + 1)), scene if real else None)
        for (patch, texture), motion in zip(objects, self._motions(rng, [p for p, _ in objects]), strict=True):
            paste(canvas, patch, motion, camera, 1.0, False, texture=texture)
        film = finish_video(canvas, scene, c.sentences, rng, name, keep=20, thresholds=c.thresholds)
        sentences = tuple(s for s in film.sentences if real or self._allowed(s))
        times = tuple(i / c.rate for i in range(c.frames))
        return replace(film, sentences=sentences, flow=exact_flow(canvas, maps) if c.flow else None, times=times)

    def _allowed(self, sentence: Sentence) -> bool:
        """Training never speaks of a held-out shape, or of a held-out pair of colour and shape."""
        if self.split != "train":
            return True
        words = sentence.text.replace("-", " ").split()
        shapes = [n.name for n in SHAPES.values() if any(w in words for w in n.true if w != "shape")]
        colours = [c for c in COLOUR_NAMES if c in words]
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
            colour = str(rng.choice(COLOUR_NAMES))
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
            companion = companion_of(rng, placed[0][0], c, patch, scale) if paired and index == 1 else None
            if companion is not None:
                placed.append((companion, patch))
                continue
            draw = partial(any_world_motion, rng, c, patch, scale)
            placed.append((keep_apart(draw, patch, placed, share_covered, tries=12, enough=0.05), patch))
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


def world_films(
    split: str, films: int, *, seed: int = 0, config: WorldConfig | None = None
) -> Iterator[SyntheticVideo]:
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
    """Write generated videos in MeViS's layout.

    Every split has its truth. An expression has the extra key "kind", a video "fps" and "classes". The folder
    appears when it is complete.

    Args:
        folder: Folder, new or empty.
        films: Number of videos over all splits.
        seed: Seed of the videos, 0 or more.
        config: As for `World`.
        progress: Called with the number of videos written.

    Returns:
        Number of videos of each split.

    Raises:
        DeixisError: If the folder holds something, `films` is below 1, or `seed` below 0.

    Example:
        >>> from pathlib import Path
        >>> from deixis.synthetic.world import WorldConfig, write_mevis
        >>> write_mevis(Path("world"), 3, config=WorldConfig(size=(48, 80), frames=2))
        {'train': 1, 'valid_u': 1, 'valid': 1}
    """
    folder = Path(folder)
    if seed < 0:
        raise DeixisError(f"the seed must be 0 or more, got {seed}")
    if films < 1:
        raise DeixisError(f"the number of films must be 1 or more, got {films}")
    config = replace(config or WorldConfig(), flow=False)
    counts = films_per_split(films)
    done = 0
    with Output(folder, all_or_none=True, otherwise="name a new one") as output:
        for split, count in counts.items():
            if not count:
                continue
            with output.item(split) as part:
                for film in write_split(part, world_films(split, count, seed=seed, config=config), config.rate):
                    done += 1
                    progress(done)
                    log.debug("wrote %s", film)
    return counts


def write_split(folder: Path, films: Iterable[SyntheticVideo], rate: float) -> Iterator[str]:
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
