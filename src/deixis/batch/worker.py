"""One film of a batch: a worker holds the model and answers one film after another."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn

from deixis import __version__, weights
from deixis.batch.manifest import BATCH_SCHEMA, BatchJob, Settings
from deixis.batch.storage import RESULT, Store, fetched, fingerprint
from deixis.devices import choose_device, run_facts
from deixis.inference import remarks_on, segment
from deixis.types import DeixisError, MaskTrack
from deixis.video import Video
from deixis.writers import write
from deixis.writers.output import Output

log = logging.getLogger(__name__)


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

    def __call__(self, job: BatchJob) -> dict[str, Any]:
        """The film's line of results.jsonl, with ``cached`` where it was found finished; failures are returned."""
        began, path = time.perf_counter(), Path(job.place)
        try:
            with fetched(job.place) as path:
                return self._segment(job, path, began)
        except DeixisError as error:
            reason = str(error)
        except Exception as error:  # whatever it is, it is this film's; the others shall be done
            reason = f"{type(error).__name__}: {error}"
        return failed(job, reason.replace(str(path), job.place))

    def _segment(self, job: BatchJob, path: Path, began: float) -> dict[str, Any]:
        film = job.open(path)
        contents, name = fingerprint(path), job.folder(self.settings)
        before = finished_result(self.store, job, self.settings, contents)
        if before is not None:
            return {**before, "cached": True}
        self.store.remove(name)
        with self.store.making(name) as output:
            tracks = self.make(job, film, output)
            result = self._result(job, film, tracks, output)
            result |= {"film_sha256": contents, "seconds": round(time.perf_counter() - began, 3)}
            with output.item(RESULT) as place:
                place.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
        return result

    def make(self, job: BatchJob, film: Video, output: Output) -> list[MaskTrack]:
        """What ``deixis segment`` does."""
        tracks = segment(
            film, list(job.sentences), model=self.system, device=self.device, precision=self.settings.precision,
            size=job.options.size, threshold=job.options.threshold, folder=output.scratch,
        )  # fmt: skip
        write(output, film, tracks, job.options.formats, model={**self.settings.facts, **self.run()})
        return tracks

    def run(self) -> dict[str, str]:
        """Device, precision and engine of this worker."""
        return run_facts(self.system, self.device, self.settings.precision)

    def _result(self, job: BatchJob, film: Video, tracks: Sequence[MaskTrack], output: Output) -> dict[str, Any]:
        outputs = {}
        for name in output.finished:
            place = output.scratch / name
            files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
            outputs[name] = sum(file.stat().st_size for file in files)
        return {
            "film": job.film, "sentences": list(job.sentences), "status": "done", "reason": None,
            "folder": job.folder(self.settings), "frames": len(tracks[0]),
            "tracks": [{"presence": round(t.presence, 6), "present": t.present, "verdict": t.verdict} for t in tracks],
            "outputs": outputs, "options": asdict(job.options),
            "warnings": [*remarks_on(job.sentences, self.settings.model), *film.warnings],
            "model": dict(self.settings.facts), "precision": self.settings.precision, "device": self.device,
            "run": self.run(),
            "workers": self.settings.workers, "threads": self.settings.threads, "schema": BATCH_SCHEMA,
            "deixis": __version__, "key": job.key(self.settings),
        }  # fmt: skip


def failed(job: BatchJob, reason: str) -> dict[str, Any]:
    """The line of results.jsonl of a film that could not be done."""
    return {
        "film": job.film, "sentences": list(job.sentences), "status": "failed", "reason": " ".join(reason.split()),
        "folder": None, "schema": BATCH_SCHEMA,
    }  # fmt: skip


def finished_result(store: Store, job: BatchJob, settings: Settings, contents: str | None) -> dict[str, Any] | None:
    """The result of a film that is finished in OUT: the same request, the same contents (None: whatever they are), and
    every output there at its full size.
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
