"""From predictions of windows to mask tracks of a film: select, keep, link, decide, resize.

A window is answered with many candidate objects. Which of them is *the* object, and whether it is there at all, is
decided once, when the film has ended: one path through its frames (Viterbi) that keeps to one object where the masks of
neighbouring frames say so, may leave and return, and is judged against the presence threshold as a whole. Until then a
window's best few candidates wait in a temporary file (``waiting``), so memory stays flat.

K expressions, T frames of a window, Q queries, C candidates kept, W windows, h w cells of a mask, H W source pixels.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import cv2
import numpy as np
import torch

from deixis.linking import (
    Linking,
    Presence,
    Window,
    decide,
    decide_together,
    log_sigmoid,
    seam_iou,
    sigmoid,
)
from deixis.types import DeixisError, Expression, MaskTrack, Prediction, Rle, RleMasks, encode_rle
from deixis.waiting import DiskFile, DiskRles, Names, pack_logits, unpack_logits


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best queries of one window for one expression, best first.

    logits: (C, T, h, w) float32, only what lies inside the padding (``inside`` cells, fractions too).
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

    size: (height, width) of the picture that was encoded.  padded: the same with the padding.
    """
    k, _, q, h, w = prediction.masks.shape
    frame_scores = prediction.scores.float()  # (K, T, Q)
    scores, order = frame_scores.mean(1).topk(q if linking.several else min(linking.candidates, q), dim=1)  # (K, C)
    inside = (h * size[0] / padded[0], w * size[1] / padded[1])
    rows, columns = min(h, int(np.ceil(inside[0]))), min(w, int(np.ceil(inside[1])))
    expression = torch.arange(k, device=order.device)[:, None]
    masks = prediction.masks.permute(0, 2, 1, 3, 4)[expression, order, :, :rows, :columns]  # (K, C, T, rows, columns)
    logits = masks.float().cpu().numpy()
    per_frame = frame_scores.permute(0, 2, 1)[expression, order].cpu().numpy()  # (K, C, T)
    best = scores.cpu().numpy()
    presence = best[:, 0] if prediction.presence is None else prediction.presence.float().cpu().numpy()
    if not (np.isfinite(best).all() and np.isfinite(presence).all()):
        raise DeixisError("the model answers with numbers that are not finite; its weights or its config are damaged")
    kept = (np.exp(log_sigmoid(best) - log_sigmoid(best[:, :1])) >= linking.keep).sum(1)
    return [
        Candidates(logits[i, :n], best[i, :n], per_frame[i, :n], float(presence[i]), inside) for i, n in enumerate(kept)
    ]


