"""Command lines as people type them: files where words belong, films for folders, times, names nearly right."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.films import colours, moving, write_film
from typer.testing import CliRunner, Result

from deixis import systems
from deixis.cli import app
from deixis.cli.options import seconds_of


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(systems.PRESETS, "colours_debug", colours)
    monkeypatch.chdir(tmp_path)
    write_film(Path("a.mp4"), moving(12))
    shutil.copy("a.mp4", "b.mp4")
    os.mkdir("films")
    shutil.copy("a.mp4", "films/one.mp4")
    shutil.copy("a.mp4", "films/two.MOV")
    os.mkdir("single")
    shutil.copy("a.mp4", "single/one.mp4")
    Path("words.txt").write_text("red\n")
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def segmented(*words: str) -> Result:
    return run("segment", *words, "-o", "out", "--model", "colours_debug", "--as", "rle", "-q")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a.mp4", "b.mp4", "red"], "'b.mp4' is a file, where words belong; segment takes one film"),
        (["a.mp4", "words.txt"], "'words.txt' is a file, where words belong"),
        (["a.mp4", "./films/one.mp4"], "'./films/one.mp4' is a file, where words belong"),
        (["red", "a.mp4"], "'red' is no file and 'a.mp4' is one; the film comes first, then the words"),
        (["films", "red"], "one.mp4 and 1 more films lie in it: give one of them, or list them for `deixis batch`"),
        (["single", "red"], "one.mp4 lies in it: give one of them"),
        (["a.MP4", "red"], "no such file or folder: a.MP4; a.mp4 is there"),
        (["a", "red"], "no such file or folder: a; a.mp4 is there"),
        (["films/two", "red"], "no such file or folder: films/two; films/two.MOV is there"),
        (["~/film.mp4", "red"], "in quotes a shell leaves ~ as it is"),
        (["youtube.com/watch?v=abc", "red"], "looks like a URL; films are read from disk: download it first"),
        (["www.example.org/film.mp4", "red"], "looks like a URL"),
        (["youtu.be/abc", "red"], "looks like a URL"),
        (["a.mp4", "-the red one"], "'-the red one' is taken for an option, since it begins with a dash"),
        (["a.mp4", "red", "--start", "soon"], "expected seconds or H:MM:SS, got 'soon'"),
    ],
)
def test_what_was_meant_is_said(place: Path, words: list[str], line: str) -> None:
    before = sorted(place.rglob("*"))
    done = segmented(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert line in " ".join(done.stderr.replace("\u2502", " ").split())
    assert sorted(place.rglob("*")) == before


def test_a_film_without_a_command_is_answered_with_the_command(place: Path) -> None:
    done = run("a.mp4", "red", "-o", "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "deixis: a.mp4 is no command; to segment it, write `deixis segment VIDEO WORDS -o OUT`\n"


@pytest.mark.parametrize("words", ["the red one.", "e.g. red", "red v1.0", "..", "a red one"])
def test_words_with_points_are_words(place: Path, words: str) -> None:
    assert segmented("a.mp4", words).exit_code == 0


@pytest.mark.parametrize("name", ["out.mp4", "masks.JSON", "result.zip"])
def test_an_out_that_is_called_like_a_file_is_a_folder_and_that_is_said(place: Path, name: str) -> None:
    done = run("segment", "a.mp4", "red", "-o", name, "--model", "colours_debug", "--as", "rle")
    assert done.exit_code == 0
    assert f"warning: {name} will be a folder" in done.stderr
    assert (place / name / "masks.json").is_file()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90.5", 90.5), ("1:30", 90), ("0:01:30.5", 90.5), ("1:00:00", 3600), ("2s", 2), ("00:00.25", 0.25)],
)
def test_times_may_be_written_as_players_show_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1:2:3:4", "a:30", "1:90m", "1,5", "1:-3", "-1:30", "1::2"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected seconds or H:MM:SS"):
        seconds_of(text)


def test_a_stretch_is_the_same_in_either_form(place: Path) -> None:
    assert segmented("a.mp4", "red", "--start", "0:00.5", "--end", "0:01").exit_code == 0
    masks = (place / "out" / "masks.json").read_text()
    assert '"start": 0.5' in masks
    assert '"end": 1.0' in masks
