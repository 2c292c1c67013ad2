"""`deixis batch`: many films as `segment` makes them; bad ones named, dead workers replaced, stopped runs taken up."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.batch_films import (
    COUNT,
    Here,
    Listed,
    Mortal,
    always,
    make_films,
    noise,
    plan_of,
    results,
    state,
    truth_of,
)
from helpers.batch_films import files as files_of
from helpers.films import moving, write_film
from typer.testing import CliRunner, Result

from deixis import weights
from deixis.batch import forecast as forecast_module
from deixis.batch import run as run_module
from deixis.batch import storage
from deixis.batch.forecast import forecast
from deixis.batch.local import Local, usable_cores
from deixis.batch.manifest import Options, Settings, read_manifest
from deixis.batch.run import batch
from deixis.batch.storage import RESULT, RESULTS, file_system
from deixis.batch.worker import FilmWorker
from deixis.cli import app
from deixis.devices import run_facts, run_words
from deixis.types import DeixisError

TESTS = Path(__file__).parent
QUICK = Local("forkserver")  # workers that need not import everything anew; the command's own are spawned


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["deixis.batch.run"])
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return make_films(tmp_path_factory.mktemp("listed"))


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A manifest of four films."""
    (tmp_path / "films").mkdir()
    for i in range(4):
        write_film(tmp_path / "films" / f"{i}.mp4", moving(3 + i, (32, 48)))
    rows = ["film,sentences,every", *(f"films/{i}.mp4,a red square|a dog," for i in range(4))]
    (tmp_path / "few.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "few.csv"


def command(manifest: Path, out: Path | str, *options: str) -> Result:
    return CliRunner().invoke(app, ["batch", str(manifest), "-o", str(out), *always(), "--threads", "1", *options])


# --- the same as segment ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_24_films_by_two_workers_are_those_of_segment_byte_for_byte(listed: Listed, tmp_path: Path) -> None:
    done = command(listed.manifest, tmp_path / "out", "--workers", "2")
    assert done.exit_code == 0, (done.output, done.exception)
    assert listed.wrong(tmp_path / "out") == []
    lines = results(tmp_path / "out")
    assert [(line["row"], line["film"]) for line in lines] == [(i + 1, r["film"]) for i, r in enumerate(listed.rows)]
    assert len({line["folder"] for line in lines}) == COUNT
    assert {p.name for p in (tmp_path / "out").iterdir()} == {RESULTS, *(line["folder"] for line in lines)}
    assert any(t["present"] for line in lines for t in line["tracks"])  # empty masks would be equal for nothing
    assert done.stdout.splitlines()[0].startswith(f"{COUNT} films: {COUNT} done now, 0 done before, 0 failed")


@pytest.mark.slow
def test_a_worker_killed_half_way_costs_nothing_but_time(listed: Listed, tmp_path: Path) -> None:
    seen: list[int] = []

    def kill(done: int, total: int) -> None:
        seen.append(done)
        if done == COUNT // 2:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    summary = batch(listed.planned(tmp_path / "out", engine=QUICK), progress=kill)
    assert (len(summary.now), summary.failed, summary.waiting) == (COUNT, [], [])
    assert listed.wrong(tmp_path / "out") == []
    assert len(results(tmp_path / "out")) == COUNT
    assert seen == list(range(COUNT + 1))  # nothing lost, nothing twice
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
def test_a_film_that_kills_its_worker_once_is_done_and_one_that_always_does_is_given_up(tmp_path: Path) -> None:
    names = ["once.mp4", "deadly.mp4", "good.mp4", "once_more.mp4"]
    for name in names:
        write_film(tmp_path / name, moving(3, (32, 48)))
    (tmp_path / "m.csv").write_text("film,sentences\n" + "".join(f"{name},a red square\n" for name in names))
    planned = plan_of(tmp_path / "m.csv", tmp_path / "out", engine=QUICK, worker=Mortal)
    summary = batch(planned)
    assert [line["film"] for line in results(tmp_path / "out")] == ["once.mp4", "good.mp4", "once_more.mp4"]
    assert [(line["film"], line["row"]) for line in summary.failed] == [("deadly.mp4", 2)]
    assert summary.failed[0]["reason"].startswith("its worker died 3 times (SIGKILL)")
    assert (tmp_path / "killed-deadly.mp4").read_text() == "xxx"
    assert (tmp_path / "killed-once.mp4").read_text() == "x"
    row = {"sentences": ["a red square"], "options": {}}
    for line in results(tmp_path / "out"):
        truth = truth_of(tmp_path / line["film"], row, tmp_path / "truth" / line["film"])
        assert files_of(tmp_path / "out" / line["folder"]) == truth
    assert len(list((tmp_path / "out").iterdir())) == 4  # three folders, results.jsonl, and nothing half-made


# --- films and runs that fail -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bad_films_are_named_with_their_reasons_and_do_not_stop_the_rest(few: Path, tmp_path: Path) -> None:
    noise(tmp_path / "films" / "noise.mp4")
    (tmp_path / "films" / "empty.mp4").touch()
    text = few.read_text() + "films/noise.mp4,a dog,\nfilms/none.mp4,a dog,2\nfilms/empty.mp4,a dog,\n"
    few.write_text(text + "memory://nowhere/film.mp4,a dog,\nnonesuch://bucket/film.mp4,a dog,\n")
    summary = batch(plan_of(few, tmp_path / "out", engine=QUICK))
    reasons = {line["row"]: line["reason"] for line in summary.failed}
    assert list(reasons) == [5, 6, 7, 8, 9]
    assert "is not a film" in reasons[5]
    assert reasons[6] == f"no such file or folder: {tmp_path / 'films' / 'none.mp4'}"
    assert "the file is empty" in reasons[7]
    assert reasons[8] == "no such file or folder: memory://nowhere/film.mp4"
    assert reasons[9].startswith("nonesuch://bucket/film.mp4 cannot be reached: Protocol not known")
    assert all("\n" not in reason for reason in reasons.values())
    assert [line["row"] for line in results(tmp_path / "out")] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (tmp_path / "out" / RESULTS).read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 10))
    write_film(tmp_path / "films" / "none.mp4", moving(3, (32, 48)))
    again = batch(plan_of(few, tmp_path / "out", engine=Here()))
    assert (len(again.now), again.before, len(again.failed)) == (1, 4, 4)
    assert results(tmp_path / "out")[4]["frames"] == 2


