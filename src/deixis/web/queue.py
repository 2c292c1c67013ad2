"""One queue of jobs for one model: films and sentences of many visitors in, a folder of results each out, in turn.

The work is done in a process of its own (``work``), so that a cancel really stops it, a film that brings a decoder
down takes no server with it, and the page stays quick. Processes speak JSON. N sentences, T frames.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from deixis.locks import lock, unlock
from deixis.sentences import as_expressions
from deixis.types import DeixisError, reason_of
from deixis.web.jobs import RESULT_FILES, Job, Limits, Task
from deixis.web.worker import GRACE, Worker, WorkerLost
from deixis.writers import FORMATS

log = logging.getLogger(__name__)

MARK = ".deixis-serve"  # lies in a folder that may be emptied


class Queue:
    """Jobs wait in one line for one worker process; ``folder`` holds what visitors brought and got.

    models: names that may be chosen, and the name or checkpoint file behind each.
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
        self._lock = lock_folder(self.folder)
        self.folder = self.folder.resolve()
        self.uploads, self.results = self.folder / "uploads", self.folder / "results"
        try:
            for place in (self.uploads, self.results):
                place.mkdir(mode=0o700)
        except OSError as error:  # what lay there before cannot be deleted, say
            unlock(self._lock)
            raise DeixisError(f"cannot use {self.folder}: {reason_of(error)}; give another --folder") from error
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
        unlock(self._lock)

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
        if not self.is_upload(film):
            raise DeixisError("no film is given; drop one first")
        size = film.stat().st_size
        if size > self.limits.bytes:
            raise DeixisError(f"the film holds {size:,} bytes, more than the limit of {self.limits.bytes:,}; cut it")
        return sentences

    def is_upload(self, path: Path) -> bool:
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
                        remove_place(place)

    def _sweep_now_and_then(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=min(30.0, max(1.0, self.limits.keep / 2)))
                if self._closing:
                    return
            try:
                self.sweep()
            except Exception as error:  # the next one may find a disk that answers
                log.error("old films and results cannot be deleted: %s", error)

    def _serve(self) -> None:
        """Do one job after the other. Whatever fails, the job ends with a line and the next one has its turn."""
        self._warm()
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

    def _warm(self) -> None:
        """Have a worker load the first model; where that fails, the first job starts another."""
        try:
            self._worker = Worker()
            self._worker.warm(next(iter(self.models.values())), self.device, self.precision)
        except Exception as error:
            log.error("the worker cannot be started: %s", error)
            self._end_worker()

    def _living_worker(self) -> Worker:
        if self._worker is None or not self._worker.alive:
            self._worker = Worker()
        return self._worker

    def _end_worker(self) -> None:
        """Let the worker go, whatever it does; the next job starts a fresh one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            try:
                worker.end()
            except Exception as error:
                log.error("the worker cannot be ended: %s", error)

    def _do(self, job: Job) -> tuple[str, str]:
        """Have the worker do a job. Returns (its state, why it failed)."""
        state, message = "failed", ""
        try:
            try:
                state, message = self._living_worker().do(job, self.limits.work)
            except WorkerLost:  # while it loaded its model, perhaps: once more, in a fresh one
                state, message = self._living_worker().do(job, self.limits.work)
        except WorkerLost as error:
            message = str(error)
        except Exception as error:  # nothing that a job meets may end the queue
            log.error("job %s: %s", job.token, error)
            message = "the server could not do it; try again, or write to those who run this page"
            self._end_worker()
        if state != "done":
            try:
                for place in (Path(job.task.out), *self.results.glob(f".{job.token}.part-*")):
                    shutil.rmtree(place, ignore_errors=True)
            except OSError as error:
                log.error("job %s: its results cannot be deleted: %s", job.token, error)
        return state, message

    def _end(self, job: Job, state: str, message: str = "") -> None:
        job.message, job.ended = message, time.time()
        if state == "done":
            try:
                job.files = {
                    name: Path(job.task.out) / name for name in RESULT_FILES if (Path(job.task.out) / name).is_file()
                }
            except OSError as error:
                log.error("job %s: its results cannot be read: %s", job.token, error)
                state, job.message = "failed", "the results cannot be read on the server; try again"
        with contextlib.suppress(OSError):
            os.utime(Path(job.task.film).parent)  # its time to stay begins now
        job.state = state


def lock_folder(folder: Path) -> int | None:
    """Make ``folder`` ours and empty. Returns its lock, as ``locks.lock`` does.

    Raises DeixisError for a folder that holds things of others, or that another server uses.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
        if folder.is_symlink() or not ours:
            raise DeixisError(f"{folder} belongs to someone else, or is a link; give another --folder")
        if any(folder.iterdir()) and not (folder / MARK).is_file():
            raise DeixisError(f"{folder} holds files that deixis serve did not put there; give another --folder")
        (folder / MARK).touch()
        handle = lock(folder)
        try:
            empty(folder)
            os.chmod(folder, 0o700)
        except OSError:
            unlock(handle)
            raise
    except BlockingIOError as error:
        raise DeixisError(f"{folder} is used by another deixis serve; give another --folder") from error
    except OSError as error:
        raise DeixisError(f"cannot use {folder}: {reason_of(error)}; give another --folder") from error
    return handle


def empty(folder: Path) -> None:
    """Delete all in a folder but the mark. Links are removed, not followed."""
    for place in folder.iterdir():
        if place.name != MARK:
            remove_place(place)


def remove_place(place: Path) -> None:
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
