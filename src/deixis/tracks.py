"""From predictions of windows to mask tracks of a film: select, remember, link, decide, resize.

A window is answered with many candidate objects. Which of them is *the* object, and whether it is there at all, is
decided once, when the film has ended: one path through its frames (Viterbi) that keeps to one object where the masks of
neighbouring frames say so, may leave and return, and is judged against the presence threshold as a whole. Until then a
window's best few candidates wait in a temporary file as small compressed logits, so memory stays flat.

K expressions, T frames of a window, Q queries, C candidates kept, W windows, h w cells of a mask, H W source pixels.
"""

from __future__ import annotations

import tempfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import torch

from deixis.types import DeixisError, Expression, MaskTrack, Prediction, Rle, RleMasks, encode_rle

LOGIT_RANGE = 8.0  # logits are kept as one byte for -8..8; beyond it a mask is certain enough (our choice)
ZERO = 127.5  # the byte value of logit 0
PROBABILITIES = (1 / (1 + np.exp((ZERO - np.arange(256)) * LOGIT_RANGE / ZERO))).astype(np.float32)  # of a byte value


@dataclass(frozen=True, kw_only=True)
class Linking:
    """How one object is followed over a film. All numbers are our choice, in natural logarithms where not said.

    Tried on 133 sentences of 24 held-out films of 60 frames (two to four objects, a half-trained light): choosing one
    query per window got the right object for .60, choosing per frame as here for .65; in between, the exact costs
    change little.
    """

    candidates: int = 6  # queries of an expression that are remembered of every window
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


@dataclass(frozen=True, kw_only=True)
class Presence:
    """How a presence logit becomes a probability, and from which one on an object counts as there.

    The probability is sigmoid(logit / temperature + shift); threshold is in 0..1, both ends left out.
    """

    threshold: float = 0.5
    temperature: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise DeixisError(
                f"the presence threshold must lie between 0 and 1, both left out, got {self.threshold};"
                " 0.001 shows nearly everything"
            )
        if not self.temperature > 0:
            raise DeixisError(f"the presence temperature must be above 0, got {self.temperature}")

    def calibrated(self, logits: Any) -> Any:
        return logits / self.temperature + self.shift


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best queries of one window for one expression, best first.

    logits: (C, T, h, w) uint8, -8..8 as 0..255, only what lies inside the padding (``inside`` cells, fractions too).
    scores: (C,) mean logit over the frames.  frame_scores: (C, T) logits.  presence: logit that the object is there.
    inside: (height, width) of the picture in cells of the mask; not whole numbers when padding cuts through a cell.
    """

    logits: np.ndarray
    scores: np.ndarray
    frame_scores: np.ndarray
    presence: float
    inside: tuple[float, float]


def select(
    prediction: Prediction, linking: Linking, size: tuple[int, int], padded: tuple[int, int]
) -> list[Candidates]:
    """The candidates of each of the prediction's K expressions, on the CPU.

    size: (height, width) of the picture that the model saw.  padded: the same with the padding.
    """
    k, _, q, h, w = prediction.masks.shape
    frame_scores = prediction.scores.float()  # (K, T, Q)
    scores, order = frame_scores.mean(1).topk(q if linking.several else min(linking.candidates, q), dim=1)  # (K, C)
    inside = (h * size[0] / padded[0], w * size[1] / padded[1])
    rows, columns = min(h, int(np.ceil(inside[0]))), min(w, int(np.ceil(inside[1])))
    expression = torch.arange(k, device=order.device)[:, None]
    masks = prediction.masks.permute(0, 2, 1, 3, 4)[expression, order, :, :rows, :columns]  # (K, C, T, rows, columns)
    scale = ZERO / LOGIT_RANGE
    bytes_ = masks.float().mul_(scale).add_(ZERO).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    per_frame = frame_scores.permute(0, 2, 1)[expression, order].cpu().numpy()  # (K, C, T)
    best = scores.cpu().numpy()
    presence = best[:, 0] if prediction.presence is None else prediction.presence.float().cpu().numpy()
    if not (np.isfinite(best).all() and np.isfinite(presence).all()):
        raise DeixisError("the model answers with numbers that are not finite; its weights or its config are damaged")
    kept = (np.exp(log_sigmoid(best) - log_sigmoid(best[:, :1])) >= linking.keep).sum(1)
    return [
        Candidates(bytes_[i, :n], best[i, :n], per_frame[i, :n], float(presence[i]), inside) for i, n in enumerate(kept)
    ]


class DiskFile:
    """Byte strings in an unnamed temporary file: ``append`` gives a number under which ``[number]`` reads it back.

    The file vanishes with the process, however that ends. folder: where it lies (default: the system's own place).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  lives as long as this object
        self._ends = array("q", [0])
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, data: bytes) -> int:
        with self._lock:
            self._file.seek(self._ends[-1])
            self._file.write(data)
            self._ends.append(self._ends[-1] + len(data))
            return len(self._ends) - 2

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        with self._lock:
            self._file.seek(start)
            return self._file.read(end - start)


