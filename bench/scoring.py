"""How fast is scoring? Ratios within one run, so that they hold on another machine, or a busy one.

    python bench/scoring.py [--quick] [--json FILE]

1. J and F of one object and frame: the fast form against the plain form of the official algorithm (boundary map, disc
   dilation with OpenCV on the whole frame), one thread each (its CPU time), in turns; 480p and 1080p, small and large
   objects, smooth and ragged outlines.
2. `score masks` on folders of PNG: reading alone, scoring alone, and both as they run (reading overlaps).
3. 1 and 2 processes: what they take to start, and what each further frame takes (two sizes of folder, subtracted).
4. Peak memory of `score masks` for 4, 8, 16 videos, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from operator import truediv
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
from _timing import seconds

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.slow_metric import plain_contour, plain_region

from deixis.benchmarks.pngs import read_ids, write_ids
from deixis.metrics.folders import score_masks
from deixis.metrics.region_contour import score_frame

SIZES = {"480p": (480, 854), "1080p": (1080, 1920)}
SEED = 7


def ellipse(size: tuple[int, int], share: float, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """An ellipse whose height and width are ``share`` of the frame's."""
    y, x = np.ogrid[: size[0], : size[1]]
    centre = size[0] * (0.5 + shift[0]), size[1] * (0.5 + shift[1])
    return ((y - centre[0]) / (size[0] * share / 2)) ** 2 + ((x - centre[1]) / (size[1] * share / 2)) ** 2 <= 1


def ragged(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask with bites and blots of some pixels along its outline."""
    height, width = mask.shape
    coarse = rng.random((height // 8, width // 8)).astype(np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    return distance - outside > 12 * (noise - 0.5)


def plain_scores(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return plain_region(prediction, truth), plain_contour(prediction, truth)


def milliseconds(work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    return seconds(lambda: [work() for _ in range(repeats)], clock=clock) / repeats * 1e3


def metric(rounds: int) -> list[dict[str, object]]:
    rows = []
    rng = np.random.default_rng(SEED)
    for name, size in SIZES.items():
        for share in (0.3, 0.6):
            for outline in ("smooth", "ragged"):
                truth, prediction = ellipse(size, share), ellipse(size, share, (0.01, 0.02))
                if outline == "ragged":
                    truth, prediction = ragged(truth, rng), ragged(prediction, rng)
                plain, fast = partial(plain_scores, prediction, truth), partial(score_frame, prediction, truth)
                assert plain() == fast()
                cpu = time.thread_time  # of this thread: what else runs on the machine matters less
                times = [(milliseconds(plain, 5, cpu), milliseconds(fast, 20, cpu)) for _ in range(rounds)]  # in turns
                slow_ms, fast_ms = (statistics.median(column) for column in zip(*times, strict=True))
                ratio = statistics.median(a / b for a, b in times)
                j, f = fast()
                rows.append({"frame": name, "object": f"{share:.1f} of each side, {outline}", "J": round(j, 3),
                             "F": round(f, 3), "plain ms": round(slow_ms, 3), "fast ms": round(fast_ms, 3),
                             "times": round(ratio, 1)})  # fmt: skip
    return rows


def write_folders(root: Path, videos: int, frames: int) -> None:
    rng = np.random.default_rng(SEED)
    size = SIZES["480p"]
    for video in range(videos):
        for t in range(frames):
            truth = ellipse(size, 0.4, (0.0, 0.01 * t))
            prediction = ragged(ellipse(size, 0.4, (0.01, 0.01 * t)), rng)
            for folder, mask in (("truth", truth), ("results", prediction)):
                write_ids(root / folder / f"video{video:03d}" / f"{t:05d}.png", mask.astype(np.uint8))


def folders(videos: int, frames: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_folders(root, videos, frames)
        files = sorted(root.glob("*/*/*.png"))
        pairs = [(read_ids(root / "results" / f.relative_to(root / "truth"), f) == 1, read_ids(f, f) == 1)
                 for f in files if f.is_relative_to(root / "truth")]  # fmt: skip
        works = {
            "reading alone": lambda: [read_ids(file, file) for file in files],
            "scoring alone": lambda: [score_frame(p, g) for p, g in pairs],
            "plain scoring alone": lambda: [plain_scores(p, g) for p, g in pairs],
            "both, 1 process": lambda: score_masks(root / "results", root / "truth"),
        }
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                times[name].append(milliseconds(work, 1) / len(pairs))
        found = {f"{name}, ms a frame": round(statistics.median(values), 3) for name, values in times.items()}
        alone, plain = times["scoring alone"], times["plain scoring alone"]
        one = times["both, 1 process"]
        apart = [r + s for r, s in zip(times["reading alone"], alone, strict=True)]
        found["plain scoring / scoring"] = round(statistics.median(map(truediv, plain, alone)), 1)
        found["(reading + scoring) / both"] = round(statistics.median(map(truediv, apart, one)), 2)
        return found


def processes(videos: int, frames: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        write_folders(Path(small), videos, frames)
        write_folders(Path(large), 4 * videos, frames)
        each: dict[int, list[float]] = {1: [], 2: []}
        starts: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for workers in each:
                few, many = (
                    milliseconds(lambda p=Path(p), w=workers: score_masks(p / "results", p / "truth", workers=w), 1)
                    for p in (small, large)
                )
                each[workers].append((many - few) / (3 * videos * frames))
                starts[workers].append(few - each[workers][-1] * videos * frames)
        found = {}
        for workers, words in ((1, "1 process"), (2, "2 processes")):
            found[f"{words}: ms to start"] = round(statistics.median(starts[workers]))
            found[f"{words}: ms a further frame"] = round(statistics.median(each[workers]), 3)
        found["1 process / 2 processes, a further frame"] = round(statistics.median(map(truediv, each[1], each[2])), 2)
        return found


PEAK = """
import resource, sys
from pathlib import Path
from deixis.metrics.folders import score_masks
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score_masks(Path(sys.argv[1]) / "results", Path(sys.argv[1]) / "truth")
print(before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def memory(counts: tuple[int, ...], frames: int) -> list[dict[str, float]]:
    rows = []
    for videos in counts:
        with tempfile.TemporaryDirectory() as place:
            write_folders(Path(place), videos, frames)
            before, peak = map(float, output_of(sys.executable, "-c", PEAK, place).split())
            row = {"videos": videos, "frames": videos * frames, "imports MiB": round(before), "peak MiB": round(peak)}
            rows.append(row)
    return rows


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a first look: fewer rounds, fewer videos")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rounds = 3 if options.quick else 11
    result = {
        "metric": metric(rounds),
        "folders": folders(4 if options.quick else 8, 10 if options.quick else 40, 2 if options.quick else 5),
        "processes": processes(4 if options.quick else 10, 10 if options.quick else 40, 1 if options.quick else 5),
        "memory": memory((2, 4) if options.quick else (4, 8, 16), 10 if options.quick else 40),
        "load": os.getloadavg(),
        "command": " ".join(sys.argv),
        "commit": output_of("git", "rev-parse", "--short", "HEAD"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}, numpy {np.__version__},"
        f" OpenCV {cv2.__version__}",
    }
    for row in result["metric"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    for key, value in (result["folders"] | result["processes"]).items():
        print(f"{key}: {value}")
    for row in result["memory"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"load {result['load']}, commit {result['commit']}, {result['machine']}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
