"""The nouns of deixis, as frozen dataclasses whose shapes are checked when one is born.

Letters used everywhere: B clips, T frames, N objects, Q queries, L words, C channels, H W pixels of a frame,
h w cells of a feature map or mask. ``padding`` is True where there is nothing (PyTorch's polarity).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, overload, runtime_checkable

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

Size = tuple[int, int]  # (height, width) in pixels
Rle = dict[str, Any]  # COCO's compressed run-length encoding: {"size": [H, W], "counts": bytes}


class DeixisError(ValueError):
    """An error that the user can fix: one line that says what came, what was expected, and what to do.

    Example:
        >>> import deixis
        >>> try:
        ...     deixis.segment("nowhere.mp4", "the dog")
        ... except deixis.DeixisError as error:
        ...     print(error)
        no such file or folder: nowhere.mp4
    """


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if hasattr(value, "shape") else type(value).__name__


def require(condition: bool, name: str, expected: str, got: Any, advice: str = "") -> None:
    """Raise a DeixisError that names the field, what was expected, what came, and what to do."""
    if not condition:
        raise DeixisError(f"{name} must be {expected}, got {_shape(got)}" + (f"; {advice}" if advice else ""))


def bounded(default: Any, least: float = 1, most: float | None = None) -> Any:
    """A config's field that a checkpoint may only state within ``least..most`` (None: no bound but least).

    An unmarked whole number must be 1 or more, or as low as its default where that is lower (``warmups: int = 0``).
    """
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """What the data path reads of any system. A system's config inherits these fields and adds its own sizes.
    A field that a system gives another default keeps its bounds.

    Presence is stated, never guessed: a threshold stands here only where a paper gives one or a calibration on held-out
    data found it. None: the system's score does not say whether an object is there, so every expression is answered.
    """

    window: int = bounded(36, most=1024)  # frames decoded at once at inference
    short_side: int = bounded(360, most=4096)  # pixels
    long_side: int = bounded(640, most=16384)  # pixels
    multiple: int = bounded(4, most=1024)  # pixels; height and width are padded to it
    square: bool = False  # frames become short_side x short_side, their shape is not kept
    several: bool = False  # an expression may refer to several objects
    mean: tuple[float, float, float] = bounded((0.485, 0.456, 0.406), least=-1e6, most=1e6)  # ImageNet
    std: tuple[float, float, float] = bounded((0.229, 0.224, 0.225), least=1e-6, most=1e6)  # ImageNet
    # official: the query with the greatest mean probability, its raw logits at source size compared with 0.
    # linked: one path over the whole film, which may leave a query for one that continues its mask.
    selection: Literal["official", "linked"] = "official"
    # How official masks grow to source size: at once, or through the size that the model got.
    enlarge: Literal["at_once", "through_input"] = "at_once"
    presence_threshold: float | None = None  # probability from which on an object counts as present; None: always
    presence_sure: float | None = bounded(None, least=0, most=1)  # below it masks are a guess ("unsure"); None: never
    presence_temperature: float = bounded(1.0, least=1e-6, most=1e6)  # divides the presence logit
    presence_shift: float = bounded(0.0, least=-1e6, most=1e6)  # added to the presence logit after that
    presence_from: str = ""  # what a calibration on held-out data found; empty: none was made


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
    """

    masks: Tensor
    boxes: Tensor
    visible: Tensor
    referred: Tensor

    def __post_init__(self) -> None:
        m = self.masks
        require(m.ndim == 4 and m.dtype == torch.bool, "Target.masks", "(T, N, H, W) bool", m, "threshold them first")
        t, n = m.shape[:2]
        require(tuple(self.boxes.shape) == (t, n, 4), "Target.boxes", f"({t}, {n}, 4) float", self.boxes)
        require(tuple(self.visible.shape) == (t, n), "Target.visible", f"({t}, {n}) bool", self.visible)
        require(tuple(self.referred.shape) == (n,), "Target.referred", f"({n},) bool", self.referred)

    def to(self, device: torch.device | str) -> Target:
        return Target(*(getattr(self, f.name).to(device) for f in fields(self)))


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


class EncodingSystem(Protocol):
    """What all systems have: a config and ``encode``."""

    config: Any  # a SystemConfig with the system's own fields

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> FeatureMaps:
        """Feature maps of frames (B, T, 3, H, W); no words in them."""
        ...


class System(EncodingSystem, Protocol):
    """What the data path calls of a system: an ``nn.Module`` with a config, ``encode`` and ``decode``.

    ``wanted`` names the frames whose masks are needed; None: all of them.
    """

    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """Masks and scores of every expression: one a clip, or any number for one clip."""
        ...


@runtime_checkable
class Accelerated(Protocol):
    """A system with a faster way to run its frozen parts on a CPU, equal up to rounding."""

    def accelerate(self) -> str | None:
        """Take the faster way from now on, where it is installed; what it is called, or None."""
        ...


@runtime_checkable
class RecurrentSystem(EncodingSystem, Protocol):
    """A system that carries a memory from window to window: ``step`` replaces ``decode``, which it need not have."""

    def step(self, maps: FeatureMaps, expressions: Sequence[Expression], memory: Any) -> tuple[Prediction, Any]:
        """The prediction of a window, and the memory for the next one (None before the first)."""
        ...


@runtime_checkable
class TwoPassSystem(RecurrentSystem, Protocol):
    """A recurrent system that reads the whole video once before its first step."""

    def collect(self, maps: FeatureMaps, expressions: Sequence[Expression], memory: Any) -> Any:
        """The memory after one more window of the first pass."""
        ...

    def finalize(self, memory: Any, expressions: Sequence[Expression]) -> Any:
        """The memory that the second pass begins with."""
        ...