def test_the_command_names_bad_films_on_stderr_and_ends_in_status_1(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(run_module, "Local", Here)
    noise(tmp_path / "noise.mp4")
    (tmp_path / "m.jsonl").write_text('{"film": "noise.mp4", "sentences": "a dog"}\n')
    done = command(tmp_path / "m.jsonl", tmp_path / "out")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"failed: noise.mp4 (row 1): {tmp_path / 'noise.mp4'} is not a film")
    assert done.stdout.splitlines()[-1] == f"wrote {tmp_path / 'out' / RESULTS}"


CSV, JSONL = "film,sentences\n", '{"film": "a.mp4", "sentences": ["a dog"]}\n'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.txt", CSV, "a manifest ends in .csv or .jsonl"),
        ("m.csv", "", "the first line must name film, sentences"),
        ("m.csv", "film,words\na.mp4,a dog\n", "the first line must name film, sentences"),
        ("m.csv", "film,sentences,film\na,b,c\n", "each once; got film, sentences, film"),
        ("m.csv", CSV, "lists no film"),
        ("m.csv", CSV + "a.mp4\n", "line 2: expected 2 cells as in the first line, got 1"),
        ("m.csv", CSV + "a.mp4,a dog,red\n", "line 2: expected 2 cells as in the first line, got 3"),
        ("m.csv", CSV + 'a.mp4,"a dog\n', "line 2: not a line of a CSV file"),
        ("m.csv", CSV + "a.mp4,\n", "line 2: an expression must hold words"),
        ("m.csv", CSV + "a.mp4,a dog||b\n", "line 2: an expression must hold words"),
        ("m.csv", CSV + f"a.mp4,{'long ' * 300}\n", "line 2: an expression may hold 1000 characters"),
        ("m.csv", CSV + ",a dog\n", "line 2: film must be a path or a URL, got ''"),
        ("m.csv", CSV + "a\x00.mp4,a dog\n", "film must be a path or a URL"),
        ("m.csv", CSV + "a.mp4,a dog\nb.mp4,a dog\na.mp4,a dog\n", "line 4: a.mp4 has the same request in row 1"),
        ("m.csv", "film,sentences,every\na.mp4,a dog,two\n", "line 2: every must be a number, got 'two'"),
        ("m.csv", "film,sentences,every\na.mp4,a dog,1.5\n", "every must be a whole number, got '1.5'"),
        ("m.csv", "film,sentences,every\na.mp4,a dog,0\n", "every must be 1 or more"),
        ("m.csv", "film,sentences,start,end\na.mp4,a dog,2,1\n", "end must come after start"),
        ("m.csv", "film,sentences,start\na.mp4,a dog,nan\n", "start must be a number, got 'nan'"),
        ("m.csv", "film,sentences,threshold\na.mp4,a dog,2\n", "threshold must lie between 0 and 1"),
        ("m.csv", "film,sentences,size\na.mp4,a dog,0\n", "size must lie between 1 and 4096"),
        ("m.csv", "film,sentences,max_pixels\na.mp4,a dog,-1\n", "max_pixels must be 1 or more"),
        ("m.csv", 'film,sentences,as\na.mp4,a dog,"rle,gif"\n', "unknown format 'gif'"),
        ("m.csv", "film,sentences,model\na.mp4,a dog,light\n", "any of as, start, end"),
        ("m.jsonl", "", "lists no film"),
        ("m.jsonl", JSONL + "{\n", "line 2: not JSON"),
        ("m.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("m.jsonl", "[]\n", "line 1: expected an object of film, sentences"),
        ("m.jsonl", '{"film": "a.mp4"}\n', "line 1: expected an object of film, sentences"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": ["a"], "model": "b"}\n', "expected an object of film, sentences"),
        ("m.jsonl", '{"film": 7, "sentences": ["a"]}\n', "film must be a path or a URL, got 7"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": []}\n', "sentences must be a list of one or more"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": [7]}\n', "an expression must be text, got int"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": "a", "options": [1]}\n', "options must be an object, got [1]"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": "a", "options": {"out": "x"}}\n', "unknown option 'out'"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": "a", "options": {"every": true}}\n', "every must be a number"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": "a", "options": {"size": 1e400}}\n', "size must be a number"),
        ("m.jsonl", '{"film": "a.mp4", "sentences": "a", "options": {"as": 3}}\n', "as must be text"),
    ],
)  # fmt: skip
def test_a_bad_manifest_is_one_line_and_nothing_is_written(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    done = command(tmp_path / name, tmp_path / "new" / "out")
    refused(done, said, str(tmp_path / name))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def refused(done: Result, *words: str) -> None:
    assert done.exit_code == 2, (done.output, done.exception)
    assert (len(done.stderr.splitlines()), done.stdout) == (1, "")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "spark"], "unknown engine 'spark'; expected one of local, ray"),
        (["--address", "auto"], "--address is of a Ray cluster; add --engine ray"),
        (["--workers", "0"], "workers must be 1 or more, got 0"),
        (["--threads", "0"], "threads must be 1 or more"),
        (["--tries", "0"], "tries must be 1 or more"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "cuda"], "this machine has no cuda device"),
        (["--precision", "int2"], "unknown precision 'int2'"),
        (["--as", "gif"], "unknown format 'gif'"),
        (["--every", "0"], "every must be 1 or more"),
        (["--model", "nonesuch"], "unknown model 'nonesuch'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_and_nothing_is_written(few: Path, options: list[str], said: str) -> None:
    if said.endswith("cuda device") and torch.cuda.is_available():
        pytest.skip("this machine has one")
    refused(command(few, few.parent / "new" / "out", *options), said)
    assert sorted(p.name for p in few.parent.iterdir()) == ["few.csv", "films"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is not there; expected a manifest"),
        (lambda folder: (folder / "m.csv").mkdir(), "is no file; expected a manifest"),
        (lambda folder: (folder / "m.csv").write_bytes(b"film\xff"), "not UTF-8 text (invalid start byte at byte 4)"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path)
    refused(command(tmp_path / "m.csv", tmp_path / "out"), said, str(tmp_path / "m.csv"))
    assert not (tmp_path / "out").exists()


def test_an_out_that_holds_other_things_is_refused_and_left_alone(few: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    refused(command(few, tmp_path / "out"), "is not empty and no batch of deixis")
    refused(command(few, few), "is a file; give a folder with -o")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("left", ["lost+found", "results.jsonl.half", ".Trash-0"])
def test_what_a_disk_or_a_kill_at_its_start_left_in_out_is_no_obstacle(few: Path, tmp_path: Path, left: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / left).write_text("") if left.endswith(".half") else (out / left).mkdir()
    store = storage.Store(str(out))
    with storage.claimed(store):
        assert (out / RESULTS).is_file()
    assert not (out / RESULTS).exists(), "a batch that did nothing leaves nothing"
    assert (out / left).exists() != left.endswith(".half")


def test_what_auto_became_is_said_once_and_not_for_what_was_done_before(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "Local", Here)
    header = run_words(run_facts(weights.load("light_debug"), "cpu"), "light_debug")
    first, second = (command(few, tmp_path / "out", "--device", "cpu") for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert (first.stderr, second.stderr) == (header + "\n", "")
    assert all(line["run"] == run_facts(weights.load("light_debug"), "cpu") for line in results(tmp_path / "out"))


def test_two_batches_may_not_write_to_one_out(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LET_GO", 0.1)

    def other(done: int, total: int) -> None:
        with pytest.raises(DeixisError, match="another batch is writing to"):
            batch(plan_of(few, tmp_path / "out", engine=Here()))

    assert len(batch(plan_of(few, tmp_path / "out", engine=Here()), progress=other).now) == 4


def test_a_run_that_is_stopped_at_once_keeps_the_lines_of_films_at_urls_that_are_finished(
    few: Path, tmp_path: Path
) -> None:
    few.write_text(few.read_text().replace("films/", f"file://{few.parent}/films/"))
    out = tmp_path / "out"
    assert len(batch(plan_of(few, out, engine=Here())).now) == 4
    lines = (out / RESULTS).read_text()

    class Stopped(Here):
        def results(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    summary = batch(plan_of(few, out, engine=Stopped()))
    assert (summary.stopped, summary.before, len(summary.now), len(summary.waiting)) == (True, 4, 0, 0)
    assert (out / RESULTS).read_text() == lines


def test_what_a_killed_batch_still_holds_for_a_moment_is_waited_for(few: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    dying = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(dying, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, [dying]).start()
    assert len(batch(plan_of(few, tmp_path / "out", engine=Here())).now) == 4


class Unloadable(FilmWorker):
    def __init__(self, settings: Settings, number: int = 0) -> None:
        raise DeixisError("the model is damaged")


class Stillborn(FilmWorker):
    def __init__(self, settings: Settings, number: int = 0) -> None:
        os._exit(3)


@pytest.mark.parametrize(
    ("worker", "said"), [(Unloadable, "the model is damaged"), (Stillborn, "die as they start .exit status 3.")]
)
def test_a_model_that_cannot_be_loaded_ends_the_batch_and_nothing_is_written(few: Path, worker: Any, said: str) -> None:
    with pytest.raises(DeixisError, match=said):
        batch(plan_of(few, few.parent / "new" / "out", engine=QUICK, worker=worker))
    assert not (few.parent / "new").exists()


def test_a_checkpoint_that_is_another_file_where_the_worker_is_ends_the_batch(few: Path, tmp_path: Path) -> None:
    planned = plan_of(few, tmp_path / "out", engine=Here())
    facts = {**planned.settings.facts, "sha256": "0" * 64}
    with pytest.raises(DeixisError, match="is not the same file here"):
        batch(replace(planned, settings=replace(planned.settings, facts=facts)))


# --- taken up again ---------------------------------------------------------------------------------------------------


class Untouchable(FilmWorker):
    def __init__(self, settings: Settings, number: int = 0) -> None:
        raise AssertionError("there was nothing to do")


def test_finished_films_are_not_done_again_and_the_output_stays_as_it_is(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(plan_of(few, out, engine=Here()))
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    summary = batch(plan_of(few, out, engine=Here(), worker=Untouchable))
    assert (summary.now, summary.before, summary.waiting) == ([], 4, [])
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    assert {p: v for p, v in after.items() if p.name != RESULTS} == {
        p: v for p, v in before.items() if p.name != RESULTS
    }
    assert after[out / RESULTS][1] == before[out / RESULTS][1]


@pytest.mark.slow
def test_whatever_is_not_as_it_was_is_done_again_and_nothing_else(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(plan_of(few, out, engine=Here()))
    first = state(out)
    folders = [out / line["folder"] for line in results(out)]
    (folders[0] / "masks.json").write_bytes((folders[0] / "masks.json").read_bytes()[:-1])
    (folders[1] / RESULT).write_text('{"key": ')
    (folders[2] / "contact_sheet.png").unlink()
    assert batch(plan_of(few, out, engine=Here())).now == [f.name for f in folders[:3]]
    assert state(out) == first
    (folders[1] / RESULT).unlink()
    (out / ".0-0123456789ab.part-xyz").mkdir()
    assert batch(plan_of(few, out, engine=Here())).now == [folders[1].name]
    assert state(out) == first
    write_film(tmp_path / "films" / "3.mp4", moving(5, (32, 48), ["green"]))  # other contents
    assert batch(plan_of(few, out, engine=Here())).now == [folders[3].name]
    assert results(out)[3]["frames"] == 5
    few.write_text(few.read_text().replace("films/2.mp4,a red square|a dog,", "films/2.mp4,a red square|a dog,2"))
    again = batch(plan_of(few, out, engine=Here()))
    assert (len(again.now), again.before) == (1, 3)
    assert results(out)[2]["frames"] == 3
    assert folders[2].is_dir()  # asked otherwise it stands beside
    assert len(batch(plan_of(few, out, engine=Here(), precision="fp32")).now) == 4


class Interrupting(Here):
    """Ctrl-C after two films."""

    def results(self, make: Any, items: Any, **more: Any) -> Iterator[tuple[int, Any]]:
        for index, answer in super().results(make, items, **more):
            if index == 2:
                raise KeyboardInterrupt
            yield index, answer


def test_ctrl_c_keeps_and_names_what_is_finished_and_the_rest_follows(few: Path, tmp_path: Path) -> None:
    summary = batch(plan_of(few, tmp_path / "out", engine=Interrupting()))
    assert summary.stopped
    lines = run_module.summary_lines(summary, "out")
    names = [line["folder"] for line in results(tmp_path / "out")]
    assert [line["row"] for line in results(tmp_path / "out")] == [1, 2, 3]  # the third was finished, not yet reported
    assert lines[:3] == [f"finished {name}" for name in names]
    assert lines[3].startswith("4 films: 3 done now, 0 done before, 0 failed, 1 not done")
    assert [job.row for job in summary.waiting] == [4]
    again = batch(plan_of(few, tmp_path / "out", engine=Here()))
    assert (len(again.now), again.before) == (1, 3)


# --- places that are no paths -----------------------------------------------------------------------------------------


def put(folder: Path, url: str) -> None:
    system, root = file_system(url)
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_films_manifest_and_out_may_lie_in_a_bucket(listed: Listed, tmp_path: Path) -> None:
    put(listed.manifest.parent / "films", "memory://there/films")
    rows = listed.rows[:8]
    file_system("memory://there")[0].pipe_file(
        "/there/m.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()
    )
    planned = plan_of("memory://there/m.jsonl", "memory://there/out", engine=Here())
    assert len(batch(planned).now) == 8
    memory = file_system("memory://there")[0]
    memory.get("/there/out/", str(tmp_path / "copy"), recursive=True)
    assert listed.wrong(tmp_path / "copy") == []
    assert [line["film"] for line in results(tmp_path / "copy")] == [row["film"] for row in rows]
    again = batch(replace(planned, worker=FilmWorker))
    assert (again.now, again.before) == ([], 8)
    folder = results(tmp_path / "copy")[1]["folder"]
    memory.rm(f"/there/out/{folder}/{RESULT}")  # as where a worker was killed while it copied
    assert batch(planned).now == [folder]
    memory.pipe_file(f"/there/out/{folder}/masks.json", b"half")
    assert batch(planned).now == [folder]
    memory.rm("/there", recursive=True)


def test_a_file_url_is_written_to_as_a_bucket_is(few: Path, tmp_path: Path) -> None:
    planned = plan_of(few.as_uri(), (tmp_path / "out").as_uri(), engine=QUICK)
    assert planned.jobs[0].place == f"{tmp_path.as_uri()}/films/0.mp4"
    assert len(batch(planned).now) == 4
    row = {"sentences": ["a red square", "a dog"], "options": {}}
    for i, line in enumerate(results(tmp_path / "out")):
        truth = truth_of(tmp_path / "films" / f"{i}.mp4", row, tmp_path / "truth" / str(i))
        assert files_of(tmp_path / "out" / line["folder"]) == truth


def test_a_bucket_that_lets_nobody_in_is_one_clear_error(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, path: str, **more: Any) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(type(file_system("memory://there")[0]), "ls", refuse)
    refused(command(few, "memory://there/out"), "/there/out cannot be reached: RuntimeError: no credentials")


def test_a_relative_film_lies_beside_its_manifest_and_a_rows_own_options_go_first(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        '\ufefffilm,every,sentences,as\nsub/a.mp4,,a dog | the red one ,\n\n/tmp/b.mp4,3,"a dog, lying","png,rle"\n'
        "s3://bucket/c.mp4,,a cat,\n"
    )
    a, b, c = read_manifest(str(tmp_path / "m.csv"), Options(every=2))
    assert (a.place, a.sentences, a.options.every) == (str(tmp_path / "sub/a.mp4"), ("a dog", "the red one"), 2)
    assert (b.place, b.sentences, b.options.formats) == ("/tmp/b.mp4", ("a dog, lying",), ("png", "rle"))
    assert (b.options.every, c.place, [a.row, b.row, c.row]) == (3, "s3://bucket/c.mp4", [1, 2, 3])


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_manifest_of_excel_with_its_separators_and_its_first_bytes_is_read(tmp_path: Path, mark: str) -> None:
    rows = (("film", "sentences", "every"), ("a.mp4", "a dog, lying|the red one", "2"))
    text = "".join(mark.join(row) + "\r\n" for row in rows)
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (job,) = read_manifest(str(tmp_path / "m.csv"))
    assert (job.film, job.sentences, job.options.every) == ("a.mp4", ("a dog, lying", "the red one"), 2)


def test_the_manifests_of_the_page_can_be_read(tmp_path: Path) -> None:
    page = (TESTS.parent / "docs" / "batch.md").read_text()
    csv, jsonl = re.findall(r"```\n((?:film,|\{).*?)```", page, re.DOTALL)
    (tmp_path / "m.csv").write_text(csv)
    (tmp_path / "m.jsonl").write_text(jsonl)
    for name in ("m.csv", "m.jsonl"):
        street, night = read_manifest(str(tmp_path / name))
        assert street.sentences == ("a red car", "the woman with a dog")
        assert (night.options.every, night.options.formats) == (2, ("rle", "png"))


# --- dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_times_the_first_film(few: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(run_module, "Local", lambda: QUICK)
    monkeypatch.setattr(forecast_module, "Local", lambda: QUICK)
    noise(tmp_path / "films" / "noise.mp4")
    few.write_text(few.read_text() + "films/noise.mp4,a dog,\n")
    before = sorted(tmp_path.rglob("*"))
    done = command(few, tmp_path / "out", "--dry-run", "--workers", "2")
    assert done.exit_code == 0, (done.output, done.exception)
    assert sorted(tmp_path.rglob("*")) == before
    lines = done.stdout.splitlines()
    assert lines[0] == "5 films: 0 finished, 4 to do, 1 cannot be read"
    assert lines[1].startswith("cannot be read: films/noise.mp4 (row 5): ")
    assert lines[2:6] == [f"to do: films/{i}.mp4 (row {i + 1})" for i in range(4)]
    assert "frames/s a worker, measured on films/0.mp4, timed now: one worker with 1 threads" in lines[6]
    assert "for 18 frames, by 2 workers if they do not slow each other" in lines[7]


def test_a_dry_run_counts_with_the_speed_of_earlier_results(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(plan_of(few, out, engine=Here()))
    slow = [{**json.loads(line), "seconds": 2.0, "frames": 4} for line in (out / RESULTS).read_text().splitlines()]
    (out / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in slow))
    (out / results(out)[1]["folder"] / RESULT).unlink()
    (out / results(out)[3]["folder"] / RESULT).unlink()
    found = forecast(plan_of(few, out, engine=QUICK))
    assert (found.films, found.finished, [job.row for job in found.due]) == (4, 2, [2, 4])
    assert found.frames == 4 + 6
    assert found.seconds == pytest.approx(10 * 0.5 / 2)
    lines = "\n".join(forecast_module.forecast_lines(found))
    assert f"2.00 frames/s a worker, measured on 4 films of {out / RESULTS}; 1 workers with 1 threads on cpu" in lines
    (tmp_path / "other.jsonl").write_text(json.dumps(slow[0]) + "\n")
    new = forecast(plan_of(few, tmp_path / "new", engine=QUICK), str(tmp_path / "other.jsonl"))
    assert new.seconds == pytest.approx(18 * 0.5 / 2)
    refused(command(few, tmp_path / "new", "--dry-run", "--rate-from", str(few)), "is not a results.jsonl of deixis")
    assert not (tmp_path / "new").exists()


# --- the local engine itself ------------------------------------------------------------------------------------------


class Crowded(FilmWorker):
    """There is room for one, which needs a while to start."""

    pause = 0.0

    def __init__(self, settings: Settings, number: int = 0) -> None:
        if number:
            os._exit(9)
        time.sleep(self.pause)
        super().__init__(settings, number)


class CrowdedAndSlow(Crowded):
    pause = 1.0  # seconds: the others die three times before the first has started


@pytest.mark.parametrize("worker", [Crowded, pytest.param(CrowdedAndSlow, marks=pytest.mark.slow)])
def test_where_only_some_workers_can_start_those_do_all_the_films(
    few: Path, tmp_path: Path, worker: type[FilmWorker]
) -> None:
    summary = batch(plan_of(few, tmp_path / "out", engine=QUICK, worker=worker))
    assert (len(summary.now), summary.failed) == (4, [])


def test_workers_fill_the_cores_and_share_the_threads() -> None:
    cores = usable_cores()
    assert Local().allocate("cpu", None, None, 1000) == (cores, 1)
    assert Local().allocate("cpu", 1, None, 1000) == (1, cores)
    assert Local().allocate("cpu", 8, 3, 2) == (2, 3)


# --- kill -9 and Ctrl-C of the whole group ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(listed: Listed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    batch(listed.planned(out, engine=QUICK))
    return state(out)


class Driver:
    """Batches in process groups of their own, from one process that has imported everything."""

    def __init__(self, manifest: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "helpers" / "batch_driver.py"), str(manifest)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}"},
        )  # fmt: skip

    def run(self, out: Path, order: str) -> tuple[int, str]:
        """(status, what the run said)"""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{out}\t{order}\n")
        self.process.stdin.flush()
        said, tab, status = self.process.stdout.readline().rpartition("\t")
        assert tab, f"the driver ended: {self.process.communicate()[1]}"
        return int(status), said


@pytest.fixture(scope="module")
def driver(listed: Listed) -> Iterator[Driver]:
    made = Driver(listed.manifest)
    yield made
    assert made.process.communicate(timeout=60)[1] == ""  # no traceback of any run or worker


@pytest.mark.slow
def test_a_batch_killed_at_random_moments_ends_with_the_bytes_of_an_unbroken_one(
    driver: Driver, unbroken: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for mounted in (False, True):
        chance = random.Random(int(mounted))
        if mounted:  # a mounted disk: OUT is there, with what the disk puts into it
            (out / "lost+found").mkdir(parents=True)
        for count in sorted(chance.sample(range(COUNT - 4), 2)):
            assert driver.run(out, f"kill {count} {chance.uniform(0, 0.05):.4f}") == (-signal.SIGKILL, "")
            whole = whole_folders(out)
            assert set(whole.items()) <= set(unbroken.items())  # what calls itself finished is
            assert len({name.partition("/")[0] for name in whole}) >= count
            assert all(line["status"] == "done" for line in results(out))  # no line is cut off
        assert driver.run(out, "whole")[0] == 0
        assert state(out) == unbroken
        shutil.rmtree(out)


def whole_folders(out: Path) -> dict[str, str]:
    """``state`` of the folders that hold a result.json."""
    there = state(out) if out.exists() else {}
    whole = {name.partition("/")[0] for name in there if name.endswith(f"/{RESULT}") and not name.startswith(".")}
    return {name: data for name, data in there.items() if name.partition("/")[0] in whole}


@pytest.mark.slow
def test_ctrl_c_of_the_whole_group_keeps_what_is_finished_and_leaves_no_debris(
    driver: Driver, unbroken: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, said = driver.run(out, "int 8 0.01")
    assert status == 130
    assert set(whole_folders(out).items()) <= set(unbroken.items())
    assert {p.name for p in out.iterdir()} == {RESULTS, *(line["folder"] for line in results(out))}
    count = len(results(out))
    assert count >= 8
    assert said.count("finished ") == count
    assert f"{COUNT} films: {count} done now, 0 done before, 0 failed, {COUNT - count} not done" in said
    assert driver.run(out, "whole")[0] == 0
    assert state(out) == unbroken
