"""Sentences that are true of exactly the stated objects: predicates over tracks with three answers.

A predicate answers, for every thing in a scene, 0 (false), 1 (uncertain) or 2 (true); "and" is the minimum, "or" the
maximum. A sentence is used only if no thing is uncertain: then it is true of the referred things and definitely false
of all others. Words whose unlabelled bearers may stand in the picture are not used (``Scene.open_classes``,
``Scene.everywhere``).
T frames, N things, C colours. All thresholds are our choice, set wide apart and checked by eye on contact sheets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from deixis.benchmarks.vocabulary import COCO_NAMES, EVERYWHERE, NOUNS, SHAPES, Noun, article, plural

FALSE, UNCERTAIN, TRUE = 0, 1, 2

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
class WorldFilm:
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


# ---- colours

COLOURS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
# Skin and hair read as these: never a word for a person's clothes.
SKIN_COLOURS = ("orange", "brown", "pink", "grey", "purple")


@lru_cache(maxsize=1)
def _colour_tables() -> tuple[np.ndarray, np.ndarray]:
    """Two (32768, C) bool tables over RGB quantised to 5 bits: certainly this colour; perhaps this colour."""
    levels = (np.arange(32, dtype=np.float32) * 8 + 4) / 255
    r, g, b = (channel.ravel() for channel in np.meshgrid(levels, levels, levels, indexing="ij"))
    value, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    chroma = value - low
    s = chroma / np.maximum(value, 1e-6)
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(value == r, (g - b) / safe % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60

    def hues(low_hue: float, high_hue: float) -> np.ndarray:
        """Hue between two angles in degrees, through 0 when the first is larger."""
        return (hue >= low_hue) & (hue <= high_hue) if low_hue < high_hue else (hue >= low_hue) | (hue <= high_hue)

    vivid, tinted = (s > 0.5) & (value > 0.35), (s > 0.2) & (chroma > 0.06)
    sure = [
        (value < 0.2) | ((value < 0.26) & (s < 0.25)),
        (s < 0.10) & (value > 0.80),
        (s < 0.12) & (value > 0.34) & (value < 0.66),
        vivid & hues(346, 9) & (s > 0.6),
        vivid & hues(19, 36) & (value > 0.7) & (s > 0.65),
        vivid & hues(47, 63) & (value > 0.55),
        vivid & hues(85, 160),
        vivid & hues(200, 246),
        vivid & hues(264, 298),
        hues(315, 352) & (s > 0.22) & (s < 0.65) & (value > 0.75),
        hues(12, 34) & (s > 0.4) & (s < 0.85) & (value > 0.22) & (value < 0.56),
    ]
    perhaps = [
        value < 0.4,
        (s < 0.3) & (value > 0.6),
        (s < 0.3) & (value > 0.18) & (value < 0.92),
        tinted & hues(325, 22),
        tinted & hues(6, 50) & (value > 0.4),
        tinted & hues(34, 80) & (value > 0.3),
        tinted & hues(60, 185) & (value > 0.12),
        tinted & hues(170, 270) & (value > 0.12),
        tinted & hues(240, 335) & (value > 0.12),
        (s > 0.1) & hues(280, 25) & (value > 0.5),
        (s > 0.15) & hues(345, 52) & (value > 0.1) & (value < 0.85),
    ]
    certain = np.stack(sure, axis=-1)
    return certain, np.stack(perhaps, axis=-1) | certain


def colour_shares(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (P, 3) uint8 RGB pixels, the shares that certainly are, and perhaps are, each of COLOURS: (C,), (C,)."""
    if not len(pixels):
        return np.zeros(len(COLOURS)), np.ones(len(COLOURS))
    q = pixels[:: max(1, len(pixels) // 1500)].astype(np.int32) >> 3
    index = q[:, 0] * 1024 + q[:, 1] * 32 + q[:, 2]
    certain, perhaps = _colour_tables()
    return certain[index].mean(axis=0), perhaps[index].mean(axis=0)


# ---- scene


@dataclass(frozen=True, eq=False)
class Thing:
    """One labelled object of a scene.

    area: (T,) visible share of the picture.  centre: (T, 2) its visible centroid, shares of width, height; nan unseen.
    path: (T, 2) where the whole object is in the picture, in diagonals.  world: the same with the camera's motion
    taken out, or None if not known.  scale, world_scale: (T,) size relative to the first frame.
    certain, perhaps: (C,) shares of colours.  single: exactly one object (a component of a class may be several).
    referable: enough of it is seen for a sentence to name it.  inside: (T,) share of it within the picture, None where
    the camera moves or it is not known.  texture: "" or one of TEXTURES.
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
    background: np.ndarray = field(default_factory=lambda: np.ones(len(COLOURS)))
    fixed: bool = False
    hidden: np.ndarray | None = None
    nouns: Mapping[str, Noun] = field(default_factory=lambda: NOUNS)
    everyday: frozenset[str] = COCO_NAMES


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where true begins and where false ends; between them is uncertain. All are our choice."""

    colour_true: float = 0.42  # share of the object's pixels that certainly have the colour
    colour_false: float = 0.14  # share that perhaps has it
    clothes_true: float = 0.35  # the same for what a person wears
    clothes_false: float = 0.08
    place_margin: float = 0.07  # share of the picture's width or height between two centroids
    size_ratio: float = 1.6  # of visible areas
    move_true: float = 0.06  # displacement, diagonals
    move_false: float = 0.015
    still_true: float = 0.008
    still_false: float = 0.04
    closer_true: float = 1.25  # scale at the end over scale at the start
    closer_false: float = 1.06
    speed_ratio: float = 1.8  # of path lengths
    turn_true: float = 50.0  # degrees of bend
    turn_false: float = 15.0
    hidden_true: float = 0.12  # share that another hides
    hidden_false: float = 0.003
    follow_near: float = 0.4  # diagonals between one and the one that it follows, at most
    follow_false: float = 60.0  # degrees between two headings, or between a heading and the way to the other
    follow_true: float = 25.0
    min_share: float = 0.003  # of the picture, for a thing to be referred to
    seen: float = 0.6  # share of the frames in which it has that size


THRESHOLDS = Thresholds()

_MAY_BE: dict[str, set[str]] = defaultdict(set)
for _name, _n in (*NOUNS.items(), *SHAPES.items()):
    for _word in (*_n.true, *_n.maybe):
        _MAY_BE[_word].add(_name)

GENERIC = ("object", "thing", "one")
TEXTURES = ("plain", "striped", "dotted", "checkered")


class Judge:
    """Predicates over the things of one scene; each returns (N,) int8 of FALSE, UNCERTAIN, TRUE."""

    def __init__(self, scene: Scene, thresholds: Thresholds = THRESHOLDS) -> None:
        self.scene, self.at = scene, thresholds
        self.things = scene.things
        self.count = len(self.things)
        self.referable = np.array([t.referable and self._seen(t) for t in self.things], dtype=bool)
        self._named: dict[str, np.ndarray] = {}

    def _seen(self, thing: Thing) -> bool:
        return bool((thing.area >= self.at.min_share).mean() >= self.at.seen)

    def closed(self, word: str) -> bool:
        """Whether everything that the word might mean in this scene has a label."""
        return word not in self.scene.everywhere and not (_MAY_BE[word] & self.scene.open_classes)

    def named(self, word: str) -> np.ndarray:
        if word not in self._named:
            if word in GENERIC:
                answer = [TRUE] * self.count
            else:
                answer = [
                    TRUE if word in t.noun.true else UNCERTAIN if word in t.noun.maybe else FALSE for t in self.things
                ]
            self._named[word] = np.array(answer, dtype=np.int8)
        return self._named[word]

    def coloured(self, colour: str) -> np.ndarray:
        c = COLOURS.index(colour)
        answer = np.full(self.count, UNCERTAIN, dtype=np.int8)
        for i, t in enumerate(self.things):
            person = t.noun.name == "person"
            true, false = (
                (self.at.clothes_true, self.at.clothes_false) if person else (self.at.colour_true, self.at.colour_false)
            )
            if person and colour in SKIN_COLOURS:
                continue
            if t.perhaps[c] <= false:
                answer[i] = FALSE
            elif t.certain[c] >= true:
                answer[i] = TRUE
        return answer

    def _extreme(self, word: str, keys: Sequence[np.ndarray], margin: float) -> np.ndarray:
        """TRUE for the bearer of the word whose key is smaller by the margin than any other's in every common frame."""
        named = self.named(word)
        answer = np.zeros(self.count, dtype=np.int8)
        rivals = np.flatnonzero(named)
        if (named == UNCERTAIN).any():
            answer[rivals] = UNCERTAIN
            return answer
        for i in rivals:
            state = TRUE
            for j in rivals:
                if i == j:
                    continue
                gap = keys[int(j)] - keys[int(i)]
                gap = gap[~np.isnan(gap)]
                if not len(gap):
                    state = min(state, UNCERTAIN)
                elif (gap <= -margin).all():
                    state = FALSE
                elif not (gap >= margin).all():
                    state = min(state, UNCERTAIN)
            answer[i] = state
        return answer

    def placed(self, word: str, side: str) -> np.ndarray:
        """The bearer of the word furthest to a side (left, right, top, bottom), or between the two others (middle)."""
        axis = 1 if side in ("top", "bottom") else 0
        keys = [t.centre[:, axis] for t in self.things]
        if side == "middle":
            named = self.named(word)
            if (named == UNCERTAIN).any() or (named == TRUE).sum() != 3:
                return np.minimum(named, UNCERTAIN)
            ends = np.maximum(self.placed(word, "left"), self.placed(word, "right"))
            if (ends == UNCERTAIN).any() or (ends == TRUE).sum() != 2:
                return np.minimum(named, UNCERTAIN)
            return np.minimum(named, np.int8(2) - ends)
        sign = 1 if side in ("left", "top") else -1
        return self._extreme(word, [sign * k for k in keys], self.at.place_margin)

    def sized(self, word: str, which: str) -> np.ndarray:
        """The largest or smallest bearer of the word, by visible area in every frame."""
        sign = -1 if which == "largest" else 1
        with np.errstate(divide="ignore"):
            keys = [sign * np.where(t.area > 0, np.log(t.area), np.nan) for t in self.things]
        return self._extreme(word, keys, float(np.log(self.at.size_ratio)))

    def moved(self, motion: str) -> np.ndarray:
        """left, right, up, down, still, moving, closer, away, turns: true in the picture and in the world."""
        answer = np.full(self.count, UNCERTAIN, dtype=np.int8)
        for i, t in enumerate(self.things):
            if t.world is not None and t.world_scale is not None:
                in_picture = self._motion(motion, t.path, t.scale)
                in_world = self._motion(motion, t.world, t.world_scale)
                answer[i] = in_picture if in_picture == in_world else UNCERTAIN
        return answer

    def _motion(self, motion: str, path: np.ndarray, scale: np.ndarray) -> int:
        at = self.at
        dx, dy = path[-1] - path[0]
        if motion in ("left", "right", "up", "down"):
            along, across = {"left": (-dx, dy), "right": (dx, dy), "up": (-dy, dx), "down": (dy, dx)}[motion]
            if along >= at.move_true and along >= 1.7 * abs(across):
                return TRUE
            return FALSE if along <= at.move_false else UNCERTAIN
        ratio = float(scale[-1] / scale[0])
        if motion in ("still", "moving"):
            reach = float(np.hypot(*(path - path[0]).T).max())
            change = float(np.abs(np.log(scale / scale[0])).max())
            if reach <= at.still_true and change <= 0.03:
                return TRUE if motion == "still" else FALSE
            if reach >= at.still_false:
                return FALSE if motion == "still" else TRUE
            return UNCERTAIN
        if motion == "closer":
            return TRUE if ratio >= at.closer_true else FALSE if ratio <= at.closer_false else UNCERTAIN
        if motion == "away":
            return TRUE if 1 / ratio >= at.closer_true else FALSE if 1 / ratio <= at.closer_false else UNCERTAIN
        if motion == "turns":
            steps = np.diff(path, axis=0)
            if float(np.hypot(*(path - path[0]).T).max()) <= at.still_true:
                return FALSE
            half = len(steps) // 2
            first, last = steps[: max(half, 1)].sum(axis=0), steps[-max(half, 1) :].sum(axis=0)
            if len(steps) < 2 or min(np.hypot(*first), np.hypot(*last)) < at.still_false:
                return UNCERTAIN
            bend = abs(np.degrees(np.angle(complex(*last) / complex(*first))))
            return TRUE if bend >= at.turn_true else FALSE if bend <= at.turn_false else UNCERTAIN
        raise AssertionError(motion)

    def fastest(self, word: str) -> np.ndarray:
        """The bearer of the word that covers clearly more way than every other."""
        named = self.named(word)
        rivals = np.flatnonzero(named)
        answer = np.zeros(self.count, dtype=np.int8)
        unknown = any(self.things[i].world is None for i in rivals)
        if unknown or (named == UNCERTAIN).any() or len(rivals) < 2:
            answer[rivals] = UNCERTAIN
            return answer

        def way(path: np.ndarray | None) -> float:
            return 0.0 if path is None else float(np.hypot(*np.diff(path, axis=0).T).sum())

        ways = [(way(t.path), way(t.world)) for t in self.things]
        for i in rivals:
            others = [j for j in rivals if j != i]
            ahead = all(ways[i][k] >= self.at.speed_ratio * ways[j][k] + 0.02 for j in others for k in (0, 1))
            behind = any(all(ways[j][k] >= self.at.speed_ratio * ways[i][k] + 0.02 for k in (0, 1)) for j in others)
            enough = min(ways[i]) >= self.at.move_true
            answer[i] = TRUE if ahead and enough else FALSE if behind else UNCERTAIN
        return answer

    def textured(self, texture: str) -> np.ndarray:
        """Things drawn with the texture; uncertain where no texture is known."""
        answer = [TRUE if t.texture == texture else FALSE if t.texture else UNCERTAIN for t in self.things]
        return np.array(answer, dtype=np.int8)

    def timed(self, event: str) -> np.ndarray:
        """enters, leaves, stops, starts: what happens during the film, as seen by a camera that stands still."""
        answer = np.full(self.count, UNCERTAIN, dtype=np.int8)
        for i, t in enumerate(self.things):
            if t.inside is None or t.world is None or not self.scene.fixed:
                continue
            forwards = event in ("enters", "stops")
            inside, path = (t.inside, t.world) if forwards else (t.inside[::-1], t.world[::-1])
            answer[i] = self._comes(inside) if event in ("enters", "leaves") else self._halts(path)
        return answer

    def _comes(self, inside: np.ndarray) -> int:
        """Out of the picture first, well within it later."""
        if inside[0] <= 0.02 and inside.max() >= 0.75:
            return TRUE
        return FALSE if inside[0] >= 0.9 or inside.max() <= 0.02 else UNCERTAIN

    def _halts(self, path: np.ndarray) -> int:
        """On the way in the first part of the film, still in the last third."""
        if len(path) < 6:
            return UNCERTAIN
        third = len(path) // 3
        late = float(np.hypot(*(path[-third:] - path[-1]).T).max())
        early = float(np.hypot(*(path - path[0]).T).max())
        if late <= self.at.still_true and early >= self.at.move_true:
            return TRUE
        return FALSE if early <= self.at.still_true or late >= self.at.still_false / 2 else UNCERTAIN

    def related(self, relation: str, j: int) -> np.ndarray:
        """behind, before, left of, right of, above, below, follows: how every thing stands to thing j."""
        answer = np.full(self.count, UNCERTAIN, dtype=np.int8)
        answer[j] = FALSE
        for i in range(self.count):
            if i == j:
                continue
            if relation in ("behind", "before"):
                answer[i] = self._hidden(i, j) if relation == "behind" else self._hidden(j, i)
            elif relation == "follows":
                answer[i] = self._follows(self.things[i], self.things[j])
            else:
                axis = 0 if relation in ("left of", "right of") else 1
                gap = self.things[j].centre[:, axis] - self.things[i].centre[:, axis]
                gap = gap[~np.isnan(gap)] * (1 if relation in ("left of", "above") else -1)
                if len(gap):
                    far, margin = (gap >= self.at.place_margin).all(), self.at.place_margin
                    answer[i] = TRUE if far else FALSE if (gap <= -margin).all() else UNCERTAIN
        return answer

    def _hidden(self, i: int, j: int) -> int:
        if self.scene.hidden is None:
            return UNCERTAIN
        share = self.scene.hidden[i, j]
        return TRUE if share >= self.at.hidden_true else FALSE if share <= self.at.hidden_false else UNCERTAIN

    def _follows(self, one: Thing, other: Thing) -> int:
        """Both on the way in the same direction, the one behind the other and near it."""
        if one.world is None or other.world is None or not self.scene.fixed:
            return UNCERTAIN
        way, led = one.world[-1] - one.world[0], other.world[-1] - other.world[0]
        lengths = np.hypot(*way), np.hypot(*led)
        if min(lengths) <= self.at.still_true:
            return FALSE
        between = other.world - one.world
        headings = _degrees(way, led)
        lags = [_degrees(way, step) for step in between]
        if headings >= self.at.follow_false or min(lags) >= self.at.follow_false:
            return FALSE
        near = float(np.hypot(*between.T).max()) <= self.at.follow_near
        alike = 0.6 <= lengths[0] / lengths[1] <= 1.67
        straight = headings <= self.at.follow_true and max(lags) <= self.at.follow_true
        return TRUE if straight and near and alike and min(lengths) >= self.at.move_true else UNCERTAIN


def _degrees(a: np.ndarray, b: np.ndarray) -> float:
    """The angle between two (2,) vectors, 0..180."""
    cosine = float(a @ b) / max(1e-9, float(np.hypot(*a) * np.hypot(*b)))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


# ---- words

PLACE_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": ("the {} on the left", "the leftmost {}", "the left {}", "the {} on the left side", "{} on the left"),
    "right": ("the {} on the right", "the rightmost {}", "the right {}", "the {} on the right side", "{} on the right"),
    "top": ("the {} at the top", "the topmost {}", "the upper {}", "the highest {}", "the top {}"),
    "bottom": ("the {} at the bottom", "the lower {}", "the lowest {}", "the bottom {}"),
    "middle": ("the {} in the middle", "the middle {}", "the {} between the two others", "the {} in the center"),
}
SIZE_WORDS: Mapping[str, tuple[str, ...]] = {
    "largest": ("the largest {}", "the biggest {}", "the big {}", "the larger {}"),
    "smallest": ("the smallest {}", "the small {}", "the little {}", "the smaller {}"),
}
MOTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": (
        "the {} moving to the left", "the {} that moves left", "{a} going left", "{a} moving left",
        "the {} heading left",
    ),
    "right": (
        "the {} moving to the right", "the {} that moves right", "{a} going right", "{a} moving right",
        "the {} heading right",
    ),
    "up": ("the {} moving up", "the {} that moves up", "{a} going up", "the {} rising"),
    "down": ("the {} moving down", "the {} that moves down", "{a} going down", "the {} sinking"),
    "still": ("the {} standing still", "the {} that does not move", "{a} that stays in place", "the still {}"),
    "moving": ("the moving {}", "the {} that moves", "{a} that is moving", "the {} in motion"),
    "closer": ("the {} coming closer", "the {} that comes closer", "{a} coming closer", "the approaching {}"),
    "away": ("the {} going away", "the {} that gets smaller", "{a} moving away", "the {} getting smaller"),
    "turns": ("the {} that turns", "the {} that changes direction", "{a} changing direction", "the {} turning"),
    "fastest": ("the faster {}", "the fastest {}", "the {} that moves faster", "the {} moving fastest", "the quick {}"),
}  # fmt: skip
TIME_WORDS: Mapping[str, tuple[str, ...]] = {
    "enters": (
        "the {} that enters",
        "the {} coming into the picture",
        "{a} that comes in later",
        "the {} that appears",
    ),
    "leaves": (
        "the {} that leaves",
        "the {} going out of the picture",
        "{a} that leaves the picture",
        "the {} that disappears",
    ),
    "stops": ("the {} that stops", "the {} that comes to a halt", "{a} that moves and then stops"),
    "starts": ("the {} that starts moving", "{a} that first stands still and then moves", "the {} that sets off"),
}
RELATION_WORDS: Mapping[str, tuple[str, ...]] = {
    "behind": ("the {} behind {r}", "the {} that passes behind {r}", "the {} partly hidden by {r}"),
    "before": ("the {} in front of {r}", "the {} that passes in front of {r}", "the {} that partly hides {r}"),
    "left of": ("the {} to the left of {r}", "the {} left of {r}"),
    "right of": ("the {} to the right of {r}", "the {} right of {r}"),
    "above": ("the {} above {r}", "the {} that is higher than {r}"),
    "below": ("the {} below {r}", "the {} under {r}"),
    "follows": ("the {} following {r}", "the {} that follows {r}", "the {} moving after {r}"),
}
TEXTURE_WORDS = ("the {c} {}", "a {c} {}", "the {} that is {c}", "{c} {}")
CLASS_WORDS = (
    "a {}",
    "a {}",
    "the {}",
    "the {}",
    "{}",
    "{}",
    "a {} in the video",
    "the {} in the picture",
    "there is a {}",
)
COLOUR_WORDS = ("the {c} {}", "the {c} {}", "a {c} {}", "{c} {}", "the {} that is {c}", "the {c}-coloured {}")
CLOTHES_WORDS = ("the {} in {c}", "{a} in {c}", "{a} wearing {c}", "the {} dressed in {c}", "{a} with {c} clothes")
COLOUR_TWINS = {"grey": "gray"}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
# "the small car", "the right one" say less than they should when only one thing bears the noun; they need two.
_NEEDS_RIVALS = ("place", "size")


