"""The figures of the bundled model's card, on data held out from its training.

    python bench/default_model.py --pictures ../shared/data [--model light] [-o figures.json] [--only stills,davis]

Everything but the cells "naming", "proposals" and "choose" goes through ``deixis.segment`` at the model's own size and
presence threshold: an object that is there but answered "absent" counts as wrong. Intervals are 95 % (Wilson). Films
are made from seed 0. All pictures and films are held out; presence was calibrated on the development split.
``--split development`` measures the same on the development split: choices are made there, the card is not.

    written    expressions written for held-out pictures (``sentences/test.json``)
    davis      whole held-out DAVIS films, the 12 old sentences; films: those of ``sentences/films.json``
    naming     true regions over 1 % of a held-out picture, named among the 80 COCO names
    proposals  the best overlap of a proposal with each thing that a sentence on stills names, words aside
    choose     ``deixis.choose`` among the true tracks of held-out stills: what the words alone do
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from _frames import at_model_size

import deixis
from deixis.metrics.presence import calibration_error
from deixis.metrics.region_contour import score_track
from deixis.synthetic import mixture
from deixis.synthetic.cutouts import DEVELOPMENT_VIDEOS, HELD_OUT_VIDEOS, Library
from deixis.synthetic.mixture import composites, long_films, stills, twins
from deixis.synthetic.scene import SyntheticVideo
from deixis.training.measure import SentenceScore, evaluate_films, wilson, write_frames
from deixis.training.regions import SAME_NAMES

CELLS = (
    "composites", "shuffled", "stills", "written", "twins", "long", "davis", "films", "naming", "proposals", "choose"
)  # fmt: skip
# (must, aim) of each row
GOALS = {
    "composites": {"class": (0.80, 0.90), "colour": (0.85, 0.90), "place": (0.80, 0.90), "motion": (0.80, 0.90),
                   "none": (0.88, 0.95)},
    "stills": {"class": (0.68, 0.80), "colour": (0.76, 0.85), "place": (0.66, 0.80), "none": (0.93, 0.97)},
    "written": {"written": (0.66, 0.80), "none": (0.88, 0.95)},
    "twins": {"all": (0.85, 0.95)},
    "naming": {"top1": (0.72, 0.80)},
    "proposals": {"over_half": (0.72, 0.85)},
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=Path, required=True, help="the folder of the data sets (shared/data)")
    options.add_argument("--model", default="light")
    options.add_argument("--precision", default="auto")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--share", type=float, default=1.0, help="of the films of each cell, for a quick look")
    options.add_argument("--first", type=int, default=0, help="film of each cell to begin with, to add to a run")
    options.add_argument("--split", default="held_out", choices=("held_out", "development"))
    options.add_argument("--only", default=",".join(CELLS))
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    system = deixis.load(asked.model)
    began = time.time()
    found: dict[str, dict[str, Any]] = {}
    data = Data(asked.pictures, asked.split, asked.share, asked.first)
    for cell in asked.only.split(","):
        found[cell] = measure(cell, system, data, asked.precision)
        print(f"{cell}: {json.dumps(found[cell]['figures'])}  ({time.time() - began:.0f} s so far)", flush=True)
    if {"written", "stills"} <= found.keys():
        found["presence"] = {"figures": reliability(found["written"]["answers"] + found["stills"]["answers"])}
        print(f"presence: {json.dumps(found['presence']['figures'])}")
    print(table(found))
    if asked.out:
        facts = {"model": asked.model, "split": asked.split, "version": deixis.__version__, "torch": torch.__version__,
                 "machine": platform.processor() or platform.machine(), "threads": asked.threads}  # fmt: skip
        asked.out.write_text(json.dumps({"facts": facts, "cells": found}, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Data:
    """What a cell is measured on. share: of its films.  first: the film to begin with."""

    pictures: Path
    split: str
    share: float = 1.0
    first: int = 0

    def films(self, cell: str) -> Iterator[SyntheticVideo]:
        def some(count: int) -> int:
            return max(2, round(count * self.share))

        pictures, split = self.pictures, self.split
        if cell in ("composites", "shuffled"):
            return composites(pictures, split, films=some(460 if cell == "composites" else 150))
        if cell == "written":
            return islice(mixture.written_stills(pictures, split), some(200))
        if cell == "stills":
            return islice(stills(pictures, split), some(200))
        if cell == "twins":
            return twins(pictures, split, films=some(250))
        return long_films(pictures, split, films=some(80))

    def davis(self) -> Iterator[SyntheticVideo]:
        return mixture.davis(self.pictures, HELD_OUT_VIDEOS if self.split == "held_out" else DEVELOPMENT_VIDEOS)


def measure(cell: str, system: torch.nn.Module, data: Data, precision: str) -> dict[str, Any]:
    """{"figures": ..., "answers": [...]} of one cell."""
    if cell in ("davis", "films"):
        return davis(system, data, precision, sentences=cell == "films")
    if cell in ("naming", "proposals", "choose"):
        return {"naming": naming, "proposals": proposals, "choose": choosing}[cell](system, data, precision)
    films = list(data.films(cell))[data.first :]
    words = None
    if cell == "shuffled":
        texts = [tuple(s.text for s in f.sentences) for f in films]
        words = lambda i, film: other_words(texts, i, len(film.sentences))  # noqa: E731
    found = list(evaluate_films(system, films, words=words, precision=precision))
    place = {film.name: i for i, film in enumerate(films)}
    rows = [asdict(a) | {"odd": place[a.film] % 2 == 1} for a in found]
    return {"figures": figures(cell, found), "answers": rows}


def other_words(texts: list[tuple[str, ...]], film: int, count: int) -> tuple[str, ...]:
    """The texts of the films that follow, so that nothing but chance ties words to pictures."""
    borrowed: list[str] = []
    while len(borrowed) < count:
        film += 1
        borrowed += texts[film % len(texts)]
    return tuple(borrowed[:count])


def figures(cell: str, found: list[SentenceScore]) -> dict[str, Any]:
    by_kind = {kind: [a for a in found if a.kind == kind] for kind in sorted({a.kind for a in found})}
    present = [a for a in found if a.present]
    if cell == "twins":
        by_kind = {"all": present} | by_kind
    shares: dict[str, dict[str, Any]] = {}
    for kind, rows in by_kind.items():
        hits = sum(a.right for a in rows)
        shares[kind] = {"share": hits / len(rows), "of": len(rows), "interval": wilson(hits, len(rows))}
    out: dict[str, Any] = {"right": shares, "mean_overlap": float(np.mean([a.overlap for a in present]))}
    out["answered_absent"] = sum(a.empty for a in present) / len(present)
    if cell == "long":
        hits = sum(a.changed for a in present)
        n = len(present)
        out["changes_object"] = {"share": hits / n, "of": n, "interval": wilson(hits, n)}
    if cell == "shuffled":
        kinds = [shares[k]["share"] for k in ("class", "colour", "place", "motion") if k in shares]
        out["mean_over_kinds"] = float(np.mean(kinds))
    return out


def davis(system: torch.nn.Module, data: Data, precision: str, sentences: bool = False) -> dict:
    """J&F of whole videos, per video the mean over its sentences; sentences: those of ``films.json``."""
    rows, scores = [], {}
    absent: list[bool] = []
    written = json.loads((data.pictures / "sentences" / "films.json").read_text())
    for film in data.davis():
        with TemporaryDirectory() as folder:
            write_frames(film, Path(folder))
            texts = [s.text for s in film.sentences]
            if sentences:
                own = written[film.name.partition(":")[2]]
                texts = own["expressions"]
                away = deixis.segment(Path(folder), own["absent"], model=system, precision=precision)
                absent += [not any(m.any() for m in track.masks) for track in away]
            tracks = deixis.segment(Path(folder), texts, model=system, precision=precision)
        for text, track in zip(texts, tracks, strict=True):
            score = score_track(track.masks, list(film.masks[:, 0]))
            rows.append({"film": film.name, "text": text, "j": score.j, "f": score.f, "presence": track.presence})
        scores[film.name] = float(np.mean([(r["j"] + r["f"]) / 2 for r in rows if r["film"] == film.name]))
    others = [score for name, score in scores.items() if "lucia" not in name]
    figures = {"j_and_f": float(np.mean(list(scores.values()))), "without_lucia": float(np.mean(others))}
    figures |= {"videos": scores}
    if absent:
        figures["absent_left_empty"] = float(np.mean(absent))
    return {"figures": figures, "answers": rows}


@torch.inference_mode()
def looked_at(system: Any, rgb: np.ndarray, precision: str) -> tuple[Any, torch.Tensor]:
    """The frozen maps of a picture (H, W, 3) at the model's size, and the normalised frame (1, 3, h, w)."""
    x = at_model_size(rgb[None], system.config)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return system.encode_frames(x), x


