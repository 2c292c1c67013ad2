"""The papers' claims that were shown at module level, in whole systems: trained, then `predict`, then `score`.

    python bench/whole_systems.py OUT                       # every study; goes on where it was stopped
    python bench/whole_systems.py OUT --only soc_contrast   # one of them
    python bench/whole_systems.py OUT --table               # prints what is done
    python bench/whole_systems.py OUT --plots docs/results  # draws it

``--device cuda`` needs nothing else. Films of 8 frames of 64x96 pixels. The towers are trained first
(``deixis train tower_world``), unless --vit and --conv name files of such.

All arms of all seeds of a study take the same number of steps: BLOCK more at a time, until no arm's validation curve
(mean over the seeds) rises by RISE or more from one block to the next, or to --most. The rate is constant after a short
warm-up and the weights are averaged, so that a run that goes on is the run that it would have been. The verdict comes
from 100 films on disk that no validation used, answered by ``predict`` and scored by ``score_benchmark``: J&F, the
gain paired by seed and film, with the rules of docs/results/claims.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _grid import cell, cells, interval, slug, trained
from claim_studies.grid import commit
from claim_studies.verdicts import draw_curves, verdict
from vision_language_world import add_tower_options, remembering, tower_file

from deixis.synthetic.scene import Sentence, SyntheticVideo
from deixis.synthetic.shapes import PAINTS
from deixis.training.generated import WorldData, generated_video

BLOCK, RISE, MARGIN = 300, 0.01, 0.02
TEST_FILMS, VALIDATION_FILMS, FIRST_VALIDATION = 100, 40, 5000  # of "valid_u": the test's are the first ones
SPLIT = "valid_u"
FILMS = {
    "data.size": "64,96", "data.frames": "8", "data.areas": "0.04,0.12", "data.films": "1200",
    "data.calibration_films": "0",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Study:
    """arms: the recipe's overrides of each, the claimed one first.  film: of a split and a number.  tower: the kind of
    the frozen tower, "" without one."""

    recipe: str
    arms: Mapping[str, Mapping[str, str]]
    film: Callable[[WorldData, str, int], SyntheticVideo] = generated_video
    changes: Mapping[str, str] = field(default_factory=dict)
    tower: str = ""


# --- films ------------------------------------------------------------------------------------------------------------


def coloured_film(data: WorldData, split: str, number: int) -> SyntheticVideo:
    """A film whose sentences are all of colour."""
    return generated_video(replace(data, sentences=(("colour", 1.0),)), split, number)


MARKS, BODIES = ("red", "green", "blue", "yellow"), ("black", "white", "grey", "pink", "orange", "purple", "brown")


@lru_cache(maxsize=4000)
def marked_film(data: WorldData, split: str, number: int) -> SyntheticVideo:
    """Two objects; in the first half of the film each wears a mark of a colour, and the sentences name the mark.

    Their bodies have other colours, which no sentence names and which stay to the end.
    """
    rng = np.random.default_rng([number, len(split), 7])
    film = next(film for film in _candidates(data, split, number) if _both_in_sight(film))
    bodies, marks = rng.choice(BODIES, 2, replace=False), rng.choice(MARKS, 2, replace=False)
    frames = film.frames.copy()
    for t in range(len(frames)):
        for k, (body, mark) in enumerate(zip(bodies, marks, strict=True)):
            mask = film.masks[t, k]
            paint(frames[t], mask, body, rng)
            if t < len(frames) // 2:
                paint(frames[t], mask & near_its_middle(mask), mark, rng)
    sentences = tuple(Sentence(f"the {mark} object", "colour", (k,)) for k, mark in enumerate(marks))
    return replace(film, frames=frames, sentences=sentences)


def _candidates(data: WorldData, split: str, number: int) -> Iterator[SyntheticVideo]:
    """The film of the number, then others that no other number has."""
    while True:
        yield generated_video(data, split, number)
        number += 100_000


def _both_in_sight(film: SyntheticVideo, pixels: int = 60) -> bool:
    return film.masks.shape[1] == 2 and bool((film.masks.sum((2, 3)) >= pixels).all())


def paint(frame: np.ndarray, where: np.ndarray, colour: str, rng: np.random.Generator) -> None:
    values = np.array(PAINTS[colour]) + rng.normal(0, 6, (int(where.sum()), 1))
    frame[where] = np.clip(values, 0, 255).astype(np.uint8)


def near_its_middle(mask: np.ndarray, share: float = 0.45) -> np.ndarray:
    """The disc around what lies deepest in a mask, that holds a share of its area at most."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    ys, xs = np.ogrid[: mask.shape[0], : mask.shape[1]]
    return (ys - y) ** 2 + (xs - x) ** 2 <= share * mask.sum() / np.pi


