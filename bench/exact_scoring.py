"""Is the fast J and F equal to the obvious one? 100,000 pairs of masks, bitwise, every seed stored.

    python bench/exact_scoring.py [--out FILE]       about ten minutes on one core

99,000 pairs up to 64x64 against pure Python loops (every side from 1 to 64 equally likely), 950 up to 480x854 and 50
at 1080x1920 against the plain whole-frame form; the plain form is also held against the loops on every small pair.
Pair i is made from seed (SEED, i), so any one of them can be made again alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.mask_pairs import large_pair, small_pair
from helpers.slow_metric import loops_contour, loops_region, plain_contour, plain_region

from deixis.metrics.region_contour import score_frame

SEED = 20261120
SMALL, MIDDLE, LARGE = 99_000, 950, 50


def pair_of(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([SEED, index])
    if index < SMALL:
        return small_pair(rng)
    if index < SMALL + MIDDLE:
        return large_pair(rng, (int(rng.integers(65, 481)), int(rng.integers(65, 855))))
    return large_pair(rng, (1080, 1920))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--every", type=int, default=1, help="take every n-th pair only")
    options = parser.parse_args()
    unequal, seen, partial, start = [], 0, 0, time.monotonic()
    for index in range(0, SMALL + MIDDLE + LARGE, options.every):
        prediction, truth = pair_of(index)
        fast = score_frame(prediction, truth)
        slow = plain_region(prediction, truth), plain_contour(prediction, truth)
        if index < SMALL and slow != (loops := (loops_region(prediction, truth), loops_contour(prediction, truth))):
            unequal.append({"pair": index, "plain": slow, "loops": loops})
        if fast != slow:
            unequal.append({"pair": index, "fast": fast, "slow": slow})
        seen += 1
        partial += 0 < fast[1] < 1
    result = {
        "pairs": seen,
        "pairs with 0 < F < 1": partial,
        "unequal": unequal,
        "seed": SEED,
        "seconds": round(time.monotonic() - start, 1),
        "command": " ".join(sys.argv),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": f"{platform.machine()}, {platform.python_version()}, numpy {np.__version__}",
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(unequal))


if __name__ == "__main__":
    main()
