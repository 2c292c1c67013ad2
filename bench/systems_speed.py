"""Every system on 8, 16 and 32 frames: frames per second, peak memory, parameters; and what cube-frame attention saves.

    python bench/systems_speed.py                              # published sizes, 360x640 films, this machine's CPU
    python bench/systems_speed.py --debug                      # the debug presets: shows that it runs, in a minute
    python bench/systems_speed.py --device cuda --models vlp_rvos_clip_l conv_clip_mevis_l

Weights are random, frozen towers too: speed does not depend on them. A film goes the way that ``segment`` sends it,
window by window, twice where a system needs two passes; reading files and writing masks are left out. Every count
of frames has a process of its own, so that peak memory is its own. Growth is a straight line fitted through the counts.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from _timing import alone, best_of, memory

MODELS = ("light", "soc_swin_t", "soc_plus_plus_swin_t", "vlp_rvos_clip_b", "conv_clip_mevis_b", "slvp_vision")
DEBUG = ("light_debug", "soc_debug", "soc_plus_plus_debug", "vlp_rvos_debug", "conv_clip_mevis_debug", "slvp_debug")
SIZE = (360, 640)  # of the film, pixels; a system gets it at its own size
WORDS = "the dog that runs to the left"
WARM_UP = 2  # frames


def build(name: str) -> Any:
    """A preset with random weights everywhere, and tokenizers that spell."""
    from deixis.encoders.conv_clip import ConvClip
    from deixis.encoders.frozen import FrozenTower
    from deixis.encoders.tokenizers import (
        clip_letter_tokenizer,
        roberta_letter_tokenizer,
        wordpiece_letter_tokenizer,
    )
    from deixis.encoders.vlmo import Vlmo
    from deixis.systems import PRESETS

    torch.manual_seed(0)
    model = PRESETS[name]().eval()
    for part in list(model.modules()):
        if isinstance(part, FrozenTower) and part.body is None:
            part.body = part.make().requires_grad_(False).eval()
        if hasattr(part, "tokenizer") and part.tokenizer is None:
            makers = {ConvClip: clip_letter_tokenizer, Vlmo: wordpiece_letter_tokenizer}
            part.tokenizer = makers.get(type(part), roberta_letter_tokenizer)()
    return model


def film(frames: int, size: tuple[int, int]) -> Any:
    from deixis.types import Clip

    pixels = torch.randint(0, 256, (frames, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Clip(pixels, tuple(f"{i:05d}" for i in range(frames)), tuple(i / 6 for i in range(frames)), SIZE)


def run_film(model: Any, clip: Any, device: torch.device) -> None:
    """All windows of a film, asked one sentence."""
    from deixis.inference import predict_video
    from deixis.linking import Presence
    from deixis.selection import choose_queries
    from deixis.types import Clip, Expression, Prediction

    def windows(overlap: int) -> Iterator[Clip]:
        first, count = 0, len(clip)
        while True:
            last = min(first + model.config.window, count)
            part = slice(first, last)
            yield Clip(clip.frames[part], clip.names[part], clip.times[part], clip.source_size, first)
            if last == count:
                return
            first = last - overlap

    def read(prediction: Prediction, size: Any, padded: Any, _: int) -> list[Any]:
        return choose_queries(prediction, Presence.of(model.config), size, padded, several=model.config.several)

    for _ in predict_video(model, windows, [Expression(WORDS)], read, device):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(pipe: Connection, name: str, frames: int, options: argparse.Namespace) -> None:
    """In a process: one system, one number of frames."""
    from deixis.inference import model_size

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = build(name).to(device)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad is wanted) for wanted in (True, False)]
    size = model_size(SIZE, model.config)
    before = memory(device)
    run_film(model, film(WARM_UP, size), device)
    clip = film(frames, size)
    best = best_of(lambda: run_film(model, clip, device), options.repeat, device, warm_up=0)
    pipe.send((size, counts, best, before, memory(device)))


def attention(pipe: Connection, kind: str, frames: int, options: argparse.Namespace) -> None:
    """In a process: the attention of one reasoning layer of VLP-RVOS, as published sizes have it, or full instead."""
    from deixis.blocks.attention import Attention
    from deixis.systems.vlp_rvos import CubeFrameLayer, VlpRvosConfig

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, config = torch.device(options.device), VlpRvosConfig(width=64 if options.debug else 512)
    side = config.short_side // config.multiple
    layer = CubeFrameLayer(config).eval().to(device)
    full = Attention(config.width, config.heads).eval().to(device)
    x = torch.randn(1, frames, side, side, config.width, device=device)
    before = memory(device)

    def once() -> None:
        if kind == "cube-frame":
            y = x + layer.in_cubes(x)
            y + layer.in_frames(y)
        else:
            tokens = layer.frame_norm(x).flatten(1, 3)
            x + full(tokens, tokens).view_as(x)

    with torch.inference_mode():
        best = best_of(once, options.repeat, device)
    pipe.send((side * side, best, memory(device) - before))


def fit(counts: list[int], values: list[float]) -> str:
    """A straight line through the values: start, slope a frame, and the largest distance from it as a share."""
    if len(counts) < 3:
        return "needs three counts of frames"
    slope, start = np.polyfit(counts, values, 1)
    off = np.abs(np.polyval((slope, start), counts) - values).max() / max(values)
    return f"{start:+.3f} {slope:+.4f} a frame (off by {100 * off:.1f} % at most)"


def systems(options: argparse.Namespace) -> None:
    print("\n| system | encoded at | trainable M | frozen M | frames | s | frames/s | peak GiB | model GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    lines = []
    for name in options.models or (DEBUG if options.debug else MODELS):
        done = []
        for frames in options.frames:
            found = alone(measure, name, frames, options)
            if found is None:
                print(f"| {name} | | | | {frames} | failed, see above | | | |", flush=True)
                continue
            size, (trained, frozen), seconds, before, peak = found
            done.append((frames, seconds, peak))
            print(
                f"| {name} | {size[0]}x{size[1]} | {trained / 1e6:.1f} | {frozen / 1e6:.1f} | {frames} "
                f"| {seconds:.2f} | {frames / seconds:.2f} | {peak:.2f} | {before:.2f} |",
                flush=True,
            )
        if done:
            counts, seconds, peaks = (list(column) for column in zip(*done, strict=True))
            lines.append(f"{name}: seconds {fit(counts, seconds)}; peak GiB {fit(counts, peaks)}")
    print("\nGrowth with frames, a straight line each:")
    for line in lines:
        print(line)


def attentions(options: argparse.Namespace) -> None:
    print("\n| attention of a reasoning layer | frames | tokens a frame | ms | working memory, MiB |")
    print("|---|---|---|---|---|")
    for kind in ("cube-frame", "full space-time"):
        for frames in options.frames:
            found = alone(attention, kind, frames, options)
            if found is None:
                print(f"| {kind} | {frames} | | failed, see above | |", flush=True)
                continue
            tokens, seconds, used = found
            print(f"| {kind} | {frames} | {tokens} | {1000 * seconds:.1f} | {1024 * used:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], help=f"presets; default: {' '.join(MODELS)}")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--repeat", type=int, default=1, help="passes after a warm-up; the best counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--debug", action="store_true", help="debug presets and narrow attention")
    parser.add_argument("--only", choices=["systems", "attention"], help="one of the two tables")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.device}, {options.threads} threads, fp32, seed 0, "
        f"random weights; films of {SIZE[0]}x{SIZE[1]}, one sentence, best of {options.repeat}"
    )
    if options.only != "attention":
        systems(options)
    if options.only != "systems":
        attentions(options)


if __name__ == "__main__":
    main()
