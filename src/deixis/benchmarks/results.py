"""Results on disk: where each protocol wants them, whether they are complete and well formed, and the zip for a server.

A results folder holds what the benchmark's server takes, plus ``.deixis/``: ``run.json`` (which benchmark, split and
model) and one small JSON a sample, written when the sample is finished (so a run can be resumed; presence and scores
lie there).
"""

from __future__ import annotations

import lzma
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from deixis.benchmarks.pngs import checked_mask, png_size, read_ids
from deixis.benchmarks.samples import Benchmark, Sample, VideoEntry
from deixis.files import field_of, list_folder, read_json, safe_name
from deixis.out_folder import whole_file
from deixis.types import DeixisError, reason_of

SIDECAR = ".deixis"
ANSWERS = "predictions.json"
ANNOTATORS = 4  # of Ref-DAVIS17
# What zipfile and its decoders raise on bytes that are no zip.
_BAD_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError, ValueError,
    LookupError,
)  # fmt: skip
MAX_MEMBER = 1 << 30  # bytes of one file in a zip (our choice: far above any mask or predictions file)
MAX_UNPACKED = 16 << 30  # bytes of a whole zip (our choice: masks are small; what holds more is a bomb)
MAX_LISTED = 5  # problems named in one line


def mask_path(benchmark: Benchmark, sample: Sample, name: str) -> str:
    """Where the mask of one sample and frame lies in a results folder (protocol ``expressions``)."""
    return "/".join(part for part in (benchmark.folder, sample.video.id, sample.id, f"{name}.png") if part)


def davis_path(annotator: int, video: VideoEntry, index: int) -> str:
    """Where the map of object numbers of one annotator, video and frame lies (protocol ``davis``)."""
    return f"anno_{annotator}/{video.id}/{index:05d}.png"


def due_files(benchmark: Benchmark, samples: list[Sample] | None = None) -> Iterator[tuple[str, VideoEntry]]:
    """Every file that complete results of a benchmark (or of some of its samples) hold, and the video it belongs to."""
    if benchmark.protocol == "answers":
        yield ANSWERS, benchmark.samples[0].video
        return
    done = set()
    for sample in benchmark.samples if samples is None else samples:
        if benchmark.protocol == "davis":
            annotator = int(sample.id) % ANNOTATORS
            if (sample.video.id, annotator) in done:
                continue
            done.add((sample.video.id, annotator))
            for index in range(len(sample.video.names)):
                yield davis_path(annotator, sample.video, index), sample.video
        else:
            for name in sample.video.names:
                yield mask_path(benchmark, sample, name), sample.video


def marker_path(results: Path, sample: Sample) -> Path:
    """The JSON that says that a sample is finished."""
    return results / SIDECAR / sample.video.id / f"{sample.id}.json"


def read_marker(results: Path, sample: Sample) -> dict[str, Any] | None:
    """presence (0..1) and scores (one a frame, 0..1) of a sample, or None where the results carry none."""
    path = marker_path(results, sample)
    if not path.is_file():
        return None
    marker = read_json(path)
    presence = marker.get("presence") if isinstance(marker, dict) else None
    scores = marker.get("scores", []) if isinstance(marker, dict) else None
    values = [presence, *scores] if isinstance(scores, list) else [None]
    if not all(isinstance(v, int | float) and math.isfinite(v) and 0 <= v <= 1 for v in values):
        raise DeixisError(f"{path}: presence and scores must be numbers in 0..1; write the sample again")
    return marker


def check_presence_of_files(benchmark: Benchmark, results: Path) -> None:
    """Refuse results where a file is missing, or where there is one that the split does not have; each by name."""
    missing, extra = compare_files(benchmark, results)
    if missing:
        raise DeixisError(f"{results} is incomplete: {len(missing)} missing, {_some(missing)}; predict them first")
    if extra:
        raise DeixisError(
            f"{results} holds {len(extra)} that {benchmark.name} {benchmark.split} does not have, {_some(extra)};"
            " is it another split's?"
        )