def fill(template: str, noun: str, colour: str = "") -> str:
    """Put a noun (and a colour) into a template; "a" becomes "an" or falls as the next word wants it."""
    bare = article(noun) == ""
    text = template.replace("{a}", noun if bare else f"{article(noun)} {noun}").replace("{c}", colour)
    if text.startswith("a {}"):
        text = (noun if bare else f"{article(noun)} {noun}") + text[4:]
    elif "there is a {}" in text:
        text = f"there is {noun}" if bare else f"there is {article(noun)} {noun}"
    elif colour and text.startswith(f"a {colour}"):
        rest = text[2:]
        text = rest if bare else f"{article(colour)} {rest}"
    return text.replace("{}", noun)


@dataclass(frozen=True, kw_only=True)
class SentenceMix:
    """How many sentences a film gets and of what kinds (our choice: after the prototype's shares; kinds that few films
    can have weigh more than the share they should reach)."""

    count: int = 8
    most_none: float = 0.2  # share of sentences that name nothing, at most (in the mean over films)
    repeats: int = 2  # sentences of one kind for the same object, at most
    weights: tuple[tuple[str, float], ...] = (
        ("class", 0.27), ("colour", 0.34), ("place", 0.3), ("motion", 0.16), ("none", 0.13), ("size", 0.03),
        ("several", 0.03),
    )  # fmt: skip


