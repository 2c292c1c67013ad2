"""Train light on a machine with a GPU and no network, which gets a copy of the checkout and a few archives.

    python tools/gpu_train.py pack   --data ../shared/data --objects ../runs/objects --start MODEL -o .gpu
    python tools/gpu_train.py unpack --archives .gpu --work WORK
    python tools/gpu_train.py train  --archives .gpu --work WORK --minutes 25 --call-minutes 9
    python tools/gpu_train.py fetch  --parts FOLDER --data ../shared/data -o light.safetensors

``pack`` writes what a run needs into archives under ``--megabytes`` each: pictures (none larger than the model works
at), masks, the data engine's objects, expressions, the start checkpoint, and the published encoders in fp16.
``unpack`` opens those archives that are there, so that they can come one by one. ``train`` opens what is left and goes
through three stages, each with its share of ``--minutes``: proposals with the encoders at a small rate; tokens made
anew with the new encoders; the scorer. It stops in order after ``--call-minutes``; the same command goes on. Whenever
it stops, the newest model lies in ``--out`` (by default $OUT) in parts of 15 MB. ``fetch`` joins the parts, checks that
the model loads and answers, calibrates presence on the development split (with ``--data``) and writes the bundled form.
``--device cpu --minutes 2`` on a pack of ``--pictures 12`` is a trial of all of it. docs/reproduce.md has the whole.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import make_tokens
import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file, save_file
from torch import nn

import deixis
from deixis.encoders.efficientnet_lite import efficient_net_state
from deixis.encoders.tiny_vit import tiny_vit_state
from deixis.synthetic.cutouts import VIEW_SETS, split_of
from deixis.systems.light import Light, LightConfig
from deixis.training.light_calibration import calibrated
from deixis.training.loop import train as train_run
from deixis.training.recipes.light import export_stage, light_proposals, light_scorer
from deixis.training.run import Progress, Run
from deixis.types import DeixisError
from deixis.weights import load_into

EXTRAS = ("backgrounds", "caltech101_cutouts", "fluent_emoji3d", "object_photos")  # what films are also rendered from
NEEDED_SETS = {"davis": "davis_train", "films": "davis_train", "pasted": "backgrounds", "typed": "object_photos"}
PART = 15_000_000  # bytes of a part that comes back
SHARES = {"proposals": 0.55, "tokens": 0.2, "scorer": 0.25}  # of the minutes (our choice)
PACE_STEPS = 12  # after which the pace of a stage is known, and with it how many steps fit
FEW_CLIPS = 4  # that a process makes however little time it has
FULL = 0.9  # share of a stage's time that its steps are planned for; the rest is validation and the checkpoint


def main() -> None:
    asked = options_of().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        {"pack": pack, "unpack": unpack, "train": train, "tokens": tokens, "fetch": fetch}[asked.what](asked)
    except DeixisError as error:
        sys.exit(f"error: {error}")


def options_of() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = options.add_subparsers(dest="what", required=True)
    packing = what.add_parser("pack")
    packing.add_argument("--data", type=Path, required=True, help="the folder of the sets (shared/data)")
    packing.add_argument("--objects", type=Path, required=True, help="what tools/data_engine.py wrote")
    packing.add_argument("--start", type=Path, required=True, help="a checkpoint of light to go on from")
    packing.add_argument(
        "--weights", type=Path, help="shared/weights: the encoders in fp16 instead of the start's int8"
    )
    packing.add_argument("--pictures", type=int, default=0, help="so many only, for a trial; 0: all")
    packing.add_argument("--megabytes", type=float, default=58.0, help="of an archive, at most")
    packing.add_argument("-o", "--out", type=Path, required=True)
    for name in ("unpack", "train", "tokens"):
        running = what.add_parser(name)
        running.add_argument("--archives", type=Path, default=Path(".gpu"))
        running.add_argument("--work", type=Path, required=True, help="a folder outside the checkout")
        running.add_argument("--device", default="cuda")
        running.add_argument("--minutes", type=float, default=25.0, help="of all calls together")
        running.add_argument("--call-minutes", type=float, default=9.0, help="of this one")
        running.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
        running.add_argument("--batch", type=int, default=0, help="views a step; 0: 16 on a GPU, 2 on a CPU")
        running.add_argument("--lr", default="3e-4", help="of the proposals; the encoders learn at shares of it")
        running.add_argument("--net-rate", default="0", help="EfficientNet's share; above 0 train the namer anew after")
        running.add_argument("--workers", type=int, default=-1, help="processes that make samples; -1: as cores")
        running.add_argument("--kinds", default="pictures,davis,pasted,stills,typed,films", help="of tokens, in turn")
        running.add_argument("--films", type=int, default=4000, help="of each rendered kind, at most")
        running.add_argument("--share", default="0/1")
    fetching = what.add_parser("fetch")
    fetching.add_argument("--parts", type=Path, required=True, help="the folder with what came back")
    fetching.add_argument("--data", type=Path, help="the folder of the sets: calibrate presence")
    fetching.add_argument("-o", "--out", type=Path, required=True)
    return options


# ---- pack


def pack(asked: argparse.Namespace) -> None:
    config = light_of(asked.start).config
    asked.out.mkdir(parents=True, exist_ok=True)
    for old in asked.out.glob("archive_*.zip"):
        old.unlink()
    archives = Archives(asked.out, int(asked.megabytes * 1e6))
    archives.add("start.safetensors", asked.start.read_bytes())
    if asked.weights:
        encoders = fp16_encoders(asked.weights)
        save_file(encoders, asked.out / "encoders.safetensors")
        archives.add("encoders.safetensors", (asked.out / "encoders.safetensors").read_bytes())
        (asked.out / "encoders.safetensors").unlink()
    for name, content in packed_files(asked, config.short_side):
        archives.add(name, content)
    archives.close()
    sizes = {path.name: path.stat().st_size for path in sorted(asked.out.glob("archive_*.zip"))}
    for name, size in sizes.items():
        print(f"{name}: {size / 1e6:.1f} MB")
    print(f"{len(sizes)} archives, {sum(sizes.values()) / 1e6:.1f} MB, {archives.files} files")


class Archives:
    """Zip files of at most ``limit`` bytes each, filled one after the other."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.file: zipfile.ZipFile | None = None
        self.size, self.number, self.files = 0, 0, 0

    def add(self, name: str, content: bytes) -> None:
        as_it_is = name.endswith((".jpg", ".png", ".webp", ".safetensors"))
        whole = len(content) + 2 * len(name) + 200  # what a zip adds to a file; text becomes smaller
        if whole + 100 > self.limit:
            raise DeixisError(f"{name} holds {len(content)} bytes, an archive at most {self.limit}; raise --megabytes")
        if self.file is None or self.size + whole > self.limit:
            self.close()
            self.file = zipfile.ZipFile(self.folder / f"archive_{self.number}.zip", "w")
            self.size, self.number = 100, self.number + 1
        self.file.writestr(name, content, zipfile.ZIP_STORED if as_it_is else zipfile.ZIP_DEFLATED)
        written = self.file.getinfo(name).compress_size
        self.size, self.files = self.size + whole - len(content) + written, self.files + 1

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def fp16_encoders(weights: Path) -> dict[str, torch.Tensor]:
    """Both published image encoders under light's keys."""
    vit = tiny_vit_state(load_file(weights / "mobile_sam.fp16.safetensors"))
    net = efficient_net_state(load_file(weights / "efficientnet_lite2.fp16.safetensors"))
    both = {f"tiny_vit.{k}": v for k, v in vit.items()} | {f"efficient_net.{k}": v for k, v in net.items()}
    return {k: v.half().contiguous() for k, v in both.items()}


