"""Many films: a manifest in, one folder a film and results.jsonl out; on one machine or many; resumable.

manifest --read_manifest--> Jobs --an engine--> FilmWorker: fetch, segment, write --> OUT/FOLDER/..., result.json last

A film is finished when its result.json stands: it is written last, and says of which contents, sentences, options and
model it is, and how many bytes each output has. So a half-written folder is never taken for a whole one. Places are
paths, or URLs that fsspec reads (s3://bucket/film.mp4).
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import cv2
import torch
from torch import nn

from deixis import __version__, weights
from deixis.batch_local import Local, Work, usable_cores
from deixis.batch_manifest import SCHEMA, Job, Options, Settings, read_manifest, read_text
from deixis.batch_places import RESULT, RESULTS, URL, Store, claimed, fetched, fingerprint
from deixis.segment import DEVICES, PRECISIONS, choose_device, segment
from deixis.types import DeixisError, MaskTrack
from deixis.video import Film
from deixis.writers import Output, write

log = logging.getLogger(__name__)

ENGINES = ("local", "ray")
TRIES = 3  # workers that a film may kill before it is given up (our choice)
NOTE_SECONDS = 10.0  # between two writings of results.jsonl while films are coming in (our choice)
FOLDER = re.compile(r"[\w\-]+-[0-9a-f]{12}")  # what `Job.folder` makes
PART = re.compile(r"\.[\w\-]+-[0-9a-f]{12}\.part-.*|results\.jsonl\.half")  # what a killed run leaves


# --- one film ---------------------------------------------------------------------------------------------------------


class FilmWorker:
    """Holds the model and answers one film after another, as ``deixis segment`` does, each into a folder of its own."""

    def __init__(self, settings: Settings, number: int = 0) -> None:
        torch.set_num_threads(settings.threads)
        cv2.setNumThreads(settings.threads)
        self.settings, self.store = settings, Store(settings.out)
        if weights.describe(settings.model) != dict(settings.facts):
            raise DeixisError(f"{settings.model} is not the same file here as where the batch began")
        self.device = self._device(settings.device, number)
        self.system: nn.Module = weights.load(settings.model)

    @staticmethod
    def _device(name: str, number: int) -> str:
        gpus = torch.cuda.device_count() if name in ("auto", "cuda") else 0
        return str(choose_device(f"cuda:{number % gpus}" if gpus else name))

    def __call__(self, job: Job) -> dict[str, Any]:
        """What results.jsonl tells of the film, with ``stood`` where it was finished before; a failure is an answer."""
        began, path = time.perf_counter(), Path(job.place)
        try:
            with fetched(job.place) as path:
                return self._answer(job, path, began)
        except DeixisError as error:
            reason = str(error)
        except Exception as error:  # whatever it is, it is this film's; the others shall be done
            reason = f"{type(error).__name__}: {error}"
        return failed(job, reason.replace(str(path), job.place))

    def _answer(self, job: Job, path: Path, began: float) -> dict[str, Any]:
        asked = job.options
        film = Film(
            path, start=asked.start, end=asked.end, every=asked.every, max_pixels=asked.max_pixels, fps=asked.fps
        )
        contents, name = fingerprint(path), job.folder(self.settings)
        before = standing(self.store, job, self.settings, contents)
        if before is not None:
            return {**before, "stood": True}
        self.store.remove(name)
        with self.store.making(name) as output:
            tracks = self.make(job, film, output)
            result = self._result(job, film, tracks, output)
            result |= {"film_sha256": contents, "seconds": round(time.perf_counter() - began, 3)}
            with output.item(RESULT) as place:
                place.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
        return result

    def make(self, job: Job, film: Film, output: Output) -> list[MaskTrack]:
        """What ``deixis segment`` does."""
        tracks = segment(
            film, list(job.sentences), model=self.system, device=self.device, precision=self.settings.precision,
            size=job.options.size, threshold=job.options.threshold, folder=output.scratch,
        )  # fmt: skip
        write(output, film, tracks, job.options.formats, model=self.settings.facts)
        return tracks

    def _result(self, job: Job, film: Film, tracks: Sequence[MaskTrack], output: Output) -> dict[str, Any]:
        outputs = {}
        for name in output.finished:
            place = output.scratch / name
            files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
            outputs[name] = sum(file.stat().st_size for file in files)
        return {
            "film": job.film, "sentences": list(job.sentences), "status": "done", "reason": None,
            "folder": job.folder(self.settings), "frames": len(tracks[0]),
            "tracks": [{"presence": round(t.presence, 6), "present": t.present} for t in tracks],
            "outputs": outputs, "warnings": list(film.warnings), "options": asdict(job.options),
            "model": dict(self.settings.facts), "precision": self.settings.precision, "device": self.device,
            "workers": self.settings.workers, "threads": self.settings.threads, "schema": SCHEMA,
            "deixis": __version__, "key": job.key(self.settings),
        }  # fmt: skip


def failed(job: Job, reason: str) -> dict[str, Any]:
    """What results.jsonl tells of a film that could not be done."""
    return {
        "film": job.film, "sentences": list(job.sentences), "status": "failed", "reason": " ".join(reason.split()),
        "folder": None, "schema": SCHEMA,
    }  # fmt: skip


def standing(store: Store, job: Job, settings: Settings, contents: str | None) -> dict[str, Any] | None:
    """The result of a film that is finished in OUT: asked the same, of the same contents (None: whatever they are),
    with every output there at its full size.
    """
    name = job.folder(settings)
    try:
        result = json.loads(store.read(f"{name}/{RESULT}") or b"null")
        if result["key"] != job.key(settings) or contents not in (None, result["film_sha256"]):
            return None
        sizes = store.sizes(name)
        return result if all(sizes.get(part) == size for part, size in result["outputs"].items()) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # not what a FilmWorker writes
        log.debug("%s: %s", name, error)
        return None


# --- the batch --------------------------------------------------------------------------------------------------------


class Engine(Protocol):
    """What runs workers: ``batch_local.Local`` or ``batch_ray.Cluster``, which say what the methods mean."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...
    def crew(self, device: str, workers: int | None, threads: int | None, items: int) -> tuple[int, int]: ...
    def answers(
        self, make: Callable[[int], Work], items: Sequence[Any], *, workers: int, threads: int, tries: int
    ) -> Iterator[tuple[int, Any]]: ...


