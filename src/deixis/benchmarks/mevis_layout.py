"""MeViS's layout, which the generated world shares: expressions, and masks in one large JSON that is read lazily."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deixis.benchmarks.expressions import ExpressionEntry, id_list, read_expressions
from deixis.benchmarks.fixtures import WORDS, tiny_videos, write_jpegs
from deixis.benchmarks.opening import checked_benchmark
from deixis.benchmarks.pngs import checked_mask, png_size
from deixis.benchmarks.samples import Benchmark, FrameTruth, Problem, Sample, VideoEntry
from deixis.files import cache_path, parse_json, require_file, require_folder, write_json
from deixis.types import DeixisError, encode_rle

log = logging.getLogger(__name__)

SPLITS = ("valid_u", "train", "valid")
WHERE = (
    "get MeViS from https://github.com/henghuiding/MeViS (v2: FudanCVL/MeViSv2 on Hugging Face)"
    " and see docs/benchmarks.md for its layout"
)
LEAST_FRAMES = 2  # read: shorter videos are dropped by the dataset's own code
CHUNK = 1 << 24  # characters read at once while a mask file is indexed


def open_layout(
    root: Path,
    split: str,
    skip_bad: bool,
    name: str,
    published: Mapping[tuple[str, int], Mapping[str, int]] | None = None,
) -> Benchmark:
    """Open a split in MeViS's layout. published: its counts by (split, version), for MeViS itself alone."""
    folder = root / split
    require_folder(folder, WHERE)
    newer = folder / "meta_expressions_v2.json"
    version = 2 if newer.is_file() else 1
    file = newer if version == 2 else folder / "meta_expressions.json"
    entries, problems = read_expressions(file, folder / "JPEGImages", WHERE, least_frames=LEAST_FRAMES)
    samples = [_sample(entry, file) for entry in entries]
    store = None
    if any(sample.objects is not None for sample in samples) or (folder / "mask_dict.json").exists():
        store = MaskStore(require_file(folder / "mask_dict.json", WHERE))
        found = [_problem_of(sample, store) for sample in samples]
        problems += [problem for problem in found if problem]
        samples = [sample for sample, problem in zip(samples, found, strict=True) if problem is None]
    expected = {} if published is None else published[split, version]
    return checked_benchmark(
        Benchmark(
            name=name, split=split, root=root, protocol="expressions", samples=tuple(samples), several=True,
            truth=None if store is None else _Truth(store, samples),
            counts={"videos": len({s.video.id for s in samples}), "expressions": len(samples)},
            expected=expected, absent_possible=version == 2 or published is None,
            problems=tuple(problems), notes=() if published is None else (f"version {version}",),
        ),
        skip_bad,
    )  # fmt: skip


def _sample(entry: ExpressionEntry, file: Path) -> Sample:
    kinds = entry.raw.get("kind", entry.raw.get("kinds", ()))
    many = kinds if isinstance(kinds, list) else [kinds]
    tags = tuple(kind for kind in many if isinstance(kind, str))
    return Sample(
        video=entry.video, id=entry.id, text=entry.text, objects=id_list(entry.raw, "anno_id", file), tags=tags
    )  # fmt: skip


def _problem_of(sample: Sample, store: MaskStore) -> Problem | None:
    if sample.objects is None:
        return Problem(store.file, f"it has masks, but expression {sample.video.id}/{sample.id} has no anno_id")
    for key in sample.objects:
        if key not in store:
            return Problem(store.file, f"no masks of annotation {key}, which {sample.video.id}/{sample.id} names")
        if store.frames(key) != len(sample.video.names):
            has, due = store.frames(key), len(sample.video.names)
            return Problem(store.file, f"annotation {key} has {has} entries, video {sample.video.id} {due} frames")
    return None