def naming(system: Any, data: Data, precision: str) -> dict[str, Any]:
    """Top-1 and top-3 among the 80 COCO names, of true regions over 1 % of the picture."""
    library = Library(data.pictures, data.split)
    names = json.loads((data.pictures.parent / "weights/teachers/labels.json").read_text())["coco80"]
    index = torch.tensor([system.namer.names.index(SAME_NAMES.get(n.lower(), n.lower())) for n in names])
    right: list[list[float]] = []
    for picture in library.pictures:
        if picture.set_name != "coco_small":
            continue
        rgb, labels = library.load(picture)
        regions = [i for i in picture.instances if (labels == i.id).mean() > 0.01]
        if not regions:
            continue
        features, x = looked_at(system, rgb, precision)
        masks = np.stack([cv2.resize((labels == i.id).astype(np.float32), (x.shape[3] // 4, x.shape[2] // 4),
                                     interpolation=cv2.INTER_AREA) for i in regions])  # fmt: skip
        shares = torch.from_numpy(masks)[None, None]
        tracks = system.pool_tracks(features, x[None], shares, torch.ones(1, 1, len(masks)))
        scores = system.namer.log_probabilities(system.namer(tracks))[0][:, index]
        for instance, row in zip(regions, scores, strict=True):
            best = [names[i].lower() for i in row.topk(3).indices]
            right.append([float(instance.noun.name == SAME_NAMES.get(b, b)) for b in best])
    table = np.array(right)
    hits = int(table[:, 0].sum())
    top1 = {"share": hits / len(table), "of": len(table), "interval": wilson(hits, len(table))}
    return {"figures": {"right": {"top1": top1}, "top3": float(table.max(1).mean())}, "answers": []}


@torch.inference_mode()
def proposals(system: Any, data: Data, precision: str) -> dict[str, Any]:
    """The best overlap of any proposal with the things that sentences on stills name."""
    best: list[float] = []
    for film in data.films("stills"):
        features, x = looked_at(system, film.frames[0], precision)
        found = system.propose(features, x, torch.zeros(1, *x.shape[-2:]))
        size = film.frames.shape[1:3]
        masks = (F.interpolate(found.masks.float(), size=size, mode="bilinear")[0] > 0).numpy()
        for sentence in film.sentences:
            if sentence.objects:
                truth = film.masks[0, list(sentence.objects)].any(0)
                best.append(max(float((m & truth).sum() / max(1, (m | truth).sum())) for m in masks))
    over = int((np.array(best) > 0.5).sum())
    row = {"share": over / len(best), "of": len(best), "interval": wilson(over, len(best))}
    return {"figures": {"right": {"over_half": row}, "mean_overlap": float(np.mean(best))}, "answers": []}


def choosing(system: Any, data: Data, precision: str) -> dict[str, Any]:
    """``deixis.choose`` with the true tracks, by kind of sentence."""
    hits: dict[str, list[bool]] = {}
    films = [*data.films("stills"), *data.films("written")]
    for film in films:
        with TemporaryDirectory() as folder:
            write_frames(film, Path(folder))
            tracks = [np.ascontiguousarray(film.masks[:, n]) for n in range(film.masks.shape[1])]
            texts = [s.text for s in film.sentences]
            for sentence, choice in zip(film.sentences, deixis.choose(Path(folder), tracks, texts, model=system,
                                                                      precision=precision), strict=True):  # fmt: skip
                right = choice.track in sentence.objects if sentence.objects else choice.track is None
                absent = f"none_{film.name.partition(':')[0]}"
                hits.setdefault(sentence.kind if sentence.objects else absent, []).append(right)
    rows = {
        kind: {"share": float(np.mean(v)), "of": len(v), "interval": wilson(sum(v), len(v))} for kind, v in hits.items()
    }
    return {"figures": {"right": rows}, "answers": []}


def reliability(answers: list[dict], bins: int = 10) -> dict:
    """ECE, and per bin of predicted presence: sentences, mean presence, share that is there."""
    p, y = np.array([a["presence"] for a in answers]), np.array([a["present"] for a in answers])
    rows = []
    for i in range(bins):
        inside = (p >= i / bins) & ((p < (i + 1) / bins) | (i == bins - 1))
        if inside.any():
            rows.append([f"{i / bins:.1f}-{(i + 1) / bins:.1f}", int(inside.sum()), float(p[inside].mean()),
                         float(y[inside].mean())])  # fmt: skip
    return {"ece": calibration_error(p.tolist(), y.tolist()), "of": len(p), "table": rows}


def table(found: dict) -> str:
    lines = ["| cell | kind | share | 95 % | sentences | must | aim |", "|---|---|---|---|---|---|---|"]
    for cell, content in found.items():
        for kind, row in content["figures"].get("right", {}).items():
            must, aim = GOALS.get(cell, {}).get(kind, ("", ""))
            low, high = row["interval"]
            share = f"{row['share']:.3f} | {low:.3f}-{high:.3f} | {row['of']}"
            lines.append(f"| {cell} | {kind} | {share} | {must} | {aim} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