class TrackBuilder:
    """Collects the candidates of every window, and turns them into one track per expression at the end of the film.

    source_size: (height, width) of the masks to come.  folder: where temporary files lie; None keeps the finished
    RLEs in memory (the candidates go to a temporary file all the same).  soft: keep what ``soft`` needs.
    """

    def __init__(
        self,
        expressions: Sequence[Expression],
        source_size: tuple[int, int],
        linking: Linking,
        folder: Path | None = None,
        soft: bool = False,
    ) -> None:
        self.expressions, self.source_size, self.linking, self.folder = expressions, source_size, linking, folder
        self._soft = soft
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
            masks = found.logits > 0  # (C, T, h, w)
            links = None
            if not self.linking.several:
                links = None if first else self._links(self._last[i], masks, repeated)
                self._last[i] = masks
            numbers = [self._logits.append(pack_logits(logits, self._soft)) for logits in found.logits]
            known = Window(
                numbers[0], found.logits.shape[1:], repeated, found.scores, found.frame_scores, found.presence,
                found.inside, self._steps(masks), links,
            )  # fmt: skip
            self._windows.append(known.pack())

    def _steps(self, masks: np.ndarray) -> np.ndarray:
        """(T - 1, C, C) IoU from frame to frame of (C, T, h, w) masks."""
        count, frames = masks.shape[:2]
        if self.linking.several:  # unused when all queries are kept
            return np.zeros((frames - 1, count, count))
        steps = [seam_iou(masks[:, t : t + 1], masks[:, t + 1 : t + 2], self.linking.blank) for t in range(frames - 1)]
        return np.stack(steps) if steps else np.zeros((0, count, count))

    def _links(self, before: np.ndarray, here: np.ndarray, repeated: int) -> np.ndarray:
        """(C before, C here) IoU on the frames that both have, or of the last against the first."""
        if repeated:
            return seam_iou(before[:, -repeated:], here[:, :repeated], self.linking.blank)
        return seam_iou(before[:, -1:], here[:, :1], self.linking.blank)

    @property
    def masks_that_wait(self) -> int:
        """For every frame, at most; where several are shown all queries wait, and how many there are is not known."""
        return self.linking.candidates * len(self.expressions)

    @property
    def waiting(self) -> tuple[int, Path]:
        """(bytes of candidates that wait, and where)."""
        return self._logits.taken + self._windows.taken, self._logits.folder

    def finish(self, rule: Presence) -> list[MaskTrack]:
        """One track per expression; below the rule's threshold its masks are empty."""
        return [self._track(e, self._film(i), rule) for i, e in enumerate(self.expressions)]

    def _film(self, expression: int) -> list[Window]:
        """The windows of one expression, read back."""
        numbers = range(expression, len(self._windows), len(self.expressions))
        return [Window.unpack(self._windows[number]) for number in numbers]

    def _track(self, expression: Expression, film: Sequence[Window], rule: Presence) -> MaskTrack:
        path, presence = self._decide(film, rule)
        rles: DiskRles | list[Rle] = [] if self.folder is None else DiskRles(self.source_size, self.folder)
        empty = encode_rle(np.zeros(self.source_size, dtype=bool))
        scores = array("f")
        for window, choices in zip(film, path, strict=True):
            at, there = np.arange(window.fresh, window.shape[0]), choices >= 0
            logits = window.frame_scores[np.maximum(choices, 0), at[:, None]]  # (fresh frames, choices)
            shown = np.where(there, sigmoid(rule.calibrated(logits)), 0).max(1, initial=0)
            best, least = (sigmoid(rule.calibrated(x)) for x in (window.frame_scores[0, at], window.presence))
            scores.extend(np.where(there.any(1), shown, np.minimum(best, least)))
            for frames in self._chosen_logits(window, choices):
                masks = [to_source(f, window.inside, self.source_size) for f in frames if f.max() > 0]
                rles.append(encode_rle(reduce(np.logical_or, masks)) if masks else empty)
        return MaskTrack(
            expression,
            RleMasks(rles, self.source_size),
            np.frombuffer(scores, np.float32) if len(scores) else np.zeros(0, np.float32),
            presence,
            self.names,
            self.times,
            rule.threshold,
            rule.sure,
        )

    def _decide(self, film: Sequence[Window], rule: Presence) -> tuple[list[np.ndarray], float]:
        """(for every window, the chosen candidates of each fresh frame (frames, choices), -1 for none; presence)."""
        if self.linking.several:
            return decide_together(film, self.linking, rule)
        path, presence = decide(film, self.linking, rule)
        return [choices[:, None] for choices in path], presence

    def _chosen_logits(self, window: Window, choices: np.ndarray) -> Iterator[list[np.ndarray]]:
        """(h, w) logits of the chosen candidates in every fresh frame of a window; [] where all are away."""
        unpacked: dict[int, np.ndarray] = {}
        for choice in np.unique(choices[choices >= 0]).tolist():
            unpacked[choice] = unpack_logits(self._logits[window.number + choice])
        for t, chosen in enumerate(choices.tolist(), start=window.fresh):
            yield [unpacked[choice][t] for choice in chosen if choice >= 0]

    def soft(self, rule: Presence) -> list[Iterator[np.ndarray]]:
        """For every expression, its mask in every frame as (H, W) float32 probabilities; zeros where it is away.

        For protocols that let objects compete for pixels. The choices are those of ``finish``.
        """
        return [self._soft_track(self._film(i), rule) for i in range(len(self.expressions))]

    def _soft_track(self, film: Sequence[Window], rule: Presence) -> Iterator[np.ndarray]:
        path, _ = self._decide(film, rule)
        for window, choices in zip(film, path, strict=True):
            for frames in self._chosen_logits(window, choices):
                enlarged = [enlarge_transposed(frame, window.inside, self.source_size) for frame in frames]
                if enlarged:
                    yield sigmoid(reduce(np.maximum, enlarged)).astype(np.float32).T
                else:
                    yield np.zeros(self.source_size, np.float32)


def to_source(logits: np.ndarray, inside: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """One frame's (h, w) float32 logits as a (H, W) bool mask at source ``size``: bilinear, then logit > 0.

    inside: how many of the cells (rows, columns) hold the picture; the rest is padding. The mask is laid out column
    by column, as RLE wants it.
    """
    return (enlarge_transposed(logits, inside, size) > 0).T


def enlarge_transposed(logits: np.ndarray, inside: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """One frame's (h, w) float32 logits, bilinear at source ``size`` (H, W), transposed: (W, H)."""
    height, width = size
    columns_first = np.ascontiguousarray(logits.T)
    if inside == logits.shape:
        return cv2.resize(columns_first, (height, width), interpolation=cv2.INTER_LINEAR)
    steps = inside[0] / height, inside[1] / width  # cells a source pixel
    inverse = np.array([[steps[0], 0, steps[0] / 2 - 0.5], [0, steps[1], steps[1] / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(columns_first, inverse, (height, width), flags=flags, borderMode=cv2.BORDER_REPLICATE)
