"""Time and memory of SOC against its plain textbook rendering, on the CPU and, if there is one, the GPU.

    python bench/soc_speed.py                                  # 8 and 36 frames of 360x640, 1 and 7 expressions
    python bench/soc_speed.py --frames 8 --repeat 3 --threads 2

Weights are random: speed does not depend on them. Every rendering runs in its own process, so that peak memory is its
own; passes take turns, so that other load on the machine hits all alike; the best pass counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from _timing import memory
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # helpers/plain_soc.py

SIZE = (360, 640)  # pixels, as the published systems resize Ref-YouTube-VOS
WORDS = "a b c d e f g h i j k"  # eleven words, a token each with the tokenizer that spells


@dataclass(frozen=True)
class Way:
    """One way to run the model. kind: plain or ours.  precision: fp32, tf32 or bf16."""

    kind: str
    device: str
    precision: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.precision}{' compiled' if self.compiled else ''} {self.device}"


@dataclass
class Pass:
    seconds: float
    cpu_seconds: float
    parts: dict[str, float]


def work(pipe: Connection, way: Way, backbone: str, threads: int) -> None:
    """A process: builds the model once, then runs the passes it receives, and returns what they cost."""
    torch.set_num_threads(threads)
    model, clock = build(way, backbone), Clock(way.device)
    clock.listen(model)
    before = memory(way.device, peak=False)
    while (order := pipe.recv()) is not None:
        frames, expressions = order
        pipe.send(run_pass(model, way, clock, frames, expressions))
    pipe.send((before, memory(way.device, peak=True)))


def build(way: Way, backbone: str) -> Any:
    from deixis.encoders.tokenizers import roberta_letter_tokenizer
    from deixis.systems import PRESETS

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = way.precision == "tf32"
    model: Any = PRESETS[f"soc_swin_{backbone}"]().eval()
    object.__setattr__(model.config, "kept_queries", 1)  # one query is what a mask track needs
    model.text.tokenizer = roberta_letter_tokenizer()
    if way.kind == "plain":
        from helpers.plain_soc import plainly

        model = plainly(model)
    model.to(way.device)
    if way.compiled:
        for block in [b for stage in model.vision.layers for b in stage] + list(model.transformer.encoder):
            block.compile()
    return model


class Clock:
    """Seconds spent in each part of a model, the parts inside it not counted twice."""

    PARTS = (
        ("vision", "backbone"), ("project", "projections"), ("text", "text encoder"), ("vision_gate", "vision gates"),
        ("text_gate", "text gates"), ("pixel_decoder", "mask features"), ("cluster", "video cluster"),
        ("heads", "heads, masks"),
    )  # fmt: skip

    def __init__(self, device: str) -> None:
        self.device, self.parts, self.began = device, dict[str, float](), dict[int, float]()

    def listen(self, model: Any) -> None:
        for name, words in self.PARTS:
            self.time(getattr(model, name), words)
        for layer in model.transformer.encoder:
            self.time(layer.attention, "encoder: sampling")
            self.time(layer.feed_forward, "encoder: two-layer networks")
        for layer in model.transformer.decoder:
            self.time(layer, "decoder")

    def time(self, module: nn.Module, words: str) -> None:
        def begin(module: nn.Module, _inputs: Any) -> None:
            self.began[id(module)] = self.now()

        def end(module: nn.Module, _inputs: Any, _output: Any) -> None:
            self.parts[words] = self.parts.get(words, 0.0) + self.now() - self.began[id(module)]

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def run_pass(model: Any, way: Way, clock: Clock, frames: int, expressions: int) -> Pass:
    from deixis.types import Expression

    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, frames, 3, *SIZE, generator=generator).to(way.device)
    padding = torch.zeros(1, frames, *SIZE, dtype=torch.bool, device=way.device)
    asked = [Expression(WORDS)] * expressions
    reduced = torch.autocast(way.device, torch.bfloat16) if way.precision == "bf16" else nullcontext()
    clock.parts = {}
    wall, cpu = clock.now(), time.process_time()
    with torch.inference_mode(), reduced:
        if way.kind == "plain":  # the backbone runs for every expression
            for one in asked:
                model.decode(model.encode(clip, padding), [one])
        else:
            model.decode(model.encode(clip, padding), asked)
    wall, cpu = clock.now() - wall, time.process_time() - cpu
    return Pass(wall, cpu, {**clock.parts, "the rest": wall - sum(clock.parts.values())})


def measure(ways: list[Way], options: argparse.Namespace, frames: int, expressions: int) -> None:
    """Runs the ways in turn and prints their table."""
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[Way, Connection, Any]] = []
    for way in ways:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, way, options.backbone, options.threads), daemon=True)
        process.start()
        workers.append((way, ours, process))
    passes: dict[Way, list[Pass]] = {way: [] for way in ways}
    for turn in range(options.repeat + 1):  # the first warms up
        for way, pipe, _ in workers:
            # A plain pass with K expressions is K plain passes with one; one of them is timed where K is large.
            asked = 1 if way.kind == "plain" else expressions
            pipe.send((frames, asked))
            result = pipe.recv()
            if turn:
                passes[way].append(result)
    print(f"\n{frames} frames of {SIZE[0]}x{SIZE[1]}, {expressions} expressions, Swin-{options.backbone.upper()}")
    print(
        "| way | s (best of " + str(options.repeat) + ") | frames/s | CPU s | share of plain | peak GiB | model GiB |"
    )
    print("|---|---|---|---|---|---|---|")
    plain: dict[str, float] = {}
    tables = []
    for way, pipe, process in workers:
        pipe.send(None)
        before, peak = pipe.recv()
        process.join()
        times = expressions if way.kind == "plain" else 1
        best = min(passes[way], key=lambda p: p.seconds)
        seconds = best.seconds * times
        if way.kind == "plain" and way.precision == "fp32":
            plain[way.device] = seconds
        share = f"{seconds / plain[way.device]:.3f}" if way.device in plain else ""
        cpu = min(p.cpu_seconds for p in passes[way]) * times
        print(f"| {way} | {seconds:.3f} | {frames / seconds:.2f} | {cpu:.2f} | {share} | {peak:.2f} | {before:.2f} |")
        tables.append((way, best))
    print("\n| part, ms | " + " | ".join(str(way) for way, _ in tables) + " |")
    print("|---|" + "---|" * len(tables))
    for name in dict.fromkeys(part for _, best in tables for part in best.parts):
        print(f"| {name} | " + " | ".join(f"{1000 * best.parts.get(name, 0):.0f}" for _, best in tables) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 36])
    parser.add_argument("--expressions", type=int, nargs="+", default=[1, 7])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backbone", choices=["t", "b"], default="t")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, seed 0, random weights")
    on_cpu = [Way("plain", "cpu", "fp32"), Way("ours", "cpu", "fp32"), Way("ours", "cpu", "bf16")]
    on_gpu = [
        Way("plain", "cuda", "fp32"), Way("plain", "cuda", "tf32"), Way("ours", "cuda", "fp32"),
        Way("ours", "cuda", "tf32"), Way("ours", "cuda", "bf16"), Way("ours", "cuda", "bf16", compiled=True),
    ]  # fmt: skip
    for frames in options.frames:
        for expressions in options.expressions:
            measure(on_cpu, options, frames, expressions)
            if torch.cuda.is_available():
                measure(on_gpu, options, frames, expressions)


if __name__ == "__main__":
    main()
