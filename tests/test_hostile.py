"""What fuzzing found (bench/fuzz.py, docs/reliability.md), each as small as it gets: one line, status 2, no debris."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers.films import Colours, ColoursConfig, colours, moving, write_film, write_folder
from helpers.training_toy import toy
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from deixis import systems, weights
from deixis.benchmarks import open_benchmark, results, write_fixture
from deixis.cli import app
from deixis.config import check_bounds
from deixis.training.checkpoint import load_checkpoint, read_facts, save_checkpoint
from deixis.training.loop import train
from deixis.types import DeixisError
from deixis.video import PLAYLISTS, Video
from deixis.weights_import import import_checkpoint
from deixis.writers.rle import read_rle

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(autouse=True)
def _colours_is_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(systems.SYSTEMS, "colours", (Colours, ColoursConfig))
    monkeypatch.setitem(systems.PRESETS, "colours_debug", colours)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    """No thread outlives a test."""
    before = set(threading.enumerate())
    yield
    late = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < late:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def segment(film: Path, place: Path, *options: str, words: str = "red", model: str = "colours_debug") -> Result:
    return CliRunner().invoke(app, ["segment", str(film), words, "-o", str(place / "out"), "--model", model, *options])


def refused(result: Result, words: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    # One line of error; before it may stand the one that says what the model runs on.
    lines = [line for line in result.stderr.splitlines() if not line.endswith((" in bf16", " in fp32"))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("deixis: ")
    assert words in result.stderr


# --- films and pictures -----------------------------------------------------------------------------------------------


def test_a_duration_tag_that_is_no_time_is_passed_over(tmp_path: Path, place: Path) -> None:
    path = write_film(tmp_path / "film.mkv", moving(12))
    data = path.read_bytes()
    at = data.index(b"DURATION") + 8
    time_at = data.index(b"00:0", at)
    path.write_bytes(data[:time_at] + b"99999999999999" + data[time_at + 14 :])
    film = Video(path)
    assert film.length is None or film.length > 0
    assert segment(path, place, "--as", "rle").exit_code == 0


@pytest.mark.parametrize("kind", ["m3u8", "mp4", "url", "ffconcat", "above"])
def test_a_list_of_films_opens_none_that_lies_elsewhere(tmp_path: Path, place: Path, kind: str) -> None:
    (tmp_path / "hidden").mkdir()
    hidden = write_film(tmp_path / "hidden" / "film.ts", moving(3), codec="mpeg2video", fps=25)
    named = {"url": "http://127.0.0.1:9/film.ts", "above": "../hidden/film.ts"}.get(kind, str(hidden))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{named}\n#EXT-X-ENDLIST\n"
    bait = tmp_path / "bait" / ("bait.mp4" if kind in ("mp4", "ffconcat") else "bait.m3u8")
    bait.parent.mkdir()
    bait.write_text(f"ffconcat version 1.0\nfile {hidden}\n" if kind == "ffconcat" else playlist)
    refused(segment(bait, place), "may not be read" if kind == "ffconcat" else "is a playlist")
    assert list(place.iterdir()) == []


def test_a_list_of_the_parts_beside_it_is_a_film(tmp_path: Path, place: Path) -> None:
    write_film(tmp_path / "a.mp4", moving(3))
    (tmp_path / "film.ffconcat").write_text("ffconcat version 1.0\nfile a.mp4\nfile a.mp4\n")
    assert segment(tmp_path / "film.ffconcat", place, "--as", "rle").exit_code == 0
    assert len(read_rle(place / "out" / "masks.json")[0]) == 6


def test_every_playlist_format_is_kept_out_and_no_other() -> None:
    assert PLAYLISTS & av.formats_available >= {"hls", "dash"}
    assert {"concat", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"} <= av.formats_available - PLAYLISTS


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_named_like_a_picture_and_is_none_is_left_out_of_a_folder(
    tmp_path: Path, place: Path, kind: str
) -> None:
    folder = write_folder(tmp_path / "frames", moving(3))
    strange = folder / "00001x.png"
    make: dict[str, Callable[[], None]] = {
        "pipe": lambda: os.mkfifo(strange),
        "folder": strange.mkdir,
        "loop": lambda: strange.symlink_to(strange),
        "device": lambda: strange.symlink_to("/dev/zero"),
    }
    make[kind]()
    result = segment(folder, place, "--as", "rle")
    assert result.exit_code == 0, result.output
    assert "00001x.png is not a picture that decodes; left out" in result.stderr
    assert len(read_rle(place / "out" / "masks.json")[0]) == 3


def test_a_pipe_named_like_a_picture_is_refused_at_once(tmp_path: Path, place: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    refused(segment(tmp_path / "a.png", place), "neither a file nor a folder")


def test_frames_whose_names_are_no_utf8_are_answered_under_their_names(tmp_path: Path, place: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    folder = write_folder(tmp_path / "frames", moving(2))
    try:
        os.rename(folder / "00001.png", folder / f"{name}.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    result = segment(folder, place, "--as", "rle,png")
    assert result.exit_code == 0, (result.output, result.exception)
    assert list(read_rle(place / "out" / "masks.json")[0].names) == ["00000", name]
    assert (place / "out" / "masks" / "00_red" / f"{name}.png").is_file()


@pytest.mark.parametrize("shape", [(600, 2), (2, 600)])
def test_the_contact_sheet_of_a_film_two_pixels_wide_stays_small(
    tmp_path: Path, place: Path, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (*shape, 3), np.uint8) for _ in range(3)]
    result = segment(write_folder(tmp_path / "frames", frames), place, "--as", "rle", model="light_debug")
    assert result.exit_code == 0, (result.output, result.exception)
    with Image.open(place / "out" / "contact_sheet.png") as sheet:
        assert sheet.height <= 800


@pytest.mark.parametrize("place_of", ["x" * 300, "a/" * 3000])
def test_a_path_that_no_file_system_takes_is_refused(place: Path, place_of: str) -> None:
    refused(segment(Path(place_of), place), "no such file or folder")


@pytest.mark.parametrize("fps", ["1e-9", "0.0002"])
def test_a_film_whose_frames_stand_for_years_is_written_with_shorter_ones(
    tmp_path: Path, place: Path, fps: str
) -> None:
    folder = write_folder(tmp_path / "frames", moving(6))
    result = segment(folder, place, "--fps", fps, "--as", "overlay,matte")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "a frame stands for more than 1 h" in result.stderr
    films = [place / "out" / "overlay.mp4", *(place / "out" / "matte").iterdir()]
    for film in films:
        assert [frame.seconds for frame in Video(film).frames()] == [3600.0 * i for i in range(6)]
    assert len(films) == 2


def test_sound_that_steps_back_is_left_out_where_it_does(tmp_path: Path, place: Path) -> None:
    one = write_film(tmp_path / "one.mkv", moving(12), tone=True).read_bytes()
    (tmp_path / "film.mkv").write_bytes(one + one)  # both clocks begin at 0
    result = segment(tmp_path / "film.mkv", place, "--as", "overlay")
    assert result.exit_code == 0, (result.output, result.exception)
    with av.open(str(place / "out" / "overlay.mp4")) as written:
        times = [packet.pts for packet in written.demux(audio=0) if packet.pts is not None]
    assert len(times) > 5
    assert times == sorted(set(times))


@pytest.mark.parametrize("start", ["1e308", "1e16"])
def test_a_start_that_no_clock_can_count_is_refused(tmp_path: Path, place: Path, start: str) -> None:
    film = write_film(tmp_path / "film.mp4", moving(3))
    refused(segment(film, place, "--start", start), "no frames between")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def with_facts(path: Path, change: Callable[[str], str], key: str = "deixis") -> Path:
    """A safetensors file with other facts in its header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"][key] = change(header["__metadata__"][key])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def with_config(path: Path, system: nn.Module | None = None, **fields: object) -> Path:
    """A checkpoint of a system (the tiny one) whose config states other numbers. A__b is b of the config A."""
    weights.save(system or colours(), path)

    def change(text: str) -> str:
        facts = json.loads(text)
        for name, value in fields.items():
            *inner, last = name.split("__")
            reduce(getitem, inner, facts["config"])[last] = value
        return json.dumps(facts)

    return with_facts(path, change)


