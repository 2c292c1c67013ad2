"""Masks as folders of PNG files, 0 and 255, at source size."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from deixis.types import MaskTrack, RleMasks
from deixis.writers.format import Format
from deixis.writers.output import slug


def write_pngs(folder: Path, tracks: Sequence[MaskTrack], workers: int = 2) -> None:
    """``folder/NN_words/FRAME.png``: one 8-bit 0/255 mask per frame and expression, at source size."""
    with ThreadPoolExecutor(workers, "deixis-png") as pool:
        pending: deque[Future] = deque()
        try:
            for index, track in enumerate(tracks):
                place = folder / slug(track.expression, index)
                place.mkdir(parents=True)
                empty = encode_png(np.zeros(track.masks.size, bool))
                areas = track.masks.areas()
                for i, name in enumerate(track.names):
                    pending.append(pool.submit(_write_png, place / f"{name}.png", track.masks, i, areas[i], empty))
                    if len(pending) > 4 * workers:
                        pending.popleft().result()
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _write_png(path: Path, masks: RleMasks, index: int, area: int, empty: bytes) -> None:
    path.write_bytes(encode_png(masks[index]) if area else empty)


def encode_png(mask: np.ndarray) -> bytes:
    """A (H, W) bool mask as the bytes of an 8-bit grey PNG, 0/255 (a benchmark's reader may not take 1-bit files)."""
    done, data = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, f"OpenCV could not encode a mask of {mask.shape}"
    return data.tobytes()


FORMAT = Format(
    item="masks", choice="Masks as pictures", link="Masks, PNG",
    write=lambda path, film, tracks, model, complete: write_pngs(path, tracks),
)  # fmt: skip