def packed_files(asked: argparse.Namespace, short: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of all files but the weights; nothing that is held out."""
    for path in sorted((asked.data / "sentences").glob("*.json")):
        if path.name != "test.json":
            yield f"data/sentences/{path.name}", path.read_bytes()
    chosen = chosen_pictures(asked)
    for set_name, entries in chosen.items():
        kept = []
        for entry in entries:
            objects = json.loads(objects_of(asked.objects, set_name, entry["image"]).read_text())
            picture, mask = (asked.data / set_name / entry[key] for key in ("image", "mask"))
            content, labels = picture.read_bytes(), mask.read_bytes()
            if min(entry["height"], entry["width"]) > short:
                content, labels = shrink(entry, objects, picture, mask, short)
            kept.append(entry)
            yield f"data/{set_name}/{entry['image']}", content
            yield f"data/{set_name}/{entry['mask']}", labels
            facts = {k: v for k, v in objects.items() if k != "surroundings"}
            yield f"objects/{set_name}/{Path(entry['image']).stem}.json", json.dumps(facts).encode()
        index = json.loads((asked.data / set_name / "index.json").read_text())
        yield f"data/{set_name}/index.json", json.dumps(index | {"images": kept}).encode()
    if asked.pictures:
        return
    for set_name in EXTRAS:
        folder = asked.data / set_name
        if not (folder / "index.json").exists():
            continue
        index = json.loads((folder / "index.json").read_text())
        kept = [e for e in index["images"] if split_of(set_name, e["image"]) != "held_out"]
        yield f"data/{set_name}/index.json", json.dumps(index | {"images": kept}).encode()
        for entry in kept:
            yield f"data/{set_name}/{entry['image']}", (folder / entry["image"]).read_bytes()
        if (folder / "expressions.json").exists():  # those with a held-out picture are left out where they are read
            yield f"data/{set_name}/expressions.json", (folder / "expressions.json").read_bytes()
    films = asked.data / "davis_train"
    if films.is_dir():
        for path in sorted(p for p in films.rglob("*") if p.is_file()):
            if not any(split_of("davis_train", part) == "held_out" for part in path.relative_to(films).parts):
                yield f"data/davis_train/{path.relative_to(films)}", davis_file(path)


def davis_file(path: Path) -> bytes:
    """A file of DAVIS; expressions without those of the held-out films."""
    if path.name != "expressions.json":
        return path.read_bytes()
    entries = json.loads(path.read_text())
    return json.dumps({k: v for k, v in entries.items() if split_of("davis_train", k) != "held_out"}).encode()


def objects_of(objects: Path, set_name: str, image: str) -> Path:
    return objects / set_name / f"{Path(image).stem}.json"


def chosen_pictures(asked: argparse.Namespace) -> dict[str, list[dict]]:
    """The entries of every set that are not held out and have objects; with ``--pictures`` so many in all, one in four
    of the development split, those with written expressions first."""
    written = json.loads((asked.data / "sentences" / "train.json").read_text())
    there = []
    for set_name in VIEW_SETS:
        index = asked.data / set_name / "index.json"
        for entry in json.loads(index.read_text())["images"] if index.exists() else []:
            split = split_of(set_name, entry["image"])
            if split != "held_out" and objects_of(asked.objects, set_name, entry["image"]).exists():
                there.append((split, entry["image"] not in written.get(set_name, {}), set_name, entry))
    if not there:
        raise DeixisError(f"no picture of {asked.data} that is not held out has objects in {asked.objects}")
    if asked.pictures:
        of_development = max(1, asked.pictures // 4)
        several = sorted(there, key=lambda t: t[1])
        there = [t for t in several if t[0] == "development"][:of_development]
        there += [t for t in several if t[0] == "train"][: asked.pictures - len(there)]
    chosen: dict[str, list[dict]] = {}
    for _, _, set_name, entry in there:
        chosen.setdefault(set_name, []).append(entry)
    return chosen


def shrink(entry: dict, objects: dict, picture: Path, mask: Path, short: int) -> tuple[bytes, bytes]:
    """A larger picture and its mask at a short side of ``short``; what is stated of them is changed in place."""
    height, width = entry["height"], entry["width"]
    scale = short / min(height, width)
    size = (round(width * scale), round(height * scale))
    rgb = cv2.resize(cv2.imread(str(picture)), size, interpolation=cv2.INTER_AREA)
    labels = cv2.resize(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), size, interpolation=cv2.INTER_NEAREST)
    entry |= {"width": size[0], "height": size[1]}
    for found in entry["instances"]:
        found |= {"box": [round(n * scale) for n in found["box"]], "area": round(found["area"] * scale**2)}
    objects["size"] = [size[1], size[0]]
    for found in objects["objects"]:
        small = cv2.resize(coco_mask.decode(found["rle"]), size, interpolation=cv2.INTER_NEAREST)
        rle = coco_mask.encode(np.asfortranarray(small))
        found |= {"rle": {"size": rle["size"], "counts": rle["counts"].decode()},
                  "box": [round(n * scale) for n in found["box"]]}  # fmt: skip
    return cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes(), cv2.imencode(".png", labels)[
        1
    ].tobytes()


# ---- unpack


def unpack(asked: argparse.Namespace) -> None:
    """Open the archives that are there and were not opened yet."""
    asked.work.mkdir(parents=True, exist_ok=True)
    for path in sorted(asked.archives.glob("archive_*.zip")):
        done = asked.work / f"{path.stem}.opened"
        if done.exists():
            continue
        with zipfile.ZipFile(path) as archive:
            archive.extractall(asked.work)
        done.touch()
        print(f"opened {path.name}", flush=True)


# ---- train


class Clock:
    """How long each stage has lasted, over all calls; kept in ``WORK/state.json``."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.path, self.began, self.noted = asked.work / "state.json", time.monotonic(), time.monotonic()
        self.state: dict[str, Any] = {"seconds": dict.fromkeys(SHARES, 0.0), "steps": {}, "done": []}
        if self.path.exists():
            self.state = json.loads(self.path.read_text())
        self.stage = next(iter(SHARES))
        self.seconds, self.call = asked.minutes * 60, asked.call_minutes * 60

    def begin(self, stage: str) -> None:
        self.stage, self.noted = stage, time.monotonic()

    @property
    def left(self) -> float:
        """Seconds of the stage's share that are left."""
        return SHARES[self.stage] * self.seconds - self.state["seconds"][self.stage] - (time.monotonic() - self.noted)

    @property
    def left_of_call(self) -> float:
        return self.call - (time.monotonic() - self.began)

    def save(self) -> None:
        now = time.monotonic()
        self.state["seconds"][self.stage] += now - self.noted
        self.noted = now
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.state))
        os.replace(beside, self.path)


