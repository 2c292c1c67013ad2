"""kill -9 at random moments of segment, train, predict, world and pack: is a half result ever taken for a whole one?

    python bench/kill.py --moments 40 --seed 0 --json kill.json     # about five minutes on one core
    python bench/kill.py --table kill.json                          # the table of docs/reliability.md

Each command first runs unbroken, in a child forked from a process that has already imported; its processor time is
taken. Then, once for every moment, the same in a fresh folder is killed when it has used a random share of that time
(the shares are spread over the run, drawn within each stretch), what it left is looked at, and the command is given
again (train with --resume). In the end every byte must be that of the unbroken run. Tiny models, seeds fixed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import av
import cv2
import numpy as np
import torch
from torch import Tensor, nn

from deixis import systems
from deixis.benchmarks import open_benchmark, write_fixture
from deixis.benchmarks.results import due_files, marker_path
from deixis.cli import main as deixis_main
from deixis.out_folder import JOURNAL
from deixis.training.checkpoint import load_checkpoint
from deixis.training.optimizer import parameter_groups
from deixis.training.recipes import RECIPES
from deixis.training.run import Run, TrainConfig

# --- a training that takes no time ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 64


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.first, self.last = nn.Linear(4, config.width), nn.Linear(config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.dropout(torch.tanh(self.first(x)), 0.5, self.training))


def sample(index: int) -> Tensor:
    x = torch.randn(4)  # the feed seeds the generators by the index
    return torch.cat([x, x.sum(0, keepdim=True) + 0.0 * index])


def losses(system: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    return {"square": (system(batch[:, :4]) - batch[:, 4:]).square().mean()}


def toy(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """A checkpoint after every step, so that many kills fall on one being written."""
    return Run(
        name="toy",
        system=lambda: Toy(ToyConfig()),
        samples=sample,
        collate=torch.stack,  # type: ignore[arg-type]
        losses=losses,
        groups=lambda system: parameter_groups(system),
        train=TrainConfig(
            steps=10, batch=4, global_batch=8, lr=1e-2, warmup_steps=2, ema=0.9, checkpoint_minutes=0, log_every=1
        ),
        config=ToyConfig(),
    )


# --- the three commands -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Command:
    """argv: the words for an OUT.  halves: what is wrong with what a kill left, in words, given it and an unbroken OUT.
    compared: the files of OUT that must have the same bytes in the end.
    """

    argv: Callable[[Path], list[str]]
    halves: Callable[[Path, Path], list[str]]
    compared: Callable[[Path], dict[str, bytes]]
    prepare: Callable[[Path], None] = lambda out: None  # what lies there before
    whole: Callable[[Path], bool] = lambda out: False  # whether the command would refuse, for everything is there
    refuses: bool = False  # once the moves of a run that was cut off are done: then everything is there


def all_files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def shown(path: Path) -> bytes:
    """What a film shows, for what x264 packs it into is x264's own affair: frames and sizes."""
    with av.open(str(path)) as film:
        return repr([(frame.height, frame.width) for frame in film.decode(video=0)]).encode()


def with_films_as_shown(out: Path) -> dict[str, bytes]:
    """The bytes of every file, except of the overlay."""
    return all_files(out) | {"overlay.mp4": shown(out / "overlay.mp4")}