def choose_engine(name: str, address: str | None = None) -> Engine:
    """address: of a Ray cluster. Raises DeixisError for an unknown engine, and without Ray."""
    if name not in ENGINES:
        raise DeixisError(f"unknown engine {name!r}; expected one of {', '.join(ENGINES)}")
    if name == "local":
        if address is not None:
            raise DeixisError("--address is of a Ray cluster; add --engine ray")
        return Local()
    from deixis.batch_ray import Cluster

    return Cluster(address)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of a batch. lines: those of results.jsonl, in the manifest's order.  now, before: films done in this
    run and found done.  waiting: jobs that were not reached.  seconds: of this run.
    """

    lines: Sequence[Mapping[str, Any]]
    now: Sequence[str]
    before: int
    waiting: Sequence[Job]
    stopped: bool
    seconds: float

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        return [line for line in self.lines if line["status"] == "failed"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A batch, checked, before anything is done. workers, threads: None for what fills the machine."""

    jobs: Sequence[Job]
    engine: Engine
    settings: Settings  # workers and threads not yet known
    workers: int | None = None
    threads: int | None = None
    tries: int = TRIES
    worker: type[FilmWorker] = FilmWorker

    def crew(self) -> Settings:
        """The settings, with workers and threads. Asks the engine, which must have been entered."""
        workers, threads = self.engine.crew(self.settings.device, self.workers, self.threads, len(self.jobs))
        return replace(self.settings, workers=workers, threads=threads)

    def by_folder(self) -> dict[str, Job]:
        """Each job under the name of its folder."""
        return {job.folder(self.settings): job for job in self.jobs}