class DiskRles(Sequence[Rle]):
    """The RLEs of a track in a temporary file, for films whose masks must not stay in memory."""

    def __init__(self, size: tuple[int, int], folder: Path | None = None) -> None:
        self.size, self._file = list(size), DiskFile(folder)

    def append(self, rle: Rle) -> None:
        self._file.append(rle["counts"])

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {"size": self.size, "counts": self._file[index % len(self)]}


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


class Names(Sequence[str]):
    """Frame names, appended one by one, in one piece of memory: a list of strings would cost 60 bytes each."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])

    def append(self, name: str) -> None:
        self._text += name.encode(errors="surrogateescape")  # a file's name may be no UTF-8
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._text[self._ends[index] : self._ends[index + 1]].decode(errors="surrogateescape")


class TrackBuilder:
    """Collects the candidates of every window, and turns them into one track per expression at the end of the film.

    source_size: (height, width) of the masks to come.  folder: where temporary files lie; None keeps the finished
    RLEs in memory (the candidates go to a temporary file all the same).
    """

    def __init__(
        self,
        expressions: Sequence[Expression],
        source_size: tuple[int, int],
        linking: Linking,
        folder: Path | None = None,
    ) -> None:
        self.expressions, self.source_size, self.linking, self.folder = expressions, source_size, linking, folder
        self.names, self.times = Names(), array("d")
        # On disk, not in lists: small things that live long between large ones that do not keep freed memory from
        # going back to the system.
        self._logits, self._windows = DiskFile(folder), DiskFile(folder)
        self._last: list[np.ndarray] = [np.zeros(0)] * len(expressions)  # masks of the window before, bool

    def add(self, window: Sequence[Candidates], names: Sequence[str], times: Sequence[float], start: int) -> None:
        """The next window: one Candidates per expression; ``start`` is the film's index of its first frame."""
        repeated = len(self.names) - start
        assert 0 <= repeated < len(names), f"window at {start} after {len(self.names)} frames"
        first = not len(self.names)
        for name in names[repeated:]:
            self.names.append(name)
        self.times.extend(times[repeated:])
        for i, found in enumerate(window):
            masks = found.logits > ZERO  # (C, T, h, w)
            links = None
            if not self.linking.several:
                links = None if first else self._links(self._last[i], masks, repeated)
                self._last[i] = masks
            numbers = [self._logits.append(zlib.compress(logits.tobytes(), 1)) for logits in found.logits]
            known = Window(
                numbers[0], found.logits.shape[1:], repeated, found.scores, found.frame_scores, found.presence,
                found.inside, self._steps(masks), links,
            )  # fmt: skip
            self._windows.append(known.pack())

    def _steps(self, masks: np.ndarray) -> np.ndarray:
        """(T - 1, C, C) IoU from frame to frame of (C, T, h, w) masks."""
        count, frames = masks.shape[:2]
        if self.linking.several:  # nobody asks
            return np.zeros((frames - 1, count, count))
        steps = [seam_iou(masks[:, t : t + 1], masks[:, t + 1 : t + 2], self.linking.blank) for t in range(frames - 1)]
        return np.stack(steps) if steps else np.zeros((0, count, count))

    def _links(self, before: np.ndarray, here: np.ndarray, repeated: int) -> np.ndarray:
        """(C before, C here) IoU on the frames that both have, or of the last against the first."""
        if repeated:
            return seam_iou(before[:, -repeated:], here[:, :repeated], self.linking.blank)
        return seam_iou(before[:, -1:], here[:, :1], self.linking.blank)

    def finish(self, judge: Presence) -> list[MaskTrack]:
        """One track per expression; below the judge's threshold its masks are empty."""
        return [self._track(e, self._film(i), judge) for i, e in enumerate(self.expressions)]

    def _film(self, expression: int) -> list[Window]:
        """The windows of one expression, read back."""
        numbers = range(expression, len(self._windows), len(self.expressions))
        return [Window.unpack(self._windows[number]) for number in numbers]

    def _track(self, expression: Expression, film: Sequence[Window], judge: Presence) -> MaskTrack:
        path, presence = self._decide(film, judge)
        rles: DiskRles | list[Rle] = [] if self.folder is None else DiskRles(self.source_size, self.folder)
        empty = encode_rle(np.zeros(self.source_size, dtype=bool))
        scores = array("f")
        for window, choices in zip(film, path, strict=True):
            at, there = np.arange(window.fresh, window.shape[0]), choices >= 0
            logits = window.frame_scores[np.maximum(choices, 0), at[:, None]]  # (fresh frames, choices)
            seen = np.where(there, sigmoid(judge.calibrated(logits)), 0).max(1, initial=0)
            best, least = (sigmoid(judge.calibrated(x)) for x in (window.frame_scores[0, at], window.presence))
            scores.extend(np.where(there.any(1), seen, np.minimum(best, least)))
            for frames in self._chosen_logits(window, choices):
                masks = [to_source(f, window.inside, self.source_size) for f in frames if f.max() > ZERO]
                rles.append(encode_rle(reduce(np.logical_or, masks)) if masks else empty)
        return MaskTrack(
            expression,
            RleMasks(rles, self.source_size),
            np.frombuffer(scores, np.float32) if len(scores) else np.zeros(0, np.float32),
            presence,
            self.names,
            self.times,
        )

    def _decide(self, film: Sequence[Window], judge: Presence) -> tuple[list[np.ndarray], float]:
        """(for every window, the chosen candidates of each fresh frame (frames, choices), -1 for none; presence)."""
        if self.linking.several:
            return decide_together(film, self.linking, judge)
        path, presence = decide(film, self.linking, judge)
        return [choices[:, None] for choices in path], presence

    def _chosen_logits(self, window: Window, choices: np.ndarray) -> Iterator[list[np.ndarray]]:
        """(h, w) uint8 logits of the chosen candidates in every fresh frame of a window; [] where all are away."""
        unpacked: dict[int, np.ndarray] = {}
        for choice in np.unique(choices[choices >= 0]).tolist():
            data = zlib.decompress(self._logits[window.number + choice])
            unpacked[choice] = np.frombuffer(data, np.uint8).reshape(window.shape)
        for t, chosen in enumerate(choices.tolist(), start=window.fresh):
            yield [unpacked[choice][t] for choice in chosen if choice >= 0]

    def soft(self, judge: Presence) -> list[Iterator[np.ndarray]]:
        """For every expression, its mask in every frame as (H, W) float32 probabilities; zeros where it is away.

        For protocols that let objects compete for pixels. The choices are those of ``finish``.
        """
        return [self._soft_track(self._film(i), judge) for i in range(len(self.expressions))]

    def _soft_track(self, film: Sequence[Window], judge: Presence) -> Iterator[np.ndarray]:
        path, _ = self._decide(film, judge)
        for window, choices in zip(film, path, strict=True):
            for frames in self._chosen_logits(window, choices):
                enlarged = [enlarge(frame, window.inside, self.source_size) for frame in frames]
                if enlarged:
                    yield PROBABILITIES[reduce(np.maximum, enlarged)].T
                else:
                    yield np.zeros(self.source_size, np.float32)


