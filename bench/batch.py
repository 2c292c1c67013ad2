"""How do films per minute grow with the number of workers? `deixis batch` on generated films.

    python bench/batch.py [--films 24] [--frames 48] [--workers 1,2] [--model light] [--engine local] [--device auto]

A row a number of workers: films per minute of the whole run (processes start and load the model in it), films per
minute from the first finished film on, and the efficiency: those over the same of the first row times its workers. The
threads of a worker are cores / workers unless --threads says otherwise; with one thread each, the rows differ in
nothing but the number of workers. Masks are compared with those of the first row.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from films import drawn_film

from deixis.batch.local import usable_cores
from deixis.batch.manifest import Options
from deixis.batch.run import batch, plan

WORDS = "a red square|a blue circle"


@dataclass(frozen=True, kw_only=True)
class Row:
    """seconds: of the run.  steady: films per second after the first one.  masks: by film, the JSON's bytes."""

    workers: int
    threads: int
    seconds: float
    steady: float
    masks: dict[str, bytes]


def measure(manifest: Path, out: Path, workers: int, chosen: argparse.Namespace) -> Row:
    planned = plan(
        str(manifest), str(out), model=chosen.model, device=chosen.device, engine=chosen.engine,
        address=chosen.address, workers=workers, threads=chosen.threads,
        defaults=Options(formats=tuple(chosen.formats.split(","))),
    )  # fmt: skip
    moments: list[float] = []
    summary = batch(planned, progress=lambda done, total: moments.append(time.perf_counter()))
    assert not summary.failed, summary.failed
    masks = {line["film"]: (out / line["folder"] / "masks.json").read_bytes() for line in summary.lines}
    after_first = max(moments[-1] - moments[1], 1e-9)  # moments[0] is before any film
    return Row(
        workers=workers, threads=summary.lines[0]["threads"], seconds=summary.seconds,
        steady=(len(moments) - 2) / after_first, masks=masks,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=432)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", default="light")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--address")
    parser.add_argument("--as", dest="formats", default="rle")
    chosen = parser.parse_args()
    if chosen.films < 3:
        parser.error("--films must be 3 or more")
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "films.csv"
        for i in range(chosen.films):
            drawn_film(Path(folder) / f"{i:03d}.mp4", chosen.frames, chosen.height, chosen.width, seed=i)
        manifest.write_text("film,sentences\n" + "".join(f"{i:03d}.mp4,{WORDS}\n" for i in range(chosen.films)))
        print(f"{chosen.films} films of {chosen.frames} frames, {chosen.height}x{chosen.width}, 2 sentences, as "
              f"{chosen.formats}; {chosen.model}, engine {chosen.engine}, device {chosen.device}")  # fmt: skip
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        cores = f"{usable_cores()} of {os.cpu_count()} cores ({platform.machine()})"
        print(f"{cores}, GPUs {gpus or 'none'}, torch {torch.__version__}")
        print("\nworkers | threads | seconds | films/min, whole | films/min after the first | efficiency | masks")
        first: Row | None = None
        for number in (int(word) for word in chosen.workers.split(",")):
            row = measure(manifest, Path(folder) / f"out-{number}", number, chosen)
            first = first or row
            efficiency = row.steady * first.workers / (first.steady * row.workers)
            same = "the first row's" if row.masks == first.masks else "DIFFER"
            print(f"{row.workers:7} | {row.threads:7} | {row.seconds:7.1f} | {60 * chosen.films / row.seconds:16.1f} | "
                  f"{60 * row.steady:25.1f} | {efficiency:10.2f} | {same}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
