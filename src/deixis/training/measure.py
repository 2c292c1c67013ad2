"""How a system answers on films whose truth is exact: right object, overlap, presence, changes of object.

The films go to disk and through ``deixis.segment``, the path that users take. T frames, N objects, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from scipy.optimize import minimize
from torch import nn

from deixis.inference import segment
from deixis.metrics.choice import FOUND, overlap_with_each, right_object
from deixis.synthetic.scene import Sentence, SyntheticVideo
from deixis.types import MaskTrack


@dataclass(frozen=True, kw_only=True)
class SentenceScore:
    """How one sentence was answered. present: the object is in the film.  right: the mask lies on the referred object
    more than on any other (for an absent object: no mask).  overlap: with the referred object, over all frames, 0..1.
    presence: 0..1, as predicted.  empty: no mask in any frame.  changed: the mask moved from one object to another."""

    film: str
    text: str
    kind: str
    present: bool
    right: bool
    overlap: float
    presence: float
    empty: bool
    changed: bool


def evaluate_films(
    system: nn.Module,
    films: Iterable[SyntheticVideo],
    *,
    words: Callable[[int, SyntheticVideo], tuple[str, ...]] | None = None,
    threshold: float | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> Iterator[SentenceScore]:
    """Segment every film for all of its sentences, and compare with the truth.

    words: texts instead of a film's own (by its number), to measure what the words are worth.  threshold: of
    presence, instead of the system's own.
    """
    found = tracks_of(system, films, words=words, threshold=threshold, precision=precision, device=device)
    for _, film, sentence, track in found:
        yield compare_with_truth(film, sentence, track)


def tracks_of(
    system: nn.Module,
    films: Iterable[SyntheticVideo],
    *,
    words: Callable[[int, SyntheticVideo], tuple[str, ...]] | None = None,
    threshold: float | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> Iterator[tuple[int, SyntheticVideo, Sentence, MaskTrack]]:
    """(number of the film, film, sentence, its track) of all sentences; arguments as of ``evaluate_films``."""
    with TemporaryDirectory(prefix="deixis-measure-") as folder:
        for number, film in enumerate(films):
            if not film.sentences:
                continue
            texts = tuple(s.text for s in film.sentences) if words is None else words(number, film)
            place = Path(folder) / str(number)
            write_frames(film, place)
            tracks = segment(place, list(texts), model=system, threshold=threshold, precision=precision, device=device)
            yield from ((number, film, s, track) for s, track in zip(film.sentences, tracks, strict=True))
            for file in place.iterdir():
                file.unlink()


def compare_with_truth(film: SyntheticVideo, sentence: Sentence, track: MaskTrack) -> SentenceScore:
    """Compare one track with the truth."""
    chosen = np.asarray(track.masks)
    empty = not chosen.any()
    if sentence.objects:
        right, overlap = right_object(chosen, film.masks, sentence.objects)
    else:
        right, overlap = empty, float(empty)
    return SentenceScore(
        film=film.name,
        text=sentence.text,
        kind=sentence.kind,
        present=bool(sentence.objects),
        right=right,
        overlap=overlap,
        presence=track.presence,
        empty=empty,
        changed=changes_object(chosen, film.masks),
    )


def changes_object(chosen: np.ndarray, truth: np.ndarray, stretch: int = 8) -> bool:
    """Whether a (T, H, W) mask lies on one object in one stretch of frames and on another in a later one.

    truth: (T, N, H, W). A stretch where no object is overlapped by more than a tenth says nothing.
    """
    on = []
    for first in range(0, len(chosen), stretch):
        overlaps = overlap_with_each(chosen[first : first + stretch], truth[first : first + stretch])
        if len(overlaps) and overlaps.max() > FOUND:
            on.append(int(overlaps.argmax()))
    return len(set(on)) > 1


def write_frames(film: SyntheticVideo, folder: Path) -> None:
    """The frames as PNG, without loss."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(i: int) -> None:
        cv2.imwrite(str(folder / f"{i:05d}.png"), film.frames[i][..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(len(film.frames))))


def raw_presence(predicted: np.ndarray | float, temperature: float = 1.0, shift: float = 0.0) -> Any:
    """The logits of probabilities that were made with a temperature and a shift, before these."""
    predicted = np.clip(predicted, 1e-7, 1 - 1e-7)
    return (np.log(predicted / (1 - predicted)) - shift) * temperature


def fit_presence(predicted: np.ndarray, present: np.ndarray, temperature: float, shift: float) -> tuple[float, float]:
    """(temperature, shift) that make predicted probabilities agree best with the facts (least entropy; Platt, 1999).

    predicted: (n,) probabilities that were made with the ``temperature`` and ``shift`` given.  present: (n,) bool.
    """
    raw = raw_presence(predicted, temperature, shift)
    y = present.astype(float)

    def entropy(weights: np.ndarray) -> float:
        logits = raw * weights[0] + weights[1]
        return float(np.mean(np.logaddexp(0, logits) - y * logits))

    slope, offset = minimize(entropy, np.array([1 / temperature, shift]), method="Nelder-Mead").x
    return float(1 / max(slope, 1e-2)), float(offset)


def chosen_threshold(found: list[tuple[float, bool]], absent: list[float], left_empty: float) -> float:
    """The presence threshold: where (share of present objects rightly answered + share of absent ones left empty) is
    greatest, but no higher than is needed to leave the share ``left_empty`` of the absent ones empty, since users
    mostly name what is in the film. found: (presence, whether the right object would be shown).  absent: presences."""
    candidates = np.linspace(0.05, 0.95, 91)
    p, right, away = np.array([f[0] for f in found]), np.array([f[1] for f in found]), np.array(absent)
    gains = [((p >= c) & right).mean() + (away < c).mean() for c in candidates]
    best = max(gains)
    fair = float(np.median([c for c, g in zip(candidates, gains, strict=True) if g >= best - 0.003]))
    return min([fair, *(float(c) for c in candidates if (away < c).mean() >= left_empty)])


LEAST_SURE = 20  # answers that a sure bound must rest on (our choice)
NEVER_SURE = 0.999  # the bound where no presence is high enough to be sure


def sure_bound(found: Sequence[tuple[float, bool]], threshold: float, share: float) -> float:
    """The presence from which on an answer is no guess: the least one, the threshold or above, such that at least
    ``share`` of the answers with that presence or more show the right thing. ``NEVER_SURE`` where no bound does so for
    20 answers. found: (presence, whether the right thing would be shown)."""
    shown = sorted((p, right) for p, right in found if p >= threshold)
    for i in range(len(shown) - LEAST_SURE + 1):
        if np.mean([right for _, right in shown[i:]]) >= share:
            return threshold if i == 0 else shown[i][0]
    return NEVER_SURE


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
