"""What do more sentences cost? A clip is encoded once, whatever their number.

    python bench/expressions.py [--model light] [--device auto] [--frames 64] [--repeats 3] [--threads 2]

Prints seconds for 1, 7 and 30 sentences of one film (the best of the repeats), against one run for each on its own.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from _timing import best_of
from films import real_film

from deixis.inference import segment
from deixis.video import Video
from deixis.weights import load

KINDS = ("woman", "bench", "tree", "dog", "backpack", "path")
LOOKS = ("a {}", "the {} on the left", "the {} that moves", "a large {}", "the {} on the right")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="light")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    words = [look.format(kind) for look in LOOKS for kind in KINDS]  # 30
    system = load(chosen.model)
    with tempfile.TemporaryDirectory() as folder:
        film = Video(real_film(Path(folder) / "film.mp4", chosen.frames, 480))

        def run(count: int) -> None:
            segment(film, words[:count], model=system, device=chosen.device)

        run(1)  # warm up
        best = {count: best_of(partial(run, count), chosen.repeats, warm_up=0) for count in (1, 7, 30)}
    print(f"{chosen.model}, {chosen.frames} frames, {chosen.threads} threads, best of {chosen.repeats}")
    print("sentences | seconds | frames/s | ms per frame and further sentence | against one by one")
    for count, taken in best.items():
        further = (taken - best[1]) / max(1, count - 1) / chosen.frames * 1000
        gain = count * best[1] / taken
        print(f"{count:9d} | {taken:7.2f} | {chosen.frames / taken:8.2f} | {further:33.2f} | {gain:.2f}x faster")


if __name__ == "__main__":
    main()
