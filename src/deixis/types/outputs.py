"""What encoders and systems return: features and predictions."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deixis.types.errors import DeixisError, require


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """Visual features of a clip. levels: list of (B, T, C, h, w).  strides: pixels a cell, one a level.
    padding: (B, T, H, W) bool at the size of the frames.  size: (H, W) of the frames.
    """

    levels: tuple[Tensor, ...]
    strides: tuple[int, ...]
    padding: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        for level in self.levels:
            require(level.ndim == 5, "FeatureMaps.levels", "(B, T, C, h, w) each", level)
        if len(self.levels) != len(self.strides):
            raise DeixisError(f"FeatureMaps: {len(self.levels)} levels but {len(self.strides)} strides")


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Text features. words: (B, L, C).  padding: (B, L) bool.  sentence: (B, C)."""

    words: Tensor
    padding: Tensor
    sentence: Tensor

    def __post_init__(self) -> None:
        w = self.words
        require(w.ndim == 3, "TextFeatures.words", "(B, L, C)", w)
        require(self.padding.shape == w.shape[:2], "TextFeatures.padding", f"{tuple(w.shape[:2])} bool", self.padding)
        require(len(self.sentence) == len(w), "TextFeatures.sentence", f"({len(w)}, C)", self.sentence)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What every system returns.

    masks: (B, T, Q, h, w) logits.  scores: (B, T, Q) logits of "this query is what the expression names, here".
    boxes: (B, T, Q, 4) cx cy w h in 0..1, or None.  similarity: (B, Q) logits of query against sentence, or None.
    presence: (B,) logits of "what the expression names is in this clip", or None (then the best score decides).
    aux: predictions of earlier layers, for training.
    extras: named tensors that only the system's own loss reads.
    """

    masks: Tensor
    scores: Tensor
    boxes: Tensor | None = None
    similarity: Tensor | None = None
    presence: Tensor | None = None
    aux: tuple[Prediction, ...] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        m = self.masks
        require(m.ndim == 5, "Prediction.masks", "(B, T, Q, h, w) logits", m)
        require(self.scores.shape == m.shape[:3], "Prediction.scores", f"{tuple(m.shape[:3])} logits", self.scores)
        if self.boxes is not None:
            require(self.boxes.shape == (*m.shape[:3], 4), "Prediction.boxes", f"{(*m.shape[:3], 4)}", self.boxes)
        if self.similarity is not None:
            want = (m.shape[0], m.shape[2])
            require(tuple(self.similarity.shape) == want, "Prediction.similarity", f"{want}", self.similarity)
