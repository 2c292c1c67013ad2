"""JHMDB-Sentences (Gavrilyuk et al., CVPR 2018): 928 short films, a sentence each, three frames scored.

Which three is not part of the dataset, and lists differ: MTTR's and SOC's share 295 of their 2,784 samples. The list is
therefore the split's name, and stands in every score: ``mttr``, ``soc``, or ``drawn`` (ours, from a fixed seed).
"""

from __future__ import annotations

import json
import struct
import zlib
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from deixis.benchmarks.fixtures import WORDS, tiny_videos
from deixis.benchmarks.opening import checked_benchmark, choose_split, frame_files, normalise_text
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import list_folder, read_json, read_words, require_file, require_folder, safe_name
from deixis.types import DeixisError

NAME = "jhmdb-sentences"
SPLITS = ("mttr", "soc", "drawn")
LISTS = {
    "mttr": "jhmdb_sentences_samples_metadata.json",
    "soc": "jhmdb_sentences_samples_metadata_soc.json",  # our name for SOC's list, so that both can lie side by side
}
WHERE = "get JHMDB from http://jhmdb.is.tue.mpg.de and the sentences and sample lists as docs/benchmarks.md says"
EXPECTED = {"samples": 2784}  # read: 928 sentences, three frames each
FRAMES_DRAWN, DRAW_SEED = 3, 0


def open_split(root: Path, split: str | None = None, skip_bad: bool = False) -> Benchmark:
    """Open a sample list by name (default MTTR's)."""
    split = choose_split(split, SPLITS, NAME)
    rows = _draw(root) if split == "drawn" else _read_list(root / LISTS[split])
    samples: list[Sample] = []
    problems: list[Problem] = []
    videos: dict[str, VideoEntry | None] = {}
    for video_id, folder, frame, count, text in rows:
        key = folder + "/" + video_id
        if key not in videos:
            names = tuple(f"{i:05d}" for i in range(1, count + 1))
            files, missing = frame_files(root / "Rename_Images" / folder / video_id, names)
            mat = _mat(root, folder, video_id)
            if not mat.is_file():
                missing.append(Problem(mat, "the masks are missing"))
            problems += missing
            videos[key] = None if missing else VideoEntry(id=video_id, names=names, frames=files)
        video = videos[key]
        if video is None:
            continue
        if not 1 <= frame <= count or count != len(video.names):
            problems.append(
                Problem(
                    root / "Rename_Images" / folder / video_id,
                    f"it has no frame {frame} of {count}, or is listed with another length",
                )
            )
            continue
        sample_id = f"v_{video_id}_f_{frame}"
        samples.append(Sample(video=video, id=sample_id, text=text, objects=("1",), scored=(frame - 1,)))
    counts = {"videos": len({s.video.id for s in samples}), "samples": len(samples)}
    if len({s.id for s in samples}) < len(samples):
        problems.append(Problem(root, f"the list {split} holds a sample twice"))
    note = f"sample list: {split}" + (
        f", seed {DRAW_SEED}: not comparable with published numbers" if split == "drawn" else ""
    )
    return checked_benchmark(
        Benchmark(
            name=NAME, split=split, root=root, protocol="answers", samples=tuple(samples),
            truth=partial(truth, root), counts=counts, expected=EXPECTED, problems=tuple(problems), notes=(note,),
        ),
        skip_bad,
    )  # fmt: skip


SampleRow = tuple[str, str, int, int, str]  # video, class folder, frame from 1, number of frames, text


def _read_list(path: Path) -> list[SampleRow]:
    table = read_json(path, WHERE)
    rows = []
    for row in table if isinstance(table, list) else [None]:
        if not isinstance(row, list) or len(row) < 5 or not isinstance(row[1], str) or not isinstance(row[3], int):
            raise DeixisError(
                f"{path}: a row must be video, frame path, mask path, number of frames, text, got {row!r}"
            )
        parts = Path(row[1]).parts  # the paths are those of the list's author: only their last three parts count
        if len(parts) < 3 or not Path(parts[-1]).stem.isdecimal():
            raise DeixisError(f"{path}: a frame path must end in <class>/<video>/<number>.png, got {row[1]!r}")
        folder, video = safe_name(parts[-3], path), safe_name(parts[-2], path)
        rows.append((video, folder, int(Path(parts[-1]).stem), row[3], normalise_text(row[4], path)))
    return rows