def plan(
    manifest: str,
    out: str,
    *,
    defaults: Options | None = None,
    model: str = "light",
    device: str = "auto",
    precision: str = "auto",
    engine: str | Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tries: int = TRIES,
    worker: type[FilmWorker] = FilmWorker,
) -> Plan:
    """Check everything that can be checked before a film is opened. Raises DeixisError; writes nothing."""
    for name, count in (("workers", workers), ("threads", threads), ("tries", tries)):
        if count is not None and count < 1:
            raise DeixisError(f"{name} must be 1 or more, got {count}")
    if device.split(":")[0] not in DEVICES:
        raise DeixisError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}")
    if precision not in PRECISIONS:
        raise DeixisError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    chosen = choose_engine(engine, address) if isinstance(engine, str) else engine
    jobs = read_manifest(manifest, defaults)
    file = weights.find(model)
    facts = weights.describe(model)
    if file is not None:
        weights.read_header(file)  # a file that is no checkpoint is refused before anything is made
    where = model if file is None or model in weights.KNOWN else str(file.absolute())
    place = out if URL.match(out) else str(Path(out).absolute())
    settings = Settings(out=place, model=where, facts=facts, device=device, precision=precision)
    return Plan(
        jobs=jobs, engine=chosen, settings=settings, workers=workers, threads=threads, tries=tries, worker=worker
    )


def batch(planned: Plan, *, progress: Callable[[int, int], None] | None = None) -> Summary:
    """Do every film that is not finished in OUT, and write results.jsonl.

    progress: called with films finished (or failed) and films in all. Ctrl-C ends it in order: finished films stay, and
    the same call goes on from there. Raises DeixisError for what no film can be done with: a model that cannot be
    loaded, an OUT that cannot be written or is no batch's.
    """
    began, store, due = time.perf_counter(), Store(planned.settings.out), planned.by_folder()
    with claimed(store):
        results: dict[str, dict[str, Any]] = {}
        settings, before, now, stopped = planned.settings, 0, list[str](), False
        try:
            with planned.engine:
                settings = planned.crew()
                sweep(store)
                results |= finished(store, due, settings)
                before, noted = len(results), time.perf_counter()
                _tell(progress, results, due)
                for name, result in _answers(planned, settings, {n: job for n, job in due.items() if n not in results}):
                    stood = result.pop("stood", False)
                    results[name] = result
                    before += stood
                    now += [name] if result["status"] == "done" and not stood else []
                    _tell(progress, results, due)
                    if time.perf_counter() - noted > NOTE_SECONDS:
                        write_results(store, planned, results)
                        noted = time.perf_counter()
        except KeyboardInterrupt:
            stopped = True
        finally:  # the workers are gone; one may have finished a film whose answer did not come through
            sweep(store)
            late = finished(store, {name: job for name, job in due.items() if name not in results}, settings)
            results |= late
            lines = write_results(store, planned, results)
    return Summary(
        lines=lines, now=[*now, *late], before=before, stopped=stopped, seconds=time.perf_counter() - began,
        waiting=[job for name, job in due.items() if name not in results],
    )  # fmt: skip


