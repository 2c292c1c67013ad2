"""Scores for people and programs: a JSON with everything, a CSV of the rows, a picture of the worst frames."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from deixis.metrics.evaluate import WorstFrame
from deixis.metrics.summary import BOOTSTRAP_SEED, DRAWS, Row, Scores
from deixis.types import DeixisError, reason_of

WORST = 10
PLAIN = ("identity swaps",)  # counts, not shares
HISTOGRAM_BINS = 20  # of the histogram, over 0..1
INK, BAR, ANSWER_COLOUR, TRUE_COLOUR = (40, 40, 40), (90, 130, 200), (230, 60, 60), (60, 200, 80)  # RGB


def as_json(scores: Scores, version: str) -> dict[str, Any]:
    """Everything, unrounded, and the version of deixis; what has no value is null."""
    table = asdict(scores)
    table["deixis"] = version
    videos: dict[str, list[float]] = {}
    for row in scores.rows:
        videos.setdefault(row.video, []).append(row.number(scores.row_key) or 0.0)
    table["videos"] = {video: sum(values) / len(values) for video, values in videos.items()}
    table["intervals_are"] = f"95%, bootstrap over videos, {DRAWS} draws, seed {BOOTSTRAP_SEED}"
    return table


def write_scores_json(scores: Scores, path: Path, version: str) -> None:
    """Raises DeixisError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(as_json(scores, version), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise DeixisError(f"{path}: cannot be written ({reason_of(error)})") from error


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line for each row: video, id, text, tags, and every value."""
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "id", "text", "tags", *keys])
        for row in rows:
            values = ["" if row.values.get(key) is None else row.values[key] for key in keys]
            writer.writerow([row.video, row.id, row.text, " ".join(row.tags), *values])


def worst_rows(scores: Scores) -> list[Row]:
    """The ten rows with the lowest value of what the scores are headed by."""
    return sorted(scores.rows, key=lambda row: row.number(scores.row_key) or 0.0)[:WORST]


def as_lines(scores: Scores) -> list[str]:
    """A table for a screen; shares are given in percent."""
    lines = [f"{scores.benchmark} {scores.split}: {scores.protocol}", f"{len(scores.rows)} rows"]
    width = max(len(name) for name in scores.summary)
    for name, value in scores.summary.items():
        lines.append(f"  {name:<{width}}  {_shown(name, value)}{_interval(name, scores.intervals.get(name))}")
    for tag, summary in scores.groups.items():
        lines.append(f"  {tag}: {scores.headline} {_shown(scores.headline, summary[scores.headline]).strip()}")
    return lines + [f"note: {remark}" for remark in scores.remarks]


def _shown(name: str, value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f}" if name in PLAIN else f"{100 * value:6.2f}"


def _interval(name: str, interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"  ({_shown(name, interval[0]).strip()} to {_shown(name, interval[1]).strip()})"


def write_all(scores: Scores, folder: Path, worst: Mapping[tuple[str, str], WorstFrame], version: str) -> list[Path]:
    """Write scores.json, scores.csv and scores.png to a folder; returns their paths.

    Raises DeixisError where one of them cannot be written.
    """
    paths = [folder / name for name in ("scores.json", "scores.csv", "scores.png")]
    write_scores_json(scores, paths[0], version)
    try:
        write_csv(scores.rows, paths[1])
        write_png(draw_scores(scores, worst), paths[2])
    except OSError as error:
        raise DeixisError(f"{error.filename or folder}: cannot be written ({reason_of(error)})") from error
    return paths


def draw_scores(scores: Scores, worst: Mapping[tuple[str, str], WorstFrame]) -> np.ndarray:
    """The distribution of the rows' values and the ten worst rows, as an RGB picture.

    worst: (video, id) of a row -> its worst frame with the answer (red outline) and the truth (green outline).
    """
    key = scores.row_key
    values = np.array([row.number(key) or 0.0 for row in scores.rows])
    rows = [_histogram(values, f"{scores.benchmark} {scores.split}: {key} of {len(values)} rows")]
    tiles = [_tile(row, key, worst.get((row.video, row.id))) for row in worst_rows(scores)]
    for start in range(0, len(tiles), 5):
        line = tiles[start : start + 5]
        blank = np.full_like(line[0], 255)
        rows.append(np.concatenate([*line, *[blank] * (5 - len(line))], axis=1))
    return np.concatenate(rows, axis=0)


def write_png(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture).save(path)


def _write(picture: np.ndarray, text: str, x: int, y: int, size: float = 0.42) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's letters are ASCII
    cv2.putText(picture, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)


def _histogram(values: np.ndarray, title: str) -> np.ndarray:
    picture = np.full((260, 1000, 3), 255, np.uint8)
    counts, _ = np.histogram(np.clip(values, 0, 1), HISTOGRAM_BINS, (0, 1))
    _write(picture, f"{title}, mean {100 * values.mean():.2f}", 20, 24, 0.55)
    for i, count in enumerate(counts):
        left, height = 20 + i * 48, int(180 * count / max(1, counts.max()))
        cv2.rectangle(picture, (left, 225 - height), (left + 44, 225), BAR, -1)
        if count:
            _write(picture, str(count), left + 4, 220 - height, 0.38)
        _write(picture, f"{i / HISTOGRAM_BINS:.2f}", left, 242, 0.36)
    return picture


def _tile(row: Row, key: str, frame_of_row: WorstFrame | None) -> np.ndarray:
    picture = np.full((210, 200, 3), 255, np.uint8)
    _write(picture, f"{100 * (row.number(key) or 0):.1f}  {row.video[:16]} {row.id[:10]}", 4, 14, 0.36)
    _write(picture, row.text[:34], 4, 30, 0.33)
    if frame_of_row is not None:
        frame, answer, truth = frame_of_row
        scale = min(192 / frame.shape[1], 165 / frame.shape[0])
        size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        for mask, colour in ((truth, TRUE_COLOUR), (answer, ANSWER_COLOUR)):
            there = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(there, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(small, outlines, -1, colour, 1)
        picture[40 : 40 + size[1], 4 : 4 + size[0]] = small
    return picture
