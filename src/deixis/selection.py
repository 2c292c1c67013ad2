"""The published rule: one query for a clip, the one with the greatest mean probability, and its raw logits as masks.

Nothing is linked and nothing is rounded: the logits go to the source's size by bilinear interpolation and are then
compared with 0. What a query is ranked over is the benchmark's matter: a window (``segment``, Ref-DAVIS17) or a whole
film (Ref-YouTube-VOS, MeViS). Systems whose expressions may name several objects show every query above their
threshold.

K expressions, T frames of a window, Q queries, N shown ones, h w cells of a mask, H W source pixels.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deixis.linking import Presence, film_presence, sigmoid
from deixis.types import DeixisError, Expression, MaskTrack, Prediction, Rle, RleMasks, Size, encode_rle
from deixis.waiting import DiskFile, DiskRles, Names, pack_logits, unpack_logits

SELECTIONS = ("official", "linked")
Enlarge = Literal["at_once", "through_input"]


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of one window for one expression, on the CPU.

    logits: (N, T, h, w) float32, raw.  frame_scores: (N, T) logits; of the best query where N is 0.
    presence: logit that the object is there.  size, padded: (height, width) of the picture that the model got, and the
    same with its padding.
    """

    logits: Tensor
    frame_scores: np.ndarray
    presence: float
    size: Size
    padded: Size


def probabilities(prediction: Prediction) -> Tensor:
    """(K, T, Q) float32: of each query, in each frame."""
    scores = prediction.scores.float().sigmoid()
    if not bool(torch.isfinite(scores).all()):
        raise DeixisError("the model answers with numbers that are not finite; its weights or its config are damaged")
    return scores


def choose_queries(
    prediction: Prediction, rule: Presence, size: Size, padded: Size, *, several: bool = False,
    queries: Sequence[int] | None = None,
) -> list[Shown]:  # fmt: skip
    """What is shown for each of the prediction's K expressions.

    Args:
        prediction: Of one window.
        rule: The threshold that ``several`` needs.
        size: (height, width) of the picture that the model got.
        padded: The same with its padding.
        several: Show all queries whose probability reaches the rule's threshold, instead of the best one.
        queries: The chosen query of each expression, where it was ranked over the whole film.

    Returns:
        One ``Shown`` an expression.

    Raises:
        DeixisError: Where the model's numbers are not finite.
    """
    ranks = probabilities(prediction).mean(1)  # (K, Q)
    best = ranks.argmax(1) if queries is None else torch.tensor(queries, device=ranks.device)
    scores = prediction.scores.float()
    if several and rule.threshold is not None:
        kept = rule.calibrated(scores).sigmoid().mean(1) >= rule.threshold  # (K, Q)
    else:
        kept = F.one_hot(best, ranks.shape[1]).bool()
    presence = scores.mean(1).gather(1, best[:, None])[:, 0] if prediction.presence is None else prediction.presence
    found = []
    for k, own in enumerate(kept):
        shown = scores[k, :, own].T if bool(own.any()) else scores[k, :, best[k], None].T  # (N, T)
        found.append(
            Shown(
                prediction.masks[k, :, own].transpose(0, 1).float().cpu(),
                shown.cpu().numpy(),
                float(presence[k]),
                size,
                padded,
            )
        )
    return found


