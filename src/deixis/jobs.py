"""One queue of jobs for one model: films and sentences of many visitors in, a folder of results each out, in turn.

The work is done in a process of its own (``work``), so that a cancel really stops it, a film that brings a decoder
down takes no server with it, and the page stays quick. Processes speak JSON. N sentences, T frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from deixis.types import DeixisError, MaskTrack, Rle, RleMasks
from deixis.writers import COLOURS, FORMATS, Overlay

log = logging.getLogger(__name__)

MARK = ".deixis-serve"  # lies in a folder that may be emptied, and is locked by the server that uses it
GRACE = 5.0  # seconds that a cancelled job has to stop by itself, before its process is ended (our choice)
REPORTS = 0.2  # seconds between two reports of progress (our choice)
SELF_CONTAINED = (  # FFmpeg's demuxers that never open a second file: no playlists, no scripts, no lists of pictures
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,ogg,mxf,gif,ivf,h264,hevc,m4v,nut,wtv,"
    "rm,dv,obu,apng,webp_pipe,webp_anim,png_pipe,jpeg_pipe"
)
FILES = {  # what a job may leave, by name, and what a person calls it
    "overlay.mp4": "Overlay film",
    "masks.json": "Masks, RLE",
    "masks.zip": "Masks, PNG",
    "matte.zip": "Matte films",
    "contact_sheet.png": "Contact sheet",
    "timeline.svg": "Timeline",
    "original.mp4": "The film",
    "original.webm": "The film",
}
SHOWN_ONLY = ("original.mp4", "original.webm")  # the visitor's own film, for the player; no download


class Stopped(Exception):
    """Raised in the worker where a cancelled job shall end."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one visitor may ask of the server. All numbers are our choice, for a small machine."""

    bytes: int = 200_000_000  # of one film
    pixels: int = 10_000_000  # of one frame; 4K film holds 8.8 million
    seconds: float = 120.0  # of one film
    sentences: int = 8  # of one job
    jobs: int = 8  # that wait, besides the one at work
    work: float = 1800.0  # seconds that one job may take, before it is ended
    keep: float = 1800.0  # seconds that films and results stay after a job's end
    room: int = 10_000_000_000  # bytes of all films and results together

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            least = 0 if item.name in ("jobs", "keep") else 1
            if not value >= least:
                raise DeixisError(f"the limit of {item.name} must be {least} or more, got {value}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the worker is told. film, out: paths.  name: the film's, as the visitor knows it."""

    film: str
    name: str
    sentences: tuple[str, ...]
    model: str
    formats: tuple[str, ...]
    out: str
    pixels: int
    seconds: float
    device: str = "auto"
    precision: str = "auto"


@dataclass(eq=False)
class Job:
    """One film and its sentences, from the queue to its results.

    state: waiting, working, done, stopped or failed.  stage: looking, drawing.  frames, of: how far that stage is
    (of: 0 where the film does not say).  message: why it failed, one line.  rows: one dict a sentence, see ``row``.
    files: name -> path.
    """

    token: str
    owner: str
    task: Task
    state: str = "waiting"
    stage: str = "starting"
    frames: int = 0
    of: int = 0
    stage_began: float = 0.0
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    length: float = 0.0  # seconds of the film
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    cancelled: bool = False
    ended: float = 0.0

    @property
    def over(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def seconds_left(self) -> float | None:
        """Of the stage that is under way, at its speed so far; None while nothing can be said."""
        if not self.frames or not self.of:
            return None
        return (time.monotonic() - self.stage_began) / self.frames * max(0, self.of - self.frames)


class Queue:
    """Jobs wait in one line for one worker process; ``folder`` holds what visitors brought and got.

    models: names that may be asked for, and the name or checkpoint file behind each.
    Every public function may be called from any thread. Use as a context: at its end the folder is emptied.
    """

    def __init__(
        self,
        folder: Path,
        models: Mapping[str, str],
        limits: Limits | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        self.models, self.limits = dict(models), limits or Limits()
        self.device, self.precision = device, precision
        self.folder = folder
        self.uploads, self.results = folder / "uploads", folder / "results"
        self.jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._working: Job | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._worker: Worker | None = None

    def __enter__(self) -> Queue:
        self._lock = claim(self.folder)
        self.folder = self.folder.resolve()
        self.uploads, self.results = self.folder / "uploads", self.folder / "results"
        for place in (self.uploads, self.results):
            place.mkdir(mode=0o700)
        self._threads = [
            threading.Thread(target=self._serve, name="deixis-jobs", daemon=True),
            threading.Thread(target=self._sweep_now_and_then, name="deixis-sweep", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            for job in (*self._waiting, *([self._working] if self._working else [])):
                job.cancelled = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(GRACE + 10)
        if self._worker is not None:
            self._worker.end()
        empty(self.folder)
        self._lock.close()

    def submit(self, film: Path, text: str, model: str, formats: Sequence[str], owner: str = "") -> Job:
        """Put a job at the end of the line. text: one sentence a line.  Raises DeixisError beyond a limit."""
        sentences = self.check(film, text, model, formats)
        token = secrets.token_urlsafe(16)
        task = Task(
            film=str(film), name=film.name, sentences=sentences, model=self.models[model], formats=tuple(formats),
            out=str(self.results / token), pixels=self.limits.pixels, seconds=self.limits.seconds,
            device=self.device, precision=self.precision,
        )  # fmt: skip
        job = Job(token, owner, task)
        with self._changed:
            if self._closing:
                raise DeixisError("the server is about to end; try again later")
            if len(self._waiting) >= self.limits.jobs + (self._working is None):
                raise DeixisError(f"the queue is full ({len(self._waiting)} waiting); try again later")
            self.jobs[token] = job
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def check(self, film: Path, text: str, model: str, formats: Sequence[str]) -> tuple[str, ...]:
        """The sentences of ``text``. Raises DeixisError for whatever can be refused before the film is opened."""
        from deixis.segment import as_expressions

        if model not in self.models:
            raise DeixisError(f"unknown model {model[:80]!r}; expected one of {', '.join(self.models)}")
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
            raise DeixisError(f"unknown format {str((unknown or [''])[0])[:80]!r}; expected {', '.join(FORMATS)}")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise DeixisError("no sentence is given; write what to look for, a line each")
        if len(lines) > self.limits.sentences:
            raise DeixisError(f"{len(lines)} sentences, more than the limit of {self.limits.sentences}; leave some out")
        sentences = tuple(expression.text for expression in as_expressions(lines))
        if not self.brought(film):
            raise DeixisError("no film is given; drop one first")
        size = film.stat().st_size
        if size > self.limits.bytes:
            raise DeixisError(f"the film holds {size:,} bytes, more than the limit of {self.limits.bytes:,}; cut it")
        return sentences

    def brought(self, path: Path) -> bool:
        """Whether ``path`` is a plain file that a visitor uploaded: below the uploads, not through a link or ``..``."""
        try:
            return path.is_file() and path.resolve(strict=True) == path and path.is_relative_to(self.uploads)
        except (OSError, ValueError):
            return False

    def cancel(self, job: Job) -> None:
        """Stop a job, waiting or at work; one that is over stays as it is."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "stopped")

    def cancel_all_of(self, owner: str) -> None:
        """Stop the jobs of a visitor."""
        for job in list(self.jobs.values()):
            if job.owner == owner and not job.over:
                self.cancel(job)

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._changed:
            before = list(self._waiting).index(job) if job in self._waiting else 0
            return before + (self._working is not None and self._working is not job)

    def has_room(self, more: int = 0) -> bool:
        """Whether ``more`` bytes fit beside the films and results that are here."""
        return size_of(self.folder) + more <= self.limits.room

    def sweep(self, now: float | None = None) -> None:
        """Delete films and results whose job ended ``limits.keep`` seconds ago, and films that no job came for."""
        now = time.time() if now is None else now
        with self._changed:
            old = [job for job in self.jobs.values() if job.over and job.ended + self.limits.keep <= now]
            for job in old:
                del self.jobs[job.token]
                shutil.rmtree(job.task.out, ignore_errors=True)
            needed = {Path(job.task.film).parent for job in self.jobs.values()}
            for place in self.uploads.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if place not in needed and place.lstat().st_mtime + self.limits.keep <= now:
                        remove(place)

    def _sweep_now_and_then(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=min(30.0, max(1.0, self.limits.keep / 2)))
                if self._closing:
                    return
            self.sweep()

    def _serve(self) -> None:
        self._worker = Worker()
        self._worker.warm(next(iter(self.models.values())))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    for job in self._waiting:
                        self._end(job, "stopped")
                    return
                self._working = job = self._waiting.popleft()
                job.state, job.stage_began = "working", time.monotonic()
            state, message = self._do(job)
            with self._changed:
                self._working = None
                self._end(job, state, message)

    def _do(self, job: Job) -> tuple[str, str]:
        """Have the worker do a job. Returns (its state, why it failed)."""
        if self._worker is None or not self._worker.alive:
            self._worker = Worker()
        state, message = "failed", ""
        try:
            state, message = self._worker.do(job, self.limits.work)
        except OSError as error:
            log.error("job %s: %s", job.token, error)
            message = "the server could not begin; try again"
        if state != "done":
            for place in (Path(job.task.out), *self.results.glob(f".{job.token}.part-*")):
                shutil.rmtree(place, ignore_errors=True)
        return state, message

    def _end(self, job: Job, state: str, message: str = "") -> None:
        job.message, job.ended = message, time.time()
        if state == "done":
            job.files = {name: Path(job.task.out) / name for name in FILES if (Path(job.task.out) / name).is_file()}
        with contextlib.suppress(OSError):
            os.utime(Path(job.task.film).parent)  # its time to stay begins now
        job.state = state


def claim(folder: Path) -> Any:
    """Make ``folder`` ours and empty. Returns a lock that is held until it is closed.

    Raises DeixisError for a folder that holds things of others, or that another server uses.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise DeixisError(f"{folder} belongs to someone else, or is a link; give another --folder")
        if any(folder.iterdir()) and not (folder / MARK).is_file():
            raise DeixisError(f"{folder} holds files that deixis serve did not put there; give another --folder")
        lock = open(folder / MARK, "a")  # noqa: SIM115 (held as long as the server runs)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise DeixisError(f"{folder} is used by another deixis serve; give another --folder") from error
        empty(folder)
        os.chmod(folder, 0o700)
    except OSError as error:
        raise DeixisError(f"cannot use {folder}: {error.strerror}; give another --folder") from error
    return lock


def empty(folder: Path) -> None:
    """Delete all in a folder but the mark. Links are removed, not followed."""
    for place in folder.iterdir():
        if place.name != MARK:
            remove(place)


def remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; what vanishes meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


# --- the server's end of the worker -----------------------------------------------------------------------------------


class Worker:
    """A process that does one job after the other; it keeps the model that it used last."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._pipe, theirs = context.Pipe()
        self._stop = context.Event()
        self._process = context.Process(target=work, args=(theirs, self._stop), name="deixis-worker", daemon=True)
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def warm(self, model: str) -> None:
        """Have it load a model before the first job comes."""
        send(self._pipe, {"model": model})

    def do(self, job: Job, seconds: float) -> tuple[str, str]:
        """Have a job done, and write its progress into it. Returns (state, why it failed)."""
        self._stop.clear()
        send(self._pipe, dataclasses.asdict(job.task))
        began, stop_by = time.monotonic(), 0.0
        while True:
            try:
                if self._pipe.poll(0.1):
                    told = receive(self._pipe)
                    if "state" in told:
                        job.rows, job.length = told.get("rows", []), told.get("length", 0.0)
                        job.warnings = told.get("warnings", [])
                        return told["state"], told.get("message", "")
                    if told["stage"] != job.stage:
                        job.stage, job.stage_began = told["stage"], time.monotonic()
                    job.frames, job.of = told["frames"], told["of"]
            except (EOFError, ConnectionError):
                self._process.join(5)
                log.error("job %s: the worker ended with status %s", job.token, self._process.exitcode)
                self.end()
                if job.cancelled:
                    return "stopped", ""
                return "failed", f"{job.task.name}: the work broke off ({self._status()}); try another film"
            if job.cancelled and not stop_by:
                self._stop.set()
                stop_by = time.monotonic() + GRACE
            if stop_by and time.monotonic() > stop_by:
                self.end()
                return "stopped", ""
            if time.monotonic() - began > seconds:
                self.end()
                return "failed", f"{job.task.name} takes longer than the limit of {seconds:g} s; give a shorter film"

    def _status(self) -> str:
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"status {code}"

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join(10)
        self._pipe.close()


def send(pipe: Connection, facts: Mapping[str, Any]) -> None:
    pipe.send_bytes(json.dumps(facts).encode())


def receive(pipe: Connection) -> dict[str, Any]:
    return json.loads(pipe.recv_bytes())


# --- the worker's end -------------------------------------------------------------------------------------------------


def work(pipe: Connection, stop: Event) -> None:
    """Do tasks until the server is gone. What a visitor caused is told; on anything else the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    logging.basicConfig(level=logging.ERROR)
    model: tuple[str, Any] = ("", None)
    try:
        while True:
            asked = receive(pipe)
            try:
                if model[0] != asked["model"]:
                    model = (asked["model"], load(asked["model"]))
                if "film" not in asked:
                    continue
                asked |= {"sentences": tuple(asked["sentences"]), "formats": tuple(asked["formats"])}
                task = Task(**asked)
                send(pipe, answer(task, model[1], Reporter(pipe), stop.is_set))
            except Stopped:
                send(pipe, {"state": "stopped"})
            except DeixisError as error:
                if "film" in asked:
                    send(pipe, {"state": "failed", "message": plain(str(error), Task(**asked))})
    except (EOFError, ConnectionError):
        return


def load(model: str) -> Any:
    """A model. What is wrong with it is for the owner's log, not for a visitor."""
    from deixis import weights

    try:
        return weights.load(model)
    except DeixisError as error:
        log.error("%s", error)
        raise DeixisError("this model cannot be loaded; choose another, or tell who runs this page") from error


class Reporter:
    """Tells the server how far a stage is, a few times a second."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._told, self._stage = pipe, 0.0, ""

    def __call__(self, stage: str, frames: int, of: int) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._told > REPORTS or frames == of:
            self._stage, self._told = stage, now
            send(self._pipe, {"stage": stage, "frames": frames, "of": of})


def answer(
    task: Task, model: Any, report: Callable[[str, int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Do one task: look, draw, pack. Returns what the server shall know; the results lie in ``task.out``.

    Raises Stopped soon after ``stop()`` is True, and DeixisError for what the visitor can set right.
    """
    from deixis.segment import segment
    from deixis.video import Film
    from deixis.weights import describe
    from deixis.writers import Output, draw, write

    plays = check_container(Path(task.film))
    check_seconds(Film(task.film, max_pixels=task.pixels), task.seconds)
    film = Film(task.film, end=task.seconds, max_pixels=task.pixels)  # its header may lie about the seconds
    of = film.length or 0

    def check() -> None:
        if stop():
            raise Stopped

    def looked(frames: int) -> None:
        check()
        report("looking", frames, of)

    with Output(Path(task.out)) as output:
        report("looking", 0, of)
        tracks = segment(
            film, task.sentences, model=model, device=task.device, precision=task.precision, folder=output.scratch,
            progress=looked,
        )  # fmt: skip
        check()
        count = len(tracks[0])
        passes = 1 + (plays is None)

        def drawn(before: int) -> Callable[[int], None]:
            def show(frames: int) -> None:
                check()
                report("drawing", before * count + frames, passes * count)

            return show

        watched = [watch(track, check) for track in tracks]
        report("drawing", 0, passes * count)
        write(output, film, watched, task.formats, model=describe(task.model), progress=drawn(0))
        if plays is None:  # a browser may not play it as it is
            with output.item("original.mp4") as path:
                draw(film, tracks, [Plain(path, film, [])], drawn(1))
        gap = 1 / film.rate
        length = tracks[0].times[-1] + gap
        rows = [row(track, i, gap) for i, track in enumerate(tracks)]
        with output.item("timeline.svg") as path:
            path.write_text(timeline(rows, length), encoding="utf-8")
    pack(Path(task.out), check)
    if plays is not None:
        os.link(task.film, Path(task.out) / f"original.{plays}")
    warnings = [plain(text, task) for text in film.warnings]
    return {"state": "done", "rows": rows, "length": length, "warnings": warnings}


class Plain(Overlay):
    """The film as it is, in a form that browsers play."""

    def add(self, index: int, seconds: float, picture: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        super().add(index, seconds, picture, [])


def check_container(path: Path) -> str | None:
    """Refuse what would make FFmpeg open other files of this machine (playlists, lists of files).

    Returns mp4 or webm where a browser plays the film as it is, None where it may not. Raises DeixisError.
    """
    import av
    from av.error import FFmpegError

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


def plain(message: str, task: Task) -> str:
    """A message without paths of this machine, and without advice that only its owner can take."""
    message = message.replace(task.film, task.name).replace(task.out, "the results")
    message = message.replace(str(Path(task.out).parent), "the results").replace(tempfile.gettempdir(), "")
    return " ".join(message.partition("; if you trust the file")[0].split())


class Watched(Sequence[Rle]):
    """RLEs that can only be read as long as ``check`` does not raise."""

    def __init__(self, rles: Sequence[Rle], check: Callable[[], None]) -> None:
        self._rles, self._check = rles, check

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, index: Any) -> Any:
        self._check()
        return self._rles[index]


def watch(track: MaskTrack, check: Callable[[], None]) -> MaskTrack:
    """The same track, whose masks call ``check`` whenever one is read: every writer can then be stopped."""
    return dataclasses.replace(track, masks=RleMasks(Watched(track.masks.rles, check), track.masks.size))


def pack(folder: Path, check: Callable[[], None]) -> None:
    """Turn the folders ``masks`` and ``matte`` into zips. What is in them is compressed already."""
    for name in ("masks", "matte"):
        if (folder / name).is_dir():
            with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_STORED) as archive:
                for path in sorted((folder / name).rglob("*")):
                    check()
                    if path.is_file():
                        archive.write(path, path.relative_to(folder))
            shutil.rmtree(folder / name)


def row(track: MaskTrack, index: int, gap: float) -> dict[str, Any]:
    """What a table says of one sentence. gap: seconds from a frame to the next, for the last one.

    sentence, colour (CSS), present, presence 0..1, stretches [[from, to], ...] in seconds, seen: seconds in all,
    share: of the picture, 0..1, mean over the frames in which it is seen.
    """
    areas = track.masks.areas()
    height, width = track.masks.size
    found = stretches((areas > 0).tolist(), track.times, gap)
    return {
        "sentence": track.expression.text,
        "colour": "#{:02x}{:02x}{:02x}".format(*COLOURS[index % len(COLOURS)]),
        "present": bool(found),
        "presence": round(track.presence, 4),
        "stretches": [[round(a, 3), round(b, 3)] for a, b in found],
        "seen": round(sum(b - a for a, b in found), 3),
        "share": round(float(areas[areas > 0].mean()) / (height * width), 5) if found else 0.0,
    }


def stretches(there: Iterable[bool], times: Sequence[float], gap: float) -> list[tuple[float, float]]:
    """[(from, to)] seconds in which an object is there; a frame lasts until the next one, the last one ``gap``."""
    found: list[tuple[float, float]] = []
    for i, seen in enumerate(there):
        end = times[i + 1] if i + 1 < len(times) else times[i] + gap
        if not seen:
            continue
        if found and found[-1][1] == times[i]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((times[i], end))
    return found


def timeline(rows: Sequence[Mapping[str, Any]], length: float) -> str:
    """An SVG of when each object is there: a bar a sentence, from the film's beginning to its end at ``length`` s."""
    step, top = 40, 6
    height = top + step * len(rows) + 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13"><title>When each object is there</title>'
    ]
    for i, facts in enumerate(rows):
        y = top + i * step
        words = str(facts["sentence"])
        words = words if len(words) <= 90 else words[:89] + "…"
        note = "" if facts["present"] else '<tspan opacity="0.6"> · not there</tspan>'
        parts.append(f'<text x="0" y="{y + 13}" fill="currentColor">{safe(words)}{note}</text>')
        parts.append(f'<rect x="0" y="{y + 20}" width="100%" height="10" rx="5" fill="currentColor" opacity="0.1"/>')
        for begin, end in facts["stretches"]:
            x, width = 100 * begin / length, 100 * (end - begin) / length
            parts.append(
                f'<rect x="{x:.2f}%" y="{y + 20}" width="{width:.2f}%" height="10" rx="5" fill="{facts["colour"]}">'
                f"<title>{begin:.1f} to {end:.1f} s</title></rect>"
            )
    for share, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        parts.append(
            f'<text x="{100 * share:g}%" y="{height - 5}" text-anchor="{anchor}" font-size="11" fill="currentColor" '
            f'opacity="0.6">{share * length:.1f} s</text>'
        )
    return "".join([*parts, "</svg>\n"])


def safe(text: str) -> str:
    """Text for HTML and SVG, in which also nothing of a template (``${``, ``{{``) survives."""
    return escape(text).translate({ord(c): f"&#{ord(c)};" for c in "${}`"})
