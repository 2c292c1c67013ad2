"""The page's HTML: the line and bar of a job, its players, table and downloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deixis.devices import run_words
from deixis.web.jobs import RESULT_FILES, SHOWN_ONLY, Job, Limits
from deixis.web.queue import Queue
from deixis.web.timeline import VERDICT_WORDS, safe, timeline


def limits_line(limits: Limits) -> str:
    minutes = f"{limits.keep / 60:g} minutes"
    return (
        f"Films of up to {limits.seconds:g} s and {limits.bytes / 1e6:g} MB, up to {limits.sentences} sentences. "
        f"Film and results are deleted after {minutes}."
    )


def job_html(queue: Queue, job: Job) -> str:
    """The line and the bar over the results."""
    if job.state == "waiting":
        ahead = queue.ahead(job)
        line = "Your film is next." if ahead < 2 else f"{ahead} films are before yours."
        return status_html("waiting", f"Waiting: another film is being looked at. {line}")
    if job.state == "working":
        left, share = job.seconds_left, job.frames / job.of if job.of else 0.0
        words = {"looking": "Looking", "drawing": "Drawing"}.get(job.stage, "Opening the film")
        of = f" of {job.of}" if job.of else ""
        line = f"{words}: frame {job.frames}{of}" if job.frames else f"{words} …"
        part = {"looking": 0, "drawing": 1}.get(job.stage, 0)
        note = "" if left is None else f"about {max(1, round(left))} s left to {'look' if part == 0 else 'draw'}"
        return status_html("working", line, note, (part + min(1.0, share)) / 2)
    if job.state == "done":
        return status_html("done", "; ".join(job.warnings)) if job.warnings else ""
    return status_html(job.state, job.message or "Stopped.")


def status_html(state: str, line: str, note: str = "", share: float | None = None) -> str:
    role = "alert" if state == "failed" else "status"
    bar = "" if share is None else f'<div class="dx-progress"><i style="width:{100 * share:.1f}%"></i></div>'
    words = f"<span>{safe(line)}</span><span>{safe(note)}</span>"
    return f'<div class="dx-status" data-state="{state}" role="{role}"><p>{words}</p>{bar}</div>'


def empty_html() -> str:
    return (
        '<div class="dx-empty"><p>Drop a film, write what to look for, and press <b>Find</b>.</p>'
        "<p>Here you will see where each thing is, and when.</p></div>"
    )


def waiting_html() -> str:
    return '<div class="dx-busy"><i></i><i></i></div>'


def result_html(job: Job) -> str:
    """Players side by side, the timeline, the table, the contact sheet, the downloads."""
    link = {name: f"results/{job.token}/{name}" for name in job.files}
    films = [(name, "Your film" if name in SHOWN_ONLY else "What was found") for name in (*SHOWN_ONLY, "overlay.mp4")]
    players = "".join(
        f'<figure><video src="{link[name]}" preload="auto" playsinline {"muted" if name in SHOWN_ONLY else ""}></video>'
        f"<figcaption>{words}</figcaption></figure>"
        for name, words in films
        if name in link
    )
    sizes = {name: size_words(path.stat().st_size) for name, path in job.files.items()}
    downloads = "".join(
        f'<a href="{url}" download="{name}">{RESULT_FILES[name]}<small>{sizes[name]}</small></a>'
        for name, url in link.items()
        if name not in SHOWN_ONLY
    )
    bars = timeline(job.rows, job.length)
    run = f'<p class="dx-run">{safe(run_words(job.run))}</p>' if job.run else ""
    return (
        f'<section class="dx-result" data-length="{job.length:.3f}"><div class="dx-pair">{players}</div>'
        '<div class="dx-bar"><button type="button" class="dx-play" aria-label="Play">▶</button>'
        f'<span class="dx-time">0.0 / {job.length:.1f} s</span></div>'
        f'<div class="dx-timeline"><input type="range" class="dx-seek" min="0" max="{job.length:.3f}" step="0.01" '
        f'value="0" aria-label="Position in the film">{bars}<i class="dx-head-line"></i></div>'
        f'<div class="dx-downloads" aria-label="Downloads">{downloads}</div>{table_html(job.rows)}'
        f'<img class="dx-sheet" src="{link["contact_sheet.png"]}" alt="Frames of the film, a row a sentence">'
        f"{run}</section>"
    )


def table_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Presence, a row a sentence."""
    lines = []
    for row in rows:
        when = ", ".join(f"{begin:.1f}–{end:.1f} s" for begin, end in row["stretches"][:4])
        when += f" and {len(row['stretches']) - 4} more" if len(row["stretches"]) > 4 else ""
        words = VERDICT_WORDS[row["verdict"]]
        share = f"{100 * row['share']:.1f} %" if row["present"] else "–"
        lines.append(
            f'<tr data-present="{str(row["present"]).lower()}"><td><i style="background:{row["colour"]}"></i>'
            f"{safe(row['sentence'])}</td><td>{words}</td><td>{row['presence']:.2f}</td><td>{when or '–'}</td>"
            f"<td>{share}</td></tr>"
        )
    head = "".join(f"<th>{words}</th>" for words in ("Sentence", "Is it there?", "Presence", "When", "Of the picture"))
    return f'<table class="dx-table"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def size_words(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
