"""Optical flow as a target: estimated once a film, ahead, into a cache that is checked and may be thrown away.

An entry of the cache belongs to a film's *content* and to the settings that it was made with; its name is their hash.
It is checked when it is read (version, content, settings, shapes, a checksum of the numbers); what does not pass is
reported, dropped and made anew. Flow is of frames sampled at a fixed rate and brought to a fixed size.

N frames, H W pixels of a frame, h w cells of the stored flow. Flow is (dx, dy) in pixels of the frame.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from av.error import FFmpegError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deixis.files import cache_folder
from deixis.metrics.parallel import killed
from deixis.training.captions import CaptionedFilm, VideoCaptions
from deixis.types import DeixisError
from deixis.video import Frame, Video, fit

log = logging.getLogger(__name__)

FLOW_VERSION = 1  # of the entries; raised when what they mean changes
# What a film that does not decode may raise; anything else is a fault of ours, and stops.
BROKEN = (DeixisError, FFmpegError, OSError, cv2.error)
Estimator = Callable[[np.ndarray], np.ndarray]


class FlowError(DeixisError):
    """What the next film would not cure: an estimator that gives something else, a cache that cannot be written."""


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """What flow is estimated of. All numbers are our choice."""

    estimator: str = "dis"  # or MODULE:FUNCTION, which takes (N, H, W, 3) uint8 RGB and gives (N-1, H, W, 2) float32
    rate: float = 6.0  # frames a second that are taken of a film (all, where it has fewer): so that motion is visible
    most: int = 120  # frames taken of a film, from its beginning
    short_side: int = 240  # pixels of the frames that the estimator gets
    long_side: int = 432
    cell: int = 4  # pixels a side of the cells that flow is averaged over to be stored

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.most >= 2 and self.short_side >= 16 and self.cell >= 1):
            raise DeixisError(f"flow needs a rate above 0, 2 frames, 16 pixels and cells of 1 or more, got {self}")


class CacheEntry(NamedTuple):
    """The flow of one film. flow: (N-1, h, w, 2) float32, from frame i to i+1, pixels of a frame of ``size``.

    valid: (N-1, h, w) bool, where forward and backward flow agree.  seconds: (N,) of the sampled frames.
    size: (H, W) of the frames that were read.
    """

    flow: np.ndarray
    valid: np.ndarray
    seconds: np.ndarray
    size: tuple[int, int]


# --- estimating -------------------------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV on one thread: DIS cuts the picture into a strip a thread, and so depends on their number."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def dis_flow(frames: np.ndarray) -> np.ndarray:
    """(N-1, H, W, 2) float32 of (N, H, W, 3) uint8 frames: dense inverse search (arXiv:1603.03590), medium preset."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flow = np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
    with one_thread():
        for i in range(len(flow)):
            # A new one for each pair: an old one keeps buffers of the pair before.
            dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            flow[i] = dis.calc(grey[i], grey[i + 1], None)
    return flow


@lru_cache(maxsize=4)
def find_estimator(name: str) -> Estimator:
    """``dis``, or the function of a hook MODULE:FUNCTION. Raises DeixisError where there is none."""
    if name == "dis":
        return dis_flow
    module, _, function = name.partition(":")
    if not function:
        raise DeixisError(f"unknown flow estimator {name!r}; expected dis, or MODULE:FUNCTION of your own")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DeixisError(f"the flow estimator {name!r} cannot be imported ({error})") from error
    if not callable(found):
        raise DeixisError(f"the flow estimator {name!r} is no function")
    return found


def estimate(frames: np.ndarray, estimator: str = "dis") -> tuple[np.ndarray, np.ndarray]:
    """(flow (N-1, H, W, 2) float32, valid (N-1, H, W) bool) of (N, H, W, 3) uint8 RGB frames.

    Raises DeixisError for a hook that gives another shape, or numbers that are not finite.
    """
    function = find_estimator(estimator)
    forward = np.asarray(function(frames), np.float32)
    backward = np.asarray(function(frames[::-1]), np.float32)[::-1]
    wanted = (len(frames) - 1, *frames.shape[1:3], 2)
    for flow in (forward, backward):
        if flow.shape != wanted or not np.isfinite(flow).all():
            raise FlowError(f"the flow estimator {estimator!r} must give {wanted} finite numbers, got {flow.shape}")
    return forward, np.stack([agree(f, b) for f, b in zip(forward, backward, strict=True)])


