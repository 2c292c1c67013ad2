"""One path through a film's candidates (Viterbi): which of them is the object, and whether it is there at all.

C candidates kept, T frames of a window, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deixis.types import DeixisError, SystemConfig


@dataclass(frozen=True, kw_only=True)
class Linking:
    """How one object is followed over a film. All numbers are our choice, in natural logarithms where not said.

    Tried on 133 sentences of 24 held-out films of 60 frames (two to four objects, a half-trained light): choosing one
    query per window got the right object for .60, choosing per frame as here for .65; in between, the exact costs
    change little.
    """

    candidates: int = 6  # queries of an expression that are kept of every window
    keep: float = 0.01  # of them, those whose probability is at least this share of the best one's
    several: bool = False  # True: no choice; every query above the presence threshold, together (MeViS's rule)
    overlap: int = 0  # frames that neighbouring windows share; 0: the seam is last frame against first frame
    score: float = 1.0  # weight of a candidate's log probability, relative to the window's best
    seam: float = 2.0  # weight of the log of the IoU of a mask and the next frame's
    same: float = 0.5  # IoU of neighbouring frames' masks from which on they are as good as one object
    floor: float = 0.02  # share of it below which they are simply different objects
    blank: float = 0.3  # stands for the IoU when one of the two masks, or both, are empty
    hold: float = 3.0  # cost at most of staying with a query where another one continues its mask
    switch: float = 2.0  # cost of changing the query inside a window: the model says that a query is one object
    leave: float = 1.5  # cost of becoming absent from one window to the next
    enter: float = 1.5  # cost of appearing
    presence_share: float = 1 / 3  # the film's presence is the mean logit over this share of its windows, the surest

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.overlap < 0:
            raise DeixisError(
                f"linking needs 1 or more candidates and an overlap of 0 or more frames, got {self.candidates} and"
                f" {self.overlap}"
            )
        shares = {"keep": True, "blank": True, "same": False, "floor": False, "presence_share": False}  # may be 0
        for name, may_be_0 in shares.items():
            share = getattr(self, name)
            if not (0 < share <= 1 or (may_be_0 and share == 0)):
                where = "between 0 and 1" if may_be_0 else "above 0 and up to 1"
                raise DeixisError(f"linking: {name} must lie {where}, got {share}")


@dataclass(frozen=True, kw_only=True)
class Presence:
    """How a presence logit becomes a probability, and from which one on an object counts as present.

    The probability is sigmoid(logit / temperature + shift); threshold is in 0..1, both ends left out. None: every
    expression is answered, as published code does; a system without calibrated presence states that.
    sure: below it what is shown is a guess; None: never.
    """

    threshold: float | None = None
    temperature: float = 1.0
    shift: float = 0.0
    sure: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise DeixisError(
                f"the presence threshold must lie between 0 and 1, both left out, got {self.threshold};"
                " 0.001 shows nearly everything"
            )
        if self.sure is not None and not 0 < self.sure < 1:
            raise DeixisError(f"the sure bound of presence must lie between 0 and 1, both left out, got {self.sure}")
        if not self.temperature > 0:
            raise DeixisError(f"the presence temperature must be above 0, got {self.temperature}")

    @staticmethod
    def of(config: SystemConfig, threshold: float | None = None) -> Presence:
        """What a system's config states; ``threshold`` replaces the config's."""
        return Presence(
            threshold=config.presence_threshold if threshold is None else threshold,
            temperature=config.presence_temperature,
            shift=config.presence_shift,
            sure=config.presence_sure,
        )

    def calibrated(self, logits: Any) -> Any:
        return logits / self.temperature + self.shift

    def shows(self, presence: float) -> bool:
        """Whether an object of that probability counts as present."""
        return self.threshold is None or presence >= self.threshold


@dataclass(frozen=True, eq=False, slots=True)
class Window:
    """What is needed of one window and one expression to decide; waits on disk as ``pack`` writes it.

    number: of its first candidate's logits in the file; the others follow.  shape: (T, h, w) of each.
    fresh: index of its first frame that no earlier window has.  steps: (T - 1, C, C) IoU of every candidate with
    every candidate of the next frame.  links: (C before, C) IoU at the seam; None for the first window.
    """

    number: int
    shape: tuple[int, int, int]
    fresh: int
    scores: np.ndarray
    frame_scores: np.ndarray
    presence: float
    inside: tuple[float, float]
    steps: np.ndarray
    links: np.ndarray | None

    def pack(self) -> bytes:
        before = 0 if self.links is None else len(self.links)
        head = np.array([self.number, *self.shape, self.fresh, len(self.scores), before], np.int64)
        links = np.zeros(0) if self.links is None else self.links.ravel()
        facts = [self.presence, *self.inside]
        numbers = np.concatenate([facts, self.scores, self.frame_scores.ravel(), self.steps.ravel(), links])
        return head.tobytes() + numbers.astype(np.float64).tobytes()

    @staticmethod
    def unpack(data: bytes) -> Window:
        number, frames, h, w, fresh, count, before = (int(v) for v in np.frombuffer(data, np.int64, 7))
        numbers = np.frombuffer(data, np.float64, offset=56)
        lengths = [3, count, count * frames, (frames - 1) * count * count]
        facts, scores, frame_scores, steps, links = np.split(numbers, np.cumsum(lengths))
        return Window(
            number, (frames, h, w), fresh, scores, frame_scores.reshape(count, frames), float(facts[0]),
            (float(facts[1]), float(facts[2])), steps.reshape(frames - 1, count, count),
            links.reshape(before, count) if before else None,
        )  # fmt: skip


def decide(film: Sequence[Window], linking: Linking, rule: Presence) -> tuple[list[np.ndarray], float]:
    """(for every window, the chosen candidate of each fresh frame, -1 for absent; the film's presence in 0..1)."""
    presence = presence_of(film, linking, rule)
    if not rule.shows(presence):
        return [np.full(window.shape[0] - window.fresh, -1) for window in film], presence
    logits = rule.calibrated(np.array([window.presence for window in film]))  # (W,)
    if rule.threshold is None:
        return best_path(film, log_sigmoid(logits), np.full(len(film), -np.inf), linking), presence
    # Shifted so that "present" and "absent" tie at the threshold: one window alone then agrees with the film's verdict.
    shifted = logits - np.log(rule.threshold / (1 - rule.threshold))
    path = best_path(film, log_sigmoid(shifted), log_sigmoid(-shifted), linking)
    if max(choices.max() for choices in path) < 0:  # present, yet no window alone is worth the cost of entering
        path = best_path(film, log_sigmoid(shifted), np.full(len(film), -np.inf), linking)
    return path, presence


def decide_together(film: Sequence[Window], linking: Linking, rule: Presence) -> tuple[list[np.ndarray], float]:
    """(for every window, its candidates above the threshold, (fresh frames, kept); the film's presence in 0..1).

    Presence is judged as in ``decide``; below the threshold nothing is kept. Without a threshold the best one is.
    """
    presence = presence_of(film, linking, rule)
    path = []
    for window in film:
        if rule.threshold is None:
            kept = np.zeros(1, np.intp)
        else:
            kept = np.nonzero(sigmoid(rule.calibrated(window.scores)) >= rule.threshold)[0]
            kept = kept if rule.shows(presence) else kept[:0]
        path.append(np.broadcast_to(kept, (window.shape[0] - window.fresh, len(kept))))
    return path, presence


def presence_of(film: Sequence[Window], linking: Linking, rule: Presence) -> float:
    return film_presence(np.array([window.presence for window in film]), rule, linking.presence_share)


def film_presence(logits: np.ndarray, rule: Presence, share: float = Linking.presence_share) -> float:
    """0..1: of the mean of a film's (W,) surest windows, so that an object may be absent for most of a film."""
    calibrated = rule.calibrated(logits)
    surest = np.sort(calibrated)[::-1][: max(1, round(len(calibrated) * share))]
    return float(sigmoid(surest.mean()))


def best_path(film: Sequence[Window], present: np.ndarray, absent: np.ndarray, linking: Linking) -> list[np.ndarray]:
    """The most likely candidate of every fresh frame (Viterbi), an array a window; -1 where the object is away.

    present, absent: (W,) log probability of each window that the object is there, or is not. An object comes and goes
    at seams only; the log probability of a window's candidate is spread evenly over its frames.
    """
    total = np.zeros(0)  # best log probability of every path so far, by its last state; "absent" is the last state
    steps: list[np.ndarray] = []  # for every frame but the first, the state before of the best path to each state
    for number, window in enumerate(film):
        frames = window.shape[0] - window.fresh
        relative = linking.score * (log_sigmoid(window.scores) - log_sigmoid(window.scores[0]))
        worth = np.append(present[number] + relative, absent[number]) / frames  # (C + 1,) a frame
        for t in range(window.fresh, window.shape[0]):
            if not len(total):
                total = worth
                continue
            cost = seam_cost(window.links, linking) if t == window.fresh else step_cost(window.steps[t - 1], linking)
            reached = total[:, None] - cost  # (before, here)
            steps.append(reached.argmax(0).astype(np.int16))
            total = reached.max(0) + worth
    states = [int(total.argmax())]
    for step in reversed(steps):
        states.append(int(step[states[-1]]))
    states.reverse()
    path, first = [], 0
    for window in film:
        frames = window.shape[0] - window.fresh
        chosen = np.array(states[first : first + frames])
        path.append(np.where(chosen < len(window.scores), chosen, -1))
        first += frames
    return path


def apart(iou: np.ndarray, linking: Linking) -> np.ndarray:
    """Cost of calling two masks of neighbouring frames one object, by their IoU: 0 from ``linking.same`` on."""
    return -linking.seam * np.log(np.clip(iou / linking.same, linking.floor, 1))


def seam_cost(iou: np.ndarray | None, linking: Linking) -> np.ndarray:
    """(C before + 1, C here + 1) cost of every change of state from one window to the next; the last is absence.

    Costs are what a change is worse than the best one from the same candidate: an object so fast that it overlaps with
    nothing pays nothing for it, and does not lose to one that stands still.
    """
    assert iou is not None, "only a film's first window has no seam before it"
    cost = np.zeros((iou.shape[0] + 1, iou.shape[1] + 1))
    distance = apart(iou, linking)
    cost[:-1, :-1] = distance - distance.min(1, keepdims=True)
    cost[:-1, -1], cost[-1, :-1] = linking.leave, linking.enter
    return cost


def step_cost(iou: np.ndarray, linking: Linking) -> np.ndarray:
    """(C + 1, C + 1) cost of every change of state from one frame to the next inside a window.

    Staying with a query costs something only where another one continues its mask better.
    """
    count = len(iou)
    distance = apart(iou, linking)
    cost = np.full((count + 1, count + 1), np.inf)
    cost[:-1, :-1] = distance - distance.min(1, keepdims=True) + linking.switch
    stays = np.arange(count)
    cost[stays, stays] = np.minimum(cost[stays, stays] - linking.switch, linking.hold)
    cost[-1, -1] = 0
    return cost


def seam_iou(before: np.ndarray, here: np.ndarray, blank: float) -> np.ndarray:
    """(C1, C2) IoU of every pair of mask stacks (C1, t, h, w) and (C2, t, h, w) bool; ``blank`` where one is empty."""
    a = before.reshape(len(before), -1).astype(np.float32)
    b = here.reshape(len(here), -1).astype(np.float32)
    both = a @ b.T
    area_a, area_b = a.sum(1), b.sum(1)
    union = area_a[:, None] + area_b[None] - both
    iou = both / np.maximum(union, 1)
    return np.where((area_a[:, None] == 0) | (area_b[None] == 0), blank, iou)


def sigmoid(x):  # type: ignore[no-untyped-def]
    """Of numbers or arrays, without overflow."""
    return np.exp(log_sigmoid(x))


def log_sigmoid(x):  # type: ignore[no-untyped-def]
    """Of numbers or arrays, without overflow."""
    return -np.logaddexp(0, -np.asarray(x, dtype=np.float64))
