"""What a batch would do, and how long it would take."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from deixis.batch.local import Local
from deixis.batch.manifest import BatchJob, Settings, read_text
from deixis.batch.run import BatchPlan, finished_results, in_words
from deixis.batch.storage import RESULTS, URL, Store
from deixis.types import DeixisError

# --- what would be done, and how long ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A measured speed. seconds, frames: of how many ``films``.  source: where the figures are from, in words."""

    seconds: float
    frames: int
    films: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a batch would do. finished, due: films.  refused: films that cannot be opened, with the reason.
    frames: of the due films that state a length.  unknown: how many do not.  rate: None where none could be measured.
    """

    films: int
    finished: int
    due: Sequence[BatchJob]
    refused: Sequence[tuple[BatchJob, str]]
    frames: int
    unknown: int
    workers: int
    rate: Rate | None

    @property
    def seconds(self) -> float | None:
        """Of the whole batch; films that do not state their length count as those that were measured, and nothing is
        added for the start.
        """
        if self.rate is None:
            return None
        frames = self.frames + self.unknown * self.rate.frames / self.rate.films
        return frames * self.rate.seconds / self.rate.frames / max(1, min(self.workers, len(self.due)))


def forecast(planned: BatchPlan, rate_from: str | None = None) -> Forecast:
    """What ``batch`` would do, and how long it would take. Writes nothing to OUT.

    The speed is that of the films with the same model in ``rate_from`` (default: OUT's results.jsonl); where there are
    none, that of the first due film, which is done in a temporary folder for the purpose.
    """
    store = Store(planned.settings.out)
    with planned.engine:
        settings = planned.allocate()
    jobs = planned.by_folder()
    done = finished_results(store, jobs, settings, closely=False)
    due, refused, frames, unknown = [], [], 0, 0
    for name, job in jobs.items():
        if name in done:
            continue
        try:
            length = _length(job)
        except DeixisError as error:
            refused.append((job, str(error)))
            continue
        due.append(job)
        frames, unknown = frames + (length or 0), unknown + (length is None)
    rate = known_rate(store, settings, rate_from)
    return Forecast(
        films=len(jobs), finished=len(done), due=due, refused=refused, frames=frames, unknown=unknown,
        workers=settings.workers, rate=rate or (measured_rate(planned, settings, due) if due else None),
    )  # fmt: skip


def _length(job: BatchJob) -> int | None:
    """About how many frames of the film will be read; None where it does not say, and for one at a URL."""
    if URL.match(job.place):
        return None
    return job.open(job.place).length


def known_rate(store: Store, settings: Settings, rate_from: str | None = None) -> Rate | None:
    """From the done lines of a results.jsonl that are of this model; None where there is none."""
    place = f"{store.root}/{RESULTS}" if rate_from is None else rate_from
    data = store.read(RESULTS) if rate_from is None else read_text(rate_from).encode()
    seconds, frames, films, how = 0.0, 0, 0, set()
    for line in (data or b"").splitlines():
        try:
            result = json.loads(line)
            if result["status"] == "done" and result["model"] == dict(settings.facts):
                seconds, frames, films = seconds + float(result["seconds"]), frames + int(result["frames"]), films + 1
                how.add(f"{result['workers']} workers with {result['threads']} threads on {result['device']}")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise DeixisError(f"{place} is not a results.jsonl of deixis ({error!r})") from error
    if frames and seconds:
        return Rate(
            seconds=seconds, frames=frames, films=films, source=f"{films} films of {place}; {', '.join(sorted(how))}"
        )
    if rate_from is not None:
        raise DeixisError(f"{place} lists no film that this model has done; leave it out to time one")
    return None


def measured_rate(planned: BatchPlan, settings: Settings, due: Sequence[BatchJob]) -> Rate | None:
    """Of the first of the due films that can be done, by one worker alone on this machine."""
    with tempfile.TemporaryDirectory(prefix="deixis-") as folder:
        alone = replace(settings, out=folder, workers=1)
        answers = Local().results(partial(planned.worker, alone), due, workers=1, threads=settings.threads, tries=1)
        with closing(answers) as coming:  # type: ignore[type-var]
            for index, answer in coming:
                if not isinstance(answer, str) and answer["status"] == "done":
                    how = f"{due[index].film}, timed now: one worker with {settings.threads} threads on this machine"
                    return Rate(seconds=answer["seconds"], frames=answer["frames"], films=1, source=how)
    return None


def forecast_lines(forecast: Forecast) -> list[str]:
    """What a batch would do."""
    due = len(forecast.due)
    refused = len(forecast.refused)
    lines = [f"{forecast.films} films: {forecast.finished} finished, {due} to do, {refused} cannot be read"]
    lines += [f"cannot be read: {job.film} (row {job.row}): {reason}" for job, reason in forecast.refused]
    lines += [f"to do: {job.film} (row {job.row})" for job in forecast.due]
    if not due:
        return lines
    if forecast.rate is None or forecast.seconds is None:
        return [*lines, "how long: not known, for none of the films could be timed"]
    rate = forecast.rate
    unknown = f", and {forecast.unknown} films of unknown length, taken as long as those" if forecast.unknown else ""
    return [
        *lines,
        f"speed: {rate.frames / rate.seconds:.2f} frames/s a worker, measured on {rate.source}",
        f"how long: about {in_words(forecast.seconds)} for {forecast.frames} frames{unknown}, "
        f"by {forecast.workers} workers if they do not slow each other; without the start",
    ]