def segment_command(folder: Path) -> Command:
    film = folder / "film.mp4"
    with av.open(str(film), "w") as container:
        stream: Any = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(24):
            noise = rng.integers(0, 255, (64, 96, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    words = ["a dog", "the red square", "the bench"]

    def halves(out: Path, unbroken: Path) -> list[str]:
        if not out.exists():
            return []
        whole = with_films_as_shown(out) == with_films_as_shown(unbroken)
        return [] if whole else [f"OUT holds {sorted(all_files(out))}"]

    return Command(
        whole=lambda out: out.exists(),
        argv=lambda out: ["segment", str(film), *words, "-o", str(out), "--model", "light_debug", "--size", "32",
                          "--threshold", "0.01", "--device", "cpu", "--as", "overlay,png,rle,matte"],
        halves=halves,
        compared=with_films_as_shown,
    )  # fmt: skip


OLD = {"masks.json": b"old", "masks/00_old/00000.png": b"old"}


def segment_inside_command(folder: Path) -> Command:
    """``segment`` into an OUT that holds older results: it is not replaced but filled, item by item."""
    plain = segment_command(folder)

    def prepare(out: Path) -> None:
        for name, data in OLD.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)

    def visible(out: Path) -> dict[str, bytes]:
        shown = {name: data for name, data in all_files(out).items() if not name.startswith(".deixis-")}
        return shown | ({"overlay.mp4": b""} if "overlay.mp4" in shown else {})

    def halves(out: Path, unbroken: Path) -> list[str]:
        if (out / JOURNAL).exists():
            return []  # it says that it is incomplete; the next run completes it
        whole = visible(out) in (OLD, visible(unbroken))
        return [] if whole else [f"without a journal, OUT holds {sorted(visible(out))}"]

    return Command(argv=lambda out: [*plain.argv(out), "--overwrite"], halves=halves, compared=visible, prepare=prepare)


def train_command(folder: Path) -> Command:
    def weights_of(out: Path) -> dict[str, bytes]:
        tensors, facts = load_checkpoint(out / "last.safetensors")
        last = {f"last/{name}": tensor.numpy().tobytes() for name, tensor in tensors.items()}
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        lines = [{k: v for k, v in line.items() if k in ("kind", "step", "losses", "lr")} for line in lines]
        return {
            "model.safetensors": (out / "model.safetensors").read_bytes(), "step": str(facts["step"]).encode(),
            "metrics": json.dumps(lines).encode(), **last,
        }  # fmt: skip

    def halves(out: Path, unbroken: Path) -> list[str]:
        wrong = []
        model, last = out / "model.safetensors", out / "last.safetensors"
        if model.exists() and model.read_bytes() != (unbroken / "model.safetensors").read_bytes():
            wrong.append("model.safetensors is not the whole one")
        if last.exists():
            load_checkpoint(last)  # raises for what is not whole
        return wrong

    return Command(
        argv=lambda out: ["train", "toy", "-o", str(out), "--resume", "--device", "cpu"],
        halves=halves, compared=weights_of,
    )  # fmt: skip


def predict_command(folder: Path) -> Command:
    root = folder / "mevis"
    write_fixture("mevis", root)
    benchmark = open_benchmark("mevis", root)

    def halves(out: Path, unbroken: Path) -> list[str]:
        wrong = []
        for one in benchmark.samples:  # finished is what has a marker
            if marker_path(out, one).exists():
                for path in [marker_path(out, one), *(out / name for name, _ in due_files(benchmark, [one]))]:
                    whole = unbroken / path.relative_to(out)
                    if not path.exists() or path.read_bytes() != whole.read_bytes():
                        wrong.append(f"{path.relative_to(out)} is said to be finished and is not")
        return wrong

    return Command(
        argv=lambda out: ["predict", "mevis", str(root), "-o", str(out), "--model", "light_debug", "--device", "cpu"],
        halves=halves, compared=all_files,
    )  # fmt: skip


def world_command(folder: Path) -> Command:
    def halves(out: Path, unbroken: Path) -> list[str]:
        if not out.exists() or (out / JOURNAL).exists():
            return []
        found = visible(out)
        return [] if found in ({}, visible(unbroken)) else [f"without a journal, OUT holds {sorted(found)}"]

    def visible(out: Path) -> dict[str, bytes]:
        return {name: data for name, data in all_files(out).items() if not name.startswith(".deixis-")}

    return Command(
        argv=lambda out: ["world", str(out), "--films", "6", "--frames", "4", "--size", "48x64"],
        halves=halves, compared=visible, whole=lambda out: bool(visible(out)) and not (out / JOURNAL).exists(),
        refuses=True,
    )  # fmt: skip


def pack_command(folder: Path) -> Command:
    """``pack`` over an older zip, in a folder that exists."""
    root, results = folder / "mevis", folder / "results"
    write_fixture("mevis", root)
    words = ["predict", "mevis", str(root), "-o", str(results), "--model", "light_debug", "--device", "cpu"]
    temp = folder / "temp"
    temp.mkdir()
    to_the_end(words, temp)

    def prepare(out: Path) -> None:
        out.mkdir()
        (out / "sub.zip").write_bytes(b"old")

    def zipped(out: Path) -> dict[str, bytes]:
        return {"sub.zip": (out / "sub.zip").read_bytes()}

    def halves(out: Path, unbroken: Path) -> list[str]:
        return [] if zipped(out) in ({"sub.zip": b"old"}, zipped(unbroken)) else ["sub.zip is neither old nor new"]

    return Command(
        argv=lambda out: ["pack", "mevis", str(results), "-o", str(out / "sub.zip")],
        halves=halves, compared=zipped, prepare=prepare,
    )  # fmt: skip


def inside(make: Callable[[Path], Command]) -> Callable[[Path], Command]:
    """The same command into an empty OUT that exists, as a mounted disk does."""
    return lambda folder: replace(make(folder), prepare=lambda out: out.mkdir())


COMMANDS = {
    "segment": segment_command, "segment_inside": segment_inside_command, "train": train_command,
    "train_inside": inside(train_command), "predict": predict_command, "predict_inside": inside(predict_command),
    "world": world_command, "world_inside": inside(world_command), "pack_inside": pack_command,
}  # fmt: skip


# --- killing ----------------------------------------------------------------------------------------------------------


def start(argv: Sequence[str], temp: Path) -> int:
    """The command in a forked child; its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(os.open(temp / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        tempfile.tempdir = str(temp)
        sys.argv = ["deixis", *argv]
        deixis_main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def used(child: int) -> float:
    """Processor time of a child and its threads, seconds, to the microsecond; what ended threads used is left out."""
    total = 0
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{child}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{child}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def ended(child: int, argv: Sequence[str], temp: Path, may_refuse: bool = False) -> bool:
    """Whether it has ended by itself. RuntimeError unless with success, or, where it may, with a refusal."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done and status and not (may_refuse and os.waitstatus_to_exitcode(status) == 2):
        raise RuntimeError(f"{' '.join(argv)} ended with {status}: {(temp / 'stderr').read_text()[-2000:]}")
    return bool(done)


def to_the_end(argv: Sequence[str], temp: Path, may_refuse: bool = False) -> float:
    """Run it unbroken; the processor time it took. RuntimeError unless it succeeds, or refuses where it may."""
    child, most = start(argv, temp), 0.0
    while True:
        most = max(most, used(child))
        if ended(child, argv, temp, may_refuse):
            return most
        time.sleep(0.001)


def kill_at(argv: Sequence[str], temp: Path, moment: float) -> bool:
    """Kill it when it has used ``moment`` seconds of processor time; whether it was still running."""
    child = start(argv, temp)
    while used(child) < moment:
        if ended(child, argv, temp):
            return False
        time.sleep(0.0002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def trial(name: str, moments: int, seed: int, root: Path) -> list[dict[str, Any]]:
    """One command, killed ``moments`` times, each time in a fresh folder."""
    folder, temp = root / name, root / f"{name}-temp"
    folder.mkdir()
    temp.mkdir()
    command, r = COMMANDS[name](folder), Random(f"{seed}:{name}")
    unbroken = folder / "unbroken" / "out"
    unbroken.parent.mkdir()
    command.prepare(unbroken)
    seconds = to_the_end(command.argv(unbroken), temp)
    second = folder / "second" / "out"  # the first run may have filled caches, and taken longer than those that follow
    second.parent.mkdir()
    command.prepare(second)
    seconds = min(seconds, to_the_end(command.argv(second), temp))
    wanted = command.compared(unbroken)
    trials = []
    for number in range(moments):
        share = (number + r.random()) / moments
        out = folder / str(number) / "out"
        out.parent.mkdir()
        command.prepare(out)
        killed = kill_at(command.argv(out), temp, share * seconds)
        left = sorted(p.name for p in out.parent.iterdir()) if out.parent.exists() else []
        wrong = command.halves(out, unbroken)
        again = not command.whole(out)
        if again:
            to_the_end(command.argv(out), temp, may_refuse=command.refuses and (out / JOURNAL).exists())
        found = command.compared(out)
        differ = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        debris = [p for p in all_files(out) if p.endswith((".half", ".part"))] if name[:5] in ("train", "predi") else []
        trials.append(
            {"share": round(share, 4), "killed": killed, "left": left, "wrong": wrong, "differ": differ,
             "debris": debris}
        )  # fmt: skip
        if wrong or differ or debris:
            print(f"{name} at {share:.3f}: {wrong[:3]} {differ[:3]} {debris[:3]}", flush=True)
        shutil.rmtree(out.parent)
        for stray in temp.iterdir():
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    return trials


def table(found: dict[str, Any]) -> str:
    lines = [
        f"`{found['command']}`, commit {found['commit']}, seed {found['seed']}, Python {found['python']}, "
        f"torch {found['torch']}, {found['minutes']} minutes:", "",
        "| command | moments | killed while it ran | left no OUT | a half taken for a whole | other bytes at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, trials in found["commands"].items():
        counts = Counter(
            killed=sum(t["killed"] for t in trials), nothing=sum("out" not in t["left"] for t in trials),
            wrong=sum(bool(t["wrong"]) for t in trials), differ=sum(bool(t["differ"] or t["debris"]) for t in trials),
        )  # fmt: skip
        row = [len(trials), counts["killed"], counts["nothing"], counts["wrong"], counts["differ"]]
        lines.append(f"| {name} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=40, help="for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    chosen = parser.parse_args()
    if chosen.table:
        print(table(json.loads(chosen.table.read_text())))
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    systems.SYSTEMS["toy"] = (Toy, ToyConfig)
    RECIPES["toy"] = toy
    for module in ("deixis.predict", "deixis.inference", "deixis.writers", "matplotlib.figure"):
        with contextlib.suppress(ImportError):
            __import__(module)  # so that a child need not
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="deixis-kill-") as root:
        trials = {n: trial(n, chosen.moments, chosen.seed, Path(root)) for n in chosen.commands.split(",")}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    found = {
        "command": " ".join(["python", "bench/kill.py", *sys.argv[1:]]), "commit": commit.stdout.strip(),
        "seed": chosen.seed, "python": platform.python_version(), "torch": torch.__version__,
        "minutes": round((time.perf_counter() - began) / 60, 1), "commands": trials,
    }  # fmt: skip
    print(table(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
