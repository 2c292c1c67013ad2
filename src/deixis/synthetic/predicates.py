"""Sentences that are true of exactly the stated objects: predicates over tracks with three answers.

A predicate answers, for every thing in a scene, 0 (false), 1 (uncertain) or 2 (true); "and" is the minimum, "or" the
maximum. A sentence is used only if no thing is uncertain: then it is true of the referred things and definitely false
of all others. Words whose unlabelled bearers may stand in the picture are not used (``Scene.open_classes``,
``Scene.everywhere``).
T frames, N things, C colours. All thresholds are our choice, set wide apart and checked by eye on contact sheets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deixis.synthetic.colours import COLOUR_NAMES, SKIN_COLOURS
from deixis.synthetic.scene import Scene, Thing
from deixis.synthetic.vocabulary import NOUNS, SHAPES

FALSE, UNCERTAIN, TRUE = 0, 1, 2


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
    visible: float = 0.6  # share of the frames in which it has that size


THRESHOLDS = Thresholds()

_MAY_BE: dict[str, set[str]] = defaultdict(set)


for _name, _n in (*NOUNS.items(), *SHAPES.items()):
    for _word in (*_n.true, *_n.maybe):
        _MAY_BE[_word].add(_name)


GENERIC = ("object", "thing", "one")
TEXTURES = ("plain", "striped", "dotted", "checkered")


class Predicates:
    """Predicates over the things of one scene; each returns (N,) int8 of FALSE, UNCERTAIN, TRUE."""

    def __init__(self, scene: Scene, thresholds: Thresholds = THRESHOLDS) -> None:
        self.scene, self.at = scene, thresholds
        self.things = scene.things
        self.count = len(self.things)
        self.referable = np.array([t.referable and self._is_visible(t) for t in self.things], dtype=bool)
        self._named: dict[str, np.ndarray] = {}

    def _is_visible(self, thing: Thing) -> bool:
        return bool((thing.area >= self.at.min_share).mean() >= self.at.visible)

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
        c = COLOUR_NAMES.index(colour)
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
        """enters, leaves, stops, starts: what happens during the film, in the view of a camera that stands still."""
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
        headings = degrees_of(way, led)
        lags = [degrees_of(way, step) for step in between]
        if headings >= self.at.follow_false or min(lags) >= self.at.follow_false:
            return FALSE
        near = float(np.hypot(*between.T).max()) <= self.at.follow_near
        alike = 0.6 <= lengths[0] / lengths[1] <= 1.67
        straight = headings <= self.at.follow_true and max(lags) <= self.at.follow_true
        return TRUE if straight and near and alike and min(lengths) >= self.at.move_true else UNCERTAIN


def degrees_of(a: np.ndarray, b: np.ndarray) -> float:
    """The angle between two (2,) vectors, 0..180."""
    cosine = float(a @ b) / max(1e-9, float(np.hypot(*a) * np.hypot(*b)))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
