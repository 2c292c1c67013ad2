"""``deixis serve`` without a browser: the queue, its worker, the API through Gradio's client, and hostile requests.

The numbers of published cases (CVE) are from memory; what each one did stands beside it.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import multiprocessing
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers.films import moving, write_film
from helpers.serving import Server, running, until
from typer.testing import CliRunner

pytest.importorskip("gradio", reason="needs the extra web")

from deixis import weights
from deixis.cli import app
from deixis.devices import run_facts
from deixis.types import DeixisError, Expression, MaskTrack, RleMasks, encode_rle
from deixis.video import Video
from deixis.web import app as app_module
from deixis.web import guard, html, process, timeline, worker
from deixis.web import queue as queue_module
from deixis.web.jobs import Job, Limits, Task
from deixis.web.queue import Queue
from deixis.writers.rle import read_rle

SECRET = "the words of a file that nobody may read"


# --- parts ------------------------------------------------------------------------------------------------------------


def test_stretches_last_until_the_next_frame_and_the_last_one_a_gap() -> None:
    times = [0.0, 0.1, 0.2, 0.5, 0.6]
    assert timeline.stretches([True, True, False, True, True], times, 0.1) == [(0.0, 0.2), (0.5, 0.7)]
    assert timeline.stretches([False] * 5, times, 0.1) == []
    assert timeline.stretches([False, False, True, False, False], times, 0.1) == [(0.2, 0.5)]


def test_words_of_a_visitor_are_words_in_the_page_and_never_code() -> None:
    words = "<script>alert(1)</script> ${alert(2)} {{value}} `x` \"'"
    row = {"sentence": words, "colour": "#fff", "present": True, "presence": 0.5, "stretches": [[0, 1]], "share": 0.1}
    row["verdict"] = "there"
    for made in (timeline.timeline([row], 2.0), html.table_html([row]), html.status_html("failed", words)):
        assert "&lt;script&gt;" in made
        assert not [sign for sign in ("<script", "${", "{{", "`") if sign in made]


def test_the_timeline_puts_a_bar_where_the_object_is() -> None:
    row = {"sentence": "red", "colour": "#ff4040", "verdict": "there", "stretches": [[1.0, 1.5]]}
    away = {"sentence": "blue", "colour": "#4090ff", "verdict": "not there", "stretches": []}
    guess = {"sentence": "green", "colour": "#40ff40", "verdict": "unsure", "stretches": [[0.0, 0.5]]}
    made = timeline.timeline([row, away, guess], 2.0)
    assert 'x="50.00%" y="26" width="25.00%"' in made
    assert made.count("#4090ff") == 0
    assert "not there" in made
    assert "unsure: a guess is shown" in made


def test_the_table_marks_a_guess() -> None:
    filled = RleMasks([encode_rle(np.ones((4, 4), bool))] * 2, (4, 4))
    tracks = [MaskTrack(Expression("red"), filled, np.ones(2, "f4"), 0.9, ["0", "1"], [0.0, 0.5], 0.85, 0.95)]
    made = html.table_html([timeline.row(track, 0, 0.5) for track in tracks])
    assert "<td>unsure: a guess is shown</td>" in made


def test_a_message_names_no_path_and_no_advice_for_the_owner() -> None:
    task = a_task(Path("/srv/uploads/abc/film.mp4"), Path("/srv/results/xyz"))
    said = "/srv/uploads/abc/film.mp4: a frame holds 9 pixels, more than 8; if you trust the file, raise it with --max"
    assert process.scrub_paths(said, task) == "film.mp4: a frame holds 9 pixels, more than 8"
    assert "/srv" not in process.scrub_paths("cannot write to /srv/results/xyz or /srv/results", task)


def a_task(film: Path, out: Path, **more: object) -> Task:
    facts = {
        "film": str(film), "name": film.name, "sentences": ("red",), "model": "light_debug", "formats": ("rle",),
        "out": str(out), "pixels": 10**7, "seconds": 60.0, "device": "cpu",
    }  # fmt: skip
    return Task(**{**facts, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", moving(12))


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "long.mp4", moving(700))


@pytest.mark.parametrize("kind", ["m3u8", "ffconcat"])
def test_a_list_of_other_files_that_poses_as_a_film_is_refused(tmp_path: Path, kind: str) -> None:
    """FFmpeg would open what a playlist names: any film on this machine."""
    hidden = write_film(tmp_path / "private.ts", moving(12), codec="mpeg2video", options={})
    text = {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{hidden}\n#EXT-X-ENDLIST\n",
        "ffconcat": "ffconcat version 1.0\nfile private.ts\n",
    }[kind]
    bait = tmp_path / f"bait.{'m3u8' if kind == 'm3u8' else 'mp4'}"
    bait.write_text(text)
    if kind == "m3u8":
        with pytest.raises(DeixisError, match="is a playlist, which may name any file"):
            Video(bait)
    else:  # may name what lies beside it only, and a visitor's folder holds nobody else's film
        assert Video(bait).source_size == (72, 96)
    with pytest.raises(DeixisError, match="not a film that can be decoded here"):
        process.check_container(bait)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "plays"),
    [
        ("a.mp4", "libx264", "yuv420p", "mp4"), ("a.mov", "libx264", "yuv420p", "mp4"),
        ("a.webm", "libvpx", "yuv420p", "webm"), ("a.mp4", "libx264", "yuv444p", None),
        ("a.avi", "mjpeg", "yuvj420p", None), ("a.mkv", "mpeg4", "yuv420p", None),
    ],
)  # fmt: skip
def test_what_a_browser_plays(tmp_path: Path, name: str, codec: str, pixels: str, plays: str | None) -> None:
    assert process.check_container(write_film(tmp_path / name, moving(4), codec=codec, pixels=pixels)) == plays


@pytest.mark.parametrize(
    "limits", [{"bytes": 0}, {"seconds": -1.0}, {"sentences": 0}, {"jobs": -1}, {"seconds": float("nan")}]
)
def test_a_limit_that_cannot_be_is_refused(limits: dict) -> None:
    with pytest.raises(DeixisError, match="the limit of"):
        Limits(**limits)


def test_one_task_leaves_what_was_asked_for_and_says_when(tmp_path: Path, film: Path) -> None:
    from deixis import weights

    reports: list[tuple[str, int, int]] = []
    task = a_task(film, tmp_path / "out", formats=("overlay", "rle", "png", "matte"), sentences=("red", "a dog"))
    done = process.run_task(task, weights.load("light_debug"), lambda *facts: reports.append(facts), lambda: False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "contact_sheet.png", "masks.json", "masks.zip", "matte.zip", "original.mp4", "overlay.mp4", "timeline.svg",
    ]  # fmt: skip
    assert (tmp_path / "out" / "original.mp4").read_bytes() == film.read_bytes()
    with zipfile.ZipFile(tmp_path / "out" / "masks.zip") as archive:
        assert sorted(archive.namelist())[:2] == ["masks/00_red/00000.png", "masks/00_red/00001.png"]
        assert len(archive.namelist()) == 24
    assert {stage for stage, _, _ in reports} == {"looking", "drawing"}
    assert reports[-1] == ("drawing", 12, 12)
    assert [row["sentence"] for row in done["rows"]] == ["red", "a dog"]
    tracks = read_rle(tmp_path / "out" / "masks.json")
    assert [row["present"] for row in done["rows"]] == [track.present for track in tracks]
    assert done["length"] == pytest.approx(1.0)


def test_a_film_that_browsers_do_not_play_is_shown_as_one_that_they_do(tmp_path: Path) -> None:
    from deixis import weights

    film = write_film(tmp_path / "film.avi", moving(6), codec="mjpeg", pixels="yuvj420p")
    process.run_task(a_task(film, tmp_path / "out"), weights.load("light_debug"), lambda *_: None, lambda: False)
    assert process.check_container(tmp_path / "out" / "original.mp4") == "mp4"
    assert Video(tmp_path / "out" / "original.mp4").length == 6


@pytest.mark.parametrize("stage", ["looking", "drawing", "packing"])
def test_a_task_stops_in_every_stage_and_leaves_nothing(
    tmp_path: Path, film: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deixis import weights

    (tmp_path / "results").mkdir()
    at: list[str] = []
    pack = process.zip_folders
    monkeypatch.setattr(process, "zip_folders", lambda *a: (at.append("packing"), pack(*a)))
    task = a_task(film, tmp_path / "results" / "out", formats=("png", "overlay"))
    model = weights.load("light_debug")
    with pytest.raises(process.Stopped):
        process.run_task(task, model, lambda s, *_: at.append(s), lambda: bool(at) and at[-1] == stage)
    assert at[-1] == stage
    if stage != "packing":  # then the server removes what is there, see Queue
        assert list((tmp_path / "results").iterdir()) == []


# --- the queue, with a worker that only pretends ----------------------------------------------------------------------


class Pretender:
    """Stands in for Worker: a job lasts until the test lets it go."""

    go: threading.Event
    done: list[str]
    alive = True

    def warm(self, model: str, device: str, precision: str) -> None: ...
    def end(self) -> None: ...

    def do(self, job: Job, seconds: float) -> tuple[str, str]:
        job.rows = []
        until(lambda: job.cancelled or self.go.is_set())
        Path(job.task.out).mkdir()
        (Path(job.task.out) / "masks.json").write_text("{}")
        self.done.append(job.task.name)
        return ("stopped", "") if job.cancelled else ("done", "")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setattr(Pretender, "go", threading.Event(), raising=False)
    monkeypatch.setattr(Pretender, "done", [], raising=False)
    monkeypatch.setattr(queue_module, "Worker", Pretender)
    limits = Limits(jobs=2, bytes=1000, sentences=2, keep=100)
    with Queue(tmp_path / "serve", {"light": "light", "debug": "light_debug"}, limits) as made:
        yield made


def brought(queue: Queue, name: str = "a.mp4", size: int = 100) -> Path:
    place = queue.uploads / f"{name}-{time.monotonic_ns()}"
    place.mkdir()
    (place / name).write_bytes(b"x" * size)
    return place / name


def working(queue: Queue, name: str = "a.mp4", owner: str = "") -> Job:
    job = queue.submit(brought(queue, name), "red", "light", ["rle"], owner)
    until(lambda: job.state == "working")
    return job


def test_jobs_are_done_in_turn_and_each_knows_how_many_come_before_it(queue: Queue) -> None:
    first = working(queue, "1.mp4")
    second, third = (queue.submit(brought(queue, f"{n}.mp4"), "red", "light", ["rle"]) for n in (2, 3))
    assert [queue.ahead(job) for job in (first, second, third)] == [0, 1, 2]
    with pytest.raises(DeixisError, match=r"the queue is full \(2 waiting\); try again later"):
        queue.submit(brought(queue, "4.mp4"), "red", "light", ["rle"])
    queue.cancel(second)
    assert second.state == "stopped"
    Pretender.go.set()
    until(lambda: third.over)
    assert Pretender.done == ["1.mp4", "3.mp4"]
    assert list(third.files) == ["masks.json"]
    assert second.files == {}


@pytest.mark.parametrize(
    ("text", "model", "formats", "size", "said"),
    [
        ("", "light", ["rle"], 10, "no sentence is given"),
        (" \n\n", "light", ["rle"], 10, "no sentence is given"),
        ("a\nb\nc", "light", ["rle"], 10, "3 sentences, more than the limit of 2"),
        ("a" * 2000, "light", ["rle"], 10, "may hold 1000 characters, got 2000"),
        ("a", "light_debug", ["rle"], 10, "unknown model 'light_debug'; expected one of light, debug"),
        ("a", "../../model.safetensors", ["rle"], 10, "unknown model"),
        ("a", "light", [], 10, "unknown format ''"),
        ("a", "light", ["../x"], 10, "unknown format '../x'"),
        ("a", "light", ["rle"], 1001, "holds 1,001 bytes, more than the limit of 1,000"),
    ],
)
def test_what_is_beyond_a_limit_is_refused_in_one_line(
    queue: Queue, text: str, model: str, formats: list[str], size: int, said: str
) -> None:
    with pytest.raises(DeixisError) as caught:
        queue.submit(brought(queue, size=size), text, model, formats)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert queue.jobs == {}


def test_only_a_plain_file_of_the_uploads_counts_as_a_film(queue: Queue, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_text(SECRET)
    good = brought(queue)
    (good.parent / "link.mp4").symlink_to(secret)
    (queue.uploads / "folder").symlink_to(tmp_path)
    bad = [
        secret, good.parent / "link.mp4", queue.uploads / "folder" / "secret.mp4", good.parent,
        good.parent / ".." / good.parent.name / good.name, queue.folder / queue_module.MARK, Path("a.mp4"), Path(""),
        Path("/etc/passwd"), Path("/proc/self/environ"), Path(str(good) + "\0"), good.parent / ("n" * 5000),
    ]  # fmt: skip
    assert [queue.is_upload(path) for path in bad] == [False] * len(bad)
    assert queue.is_upload(good)
    for path in bad:
        with pytest.raises(DeixisError, match="no film is given"):
            queue.submit(path, "red", "light", ["rle"])


def test_a_visitor_who_leaves_takes_only_his_own_jobs_along(queue: Queue) -> None:
    mine = working(queue, owner="me")
    theirs = queue.submit(brought(queue), "red", "light", ["rle"], "they")
    queue.cancel_all_of("me")
    until(lambda: mine.over and theirs.state == "working")
    assert (mine.state, theirs.cancelled) == ("stopped", False)
    assert not Path(mine.task.out).exists()


def test_films_and_results_are_deleted_some_time_after_the_job_and_not_before(queue: Queue) -> None:
    stray = brought(queue, "stray.mp4")
    done = working(queue)
    Pretender.go.set()
    until(lambda: done.over)
    Pretender.go.clear()
    at_work = working(queue, "now.mp4")
    queue.sweep(done.ended + 99)
    assert Path(done.task.film).exists()
    assert Path(done.task.out).exists()
    queue.sweep(done.ended + 101)
    assert [Path(p).exists() for p in (done.task.film, done.task.out, stray, at_work.task.film)] == [
        False, False, False, True,
    ]  # fmt: skip
    assert list(queue.jobs) == [at_work.token]


def test_the_folder_is_emptied_at_the_start_and_at_the_end_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "Worker", Pretender)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "mine.txt").write_text("mine")
    with Queue(tmp_path / "serve", {"light": "light"}) as first:
        brought(first)
        (first.uploads / "link").symlink_to(precious)
        with pytest.raises(DeixisError, match="used by another deixis serve"), Queue(tmp_path / "serve", {}):
            pass
    assert [p.name for p in (tmp_path / "serve").iterdir()] == [queue_module.MARK]
    (tmp_path / "serve" / "left").mkdir()  # as after kill -9
    with Queue(tmp_path / "serve", {"light": "light"}):
        assert sorted(p.name for p in (tmp_path / "serve").iterdir()) == [queue_module.MARK, "results", "uploads"]
        assert (tmp_path / "serve").stat().st_mode & 0o077 == 0
    assert (precious / "mine.txt").read_text() == "mine"


def test_a_folder_of_other_things_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DeixisError, match="holds files that deixis serve did not put there"), Queue(tmp_path, {}):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "the port must lie between"),
        (["--max-sentences", "0"], "the limit of sentences must be 1 or more, got 0"),
        (["--model", "nonesuch"], "unknown model 'nonesuch'"),
        (["--model", "light_debug", "--model", "light_debug"], "two models are called 'light_debug'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--host", "203.0.113.7"], "cannot listen at 203.0.113.7"),
        (["--host", "é.."], "cannot listen at é.."),
    ],
)
def test_an_option_of_serve_that_cannot_be_is_refused(tmp_path: Path, options: list[str], said: str) -> None:
    arguments = ["serve", "--port", "0", "--folder", str(tmp_path / "f"), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_emptied_is_refused_in_a_line_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "serve"
    (folder / "uploads").mkdir(parents=True)
    (folder / queue_module.MARK).touch()
    monkeypatch.setattr(queue_module, "empty", lambda place: None)
    for _ in range(2):  # the lock is not held after the first
        with pytest.raises(DeixisError, match=r"cannot use .*: File exists; give another --folder"):
            Queue(folder, {"light": "light"}).__enter__()


def test_what_is_loopback() -> None:
    assert all(guard.is_loopback(host) for host in ("127.0.0.1", "localhost", "LOCALHOST", "::1", "127.8.8.8"))
    assert not any(guard.is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.5", "127.example.org", ""))


def test_the_default_is_loopback_and_anything_else_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    bound: list[str] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: bound.append(sockets[0].getsockname()[0]))
    monkeypatch.setattr(app_module, "make_app", lambda queue: None)
    monkeypatch.setattr(queue_module, "Worker", Pretender)
    for options, address, warned in (([], "127.0.0.1", False), (["--host", "0.0.0.0"], "0.0.0.0", True)):
        command = ["serve", "--port", "0", "--folder", str(tmp_path / "f"), "--model", "light_debug", *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert bound.pop() == address
        assert ("warning: bound to 0.0.0.0: everybody" in result.stderr) is warned
        assert f"deixis is at http://{address}:" in result.stdout


# --- what breaks behind the queue -------------------------------------------------------------------------------------


class Breaking(Pretender):
    """A worker in which one thing goes wrong, as often as ``left`` says."""

    at = ""
    error: Exception = OSError()
    left = 0

    def fails(self, at: str) -> None:
        if self.at == at and Breaking.left > 0:
            Breaking.left -= 1
            raise self.error

    def __init__(self) -> None:
        self.fails("start")

    def warm(self, model: str, device: str, precision: str) -> None:
        self.fails("warm")

    def end(self) -> None:
        self.fails("end")

    def do(self, job: Job, seconds: float) -> tuple[str, str]:
        self.fails("do")
        return super().do(job, seconds)


@pytest.mark.parametrize(
    ("at", "error", "times", "states"),
    [
        ("warm", BrokenPipeError("Broken pipe"), 1, ["done", "done"]),
        ("warm", RuntimeError("CUDA error"), 1, ["done", "done"]),
        ("start", OSError(11, "Resource temporarily unavailable"), 1, ["done", "done"]),
        ("start", OSError(11, "Resource temporarily unavailable"), 2, ["failed", "done"]),
        ("do", BrokenPipeError("Broken pipe"), 1, ["failed", "done"]),
        ("do", RuntimeError("no JSON came"), 1, ["failed", "done"]),
        ("do", worker.WorkerLost("it went"), 1, ["done", "done"]),
        ("do", worker.WorkerLost("it went"), 2, ["failed", "done"]),
    ],
)
def test_whatever_fails_the_job_ends_with_a_line_and_the_next_one_has_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, error: Exception, times: int, states: list[str]
) -> None:
    for name, value in (("at", at), ("error", error), ("left", times)):
        monkeypatch.setattr(Breaking, name, value)
    monkeypatch.setattr(Pretender, "go", threading.Event(), raising=False)
    monkeypatch.setattr(Pretender, "done", [], raising=False)
    monkeypatch.setattr(queue_module, "Worker", Breaking)
    Breaking.go.set()
    with Queue(tmp_path / "serve", {"light": "light"}, Limits(jobs=3)) as queue:
        jobs = [queue.submit(brought(queue, name), "red", "light", ["rle"]) for name in ("a.mp4", "b.mp4")]
        until(lambda: all(job.over for job in jobs))
    assert [job.state for job in jobs] == states
    for job in jobs:
        assert bool(job.message) == (job.state == "failed")
        assert len(job.message.splitlines()) == (job.state == "failed")


@pytest.mark.slow
def test_films_that_cannot_be_deleted_do_not_end_the_sweeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[float] = []

    def sweep(self: Queue) -> None:
        swept.append(time.monotonic())
        raise PermissionError("not permitted")

    monkeypatch.setattr(queue_module, "Worker", Pretender)
    monkeypatch.setattr(Queue, "sweep", sweep)
    with Queue(tmp_path / "serve", {"light": "light"}, Limits(keep=0.1)):
        until(lambda: len(swept) > 1)


class Letters:
    """The worker's end of a pipe: what the server sends lies there already; what it gets is kept."""

    def __init__(self, *asked: dict) -> None:
        self.asked, self.sent = list(asked), list[dict]()

    def recv_bytes(self) -> bytes:
        if not self.asked:
            raise EOFError
        return json.dumps(self.asked.pop(0)).encode()

    def send_bytes(self, data: bytes) -> None:
        self.sent.append(json.loads(data))