def decide(film: Sequence[Window], linking: Linking, judge: Presence) -> tuple[list[np.ndarray], float]:
    """(for every window, the chosen candidate of each fresh frame, -1 for absent; the film's presence in 0..1)."""
    presence = film_presence(film, linking, judge)
    if presence < judge.threshold:
        return [np.full(window.shape[0] - window.fresh, -1) for window in film], presence
    logits = judge.calibrated(np.array([window.presence for window in film]))  # (W,)
    # Shifted so that "present" and "absent" tie at the threshold: one window alone then agrees with the film's verdict.
    shifted = logits - np.log(judge.threshold / (1 - judge.threshold))
    path = best_path(film, log_sigmoid(shifted), log_sigmoid(-shifted), linking)
    if max(choices.max() for choices in path) < 0:  # present, yet no window alone is worth the cost of entering
        path = best_path(film, log_sigmoid(shifted), np.full(len(film), -np.inf), linking)
    return path, presence


def decide_together(film: Sequence[Window], linking: Linking, judge: Presence) -> tuple[list[np.ndarray], float]:
    """(for every window, its candidates above the threshold, (fresh frames, kept); the film's presence in 0..1).

    Presence is judged as in ``decide``; below the threshold nothing is kept.
    """
    presence = film_presence(film, linking, judge)
    path = []
    for window in film:
        kept = np.nonzero(sigmoid(judge.calibrated(window.scores)) >= judge.threshold)[0]
        kept = kept if presence >= judge.threshold else kept[:0]
        path.append(np.broadcast_to(kept, (window.shape[0] - window.fresh, len(kept))))
    return path, presence


