"""The nouns of the page: a task, a job, the limits, and the files that a job may leave."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deixis.types import DeixisError
from deixis.writers import FORMATS

FOLDERS = tuple(form.item for form in FORMATS.values() if "." not in form.item)  # they become zips
RESULT_FILES = {  # what a job may leave, by name, and what a person calls it
    **{f"{form.item}.zip" if form.item in FOLDERS else form.item: form.link for form in FORMATS.values()},
    "contact_sheet.png": "Contact sheet",
    "timeline.svg": "Timeline",
    "original.mp4": "The film",
    "original.webm": "The film",
}
SHOWN_ONLY = ("original.mp4", "original.webm")  # the visitor's own film, for the player; no download


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one visitor may use of the server. All numbers are our choice, for a small machine."""

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
    """One task for the worker. film, out: paths.  name: the film's, as the visitor called it."""

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
    run: dict[str, str] = field(default_factory=dict)  # device, precision and engine
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