STUDIES: dict[str, Study] = {
    "soc_contrast": Study(
        recipe="soc_world",
        tower="conv",
        arms={"contrast": {}, "no contrast": {"data.loss.contrastive": "0"}},
        film=coloured_film,
    ),
    "vlp_rvos_history": Study(
        recipe="vlp_rvos_world",
        tower="vit",
        arms={"history": {}, "no history": {"model.history": "false"}},
        film=marked_film,
        changes={"data.objects": "2,2"},
    ),
}


# --- runs -------------------------------------------------------------------------------------------------------------


def job_of(name: str, arm: str, seed: int, steps: int, options: argparse.Namespace) -> Any:
    """The recipe's run with the study's films, to ``steps``."""
    from deixis.training.generated import world_clip
    from deixis.training.measure import evaluate_films
    from deixis.training.recipes import find_recipe

    study = STUDIES[name]
    data = {"tower": tower_file(study.tower, options)} if study.tower else {}
    overrides = {
        **FILMS, **study.changes, **study.arms[arm], "train.steps": str(steps), "train.seed": str(seed),
        "train.batch": str(options.batch), "train.lr": "1e-3", "train.schedule": "multistep", "train.ema": "0.99",
        "train.warmup_steps": "50", "train.threads": str(options.threads), "train.log_every": "30",
        "train.checkpoint_minutes": "2", "train.validate_every": str(options.block),
    }  # fmt: skip
    job = find_recipe(study.recipe)(data, overrides=overrides)
    films: WorldData = job.validate.args[0]  # type: ignore[union-attr]

    def validate(system: Any) -> dict[str, float]:
        held_out = (study.film(films, SPLIT, FIRST_VALIDATION + i) for i in range(VALIDATION_FILMS))
        scores = list(evaluate_films(system, held_out, precision="fp32", threshold=0.001, device=options.device))
        return {key: float(np.mean([getattr(one, key) for one in scores])) for key in ("overlap", "right")}

    samples = partial(world_clip, films, film_of=study.film)
    return replace(job, system=remembering(job.system), samples=samples, validate=validate)


def folder_of(out: Path, name: str, arm: str, seed: int) -> Path:
    return out / name / f"{slug(arm)}-{seed}"


def curve(folder: Path) -> list[tuple[int, float]]:
    """(step, validation overlap) of a run so far."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(row["step"], row["scores"]["overlap"]) for row in rows if "scores" in row]


def is_flat(curves: list[list[float]]) -> bool:
    """Whether no arm's curve (its values at the ends of the blocks, mean over the seeds) rose by RISE in the last."""
    return all(len(one) > 1 and one[-1] - one[-2] < RISE for one in curves)


def run(name: str, options: argparse.Namespace) -> None:
    """Train all arms of all seeds, a block at a time, then predict and score; what is done is not done again."""
    study, out, steps = STUDIES[name], options.out, options.block
    ended = out / name / "ended.json"
    while not ended.is_file():
        for seed in options.seeds:
            for arm in study.arms:
                train_to(steps, name, arm, seed, options)
        values = {arm: arm_curve(out, name, arm, options.seeds, steps) for arm in study.arms}
        print(name, steps, {arm: [round(v, 3) for v in one] for arm, one in values.items()}, flush=True)
        if steps >= options.most or is_flat(list(values.values())):
            flat = {arm: is_flat([one]) for arm, one in values.items()}
            ended.write_text(json.dumps({"steps": steps, "flat": flat, "commit": commit(), "seeds": options.seeds}))
        steps += options.block
    root = test_set(out, name, options)
    for seed in options.seeds:
        for arm in study.arms:
            cell(folder_of(out, name, arm, seed), partial(answered, root, name, arm, seed, options))


def train_to(steps: int, name: str, arm: str, seed: int, options: argparse.Namespace) -> None:
    folder = folder_of(options.out, name, arm, seed)
    if any(step >= steps for step, _ in curve(folder)) and (folder / "model.safetensors").is_file():
        return
    began = time.process_time()
    trained(job_of(name, arm, seed, steps, options), folder, options.device, f"{name}, {arm}, seed {seed}")
    with open(folder / "seconds.txt", "a") as file:
        file.write(f"{time.process_time() - began:.0f}\n")


