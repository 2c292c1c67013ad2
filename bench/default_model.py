"""The figures of the bundled model's card, on data held out from its training.

    python bench/default_model.py --pictures ../shared/data [--model light] [-o figures.json] [--only stills,davis]

Everything goes through ``deixis.segment`` at the model's own size and presence threshold: an object that is there but
answered "absent" counts as wrong. Intervals are 95 % (Wilson). Films are made from seed 0; presence was calibrated on
films of seed 1 and on stills of even number, so the reliability table leaves those stills out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deixis
from deixis.metrics.presence import calibration_error
from deixis.metrics.region_contour import score_track
from deixis.synthetic import mixture
from deixis.synthetic.mixture import composites, long_films, stills, twins
from deixis.synthetic.scene import SyntheticVideo
from deixis.training.measure import Answer, answers, wilson, write_frames

CELLS = ("composites", "shuffled", "stills", "twins", "long", "davis")
GOALS = {
    "composites": {"class": 0.90, "colour": 0.80, "place": 0.93, "motion": 0.80, "none": 0.85},
    "stills": {"class": 0.80, "colour": 0.80, "place": 0.80, "none": 0.90},
    "twins": {"all": 0.80},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=Path, required=True, help="the folder of the data sets (shared/data)")
    options.add_argument("--model", default="light")
    options.add_argument("--precision", default="auto")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--share", type=float, default=1.0, help="of the films of each cell, for a quick look")
    options.add_argument("--first", type=int, default=0, help="film of each cell to begin with, to add to a run")
    options.add_argument("--only", default=",".join(CELLS))
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    system = deixis.load(asked.model)
    began = time.time()
    found: dict[str, dict[str, Any]] = {}
    for cell in asked.only.split(","):
        found[cell] = measure(cell, system, asked.pictures, asked.share, asked.precision, asked.first)
        print(f"{cell}: {json.dumps(found[cell]['figures'])}  ({time.time() - began:.0f} s so far)", flush=True)
    if {"composites", "stills"} <= found.keys():
        told = [*found["composites"]["answers"]] + [a for a in found["stills"]["answers"] if a["odd"]]
        found["presence"] = {"figures": reliability(told)}
        print(f"presence: {json.dumps(found['presence']['figures'])}")
    print(table(found))
    if asked.out:
        facts = {"model": asked.model, "version": deixis.__version__, "torch": torch.__version__,
                 "machine": platform.processor() or platform.machine(), "threads": asked.threads}  # fmt: skip
        asked.out.write_text(json.dumps({"facts": facts, "cells": found}, indent=1) + "\n", encoding="utf-8")


def measure(
    cell: str, system: torch.nn.Module, pictures: Path, share: float, precision: str, first: int = 0
) -> dict[str, Any]:
    """{"figures": ..., "answers": [...]} of one cell."""
    if cell == "davis":
        return davis(system, pictures, precision)
    films = list(films_of(cell, pictures, share))[first:]
    words = None
    if cell == "shuffled":
        texts = [tuple(s.text for s in f.sentences) for f in films]
        words = lambda i, film: other_words(texts, i, len(film.sentences))  # noqa: E731
    told = list(answers(system, films, words=words, precision=precision))
    place = {film.name: i for i, film in enumerate(films)}
    rows = [asdict(a) | {"odd": place[a.film] % 2 == 1} for a in told]
    return {"figures": figures(cell, told), "answers": rows}


def films_of(cell: str, pictures: Path, share: float) -> Iterator[SyntheticVideo]:
    def some(count: int) -> int:
        return max(2, round(count * share))

    if cell in ("composites", "shuffled"):
        return composites(pictures, films=some(460 if cell == "composites" else 150))
    if cell == "stills":
        return (f for i, f in enumerate(stills(pictures)) if i < some(200))
    if cell == "twins":
        return twins(pictures, films=some(250))
    return long_films(pictures, films=some(80))


def other_words(texts: list[tuple[str, ...]], film: int, count: int) -> tuple[str, ...]:
    """The texts of the films that follow, so that nothing but chance ties words to pictures."""
    borrowed: list[str] = []
    while len(borrowed) < count:
        film += 1
        borrowed += texts[film % len(texts)]
    return tuple(borrowed[:count])


def figures(cell: str, told: list[Answer]) -> dict[str, Any]:
    by_kind = {kind: [a for a in told if a.kind == kind] for kind in sorted({a.kind for a in told})}
    there = [a for a in told if a.there]
    if cell == "twins":
        by_kind = {"all": there} | by_kind
    shares: dict[str, dict[str, Any]] = {}
    for kind, rows in by_kind.items():
        hits = sum(a.right for a in rows)
        shares[kind] = {"share": hits / len(rows), "of": len(rows), "interval": wilson(hits, len(rows))}
    out: dict[str, Any] = {"right": shares, "mean_overlap": float(np.mean([a.overlap for a in there]))}
    out["answered_absent"] = sum(a.empty for a in there) / len(there)
    if cell == "long":
        hits = sum(a.changed for a in there)
        out["changes_object"] = {"share": hits / len(there), "of": len(there), "interval": wilson(hits, len(there))}
    if cell == "shuffled":
        kinds = [shares[k]["share"] for k in ("class", "colour", "place", "motion") if k in shares]
        out["mean_over_kinds"] = float(np.mean(kinds))
    return out


def davis(system: torch.nn.Module, pictures: Path, precision: str) -> dict:
    """J&F of whole held-out videos, per video the mean over its sentences."""
    from tempfile import TemporaryDirectory

    rows, scores = [], {}
    for film in mixture.davis(pictures):
        with TemporaryDirectory() as folder:
            write_frames(film, Path(folder))
            texts = [s.text for s in film.sentences]
            tracks = deixis.segment(Path(folder), texts, model=system, precision=precision)
        for text, track in zip(texts, tracks, strict=True):
            score = score_track(track.masks, list(film.masks[:, 0]))
            rows.append({"film": film.name, "text": text, "j": score.j, "f": score.f, "presence": track.presence})
        scores[film.name] = float(np.mean([(r["j"] + r["f"]) / 2 for r in rows if r["film"] == film.name]))
    return {"figures": {"j_and_f": float(np.mean(list(scores.values()))), "videos": scores}, "answers": rows}


def reliability(told: list[dict], bins: int = 10) -> dict:
    """ECE, and per bin of told presence: sentences, mean presence, share that is there."""
    p, y = np.array([a["presence"] for a in told]), np.array([a["there"] for a in told])
    rows = []
    for i in range(bins):
        inside = (p >= i / bins) & ((p < (i + 1) / bins) | (i == bins - 1))
        if inside.any():
            rows.append([f"{i / bins:.1f}-{(i + 1) / bins:.1f}", int(inside.sum()), float(p[inside].mean()),
                         float(y[inside].mean())])  # fmt: skip
    return {"ece": calibration_error(p.tolist(), y.tolist()), "of": len(p), "table": rows}


def table(found: dict) -> str:
    lines = ["| cell | kind | share | 95 % | sentences | goal |", "|---|---|---|---|---|---|"]
    for cell, content in found.items():
        for kind, row in content["figures"].get("right", {}).items():
            goal = GOALS.get(cell, {}).get(kind, "")
            low, high = row["interval"]
            lines.append(f"| {cell} | {kind} | {row['share']:.3f} | {low:.3f}-{high:.3f} | {row['of']} | {goal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
