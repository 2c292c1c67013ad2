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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from deixis import weights
from deixis.batch.local import Local, Work, usable_cores
from deixis.batch.manifest import BatchJob, Options, Settings, read_manifest
from deixis.batch.ray_cluster import Cluster
from deixis.batch.storage import RESULT, RESULTS, URL, Store, claimed, fingerprint
from deixis.batch.worker import FilmWorker, failed, finished_result
from deixis.devices import DEVICES, PRECISIONS, run_words
from deixis.inference import check_choices
from deixis.types import DeixisError, reason_of

log = logging.getLogger(__name__)

ENGINES = ("local", "ray")
TRIES = 3  # workers that a film may kill before it is given up (our choice)
NOTE_SECONDS = 10.0  # between two writings of results.jsonl while films are coming in (our choice)
FOLDER = re.compile(r"[\w\-]+-[0-9a-f]{12}")  # what `BatchJob.folder` makes
PART = re.compile(r"\.[\w\-]+-[0-9a-f]{12}\.part-.*|results\.jsonl\.half")  # what a killed run leaves


class Engine(Protocol):
    """What runs workers: ``batch.local.Local`` or ``batch.ray_cluster.Cluster``, where the methods are documented."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...
    def allocate(self, device: str, workers: int | None, threads: int | None, items: int) -> tuple[int, int]: ...
    def results(
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
    return Cluster(address)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of a batch. lines: those of results.jsonl, in the manifest's order.  now, before: films done in this
    run and found done.  waiting: jobs that were not reached.  seconds: of this run.
    """

    lines: Sequence[Mapping[str, Any]]
    now: Sequence[str]
    before: int
    waiting: Sequence[BatchJob]
    stopped: bool
    seconds: float

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        return [line for line in self.lines if line["status"] == "failed"]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A batch, checked, before anything is done. workers, threads: None for what fills the machine."""

    jobs: Sequence[BatchJob]
    engine: Engine
    settings: Settings  # workers and threads not yet known
    workers: int | None = None
    threads: int | None = None
    tries: int = TRIES
    worker: type[FilmWorker] = FilmWorker

    def allocate(self) -> Settings:
        """The settings, with workers and threads. They are the engine's, which must have been entered."""
        workers, threads = self.engine.allocate(self.settings.device, self.workers, self.threads, len(self.jobs))
        return replace(self.settings, workers=workers, threads=threads)

    def by_folder(self) -> dict[str, BatchJob]:
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
) -> BatchPlan:
    r"""Check everything of a batch that can be checked before a video is opened; write nothing.

    Args:
        manifest: Path or URL of a manifest, see `read_manifest`.
        out: Folder or URL of the results.
        defaults: Options that a row does not state.
        model: As for `segment`.
        device: As for `segment`.
        precision: As for `segment`.
        engine: "local", "ray", or an `Engine`.
        address: Address of a Ray cluster.
        workers: Number of workers. Default: what fills the machine.
        threads: Threads of each worker. Default: what fills the machine.
        tries: How many times a video may lose its worker before it is recorded as failed.
        worker: Class of the workers.

    Returns:
        The `BatchPlan`.

    Raises:
        DeixisError: For anything that cannot be: options, manifest, model.

    Example:
        >>> from pathlib import Path
        >>> from deixis.batch.run import plan
        >>> _ = Path("films.csv").write_text("film,sentences\nfilm.mp4,a red square|a dog\n")
        >>> len(plan("films.csv", "out").jobs)
        1
    """
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
    for size, row in {job.options.size: job.row for job in reversed(jobs)}.items():
        try:
            check_choices(size=size, model=model, device="cpu")  # the workers' device may be another
        except DeixisError as error:
            raise DeixisError(f"{manifest}, row {row}: {error}") from error
    where = model if file is None or model in weights.KNOWN else str(file.absolute())
    place = out if URL.match(out) else str(Path(out).absolute())
    settings = Settings(out=place, model=where, facts=facts, device=device, precision=precision)
    return BatchPlan(
        jobs=jobs, engine=chosen, settings=settings, workers=workers, threads=threads, tries=tries, worker=worker
    )