def arm_curve(out: Path, name: str, arm: str, seeds: list[int], steps: int) -> list[float]:
    """The validation of an arm at the end of each block up to ``steps``, mean over the seeds."""
    rows = [[value for step, value in curve(folder_of(out, name, arm, seed)) if step <= steps] for seed in seeds]
    return np.mean(rows, axis=0).tolist()


def test_set(out: Path, name: str, options: argparse.Namespace) -> Path:
    """The folder of the study's films for the verdict, in the layout of `deixis world`."""
    from deixis.synthetic.world import write_split

    root, study = out / name / "films", STUDIES[name]
    if not (root / SPLIT / "meta_expressions.json").is_file():
        job = job_of(name, next(iter(study.arms)), 0, options.block, options)
        films: WorldData = job.samples.args[0]
        made = (replace(study.film(films, SPLIT, i), name=f"film{i:03d}") for i in range(TEST_FILMS))
        shutil.rmtree(root, ignore_errors=True)
        for _ in write_split(root / SPLIT, made, 6.0):
            pass
    return root


def answered(root: Path, name: str, arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """J&F of every film of the test set, by ``predict`` and ``score_benchmark``."""
    from deixis.benchmarks import open_benchmark
    from deixis.metrics.evaluate import score_benchmark
    from deixis.predict import predict

    folder = folder_of(options.out, name, arm, seed)
    model, results = folder / "model.safetensors", folder / "results"
    predict(open_benchmark("world", root, SPLIT), results, model, threshold=0.001, device=options.device)
    scores = score_benchmark("world", root, results, SPLIT)
    films = sorted({row.video for row in scores.rows})
    values = [[row.number("J&F") or 0.0 for row in scores.rows if row.video == film] for film in films]
    return {
        "arm": arm, "seed": seed, "jf": [float(np.mean(one)) for one in values], "summary": dict(scores.summary),
        "seconds": sum(map(int, (folder / "seconds.txt").read_text().split())), "torch": torch.__version__,
    }  # fmt: skip


# --- what came of it --------------------------------------------------------------------------------------------------


def table(name: str, out: Path) -> None:
    found, ended = cells(out / name), out / name / "ended.json"
    if not found or not ended.is_file():
        return
    facts, (claimed, *controls) = json.loads(ended.read_text()), STUDIES[name].arms
    rising = [arm for arm, flat in facts["flat"].items() if not flat]
    seconds = sum(one["seconds"] for one in found)
    print(f"\n### {name}: {facts['steps']} steps, {seconds} s, commit {facts['commit']}; still rising: {rising}\n")
    jf = {arm: films_of_arm(found, arm) for arm in (claimed, *controls)}
    for arm, values in jf.items():
        mean, low, high = interval(values)
        print(f"- {arm}: J&F {100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    for control in controls:
        mean, low, high = interval(jf[claimed] - jf[control])
        each = ", ".join(f"{100 * gain:+.1f}" for gain in (jf[claimed] - jf[control]).mean(1))
        print(
            f"- {claimed} over {control}: {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]; seeds {each}:"
            f" **{verdict(low, high, MARGIN)}**"
        )


def films_of_arm(found: list[dict[str, Any]], arm: str) -> np.ndarray:
    """(seeds, films) J&F."""
    return np.array([one["jf"] for one in sorted(found, key=lambda one: one["seed"]) if one["arm"] == arm])


def plot(name: str, out: Path, to: Path) -> None:
    """The validation curves of the arms; a PNG of a few kB."""
    curves = {}
    for arm in STUDIES[name].arms:
        runs = [curve(folder) for folder in sorted((out / name).glob(f"{slug(arm)}-[0-9]*"))]
        curves[arm] = [one for one in runs if one]
    if all(curves.values()):
        draw_curves(curves, to / f"claims_whole_{name}.png", title=f"{name}, whole system", label="overlap", top=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--block", type=int, default=BLOCK, help="steps between two validations")
    parser.add_argument("--most", type=int, default=4 * BLOCK, help="steps at most")
    parser.add_argument("--batch", type=int, default=4)
    add_tower_options(parser)
    parser.add_argument("--plots", type=Path, help="only draw what is done, into this folder")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.device}, commit {commit()}", flush=True)
    for name in options.only:
        if options.plots:
            plot(name, options.out, options.plots)
            continue
        if not options.table:
            run(name, options)
        table(name, options.out)


if __name__ == "__main__":
    main()