def agree(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """(H, W) bool: where (H, W, 2) flow leads somewhere from which the backward flow leads back.

    |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5 pixels^2 (Sundaram et al., ECCV 2010, from memory); outside, nothing leads
    back.
    """
    h, w = forward.shape[:2]
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    back = cv2.remap(backward, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gap = np.square(forward + back).sum(-1)
    inside = (to_x >= 0) & (to_x <= w - 1) & (to_y >= 0) & (to_y <= h - 1)
    return inside & (gap < 0.01 * (np.square(forward).sum(-1) + np.square(back).sum(-1)) + 0.5)


def endpoint_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(...,): distance in pixels between (..., 2) flows."""
    return np.linalg.norm(flow.astype(np.float64) - truth, axis=-1)


# --- as a target ------------------------------------------------------------------------------------------------------


def median_of(flow: np.ndarray) -> np.ndarray:
    """(N, 1, 1, 2): each frame's median flow, which is mostly the camera's motion."""
    return np.median(flow, axis=(1, 2), keepdims=True)


def flow_target(flow: np.ndarray, size: tuple[int, int], unit: float, limit: float) -> np.ndarray:
    """(N, h, w, 2) float32 of flow at the cells of a model: camera motion out, in units, clipped.

    flow: (N, h, w, 2) in pixels of frames of ``size``.  unit: share of the frame's diagonal.  limit: units.
    """
    scale = unit * float(np.hypot(*size))
    return np.clip((flow - median_of(flow)) / scale, -limit, limit).astype(np.float32)


def to_cells(flow: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """(N, H, W, 2) flow averaged over (or spread to) a grid of ``cells`` (h, w); pixels stay those they were."""
    h, w = cells
    if flow.shape[1:3] == (h, w):
        return flow
    shrinks = h * w < flow.shape[1] * flow.shape[2]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(f, (w, h), interpolation=how) for f in flow.astype(np.float32)])


# --- films ------------------------------------------------------------------------------------------------------------


def sampled(film: Video, settings: FlowSettings) -> Iterator[Frame]:
    """Frames at the settings' rate: of each 1/rate seconds the first that comes."""
    due = 0.0
    taken = 0
    for frame in film.frames():
        if frame.seconds + 1e-6 >= due:
            yield frame
            taken += 1
            due = max(due + 1 / settings.rate, frame.seconds)
            if taken == settings.most:
                return


def flow_of_film(row: CaptionedFilm, settings: FlowSettings) -> CacheEntry:
    """Decode a film's sampled frames and estimate their flow. Raises one of BROKEN where it cannot be had."""
    film = Video(row.film, fps=row.fps)
    size = fit(film.source_size, settings.short_side, settings.long_side, settings.cell)
    taken = [(frame.seconds, frame.pixels(size)) for frame in sampled(film, settings)]
    if len(taken) < 2:
        raise DeixisError(f"{row.film} has {len(taken)} frame; flow needs two")
    flow, valid = estimate(np.stack([picture for _, picture in taken]), settings.estimator)
    cells = (-(-size[0] // settings.cell), -(-size[1] // settings.cell))
    share = to_cells(np.repeat(valid[..., None], 2, -1), cells)[..., 0]
    return CacheEntry(to_cells(flow, cells), share >= 0.5, np.array([seconds for seconds, _ in taken]), size)


def content_of(row: CaptionedFilm) -> str:
    """A hash of a film's bytes; of a folder, of its files' names and bytes, and its frames a second."""
    digest = hashlib.sha256()
    if row.film.is_dir():
        digest.update(f"folder {row.fps}".encode())
        for file in sorted(path for path in row.film.iterdir() if path.is_file()):
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()
    with open(row.film, "rb") as film:
        return hashlib.file_digest(film, "sha256").hexdigest()


# --- the cache --------------------------------------------------------------------------------------------------------


class FlowCache:
    """A folder of entries, two letters of the name a subfolder. ``get`` makes what is not there.

    folder: default DEIXIS_CACHE (or ~/.cache/deixis)/flow. Safe to share between processes; safe to delete.
    """

    def __init__(self, folder: Path | None = None, settings: FlowSettings | None = None) -> None:
        self.folder = folder or cache_folder() / "flow"
        self.settings = settings or FlowSettings()

    def place(self, content: str) -> Path:
        """Where the entry of a film's content lies."""
        key = json.dumps([FLOW_VERSION, content, asdict(self.settings)])
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.safetensors"

    def get(self, row: CaptionedFilm) -> CacheEntry:
        """The flow of a film, from the cache or made now (and kept). Raises one of BROKEN."""
        return self.find_or_make(row)[0]

    def find_or_make(self, row: CaptionedFilm) -> tuple[CacheEntry, bool]:
        """The flow, and whether the cache held it."""
        if not row.film.exists():
            raise DeixisError(f"no such film: {row.film}")
        content = content_of(row)
        place = self.place(content)
        if place.is_file():
            try:
                return self._read(place, content), True
            except (DeixisError, SafetensorError, OSError, ValueError, KeyError) as error:
                log.warning("the flow in %s is made anew: %s", place, " ".join(str(error).split()))
        self._write(place, content, flow_of_film(row, self.settings))
        return self._read(place, content), False  # as it will be read ever after: stored numbers are rounded

    def _write(self, place: Path, content: str, entry: CacheEntry) -> None:
        limit = np.finfo(np.float16).max
        tensors = {
            "flow": np.ascontiguousarray(np.clip(entry.flow, -limit, limit).astype(np.float16)),
            "valid": np.ascontiguousarray(entry.valid.astype(np.uint8)),
            "seconds": np.ascontiguousarray(entry.seconds.astype(np.float64)),
        }
        facts = {
            "version": FLOW_VERSION, "content": content, "settings": asdict(self.settings), "size": list(entry.size),
            "sum": _checksum(tensors),
        }  # fmt: skip
        beside = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, metadata={"flow": json.dumps(facts)})
            os.replace(beside, place)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                beside.unlink()
            raise FlowError(f"the flow cache {self.folder} cannot be written ({error}); give another folder") from error

    def _read(self, place: Path, content: str) -> CacheEntry:
        """An entry, if it is whole and of this content; DeixisError and others otherwise."""
        with safe_open(place, framework="np") as file:
            facts = json.loads((file.metadata() or {})["flow"])
            tensors = {name: file.get_tensor(name) for name in ("flow", "valid", "seconds")}
        wanted = {"version": FLOW_VERSION, "content": content, "settings": asdict(self.settings)}
        wrong = [name for name, value in wanted.items() if facts[name] != value]
        if wrong or facts["sum"] != _checksum(tensors):
            raise DeixisError(f"its {wrong[0] if wrong else 'checksum'} is another")
        flow, valid, seconds = tensors["flow"], tensors["valid"], tensors["seconds"]
        if flow.ndim != 4 or flow.shape[-1] != 2 or valid.shape != flow.shape[:3] or len(seconds) != len(flow) + 1:
            raise DeixisError(f"its shapes do not fit: {flow.shape}, {valid.shape}, {seconds.shape}")
        height, width = (int(side) for side in facts["size"])
        return CacheEntry(flow.astype(np.float32), valid.astype(bool), seconds, (height, width))


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


# --- ahead, in parallel -----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Tally:
    """What became of the rows of a list: flow made, flow found, films left out (with the first few reasons)."""

    made: int = 0
    found: int = 0
    broken: int = 0
    reasons: tuple[str, ...] = ()


def fill_cache(
    films: VideoCaptions, cache: FlowCache, workers: int = 1, progress: Callable[[int, int], None] = lambda a, b: None
) -> Tally:
    """Estimate the flow of every film of a list that the cache does not hold yet. A film that is broken is counted.

    What is done stays done, whatever ends this. workers: processes; a few films each are under way at a time, however
    long the list.  progress: called with (rows done, rows in all).
    """
    if workers < 1:
        raise DeixisError(f"the number of processes must be 1 or more, got {workers}")
    find_estimator(cache.settings.estimator)
    tally = Tally()
    # Started clean, so that no thread's lock is inherited.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else nullcontext() as pool:
        rows = ((films, number, cache) for number in range(len(films)))
        try:
            for done, (outcome, reason) in enumerate(_in_turn(pool, rows, workers), 1):
                setattr(tally, outcome, getattr(tally, outcome) + 1)
                if reason:
                    log.warning("left out: %s", reason)
                    tally.reasons = (*tally.reasons, reason)[:5]
                progress(done, len(films))
        except BrokenProcessPool as error:
            raise killed(workers) from error
        except BaseException:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
            raise
    return tally


def _in_turn(pool: ProcessPoolExecutor | None, rows: Iterable[Any], workers: int) -> Iterator[tuple[str, str]]:
    """What ``_one`` says of every row, as they are done; at most four rows a process are under way."""
    if pool is None:
        yield from (_one(*row) for row in rows)
        return
    pending: set[Future[tuple[str, str]]] = set()
    for row in rows:
        pending.add(pool.submit(_one, *row))
        if len(pending) >= 4 * workers:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    yield from (future.result() for future in pending)


def _one(films: VideoCaptions, number: int, cache: FlowCache) -> tuple[str, str]:
    try:
        return ("found" if cache.find_or_make(films[number])[1] else "made"), ""
    except FlowError:
        raise
    except BROKEN as error:
        return "broken", f"row {number + 1}: {' '.join(str(error).split())}"