class MaskStore:
    """mask_dict.json, read lazily: annotation id -> one RLE or None a frame.

    The first opening scans the file in pieces, without holding it, and keeps where each annotation begins.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        index = cache_path(file, "masks").with_suffix(".json")
        spans = _read_index(index)
        if spans is None:
            log.info("indexing %s once", file)
            spans = {key: list(span) for key, *span in scan_masks(file)}
            try:
                write_json(index, spans)
            except OSError as error:
                log.warning("the index of %s cannot be kept in %s: %s", file, index.parent, error)
        self._spans = spans
        self._entries = lru_cache(maxsize=64)(self._read)

    def __contains__(self, key: str) -> bool:
        return key in self._spans

    def frames(self, key: str) -> int:
        """How many frames an annotation has entries for."""
        return self._spans[key][2]

    def _read(self, key: str) -> list[Any]:
        start, end, _ = self._spans[key]
        with open(self.file, "rb") as file:
            file.seek(start)
            return parse_json(file.read(end - start), self.file)

    def mask(self, key: str, frame: int, size: tuple[int, int]) -> np.ndarray | None:
        """The bool mask of an annotation in a frame of a size (H, W), or None where it is not visible."""
        rle = self._entries(key)[frame]
        return None if rle is None else checked_mask(rle, size, f"{self.file}: annotation {key}, frame {frame}")

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskStore, (self.file,)


def _read_index(index: Path) -> dict[str, list[int]] | None:
    try:
        return json.loads(index.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def scan_masks(file: Path) -> Iterator[tuple[str, int, int, int]]:
    """(key, first byte, last byte + 1, entries) of each annotation in a mask file, in one pass over pieces of it."""
    decoder = json.JSONDecoder()
    with open(file, encoding="ascii", newline="") as source:  # ascii: then a character is a byte
        try:
            yield from _scan(source, decoder)
        except (ValueError, RecursionError) as error:
            raise DeixisError(f"{file}: not a mask dictionary ({str(error)[:120]}); is the download whole?") from error


def _scan(source: Any, decoder: json.JSONDecoder) -> Iterator[tuple[str, int, int, int]]:
    text, base, position = source.read(CHUNK), 0, 0

    def skip(at: int, what: str) -> int:
        while at < len(text) and text[at] in " \t\r\n" + what:
            at += 1
        return at

    position = skip(0, "{")
    while True:
        # An entry is parsed whole; when the piece at hand ends inside it, more is read.
        try:
            if position >= len(text):
                raise ValueError("it ends in the middle")
            if text[position] == "}":
                return
            key, after = decoder.raw_decode(text, position)
            start = skip(after, ":")
            entries, end = decoder.raw_decode(text, start)
            if not isinstance(key, str) or not isinstance(entries, list):
                raise TypeError
            after = skip(end, ",")
            if after >= len(text):
                raise ValueError("it ends in the middle")
        except ValueError:
            more = source.read(CHUNK)
            if not more:
                raise
            base, text, position = base + position, text[position:] + more, 0
            continue
        except TypeError:
            raise ValueError("an annotation must be a list with one entry a frame") from None
        yield key, base + start, base + end, len(entries)
        position = after


class _Truth:
    """(video, frame index) -> FrameTruth with every annotation that any expression of the video names."""

    def __init__(self, store: MaskStore, samples: Sequence[Sample]) -> None:
        self.store = store
        self.keys: dict[str, dict[str, None]] = {}
        for sample in samples:
            self.keys.setdefault(sample.video.id, {}).update(dict.fromkeys(sample.objects or ()))
        self.size = lru_cache(maxsize=16)(png_size)

    def __call__(self, video: VideoEntry, index: int) -> FrameTruth:
        assert isinstance(video.frames, tuple)
        size = self.size(video.frames[0])
        masks = {}
        for key in self.keys[video.id]:
            mask = self.store.mask(key, index, size)
            if mask is not None:
                masks[key] = mask
        return FrameTruth(size, masks)


def write_fixture(out: Path) -> None:
    """All three splits in v2's form: an expression for each box, one for both, and one that names nothing."""
    for split in SPLITS:
        masks: dict[str, list[Any]] = {}
        videos = {}
        for number, video in enumerate(tiny_videos()):
            names = [f"{t:05d}" for t in range(len(video.frames))]
            write_jpegs(out / split / "JPEGImages" / video.id, video, names)
            for i in (1, 2):
                masks[str(2 * number + i - 1)] = [_rle(ids == i) for ids in video.ids]
            said = [(WORDS[0], [0]), (WORDS[1], [1]), ("the two boxes", [0, 1]), ("the dog that jumps", [])]
            expressions = {
                str(i): {"exp": words}
                | ({} if split == "valid" else {"obj_id": objects, "anno_id": [2 * number + o for o in objects]})
                for i, (words, objects) in enumerate(said)
            }
            videos[video.id] = {"frames": names, "expressions": expressions}
        (out / split / "meta_expressions_v2.json").write_text(json.dumps({"videos": videos}))
        if split != "valid":
            (out / split / "mask_dict.json").write_text(json.dumps(masks))


def _rle(mask: np.ndarray) -> dict[str, Any] | None:
    if not mask.any():
        return None
    rle = encode_rle(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