def film_presence(film: Sequence[Window], linking: Linking, judge: Presence) -> float:
    """0..1: of the mean logit of the film's surest windows, so that an object may be away for most of a film."""
    logits = judge.calibrated(np.array([window.presence for window in film]))  # (W,)
    surest = np.sort(logits)[::-1][: max(1, round(len(logits) * linking.presence_share))]
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


def to_source(logits: np.ndarray, inside: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """One frame's (h, w) uint8 logits as a (H, W) bool mask at source ``size``: bilinear, then logit > 0.

    inside: how many of the cells (rows, columns) hold the picture; the rest is padding. The mask is laid out column
    by column, as RLE wants it.
    """
    return (enlarge(logits, inside, size) > ZERO).T


def enlarge(logits: np.ndarray, inside: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """One frame's (h, w) uint8 logits, bilinear at source ``size`` (H, W), transposed: (W, H) uint8."""
    height, width = size
    columns_first = np.ascontiguousarray(logits.T)
    if inside == logits.shape:
        return cv2.resize(columns_first, (height, width), interpolation=cv2.INTER_LINEAR)
    steps = inside[0] / height, inside[1] / width  # cells a source pixel
    inverse = np.array([[steps[0], 0, steps[0] / 2 - 0.5], [0, steps[1], steps[1] / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(columns_first, inverse, (height, width), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def sigmoid(x):  # type: ignore[no-untyped-def]
    """Of numbers or arrays, without overflow."""
    return np.exp(log_sigmoid(x))


def log_sigmoid(x):  # type: ignore[no-untyped-def]
    """Of numbers or arrays, without overflow."""
    return -np.logaddexp(0, -np.asarray(x, dtype=np.float64))
