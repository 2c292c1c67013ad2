"""When each object is there: rows of a table, and an SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from deixis.types import MaskTrack, verdict_of
from deixis.writers.overlay import TRACK_COLOURS

VERDICT_WORDS = {"there": "there", "unsure": "unsure: a guess is shown", "not there": "not there"}


def row(track: MaskTrack, index: int, gap: float) -> dict[str, Any]:
    """What a table says of one sentence. gap: seconds from a frame to the next, for the last one.

    sentence, colour (CSS), present, verdict, presence 0..1, stretches [[from, to], ...] in seconds, seen: seconds in
    all, share: of the picture, 0..1, mean over the frames in which it is shown.
    """
    areas = track.masks.areas()
    height, width = track.masks.size
    found = stretches((areas > 0).tolist(), track.times, gap)
    return {
        "sentence": track.expression.text,
        "colour": "#{:02x}{:02x}{:02x}".format(*TRACK_COLOURS[index % len(TRACK_COLOURS)]),
        "present": bool(found),
        "verdict": verdict_of(bool(found), track.presence, track.sure),
        "presence": round(track.presence, 4),
        "stretches": [[round(a, 3), round(b, 3)] for a, b in found],
        "seen": round(sum(b - a for a, b in found), 3),
        "share": round(float(areas[areas > 0].mean()) / (height * width), 5) if found else 0.0,
    }


def stretches(there: Iterable[bool], times: Sequence[float], gap: float) -> list[tuple[float, float]]:
    """[(from, to)] seconds in which an object is there; a frame lasts until the next one, the last one ``gap``."""
    found: list[tuple[float, float]] = []
    for i, shown in enumerate(there):
        end = times[i + 1] if i + 1 < len(times) else times[i] + gap
        if not shown:
            continue
        if found and found[-1][1] == times[i]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((times[i], end))
    return found


def timeline(rows: Sequence[Mapping[str, Any]], length: float) -> str:
    """An SVG of when each object is there: a bar a sentence, from the film's beginning to its end at ``length`` s."""
    step, top = 40, 6
    height = top + step * len(rows) + 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13"><title>When each object is there</title>'
    ]
    for i, facts in enumerate(rows):
        y = top + i * step
        words = str(facts["sentence"])
        words = words if len(words) <= 90 else words[:89] + "…"
        verdict = VERDICT_WORDS[facts["verdict"]]
        note = "" if facts["verdict"] == "there" else f'<tspan opacity="0.6"> · {verdict}</tspan>'
        parts.append(f'<text x="0" y="{y + 13}" fill="currentColor">{safe(words)}{note}</text>')
        parts.append(f'<rect x="0" y="{y + 20}" width="100%" height="10" rx="5" fill="currentColor" opacity="0.1"/>')
        for begin, end in facts["stretches"]:
            x, width = 100 * begin / length, 100 * (end - begin) / length
            parts.append(
                f'<rect x="{x:.2f}%" y="{y + 20}" width="{width:.2f}%" height="10" rx="5" fill="{facts["colour"]}">'
                f"<title>{begin:.1f} to {end:.1f} s</title></rect>"
            )
    for share, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        parts.append(
            f'<text x="{100 * share:g}%" y="{height - 5}" text-anchor="{anchor}" font-size="11" fill="currentColor" '
            f'opacity="0.6">{share * length:.1f} s</text>'
        )
    return "".join([*parts, "</svg>\n"])


def safe(text: str) -> str:
    """Text for HTML and SVG, in which also nothing of a template (``${``, ``{{``) survives."""
    return escape(text).translate({ord(c): f"&#{ord(c)};" for c in "${}`"})
