"""Does memory grow with a film's length? Segments a long generated film as the command line does, and fits a line.

    python bench/memory.py [--frames 10000] [--model light] [--device auto] [--expressions 2] [--size 112]

Prints resident memory (and allocated GPU memory) as both passes go on, and the slope in MB per 1,000 frames, fitted
from the second tenth of each pass on (the first warms up). Wanted: under 1 MB per 1,000 frames.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from _timing import seconds
from films import drawn_film

from deixis.inference import segment
from deixis.types import MaskTrack
from deixis.video import Video
from deixis.writers import write
from deixis.writers.output import Output

WORDS = ("a red square", "the moving thing", "a blue circle", "a dog", "the largest object")


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(samples: list[tuple[int, float]]) -> float:
    """MB per 1,000 frames, without the first tenth."""
    frames, memory = np.array(samples[len(samples) // 10 :]).T
    return float(np.polyfit(frames, memory, 1)[0] * 1000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--model", default="light")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--expressions", type=int, default=2)
    parser.add_argument("--size", type=int, help="short side that the model gets, pixels (default: as trained)")
    parser.add_argument("--as", dest="formats", default="overlay,rle")
    chosen = parser.parse_args()
    passes: dict[str, list[tuple[int, float]]] = {"answering": [], "drawing": []}
    gpu: list[tuple[int, float]] = []

    def note(name: str, done: int) -> None:
        passes[name].append((done, resident()))
        if torch.cuda.is_available() and name == "answering":
            gpu.append((done, torch.cuda.memory_allocated() / 1e6))

    with tempfile.TemporaryDirectory() as folder:
        film = Video(drawn_film(Path(folder) / "long.mp4", chosen.frames))
        tracks: list[MaskTrack] = []
        with Output(Path(folder) / "out") as output:
            answering = seconds(lambda: tracks.extend(segment(
                film, WORDS[: chosen.expressions], model=chosen.model, device=chosen.device, size=chosen.size,
                folder=output.scratch, progress=lambda done: note("answering", done), threshold=0.001,
            )))  # fmt: skip
            drawing = seconds(lambda: write(
                output, film, tracks, chosen.formats.split(","), model={},
                progress=lambda done: note("drawing", done),
            ))  # fmt: skip
        present = sum(int((t.masks.areas() > 0).sum()) for t in tracks)
    height, width = film.source_size
    size = f"short side {chosen.size}" if chosen.size else "the model's own size"
    print(f"{len(tracks[0])} frames of {height}x{width}, {len(tracks)} expressions, {chosen.model}, {size}")
    print(f"masks that are not empty: {present} (threshold lowered, so that masks are really written)")
    print(f"answered in {answering:.1f} s, written in {drawing:.1f} s")
    for name, samples in passes.items():
        shown = samples[:: max(1, len(samples) // 10)]
        print(f"\n{name:>10} | " + " | ".join(f"{frames:>6}" for frames, _ in shown) + " frames")
        print(f"{'':>10} | " + " | ".join(f"{memory:6.0f}" for _, memory in shown) + " MB resident")
        print(f"{'':>10} | slope {slope(samples):+.3f} MB per 1,000 frames")
    if gpu:
        print(f"GPU: slope {slope(gpu):+.3f} MB per 1,000 frames, {max(m for _, m in gpu):.0f} MB at most")


if __name__ == "__main__":
    main()
