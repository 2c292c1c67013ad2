"""What goes into a system: clips, expressions, their truth, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deixis.types.errors import DeixisError, require

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, eq=False)
class Clip:
    """A window of a video, decoded and possibly resized.

    Attributes:
        frames: (T, 3, H, W) uint8, RGB.
        names: T frame names (file stems, or zero-padded numbers).
        times: T times in seconds.
        source_size: (height, width) of the video in pixels.
        start: Index of the first frame among all frames that are read of the video.

    Raises:
        DeixisError: For shapes that do not agree.

    Example:
        >>> import deixis
        >>> clip = next(deixis.Video("film.mp4").windows(4))
        >>> clip.frames.shape, clip.names[0]
        (torch.Size([4, 3, 96, 160]), '00000')
    """

    frames: Tensor
    names: tuple[str, ...]
    times: tuple[float, ...]
    source_size: tuple[int, int]
    start: int = 0

    def __post_init__(self) -> None:
        f = self.frames
        require(f.ndim == 4 and f.shape[1] == 3 and f.dtype == torch.uint8, "Clip.frames", "(T, 3, H, W) uint8", f)
        require(len(self.names) == len(f), "Clip.names", f"{len(f)} names, one a frame", np.empty(len(self.names)))
        require(len(self.times) == len(f), "Clip.times", f"{len(f)} times, one a frame", np.empty(len(self.times)))

    def __len__(self) -> int:
        return len(self.frames)


MAX_EXPRESSION_CHARACTERS = 1000


@dataclass(frozen=True)
class Expression:
    """A referring expression: the words that refer to an object.

    Attributes:
        text: The words; white space and control characters are cleaned up.
        id: Distinguishes expressions in results on disk.

    Raises:
        DeixisError: For text that is empty, longer than 1,000 characters, or holds control characters only.

    Example:
        >>> import deixis
        >>> deixis.Expression("  the red   square ").text
        'the red square'
    """

    text: str
    id: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise DeixisError(f"an expression must be text, got {type(self.text).__name__}")
        words = " ".join("".join(c if c.isprintable() else " " for c in self.text).split())
        if not words:
            raise DeixisError("an expression must hold words, got an empty one; say what to look for")
        if len(words) > MAX_EXPRESSION_CHARACTERS:
            raise DeixisError(
                f"an expression may hold {MAX_EXPRESSION_CHARACTERS} characters, got {len(words)}; shorten it"
            )
        object.__setattr__(self, "text", words)


@dataclass(frozen=True, eq=False)
class Target:
    """The truth of one clip for one expression.

    masks: (T, N, H, W) bool.  boxes: (T, N, 4) float, cx cy w h as shares of the frame, 0 where not visible.
    visible: (T, N) bool.  referred: (N,) bool, the objects that the expression names (none: all False).
    category: the number of the class of what it names, for systems with several class outputs; None: not known.
    """

    masks: Tensor
    boxes: Tensor
    visible: Tensor
    referred: Tensor
    category: int | None = None

    def __post_init__(self) -> None:
        m = self.masks
        require(m.ndim == 4 and m.dtype == torch.bool, "Target.masks", "(T, N, H, W) bool", m, "threshold them first")
        t, n = m.shape[:2]
        require(tuple(self.boxes.shape) == (t, n, 4), "Target.boxes", f"({t}, {n}, 4) float", self.boxes)
        require(tuple(self.visible.shape) == (t, n), "Target.visible", f"({t}, {n}) bool", self.visible)
        require(tuple(self.referred.shape) == (n,), "Target.referred", f"({n},) bool", self.referred)

    def to(self, device: torch.device | str) -> Target:
        masks, boxes, visible, referred = (x.to(device) for x in (self.masks, self.boxes, self.visible, self.referred))
        return Target(masks, boxes, visible, referred, self.category)


@dataclass(frozen=True, eq=False)
class Batch:
    """B clips with one expression each.

    frames: (B, T, 3, H, W) float, normalised as the image encoder expects.  padding: (B, T, H, W) bool.
    sizes: B pairs (height, width) of the picture inside the padding.
    wanted: the frame indices masks are wanted for, in 0..T-1 (default: all).  targets: B Targets (of the wanted
    frames) or None.
    """

    frames: Tensor
    padding: Tensor
    expressions: tuple[Expression, ...]
    sizes: tuple[tuple[int, int], ...]
    wanted: tuple[int, ...] | None = None
    targets: tuple[Target, ...] | None = None

    def __post_init__(self) -> None:
        f = self.frames
        require(f.ndim == 5 and f.shape[2] == 3 and f.is_floating_point(), "Batch.frames", "(B, T, 3, H, W) float", f)
        b, t, _, h, w = f.shape
        require(
            tuple(self.padding.shape) == (b, t, h, w) and self.padding.dtype == torch.bool,
            "Batch.padding", f"({b}, {t}, {h}, {w}) bool", self.padding,
        )  # fmt: skip
        if len(self.expressions) != b:
            raise DeixisError(f"Batch.expressions must be {b}, one a clip, got {len(self.expressions)}")
        if self.wanted is not None and not all(0 <= i < t for i in self.wanted):
            raise DeixisError(f"Batch.wanted must hold frame indices in 0..{t - 1}, got {self.wanted}")
        if self.targets is not None and len(self.targets) != b:
            raise DeixisError(f"Batch.targets must be {b}, one a clip, got {len(self.targets)}")

    def to(self, device: torch.device | str) -> Batch:
        targets = None if self.targets is None else tuple(t.to(device) for t in self.targets)
        return Batch(
            self.frames.to(device), self.padding.to(device), self.expressions, self.sizes, self.wanted, targets
        )
