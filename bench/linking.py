"""How much of what the proposals find the tracks keep, on films of the development split.

    python bench/linking.py --pictures ../shared/data [--model light]

The four development films of DAVIS, 24 composites and 10 films of twins (seed 11), window by window at the model's
size. For each object: the mean overlap over its frames of the best single track, of the best proposal of each frame
(what a perfect linker would reach), and the frames that are lost: a proposal overlaps by more than a half, the track by
less than half of that.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from _frames import at_model_size

import deixis
from deixis.inference import model_size
from deixis.synthetic.cutouts import DEVELOPMENT_VIDEOS
from deixis.synthetic.mixture import composites, davis, twins
from deixis.synthetic.scene import SyntheticVideo
from deixis.systems.light import Light, link

LEAST_CELLS = 30  # stride-4 cells of an object over a window, below which it is left out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=Path, required=True, help="the folder of the data sets (shared/data)")
    options.add_argument("--model", default="light")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    system = deixis.load(arguments.model).eval()
    assert isinstance(system, Light)
    system.accelerate()
    rows: dict[str, list[tuple[float, float, int, int]]] = defaultdict(list)
    for film in films(arguments.pictures):
        for first in range(0, len(film.frames), system.config.window):
            stretch = slice(first, first + system.config.window)
            rows[film.name.partition(":")[0]] += measured(system, film.frames[stretch], film.masks[stretch])
    print("| films | objects | track | best proposals | frames lost |\n|---|---|---|---|---|")
    for kind, found in rows.items():
        table = np.array(found)
        track, best = table[:, 0].mean(), table[:, 1].mean()
        print(
            f"| {kind} | {len(table)} | {track:.3f} | {best:.3f} | {table[:, 2].sum():.0f} of {table[:, 3].sum():.0f} |"
        )


def films(pictures: Path) -> Iterator[SyntheticVideo]:
    yield from davis(pictures, DEVELOPMENT_VIDEOS)
    yield from composites(pictures, "development", films=24, seed=11)
    yield from twins(pictures, "development", films=10, seed=11)


@torch.no_grad()
def measured(system: Light, frames: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, int, int]]:
    """(overlap of the best track, of the best proposals, frames lost, frames) of each object of a window.

    frames: (T, H, W, 3) uint8.  truth: (T, N, H, W) bool.
    """
    size, x = model_size(frames.shape[1:3], system.config), at_model_size(frames, system.config)
    with torch.autocast("cpu", torch.bfloat16):
        features = system.encode_frames(x)
        found = system.propose(features, x, torch.zeros(len(x), *x.shape[-2:]))
        tracks, _ = link(found, features.deep, 1)
    masks = np.stack([[cv2.resize(m.astype(np.float32), size[::-1]) for m in frame] for frame in truth])
    objects = F.avg_pool2d(F.pad(torch.from_numpy(masks), (0, x.shape[3] - size[1], 0, x.shape[2] - size[0])), 4) > 0.5
    rows = []
    for number in range(objects.shape[1]):
        mask = objects[:, number]
        if mask.sum() < LEAST_CELLS:
            continue
        there = mask.flatten(1).any(1).numpy()
        best = overlap(found.masks.float() > 0, mask).max(1)
        linked = overlap(tracks[0].float() > 0, mask)
        track = linked[:, linked[there].mean(0).argmax()]
        lost = (best > 0.5) & (track < 0.5 * best) & there
        rows.append((float(track[there].mean()), float(best[there].mean()), int(lost.sum()), int(there.sum())))
    return rows


def overlap(masks: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """(T, Q) IoU of masks (T, Q, h, w) with one (T, h, w), bool."""
    both = (masks & mask[:, None]).flatten(2).sum(2)
    either = (masks | mask[:, None]).flatten(2).sum(2)
    return (both / either.clamp(min=1)).numpy()


if __name__ == "__main__":
    main()