def compare_files(benchmark: Benchmark, results: Path) -> tuple[list[str], list[str]]:
    """(missing, extra) files of a results folder, relative to it. Stray files outside the video folders are let be."""
    if not results.is_dir():
        raise DeixisError(f"{results} is no folder of results")
    due = {path for path, _ in due_files(benchmark)}
    if benchmark.protocol == "answers":
        return ([] if (results / ANSWERS).is_file() else [ANSWERS]), []
    depth = len(next(iter(due)).split("/"))
    present = set(_files(results, depth, benchmark.folder))
    return sorted(due - present), sorted(present - due)


def _files(root: Path, depth: int, top: str) -> Iterator[str]:
    """Files exactly ``depth`` parts below root (below ``top``), as relative paths; dot files are passed over."""
    folders = [top] if top else [""]
    for _ in range(depth - 1 - (1 if top else 0)):
        below = []
        for folder in folders:
            if not (root / folder).is_dir():
                continue
            for entry in list_folder(root / folder):
                if not entry.name.startswith("."):
                    try:
                        is_folder = entry.is_dir()
                    except OSError as error:  # a symlink loop
                        raise DeixisError(f"{entry.path}: cannot be read ({reason_of(error)})") from error
                    if is_folder:
                        below.append(f"{folder}/{entry.name}" if folder else entry.name)
        folders = below
    for folder in folders:
        if (root / folder).is_dir():
            yield from (f"{folder}/{e.name}" for e in list_folder(root / folder) if not e.name.startswith("."))


