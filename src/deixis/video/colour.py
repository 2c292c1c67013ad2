"""What the numbers of a video's pixels stand for: matrix, primaries, transfer, range, and how it is turned.

Codes are those of ITU-T H.273, as FFmpeg uses them; 2 (for the range 0) means "not stated". Pictures are RGB.

HDR (PQ, HLG) is brought to SDR by one fixed curve, so that a model trained on SDR and every player show the same:
light in units of 100 cd/m2 (FFmpeg's ``zscale=t=linear:npl=100``), BT.2020 or P3 to BT.709 primaries, FFmpeg's curve
``tonemap=mobius:param=0.3:peak=10:desat=0``, then BT.1886's gamma.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation

CAREFUL = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP  # for what is written
UNSTATED = 2
RGB, BT709, BT470BG, SMPTE170M, BT2020 = 0, 1, 5, 6, 9  # matrices
SRGB, PQ, HLG = 13, 16, 18  # transfers
HDR = {PQ: "PQ", HLG: "HLG"}
TV, FULL = 1, 2  # ranges
HD_LINES = 720  # untagged films of so many lines are BT.709 to players, lower ones BT.601
# libswscale's number of the matrix, by H.273's; it has no other ones
SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
NO_CODES = {8: "YCgCo", 11: "SMPTE 2085", 12: "derived from primaries", 13: "derived from primaries", 14: "ICtCp"}
WHITE = 100.0  # cd/m2 that stand for 1 in light (FFmpeg's default)
PEAK = 1000.0  # cd/m2 that the curve brings to full white (our choice: what HLG is defined for, and most HDR10)
KNEE = 0.3  # linear light below which nothing changes (FFmpeg's default)
TO_709 = {  # linear RGB of other primaries to BT.709's, by H.273's number of the primaries
    9: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    12: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
STEPS = 4096  # entries of the table that brings light to code values


@dataclass(frozen=True)
class Colours:
    """How the pixels of a video are coded.

    Attributes:
        matrix: How Y'CbCr are made of RGB; 0 for RGB itself.
        primaries: Which red, green and blue.
        transfer: How code values follow light.
        span: 1 for limited ("tv") range, 2 for full range, 0 for not stated.
        lines: Height as coded, by which players choose what is not stated.
    """

    matrix: int = UNSTATED
    primaries: int = UNSTATED
    transfer: int = UNSTATED
    span: int = 0
    lines: int = 0

    @property
    def hdr(self) -> str | None:
        """PQ or HLG; None for SDR."""
        return HDR.get(self.transfer)

    @property
    def swscale(self) -> int:
        """The number of the matrix in libswscale; where none is stated, the one that players take."""
        return SWSCALE.get(self.matrix, BT709 if self.lines >= HD_LINES else BT470BG)

    def shown(self) -> Colours:
        """The colours of pictures that ``to_rgb`` has made: HDR has become SDR."""
        return replace(self, matrix=BT709, primaries=BT709, transfer=BT709, span=TV) if self.hdr else self

    def written(self, lines: int, full: bool) -> Colours:
        """The colours for a film of ``lines`` lines that is written of these pictures.

        What is not stated stays so, for then players show both alike; unless the other height would change their
        judgement. full: whether the written format can hold the full range.
        """
        made = self.shown()
        span = made.span if full or made.span != FULL else TV
        if made.matrix == RGB:
            primaries = BT709 if made.primaries == UNSTATED else made.primaries
            transfer = SRGB if made.transfer == UNSTATED else made.transfer
            return Colours(BT709, primaries, transfer, TV, lines)
        matrix = made.matrix
        if matrix not in SWSCALE and (matrix != UNSTATED or replace(made, lines=lines).swscale != made.swscale):
            matrix = BT709 if made.swscale == BT709 else SMPTE170M
        return Colours(matrix, made.primaries, made.transfer, span, lines)

    def to_yuv(self, frame: av.VideoFrame, layout: str) -> av.VideoFrame:
        """An RGB frame in a codec's pixel format, by these colours, and tagged with them."""
        # One thread: on several, libswscale leaves half-transparent patches in an alpha plane of odd height.
        made = frame.reformat(
            format=layout, threads=1, dst_colorspace=self.swscale, dst_color_range=self.span or TV,
            interpolation=CAREFUL,
        )  # fmt: skip
        made.colorspace, made.color_range = self.matrix, self.span  # type: ignore[assignment]
        made.color_primaries, made.color_trc = self.primaries, self.transfer  # type: ignore[assignment]
        return made

    def tag(self, context: Any) -> None:
        """State them in an encoder's context, before it is opened."""
        context.colorspace, context.color_range = self.matrix, self.span
        context.color_primaries, context.color_trc = self.primaries, self.transfer


