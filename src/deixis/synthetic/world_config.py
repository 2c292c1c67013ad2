"""What a generated world is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from deixis.synthetic.predicates import THRESHOLDS, Thresholds
from deixis.synthetic.sentences import SentenceMix
from deixis.types import DeixisError

MOST_PIXELS = 1 << 30  # of all frames of a film (our choice: 24 frames of 8K film hold 800 million)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What films are made. All numbers are our choice."""

    size: tuple[int, int] = (240, 432)  # H, W in pixels
    frames: int = 24
    rate: float = 6.0  # frames a second
    objects: tuple[int, int] = (1, 5)  # least and most
    cutouts: Path | None = None  # a folder like shared/data; None: drawn shapes only
    cutout_share: float = 0.5  # of the films, where a folder is given
    areas: tuple[float, float] = (0.012, 0.06)  # share of the picture that an object covers, least and most
    camera_moves: float = 0.25  # chance of a moving camera
    same_shape: float = 0.45  # chance that a further object has the shape (or class) of the first
    same_colour: float = 0.3  # chance that it has its colour
    pairs: float = 0.5  # chance that two objects of a film stand in a relation (one hides, or follows, the other)
    sentences: SentenceMix = field(
        default_factory=lambda: SentenceMix(
            count=10,
            most_none=0.15,
            weights=(
                ("class", 0.12), ("colour", 0.16), ("texture", 0.06), ("size", 0.2), ("place", 0.14), ("motion", 0.2),
                ("time", 0.3), ("relation", 0.3), ("several", 0.1), ("none", 0.12),
            ),
        )
    )  # fmt: skip
    flow: bool = True  # whether films carry their optical flow
    thresholds: Thresholds = field(default_factory=lambda: replace(THRESHOLDS, visible=0.3))

    def __post_init__(self) -> None:
        if not 1 <= self.objects[0] <= self.objects[1] <= 20:
            raise DeixisError(f"WorldConfig.objects must be (least, most) within 1..20, got {self.objects}")
        if self.frames < 2 or min(self.size) < 32:
            raise DeixisError(f"a film needs 2 frames and 32 pixels a side, got {self.frames} of {self.size}")
        if self.frames * self.size[0] * self.size[1] > MOST_PIXELS:
            raise DeixisError(
                f"a film of {self.frames} x {self.size} pixels is made in memory; expected {MOST_PIXELS:,} at most"
            )
        if not 0 < self.areas[0] <= self.areas[1] <= 0.5:
            raise DeixisError(f"WorldConfig.areas must be (least, most) shares within 0..0.5, got {self.areas}")
