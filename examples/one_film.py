"""One film, one sentence: where the object is, frame by frame, and the object cut out as a PNG.

python examples/one_film.py film.mp4 "the woman"
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import deixis


def main(path: str, sentence: str) -> None:
    film = deixis.Video(path)
    (track,) = deixis.segment(film, sentence)
    print(f"{sentence}: presence {track.presence:.2f}, {film.source_size[1]}x{film.source_size[0]} pixels")
    if not track.present:
        print("it is not in the film")
        return
    areas = track.masks.areas()  # pixels of each frame's mask
    for i in range(0, len(track), 8):
        print(f"frame {track.names[i]} at {track.times[i]:5.2f} s: {areas[i]:6d} pixels, score {track.scores[i]:.2f}")
    best = int(areas.argmax())
    pixels = next(frame.pixels() for frame in film.frames() if frame.index == best)  # (H, W, 3) uint8
    alpha = np.uint8(255) * track.masks[best]
    out = Path("cut_out.png")
    Image.fromarray(np.dstack([pixels, alpha])).save(out)
    print(f"wrote {out}, from frame {track.names[best]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
