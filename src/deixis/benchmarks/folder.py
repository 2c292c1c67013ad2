"""Your own data: a folder of films, one of masks, and a CSV of sentences. A benchmark like any other.

    ROOT/sentences.csv                    columns film, sentence, objects; and, if wanted, split, kind
    ROOT/films/<film>.mp4                 a film (anything PyAV decodes), or a folder of frames <film>/<frame>.jpg
    ROOT/masks/<film>/<frame>.png         object numbers, one channel; of a film file, frames are counted from 0

Frames without a mask file are not labelled: they are shown to the model, and neither scored nor trained on. T frames.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from deixis.benchmarks.fixtures import WORDS, tiny_videos, write_film, write_jpegs
from deixis.benchmarks.opening import IMAGE_SUFFIXES, checked_benchmark, choose_split, normalise_text
from deixis.benchmarks.pngs import VOID, png_size, present_numbers, read_ids, write_ids
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import (
    cache_folder,
    list_folder,
    read_cells,
    read_table_text,
    require_file,
    require_folder,
    safe_name,
    write_json,
)
from deixis.types import DeixisError, Expression, reason_of
from deixis.video import FILM_SUFFIXES, Video, natural

log = logging.getLogger(__name__)

NAME = "folder"
SPLITS = ("valid", "train", "test")
FOLDER_COLUMNS = ("film", "sentence", "objects")
MORE_COLUMNS = ("split", "kind")
NOTHING = "none"  # what stands under objects where a sentence names nothing in its film
HELD_OUT = 5  # without a column split, about one film in so many is valid (our choice)
WHERE = "docs/train_on_your_data.md describes such a folder's layout; `deixis data fixture folder OUT` writes one"


@dataclass(frozen=True)
class _Row:
    """One line of the table. objects: as masks number them; () where the sentence names nothing."""

    line: int
    film: str
    text: str
    objects: tuple[str, ...]
    split: str
    kind: str


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of a film's masks without reading them again.

    size: (H, W) of the film.  files: frame name -> mask file, in the film's order.  present: frame name -> object
    numbers in it.
    """

    size: tuple[int, int]
    files: Mapping[str, Path]
    present: Mapping[str, frozenset[str]]


@dataclass(frozen=True, eq=False)
class FolderTruth:
    """(video, frame index) -> FrameTruth; goes by the frame's name, so a video may be cut down to some frames."""

    labels: Mapping[str, Labels] = field(default_factory=dict)

    def __call__(self, video: VideoEntry, index: int) -> FrameTruth:
        known = self.labels[video.id]
        path = known.files[video.names[index]]
        return frame_truth(read_ids(path, path, known.size))

    def present(self, video: VideoEntry, index: int) -> frozenset[str]:
        """The numbers of the objects in a labelled frame, without reading it."""
        return self.labels[video.id].present[video.names[index]]


def frame_truth(ids: np.ndarray) -> FrameTruth:
    """A map of object numbers as truth. 255 is object 1 where there is nothing else (a 0/255 mask), void otherwise."""
    if present_numbers(ids) == [VOID]:
        return FrameTruth(ids.shape, {"1": ids == VOID})  # type: ignore[arg-type]
    return FrameTruth.from_ids(ids, void_value=VOID)


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a split (default valid, or the only one that there is).

    Without a column ``split``, about a fifth of the films, by the hash of their names, is valid, the rest train.
    Raises DeixisError for a table of another form, and for everything wrong unless ``skip_bad`` leaves it out.
    """
    require_folder(root, WHERE)
    rows, problems, notes = read_table(root)
    held = {row.split for row in rows}
    split = choose_split(split, [name for name in SPLITS if name in held] or SPLITS, NAME)
    films, clashes = _find_films(require_folder(root / "films", WHERE))
    problems += clashes
    masks = require_folder(root / "masks", WHERE)
    videos: dict[str, VideoEntry] = {}
    labels: dict[str, Labels] = {}
    for film in dict.fromkeys(row.film for row in rows if row.split == split):
        found = _open_film(film, films, root / "films", masks / film, problems)
        if found is not None:
            videos[film], labels[film] = found
    samples = []
    for video_id, own in _by_film(rows, split).items():
        if video_id not in videos:
            continue
        video, known = videos[video_id], labels[video_id]
        scored = tuple(index for index, name in enumerate(video.names) if name in known.files)
        there = frozenset().union(*known.present.values())
        for number, row in enumerate(own):
            lost = [key for key in row.objects if key not in there]
            if lost:
                has = f"they hold {', '.join(sorted(there, key=int))}" if there else "they hold no object at all"
                what = f"line {row.line}: no mask of {video_id} shows object {lost[0]}; {has}"
                problems.append(Problem(root / "sentences.csv", what))
                continue
            sample = Sample(
                video=video, id=str(number), text=row.text, objects=row.objects, tags=(row.kind,) if row.kind else (),
                scored=None if len(scored) == len(video.names) else scored,
            )  # fmt: skip
            samples.append(sample)
    counts = {
        "films": len({s.video.id for s in samples}),
        "sentences": len(samples),
        "labelled frames": sum(len(labels[key].files) for key in {s.video.id for s in samples}),
    }
    return checked_benchmark(
        Benchmark(
            name=NAME, split=split, root=root, protocol="expressions", samples=tuple(samples),
            truth=FolderTruth(labels),
            counts=counts, absent_possible=any(not row.objects for row in rows), problems=tuple(problems), notes=notes,
        ),
        skip_bad,
    )  # fmt: skip


def splits(root: Path) -> tuple[str, ...]:
    """The splits that a folder's table holds; () where there is no such table."""
    try:
        held = {row.split for row in read_table(Path(root))[0]}
    except DeixisError:
        return ()
    return tuple(split for split in SPLITS if split in held)


