"""What a user can get wrong, fed to the command line: one clear line, status 2, no debris."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.films import Colours, ColoursConfig, colours, moving, write_film, write_folder, write_tone
from helpers.present import present_model
from PIL import Image
from typer.testing import CliRunner, Result

from deixis import systems, tracks, weights
from deixis.cli import app
from deixis.weights import save
from deixis.writers import contact_sheet, overlay, png, read_rle, rle

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setitem(systems.SYSTEMS, "colours", (Colours, ColoursConfig))
    monkeypatch.setitem(systems.PRESETS, "colours_debug", colours)
    return "colours_debug"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film.mp4", moving(12))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where OUT shall come: an empty folder, so that debris shows."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def run(
    film: Path, place: Path, *options: str, words: Sequence[str] = ("red",), model: str = "colours_debug"
) -> Result:
    return CliRunner().invoke(app, ["segment", str(film), *words, "-o", str(place / "out"), "--model", model, *options])


def refused(result: Result, place: Path, *words: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if " on cpu in " not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("deixis: ")
    for word in words:
        assert word in lines[0], lines[0]
    assert result.stdout == ""
    assert list(place.iterdir()) == []


def kept(result: Result, place: Path, *words: str) -> None:
    """As ``refused``, but what was answered is there all the same."""
    out = place / "out"
    assert read_rle(out / "masks.json")[0].present
    assert [p.name for p in place.iterdir()] == ["out"]
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    shutil.rmtree(out)
    refused(result, place, "what was finished is kept: ", str(out / "masks.json"), *words)


def test_a_good_film_ends_in_status_0_with_one_line_per_expression(film: Path, place: Path) -> None:
    result = run(film, place, "--as", "rle,png", words=("the red one", "a blue one"))
    assert result.exit_code == 0, result.output
    first, second, *rest = result.stdout.splitlines()
    assert first.startswith("the red one: there (presence 0.99), 0.0 to 0.9 s, 8.3 % of the picture")
    assert second == "a blue one: not there (presence 0.01, below 0.5)"
    assert rest == [f"wrote {place / 'out' / name}" for name in ("masks.json", "masks", "contact_sheet.png")]
    assert re.fullmatch(r"colours_debug on cpu in (fp32|bf16)\n", result.stderr)
    assert [p.name for p in place.iterdir()] == ["out"]


def no_such_file(folder: Path) -> Path:
    return folder / "nowhere.mp4"


def text(folder: Path) -> Path:
    (folder / "notes.mp4").write_text("these are only words\n" * 50)
    return folder / "notes.mp4"


def empty_file(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def noise(folder: Path) -> Path:
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    return folder / "noise.mp4"


def sound_only(folder: Path) -> Path:
    import av

    with av.open(str(folder / "song.m4a"), "w") as container:
        write_tone(container, container.add_stream("aac", rate=16000, layout="mono"), 1.0)
    return folder / "song.m4a"


def no_frames(folder: Path) -> Path:
    """A film whose header promises pictures, and whose pictures are gone."""
    path = write_film(folder / "hollow.avi", moving(4), codec="mjpeg", pixels="yuvj420p")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])
    return path


def without_index(folder: Path) -> Path:
    path = write_film(folder / "headless.mp4", moving(12))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def empty_folder(folder: Path) -> Path:
    (folder / "frames").mkdir()
    (folder / "frames" / "readme.txt").write_text("no pictures here")
    return folder / "frames"


def folder_of_rubbish(folder: Path) -> Path:
    (folder / "frames").mkdir()
    (folder / "frames" / "0.png").write_text("no picture")
    return folder / "frames"


def picture_bomb(folder: Path) -> Path:
    (folder / "frames").mkdir()
    Image.new("1", (9000, 9000)).save(folder / "frames" / "0.png")
    return folder / "frames"


def huge_bomb(folder: Path) -> Path:
    (folder / "frames").mkdir()
    Image.new("1", (20_000, 20_000)).save(folder / "frames" / "0.png")
    return folder / "frames"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_such_file, "no such file or folder"),
        (text, "is not a film"),
        (empty_file, "the file is empty"),
        (noise, "is not a film"),
        (sound_only, "has no video stream"),
        (no_frames, "no frames in it"),
        (without_index, "cut off before its index"),
        (empty_folder, "is a folder without frames"),
        (folder_of_rubbish, "no frames in it (0.png is not a picture that decodes"),
        (picture_bomb, "81,000,000 pixels, more than the limit of 50,000,000; if you trust the file, raise it"),
        (huge_bomb, "a picture bomb"),
        (pipe, "is neither a file nor a folder"),
    ],
)
def test_a_film_that_is_none_is_refused(tmp_path: Path, place: Path, make: Callable[[Path], Path], words: str) -> None:
    path = make(tmp_path)
    refused(run(path, place), place, words, str(path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "tpu"], "unknown device 'tpu'; expected one of auto, cpu, cuda, mps"),
        (["--as", "overlay,gif"], "unknown format 'gif'; expected overlay, png, rle, matte, coco"),
        (["--precision", "int2"], "unknown precision"),
        (["--start", "5"], "no frames between 5"),
        (["--start", "2", "--end", "1"], "end must come after start"),
        (["--start", "-1"], "start must be 0 seconds or more"),
        (["--every", "0"], "every must be 1 or more"),
        (["--size", "3"], "size must lie between"),
        (["--threshold", "2"], "threshold must lie between 0 and 1"),
        (["--max-pixels", "100"], "6,912 pixels, more than the limit of 100"),
        (["--max-pixels", "0"], "max_pixels must be 1 or more"),
        (["--threshold", "0"], "threshold must lie between 0 and 1"),
    ],
)
def test_an_option_that_cannot_be_is_refused(film: Path, place: Path, options: list[str], words: str) -> None:
    refused(run(film, place, *options), place, words)


@pytest.mark.parametrize("options", [["-o", ""], ["--out", " "], ["--out="], ["-o", "x", "--model", ""], ["--as="]])
def test_an_option_that_is_given_nothing_is_refused_and_no_folder_is_written_to(
    film: Path, place: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """-o "$OUT" with no such variable would be the folder one is in."""
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["segment", str(film), "red", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith("is given nothing; is a variable of the shell not set?\n")
    assert len(done.stderr.splitlines()) == 1
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "0"], "threshold must lie between 0 and 1"),
        (["--threshold", "nan"], "threshold must lie between 0 and 1"),
        (["--selection", "best"], "unknown selection 'best'; expected one of"),
        (["--size", "0"], "size must lie between 32 and 4096"),
        (["--size", "31"], "size must lie between 32 and 4096"),
        (["--size", "5000"], "size must lie between 32 and 4096"),
        (["--precision", "fp16"], "unknown precision 'fp16'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--model", "nonesuch"], "unknown model 'nonesuch'"),
        (["--as", "mp4"], "unknown format 'mp4'"),
        ([""], "must hold words"),
    ],
)
def test_an_option_that_no_film_could_satisfy_is_refused_before_the_film_is_read(
    place: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object, **named: object) -> None:
        raise AssertionError("the film was opened")

    monkeypatch.setattr("deixis.video.Video", opened)
    monkeypatch.setattr("deixis.weights.load", opened)
    done = CliRunner().invoke(app, ["segment", "film.mp4", "red", "-o", str(place / "out"), *options])
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.exception
    assert words in done.stderr
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "must hold words"),
        (["   \t"], "must hold words"),
        (["red", ""], "must hold words"),
        (["\x00\x07"], "must hold words"),
        (["long " * 300], "may hold 1000 characters, got 1499; shorten it"),
    ],
)
def test_an_expression_that_is_empty_or_too_long_is_refused(
    film: Path, place: Path, words: list[str], said: str
) -> None:
    refused(run(film, place, words=words), place, said)


def test_an_unknown_model_is_refused(film: Path, place: Path) -> None:
    refused(run(film, place, model="nonesuch"), place, "unknown model 'nonesuch'; expected light or")


def test_a_checkpoint_that_is_cut_off_is_refused(film: Path, place: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save(colours(), path)
    path.write_bytes(path.read_bytes()[:-10])
    refused(run(film, place, model=str(path)), place, "cut off", str(path))


def test_an_out_that_holds_something_is_refused_and_left_alone(film: Path, place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("mine")
    result = run(film, place)
    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert [str(p.relative_to(place)) for p in place.rglob("*")] == ["out", "out/mine.txt"]


def test_a_film_cut_off_in_the_middle_is_used_as_far_as_it_goes_and_that_is_said(tmp_path: Path, place: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (72, 96, 3), np.uint8) for _ in range(36)]
    path = write_film(tmp_path / "cut.mkv", pictures)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run(path, place, "--as", "rle")
    assert result.exit_code == 0
    assert any(line.startswith("warning: ") and "cut off" in line for line in result.stderr.splitlines())
    assert 8 < len(rle.read_rle(place / "out" / "masks.json")[0]) < 30


# --- a full disk ------------------------------------------------------------------------------------------------------


def full(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(tracks.DiskFile, "append"), (tracks.DiskRles, "append"), (overlay.Overlay, "add"),
     (contact_sheet.ContactSheet, "close"), (png, "_write_png")],
)  # fmt: skip
@pytest.mark.parametrize("formats", ["overlay,png,rle", "overlay,png"])
def test_a_full_disk_is_one_line_wherever_it_comes_and_the_answers_are_kept(
    film: Path, place: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, formats: str
) -> None:
    monkeypatch.setattr(owner, name, full)
    result = run(film, place, "--as", formats)
    if name == "append":  # nothing is answered yet
        refused(result, place, "no room left on the disk", "nothing was written")
    else:
        kept(result, place, "no room left on the disk")


def test_where_the_disk_takes_not_even_the_answers_they_are_kept_elsewhere(
    tmp_path: Path, film: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, elsewhere = rle.write_rle, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def write(path: Path, *arguments: object, **named: object) -> None:
        if path.is_relative_to(place):
            full()
        plain(path, *arguments, **named)

    monkeypatch.setattr(rle, "write_rle", write)
    result = run(film, place)
    (saved,) = elsewhere.rglob("masks.json")
    refused(result, place, "no room left on the disk", f"masks.json lies in {saved.parent}")
    assert read_rle(saved)[0].present


def test_where_out_goes_away_meanwhile_the_answers_are_kept_elsewhere(
    tmp_path: Path, film: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, elsewhere = Colours.encode, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def gone(self, *arguments):
        shutil.rmtree(place, ignore_errors=True)
        return encode(self, *arguments)

    monkeypatch.setattr(Colours, "encode", gone)
    result = run(film, place)
    (saved,) = elsewhere.rglob("masks.json")
    place.mkdir(exist_ok=True)
    refused(result, place, str(saved.parent))
    assert read_rle(saved)[0].present


@pytest.mark.slow
@pytest.mark.parametrize(("formats", "room"), [("overlay", "512k"), ("matte", "1m"), ("rle", "64k")])
def test_a_disk_that_is_truly_full_leaves_no_debris(tmp_path: Path, formats: str, room: str) -> None:
    """On a small file system in a namespace of its own; it fills while films are encoded, or before."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        pytest.skip("needs unshare and mount (Linux)")
    rng = np.random.default_rng(0)
    film = write_folder(tmp_path / "frames", [rng.integers(0, 255, (128, 160, 3), np.uint8) for _ in range(20)])
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=$5 none "$1" || exit 77; '
        '"$2" -m deixis.cli segment "$3" "a dog" -o "$1/out" --model "$6" --as "$4"; '
        'echo "status $?"; ls -A "$1"'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(disk), sys.executable, str(film), formats, room,
         present_model()],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}, timeout=300,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    saved = re.search(r"masks.json lies in (\S+)", done.stderr)
    left = ["out"] if saved is None else []
    assert done.stdout.splitlines() == ["status 2", *left], (done.stdout, done.stderr)
    assert saved is not None or "what was finished is kept: " in done.stderr
    if saved is not None:
        shutil.rmtree(saved[1])
    assert [line for line in done.stderr.splitlines() if "no room left on the disk" in line], done.stderr


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_while_answering_keeps_the_frames_that_are_answered(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_film(tmp_path / "film.mp4", moving(40))
    encode, count = Colours.encode, [0]

    def pressed(self, *arguments):
        count[0] += 1
        if count[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return encode(self, *arguments)

    monkeypatch.setattr(Colours, "encode", pressed)
    result = run(film, place, "--as", "overlay,png,rle")
    assert result.exit_code == 130
    assert sorted(p.name for p in (place / "out").iterdir()) == ["contact_sheet.png", "masks.json"]
    assert f"wrote {place / 'out' / 'masks.json'}" in result.stdout
    assert "stopped; what was finished is kept" in result.stderr
    assert len(rle.read_rle(place / "out" / "masks.json")[0]) == 15
    assert [p.name for p in place.iterdir()] == ["out"]


def test_ctrl_c_while_drawing_keeps_and_names_what_is_finished(
    film: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(overlay.Overlay, "add", pressed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        result = run(film, place, "--as", "overlay,rle")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert [p.name for p in (place / "out").iterdir()] == ["masks.json"]
    assert f"wrote {place / 'out' / 'masks.json'}" in result.stdout
    assert [p.name for p in place.iterdir()] == ["out"]


def test_ctrl_c_twice_stops_at_once_and_leaves_nothing(
    film: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(Colours, "encode", pressed)
    result = run(film, place)
    assert result.exit_code == 130
    assert "nothing was finished" in result.stderr
    assert list(place.iterdir()) == []


# --- the other commands -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_cuts_out_of_the_clip_that_is_shipped(place: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "-o", str(place / "out"), "--model", "light_debug", "--as", "rle"])
    assert result.exit_code == 0, result.output
    found = rle.read_rle(place / "out" / "masks.json")
    assert [t.expression.text for t in found] == list(weights.DEMO_EXPRESSIONS)
    assert len(weights.DEMO_EXPRESSIONS) == 3
    again = CliRunner().invoke(app, ["demo", "-o", str(place / "out"), "--model", "light_debug", "--as", "rle"])
    assert again.exit_code == 0


def test_the_shipped_clip_is_small_and_its_licence_lies_beside_it() -> None:
    assert weights.DEMO_FILM.stat().st_size < 1_000_000
    assert "DAVIS 2016, Perazzi et al., CC BY 4.0" in (weights.DEMO_FILM.parent / "LICENSE.md").read_text()


def test_models_lists_systems_presets_checkpoints_licences_and_places() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    for words in (
        *systems.SYSTEMS,
        *systems.PRESETS,
        *(c.licence for c in weights.KNOWN.values()),
        "light.safetensors",
    ):
        assert words in result.stdout


@pytest.mark.slow
def test_the_program_itself_ends_in_status_2_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deixis.cli", "segment", "nowhere.mp4", "a dog", "-o", "out", "--model", "light_debug"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCE)}, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "deixis: no such file or folder: nowhere.mp4\n"
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['deixis', '--help']\n"
        "from deixis.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'cv2', 'av', 'PIL', 'transformers', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert done.returncode == 0, done.stderr
    assert "segment" in done.stdout
