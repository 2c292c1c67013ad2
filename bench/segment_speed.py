"""How fast is the main job? A film in, masks on disk; against the network alone on the same frames.

    python bench/segment_speed.py [--model light] [--device cpu] [--frames 96] [--repeats 3] [--precision fp32,bf16]

Prints, per precision: frames/s with one sentence (``--as png``, one 0/255 PNG a frame at source size, and the contact
sheet), ms per frame for each further sentence, and the time of the whole over the time of the network alone (encode and
decode of the same windows, already read and resized). The best of the repeats; whole and network take turns.
Wanted on 2 cores: 8 frames/s, 15 ms, 1.2.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _timing import seconds
from films import real_film

from deixis.devices import choose_device
from deixis.inference import model_size, segment
from deixis.types import Clip, Expression
from deixis.video import Video, normalise
from deixis.weights import load
from deixis.writers import write
from deixis.writers.output import Output

WORDS = ("a woman in a black dress", "the bench", "a brown dog", "the path", "a tree on the left")


def whole(film: Video, words: tuple[str, ...], system: Any, device: str, precision: str) -> float:
    with tempfile.TemporaryDirectory() as folder:

        def run() -> None:
            with Output(Path(folder) / "out") as output:
                tracks = segment(film, words, model=system, device=device, precision=precision, folder=output.scratch)
                write(output, film, tracks, ["png"], model={})

        return seconds(run)


@torch.inference_mode()
def network(clips: list[Clip], words: tuple[str, ...], system: Any, device: torch.device, reduced: bool) -> float:
    config = system.config
    inputs = [normalise(c, mean=config.mean, std=config.std, multiple=config.multiple, device=device) for c in clips]
    expressions = [Expression(w) for w in words]

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            for frames, padding in inputs:
                system.decode(system.encode(frames, padding), expressions)

    return seconds(run, device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="light")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--source", type=int, default=480, help="short side of the film, pixels")
    parser.add_argument("--sides", type=int, nargs=2, help="what the model gets: short and longest side, pixels")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = choose_device(chosen.device)
    system: Any = load(chosen.model, device)
    if chosen.sides:
        short, longest = chosen.sides
        system.config = replace(system.config, short_side=short, long_side=longest)
    with tempfile.TemporaryDirectory() as folder:
        film = Video(real_film(Path(folder) / "film.mp4", chosen.frames, chosen.source))
        size = model_size(film.source_size, system.config)
        clips = list(film.windows(system.config.window, size=size))
        (height, width), length = film.source_size, system.config.window
        print(
            f"{chosen.model} on {device}, {chosen.threads} threads, best of {chosen.repeats}: {chosen.frames} frames "
            f"of {height}x{width}, encoded at {size[0]}x{size[1]} in windows of {length}"
        )
        print("precision | frames/s | network alone | whole / network | ms a frame per further sentence (network)")
        for precision in chosen.precision.split(","):
            times: dict[str, list[float]] = {"whole 1": [], "whole 5": [], "network 1": [], "network 5": []}
            for repeat in range(chosen.repeats + 1):  # the first warms up
                for count in (1, 5):
                    done = whole(film, WORDS[:count], system, chosen.device, precision)
                    alone = network(clips, WORDS[:count], system, device, precision == "bf16")
                    if repeat:
                        times[f"whole {count}"].append(done)
                        times[f"network {count}"].append(alone)
            best = {name: min(taken) for name, taken in times.items()}
            further = (best["whole 5"] - best["whole 1"]) / 4 / chosen.frames * 1000
            further_alone = (best["network 5"] - best["network 1"]) / 4 / chosen.frames * 1000
            rate, rate_alone = chosen.frames / best["whole 1"], chosen.frames / best["network 1"]
            print(
                f"{precision:>9} | {rate:8.2f} | {rate_alone:13.2f} | {rate_alone / rate:15.3f} | "
                f"{further:.1f} ({further_alone:.1f})"
            )


if __name__ == "__main__":
    main()
