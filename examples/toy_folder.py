"""A folder of films, masks and sentences to practise on, laid out as docs/train_on_your_data.md says.

The films are generated (drawn shapes that move, exact masks); every second frame is labelled. No download.

python examples/toy_folder.py toy --films 20
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import av
import numpy as np

from deixis.benchmarks.pngs import write_ids
from deixis.synthetic.scene import SyntheticVideo
from deixis.synthetic.sentences import SentenceMix
from deixis.synthetic.world import World
from deixis.synthetic.world_config import WorldConfig

HELD_OUT = 5  # one film in so many is of the split valid: shapes and colours meet there that never meet in train


def write_film(path: Path, frames: np.ndarray, rate: int) -> None:
    """(T, H, W, 3) uint8 RGB as an MP4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        film.mux(stream.encode())


def object_numbers(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) bool masks that do not overlap -> (H, W) uint8: object k has the number k + 1."""
    numbers = np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None]
    return (masks * numbers).max(axis=0, initial=0)


def add(root: Path, name: str, split: str, film: SyntheticVideo, rate: int) -> list[list[str]]:
    """Write one film with its masks; returns its rows of the table."""
    write_film(root / "films" / f"{name}.mp4", film.frames, rate)
    for index in range(0, len(film.masks), 2):
        write_ids(root / "masks" / name / f"{index:05d}.png", object_numbers(film.masks[index]))
    there = film.masks[::2].any(axis=(0, 2, 3))  # objects that a labelled frame shows
    return [
        [name, sentence.text, " ".join(str(k + 1) for k in sentence.objects) or "none", split, sentence.kind]
        for sentence in film.sentences
        if all(there[k] for k in sentence.objects)
    ]


def main(out: Path, films: int, seed: int, size: tuple[int, int], frames: int) -> None:
    config = WorldConfig(size=size, frames=frames, flow=False, sentences=SentenceMix(count=6))
    worlds = {split: World(split, config) for split in ("train", "valid_u")}
    rows = []
    for index in range(films):
        held = index % HELD_OUT == HELD_OUT - 1
        film = worlds["valid_u" if held else "train"].film(1000 * seed + index)
        rows += add(out, f"film{index:02d}", "valid" if held else "train", film, rate=12)
    with open(out / "sentences.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["film", "sentence", "objects", "split", "kind"])
        table.writerows(rows)
    print(f"{out}: {films} films, {len(rows)} sentences")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 432), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=24)
    given = parser.parse_args()
    main(given.out, given.films, given.seed, tuple(given.size), given.frames)