PICTURE = Colours(matrix=RGB, primaries=BT709, transfer=SRGB, span=FULL)


def colours_of(frame: av.VideoFrame, context: Any) -> Colours:
    """The colours of a decoded frame; what it does not state is taken from its stream's codec context."""

    def stated(name: str, none: int) -> int:
        own = int(getattr(frame, name))
        return int(getattr(context, name)) if own == none else own

    name = frame.format.name
    span = stated("color_range", 0)
    if name.startswith("yuvj"):
        span = FULL
    matrix = RGB if frame.format.is_rgb else stated("colorspace", UNSTATED)
    if matrix == RGB and not frame.format.is_rgb:  # H.273's RGB means green, blue and red in the planes
        matrix = UNSTATED
    return Colours(matrix, stated("color_primaries", UNSTATED), stated("color_trc", UNSTATED), span, frame.height)


def to_rgb(frame: av.VideoFrame, colours: Colours) -> np.ndarray:
    """A decoded frame as (H, W, 3) uint8 RGB, SDR."""
    coded = {"src_colorspace": colours.swscale, "src_color_range": colours.span or TV}
    options: dict[str, Any] = {} if colours.matrix == RGB else coded
    if colours.hdr:
        return tone_map(frame.to_ndarray(format="rgb48le", **options), colours)
    if frame.format.components[0].bits > 8:  # swscale's fast way from deep values is two levels too dark
        options["interpolation"] = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    return frame.to_ndarray(format="rgb24", **options)


def tone_map(picture: np.ndarray, colours: Colours) -> np.ndarray:
    """(H, W, 3) uint16 code values of PQ or HLG as uint8 of BT.709."""
    light = light_of(colours.transfer)[picture]
    if colours.primaries in TO_709:
        light = cv2.transform(light, np.array(TO_709[colours.primaries], np.float32))
    brightest = np.maximum(light.max(2), 1e-6)
    light *= (mobius(brightest) / brightest)[..., None]
    steps = np.clip(light * (STEPS - 1) + 0.5, 0, STEPS - 1).astype(np.uint16)
    return gamma_table()[steps]


@lru_cache(maxsize=2)
def light_of(transfer: int) -> np.ndarray:
    """(65536,) float32 light of every 16-bit code value of PQ or HLG, in units of ``WHITE``."""
    code = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:  # SMPTE ST 2084
        power = code ** (1 / 78.84375)
        shown = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        return (shown * 10000 / WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # ARIB STD-B67
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    # What a screen of 1000 cd/m2 makes of the scene: gamma 1.2, channel by channel, as FFmpeg's zscale takes it.
    return (scene**1.2 * PEAK / WHITE).astype(np.float32)


def mobius(light: np.ndarray) -> np.ndarray:
    """FFmpeg's curve: nothing changes up to ``KNEE``, and ``PEAK`` becomes 1."""
    j, peak = KNEE, PEAK / WHITE
    a = -j * j * (peak - 1) / (j * j - 2 * j + peak)
    b = (j * j - 2 * j * peak + peak) / (peak - 1)
    bent = (b * b + 2 * b * j + j * j) / (b - a) * (light + a) / (light + b)
    return np.where(light <= j, light, bent).astype(np.float32)


@lru_cache(maxsize=1)
def gamma_table() -> np.ndarray:
    """(STEPS,) uint8 code values of light 0..1, by the inverse of BT.1886."""
    return (255 * np.linspace(0, 1, STEPS) ** (1 / 2.4) + 0.5).astype(np.uint8)


# --- how it is turned -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One of the eight ways to lay a picture: first rows and columns are swapped, then either is reversed."""

    swap: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False
    exact: bool = True  # False where the matrix turns by no right angle

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """A (H, W, C) picture as it is shown."""
        if not (self.swap or self.reverse_rows or self.reverse_columns):
            return picture
        turned = picture.swapaxes(0, 1) if self.swap else picture
        return np.ascontiguousarray(turned[:: -1 if self.reverse_rows else 1, :: -1 if self.reverse_columns else 1])


def turn_of(frame: av.VideoFrame) -> Turn:
    """How a frame's display matrix lays it; without one, as it is."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return Turn() if data is None else turn_by(struct.unpack("=9i", bytes(data)))


def turn_by(matrix: tuple[int, ...]) -> Turn:
    """By ISO's matrix (a b u, c d v, x y w): a point at (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    straight, swapped = abs(a) + abs(d), abs(b) + abs(c)
    if not straight + swapped:
        return Turn()
    exact = min(straight, swapped) < 0.02 * max(straight, swapped)  # about one degree, as FFmpeg allows
    if straight >= swapped:
        return Turn(False, d < 0, a < 0, exact)
    return Turn(True, b < 0, c < 0, exact)