@pytest.mark.parametrize(
    ("field", "value"),
    [("window", 0), ("multiple", 0), ("short_side", 1 << 20), ("long_side", -1), ("std", [0.5, 0.0, 0.5]),
     ("presence_temperature", 0.0)],
)  # fmt: skip
def test_a_config_with_a_number_that_cannot_be_worked_with_is_refused(
    tmp_path: Path, place: Path, field: str, value: object
) -> None:
    film = write_film(tmp_path / "film.mp4", moving(3))
    path = with_config(tmp_path / "c.safetensors", **{field: value})
    refused(segment(film, place, model=str(path)), f"its config states {field}")
    assert list(place.iterdir()) == []


def test_a_config_that_asks_for_a_million_layers_is_refused_at_once(tmp_path: Path) -> None:
    path = with_config(tmp_path / "light.safetensors", weights.load("light_debug"), scorer_layers=1 << 20)
    began = time.process_time()
    with pytest.raises(DeixisError, match="more tensors than the"):
        weights.load(path)
    assert time.process_time() - began < 10


STAGES = [[1, 3, 1, 1, 8], [1, 3, 2, 2, 8], [1, 3, 2, 2, 16], [1, 3, 2, 2, 16], [1, 3, 1, 2, 16], [1, 3, 2, 2, 16]]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("queries", 0, "states queries 0, expected 1 or more"), ("heads", -1, "states heads -1"),
     ("text__remember", -1, "states remember -1, expected 0 or more"), ("text__heads", -2, "states heads -2"),
     ("net_stages", [[1, 3, 0, 1, 8]], "states net_stages"), ("vit_windows", [7, -7, 7, 7], "states vit_windows"),
     ("net_stages", [[1, 3, 2, 1, 8], *STAGES[1:]], "reach strides"), ("net_stages", [*STAGES[:3]], "reach strides"),
     ("heads", 6, "6 heads cannot share 32 channels evenly"), ("text__heads", 3, "does not make a system"),
     ("least_score", 10**400, "least_score must be float")],
)  # fmt: skip
def test_a_count_that_no_tensor_shows_and_that_cannot_be_is_refused(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    path = with_config(tmp_path / "light.safetensors", weights.load("light_debug"), **{field: value})
    with pytest.raises(DeixisError, match=words):
        weights.load(path)


def test_every_preset_states_numbers_that_are_taken() -> None:
    for name, preset in systems.PRESETS.items():
        if name.endswith("_debug"):
            check_bounds(preset().config, name)


@pytest.mark.parametrize("text", ["1" * 5000, '{"format": ' + "1" * 5000 + "}", "[" * 100_000, "", "{", "5", "null"])
def test_facts_that_json_cannot_read_are_refused(tmp_path: Path, text: str) -> None:
    weights.save(colours(), tmp_path / "c.safetensors")
    with pytest.raises(DeixisError, match="does not say which deixis system"):
        weights.load(with_facts(tmp_path / "c.safetensors", lambda _: text))
    save_checkpoint(tmp_path / "last.safetensors", {"model/a": torch.ones(2)}, {"step": 1})
    with pytest.raises(DeixisError, match="is not a readable training checkpoint"):
        read_facts(with_facts(tmp_path / "last.safetensors", lambda _: text, "facts"))


@pytest.mark.parametrize("step", [-1, 1.5, "x", None, [1], True])
def test_a_training_checkpoint_of_no_step_is_refused(tmp_path: Path, step: object) -> None:
    save_checkpoint(tmp_path / "last.safetensors", {"model/a": torch.ones(2)}, {"step": step})
    with pytest.raises(DeixisError, match="is not a readable training checkpoint"):
        load_checkpoint(tmp_path / "last.safetensors")


@pytest.mark.parametrize(
    ("name", "value"), [("seconds", "x"), ("processes", None), ("counts", 5), ("config", None), ("name", 7)]
)
def test_a_run_does_not_go_on_from_damaged_facts(tmp_path: Path, name: str, value: object) -> None:
    run = toy(steps=1, workers=0)
    train(run, tmp_path, device="cpu")
    facts = read_facts(tmp_path / "last.safetensors")
    with_facts(tmp_path / "last.safetensors", lambda _: json.dumps({**facts, name: value}), "facts")
    with pytest.raises(DeixisError, match=f"is not a readable training checkpoint: it states {name}"):
        train(run, tmp_path, device="cpu", resume=True)


def test_weights_that_are_not_finite_are_refused_when_they_answer(tmp_path: Path, place: Path) -> None:
    system = colours()
    original = Colours.decode

    def nan(self: Colours, *arguments: object) -> object:
        found = original(self, *arguments)  # type: ignore[arg-type]
        found.scores.fill_(torch.nan)
        return found

    weights.save(system, tmp_path / "c.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Colours, "decode", nan)
        film = write_film(tmp_path / "film.mp4", moving(3))
        refused(segment(film, place, model=str(tmp_path / "c.safetensors")), "not finite")
    assert list(place.iterdir()) == []


PATCH, CLASSES = "backbone.0.body.patch_embed.proj.weight", "class_embed.0.weight"
WORD_TABLE = "text_encoder.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("changed", "words"),
    [({PATCH: torch.ones(())}, "its patch and class layers are"), ({CLASSES: torch.ones(())}, "its patch and class"),
     ({CLASSES: torch.ones(100_000, 8)}, "its patch and class layers"),
     ({CLASSES: torch.ones(1, 1).expand(1 << 40, 256)}, "more than the file holds of it"),
     ({PATCH: torch.ones(1, 1, 1, 1, 1).expand(96, 3, 1 << 40, 4, 4)}, "more than the file holds of it"),
     ({PATCH: torch.ones(96, 3, 4, 4).to_sparse()}, "is no plain tensor"),
     ({PATCH: torch.empty(96, 3, 4, 4, device="meta")}, "is no plain tensor")],
)  # fmt: skip
def test_published_weights_whose_shapes_lie_are_refused(
    tmp_path: Path, changed: dict[str, torch.Tensor], words: str
) -> None:
    state = {PATCH: torch.ones(96, 3, 2, 4, 4), CLASSES: torch.ones(1, 256), WORD_TABLE: torch.ones(1, 1)} | changed
    torch.save({"model": state}, tmp_path / "published.pth")
    with pytest.raises(DeixisError, match=words):
        import_checkpoint(tmp_path / "published.pth", "soc")


def test_published_weights_that_ask_for_more_memory_than_there_is_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise MemoryError

    (tmp_path / "published.pth").write_bytes(b"x")
    monkeypatch.setattr(torch, "load", full)  # a length of 4 GB in a pickle, where the machine has less
    with pytest.raises(DeixisError, match="more memory than there is"):
        import_checkpoint(tmp_path / "published.pth", "soc")


# --- zips and benchmarks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mevis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark") / "mevis"
    write_fixture("mevis", root)
    return root


def score(root: Path, archive: Path) -> Result:
    return CliRunner().invoke(app, ["score", "mevis", str(root), str(archive)])


def test_a_zip_member_without_a_name_is_refused(tmp_path: Path, mevis: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("aaaa", b"x")
    data = file.getvalue()
    central = data.index(b"PK\1\2")
    # The name's length becomes 0, and its four bytes an extra field.
    data = data[: central + 28] + struct.pack("<HH", 0, 4) + data[central + 32 :]
    (tmp_path / "r.zip").write_bytes(data)
    refused(score(mevis, tmp_path / "r.zip"), "r.zip")


def test_a_zip_with_a_damaged_stream_is_refused(tmp_path: Path, mevis: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1000))
    data = bytearray((tmp_path / "r.zip").read_bytes())
    data[35] ^= 0xFF  # the first byte of the deflated stream: a block of no kind
    (tmp_path / "r.zip").write_bytes(data)
    refused(score(mevis, tmp_path / "r.zip"), "not a readable zip")


def test_a_zip_that_would_unpack_to_more_than_any_results_is_refused(
    tmp_path: Path, mevis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", bytes(1000))
    monkeypatch.setattr(results, "MAX_UNPACKED", 4999)
    refused(score(mevis, tmp_path / "r.zip"), "unpacked it would hold 5,000 bytes, more than 4,999")


def test_a_pipe_among_masks_and_frames_is_refused(tmp_path: Path) -> None:
    for name in ("results", "truth"):
        write_folder(tmp_path / name / "a", moving(2))
        for path in (tmp_path / name / "a").iterdir():
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    (tmp_path / "results" / "a" / "00001.png").unlink()
    os.mkfifo(tmp_path / "results" / "a" / "00001.png")
    pair = [str(tmp_path / "results"), str(tmp_path / "truth")]
    refused(CliRunner().invoke(app, ["score", "masks", *pair]), "not a file")


def test_a_size_in_signs_that_are_digits_and_no_numbers_is_refused(place: Path) -> None:
    refused(CliRunner().invoke(app, ["world", str(place / "out"), "--size", "²x³"]), "--size must be HEIGHTxWIDTH")


def test_a_seed_below_zero_and_a_film_of_a_trillion_pixels_are_refused(place: Path) -> None:
    refused(CliRunner().invoke(app, ["world", str(place / "out"), "--seed", "-1"]), "the seed must be 0 or more")
    refused(CliRunner().invoke(app, ["world", str(place / "out"), "--size", "999999x999999"]), "is made in memory")
    assert list(place.iterdir()) == []


def test_a_mask_file_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    write_fixture("mevis", tmp_path / "mevis")
    (tmp_path / "mevis" / "train" / "mask_dict.json").write_text('{"0": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(DeixisError, match="not a mask dictionary"):
        open_benchmark("mevis", tmp_path / "mevis", "train")


def test_an_expression_without_annotations_among_others_is_named(tmp_path: Path, mevis: Path) -> None:
    root = tmp_path / "mevis"
    shutil.copytree(mevis, root)
    file = root / "valid_u" / "meta_expressions_v2.json"
    listed = json.loads(file.read_text())
    said = next(iter(listed["videos"].values()))["expressions"]
    del said["0"]["anno_id"]
    said["1"]["kind"] = 5
    file.write_text(json.dumps(listed))
    with pytest.raises(DeixisError, match="has no anno_id"):
        open_benchmark("mevis", root, "valid_u")
    assert len(open_benchmark("mevis", root, "valid_u", skip_bad=True).samples) == 11


@pytest.mark.parametrize("given", [b"", b"\0" * 130, b"MATLAB 5.0 MAT-file" + bytes(200), b"\x01" * 400])
def test_a_mask_file_of_jhmdb_that_is_none_is_refused(tmp_path: Path, given: bytes) -> None:
    write_fixture("jhmdb-sentences", tmp_path / "jhmdb")
    for file in tmp_path.rglob("puppet_mask.mat"):
        file.write_bytes(given)
    result = CliRunner().invoke(app, ["data", "check", "jhmdb-sentences", str(tmp_path / "jhmdb")])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "not a mask file of JHMDB" in result.output


@pytest.mark.parametrize("strange", ["pipe", "words"])
def test_a_label_of_a2d_that_is_none_is_refused(tmp_path: Path, strange: str) -> None:
    h5py = pytest.importorskip("h5py")
    write_fixture("a2d-sentences", tmp_path / "a2d")
    label = next(iter(sorted(tmp_path.rglob("*.h5"))))
    label.unlink()
    if strange == "pipe":
        os.mkfifo(label)
    else:
        with h5py.File(label, "w") as file:
            file["instance"] = [b"one", b"two"]
    with pytest.raises(DeixisError, match=label.name):
        open_benchmark("a2d-sentences", tmp_path / "a2d")


def test_a_list_of_a2d_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_fixture("a2d-sentences", tmp_path / "a2d")
    (tmp_path / "a2d" / "text_annotations" / "a2d_missed_videos.txt").write_bytes(b"a\x91b\n")
    with pytest.raises(DeixisError, match=r"a2d_missed_videos\.txt: not utf-8 text"):
        open_benchmark("a2d-sentences", tmp_path / "a2d")


@pytest.mark.parametrize(
    ("answers", "words"),
    [(5, "'answers' must be list, got int"), ([5], "'segmentation' must be dict"), (["x"], "'segmentation' must be"),
     ([{"segmentation": {"size": [2, 2], "counts": "4"}, "score": "x"}], "'score' must be"),
     ([{"segmentation": {"size": [2, "x"], "counts": "4"}, "score": 1.0}], "is damaged")],
)  # fmt: skip
def test_answers_that_predict_never_wrote_are_refused(tmp_path: Path, answers: object, words: str) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write_fixture("jhmdb-sentences", root)
    argv = ["predict", "jhmdb-sentences", str(root), "-o", str(out), "--model", "light_debug"]
    assert CliRunner().invoke(app, argv).exit_code == 0
    whole = (out / "predictions.json").read_bytes()
    marker = next(file for file in sorted((out / ".deixis").rglob("*.json")) if file.name != "run.json")
    kept = marker.read_bytes()
    marker.write_text(json.dumps({**json.loads(kept), "answers": answers}))
    refused(CliRunner().invoke(app, argv), words)
    assert list(out.glob("*.half")) == []
    marker.unlink()
    assert CliRunner().invoke(app, argv).exit_code == 0
    assert (out / "predictions.json").read_bytes() == whole


# --- the program itself -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_out_whose_name_is_no_utf8_can_be_named(tmp_path: Path) -> None:
    film = write_folder(tmp_path / "frames", moving(2))
    done = subprocess.run(
        [sys.executable, "-m", "deixis.cli", "segment", str(film), "🦏 والكلب", "-o", b"caf\xe9", "--model",
         "light_debug", "--as", "rle"],
        capture_output=True, cwd=tmp_path, timeout=300, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9" in done.stdout
    assert read_rle(tmp_path / os.fsdecode(b"caf\xe9") / "masks.json")[0].expression.text == "🦏 والكلب"


@pytest.mark.parametrize("spoiled", ["video00/0/00000.png", ".deixis/video00/0.json"])
def test_a_folder_where_a_file_of_results_belongs_stops_predict_in_one_line(
    tmp_path: Path, mevis: Path, spoiled: str
) -> None:
    out = tmp_path / "out"
    argv = ["predict", "mevis", str(mevis), "-o", str(out), "--model", "light_debug"]
    assert CliRunner().invoke(app, argv).exit_code == 0
    (out / spoiled).unlink()
    (out / spoiled).mkdir()
    refused(CliRunner().invoke(app, argv), "Is a directory; what was finished is kept")
