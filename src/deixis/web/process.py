"""The worker's end: tasks come through a pipe, progress and results go back."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import signal
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from deixis import weights
from deixis.devices import run_facts, run_words
from deixis.inference import remarks_on, segment
from deixis.types import DeixisError, MaskTrack, Rle, RleMasks
from deixis.video import PICTURES, Video
from deixis.web.jobs import FOLDERS, Task
from deixis.web.timeline import row, timeline
from deixis.weights import describe
from deixis.writers import write
from deixis.writers.output import Output
from deixis.writers.overlay import Overlay
from deixis.writers.painter import draw

log = logging.getLogger(__name__)

REPORTS = 0.2  # seconds between two reports of progress (our choice)
SELF_CONTAINED = (  # FFmpeg's demuxers that never open a second file: no playlists, no scripts, no lists of pictures
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,ogg,mxf,gif,ivf,h264,hevc,m4v,nut,wtv,"
    "rm,dv,obu,apng,webp_pipe,webp_anim,png_pipe,jpeg_pipe"
)


class Stopped(Exception):
    """Raised in the worker where a cancelled job shall end."""


def send(pipe: Connection, facts: Mapping[str, Any]) -> None:
    pipe.send_bytes(json.dumps(facts).encode())


def receive(pipe: Connection) -> dict[str, Any]:
    return json.loads(pipe.recv_bytes())


# --- the worker's end -------------------------------------------------------------------------------------------------


def work(pipe: Connection, stop: Event) -> None:
    """Do tasks until the server is gone. What a visitor caused is reported; on anything else the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    logging.basicConfig(level=logging.ERROR, format="deixis serve: %(message)s")
    log.setLevel(logging.INFO)
    model: tuple[str, Any] = ("", None)
    try:
        while True:
            request = receive(pipe)
            try:
                if model[0] != request["model"]:
                    model = (request["model"], load_model(request["model"]))
                    facts = run_facts(model[1], request["device"], request["precision"])
                    log.info("%s", run_words(facts, describe(request["model"])["name"]))
                if "film" not in request:
                    continue
                request |= {"sentences": tuple(request["sentences"]), "formats": tuple(request["formats"])}
                task = Task(**request)
                send(pipe, run_task(task, model[1], Reporter(pipe), stop.is_set))
            except Stopped:
                send(pipe, {"state": "stopped"})
            except DeixisError as error:
                if "film" in request:
                    send(pipe, {"state": "failed", "message": scrub_paths(str(error), Task(**request))})
            except ConnectionError:
                raise
            except (OSError, MemoryError, RuntimeError) as error:  # the disk, the memory, the device: of the server
                log.error("%s", " ".join(f"{type(error).__name__}: {error}".split()))
                ends = not isinstance(error, OSError)  # the memory, or the device's, may be in no good state
                model = ("", None)
                if "film" in request:
                    send(pipe, {"state": "failed", "message": of_the_server(error), "ends": ends})
                    if ends:
                        return
    except (EOFError, ConnectionError):
        return


def of_the_server(error: BaseException) -> str:
    """What a visitor reads of an error that the visitor did not cause; the log has it whole."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the server's disk is full; try again later, or write to those who run this page"
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "the server has too little memory for this film; give a smaller or shorter one"
    return "the work broke off on the server; try again, or write to those who run this page"


def load_model(model: str) -> Any:
    """A model. What is wrong with it is for the owner's log, not for a visitor."""
    try:
        return weights.load(model)
    except DeixisError as error:
        log.error("%s", error)
        raise DeixisError("this model cannot be loaded; choose another, or write to those who run this page") from error