LEAST = 5.0  # seconds that are worth beginning something


def train(asked: argparse.Namespace) -> None:
    clock = Clock(asked)
    unpack(asked)
    if not (asked.work / "start.safetensors").exists():
        raise DeixisError(f"{asked.work} holds no start.safetensors; all archives of pack must have come")
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        raise DeixisError("PyTorch finds no GPU here; --device cpu is for trials")
    make = {"proposals": train_proposals, "tokens": train_tokens, "scorer": train_scorer}
    for stage, step in make.items():
        if stage in clock.state["done"]:
            continue
        clock.begin(stage)
        if clock.left_of_call < LEAST or not step(asked, clock):
            break
        clock.state["done"].append(stage)
        clock.save()
        print(f"{stage}: done in {clock.state['seconds'][stage] / 60:.1f} minutes", flush=True)
    hand_over(asked, clock)
    whole = list(make) == clock.state["done"]
    print("the run is whole" if whole else "not whole yet: the same command goes on", flush=True)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def common(asked: argparse.Namespace, seconds: float, steps: int, batch: int) -> dict[str, str]:
    """Settings of both trained stages."""
    workers = asked.workers if asked.workers >= 0 else max(0, cores() - 2)
    return {
        "train.steps": str(steps), "train.batch": str(batch), "train.workers": str(workers), "train.threads": "0",
        "train.warmup_steps": str(min(100, steps // 10)), "train.validate_every": str(max(1, steps // 4)),
        "train.time_limit_minutes": str(max(1.0, seconds) / 60), "train.checkpoint_minutes": "2",
    }  # fmt: skip


def train_proposals(asked: argparse.Namespace, clock: Clock) -> bool:
    """Stage 1: the proposals, and the encoders at a small rate. Whether it is done."""
    model = replace(light_of(asked.work / "start.safetensors").config, train_vision=True)
    batch = asked.batch or (2 if asked.device == "cpu" else 16)
    data = {
        "objects": asked.work / "objects",
        "pictures": asked.work / "data",
        "start": asked.work / "start.safetensors",
    }

    def run(steps: int, seconds: float) -> Run:
        overrides = {"model.train_vision": "true", "model.short_side": str(model.short_side), "train.lr": asked.lr,
                     "data.net_rate": asked.net_rate, "data.validation_views": "80"}  # fmt: skip
        made = light_proposals(data, overrides=overrides | common(asked, seconds, steps, batch))
        return replace(made, system=partial(started, model, asked.work), config=model, export=export_frozen)

    return timed("proposals", run, asked, clock)


def train_scorer(asked: argparse.Namespace, clock: Clock) -> bool:
    """Stage 3: the scorer, on the tokens. Whether it is done."""
    start = asked.work / "proposals" / "model.safetensors"
    model = light_of(start).config

    def run(steps: int, seconds: float) -> Run:
        overrides = common(asked, seconds, steps, 4 if asked.device == "cpu" else 32)
        made = light_scorer({"start": start, "tokens": asked.work / "tokens"}, overrides=overrides)
        return replace(made, system=partial(frozen, model, start), config=model)

    return timed("scorer", run, asked, clock)


def timed(stage: str, run: Callable[[int, float], Run], asked: argparse.Namespace, clock: Clock) -> bool:
    """Train a stage for what is left of its time, or of this call's. Its steps are counted from the pace of the first
    few, so that the schedule of the learning rate ends with the time."""
    if stage not in clock.state["steps"]:
        times = [time.perf_counter()]

        def note(progress: Progress) -> None:
            times.append(time.perf_counter())

        trial = asked.work / f"{stage}_pace"
        shutil.rmtree(trial, ignore_errors=True)
        few = run(PACE_STEPS, min(clock.left / 4, clock.left_of_call))
        train_run(replace(few, validate=None, export=lambda *_: None), trial, device=asked.device, report=note)
        shutil.rmtree(trial, ignore_errors=True)
        lasted = [after - before for before, after in itertools.pairwise(times)]
        pace = statistics.median(lasted[len(lasted) // 2 :])  # the first ones also warm up
        clock.state["steps"][stage] = max(2, int(FULL * clock.left / pace))
        clock.save()
        print(f"{stage}: {pace:.3f} s a step, {clock.state['steps'][stage]} steps", flush=True)
    seconds = min(clock.left, clock.left_of_call)
    made = run(clock.state["steps"][stage], seconds)
    outcome = train_run(made, asked.work / stage, device=asked.device, resume=True)
    clock.save()
    if outcome.stopped.startswith("SIG"):
        hand_over(asked, clock)
        sys.exit(143)
    return outcome.stopped == "finished" or clock.left < LEAST


def train_tokens(asked: argparse.Namespace, clock: Clock) -> bool:
    """Stage 2: tokens made with the new encoders, by several processes. Whether it is done."""
    seconds = min(clock.left, clock.left_of_call)
    count = max(1, min(8, cores() - 1))
    command = [sys.executable, __file__, "tokens", "--work", str(asked.work), "--device", asked.device,
               "--minutes", str(max(seconds, 1) / 60), "--kinds", asked.kinds, "--films", str(asked.films)]  # fmt: skip
    several = [subprocess.Popen([*command, "--share", f"{i}/{count}"]) for i in range(count)]
    codes = [process.wait() for process in several]
    if any(codes):
        raise DeixisError(f"a process that makes tokens ended with {next(c for c in codes if c)}")
    made = sum(1 for _ in (asked.work / "tokens" / "train").rglob("*.safetensors"))
    print(f"tokens: {made} training clips", flush=True)
    return clock.left < LEAST or clock.left_of_call > LEAST  # all kinds came to their end, or the time did


def tokens(asked: argparse.Namespace) -> None:
    """One of the processes of stage 2: a clip of each kind in turn."""
    until = time.monotonic() + asked.minutes * 60
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    system = light_of(asked.work / "proposals" / "model.safetensors").to(asked.device)
    asked.data, asked.objects, asked.features = asked.work / "data", asked.work / "objects", None
    asked.out, asked.first, asked.true_masks_only, asked.views = asked.work / "tokens", 0, False, "0,1,2,3"
    turns: dict[tuple[str, str], Iterator] = {}
    for kind in asked.kinds.split(","):
        needed = NEEDED_SETS.get(kind)
        if needed and not (asked.data / needed).exists():
            print(f"no tokens of {kind}: {needed} was not packed", flush=True)
            continue
        for part in ("train", "development"):
            of_part = argparse.Namespace(**vars(asked) | {"parts": part})
            turns[kind, part] = make_tokens.KINDS[kind](system, of_part)
    done = dict.fromkeys(turns, 0)
    while turns and (time.monotonic() < until or sum(done.values()) < FEW_CLIPS):
        for name in list(turns):
            try:
                next(turns[name])
                done[name] += 1
            except StopIteration:
                del turns[name]
    made = ", ".join(f"{count} of {kind} ({part})" for (kind, part), count in done.items())
    print(f"tokens of process {asked.share}: {made}", flush=True)


def light_of(path: Path) -> Light:
    system = deixis.load(path).eval()
    if not isinstance(system, Light):
        raise DeixisError(f"{path} is a {type(system).__name__}, expected a checkpoint of light")
    return system


def started(model: LightConfig, work: Path) -> Light:
    """The start checkpoint, its encoders as published where they were packed."""
    system = load_into(Light(model), work / "start.safetensors")
    published = work / "encoders.safetensors"
    if published.exists():
        own, given = system.state_dict(), load_file(published)
        for name, value in given.items():
            apart = (own[name].float() - value.float()).norm() / value.float().norm().clamp(min=1e-6)
            if apart > 0.1:
                raise DeixisError(f"the start's {name} is not the published one; pack without --weights")
        system.load_state_dict(given, strict=False)
    return system


def frozen(model: LightConfig, start: Path) -> Light:
    return load_into(Light(model), start)


def export_frozen(system: nn.Module, path: Path) -> None:
    """Write the model as one whose encoders are frozen: so it is used."""
    assert isinstance(system, Light)
    system.config = replace(system.config, train_vision=False)
    export_stage(system, path)


def hand_over(asked: argparse.Namespace, clock: Clock) -> None:
    """Lay the newest model in parts, the state and the curves into ``--out``."""
    asked.out.mkdir(parents=True, exist_ok=True)
    clock.save()
    shutil.copy(clock.path, asked.out / "state.json")
    for old in asked.out.glob("model.*"):
        old.unlink()
    for stage in ("scorer", "proposals"):
        metrics = asked.work / stage / "metrics.jsonl"
        if metrics.exists():
            shutil.copy(metrics, asked.out / f"{stage}.jsonl")
    stages = [s for s in ("scorer", "proposals") if (asked.work / s / "model.safetensors").exists()]
    if stages:
        content = (asked.work / stages[0] / "model.safetensors").read_bytes()
        for number in range(math.ceil(len(content) / PART)):
            (asked.out / f"model.{number}").write_bytes(content[number * PART : (number + 1) * PART])
        print(f"{stages[0]}: {len(content) / 1e6:.1f} MB in {asked.out}, {digest(content)}", flush=True)


def digest(content: bytes) -> str:
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


# ---- fetch


def fetch(asked: argparse.Namespace) -> None:
    parts = sorted(asked.parts.glob("model.[0-9]*"), key=lambda path: int(path.suffix[1:]))
    if not parts:
        raise DeixisError(f"{asked.parts} holds no part of a model (model.0, model.1, ...)")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    beside = asked.out.with_name(f"{asked.out.stem}.joined.safetensors")
    beside.write_bytes(b"".join(path.read_bytes() for path in parts))
    system = light_of(beside)
    if asked.data:
        system.config = calibrated(str(asked.data), system)
    export_frozen(system, asked.out)
    beside.unlink()
    answer = answers_of(light_of(asked.out))
    content = asked.out.read_bytes()
    print(f"{asked.out}: {len(content) / 1e6:.1f} MB, {digest(content)}; presence of noise {answer:.3f}")
    print("presence is calibrated" if asked.data else "presence is that of the start: give --data to calibrate it")


def answers_of(system: Light) -> float:
    """The presence of "a dog" in noise: that the model answers, and with a finite number."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 2, 3, system.config.short_side, system.config.short_side, generator=generator)
    with torch.inference_mode():
        maps = system.encode(frames, torch.zeros(1, 2, *frames.shape[-2:], dtype=torch.bool))
        presence = system.decode(maps, [deixis.Expression("a dog")]).presence
    assert presence is not None
    if not torch.isfinite(presence).all():
        raise DeixisError("the model's answer is not finite: it must not be shipped")
    return float(presence.sigmoid())


if __name__ == "__main__":
    main()