def encode_rle(mask: np.ndarray) -> Rle:
    """Encode a mask as COCO compressed RLE.

    Args:
        mask: (H, W) bool.

    Returns:
        `{"size": [H, W], "counts": bytes}`.

    Raises:
        DeixisError: For another shape or type.

    Example:
        >>> import numpy as np
        >>> from deixis.types import encode_rle
        >>> encode_rle(np.eye(2, dtype=bool))["size"]
        [2, 2]
    """
    require(mask.ndim == 2 and mask.dtype == np.bool_, "mask", "(H, W) bool", mask, "threshold and squeeze it first")
    return coco.encode(np.asfortranarray(mask.view(np.uint8)))


def decode_rle(rle: Rle) -> np.ndarray:
    """Decode a COCO RLE.

    Args:
        rle: As `encode_rle` returns it.

    Returns:
        (H, W) bool.

    Example:
        >>> import numpy as np
        >>> from deixis.types import decode_rle, encode_rle
        >>> decode_rle(encode_rle(np.eye(2, dtype=bool))).tolist()
        [[True, False], [False, True]]
    """
    return coco.decode(rle).view(np.bool_)


class RleMasks(Sequence[np.ndarray]):
    """A sequence of masks kept as run-length encoding.

    `masks[i]` decodes frame i to (H, W) bool; `numpy.asarray(masks)` gives (T, H, W) bool.

    Args:
        rles: Any sequence of COCO RLE dictionaries, so that the masks of a long video can stay on disk.
        size: (height, width) of every mask.

    Example:
        >>> import numpy as np
        >>> from deixis.types import RleMasks, encode_rle
        >>> masks = RleMasks([encode_rle(np.eye(4, dtype=bool))], (4, 4))
        >>> int(masks[0].sum()), np.asarray(masks).shape
        (4, (1, 4, 4))
    """

    def __init__(self, rles: Sequence[Rle], size: tuple[int, int]) -> None:
        self.rles, self.size = rles, size

    def __len__(self) -> int:
        return len(self.rles)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> RleMasks: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | RleMasks:
        if isinstance(index, slice):
            return RleMasks([self.rles[i] for i in range(*index.indices(len(self)))], self.size)
        return decode_rle(self.rles[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (decode_rle(self.rles[i]) for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        stacked = np.stack(list(self)) if len(self) else np.zeros((0, *self.size), dtype=bool)
        return stacked if dtype is None else stacked.astype(dtype)

    def areas(self) -> np.ndarray:
        """Return the number of pixels of every mask, without decoding.

        Returns:
            (T,) int64.

        Example:
            >>> import numpy as np
            >>> from deixis.types import RleMasks, encode_rle
            >>> RleMasks([encode_rle(np.eye(4, dtype=bool))], (4, 4)).areas().tolist()
            [4]
        """
        return np.array([int(coco.area(self.rles[i])) for i in range(len(self))], dtype=np.int64)

    def __repr__(self) -> str:
        return f"RleMasks({len(self)} frames of {self.size[0]}x{self.size[1]})"


Verdict = Literal["there", "unsure", "not there"]


def verdict_of(shown: bool, presence: float, sure: float | None) -> Verdict:
    """Say in a word whether an object is in a video.

    Args:
        shown: Whether any frame holds a mask.
        presence: 0..1.
        sure: Presence from which on masks are no guess; None: they never are one.

    Returns:
        "there"; "unsure": masks are shown, as a guess; or "not there".

    Example:
        >>> from deixis.types import verdict_of
        >>> verdict_of(True, 0.97, 0.95), verdict_of(True, 0.9, 0.95), verdict_of(False, 0.1, 0.95)
        ('there', 'unsure', 'not there')
    """
    if not shown:
        return "not there"
    return "there" if sure is None or presence >= sure else "unsure"


@dataclass(frozen=True, eq=False)
class MaskTrack:
    """The masks of one object over a video: the result for one expression.

    Attributes:
        expression: The expression.
        masks: T masks at source size; all empty where the object is judged absent.
        scores: (T,) float32 in 0..1, the model's confidence in each frame; uncalibrated.
        presence: Probability that the object is in the video at all.
        names: T frame names.
        times: T times in seconds.
        threshold: Presence below which the masks were emptied, where that is known.
        sure: Presence below which the masks are a guess; None where the model does not say.

    Raises:
        DeixisError: For lengths that do not agree.

    Example:
        >>> import deixis
        >>> [track] = deixis.segment("film.mp4", "the red square")
        >>> len(track), track.masks[0].dtype, 0 <= track.presence <= 1
        (12, dtype('bool'), True)
    """

    expression: Expression
    masks: RleMasks
    scores: np.ndarray
    presence: float
    names: Sequence[str]
    times: Sequence[float]
    threshold: float | None = None
    sure: float | None = None

    def __post_init__(self) -> None:
        t = len(self.masks)
        require(self.scores.shape == (t,), "MaskTrack.scores", f"({t},) float in 0..1", self.scores)
        if not 0.0 <= self.presence <= 1.0:
            raise DeixisError(f"MaskTrack.presence must be in 0..1, got {self.presence}")
        if not (len(self.names) == len(self.times) == t):
            raise DeixisError(f"MaskTrack: {t} masks, {len(self.names)} names and {len(self.times)} times must agree")

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def present(self) -> bool:
        """Whether any frame holds a mask."""
        return bool(self.masks.areas().any())

    @property
    def verdict(self) -> Verdict:
        """ "there"; "unsure": the masks are a guess; or "not there"."""
        return verdict_of(self.present, self.presence, self.sure)