@pytest.mark.parametrize(
    ("error", "said", "goes_on"),
    [
        (OSError(28, "No space left on device"), "the server's disk is full; try again later", True),
        (OSError(122, "Disk quota exceeded"), "the server's disk is full; try again later", True),
        (OSError(5, "Input/output error"), "the work broke off on the server", True),
        (MemoryError(), "the server has too little memory for this film", False),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "the server has too little memory", False),
        (RuntimeError("CUDA error: an illegal memory access"), "the work broke off on the server", False),
    ],
)
def test_what_a_visitor_did_not_cause_is_one_line_and_the_log_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, goes_on: bool
) -> None:
    def run_task(*arguments: object) -> dict:
        raise error

    monkeypatch.setattr(process, "run_task", run_task)
    monkeypatch.setattr(process, "load_model", lambda name: None)
    monkeypatch.setattr(process, "run_facts", lambda *arguments: {})
    monkeypatch.setattr(process, "run_words", lambda *arguments: "")
    task = dataclasses.asdict(a_task(tmp_path / "film.mp4", tmp_path / "out"))
    pipe = Letters(task, task)
    before = signal.getsignal(signal.SIGINT)
    process.work(pipe, threading.Event())
    signal.signal(signal.SIGINT, before)
    assert len(pipe.sent) == 1 + goes_on
    assert [(report["state"], report["ends"]) for report in pipe.sent[:1]] == [("failed", not goes_on)]
    assert pipe.sent[0]["message"].startswith(said)
    assert str(tmp_path) not in pipe.sent[0]["message"]


