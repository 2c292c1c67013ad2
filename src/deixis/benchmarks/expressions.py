"""The meta_expressions.json reader that Ref-YouTube-VOS, Ref-DAVIS17, MeViS, VISOR and world share.

{"videos": {video: {"frames": [names], "expressions": {id: {"exp": text, "obj_id": ..., "anno_id": [...]}}}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deixis.benchmarks.opening import frame_files, normalise_text
from deixis.benchmarks.samples import Problem, VideoEntry
from deixis.files import field_of, read_json, safe_name
from deixis.types import DeixisError


@dataclass(frozen=True)
class ExpressionEntry:
    """One expression as it stands in the file. raw: its whole JSON object."""

    video: VideoEntry
    id: str
    text: str
    raw: Mapping[str, Any]


def read_expressions(
    file: Path, images: Path, where: str, *, keep: frozenset[str] | None = None, least_frames: int = 1
) -> tuple[list[ExpressionEntry], list[Problem]]:
    """Every expression of a split, videos in the file's order, expressions by number; and what is wrong.

    images: the JPEGImages folder.  keep: only these videos (None: all).  least_frames: shorter videos are dropped.
    A video with a missing frame is a problem and gives no entry. Raises DeixisError for a file of another form.
    """
    videos = field_of(read_json(file, where), "videos", dict, file)
    entries: list[ExpressionEntry] = []
    problems: list[Problem] = []
    for video_id, content in videos.items():
        safe_name(video_id, file)
        if keep is not None and video_id not in keep:
            continue
        names = tuple(safe_name(name, file) for name in sorted(field_of(content, "frames", list, file), key=str))
        if len(names) < least_frames:
            continue
        if len(set(names)) < len(names):
            raise DeixisError(f"{file}: a frame stands twice in video {video_id}")
        files, missing = frame_files(images / video_id, names)
        if missing:
            problems += missing
            continue
        video = VideoEntry(id=video_id, names=names, frames=files)
        for exp_id, raw in _by_number(field_of(content, "expressions", dict, file)):
            text = normalise_text(field_of(raw, "exp", str, file), file)
            entries.append(ExpressionEntry(video, safe_name(exp_id, file), text, raw))
    return entries, problems


def video_ids(file: Path, where: str) -> frozenset[str]:
    """The videos that an expression file lists."""
    return frozenset(field_of(read_json(file, where), "videos", dict, file))


def _by_number(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from sorted(table.items(), key=lambda item: (int(item[0]) if item[0].isdecimal() else -1, item[0]))


def id_list(raw: Mapping[str, Any], key: str, source: Path) -> tuple[str, ...] | None:
    """raw[key] as ids: a number, a text or a list of them; None where the file does not say."""
    value = raw.get(key)
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int | str) and not isinstance(v, bool) for v in values):
        raise DeixisError(f"{source}: {key} must be a number, a text or a list of them, got {value!r}")
    return tuple(str(v) for v in values)