# --- the table -------------------------------------------------------------------------------------------------------


def read_table(root: Path) -> tuple[list[_Row], list[Problem], tuple[str, ...]]:
    """The good rows of ``root/sentences.csv``, what is wrong with the others, and notes.

    Commas, semicolons or tabs between cells, as the head line has them; a byte-order mark is passed over. Raises
    DeixisError for a file that is no such table.
    """
    path = require_file(root / "sentences.csv", WHERE)
    names, body = _cells(path)
    rows: list[_Row] = []
    problems: list[Problem] = []
    for line, cells in body:
        table = dict(zip(names, (cell.strip() for cell in cells), strict=False))
        try:
            if len(cells) != len(names):
                hint = "a sentence with commas in it must stand in double quotes" if len(cells) > len(names) else ""
                raise DeixisError(f"{len(cells)} cells, the head line has {len(names)}{hint and '; ' + hint}")
            rows.append(_row(line, table, path))
        except DeixisError as error:
            problems.append(Problem(path, f"line {line}: {str(error).removeprefix(f'{path}: ')}"))
    if "split" not in names:
        held = held_out_films({row.film for row in rows})
        rows = [replace(row, split="valid" if row.film in held else "train") for row in rows]
    problems += _contradictions(rows, path)
    unread = [name for name in names if name not in (*FOLDER_COLUMNS, *MORE_COLUMNS)]
    notes = (f"columns not read: {', '.join(unread)}",) if unread else ()
    return rows, problems, notes


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(column names, (line number, cells) of every line that is not blank)."""
    try:
        text = read_table_text(path.read_bytes(), path)
    except OSError as error:
        raise DeixisError(f"{path}: cannot be read ({reason_of(error)})") from error
    names, rows = read_cells(text, path)
    if not names:
        raise DeixisError(f"{path} is empty; its first line must be {','.join(FOLDER_COLUMNS)}")
    missing = [name for name in FOLDER_COLUMNS if name not in names]
    if missing:
        got = ", ".join(names)[:120]
        raise DeixisError(
            f"{path}: the first line lacks {', '.join(missing)}; expected {','.join(FOLDER_COLUMNS)}, got {got}"
        )
    if len(set(names)) < len(names):
        raise DeixisError(f"{path}: a column stands twice in the first line, {', '.join(names)[:120]}")
    if not rows:
        raise DeixisError(f"{path} holds no sentence; its first line must be followed by rows")
    return names, rows


def _row(line: int, table: Mapping[str, str], path: Path) -> _Row:
    film = Path(table["film"])
    split = table.get("split", "train").lower()
    if not table["film"]:
        raise DeixisError("no film; name one of the folder films/")
    if split not in SPLITS:
        raise DeixisError(f"the split must be {', '.join(sorted(SPLITS))}, got {table['split']!r}")
    name = safe_name(film.stem if film.suffix.lower() in FILM_SUFFIXES else table["film"], path)
    text = Expression(normalise_text(table["sentence"], path)).text
    return _Row(line, name, text, _objects(table["objects"]), split, table.get("kind", ""))


def _objects(cell: str) -> tuple[str, ...]:
    words = cell.replace("+", " ").replace(",", " ").replace(";", " ").lower().split()
    if words == [NOTHING]:
        return ()
    if not words or not all(word.isascii() and word.isdigit() and 0 < int(word) < VOID for word in words):
        raise DeixisError(
            f"objects must be numbers as in the masks (1..254, blanks between), or {NOTHING} where the sentence names"
            f" nothing in the film, got {cell!r}"
        )
    return tuple(dict.fromkeys(str(int(word)) for word in words))


def held_out_films(films: set[str]) -> frozenset[str]:
    """About a fifth of the films, by the hash of their names; at least one of two or more."""
    numbers = {film: int(hashlib.sha1(film.encode()).hexdigest(), 16) for film in films}
    held = {film for film, number in numbers.items() if number % HELD_OUT == 0}
    if not held and len(films) > 1:
        held = {min(numbers, key=lambda film: numbers[film])}
    return frozenset(held) if len(held) < len(films) else frozenset(sorted(held)[1:])


def _contradictions(rows: Sequence[_Row], path: Path) -> list[Problem]:
    """Films in two splits, and sentences that name different objects in two lines; the earlier line counts."""
    problems = []
    of_film: dict[str, _Row] = {}
    said: dict[tuple[str, str], _Row] = {}
    for row in rows:
        first = of_film.setdefault(row.film, row)
        if row.split != first.split:
            what = f"{row.film} is {row.split} here and {first.split} in line {first.line}; a film has one split"
            problems.append(Problem(path, f"line {row.line}: {what}"))
        before = said.setdefault((row.film, row.text), row)
        if set(before.objects) != set(row.objects):
            problems.append(
                Problem(path, f"line {row.line}: the sentence stands in line {before.line} too, with other objects")
            )
    return problems


def _by_film(rows: Sequence[_Row], split: str) -> dict[str, list[_Row]]:
    films: dict[str, list[_Row]] = {}
    for row in rows:
        if row.split == split:
            films.setdefault(row.film, []).append(row)
    return films


# --- films and masks -------------------------------------------------------------------------------------------------


def _find_films(folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """film -> its file or its folder of frames, and a problem for each name that two have."""
    found: dict[str, Path] = {}
    problems = []
    for entry in list_folder(folder):
        if entry.name.startswith("."):
            continue
        name = entry.name if Path(entry.path).is_dir() else Path(entry.name).stem
        if name in found:
            problems.append(Problem(Path(entry.path), f"{found[name].name} has the same name; rename one of them"))
        found.setdefault(name, Path(entry.path))
    return found, problems


def _open_film(
    film: str, films: Mapping[str, Path], folder: Path, masks: Path, problems: list[Problem]
) -> tuple[VideoEntry, Labels] | None:
    """A film with what its masks show, or None with a problem noted."""
    if film not in films:
        problems.append(Problem(folder / film, "no film and no folder of frames of this name"))
        return None
    if not masks.is_dir():
        problems.append(Problem(masks, "the folder of the film's masks is missing"))
        return None
    path = films[film]
    try:
        found = [Path(e.path) for e in list_folder(masks) if e.name.lower().endswith(".png") and e.name[0] != "."]
        files = sorted(found, key=lambda file: natural(file.name))
        video, size, present = _known(film, path, files)
        labels, wrong = _match(video, size, files, present)
    except DeixisError as error:
        text = str(error)
        problems.append(Problem(path, text.removeprefix(f"{path}: ").removeprefix(f"{path} ")))
        return None
    problems += wrong
    if not labels.files:
        if not wrong:
            problems.append(Problem(masks, "it holds no mask; expected <frame>.png"))
        return None
    return video, labels


def _known(
    film: str, path: Path, masks: Sequence[Path]
) -> tuple[VideoEntry, tuple[int, int], dict[str, list[int] | str]]:
    """The video, its (H, W), and of each mask file the numbers in it, or what is wrong with it.

    Counting a film's frames and reading its masks takes time, so it is kept in the cache (DEIXIS_CACHE).
    """
    pictures = _pictures(path) if path.is_dir() else ()
    size = png_size(pictures[0]) if pictures else None
    kept = cache_folder() / f"folder-{_fingerprint([path, *masks])}.json"
    try:
        facts = json.loads(kept.read_text())
    except (OSError, ValueError, RecursionError):
        facts = _read_facts(path, size, masks)
        try:
            write_json(kept, facts)
        except OSError as error:
            log.warning("what was found in %s cannot be kept: %s", path, error)
    if pictures:
        video = VideoEntry(id=film, names=tuple(picture.stem for picture in pictures), frames=pictures)
    else:
        video = VideoEntry(id=film, names=tuple(f"{i:05d}" for i in range(facts["frames"])), frames=path, first=0)
    return video, (facts["size"][0], facts["size"][1]), facts["masks"]


def _pictures(folder: Path) -> tuple[Path, ...]:
    found = [Path(e.path) for e in list_folder(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES]
    pictures = tuple(sorted((f for f in found if not f.name.startswith(".")), key=lambda f: natural(f.name)))
    if not pictures:
        raise DeixisError(f"{folder}: a folder without frames; expected pictures ({' '.join(IMAGE_SUFFIXES)})")
    stems = [picture.stem for picture in pictures]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DeixisError(f"{folder}: two frames are called {twice}; keep one of them")
    return pictures


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(b"1")
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # a link that leads nowhere, or to itself
            raise DeixisError(f"{path}: cannot be read ({reason_of(error)})") from error
        digest.update(f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _read_facts(path: Path, size: tuple[int, int] | None, masks: Sequence[Path]) -> dict:
    frames = 0
    if size is None:
        film = Video(path)
        size = film.source_size
        frames = sum(1 for _ in film.frames())
    return {"size": list(size), "frames": frames, "masks": {mask.name: _numbers_in(mask, size) for mask in masks}}


def _numbers_in(mask: Path, size: tuple[int, int]) -> list[int] | str:
    try:
        return sorted(int(key) for key in frame_truth(read_ids(mask, mask, size)).masks)
    except DeixisError as error:
        return str(error).removeprefix(f"{mask}: ")


def _match(
    video: VideoEntry, size: tuple[int, int], masks: Sequence[Path], found: Mapping[str, list[int] | str]
) -> tuple[Labels, list[Problem]]:
    """Bring masks and frames together by name."""
    problems = []
    files: dict[str, Path] = {}
    present: dict[str, frozenset[str]] = {}
    known = set(video.names)
    for mask in masks:
        numbered = isinstance(video.frames, Path) and mask.stem.isascii() and mask.stem.isdigit()
        name = f"{int(mask.stem):05d}" if numbered else mask.stem
        numbers = found[mask.name]
        if name not in known:
            problems.append(Problem(mask, f"{video.id} has no such frame; its frames are {_span(video)}"))
        elif name in files:
            problems.append(Problem(mask, f"{files[name].name} is a mask of the same frame"))
        elif isinstance(numbers, str):
            problems.append(Problem(mask, numbers))
        else:
            files[name], present[name] = mask, frozenset(str(n) for n in numbers)
    order = [name for name in video.names if name in files]
    return Labels(size, {name: files[name] for name in order}, present), problems


def _span(video: VideoEntry) -> str:
    first, last = video.names[0], video.names[-1]
    return f"{first} to {last}" + (", counted from 0" if isinstance(video.frames, Path) else "")


# --- a tiny copy -----------------------------------------------------------------------------------------------------


def write_fixture(out: Path) -> None:
    """Three films of eight frames, one of them a film file, one labelled in every other frame; with all columns."""
    lines = ["film,sentence,objects,split,kind"]
    for number, video in enumerate(tiny_videos(frames=8)):
        names = [f"{t:05d}" for t in range(len(video.frames))]
        if number == 0:
            write_film(out / "films" / f"{video.id}.mp4", video)
        else:
            write_jpegs(out / "films" / video.id, video, names)
        for t, ids in enumerate(video.ids):
            if number != 1 or t % 2 == 0:
                write_ids(out / "masks" / video.id / f"{names[t]}.png", ids)
        split = "valid" if number == 2 else "train"
        lines += list(_fixture_lines(video.id, split))
    (out / "sentences.csv").write_text("\n".join(lines) + "\n")


def _fixture_lines(film: str, split: str) -> Iterator[str]:
    said = ((WORDS[0], "1", "motion"), (WORDS[1], "2", "place"), ("the two boxes, both of them", "1 2", "several"))
    for words, objects, kind in (*said, ("the dog that jumps", NOTHING, "none")):
        yield f'{film},"{words}",{objects},{split},{kind}'