def test_a_worker_that_ended_just_before_it_got_a_job_is_lost_and_not_the_jobs_failure(tmp_path: Path) -> None:
    class Ended:
        exitcode = 1

        def kill(self) -> None: ...
        def join(self, seconds: float) -> None: ...

    gone = worker.Worker.__new__(worker.Worker)
    gone._pipe, theirs = multiprocessing.Pipe()
    gone._stop, gone._process = threading.Event(), Ended()  # type: ignore[assignment]
    theirs.close()
    job = Job("token", "owner", a_task(tmp_path / "film.mp4", tmp_path / "out"))
    with pytest.raises(worker.WorkerLost, match=r"film\.mp4: the work broke off \(status 1\); try again"):
        gone.do(job, 10.0)
    assert gone._pipe.closed


def test_a_model_that_cannot_be_warmed_ends_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = iter([RuntimeError("CUDA out of memory"), None])

    def load_model(name: str) -> None:
        if (error := next(loaded)) is not None:
            raise error

    monkeypatch.setattr(process, "load_model", load_model)
    monkeypatch.setattr(process, "run_facts", lambda *arguments: {})
    monkeypatch.setattr(process, "run_words", lambda *arguments: "")
    monkeypatch.setattr(process, "run_task", lambda *arguments: {"state": "done"})
    task = dataclasses.asdict(a_task(tmp_path / "film.mp4", tmp_path / "out"))
    pipe = Letters({"model": task["model"], "device": "cpu", "precision": "auto"}, task)
    before = signal.getsignal(signal.SIGINT)
    process.work(pipe, threading.Event())
    signal.signal(signal.SIGINT, before)
    assert pipe.sent == [{"state": "done"}]


