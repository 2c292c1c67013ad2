"""VLP-RVOS and the frozen conv-CLIP solution, each without what its paper claims, and SOC, on one frozen small tower.

    python bench/vision_language_world.py OUT --steps 600 --seeds 0 1 2    # goes on where it was stopped
    python bench/vision_language_world.py OUT --only "VLP-RVOS" --seeds 0  # one row
    python bench/vision_language_world.py OUT --table                      # prints the table of what is done

First the two towers are trained (``deixis train tower_world``, OUT/tower-vit and OUT/tower-conv), unless --vit and
--conv name files of such. Then every row trains on the same generated films, the same number of steps and clips. A run
is locked while it is at work, so several processes may share OUT: each takes what no other has.

The table gives, on held-out films, the share of sentences answered with the right object and the mean overlap of its
masks over the film, for sentences of appearance (class, colour) and of motion, as mean and standard deviation over
seeds; and the same for the full systems when every sentence is replaced by one of another film.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _grid import cell, cells, draw_losses, score, slug, spread, trained
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Row:
    """family: whose full system it is compared with.  changes: of the recipe's overrides.  shuffled: whether it is
    asked with words of other films too."""

    family: str
    recipe: str
    tower: str
    changes: Mapping[str, str] = field(default_factory=dict)
    shuffled: bool = False


VLP, CONV, SOC = "VLP-RVOS", "conv-CLIP", "SOC on the conv-CLIP tower"
ROWS: dict[str, Row] = {
    VLP: Row(family=VLP, recipe="vlp_rvos_world", tower="vit", shuffled=True),
    CONV: Row(family=CONV, recipe="conv_clip_mevis_world", tower="conv", shuffled=True),
    SOC: Row(family=SOC, recipe="soc_world", tower="conv", shuffled=True),
    f"{VLP}, no temporal prompts": Row(
        family=VLP, recipe="vlp_rvos_world", tower="vit", changes={"model.capture": "false"}
    ),
    f"{VLP}, no history": Row(family=VLP, recipe="vlp_rvos_world", tower="vit", changes={"model.history": "false"}),
    f"{VLP}, no cube attention": Row(family=VLP, recipe="vlp_rvos_world", tower="vit", changes={"model.cube": "false"}),
    f"{CONV}, text only as query start": Row(
        family=CONV, recipe="conv_clip_mevis_world", tower="conv", changes={"model.words": "start"}
    ),
    f"{CONV}, learned video queries": Row(
        family=CONV, recipe="conv_clip_mevis_world", tower="conv", changes={"model.video_start": "learned"}
    ),
}
# Peak learning rates, found by short trials of each full system; its other rows use the same.
RATES = {VLP: 2e-3, CONV: 2e-3, SOC: 1e-3}
FILMS = {"data.size": "64,96", "data.frames": "6", "data.areas": "0.04,0.12"}


# --- features of a frozen tower, encoded once for all runs that use them ----------------------------------------------


Encode = Callable[[Tensor], Sequence[Tensor]]


class Memory:
    """``encode_image`` of a frozen convolutional tower, by the clips' pixels, in training; films are scored once."""

    def __init__(self, clips: int = 4000) -> None:
        self.clips, self.known = clips, dict[bytes, list[Tensor]]()

    def wrap(self, encode: Encode, fingerprint: bytes) -> Callable[[Tensor], list[Tensor]]:
        def known_or_new(frames: Tensor) -> list[Tensor]:
            if not torch.is_grad_enabled():
                return list(encode(frames))
            clips = [self._clip(encode, clip, fingerprint) for clip in frames]
            return [torch.stack(level) for level in zip(*clips, strict=True)]

        return known_or_new

    def _clip(self, encode: Encode, clip: Tensor, fingerprint: bytes) -> list[Tensor]:
        pixels = clip.detach().cpu().contiguous().numpy()
        key = hashlib.blake2b(pixels.data, digest_size=16, key=fingerprint).digest()
        if key not in self.known:
            if len(self.known) >= self.clips:
                self.known.pop(next(iter(self.known)))
            self.known[key] = [level[0] for level in encode(clip[None])]
        return self.known[key]


MEMORY = Memory()


def remembering(build: Callable[[], Any]) -> Callable[[], Any]:
    """The system with a memory before a frozen convolutional tower; VLP-RVOS's depends on its prompts and has none."""

    def built() -> Any:
        from deixis.encoders.conv_clip import ConvClip

        system = build()
        for tower in system.modules():
            if isinstance(tower, ConvClip):
                known = MEMORY.wrap(tower.encode_image, bytes(tower.fingerprint.tolist()))
                tower.encode_image = known  # type: ignore[method-assign]
        return system

    return built


