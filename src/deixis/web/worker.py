"""The server's end of the worker: a process that does one job after the other."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import signal
import time

from deixis.web.jobs import Job
from deixis.web.process import receive, send, work

log = logging.getLogger(__name__)

GRACE = 5.0  # seconds that a cancelled job has to stop by itself, before its process is ended (our choice)


# --- the server's end of the worker -----------------------------------------------------------------------------------


class WorkerLost(Exception):
    """The process ended before it began the job, which may be none of the job's doing."""


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
        return not self._pipe.closed and self._process.is_alive()

    def warm(self, model: str, device: str, precision: str) -> None:
        """Have it load a model before the first job comes."""
        send(self._pipe, {"model": model, "device": device, "precision": precision})

    def do(self, job: Job, seconds: float) -> tuple[str, str]:
        """Have a job done, and write its progress into it. Returns (state, why it failed)."""
        self._stop.clear()
        try:
            send(self._pipe, dataclasses.asdict(job.task))
        except ConnectionError:  # it has just ended, of what it did before
            self.end()
            raise WorkerLost(f"{job.task.name}: the work broke off ({self._status()}); try again") from None
        began, stop_by = time.monotonic(), 0.0
        while True:
            try:
                if self._pipe.poll(0.1):
                    report = receive(self._pipe)
                    if "state" in report:
                        job.rows, job.length = report.get("rows", []), report.get("length", 0.0)
                        job.warnings, job.run = report.get("warnings", []), report.get("run", {})
                        if report.get("ends"):  # no other job shall meet a process that is about to go
                            self.end()
                        return report["state"], report.get("message", "")
                    if report["stage"] != job.stage:
                        job.stage, job.stage_began = report["stage"], time.monotonic()
                    job.frames, job.of = report["frames"], report["of"]
            except (EOFError, ConnectionError):
                self._process.join(5)
                log.error("job %s: the worker ended with status %s", job.token, self._process.exitcode)
                self.end()
                if job.cancelled:
                    return "stopped", ""
                message = f"{job.task.name}: the work broke off ({self._status()}); try another film"
                if job.stage == "starting":
                    raise WorkerLost(message) from None
                return "failed", message
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