# --- a true worker ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_is_stopped_killed_and_replaced_and_a_film_that_breaks_it_is_named(
    tmp_path: Path, film: Path, long_film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Queue(tmp_path / "serve", {"debug": "light_debug"}, Limits(jobs=9), device="cpu") as queue:

        def bring(source: Path) -> Job:
            path = brought(queue, source.name)
            path.write_bytes(source.read_bytes())
            return queue.submit(path, "red", "debug", ["rle"])

        job = bring(long_film)
        until(lambda: job.frames > 0)
        assert job.of == 700
        first = queue._worker._process.pid if queue._worker is not None else None
        assert first is not None
        monkeypatch.setattr(worker, "GRACE", 300.0)
        queue.cancel(job)
        until(lambda: job.over)
        assert job.state == "stopped"
        assert job.frames < 700
        assert queue._worker is not None
        assert queue._worker.alive  # it stopped by itself
        assert queue._worker._process.pid == first

        broken = bring(long_film)
        until(lambda: broken.frames > 0)
        os.kill(first, signal.SIGSEGV)
        until(lambda: broken.over)
        assert (broken.state, broken.message) == (
            "failed", "long.mp4: the work broke off (SIGSEGV); try another film",
        )  # fmt: skip

        good = bring(film)
        until(lambda: good.over)
        assert (good.state, sorted(good.files)) == (
            "done", ["contact_sheet.png", "masks.json", "original.mp4", "timeline.svg"],
        )  # fmt: skip
        second = queue._worker._process.pid
        assert second is not None
        assert second != first

        stuck = bring(long_film)
        until(lambda: stuck.frames > 0)
        os.kill(second, signal.SIGSTOP)  # it answers no more
        monkeypatch.setattr(worker, "GRACE", 0.5)
        queue.cancel(stuck)
        until(lambda: stuck.over)
        assert stuck.state == "stopped"
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        assert [path.name for path in queue.results.iterdir()] == [good.token]
    assert [p.name for p in (tmp_path / "serve").iterdir()] == [queue_module.MARK]


