"""The manifest of a batch: which films, which sentences, how; checked row by row before any film is opened."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from deixis.batch.storage import URL, fetched
from deixis.files import read_cells, read_table_text
from deixis.inference import check_size
from deixis.linking import Presence
from deixis.types import DeixisError, Expression, reason_of
from deixis.video import FOLDER_FPS, MAX_PIXELS, Video, check_max_pixels, check_stretch
from deixis.writers import check_formats

BATCH_SCHEMA = "deixis.batch/1"  # of results; the number rises when a reader of the old one would fail


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one film is segmented; as the options of ``deixis segment``. Raises DeixisError for what cannot be."""

    formats: tuple[str, ...] = ("overlay", "rle")
    start: float | None = None  # seconds
    end: float | None = None
    every: int = 1
    size: int | None = None  # pixels of the short side at which frames are encoded
    threshold: float | None = None  # of presence, 0..1
    fps: float = FOLDER_FPS  # of a folder of frames
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        check_stretch(self.start or 0.0, math.inf if self.end is None else self.end, self.every, self.fps)
        if self.threshold is not None:
            Presence(threshold=self.threshold)
        check_size(self.size)
        check_max_pixels(self.max_pixels)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for the whole batch. facts: what ``weights.describe`` says of the model.  threads: of each worker."""

    out: str
    model: str
    facts: Mapping[str, Any]
    device: str = "auto"
    precision: str = "auto"
    workers: int = 1
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One film of a manifest. row: its number there, from 1.  film: as the manifest has it.  place: where that is."""

    row: int
    film: str
    place: str
    sentences: tuple[str, ...]
    options: Options = field(default_factory=Options)

    def open(self, path: str | Path) -> Video:
        """The film, which lies at ``path`` now, read as the options say."""
        read = ("start", "end", "every", "max_pixels", "fps")
        return Video(path, **{name: getattr(self.options, name) for name in read})

    def key(self, settings: Settings) -> str:
        """Differs wherever the result may differ; the film's contents are not in it."""
        facts = [
            BATCH_SCHEMA,
            self.film,
            self.sentences,
            asdict(self.options),
            dict(settings.facts),
            settings.precision,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def folder(self, settings: Settings) -> str:
        """Its folder in OUT: the film's name, and enough of the key."""
        stem = "".join(c if c.isalnum() else "_" for c in PurePosixPath(self.film).stem)
        return f"{stem.encode()[:80].decode(errors='ignore') or 'film'}-{self.key(settings)[:12]}"


def read_manifest(place: str, defaults: Options | None = None) -> list[BatchJob]:
    r"""Read the videos that a CSV or JSONL file lists.

    CSV has a header with `film` and `sentences` (several: `|` between), and any of the options as further columns.
    JSONL has an object a line, `{"film": ..., "sentences": [...], "options": {...}}`. A relative path is relative to
    the manifest.

    Args:
        place: Path or URL of the manifest.
        defaults: Options that a row does not state.

    Returns:
        The jobs, in the manifest's order.

    Raises:
        DeixisError: For anything else, with the line.

    Example:
        >>> from pathlib import Path
        >>> from deixis.batch.manifest import read_manifest
        >>> _ = Path("films.csv").write_text("film,sentences\nfilm.mp4,a red square|a dog\n")
        >>> read_manifest("films.csv")[0].sentences
        ('a red square', 'a dog')
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    suffix = PurePosixPath(place).suffix.lower()
    if suffix not in readers:
        raise DeixisError(f"a manifest ends in .csv or .jsonl, got {place}")
    jobs: dict[Any, BatchJob] = {}
    for line, film, sentences, options in readers[suffix](read_text(place), place):
        try:
            key = _film(film), _sentences(sentences), _options(options, defaults or Options())
            if key in jobs:
                raise DeixisError(f"{film} has the same request in row {jobs[key].row}; leave one of them out")
        except DeixisError as error:
            raise DeixisError(f"{place}, line {line}: {error}") from error
        jobs[key] = BatchJob(
            row=len(jobs) + 1, film=film, place=_beside(place, film), sentences=key[1], options=key[2]
        )
    if not jobs:
        raise DeixisError(f"{place} lists no film")
    return list(jobs.values())


ManifestRow = tuple[int, Any, Any, Any]  # line, film, sentences, options, as they were read


def _csv_rows(text: str, place: str) -> Iterator[ManifestRow]:
    header, rows = read_cells(text, place)
    known = ["film", "sentences", *OPTIONS]
    unknown = [name for name in header if name not in known]
    if unknown or len(set(header)) < len(header) or not {"film", "sentences"} <= set(header):
        raise DeixisError(
            f"{place}: the first line must name film, sentences and any of {', '.join(OPTIONS)}, each once; "
            f"got {', '.join(header)[:200] or 'nothing'}"
        )
    for line, cells in rows:
        if len(cells) != len(header):
            wrong = f"expected {len(header)} cells as in the first line, got {len(cells)}"
            raise DeixisError(f"{place}, line {line}: {wrong}")
        row = dict(zip(header, cells, strict=True))
        options = {name: cell.strip() for name, cell in row.items() if name in OPTIONS and cell.strip()}
        yield line, row["film"].strip(), row["sentences"].split("|"), options


def _jsonl_rows(text: str, place: str) -> Iterator[ManifestRow]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DeixisError(f"{place}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or not {"film", "sentences"} <= set(row) <= {"film", "sentences", "options"}:
            raise DeixisError(f"{place}, line {number}: expected an object of film, sentences and perhaps options")
        yield number, row["film"], row["sentences"], row.get("options") or {}


def _film(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise DeixisError(f"film must be a path or a URL, got {value!r:.80}")
    return value


def _sentences(value: Any) -> tuple[str, ...]:
    many = [value] if isinstance(value, str) else value
    if not isinstance(many, list) or not many:
        raise DeixisError(f"sentences must be a list of one or more, got {value!r:.80}")
    return tuple(Expression(sentence).text for sentence in many)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise DeixisError(f"{name} must be a number, got {value!r:.80}")


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if number != int(number):
        raise DeixisError(f"{name} must be a whole number, got {value!r:.80}")
    return int(number)


def _formats(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise DeixisError(f"{name} must be text as overlay,rle, got {value!r:.80}")
    return check_formats(value)


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "as": _formats, "start": _number, "end": _number, "every": _whole, "size": _whole, "threshold": _number,
    "fps": _number, "max_pixels": _whole,
}  # fmt: skip


def _options(given: Any, defaults: Options) -> Options:
    """defaults, with what a row gives in their place."""
    if not isinstance(given, dict):
        raise DeixisError(f"options must be an object, got {given!r:.80}")
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise DeixisError(f"unknown option {unknown[0]!r:.80}; a film may have {', '.join(OPTIONS)} of its own")
    read = {"formats" if n == "as" else n: OPTIONS[n](n, value) for n, value in given.items() if value is not None}
    return replace(defaults, **read)


def read_text(place: str) -> str:
    """The text of a file at a path or URL. Raises DeixisError where there is none."""
    try:
        with fetched(place) as path:
            if not path.is_file():
                wrong = "no file" if path.exists() else "not there"
                raise DeixisError(f"{place} is {wrong}; expected a manifest, a file of text")
            return read_table_text(path.read_bytes(), place)
    except OSError as error:
        raise DeixisError(f"{place} cannot be read: {reason_of(error)}") from error


def _beside(manifest: str, film: str) -> str:
    """Where a film lies: a URL as it stands, anything else from the manifest's folder on."""
    if URL.match(film):
        return film
    if URL.match(manifest):
        return film if film.startswith("/") else f"{manifest.rpartition('/')[0]}/{film}"
    return str((Path(manifest).parent / film).absolute())