def enlarge(logits: Tensor, size: Size, padded: Size, source: Size, how: Enlarge = "at_once") -> Tensor:
    """Mask logits (N, h, w) at ``source`` size (N, H, W), bilinear; padding is cut off first.

    how: ``at_once``, or ``through_input``: to the size that the model got, then to the source's (Mask2Former's heirs).
    """
    x = logits[:, None]
    if how == "through_input":
        x = F.interpolate(x, padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
        return F.interpolate(x, source, mode="bilinear", align_corners=False)[:, 0]
    if size == padded:
        return F.interpolate(x, source, mode="bilinear", align_corners=False)[:, 0]
    h, w = logits.shape[-2:]
    inside = (h * size[0] / padded[0], w * size[1] / padded[1])  # cells that hold the picture; not always whole
    rows, columns = min(h, int(np.ceil(inside[0]))), min(w, int(np.ceil(inside[1])))
    axes = [
        (2 * ((torch.arange(n) + 0.5) * cells / n - 0.5) + 1) / whole - 1
        for n, cells, whole in zip(source, inside, (rows, columns), strict=True)
    ]
    y, x_axis = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([x_axis, y], -1).expand(len(logits), -1, -1, -1)
    x = x[..., :rows, :columns]
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def threshold_at_input(logits: Tensor, size: Size, padded: Size, source: Size) -> Tensor:
    """(N, H, W) bool at ``source`` size from logits (N, h, w), as A2D and JHMDB are scored: bilinear to the size that
    the model got, compared with 0, padding cut off, then to the source's size by the nearest pixel."""
    x = F.interpolate(logits[:, None].float(), padded, mode="bilinear", align_corners=False)
    masks = (x > 0)[..., : size[0], : size[1]].float()
    return F.interpolate(masks, source, mode="nearest")[:, 0] > 0


class PublishedTracks:
    """Collects what is shown of every window, as finished masks: one track an expression at the end of the film.

    Args:
        expressions: In the order of every window's answers.
        source_size: (height, width) of the masks.
        rule: Below its threshold a track is left empty at the end.
        how: How masks grow to the source's size.
        soft: Keep the logits too, for ``soft``.
        folder: Where RLEs and logits wait; None keeps RLEs in memory.
    """

    def __init__(
        self, expressions: Sequence[Expression], source_size: Size, rule: Presence, *, how: Enlarge = "at_once",
        soft: bool = False, folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.expressions, self.source_size, self.rule, self.how = expressions, source_size, rule, how
        self.folder, self.names, self.times = folder, Names(), array("d")
        self._rles: list[DiskRles | list[Rle]] = [
            [] if folder is None else DiskRles(source_size, folder) for _ in expressions
        ]
        self._scores, self._presence = [array("f") for _ in expressions], [array("d") for _ in expressions]
        self._logits = DiskFile(folder) if soft else None
        self._shape: tuple[Size, Size] | None = None  # of the picture that the model gets, and the same with padding

    @property
    def waiting(self) -> tuple[int, Path]:
        """(bytes of logits that wait, and where)."""
        return (0, Path(".")) if self._logits is None else (self._logits.taken, self._logits.folder)

    @property
    def masks_that_wait(self) -> int:
        """For every frame."""
        return 0 if self._logits is None else len(self.expressions)

    def add(self, window: Sequence[Shown], names: Sequence[str], times: Sequence[float], start: int) -> None:
        """The next window: one ``Shown`` an expression; ``start`` is the film's index of its first frame."""
        assert start == len(self.names), f"window at {start} after {len(self.names)} frames"
        for name in names:
            self.names.append(name)
        self.times.extend(times)
        shape = window[0].size, window[0].padded
        assert self._shape in (None, shape), "the windows of a film have one size"
        self._shape = shape
        for i, shown in enumerate(window):
            self._presence[i].append(shown.presence)
            self._scores[i].extend(sigmoid(self.rule.calibrated(shown.frame_scores)).max(0).tolist())
            if self._logits is not None:
                assert len(shown.logits) == 1, "soft masks are of one query"
                self._logits.append(pack_logits(shown.logits[0].numpy(), soft=True))
            for frame in shown.logits.unbind(1):  # (N, h, w)
                self._rles[i].append(encode_rle(self._mask(frame, shown)))

    def _mask(self, frame: Tensor, shown: Shown) -> np.ndarray:
        if not bool((frame > 0).any()):
            return np.zeros(self.source_size, bool)
        logits = enlarge(frame, shown.size, shown.padded, self.source_size, self.how).numpy()
        return logits[0] > 0 if len(logits) == 1 else np.asarray((logits > 0).any(0))

    def finish(self) -> list[MaskTrack]:
        """One track an expression; below the rule's threshold its masks are empty."""
        return [self._track(i) for i in range(len(self.expressions))]

    def _track(self, number: int) -> MaskTrack:
        presence, shown = self._verdict(number)
        scores = np.frombuffer(self._scores[number], np.float32) if len(self._scores[number]) else np.zeros(0, "f4")
        rles: Sequence[Rle] = self._rles[number]
        if not shown:
            empty = encode_rle(np.zeros(self.source_size, dtype=bool))
            rles, scores = [empty] * len(rles), np.minimum(scores, np.float32(presence))
        return MaskTrack(
            self.expressions[number], RleMasks(rles, self.source_size), scores, presence, self.names, self.times,
            self.rule.threshold, self.rule.sure,
        )  # fmt: skip

    def _verdict(self, number: int) -> tuple[float, bool]:
        """(the film's presence, whether its masks are shown)."""
        presence = film_presence(np.frombuffer(self._presence[number], np.float64), self.rule)
        return presence, self.rule.shows(presence)

    def soft(self) -> list[Iterator[np.ndarray]]:
        """For every expression, its mask in every frame as (H, W) float32 probabilities; zeros where it is absent."""
        return [self._soft(i) for i in range(len(self.expressions))]

    def _soft(self, number: int) -> Iterator[np.ndarray]:
        assert self._logits is not None
        _, shown = self._verdict(number)
        for window in range(number, len(self._logits), len(self.expressions)):
            assert self._shape is not None
            size, padded = self._shape
            for frame in unpack_logits(self._logits[window]):
                if shown:
                    logits = enlarge(torch.from_numpy(frame)[None], size, padded, self.source_size, self.how)
                    yield logits[0].sigmoid().numpy()
                else:
                    yield np.zeros(self.source_size, np.float32)