# --- a true server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    (place / "secret.txt").write_text(SECRET)
    options = ("--max-bytes", "2000000", "--max-jobs", "1", "--max-seconds", "60", "--max-pixels", "1000000")
    with running(place, *options) as made:
        yield made
    assert [p.name for p in made.folder.iterdir()] == [queue_module.MARK]
    assert made.process.returncode == 128 + signal.SIGTERM
    first, second = sorted(made.log.read_text().splitlines())
    assert first == f"deixis is at {made.url} (Ctrl-C ends it)"
    precision = run_facts(weights.load("light_debug"), "cpu")["precision"]
    assert second.startswith(f"deixis serve: light_debug on cpu in {precision}")  # and the engine, where there is one


def client(server: Server, place: Path):
    from gradio_client import Client

    return Client(server.url, verbose=False, download_files=str(place), analytics_enabled=False)


def test_a_program_gets_the_same_masks_as_deixis_segment(server: Server, film: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    import deixis

    visitor = client(server, tmp_path)
    assert visitor.predict(api_name="/models") == ["light_debug"]
    facts, files = visitor.predict(
        handle_file(str(film)), "the red one\na dog", "light_debug", ["overlay", "png", "rle", "matte"],
        api_name="/segment",
    )  # fmt: skip
    assert facts["state"] == "done"
    assert [row["sentence"] for row in facts["objects"]] == ["the red one", "a dog"]
    names = sorted(Path(path).name for path in files)
    assert names == ["contact_sheet.png", "masks.json", "masks.zip", "matte.zip", "overlay.mp4", "timeline.svg"]
    tracks = read_rle(Path(next(path for path in files if path.endswith("masks.json"))))
    own = deixis.segment(film, ["the red one", "a dog"], model="light_debug", device="cpu")
    for theirs, ours in zip(tracks, own, strict=True):
        assert np.array_equal(np.asarray(theirs.masks), np.asarray(ours.masks))
        assert theirs.presence == pytest.approx(ours.presence, abs=1e-6)


def bad_film(place: Path) -> Path:
    (place / "words.mp4").write_text("these are only words\n" * 50)
    return place / "words.mp4"


def too_long(place: Path) -> Path:
    return write_film(place / "slow.mp4", moving(130), fps=2)


def too_wide(place: Path) -> Path:
    return write_film(place / "wide.mp4", [np.zeros((1024, 1024, 3), np.uint8)] * 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bad_film, "words.mp4 is not a film that can be decoded here; give an MP4, MOV, MKV or WebM"),
        (too_long, "slow.mp4 lasts 65.0 s, more than the limit of 60 s; cut it"),
        (too_wide, "wide.mp4: a frame holds 1,048,576 pixels, more than the limit of 1,000,000"),
    ],
)
def test_a_bad_film_is_one_line_for_a_program(
    server: Server, tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        client(server, tmp_path).predict(
            handle_file(str(make(tmp_path))), "red", "light_debug", ["rle"], api_name="/segment"
        )
    assert str(caught.value) == said


def test_two_visitors_wait_their_turn_a_third_is_refused_and_cancel_frees_the_line(
    server: Server, film: Path, long_film: Path, tmp_path: Path
) -> None:
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    def find(path: Path):
        arguments = (handle_file(str(path)), "red", "light_debug", ["rle"])
        return client(server, tmp_path).submit(*arguments, api_name="/segment")

    def last(job) -> dict:
        found = job.outputs()
        return found[-1][0] if found else {}

    first = find(long_film)
    until(lambda: last(first).get("frames"))
    assert last(first)["of"] == 700
    until(lambda: last(first).get("seconds_left"))
    second = find(film)
    until(lambda: last(second) == {"state": "waiting", "ahead": 1})
    with pytest.raises(AppError, match=r"the queue is full \(1 waiting\); try again later"):
        find(film).result(timeout=400)
    assert not second.done()
    first.cancel()
    facts, files = second.result(timeout=400)
    assert facts["state"] == "done"
    assert [Path(path).name for path in files] == ["masks.json", "contact_sheet.png", "timeline.svg"]


# --- hostile requests -------------------------------------------------------------------------------------------------


def call(
    server: Server, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request, its target sent as it stands. Returns (status, headers, body)."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    try:
        connection.putrequest(method, target, skip_host="Host" in (headers or {}))
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def upload(server: Server, name: str, data: bytes = b"x") -> tuple[int, bytes]:
    frame = f'--B\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    status, _, body = call(
        server, "POST", "/gradio_api/upload", frame + data + b"\r\n--B--\r\n",
        {"Content-Type": "multipart/form-data; boundary=B"},
    )  # fmt: skip
    return status, body


def question(path: str, **more: object) -> bytes:
    film = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
    return json.dumps({"data": [film, "red", "light_debug", ["rle"]]}).encode()


def files_of(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "target",
    [
        "/file={secret}",  # CVE-2023-51449, CVE-2024-0964: any file
        "/gradio_api/file={secret}",
        "/gradio_api/file=../../../../../../../..{secret}",
        "/gradio_api/file={uploads}/../../secret.txt",  # CVE-2023-51449: out of the folder by ..
        "/gradio_api/file={uploads}/%2e%2e/%2e%2e/secret.txt",
        "/gradio_api/file={uploads}/..%2f..%2fsecret.txt",
        "/gradio_api/file={uploads}/%252e%252e/%252e%252e/secret.txt",
        "/gradio_api/file={uploads}\\..\\..\\secret.txt",
        "/gradio_api/file=/{secret}",
        "/gradio_api/file=//localhost{secret}",  # CVE-2024-34510: network shares
        "/gradio_api/file=file://{secret}",
        "/gradio_api/file=file:{secret}",
        "/gradio_api/file={secret}%00.mp4",
        "/gradio_api/file={link}",
        "/gradio_api/file=/proc/self/root{secret}",
        "/gradio_api/file=/proc/self/environ",
        "/gradio_api/file={mark}",
        "/gradio_api/file={uploads}",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/file={SECRET}",  # CVE-2025-23042: another case
        "/gradio_api/file/{secret}",
        "/gradio_api/file=http://127.0.0.1:{port}/secret",  # CVE-2024-1183, CVE-2024-8021: fetch or redirect
        "/gradio_api/file=https://example.org/",
        "/gradio_api/proxy=http://127.0.0.1:{port}/",  # CVE-2024-2206: a proxy to anywhere
        "/gradio_api/proxy=http://169.254.169.254/latest/meta-data/",
        "/proxy=http://127.0.0.1:{port}/",
        "/static/../../../../../../../..{secret}",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{secret}",
        "/assets/../../../../../../../..{secret}",
        "/assets/%2e%2e/%2e%2e/%2e%2e/__init__.py",
        "/svelte/../../../../../..{secret}",
        "/gradio_api/custom_component/0/client/component/..%2f..%2f..%2fsecret.txt",  # CVE-2024-47166
        "/custom_component/0/server/component/../../../secret.txt",
        "/gradio_api/stream/a/b/0/playlist-file",
        "/results/../secret.txt",
        "/results/{token}/..%2f..%2f..%2fsecret.txt",
        "/results/{token}/masks.json",
        "/monitoring",  # CVE-2024-47168: open although it is off
        "/gradio_api/monitoring/summary",
        "/gradio_api/vibe-code",
        "/gradio_api/dev/reload",
        "/gradio_api/openapi.json",
        "/docs",
    ],
)
def test_no_file_and_no_other_server_is_read_through_the_page(server: Server, target: str) -> None:
    secret = server.folder.parent / "secret.txt"
    link = server.folder / "uploads" / "link.txt"
    if not link.is_symlink():
        link.symlink_to(secret)
    known = {
        "secret": secret, "SECRET": str(secret).upper(), "uploads": server.folder / "uploads", "link": link,
        "mark": server.folder / queue_module.MARK, "port": urlsplit(server.url).port, "token": "A" * 22,
    }  # fmt: skip
    for method in ("GET", "HEAD"):
        status, headers, body = call(server, method, target.format(**known))
        assert status in (403, 404), (status, body[:200])
        assert "location" not in headers
        assert SECRET.encode() not in body


@pytest.mark.parametrize("route", ["/gradio_api/call/segment", "/gradio_api/run/segment", "/gradio_api/queue/join"])
@pytest.mark.parametrize(
    "path",
    [
        "{secret}",  # CVE-2024-1728, CVE-2024-0964: the client names a file of the server
        "{uploads}/../../secret.txt",
        "../../../../../../../../..{secret}",
        "{link}",
        "/proc/self/environ",
        "file://{secret}",
        "http://127.0.0.1:{port}/config",  # CVE-2024-4325, CVE-2024-47167: the server fetches what the client names
        "https://example.org/film.mp4",
        "{mark}",
        "",
    ],
)
def test_a_question_about_a_file_that_was_not_uploaded_is_refused(server: Server, route: str, path: str) -> None:
    secret = server.folder.parent / "secret.txt"
    link = server.folder / "uploads" / "link2.txt"
    if not link.is_symlink():
        link.symlink_to(secret)
    known = {
        "secret": secret, "uploads": server.folder / "uploads", "link": link, "mark": server.folder / queue_module.MARK,
        "port": urlsplit(server.url).port,
    }  # fmt: skip
    named = path.format(**known)
    json_kind = {"Content-Type": "application/json"}
    for body in (question(named), question(named, url=f"{server.url}/gradio_api/file={secret}", is_stream=True)):
        status, _, said = call(server, "POST", route, body, json_kind)
        assert status == 403, (status, said)
        assert said == b"a file must be uploaded first; this is none of the uploads"


@pytest.mark.parametrize(
    "route",
    [
        "/gradio_api/component_server",  # CVE-2024-1561: any method of a component, so any file
        "/component_server", "/gradio_api/process_recording", "/gradio_api/vibe-edit", "/login",
        "/gradio_api/run-history/connect", "/gradio_api/stream/x", "/results/x/y", "/gradio_api/profiling/clear",
    ],
)  # fmt: skip
def test_what_the_page_does_not_need_is_closed(server: Server, route: str) -> None:
    body = json.dumps({"data": [str(server.folder)], "fn_name": "move_resource_to_block_cache"}).encode()
    status, _, _ = call(server, "POST", route, body, {"Content-Type": "application/json"})
    assert status in (404, 405)
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        assert call(server, method, route)[0] == 404


@pytest.mark.parametrize(
    "name",
    [
        "../../../evil.mp4", "..\\..\\evil.mp4", "/tmp/evil-of-deixis.mp4", "%2e%2e%2fevil.mp4", "....//evil.mp4",
        "..", ".", "", "a/../../evil.mp4", "evil\\x00.mp4", "C:\\\\evil.mp4", "n" * 300 + ".mp4",
        "~/evil.mp4", "evil.mp4;ls",
    ],
)  # fmt: skip
def test_the_name_of_an_upload_leads_nowhere_else(server: Server, name: str) -> None:
    around = server.folder.parent
    before = files_of(around)
    status, body = upload(server, name)
    fresh = files_of(around) - before
    assert all(path.is_relative_to(server.folder / "uploads") for path in fresh), fresh
    assert not Path("/tmp/evil-of-deixis.mp4").exists()
    if status == 200:
        (path,) = json.loads(body)
        assert Path(path).resolve().is_relative_to(server.folder / "uploads")
    else:
        assert status in (400, 422, 500)


def test_an_original_name_with_a_path_names_nothing(server: Server, film: Path) -> None:
    """The film is the one that was uploaded, whatever orig_name and url say of it."""
    status, body = upload(server, "film.mp4", film.read_bytes())
    assert status == 200
    (path,) = json.loads(body)
    before = files_of(server.folder.parent)
    lies = {"orig_name": "../../../secret.txt", "url": "http://127.0.0.1:1/film.mp4"}
    json_kind = {"Content-Type": "application/json"}
    status, _, body = call(server, "POST", "/gradio_api/call/segment", question(path, **lies), json_kind)
    assert status == 200, body
    event = json.loads(body)["event_id"]
    status, _, body = call(server, "GET", f"/gradio_api/call/segment/{event}")
    assert b"event: complete" in body
    assert b'"state": "done"' in body
    assert SECRET.encode() not in body
    fresh = files_of(server.folder.parent) - before - {server.calls}
    assert [path for path in fresh if not path.is_relative_to(server.folder)] == []


def test_what_a_visitor_brought_is_never_run_as_a_page(server: Server) -> None:
    """CVE-2024-47872: scripts in uploaded HTML and SVG."""
    for name, kind in (("page.html", "text/html"), ("picture.svg", "image/svg+xml")):
        status, body = upload(server, name, b"<script>alert(1)</script>")
        assert status == 200
        status, headers, _ = call(server, "GET", f"/gradio_api/file={json.loads(body)[0]}")
        assert status == 200
        assert headers["content-disposition"].startswith("attachment")
        assert headers["content-type"] != kind
        assert headers["content-security-policy"].startswith("sandbox")
        assert headers["x-content-type-options"] == "nosniff"


def test_an_upload_or_a_question_that_is_too_large_is_refused_while_it_comes(server: Server) -> None:
    before = files_of(server.folder)
    status, said = upload(server, "big.mp4", b"x" * 2_100_000)
    assert files_of(server.folder) == before
    assert (status, said) == (413, b"the film holds more than the limit of 2,000,000 bytes; cut it")
    frame = b'--B\r\nContent-Disposition: form-data; name="files"; filename="big.mp4"\r\n\r\n' + b"x" * 2_100_000
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    headers = {"Content-Type": "multipart/form-data; boundary=B", "Transfer-Encoding": "chunked"}  # no length stated
    connection.request(
        "POST", "/gradio_api/upload", iter([frame[i : i + 65536] for i in range(0, len(frame), 65536)]),
        headers, encode_chunked=True,
    )  # fmt: skip
    assert connection.getresponse().status == 413
    connection.close()
    left = files_of(server.folder) - before  # at most a part of a film, which goes at the next sweep
    assert sum(path.stat().st_size for path in left) < 2_020_000
    status, _, said = call(server, "POST", "/gradio_api/queue/join", b'{"a": "' + b"x" * 1_000_001 + b'"}')
    assert (status, said) == (413, b"a question may hold 1,000,000 bytes")
    for body in (b"[" * 500_000, b"{", b"\xff"):
        assert call(server, "POST", "/gradio_api/queue/join", body)[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),  # a name that leads here from another site (DNS rebinding)
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:80"}, 200),
        ({"Host": ""}, 403),
        ({"Host": "["}, 400),
    ],
)
def test_the_server_answers_to_its_own_names_only(server: Server, headers: dict[str, str], status: int) -> None:
    assert call(server, "GET", "/config", headers=headers)[0] == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_site_cannot_ask_or_listen(server: Server, origin: str) -> None:
    """CVE-2024-47084, CVE-2024-47165: requests from foreign pages, also from ``null``."""
    status, _, _ = call(server, "POST", "/gradio_api/queue/join", b"{}", {"Origin": origin})
    assert status == 403
    _, headers, _ = call(server, "GET", "/config", headers={"Origin": origin})
    assert headers.get("access-control-allow-origin") in (None, "")


