"""Twenty-four tiny films with their manifest, workers that die, and an engine in this process: for tests of batches."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from typer.testing import CliRunner

from deixis.batch.manifest import BatchJob, Options
from deixis.batch.run import BatchPlan, plan
from deixis.batch.storage import RESULT, RESULTS
from deixis.batch.worker import FilmWorker
from deixis.cli import app
from deixis.types import MaskTrack
from deixis.video import Video
from deixis.writers.output import Output
from helpers.films import COLOURS, moving, write_film, write_folder
from helpers.present import present_model

SHAPE = (32, 48)
COUNT = 24
SENTENCES = (["a red square"], ["the green one", "something blue"], ["a dog", "a red thing on the left"])
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"every": 2}, {"as": "png,rle"}, {"start": 0.05, "as": "rle,overlay"}, {"size": 48}, {"threshold": 0.7},
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A manifest on disk. rows: as JSONL has them.  truth: by film, the files that `deixis segment` makes."""

    manifest: Path
    rows: list[dict[str, Any]]
    truth: dict[str, dict[str, bytes]]

    def planned(self, out: Path | str, **more: Any) -> BatchPlan:
        return plan_of(self.manifest, out, **more)

    def wrong(self, out: Path) -> list[str]:
        """What in OUT is not as `deixis segment` made it, for every film whose folder holds a result."""
        found = []
        for line in results(out):
            if files(out / line["folder"]) != self.truth[line["film"]]:
                found.append(line["film"])
        return found


def always() -> list[str]:
    """Options of all runs; the model is one for which everything is there, so that masks are not empty."""
    return ["--as", "rle", "--model", present_model()]


def plan_of(manifest: Path | str, out: Path | str, **more: Any) -> BatchPlan:
    defaults = Options(formats=("rle",))
    arguments = {"workers": 2, "threads": 1, "model": present_model(), "defaults": defaults}
    return plan(str(manifest), str(out), **(arguments | more))


def make_films(folder: Path) -> Listed:
    """24 films of 3 frames, every sixth a folder of pictures; asked 1 or 2 sentences, with options of their own."""
    rows, truth = [], {}
    for i in range(COUNT):
        colours = list(COLOURS)[i % 3 :][:2]
        pictures = moving(3 + i % 2, SHAPE, colours)
        pictures[0][i % SHAPE[0], :8] = 255  # no two alike
        film = f"films/{i:02d}.mp4" if i % 6 else f"films/{i:02d}"
        (folder / "films").mkdir(exist_ok=True)
        if i % 6:
            write_film(folder / film, pictures)
        else:
            write_folder(folder / film, pictures)
        rows.append({"film": film, "sentences": SENTENCES[i % 3], "options": OPTIONS[i % 6]})
        truth[film] = truth_of(folder / film, rows[-1], folder / "truth" / f"{i:02d}")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Listed(manifest=manifest, rows=rows, truth=truth)


def truth_of(film: Path, row: dict[str, Any], out: Path) -> dict[str, bytes]:
    """The files that `deixis segment` makes of a row."""
    options = [text for name, value in row["options"].items() for text in (f"--{name}", str(value))]
    done = CliRunner().invoke(app, ["segment", str(film), *row["sentences"], "-o", str(out), *always(), *options])
    assert done.exit_code == 0, done.output
    return files(out)


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, without a batch's own result.json."""
    found = {p.relative_to(folder).as_posix(): bytes_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    found.pop(RESULT, None)
    return found


def bytes_of(path: Path) -> bytes:
    """A file's bytes; of an overlay the times and sizes of its frames: once in some dozens of runs its bytes are
    others, and why is not known. Masks, RLE and contact sheets are always the same."""
    if path.name != "overlay.mp4":
        return path.read_bytes()
    with av.open(str(path)) as film:
        return repr([(frame.pts, frame.height, frame.width) for frame in film.decode(video=0)]).encode()


def results(out: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl that are done."""
    lines = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    return [line for line in lines if line["status"] == "done"]


def state(out: Path) -> dict[str, str]:
    """Everything in OUT, by a hash of its bytes; of seconds and the number of workers nothing is said."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            data = bytes_of(path)
            if path.name in (RESULT, RESULTS):
                lines = [json.loads(line) for line in data.decode().splitlines()]
                for line in lines:
                    if "overlay.mp4" in line.get("outputs", {}):
                        line["outputs"]["overlay.mp4"] = 0  # its size, see bytes_of
                data = json.dumps([{**line, "seconds": 0, "workers": 0} for line in lines]).encode()
            found[path.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


class Mortal(FilmWorker):
    """Killed while it writes films that are named for it: ``once`` the first time, ``deadly`` every time."""

    def make(self, job: BatchJob, film: Video, output: Output) -> list[MaskTrack]:
        tracks = super().make(job, film, output)
        killed = Path(job.place).with_name(f"killed-{Path(job.film).name}")
        if "deadly" in job.film or ("once" in job.film and not killed.exists()):
            with open(killed, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return tracks


class Here:
    """An engine in this process, so that memory:// can be reached."""

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def allocate(self, device: str, workers: int | None, threads: int | None, items: int) -> tuple[int, int]:
        return 1, 1

    def results(
        self, make: Callable[[int], Callable[[Any], Any]], items: Sequence[Any], **more: Any
    ) -> Iterator[tuple[int, Any]]:
        work = make(0)
        for index, item in enumerate(items):
            yield index, work(item)


def noise(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path