def _answers(planned: Plan, settings: Settings, todo: Mapping[str, Job]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder, result) of every job, as they come."""
    names, jobs = list(todo), list(todo.values())
    if not jobs:
        return
    answers = planned.engine.answers(
        partial(planned.worker, settings), jobs, workers=settings.workers, threads=settings.threads,
        tries=planned.tries,
    )  # fmt: skip
    with closing(answers) as coming:  # type: ignore[type-var]
        for index, answer in coming:
            yield names[index], failed(jobs[index], answer) if isinstance(answer, str) else answer


def _tell(progress: Callable[[int, int], None] | None, results: Mapping[str, Any], due: Mapping[str, Any]) -> None:
    if progress is not None:
        progress(len(results), len(due))


def finished(store: Store, due: Mapping[str, Job], settings: Settings, *, closely: bool = True) -> dict[str, Any]:
    """Of the jobs by folder, the results of those that are finished in OUT.

    Films on this machine's disk are read through, to compare their contents. Films at a URL are left to the workers,
    who fetch them anyhow; unless not ``closely``: then their contents are not compared.
    """
    names = set(store.names()) & due.keys()

    def look(name: str) -> dict[str, Any] | None:
        job = due[name]
        if URL.match(job.place):
            return None if closely else standing(store, job, settings, None)
        path = Path(job.place)
        try:
            there = path.is_file() or path.is_dir()
            return standing(store, job, settings, fingerprint(path)) if there else None
        except OSError as error:
            log.debug("%s: %s", path, error)
            return None

    with ThreadPoolExecutor(usable_cores(), "deixis-look") as pool:
        looked = dict(zip(names, pool.map(look, names), strict=True))
    return {name: looked[name] for name in due if looked.get(name) is not None}


def sweep(store: Store) -> None:
    """Remove what killed workers have left in OUT: folders without result.json, half-made ones."""
    for name in store.names():
        if PART.fullmatch(name) or (FOLDER.fullmatch(name) and store.read(f"{name}/{RESULT}") is None):
            store.remove(name)


def write_results(store: Store, planned: Plan, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """results.jsonl, in one step: a line for every row of the manifest that has a result; returns them."""
    lines = []
    for job in planned.jobs:
        result = results.get(job.folder(planned.settings))
        if result is not None:
            lines.append({"row": job.row, **result})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        store.write(RESULTS, text.encode())
    except OSError as error:
        raise DeixisError(f"{store.root}/{RESULTS} cannot be written: {error.strerror or error}") from error
    return lines


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
    frames: of the due films that tell.  unknown: how many do not.  rate: None where none could be measured.
    """

    films: int
    finished: int
    due: Sequence[Job]
    refused: Sequence[tuple[Job, str]]
    frames: int
    unknown: int
    workers: int
    rate: Rate | None

    @property
    def seconds(self) -> float | None:
        """Of the whole batch; films that do not tell their length count as those that were measured, and nothing is
        added for the start.
        """
        if self.rate is None:
            return None
        frames = self.frames + self.unknown * self.rate.frames / self.rate.films
        return frames * self.rate.seconds / self.rate.frames / max(1, min(self.workers, len(self.due)))


def foresee(planned: Plan, rate_from: str | None = None) -> Forecast:
    """What ``batch`` would do, and how long it would take. Writes nothing to OUT.

    The speed is that of the films with the same model in ``rate_from`` (default: OUT's results.jsonl); where there are
    none, that of the first due film, which is done in a temporary folder for the purpose.
    """
    store = Store(planned.settings.out)
    with planned.engine:
        settings = planned.crew()
    jobs = planned.by_folder()
    done = finished(store, jobs, settings, closely=False)
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


def _length(job: Job) -> int | None:
    """About how many frames of the film will be looked at; None where it does not tell, and for one at a URL."""
    if URL.match(job.place):
        return None
    asked = job.options
    return Film(
        job.place, start=asked.start, end=asked.end, every=asked.every, max_pixels=asked.max_pixels, fps=asked.fps
    ).length


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
        raise DeixisError(f"{place} tells of no film that this model has done; leave it out to time one")
    return None


def measured_rate(planned: Plan, settings: Settings, due: Sequence[Job]) -> Rate | None:
    """Of the first of the due films that can be done, by one worker alone on this machine."""
    with tempfile.TemporaryDirectory(prefix="deixis-") as folder:
        alone = replace(settings, out=folder, workers=1)
        answers = Local().answers(partial(planned.worker, alone), due, workers=1, threads=settings.threads, tries=1)
        with closing(answers) as coming:  # type: ignore[type-var]
            for index, answer in coming:
                if not isinstance(answer, str) and answer["status"] == "done":
                    how = f"{due[index].film}, timed now: one worker with {settings.threads} threads on this machine"
                    return Rate(seconds=answer["seconds"], frames=answer["frames"], films=1, source=how)
    return None


# --- in words ---------------------------------------------------------------------------------------------------------


def summary_lines(summary: Summary, out: str) -> list[str]:
    """What became of a batch. After Ctrl-C the films that this run has finished are named."""
    parts = [f"{len(summary.now)} done now", f"{summary.before} done before", f"{len(summary.failed)} failed"]
    parts += [f"{len(summary.waiting)} not done"] if summary.waiting else []
    total = len(summary.now) + summary.before + len(summary.failed) + len(summary.waiting)
    rate = f", {60 * len(summary.now) / summary.seconds:.1f} films a minute" if summary.now else ""
    named = [f"finished {name}" for name in summary.now] if summary.stopped else []
    return [
        *named,
        f"{total} films: {', '.join(parts)}; {in_words(summary.seconds)}{rate}",
        f"wrote {out.rstrip('/')}/{RESULTS}",
    ]


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


def in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