def _some(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return "such as " + ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def noted_run(name: str, results: Path) -> tuple[Path, str]:
    """(root, split) of the benchmark that ``predict`` noted in a results folder."""
    run = results / SIDECAR / "run.json"
    if not run.is_file():
        raise DeixisError(f"{results} does not say which split it answers; give --root and --split")
    noted = read_json(run)
    if not isinstance(noted, dict) or noted.get("benchmark") != name:
        was = noted.get("benchmark") if isinstance(noted, dict) else noted
        raise DeixisError(f"{results} holds results of {was}, not of {name}")
    return Path(field_of(noted, "root", str, run)), field_of(noted, "split", str, run)


def read_answers(benchmark: Benchmark, path: Path) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """sample id -> its answers, (score, RLE) each, from a COCO results file.

    Raises DeixisError for an unknown sample, one without an answer, a score that is no finite number.
    """
    known = {sample.id for sample in benchmark.samples}
    answers: dict[str, list[tuple[float, dict[str, Any]]]] = {key: [] for key in known}
    table = read_json(path, "`deixis predict` writes it")
    if not isinstance(table, list):
        raise DeixisError(f"{path}: must be a list of answers in COCO's results form")
    for number, answer in enumerate(table):
        if not isinstance(answer, dict) or not {"image_id", "segmentation", "score"} <= answer.keys():
            raise DeixisError(f"{path}: answer {number} must have image_id, segmentation and score")
        key, score = str(answer["image_id"]), answer["score"]
        if key not in known:
            where = f"{benchmark.name} {benchmark.split}"
            raise DeixisError(f"{path}: answer {number} is to {key[:80]!r}, no sample of {where}")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise DeixisError(f"{path}: answer {number} has the score {score!r}; a finite number is due")
        answers[key].append((float(score), answer["segmentation"]))
    missing = sorted(key for key, given in answers.items() if not given)
    if missing:
        raise DeixisError(f"{path} is incomplete: {len(missing)} samples have no answer, {_some(missing)}")
    return answers


def frame_size(benchmark: Benchmark, sample: Sample) -> tuple[int, int]:
    """(H, W) of a sample's frames: from the first image's header, or, of a film file, from the truth."""
    if isinstance(sample.video.frames, tuple):
        return png_size(sample.video.frames[0])
    assert benchmark.truth is not None
    return benchmark.truth(sample.video, 0 if sample.scored is None else sample.scored[0]).size


def pack_results(benchmark: Benchmark, results: Path, out: Path) -> int:
    """Zip complete, well-formed results as the benchmark's server takes them; returns the number of files.

    Every file is opened first: missing, extra, unreadable, wrongly sized or wrongly typed ones are refused by name,
    and then nothing is written.
    """
    with whole_file(out) as half:
        return _pack(benchmark, results, half)


def _pack(benchmark: Benchmark, results: Path, archive: Path) -> int:
    check_presence_of_files(benchmark, results)
    due = list(due_files(benchmark))
    if benchmark.protocol == "answers":
        sizes = {sample.id: frame_size(benchmark, sample) for sample in benchmark.samples}
        for key, given in read_answers(benchmark, results / ANSWERS).items():
            for _, rle in given:
                checked_mask(rle, sizes[key], f"{results / ANSWERS}: {key}")
    else:
        sizes = {video: frame_size(benchmark, samples[0]) for video, samples in benchmark.by_video().items()}
        modes = ("P",) if benchmark.protocol == "davis" else ("L", "1", "P")
        for name, video in due:
            read_ids(results / name, results / name, sizes[video.id], modes)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as members:
        for name, _ in due:
            members.write(results / name, name)
    return len(due)


@contextmanager
def opened(results: Path, is_top: Callable[[Path], bool]) -> Iterator[Path]:
    """A results folder, or a zip of one unpacked to a temporary folder for as long as it is used.

    is_top: whether results lie in a folder as they should. Where they lie one folder further down, that one is taken.
    """
    if results.is_dir():
        yield top_of(results, is_top)
        return
    if not results.is_file() or not zipfile.is_zipfile(results):
        raise DeixisError(f"{results} is neither a folder of results nor a zip of one")
    with tempfile.TemporaryDirectory(prefix="deixis-") as folder:
        unpack_zip(results, Path(folder))
        top = top_of(Path(folder), is_top)
        try:
            yield top
        except DeixisError as error:  # the temporary folder's name means nothing to a user
            raise DeixisError(str(error).replace(str(top), str(results)).replace(folder, str(results))) from error


def top_of(folder: Path, is_top: Callable[[Path], bool]) -> Path:
    """The folder, or the only one in it, as zip tools and browsers wrap results."""
    if is_top(folder):
        return folder
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and is_top(inside[0]) else folder


def holds(benchmark: Benchmark) -> Callable[[Path], bool]:
    """For ``opened``: whether any file of a benchmark's results lies where it should below a folder."""
    return lambda folder: any((folder / name).is_file() for name, _ in due_files(benchmark))


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack a zip; a member that would leave the folder, a link, or one that is larger than it says is refused."""
    try:
        with zipfile.ZipFile(archive) as members:
            free = shutil.disk_usage(folder).free
            whole = sum(member.file_size for member in members.infolist())
            if whole > MAX_UNPACKED:
                raise DeixisError(f"{archive}: unpacked it would hold {whole:,} bytes, more than {MAX_UNPACKED:,}")
            if whole > free:
                raise DeixisError(f"{archive}: unpacked it would not fit on the disk of {folder}")
            for member in members.infolist():
                if member.filename.endswith("/"):
                    continue
                if "\\" in member.filename or PurePosixPath(member.filename).is_absolute():
                    raise DeixisError(f"{archive}: the member {member.filename[:80]!r} would leave its folder")
                parts = [safe_name(part, archive) for part in member.filename.split("/")]
                if (member.external_attr >> 16) & 0o170000 == 0o120000:
                    raise DeixisError(f"{archive}: the member {member.filename[:80]!r} is a link")
                if member.file_size > MAX_MEMBER:
                    raise DeixisError(f"{archive}: the member {member.filename[:80]!r} holds {member.file_size} bytes")
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with members.open(member) as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy)
    except _BAD_ZIP as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(f"{archive}: not a readable zip ({str(error)[:100]})") from error