def batch(
    planned: BatchPlan,
    *,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    r"""Process every video that is not finished in OUT, and write results.jsonl.

    Ctrl-C ends it in order: finished videos stay, and the same call continues from there.

    Args:
        planned: As `plan` returns it.
        progress: Called with the number of videos finished (or failed) and of all videos.
        say: Called once with each "light on cpu in fp32, OpenVINO 2025.4" of a worker: what "auto" became.

    Returns:
        The `Summary`: lines of results.jsonl, and what was done now and before.

    Raises:
        DeixisError: For a model that cannot be loaded, and for an OUT that cannot be written or is no batch's.

    Example:
        >>> from pathlib import Path
        >>> from deixis.batch.manifest import Options
        >>> from deixis.batch.run import batch, plan
        >>> _ = Path("films.csv").write_text("film,sentences\nfilm.mp4,a red square\n")
        >>> options = Options(formats=("rle",))
        >>> summary = batch(plan("films.csv", "out", model="light.safetensors", defaults=options, workers=1))
        >>> len(summary.now), summary.failed
        (1, [])
    """
    began, store, due = time.perf_counter(), Store(planned.settings.out), planned.by_folder()
    with claimed(store):
        results: dict[str, dict[str, Any]] = {}
        settings, before, now, stopped, said = planned.settings, 0, list[str](), False, set[str]()
        try:
            with planned.engine:
                settings = planned.allocate()
                sweep(store)
                results |= finished_results(store, due, settings)
                before, noted = len(results), time.perf_counter()
                _report(progress, results, due)
                for name, result in _results(planned, settings, missing(due, results)):
                    cached = result.pop("cached", False)
                    results[name] = result
                    before += cached
                    if result["status"] == "done" and not cached:
                        header = run_words(result["run"], result["model"]["name"])
                        if header not in said:
                            say(header)
                            said.add(header)
                    now += [name] if result["status"] == "done" and not cached else []
                    _report(progress, results, due)
                    if time.perf_counter() - noted > NOTE_SECONDS:
                        write_results(store, planned, results)
                        noted = time.perf_counter()
        except KeyboardInterrupt:
            stopped = True
        finally:  # the workers are gone; one may have finished a film whose answer did not come through
            sweep(store)
            late = finished_results(store, missing(due, results), settings)
            results |= late
            # Of films at URLs that were not reached, whose contents are not compared: what earlier runs finished stays.
            kept = finished_results(store, missing(due, results), settings, closely=False)
            results |= kept
            lines = write_results(store, planned, results)
    return Summary(
        lines=lines, now=[*now, *late], before=before + len(kept), stopped=stopped,
        waiting=list(missing(due, results).values()), seconds=time.perf_counter() - began,
    )  # fmt: skip


def missing(due: Mapping[str, BatchJob], results: Mapping[str, Any]) -> dict[str, BatchJob]:
    """The jobs by folder that have no result yet."""
    return {name: job for name, job in due.items() if name not in results}


def _results(
    planned: BatchPlan, settings: Settings, todo: Mapping[str, BatchJob]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder, result) of every job, as they come."""
    names, jobs = list(todo), list(todo.values())
    if not jobs:
        return
    found = planned.engine.results(
        partial(planned.worker, settings), jobs, workers=settings.workers, threads=settings.threads,
        tries=planned.tries,
    )  # fmt: skip
    with closing(found) as coming:  # type: ignore[type-var]
        for index, answer in coming:
            yield names[index], failed(jobs[index], answer) if isinstance(answer, str) else answer


def _report(progress: Callable[[int, int], None] | None, results: Mapping[str, Any], due: Mapping[str, Any]) -> None:
    if progress is not None:
        progress(len(results), len(due))


def finished_results(
    store: Store, due: Mapping[str, BatchJob], settings: Settings, *, closely: bool = True
) -> dict[str, Any]:
    """Of the jobs by folder, the results of those that are finished in OUT.

    Films on this machine's disk are read through, to compare their contents. Films at a URL are left to the workers,
    which fetch them anyhow; unless not ``closely``: then their contents are not compared.
    """
    names = set(store.names()) & due.keys()

    def finished(name: str) -> dict[str, Any] | None:
        job = due[name]
        if URL.match(job.place):
            return None if closely else finished_result(store, job, settings, None)
        path = Path(job.place)
        try:
            there = path.is_file() or path.is_dir()
            return finished_result(store, job, settings, fingerprint(path)) if there else None
        except OSError as error:
            log.debug("%s: %s", path, error)
            return None

    with ThreadPoolExecutor(usable_cores(), "deixis-finished") as pool:
        found = dict(zip(names, pool.map(finished, names), strict=True))
    return {name: found[name] for name in due if found.get(name) is not None}


def sweep(store: Store) -> None:
    """Remove what killed workers have left in OUT: folders without result.json, half-made ones."""
    for name in store.names():
        if PART.fullmatch(name) or (FOLDER.fullmatch(name) and store.read(f"{name}/{RESULT}") is None):
            store.remove(name)


def write_results(store: Store, planned: BatchPlan, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
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
        raise DeixisError(f"{store.root}/{RESULTS} cannot be written: {reason_of(error)}") from error
    return lines


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


def in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
