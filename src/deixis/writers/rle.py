"""Masks as RLE in one JSON (docs/rle.md), written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from deixis.types import DeixisError, Expression, MaskTrack, RleMasks, reason_of
from deixis.writers.format import Format
from deixis.writers.output import VideoSource

MASKS_SCHEMA = "deixis.masks/1"  # see docs/rle.md; the number rises when a reader of the old one would fail


def write_rle(
    path: Path, film: VideoSource, tracks: Sequence[MaskTrack], *, model: Mapping[str, Any], complete: bool = True
) -> None:
    """Write one JSON of all tracks (docs/rle.md), track by track, so that a long video need not fit in memory.

    Args:
        path: The file.
        film: The video that the tracks are of.
        tracks: One track per expression.
        model: What the JSON states of the model.
        complete: False when the video was not processed to its end.

    Example:
        >>> from pathlib import Path
        >>> import deixis
        >>> from deixis.writers.rle import read_rle, write_rle
        >>> video = deixis.Video("film.mp4")
        >>> write_rle(Path("again.json"), video, deixis.segment(video, "the red square"), model={"name": "light"})
        >>> len(read_rle("again.json"))
        1
    """
    height, width = film.source_size
    first = tracks[0]
    # A file's name may be no UTF-8; a backslash and its number is what JSON writes for such a character.
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        facts = {
            "schema": MASKS_SCHEMA,
            "film": {
                "name": film.path.name,
                "height": height,
                "width": width,
                "start": film.start,
                "end": None if math.isinf(film.end) else film.end,
                "every": film.every,
            },
            "model": dict(model),
            "complete": complete,
        }
        file.write(json.dumps(facts, ensure_ascii=False)[:-1])
        file.write(',\n"times": ')
        _write_list(file, (f"{seconds:.6f}" for seconds in first.times))
        file.write(',\n"frames": ')
        _write_list(file, (str(number) for number in film.numbers(first.names)))
        file.write(',\n"names": ')
        _write_list(file, (json.dumps(name, ensure_ascii=False) for name in first.names))
        file.write(',\n"tracks": [')
        for number, track in enumerate(tracks):
            about = {
                "expression": track.expression.text,
                "id": track.expression.id,
                "presence": round(track.presence, 6),
                "threshold": track.threshold,
                "present": track.present,
                "sure": track.sure,
                "verdict": track.verdict,
            }
            file.write((",\n" if number else "\n") + json.dumps(about, ensure_ascii=False)[:-1] + ',\n"scores": ')
            _write_list(file, (f"{score:.4f}" for score in track.scores))
            file.write(',\n"masks": ')
            rles = (track.masks.rles[i] for i in range(len(track)))
            _write_list(file, (json.dumps({**rle, "counts": rle["counts"].decode("ascii")}) for rle in rles))
            file.write("}")
        file.write("\n]}\n")


def _write_list(file: TextIO, items: Iterator[str]) -> None:
    file.write("[")
    for index, item in enumerate(items):
        file.write(f",{item}" if index else item)
    file.write("]")


def read_rle(path: str | Path) -> list[MaskTrack]:
    """Read the tracks of a JSON of masks, as `deixis segment --as rle` writes it.

    Args:
        path: The file, `masks.json` in OUT.

    Returns:
        One `MaskTrack` per expression, in order.

    Raises:
        DeixisError: For a file that cannot be read or is anything else.

    Example:
        >>> from deixis.writers import read_rle
        >>> [track.expression.text for track in read_rle("masks.json")]
        ['the red square', 'a dog']
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["schema"] != MASKS_SCHEMA:
            raise DeixisError(f"{path} has schema {found['schema']!r}, expected {MASKS_SCHEMA!r}")
        size = found["film"]["height"], found["film"]["width"]
        return [
            MaskTrack(
                Expression(track["expression"], track["id"]),
                RleMasks([{**m, "counts": m["counts"].encode("ascii")} for m in track["masks"]], size),
                np.array(track["scores"], np.float32),
                track["presence"],
                found["names"],
                found["times"],
                track.get("threshold"),
                track.get("sure"),
            )
            for track in found["tracks"]
        ]
    except OSError as error:
        raise DeixisError(f"{path} cannot be read: {reason_of(error)}") from error
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, DeixisError):
            raise
        raise DeixisError(f"{path} is not a JSON of masks as deixis writes it ({error!r})") from error


FORMAT = Format(
    item="masks.json", choice="Masks as JSON", link="Masks, RLE",
    write=lambda path, film, tracks, model, complete: write_rle(path, film, tracks, model=model, complete=complete),
)  # fmt: skip