def test_the_page_names_no_place_of_the_server_and_nobody_else(server: Server) -> None:
    for target in ("/", "/config", "/gradio_api/info", "/theme.css"):
        status, headers, body = call(server, "GET", target)
        assert status == 200
        text = body.decode()
        assert str(server.folder.parent) not in text
        assert os.getcwd() not in text
        assert "fonts.googleapis" not in text
        assert "connect-src 'self'" in headers["content-security-policy"]


def test_a_disk_that_is_full_of_films_takes_no_more(queue: Queue) -> None:
    import asyncio

    object.__setattr__(queue.limits, "room", 500)
    brought(queue, size=450)
    said: list[dict] = []

    async def send(message: dict) -> None:
        said.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def app(scope: dict, receive: object, send: object) -> None:
        raise AssertionError("it came through")

    scope = {
        "type": "http", "method": "POST", "path": "/gradio_api/upload",
        "headers": [(b"host", b"127.0.0.1"), (b"content-length", b"100")],
    }  # fmt: skip
    asyncio.run(guard.Guard(app, queue, guard.LOOPBACK)(scope, receive, send))
    assert said[0]["status"] == 507
    assert b"the server's disk is full of films" in said[1]["body"]


def test_the_server_called_nobody(server: Server) -> None:
    """No telemetry, no version check, no fonts: nothing but this machine itself. Runs last, after all of the above."""
    assert call(server, "GET", "/")[0] == 200
    assert server.hosts_called() <= {"127.0.0.1", "localhost", "::1", ""}