# --- runs ------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone may work at ``path`` now. The lock goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def add_tower_options(parser: argparse.ArgumentParser) -> None:
    """What ``tower_file`` reads, and where a study runs."""
    parser.add_argument("--tower-steps", type=int, default=2000)
    parser.add_argument("--vit", type=Path, help="a tower file to use instead of training one")
    parser.add_argument("--conv", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="only print what is done")


def tower_file(kind: str, options: argparse.Namespace) -> Path:
    """The file of a tower, trained if need be; a second process waits for the first."""
    from deixis.training.loop import train
    from deixis.training.recipes import find_recipe

    given = getattr(options, kind)
    if given is not None:
        return given
    folder = options.out / f"tower-{kind}"
    with locked(folder, wait=True):
        done = folder / "scores.json"
        if not done.is_file():
            overrides = {
                "model.kind": kind, "train.steps": str(options.tower_steps), "train.threads": str(options.threads),
                "train.checkpoint_minutes": "1",
            }  # fmt: skip
            job, cpu = find_recipe("tower_world")({}, overrides=overrides), time.process_time()
            outcome = train(job, folder, device=options.device, resume=True)
            if outcome.stopped != "finished":
                raise SystemExit(f"tower {kind}: stopped at step {outcome.step}; run again to go on")
            tower = restored(job, folder)
            with torch.inference_mode():
                scores = job.validate(tower)
            facts = {"kind": kind, "steps": options.tower_steps, "cpu_seconds": round(time.process_time() - cpu)}
            done.write_text(json.dumps({**facts, "scores": scores}, indent=1))
    facts = json.loads((folder / "scores.json").read_text())
    print(f"tower {kind}:", facts["steps"], "steps,", {k: round(v, 3) for k, v in facts["scores"].items()}, flush=True)
    return folder / "model.safetensors"


def restored(job: Any, folder: Path) -> Any:
    """A run's system as its last checkpoint has it."""
    from deixis.training.checkpoint import load_checkpoint

    system = job.system()
    tensors, _ = load_checkpoint(folder / "last.safetensors")
    system.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    return system.eval()