class Writer:
    """Draws sentences for a scene: candidates of every kind, each checked by a Judge, then a draw by weights."""

    def __init__(self, judge: Judge, rng: np.random.Generator, motions: bool = True, times: bool = False) -> None:
        """motions, times: whether a sentence that names nothing may be wrong in its motion, or in its event, only."""
        self.judge, self.rng, self.motions, self.times = judge, rng, motions, times
        self.words = self._words()

    def _words(self) -> list[str]:
        found = dict.fromkeys(
            word
            for i in np.flatnonzero(self.judge.referable)
            for word in self.judge.things[i].noun.true
            if self.judge.closed(word)
        )
        return list(found)

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def _usual(self, i: int, word: str) -> float:
        """Weight of a word for a thing: its own name before its synonyms and the name of its group."""
        if word in GENERIC:
            return 0.5
        return 1.0 if word == self.judge.things[i].noun.name else 0.35

    def _one(self, answer: np.ndarray) -> int | None:
        """The only thing that the predicate is true of, if nothing is uncertain and it may be referred to."""
        if (answer == UNCERTAIN).any() or (answer == TRUE).sum() != 1:
            return None
        i = int(np.argmax(answer))
        return i if self.judge.referable[i] and self.judge.things[i].single else None

    def candidates(self, kind: str) -> list[tuple[Sentence, float]]:
        """Sentences of a kind with a weight each (a word that class alone could have told apart weighs less)."""
        return getattr(self, f"_{kind}")()

    def _class(self) -> list[tuple[Sentence, float]]:
        out = []
        for word in self.words:
            i = self._one(self.judge.named(word))
            if i is not None:
                out.append((Sentence(fill(self._pick(CLASS_WORDS), word), "class", (i,)), self._usual(i, word)))
        return out

    def _colour_text(self, word: str, colour: str, person: bool) -> str:
        shown = COLOUR_TWINS[colour] if colour in COLOUR_TWINS and self.rng.random() < 0.5 else colour
        return fill(self._pick(CLOTHES_WORDS if person else COLOUR_WORDS), word, shown)

    def _colour(self) -> list[tuple[Sentence, float]]:
        out = []
        for colour in COLOURS:
            is_colour = self.judge.coloured(colour)
            if not (is_colour == TRUE).any():
                continue
            words = self.words
            if self.judge.scene.background[COLOURS.index(colour)] < 0.03:
                words = [*words, *GENERIC]
            for word in words:
                named = self.judge.named(word)
                i = self._one(np.minimum(named, is_colour))
                if i is not None:
                    person = self.judge.things[i].noun.name == "person"
                    if person and word in ("animal", *GENERIC):
                        continue
                    weight = 2.0 if (named == TRUE).sum() > 1 else 0.5
                    text = self._colour_text(word, colour, person)
                    out.append((Sentence(text, "colour", (i,)), weight * self._usual(i, word)))
        return out

    def _texture(self) -> list[tuple[Sentence, float]]:
        out = []
        for texture in TEXTURES:
            is_texture = self.judge.textured(texture)
            for word in [*self.words, *GENERIC] if self.judge.scene.plain else self.words:
                i = self._one(np.minimum(self.judge.named(word), is_texture))
                if i is not None:
                    text = fill(self._pick(TEXTURE_WORDS), word, texture)
                    weight = (2.0 if self._rivals(word) else 0.5) * self._usual(i, word)
                    out.append((Sentence(text, "texture", (i,)), weight))
        return out

    def _time(self) -> list[tuple[Sentence, float]]:
        out = []
        for event, forms in TIME_WORDS.items():
            is_timed = self.judge.timed(event)
            for word in [*self.words, *GENERIC] if self.judge.scene.fixed else self.words:
                i = self._one(np.minimum(self.judge.named(word), is_timed))
                if i is not None:
                    weight = (2.0 if self._rivals(word) else 0.4) * self._usual(i, word)
                    out.append((Sentence(fill(self._pick(forms), word), "time", (i,)), weight))
        return out

    def _descriptions(self) -> dict[int, list[str]]:
        """Words that are true of one thing only, by thing: by class, else by colour and class."""
        found: dict[int, list[str]] = defaultdict(list)
        for word in self.words:
            named = self.judge.named(word)
            for colour in ("", *COLOURS):
                answer = np.minimum(named, self.judge.coloured(colour)) if colour else named
                i = self._one(answer)
                if i is not None and self._usual(i, word) == 1.0 and (colour == "" or self._rivals(word)):
                    found[i].append(f"the {colour} {word}" if colour else f"the {word}")
        return found

    def _relation(self) -> list[tuple[Sentence, float]]:
        out = []
        for j, references in self._descriptions().items():
            for relation, forms in RELATION_WORDS.items():
                is_related = self.judge.related(relation, j)
                for word in [*self.words, *GENERIC] if self.judge.scene.plain else self.words:
                    i = self._one(np.minimum(self.judge.named(word), is_related))
                    if i is not None:
                        text = fill(self._pick(forms), word).replace("{r}", self._pick(references))
                        weight = 3.0 if relation in ("behind", "before", "follows") else 1.0
                        weight *= (2.0 if word in GENERIC or self._rivals(word) else 0.4) * self._usual(i, word)
                        out.append((Sentence(text, "relation", (i,)), weight))
        return out

    def _rivals(self, word: str) -> bool:
        return int((self.judge.named(word) == TRUE).sum()) > 1

    def _compared(self, kind: str, table: Mapping[str, tuple[str, ...]]) -> list[tuple[Sentence, float]]:
        out = []
        words = [*self.words, *GENERIC] if self.judge.scene.plain else self.words
        for word in words:
            if not self._rivals(word):
                continue
            for which, forms in table.items():
                answer = self.judge.placed(word, which) if kind == "place" else self.judge.sized(word, which)
                i = self._one(answer)
                if i is not None:
                    out.append((Sentence(fill(self._pick(forms), word), kind, (i,)), self._usual(i, word)))
        return out

    def _place(self) -> list[tuple[Sentence, float]]:
        return self._compared("place", PLACE_WORDS)

    def _size(self) -> list[tuple[Sentence, float]]:
        return self._compared("size", SIZE_WORDS)

    def _motion(self) -> list[tuple[Sentence, float]]:
        out = []
        for motion, forms in MOTION_WORDS.items():
            generic = self.judge.scene.fixed and (motion not in ("still", "fastest") or self.judge.scene.plain)
            is_motion = None if motion == "fastest" else self.judge.moved(motion)
            for word in [*self.words, *GENERIC] if generic else self.words:
                named = self.judge.named(word)
                answer = self.judge.fastest(word) if is_motion is None else np.minimum(named, is_motion)
                i = self._one(answer)
                if i is not None:
                    weight = (2.0 if self._rivals(word) else 0.4) * self._usual(i, word)
                    out.append((Sentence(fill(self._pick(forms), word), "motion", (i,)), weight))
        return out

    def _several(self) -> list[tuple[Sentence, float]]:
        out = []
        for word in self.words:
            for colour in ("", *COLOURS):
                named = self.judge.named(word)
                answer = np.minimum(named, self.judge.coloured(colour)) if colour else named
                chosen = np.flatnonzero(answer == TRUE)
                if (answer == UNCERTAIN).any() or not 2 <= len(chosen) <= 5:
                    continue
                whole = self.judge.referable[chosen].all() and all(self.judge.things[i].single for i in chosen)
                person = any(self.judge.things[i].noun.name == "person" for i in chosen)
                if not whole or (colour and person):
                    continue
                many = f"{colour} {plural(word)}".strip()
                forms = [f"the {NUMBERS[len(chosen)]} {many}", f"all the {many}", f"the {many}"]
                forms += [f"both {many}"] if len(chosen) == 2 else []
                out.append(
                    (
                        Sentence(self._pick(forms), "several", tuple(int(i) for i in chosen)),
                        self._usual(int(chosen[0]), word),
                    )
                )
        return out

    def _none(self) -> list[tuple[Sentence, float]]:
        """Near and wrong: a sibling of what is there, a wrong colour or motion of it; and any other class."""
        judge, out = self.judge, []

        def absent(answer: np.ndarray, word: str) -> bool:
            return judge.closed(word) and not answer.any()

        present = {t.noun.name for t in judge.things}
        groups = {group for t in judge.things for group in t.noun.groups}
        everyday = self.rng.random(6) < 0.65  # before the rarer names of drawn objects
        for attempt, usual in enumerate(everyday):
            near = attempt < 4  # a sibling of what is there: another animal, another vessel
            nouns = judge.scene.nouns
            names = [n for n in (judge.scene.everyday if usual else nouns) if n not in present]
            names = sorted(n for n in names if not near or groups & set(nouns[n].groups))
            if not names:
                continue
            name = self._pick(names)
            word = name if self.rng.random() < 0.7 else self._pick(nouns[name].true)
            if absent(judge.named(word), word):
                text = fill(self._pick(CLASS_WORDS), word)
                if self.rng.random() < 0.2:
                    text = self._colour_text(word, self._pick(COLOURS), name == "person")
                out.append((Sentence(text, "none", ()), 1.2 if near else 0.6))
        for word in self.words:
            named = judge.named(word)
            colour = self._pick(COLOURS)
            person = bool((named == TRUE).any()) and judge.things[int(np.argmax(named))].noun.name == "person"
            if absent(np.minimum(named, judge.coloured(colour)), word):
                text = self._colour_text(word, colour, person)
                out.append((Sentence(text, "none", ()), 2.5 / len(self.words)))
            motion = self._pick(list(MOTION_WORDS)[:-1])
            if self.motions and absent(np.minimum(named, judge.moved(motion)), word):
                text = fill(self._pick(MOTION_WORDS[motion]), word)
                out.append((Sentence(text, "none", ()), 1.5 / len(self.words)))
            event = self._pick(list(TIME_WORDS)) if self.times else ""
            if event and absent(np.minimum(named, judge.timed(event)), word):
                out.append((Sentence(fill(self._pick(TIME_WORDS[event]), word), "none", ()), 1.5 / len(self.words)))
        return out

    def draw(self, mix: SentenceMix) -> tuple[Sentence, ...]:
        """Up to ``mix.count`` different sentences; kinds by weight, an object that has none yet before one that has."""
        pools = {kind: self.candidates(kind) for kind, weight in mix.weights if weight > 0}
        weights = dict(mix.weights)
        chosen: list[Sentence] = []
        used: dict[tuple[int, ...], int] = defaultdict(int)
        nothing = 0
        most_nothing = max(1, int(self.rng.binomial(mix.count, mix.most_none)))
        while len(chosen) < mix.count:
            if nothing >= most_nothing:
                pools["none"] = []
            kinds = [kind for kind, pool in pools.items() if pool]
            if not kinds:
                break
            share = np.array([weights[kind] for kind in kinds])
            kind = kinds[int(self.rng.choice(len(kinds), p=share / share.sum()))]
            pool = pools[kind]
            odds = np.array([w / (1 + 2 * used[s.objects]) if s.objects else w for s, w in pool])
            index = int(self.rng.choice(len(pool), p=odds / odds.sum()))
            sentence, _ = pool.pop(index)
            alike = sum(other.kind == kind and other.objects == sentence.objects for other in chosen)
            if sentence.objects and alike >= mix.repeats:
                continue
            if all(sentence.text != other.text for other in chosen):
                chosen.append(sentence)
                nothing += kind == "none"
                used[sentence.objects] += 1
        return tuple(chosen)