def _draw(root: Path) -> list[SampleRow]:
    """Three frames of every film, at random from a fixed seed among those that have a mask."""
    annotation = require_file(root / "jhmdb_annotation.txt", WHERE)
    rows = []
    folders = {}
    for group in list_folder(require_folder(root / "puppet_mask", WHERE)):
        if group.is_dir():
            folders.update({entry.name: group.name for entry in list_folder(Path(group.path))})
    rng = np.random.default_rng(DRAW_SEED)
    for line in sorted(read_words(annotation).splitlines()):
        video, _, text = line.partition(",")
        if not text or video == "video_id":
            continue
        if safe_name(video, annotation) not in folders:
            raise DeixisError(f"{annotation}: the film {video} has no masks in {root / 'puppet_mask'}")
        masks = _masks(_mat(root, folders[video], video))
        frames = np.flatnonzero(masks.any(axis=(1, 2))) + 1
        for frame in sorted(rng.choice(frames, min(FRAMES_DRAWN, len(frames)), replace=False).tolist()):
            rows.append((video, folders[video], frame, len(masks), normalise_text(text, annotation)))
    return rows


def _mat(root: Path, folder: str, video: str) -> Path:
    return root / "puppet_mask" / folder / video / "puppet_mask.mat"


# What scipy's reader raises on bytes that are no MATLAB file, beside its own MatReadError.
_GARBAGE = (
    OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, NotImplementedError,
    MemoryError, UnboundLocalError, struct.error, zlib.error,
)  # fmt: skip


@lru_cache(maxsize=8)
def _masks(path: Path) -> np.ndarray:
    """(T, H, W) bool from MATLAB's H x W x T."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    require_file(path, WHERE)  # a pipe would be waited for
    try:
        return np.ascontiguousarray(loadmat(path)["part_mask"].transpose(2, 0, 1)).astype(bool)
    except (MatReadError, *_GARBAGE) as error:
        raise DeixisError(f"{path}: not a mask file of JHMDB ({str(error)[:100]})") from error


def truth(root: Path, video: VideoEntry, index: int) -> FrameTruth:
    """The person of one frame, as object 1."""
    assert isinstance(video.frames, tuple)
    masks = _masks(_mat(root, video.frames[0].parent.parent.name, video.id))
    if index >= len(masks):
        raise DeixisError(f"{video.id} has {len(masks)} masks, frame {index + 1} is needed")
    return FrameTruth(masks.shape[1:], {"1": masks[index]})


def write_fixture(out: Path) -> None:
    """Three films of one class and both sample lists."""
    from PIL import Image
    from scipy.io import savemat

    lines, lists = [], {"mttr": [], "soc": []}  # type: ignore[var-annotated]
    for video in tiny_videos():
        folder = out / "Rename_Images" / "walk" / video.id
        folder.mkdir(parents=True, exist_ok=True)
        for t, frame in enumerate(video.frames):
            Image.fromarray(frame).save(folder / f"{t + 1:05d}.png")
        mat = _mat(out, "walk", video.id)
        mat.parent.mkdir(parents=True, exist_ok=True)
        savemat(mat, {"part_mask": (video.ids == 1).astype(np.uint8).transpose(1, 2, 0)})
        lines.append(f"{video.id},{WORDS[0]}")
        for name, frames in (("mttr", (1, 2, 4)), ("soc", (1, 3, 4))):
            for frame in frames:
                image = f"./jhmdb_sentences/Rename_Images/walk/{video.id}/{frame:05d}.png"
                lists[name].append([video.id, image, f"walk/{video.id}/puppet_mask.mat", len(video.frames), WORDS[0]])
    (out / "jhmdb_annotation.txt").write_text("video_id,query\n" + "\n".join(lines) + "\n")
    for name, rows in lists.items():
        (out / LISTS[name]).write_text(json.dumps(rows))