def run(folder: Path, name: str, seed: int, tower: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train one row with one seed and score it. Raises SystemExit where it was stopped."""
    from deixis.training.recipes import find_recipe

    row = ROWS[name]
    overrides = {
        **FILMS, **row.changes, "data.films": str(options.films), "data.held_out_films": str(options.held_out),
        "data.objects": ",".join(map(str, options.objects)), "train.lr": str(options.lr or RATES[row.family]),
        "train.seed": str(seed), "train.steps": str(options.steps), "train.batch": str(options.batch),
        "train.warmup_steps": str(max(1, options.steps // 20)), "train.threads": str(options.threads),
        "train.log_every": str(max(1, options.steps // 30)), "train.checkpoint_minutes": "2",
    }  # fmt: skip
    job = find_recipe(row.recipe)({"tower": tower}, overrides=overrides)
    draw_films(job, options)
    resumed, cpu = (folder / "last.safetensors").is_file(), time.process_time()
    model = trained(replace(job, system=remembering(job.system)), folder, options.device, f"{name}, seed {seed}")
    cpu = time.process_time() - cpu
    with torch.inference_mode():
        scores = job.validate(model)
        strange = with_words_of_others(job)(model) if row.shuffled else None
    return {
        "row": name, "seed": seed, "steps": options.steps, "batch": options.batch, "lr": overrides["train.lr"],
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "frozen": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        "cpu_seconds_of_training": None if resumed else round(cpu, 1), "scores": scores, "shuffled": strange,
        "torch": torch.__version__,
    }  # fmt: skip


def run_row(folder: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    return run(folder, name, seed, tower_file(ROWS[name].tower, options), options)


def films_of(job: Any) -> Any:
    """The data config of a recipe on generated films, as its validation has it."""
    return job.validate.args[0]


def draw_films(job: Any, options: argparse.Namespace) -> None:
    """Draw all films before the clock starts; they stay in memory for the runs that follow."""
    from deixis.training.generated import generated_video

    for split, count in (("train", options.films), ("valid_u", options.held_out)):
        for index in range(count):
            generated_video(films_of(job), split, index)


def with_words_of_others(job: Any) -> Callable[[Any], dict[str, float]]:
    """The job's validation with every sentence replaced by one of the same kind from another film."""
    from deixis.training.generated import generated_video
    from deixis.training.validation import validate_generated

    data = films_of(job)
    films = [generated_video(data, "valid_u", index) for index in range(data.held_out_films)]

    def strange(index: int, film: Any) -> tuple[str, ...]:
        found = []
        for k, sentence in enumerate(film.sentences):
            others = [films[(index + step) % len(films)] for step in range(1, len(films))]
            turned = others[k % len(others) :] + others[: k % len(others)]
            texts = [s.text for other in turned for s in other.sentences if s.kind == sentence.kind]
            found.append(next((t for t in texts if t != sentence.text), turned[0].sentences[0].text))
        return tuple(found)

    return lambda model: validate_generated(data, model, strange)


# --- what came of it -------------------------------------------------------------------------------------------------


def by_chance(job: Any) -> dict[str, float]:
    """Scores of a random object, segmented perfectly."""
    from deixis.training.generated import generated_video

    data = films_of(job)
    hits: dict[str, list[float]] = {}
    for index in range(data.held_out_films):
        film = generated_video(data, "valid_u", index)
        for sentence in film.sentences:
            for kind in ("", f"_{sentence.kind}"):
                for name in ("right", "overlap"):
                    hits.setdefault(name + kind, []).append(len(sentence.objects) / film.masks.shape[1])
    return {name: float(np.mean(values)) for name, values in hits.items()}


COLUMNS = (("right", "appearance"), ("right", "motion"), ("overlap", "appearance"), ("overlap", "motion"))


def table(out: Path) -> None:
    found = cells(out, "*-[0-9]*")
    print("| row | trainable M | seeds | steps | " + " | ".join(f"{n}: {k}" for n, k in COLUMNS) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ROWS:
        runs = [facts for facts in found if facts["row"] == name]
        if not runs:
            continue
        size, steps = f"{runs[0]['trainable'] / 1e6:.2f}", "/".join(sorted({str(f["steps"]) for f in runs}))
        for words, key in ((name, "scores"), (f"{name}, words of other films", "shuffled")):
            scored = [f[key] for f in runs if f[key] is not None]
            if scored:
                numbers = [spread([score(s, *column) for s in scored]) for column in COLUMNS]
                print(f"| {words} | {size} | {len(scored)} | {steps} | " + " | ".join(numbers) + " |")
    chance = out / "by_chance.json"
    if chance.is_file():
        numbers = [f"{score(json.loads(chance.read_text()), *column):.3f}" for column in COLUMNS]
        print("| a random object, segmented perfectly (chance) | | | | " + " | ".join(numbers) + " |")
    seconds = [f["cpu_seconds_of_training"] for f in found if f["cpu_seconds_of_training"] is not None]
    if seconds:
        print(f"\nCPU seconds of training a run: {min(seconds):.0f} to {max(seconds):.0f}, {sum(seconds):.0f} in all")


def curves(out: Path) -> None:
    """OUT/curves.png: the summed loss of every run, a panel a system."""
    panels: dict[str, dict[str, list[Path]]] = {}
    for name, row in ROWS.items():
        panels.setdefault(row.family, {})[name] = sorted(out.glob(f"{slug(name)}-[0-9]*/metrics.jsonl"))
    draw_losses(out / "curves.png", panels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=None, help="instead of the rates found")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=" | ".join(ROWS)
    )
    parser.add_argument("--films", type=int, default=1200, help="to train on")
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--objects", type=int, nargs=2, default=[2, 3], help="least and most a film")
    add_tower_options(parser)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.device}, {options.threads} threads")
    elsewhere = []
    if not options.table:
        torch.set_num_threads(options.threads)
        for seed in options.seeds:  # all rows of a seed first, so that a stop leaves a fair comparison
            for name in options.only:
                folder = options.out / f"{slug(name)}-{seed}"
                with locked(folder) as mine:
                    if not mine:
                        elsewhere.append(f"{name}, seed {seed}")
                        continue
                    facts = cell(folder, partial(run_row, folder, name, seed, options))
                    shown = {f"{n} {k}": round(score(facts["scores"], n, k), 3) for n, k in COLUMNS}
                    print(name, seed, shown, facts["cpu_seconds_of_training"], "s", flush=True)
        chance = options.out / "by_chance.json"
        if not chance.is_file():
            from deixis.training.recipes import find_recipe

            given = {"data.held_out_films": str(options.held_out), "data.objects": ",".join(map(str, options.objects))}
            chance.write_text(json.dumps(by_chance(find_recipe("soc_world")({}, overrides={**FILMS, **given}))))
    table(options.out)
    curves(options.out)
    if elsewhere:
        print("at work in another process:", "; ".join(elsewhere))


if __name__ == "__main__":
    main()
