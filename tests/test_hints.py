"""Commands and options that messages give people to type exist, and do what the message says."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import typer
from helpers.downloads import checkpoint, official_state, small_system, write_davis, write_visor
from helpers.films import moving, write_film, write_folder
from helpers.training_toy import toy
from typer.testing import CliRunner, Result

from deixis import weights, weights_import
from deixis.benchmarks import write_fixture
from deixis.benchmarks.refcoco_build import write_download
from deixis.cli import app
from deixis.systems.slvp import DEBUG, Slvp
from deixis.training.recipes import RECIPES
from deixis.types import DeixisError
from deixis.video import Video

PACKAGE = Path(__file__).parents[1] / "src" / "deixis"


def texts(file: Path) -> list[str]:
    """The texts in a file's code, with ``{}`` for what is filled in; docstrings are not shown to anybody."""
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


def imports_weights(folder: Path) -> None:
    """`deixis weights import FILE.pth --system S -o NAME.safetensors`: and the file that it makes segments a film."""
    for system in ("soc", "soc_plus_plus"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights_import, "build_for", lambda official, name, path, system=system: small_system(name))
            file = checkpoint(folder / "FILE.pth", official_state(small_system(system), system))
            made = folder / f"{system}.safetensors"
            works("weights", "import", file, "--system", system, "-o", made, "--set", "short_side=48")
        frames = write_folder(folder / f"{system}-frames", moving(2))
        works("segment", frames, "red", "--model", made, "-o", folder / f"{system}-out", "--as", "rle")


def trains(folder: Path) -> None:
    """`deixis train RECIPE -o OUT`, and once more with --resume, which a message names too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "toy", lambda data, *, overrides: toy())
        works("train", "toy", "-o", folder / "OUT", "--device", "cpu")
        assert (folder / "OUT" / "model.safetensors").is_file()
        assert "go on with --resume" in run("train", "toy", "-o", folder / "OUT", "--device", "cpu").stderr
        works("train", "toy", "-o", folder / "OUT", "--device", "cpu", "--resume")


def transfers(folder: Path) -> None:
    """From a model that was pre-trained on flow; two steps, where the command takes the published length."""
    write_fixture("ref-youtube-vos", folder / "FOLDER")
    torch.manual_seed(0)
    weights.save(Slvp(replace(DEBUG, head="flow")), folder / "CHECKPOINT.safetensors")
    words = ["--data", f"start={folder / 'CHECKPOINT.safetensors'}", "--data", f"ref-youtube-vos={folder / 'FOLDER'}"]
    tiny = ("train.steps=2", "train.batch=1", "train.global_batch=1", "train.workers=0", "data.frames=2")
    settings = [word for setting in tiny for word in ("--set", setting)]
    works("train", "slvp_transfer", "-o", folder / "OUT", *words, "--device", "cpu", *settings)
    predicts_davis(folder / "davis", folder / "OUT" / "model.safetensors")


def predicts_davis(folder: Path, model: str | Path = "light_debug") -> None:
    write_fixture("ref-davis17", folder / "FOLDER")
    works("predict", "ref-davis17", folder / "FOLDER", "-o", folder / "OUT", "--model", model, "--device", "cpu")


def predicts(folder: Path) -> Path:
    write_fixture("mevis", folder / "mevis")
    works("predict", "mevis", folder / "mevis", "-o", folder / "OUT", "--model", "light_debug", "--device", "cpu")
    return folder / "OUT"


def packs(folder: Path) -> None:
    works("pack", "mevis", predicts(folder), "-o", folder / "OUT.zip")
    assert (folder / "OUT.zip").is_file()


def builds_davis(folder: Path) -> None:
    davis, texts = write_davis(folder)
    works("data", "build", "ref-davis17", davis, folder / "OUT", "--texts", texts)
    works("data", "check", "ref-davis17", folder / "OUT")


def builds_visor(folder: Path) -> None:
    works("data", "build", "visor", write_visor(folder / "VISOR"), folder / "OUT")
    works("data", "check", "visor", folder / "OUT", "--split", "val")


def builds_refcoco(folder: Path) -> None:
    write_download(folder / "DOWNLOAD")
    works("data", "build", "refcoco", folder / "DOWNLOAD", folder / "OUT")
    works("data", "check", "refcoco", folder / "OUT")


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


def segments(folder: Path) -> None:
    film = write_film(folder / "VIDEO.mp4", moving(4))
    works("segment", film, "WORDS", "-o", folder / "OUT", "--model", "light_debug")


def batches(folder: Path) -> None:
    write_film(folder / "VIDEO.mp4", moving(4))
    (folder / "list.csv").write_text("film,sentences\nVIDEO.mp4,red\n")
    words = ["--model", "light_debug", "--as", "rle", "--device", "cpu", "--workers", "1"]
    works("batch", folder / "list.csv", "-o", folder / "OUT", *words)


def checks(folder: Path) -> None:
    write_fixture("mevis", folder / "mevis")
    works("data", "check", "mevis", folder / "mevis")


DONE: dict[str, Callable[[Path], object]] = {
    "deixis segment VIDEO WORDS -o OUT": segments,
    "deixis batch": batches,
    "deixis models": lambda folder: works("models"),
    "deixis recipes": lambda folder: works("recipes"),
    "deixis predict": predicts,
    "deixis predict ref-davis17 FOLDER -o OUT --model MODEL": predicts_davis,
    "deixis train slvp_transfer -o OUT --data start=CHECKPOINT --data ref-youtube-vos=FOLDER": transfers,
    "deixis pack": packs,
    "deixis data check {} {}": checks,
    "deixis data fixture": lambda folder: works("data", "fixture", "mevis", folder / "made"),
    "deixis data fixture folder OUT": lambda folder: works("data", "fixture", "folder", folder / "OUT"),
    "deixis data build ref-davis17 DAVIS OUT --texts TEXTS": builds_davis,
    "deixis data build visor VISOR OUT": builds_visor,
    "deixis data build refcoco DOWNLOAD OUT": builds_refcoco,
    "deixis world OUT": lambda folder: works("world", folder / "OUT", "--films", 1, "--frames", 3, "--size", "48x64"),
    "deixis train RECIPE -o OUT": trains,
    "deixis weights import FILE.pth --system {} -o {}": imports_weights,
    "ffmpeg -i IN -c copy OUT.mp4": copies,
}


LONG = (trains, transfers, batches)


@pytest.mark.parametrize(
    "hint", [pytest.param(hint, marks=[pytest.mark.slow] if DONE.get(hint) in LONG else []) for hint in HINTS]
)
def test_every_command_that_a_message_prints_is_run(tmp_path: Path, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))
    assert hint in DONE, f"say in DONE how `{hint}` is run"
    DONE[hint](tmp_path)


def test_a_command_in_a_message_stands_in_backticks() -> None:
    """So that people find where it begins and ends, and the test above finds it; installations apart."""
    names = "segment|demo|batch|models|serve|train|recipes|world|predict|score|pack|data|weights"
    command = re.compile(rf"(?:\bdeixis (?:{names}) (?!did\b)[^:;]*\S|\btorchrun |\bffmpeg -|\bpython -m )")
    bare = [text for text in TEXTS if command.search(re.sub(r"`[^`]+`", "", text))]
    assert bare == []


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
