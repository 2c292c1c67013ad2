"""Masks as run-length encoding, and the track that is the result for one expression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import cv2
import numpy as np
from pycocotools import mask as coco

from deixis.types.errors import DeixisError, require
from deixis.types.inputs import Expression

Rle = dict[str, Any]  # COCO's compressed run-length encoding: {"size": [H, W], "counts": bytes}


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
    pixels: Any = mask.view(np.uint8)
    if pixels.size and not pixels.flags.f_contiguous:
        pixels = cv2.transpose(np.ascontiguousarray(pixels)).T  # numpy's own change of order takes twice as long
    return coco.encode(np.asfortranarray(pixels))


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