class Reporter:
    """Reports to the server how far a stage is, a few times a second."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._sent, self._stage = pipe, 0.0, ""

    def __call__(self, stage: str, frames: int, of: int) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._sent > REPORTS or frames == of:
            self._stage, self._sent = stage, now
            send(self._pipe, {"stage": stage, "frames": frames, "of": of})


def run_task(
    task: Task, model: Any, report: Callable[[str, int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Do one task: segment, draw, pack. Returns what the page shows; the results lie in ``task.out``.

    Raises Stopped soon after ``stop()`` is True, and DeixisError for what the visitor can set right.
    """
    plays = check_container(Path(task.film))
    check_seconds(Video(task.film, max_pixels=task.pixels), task.seconds)
    film = Video(task.film, end=task.seconds, max_pixels=task.pixels)  # its header may lie about the seconds
    of = film.length or 0

    def check() -> None:
        if stop():
            raise Stopped

    def segmented(frames: int) -> None:
        check()
        report("looking", frames, of)

    with Output(Path(task.out)) as output:
        report("looking", 0, of)
        tracks = segment(
            film, task.sentences, model=model, device=task.device, precision=task.precision, folder=output.scratch,
            progress=segmented,
        )  # fmt: skip
        check()
        count = len(tracks[0])
        passes = 1 + (plays is None)

        def drawn(before: int) -> Callable[[int], None]:
            def show(frames: int) -> None:
                check()
                report("drawing", before * count + frames, passes * count)

            return show

        watched = [interruptible(track, check) for track in tracks]
        report("drawing", 0, passes * count)
        run = run_facts(model, task.device, task.precision)
        write(output, film, watched, task.formats, model={**describe(task.model), **run}, progress=drawn(0))
        if plays is None:  # a browser may not play it as it is
            with output.item("original.mp4") as path:
                draw(film, tracks, [PlainVideo(path, film, [])], drawn(1))
        gap = 1 / film.rate
        length = tracks[0].times[-1] + gap
        rows = [row(track, i, gap) for i, track in enumerate(tracks)]
        with output.item("timeline.svg") as path:
            path.write_text(timeline(rows, length), encoding="utf-8")
    zip_folders(Path(task.out), check)
    if plays is not None:
        os.link(task.film, Path(task.out) / f"original.{plays}")
    warnings = [scrub_paths(text, task) for text in [*remarks_on(task.sentences, task.model), *film.warnings]]
    return {"state": "done", "rows": rows, "length": length, "warnings": warnings, "run": run}


class PlainVideo(Overlay):
    """The film as it is, in a form that browsers play."""

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        super().add(index, seconds, picture, [])


def check_container(path: Path) -> str | None:
    """Refuse what would make FFmpeg open other files of this machine (playlists, lists of files).

    Returns mp4 or webm where a browser plays the film as it is, None where it may not. Raises DeixisError.
    """
    import av
    from av.error import FFmpegError

    if path.suffix.lower() in PICTURES:
        return None  # FFmpeg does not open it
    options = {"format_whitelist": SELF_CONTAINED, "protocol_whitelist": "file"}
    try:
        with av.open(str(path), options=options) as container:
            kinds = container.format.name.split(",")
            stream = next(iter(container.streams.video), None)
            codec = stream.codec_context if stream is not None else None
            if codec is None or codec.pix_fmt not in ("yuv420p", "yuvj420p"):
                return None
            if "mp4" in kinds and codec.name in ("h264", "libx264"):
                return "mp4"
            return "webm" if "webm" in kinds and codec.name in ("vp8", "libvpx", "vp9", "libvpx-vp9") else None
    except (FFmpegError, ValueError) as error:
        if path.stat().st_size == 0:
            raise DeixisError(f"{path} is not a film: the file is empty") from error
        raise DeixisError(f"{path} is not a film that can be decoded here; give an MP4, MOV, MKV or WebM") from error


def check_seconds(film: Any, limit: float) -> None:
    """Raise DeixisError where a film states more seconds than the limit (a frame more is forgiven)."""
    seconds = (film.length or 0) / film.rate
    if seconds > limit + 1 / film.rate:
        raise DeixisError(f"{film.path} lasts {seconds:.1f} s, more than the limit of {limit:g} s; cut it")


def scrub_paths(message: str, task: Task) -> str:
    """A message without paths of this machine, and without advice that only its owner can take."""
    message = message.replace(task.film, task.name).replace(task.out, "the results")
    message = message.replace(str(Path(task.out).parent), "the results").replace(tempfile.gettempdir(), "")
    return " ".join(message.partition("; if you trust the file")[0].split())


class InterruptibleRles(Sequence[Rle]):
    """RLEs that can only be read as long as ``check`` does not raise."""

    def __init__(self, rles: Sequence[Rle], check: Callable[[], None]) -> None:
        self._rles, self._check = rles, check

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, index: Any) -> Any:
        self._check()
        return self._rles[index]


def interruptible(track: MaskTrack, check: Callable[[], None]) -> MaskTrack:
    """The same track, whose masks call ``check`` whenever one is read: every writer can then be stopped."""
    return dataclasses.replace(track, masks=RleMasks(InterruptibleRles(track.masks.rles, check), track.masks.size))


def zip_folders(folder: Path, check: Callable[[], None]) -> None:
    """Turn the folders among the results into zips. What is in them is compressed already."""
    for name in FOLDERS:
        if (folder / name).is_dir():
            with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_STORED) as archive:
                for path in sorted((folder / name).rglob("*")):
                    check()
                    if path.is_file():
                        archive.write(path, path.relative_to(folder))
            shutil.rmtree(folder / name)
