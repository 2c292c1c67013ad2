"""Masks on disk, read strictly: PNG (one channel, whole, of the size that is due) and COCO RLE.

PNGs are written in the two forms that servers take: greyscale 0 and 255, or a palette of object numbers.
A palette file is read as its indices and never turned into colours.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from deixis.types import DeixisError, decode_rle, require

VOID = 255  # pixels that are not scored, in a file that holds other numbers too
ONE_CHANNEL = ("P", "L", "1")
FEW = 20  # object numbers up to which each is compared in turn


@lru_cache(maxsize=1)
def davis_palette() -> tuple[int, ...]:
    """The 256 colours of VOC and DAVIS, 768 numbers: bit k of the index gives bits of red, green, blue in turn."""
    colours = []
    for index in range(256):
        for channel in range(3):
            colours.append(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)))
    return tuple(colours)


def read_ids(
    source: Path | io.BytesIO,
    name: str | Path,
    size: tuple[int, int] | None = None,
    modes: tuple[str, ...] = ONE_CHANNEL,
) -> np.ndarray:
    """The (H, W) uint8 values of a one-channel PNG; a 1-bit file gives 0 and 1.

    Raises DeixisError, naming the file, where it is missing, truncated, no PNG, of another mode or size (H, W).
    """
    if isinstance(source, Path):
        _check_file(source, name, "the mask is missing")
    try:
        with Image.open(source, formats=("PNG",)) as image:
            if image.mode not in modes:
                wanted = ", ".join({"P": "palette", "L": "greyscale", "1": "1-bit"}[mode] for mode in modes)
                raise DeixisError(f"{name}: the PNG is {image.mode}; a mask has one channel ({wanted})")
            if size is not None and (image.height, image.width) != size:
                raise DeixisError(
                    f"{name}: the mask is {image.height}x{image.width}, the frame {size[0]}x{size[1]} (height x width);"
                    " masks are due at the frame's own size"
                )
            return np.asarray(image, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(f"{name}: not a readable PNG ({str(error)[:100]})") from error


def _check_file(path: Path, name: str | Path, missing: str) -> None:
    """Raise DeixisError unless there is a regular file: a pipe would be waited for, a device read for ever."""
    if not path.is_file():
        raise DeixisError(f"{name}: {'not a file' if path.exists() or path.is_symlink() else missing}")


def present_numbers(ids: np.ndarray) -> list[int]:
    """The values other than 0 in a (H, W) uint8 map, in order. Cheap for the usual few, which a histogram is not."""
    highest = int(ids.max())
    if highest <= FEW:
        return [i for i in range(1, highest + 1) if (ids == i).any()]
    if np.count_nonzero(ids) == np.count_nonzero(ids == highest):
        return [highest]
    return [i for i in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist() if i]


def png_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image file, from its header."""
    _check_file(path, path, "the image is missing")
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DeixisError(f"{path}: not a readable image ({str(error)[:100]})") from error


def checked_mask(rle: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """The bool mask of a COCO RLE from a file, compressed or not, which must be of a size (H, W).

    The size is checked before anything is decoded. Raises DeixisError that begins with ``name``.
    """
    try:
        if tuple(rle["size"]) != size:
            raise ValueError(f"it is {rle['size']}, the frame {list(size)} (height, width)")
        if isinstance(rle["counts"], list):
            if not all(isinstance(run, int) and 0 <= run <= size[0] * size[1] for run in rle["counts"]):
                raise ValueError("a run must be a whole number of pixels")
            rle = coco.frPyObjects({"size": list(size), "counts": rle["counts"]}, *size)
        elif not isinstance(rle["counts"], str):
            raise TypeError("counts must be text")
        if _runs(rle["counts"]) != size[0] * size[1]:
            raise ValueError(f"its runs do not fill {size[0]}x{size[1]} pixels")
        return decode_rle(rle)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, UnicodeError) as error:
        raise DeixisError(f"{name}: bad RLE ({str(error)[:100]})") from error


def polygon_mask(polygons: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """The bool mask of polygons from a file, [[x, y, x, y, ...], ...], filled as COCO's tool fills them.

    Raises DeixisError that begins with ``name`` unless each has three corners or more near the frame of size (H, W).
    """
    reach = 4 * max(size)  # COCO's tool does not check: far corners would cost memory or worse
    good = isinstance(polygons, list) and polygons
    if not good or not all(
        isinstance(p, list)
        and len(p) >= 6
        and len(p) % 2 == 0
        and all(isinstance(v, int | float) and abs(v) <= reach for v in p)
        for p in polygons
    ):
        raise DeixisError(f"{name}: a mask must be polygons of three corners or more, [[x, y, ...], ...], or an RLE")
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size))).astype(bool)


def _runs(counts: str | bytes) -> int:
    """How many pixels a compressed RLE describes (-1 for nonsense): pycocotools leaves the rest of a mask unwritten.

    Five bits a character, low ones first, bit 5 says that more follow; from the fourth run on a run is written as the
    difference to the one two before it.
    """
    codes = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return -1
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 7:
        return -1
    place = np.arange(len(codes)) - np.repeat(starts, digits)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * digits), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return -1 if runs.min() < 0 else int(runs.sum())


def write_binary(path: Path, mask: np.ndarray) -> None:
    """A (H, W) bool mask as a greyscale PNG of 0 and 255."""
    require(mask.ndim == 2 and mask.dtype == np.bool_, "a mask to write", "(H, W) bool", mask, "threshold it first")
    _save(Image.fromarray(mask.view(np.uint8) * np.uint8(255), mode="L"), path)


def write_ids(path: Path, ids: np.ndarray) -> None:
    """A (H, W) uint8 map of object numbers as a palette PNG with DAVIS's colours."""
    require(ids.ndim == 2 and ids.dtype == np.uint8, "a map of object numbers", "(H, W) uint8", ids)
    image = Image.fromarray(ids, mode="P")
    image.putpalette(davis_palette())
    _save(image, path)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")  # a run that is stopped leaves no half PNG behind
    image.save(half, format="PNG", compress_level=1)
    half.replace(path)
