"""What a generated video is of: things on tracks, a scene, its sentences. T frames, N objects, H W pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deixis.synthetic.colours import COLOUR_NAMES
from deixis.synthetic.vocabulary import COCO_NAMES, EVERYWHERE, NOUNS, Noun

KINDS = (
    "class", "colour", "texture", "size", "place", "motion", "time", "relation", "several", "none", "written",
    "twin_place", "twin_motion",
)  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """A text, its kind (one of KINDS) and the indices of the objects that it names (empty: named, but not there)."""

    text: str
    kind: str
    objects: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SyntheticVideo:
    """A film with exact masks and sentences.

    frames: (T, H, W, 3) uint8 RGB.  masks: (T, N, H, W) bool, the visible part of each object.
    ignore: (T, H, W) bool, pixels whose truth is unknown, or None.
    flow: (T-1, H, W, 2) float32, where each pixel of frame t goes in frame t+1 (dx, dy, pixels), or None.
    times: seconds of each frame.  classes: the class of each object.  name: where the film comes from.
    """

    frames: np.ndarray
    masks: np.ndarray
    sentences: tuple[Sentence, ...]
    ignore: np.ndarray | None = None
    flow: np.ndarray | None = None
    times: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    name: str = ""


# ---- scene


@dataclass(frozen=True, eq=False)
class Thing:
    """One labelled object of a scene.

    area: (T,) visible share of the picture.  centre: (T, 2) its visible centroid, shares of width, height; nan unseen.
    path: (T, 2) where the whole object is in the picture, in diagonals.  world: the same with the camera's motion
    taken out, or None if not known.  scale, world_scale: (T,) size relative to the first frame.
    certain, perhaps: (C,) shares of colours.  single: exactly one object (a component of a class may be several).
    referable: enough of it is visible for a sentence to name it.  inside: (T,) share of it within the picture, None
    where the camera moves or it is not known.  texture: "" or one of TEXTURES.
    """

    noun: Noun
    area: np.ndarray
    centre: np.ndarray
    path: np.ndarray
    world: np.ndarray | None
    scale: np.ndarray
    world_scale: np.ndarray | None
    certain: np.ndarray
    perhaps: np.ndarray
    single: bool = True
    referable: bool = True
    inside: np.ndarray | None = None
    texture: str = ""


@dataclass(frozen=True, eq=False)
class Scene:
    """What a film shows. open_classes: classes that may stand in it without a label.
    everywhere: words that no picture is certainly free of.  plain: nothing to point at but the listed things.
    background: (C,) shares of perhaps-colours of the pixels outside things.  fixed: nothing unlabelled moves.
    hidden: (N, N) the largest share of thing i that thing j hides in a frame, None where the depth is not known.
    nouns, everyday: what may be named and is not there; the everyday ones more often.
    """

    things: tuple[Thing, ...]
    open_classes: frozenset[str] = frozenset()
    everywhere: frozenset[str] = EVERYWHERE
    plain: bool = False
    background: np.ndarray = field(default_factory=lambda: np.ones(len(COLOUR_NAMES)))
    fixed: bool = False
    hidden: np.ndarray | None = None
    nouns: Mapping[str, Noun] = field(default_factory=lambda: NOUNS)
    everyday: frozenset[str] = COCO_NAMES
