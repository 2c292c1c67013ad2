"""Commands and options that messages tell people to type exist, and do what the message says."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import typer
from helpers.films import moving, write_film
from typer.testing import CliRunner, Result

from deixis.benchmarks import write_fixture
from deixis.cli import app
from deixis.types import DeixisError
from deixis.video import Video

PACKAGE = Path(__file__).parents[1] / "src" / "deixis"


def texts(file: Path) -> list[str]:
    """The texts in a file's code, with ``{}`` for what is filled in; docstrings are not told to anybody."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | docs:
            found.append(node.value)
    return found


TEXTS = [text for file in sorted(PACKAGE.rglob("*.py")) for text in texts(file)]
HINTS = sorted({hint for text in TEXTS for hint in re.findall(r"`((?:deixis|ffmpeg|python|torchrun) [^`]+)`", text)})


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def works(*words: object) -> None:
    done = run(*words)
    assert done.exit_code == 0, done.output


def starts(*words: object) -> None:
    """The command is understood: it refuses an empty folder for what is not in it, not for how it was typed."""
    done = run(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith("deixis: "), done.stderr
    assert "is missing" in done.stderr or "holds none of" in done.stderr


def imports_weights(folder: Path) -> None:
    """`deixis weights import FILE.pth --system S -o NAME.safetensors`: refused for the file, not for the words."""
    (folder / "FILE.pth").write_bytes(b"no checkpoint")
    for system in ("soc", "soc_plus_plus"):
        done = run("weights", "import", folder / "FILE.pth", "--system", system, "-o", folder / f"{system}.safetensors")
        assert done.stderr.startswith(f"deixis: {folder / 'FILE.pth'}"), done.output


def trains(folder: Path) -> None:
    done = run("train", "no_recipe", "-o", folder / "OUT")
    assert done.stderr.startswith("deixis: no recipe 'no_recipe'; there are "), done.output


def copies(folder: Path) -> None:
    """`ffmpeg -i IN -c copy OUT.mp4` makes a film of a playlist."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    write_film(folder / "part.ts", moving(6))
    (folder / "IN.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\npart.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(DeixisError, match="is a playlist"):
        Video(folder / "IN.m3u8")
    words = ["ffmpeg", "-v", "error", "-i", str(folder / "IN.m3u8"), "-c", "copy", str(folder / "OUT.mp4")]
    subprocess.run(words, check=True)
    assert len(list(Video(folder / "OUT.mp4").frames())) == 6


def checks(folder: Path) -> None:
    write_fixture("mevis", folder / "mevis")
    works("data", "check", "mevis", folder / "mevis")


DONE: dict[str, Callable[[Path], None]] = {
    "deixis models": lambda folder: works("models"),
    "deixis recipes": lambda folder: works("recipes"),
    "deixis predict": lambda folder: works("predict", "--help"),
    "deixis pack": lambda folder: works("pack", "--help"),
    "deixis data check {} {}": checks,
    "deixis data fixture": lambda folder: works("data", "fixture", "mevis", folder / "made"),
    "deixis data fixture folder OUT": lambda folder: works("data", "fixture", "folder", folder / "OUT"),
    "deixis data build ref-davis17 DAVIS OUT --texts TEXTS": lambda folder: starts(
        "data", "build", "ref-davis17", folder, folder / "OUT", "--texts", folder
    ),
    "deixis data build visor VISOR OUT": lambda folder: starts("data", "build", "visor", folder, folder / "OUT"),
    "deixis data build refcoco DOWNLOAD OUT": lambda folder: starts("data", "build", "refcoco", folder, folder / "OUT"),
    "deixis world OUT": lambda folder: works("world", folder / "OUT", "--films", 1, "--frames", 3, "--size", "48x64"),
    "deixis train RECIPE -o OUT": trains,
    "deixis weights import FILE.pth --system {} -o {}": imports_weights,
    "ffmpeg -i IN -c copy OUT.mp4": copies,
}


@pytest.mark.parametrize("hint", HINTS)
def test_every_command_that_a_message_prints_is_run(tmp_path: Path, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))
    assert hint in DONE, f"say in DONE how `{hint}` is run"
    DONE[hint](tmp_path)


def test_the_commands_of_the_table_are_printed_somewhere() -> None:
    assert sorted(set(DONE) - set(HINTS)) == []


def options() -> set[str]:
    """All options of all commands."""
    found: set[str] = {"--help"}
    todo = [typer.main.get_command(app)]
    while todo:
        command = todo.pop()
        found |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        todo += getattr(command, "commands", {}).values()
    return found


def test_every_option_that_a_message_names_exists() -> None:
    others = {"--nproc-per-node"}  # of torchrun
    named = {option for text in TEXTS for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert sorted(named - options() - others) == []


def test_the_names_that_coco_gives_pictures_are_those_that_its_command_makes(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    path = write_film(tmp_path / "film.mp4", moving(5))
    subprocess.run(
        [
            "ffmpeg",
            "-v",
            "error",
            "-i",
            str(path),
            "-vsync",
            "passthrough",
            "-start_number",
            "0",
            str(tmp_path / "%05d.jpg"),
        ],
        check=True,
    )
    film = Video(path)
    for frame in film.frames():
        with av.open(str(tmp_path / film.file_name(frame.name))) as picture:
            shown = next(picture.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        assert np.abs(shown - frame.pixels()).mean() < 6
