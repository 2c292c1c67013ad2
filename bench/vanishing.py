"""Whether a mask vanishes with the precision: the same films and sentences in fp32 and in bf16, frame by frame.

    python bench/vanishing.py --pictures ../shared/data [--model light] [--films 20] [-o vanishing.json]

The four development films of DAVIS with two sentences each, and generated films (development pictures, seed 7) with at
most two sentences each. Figures: the least and the mean overlap of the two precisions' masks over all frames (two empty
masks count as 1), and every track with a frame below .8.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import deixis
from deixis.synthetic.cutouts import DEVELOPMENT_VIDEOS
from deixis.synthetic.mixture import composites, davis
from deixis.synthetic.scene import SyntheticVideo
from deixis.training.measure import write_frames

LEAST = 0.8  # overlap of the two masks of a frame (the bound)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=Path, required=True, help="the folder of the data sets (shared/data)")
    options.add_argument("--model", default="light")
    options.add_argument("--films", type=int, default=20, help="generated films")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("-o", "--out", type=Path)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    system = deixis.load(arguments.model)
    rows = []
    for film, texts in films_of(arguments.pictures, arguments.films):
        for text, overlaps in zip(texts, overlaps_of(system, film, texts), strict=True):
            rows.append({"video": film.name, "text": text, "least": min(overlaps), "overlaps": overlaps})
            print(f"{film.name}: {text}: least {min(overlaps):.3f} of {len(overlaps)} frames", flush=True)
    every = [value for row in rows for value in row["overlaps"]]
    below = [f"{row['video']}: {row['text']}" for row in rows if row["least"] < LEAST]
    figures = {"tracks": len(rows), "frames": len(every), "least": min(every), "mean": float(np.mean(every)),
               "frames_below": sum(value < LEAST for value in every), "tracks_below": below}  # fmt: skip
    print(json.dumps(figures))
    if arguments.out:
        facts = {"model": arguments.model, "version": deixis.__version__, "torch": torch.__version__}
        arguments.out.write_text(json.dumps({"facts": facts, "figures": figures, "rows": rows}) + "\n", "utf-8")


def films_of(pictures: Path, generated: int) -> Iterator[tuple[SyntheticVideo, list[str]]]:
    """Videos with the texts to segment in them."""
    written = json.loads((pictures / "sentences" / "films.json").read_text())
    for film in davis(pictures, DEVELOPMENT_VIDEOS):
        yield film, written[film.name.partition(":")[2]]["expressions"][:2]
    for film in composites(pictures, "development", films=generated, seed=7):
        yield film, [sentence.text for sentence in film.sentences if sentence.objects][:2]


def overlaps_of(system: torch.nn.Module, film: SyntheticVideo, texts: list[str]) -> list[list[float]]:
    """For each text the overlap of the fp32 with the bf16 mask of every frame."""
    with TemporaryDirectory() as folder:
        write_frames(film, Path(folder))
        fp32, bf16 = (deixis.segment(Path(folder), texts, model=system, precision=p) for p in ("fp32", "bf16"))
        return [[overlap(a, b) for a, b in zip(one.masks, other.masks, strict=True)]
                for one, other in zip(fp32, bf16, strict=True)]  # fmt: skip


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    either = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / either) if either else 1.0


if __name__ == "__main__":
    main()
