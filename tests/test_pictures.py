"""Pictures as frames: those that move, folders as tools write them, deep values, names, and the frames' numbers."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.films import colours, moving, write_film, write_folder
from PIL import Image, ImageOps, features
from typer.testing import CliRunner

from deixis import systems
from deixis.cli import app
from deixis.inference import segment
from deixis.types import DeixisError
from deixis.video import Video
from deixis.writers import Output, read_rle, write

ABOUT = {"name": "colours", "checkpoint": None, "sha256": None}
SHAPE = (72, 96)


def left_edges(film: Video) -> list[int]:
    return [int(np.flatnonzero((f.pixels()[..., 0] > 120).any(0))[0]) for f in film.frames()]


def images(frames: int = 6) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in moving(frames)]


# --- pictures that move -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("anim.webp", {"duration": 100, "lossless": True}),
        ("anim.png", {"duration": 100}),
        ("anim.PNG", {"duration": 100}),
        ("anim.avif", {"duration": 100, "quality": 90}),
        ("anim.apng", {"duration": 100}),
        ("anim.gif", {"duration": 100}),
        ("stack.tif", {}),
        ("stack.tiff", {"compression": "tiff_deflate"}),
    ],
)
def test_every_picture_that_moves_gives_all_its_frames(tmp_path: Path, name: str, options: dict) -> None:
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    kind = {"avif": "AVIF", "apng": "PNG"}.get(name.rpartition(".")[2].lower())
    first, *others = images()
    first.save(tmp_path / name, kind, save_all=True, append_images=others, **options)
    film = Video(tmp_path / name, fps=10)
    edges = left_edges(film)
    assert np.abs(np.array(edges) - np.arange(4, 10)).max() <= 1, edges
    assert [f.seconds for f in film.frames()] == pytest.approx([i / 10 for i in range(6)], abs=1e-3)
    assert film.length == 6
    assert film.warnings == []
    assert [f.name for f in Video(tmp_path / name, fps=10, start=0.25).frames()] == ["00003", "00004", "00005"]


def test_frames_that_stand_for_different_times_keep_them(tmp_path: Path) -> None:
    first, *others = images(4)
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, duration=[100, 300, 50, 50], lossless=True)
    assert [f.seconds for f in Video(tmp_path / "a.webp").frames()] == pytest.approx([0, 0.1, 0.4, 0.45])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_stack_of_grey_pages_of_any_depth_is_a_film(tmp_path: Path, dtype: type) -> None:
    top = {np.uint8: 255, np.uint16: 4095, np.float32: 1.0}[dtype]
    pages = [Image.fromarray((picture[..., 0] / 230 * top).astype(dtype)) for picture in moving(4)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    film = Video(tmp_path / "stack.tif")
    assert left_edges(film) == [4, 5, 6, 7]
    assert next(film.frames()).pixels().max() == 255
    assert len(film.warnings) == (dtype == np.uint16)


def test_a_stack_of_16_bit_colours_is_a_film(tmp_path: Path) -> None:
    pages = [picture[..., ::-1].astype(np.uint16) * 257 for picture in moving(3)]
    assert cv2.imwritemulti(str(tmp_path / "deep.tif"), pages)
    assert left_edges(Video(tmp_path / "deep.tif")) == [4, 5, 6]


def test_previews_in_a_stack_are_left_out(tmp_path: Path) -> None:
    first, *others = images(3)
    first.save(tmp_path / "s.tif", save_all=True, append_images=[*others, first.resize((24, 18))])
    film = Video(tmp_path / "s.tif")
    assert len(list(film.frames())) == 3
    assert film.warnings == ["pages of another size, as of a preview, are left out"]


def test_a_camera_file_with_a_second_picture_for_depth_is_one_frame(tmp_path: Path) -> None:
    first, second = images(2)
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])
    assert len(list(Video(tmp_path / "phone.jpg").frames())) == 1


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif", "a.avif", "a.jpg", "a.bmp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_picture_that_is_cut_off_is_one_line_or_what_decodes(tmp_path: Path, name: str, share: float) -> None:
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    first, *others = images()
    moves = {"save_all": True, "append_images": others} if name[2:] in ("webp", "png", "tif", "avif") else {}
    first.save(tmp_path / name, **moves)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with contextlib.suppress(DeixisError):
        film = Video(tmp_path / name)
        assert 1 <= len([f.pixels() for f in film.frames()]) <= 6


# --- folders ----------------------------------------------------------------------------------------------------------


def save(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, image in zip(names, images(len(names)), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        image.save(folder / name, {".jfif": "JPEG", ".hif": "PNG"}.get(Path(name).suffix.lower()))
    return folder


@pytest.mark.parametrize("beside", ["{}.png", "{}.webp", "{}.tif"])
def test_two_pictures_of_one_name_are_refused_by_name(tmp_path: Path, beside: str) -> None:
    names = [name for i in range(4) for name in (f"{i:05d}.jpg", beside.format(f"{i:05d}"))]
    other = beside.format("00000")
    with pytest.raises(DeixisError, match=rf"00000.jpg and {other} \(4 such pairs\): which are the frames\?"):
        Video(save(tmp_path / "f", names))


@pytest.mark.parametrize("beside", ["{}_mask.png", "{}-seg.png", "{}.label.png", "{}_gt.png", "{}_depth.png"])
def test_masks_and_labels_beside_frames_are_left_out_with_one_line(tmp_path: Path, beside: str) -> None:
    names = [name for i in range(4) for name in (f"{i:05d}.jpg", beside.format(f"{i:05d}"))]
    film = Video(save(tmp_path / "f", names))
    assert [f.name for f in film.frames()] == [f"{i:05d}" for i in range(4)]
    first = beside.format("00000")
    assert film.warnings == [
        f"{first} lies beside a frame of that name, and is taken for its mask or label; left out (4 in all)"
    ]


def test_frames_that_are_called_mask_are_frames_where_there_are_no_others(tmp_path: Path) -> None:
    film = Video(save(tmp_path / "f", ["shot_mask_0.png", "shot_mask_1.png", "mask.png"]))
    assert len(list(film.frames())) == 3


def test_a_folder_that_mixes_kinds_says_so_once(tmp_path: Path) -> None:
    film = Video(save(tmp_path / "f", ["0.jpg", "1.jpeg", "2.JPG", "3.png", "4.jfif"]))
    assert [f.name for f in film.frames()] == ["0", "1", "2", "3", "4"]
    assert film.warnings == ["the folder mixes pictures of several kinds (4 JPEG, 1 PNG); all are read as frames"]


@pytest.mark.parametrize("suffix", ["jfif", "avif", "jpe", "jp2", "tga", "pbm"])
def test_folders_of_every_kind_that_is_decoded_here_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if suffix == "jp2" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    folder = tmp_path / "f"
    folder.mkdir()
    for i, image in enumerate(images(3)):
        kind = "JPEG" if suffix in ("jfif", "jpe") else None
        (image.convert("1") if suffix == "pbm" else image).save(folder / f"{i}.{suffix}", kind)
    assert len(list(Video(folder).frames())) == 3


def test_heic_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deixis.video.pictures.has_heic", lambda: False)
    (tmp_path / "0.heic").write_bytes(b"\0\0\0\x1cftypheic")
    with pytest.raises(DeixisError, match=r"no frames in it \(0.heic is not a picture that decodes; left out \(HEIC"):
        Video(tmp_path)


def test_frames_one_folder_further_down_are_named(tmp_path: Path) -> None:
    save(tmp_path / "top" / "clip", ["0.png"]) if (tmp_path / "top").mkdir() is None else None
    with pytest.raises(DeixisError, match=re.escape(f"; there are some in {tmp_path / 'top' / 'clip'}")):
        Video(tmp_path / "top")


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["2.5", "2.25", "10.125", "2.0"], ["2.0", "2.25", "2.5", "10.125"]),
        (["1403636579.763555584", "1403636579.813555456", "1403636580.01"],
         ["1403636579.763555584", "1403636579.813555456", "1403636580.01"]),
        (["1.10", "1.9", "1.11"], ["1.9", "1.10", "1.11"]),  # two counters
        (["shot.10", "shot.9"], ["shot.9", "shot.10"]),
        (["0.5", "0.25", "1"], ["0.25", "0.5", "1"]),
    ],
)  # fmt: skip
def test_decimals_in_names_are_ordered_as_numbers(tmp_path: Path, names: list[str], ordered: list[str]) -> None:
    assert [f.name for f in Video(save(tmp_path / "f", [f"{name}.png" for name in names])).frames()] == ordered


def test_a_thousand_problems_of_one_kind_are_one_line(tmp_path: Path) -> None:
    pictures = [np.zeros((20 + i % 3, 30, 3), np.uint8) for i in range(60)]
    film = Video(write_folder(tmp_path / "f", pictures))
    for i in range(10, 20):
        (tmp_path / "f" / f"{i:05d}.png").write_bytes(b"no picture")
    for _ in range(2):
        assert len([f.pixels() for f in film.frames()]) == 50
    assert film.warnings == [
        "frames change size, first at 0.04 s (21x30); resized to the first's (33 in all)",
        "00010.png is not a picture that decodes; left out (10 in all)",
    ]


# --- deep pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_pictures_are_as_bright_as_their_range_says(tmp_path: Path, bits: int, suffix: str) -> None:
    top = (1 << bits) - 1
    for i, picture in enumerate(moving(3)):
        deep = (picture.astype(float) / 255 * top).round().astype(np.uint16)
        deep[-1, -1] = top
        assert cv2.imwrite(str(tmp_path / f"{i}.{suffix}"), deep[..., ::-1])
    film = Video(tmp_path)
    for frame, plain in zip(film.frames(), moving(3), strict=True):
        assert np.abs(frame.pixels().astype(int) - plain)[:-1].max() <= 1
    assert len(film.warnings) == (bits < 16)
    assert bits == 16 or f"taken for {bits} bits" in film.warnings[0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-300.0, 2000.0)])
def test_pictures_of_floating_point_are_read(tmp_path: Path, low: float, high: float) -> None:
    for i, picture in enumerate(moving(3)):
        values = (low + picture[..., 0].astype(np.float32) / 230 * (high - low)).astype(np.float32)
        Image.fromarray(values).save(tmp_path / f"{i}.tif")
    film = Video(tmp_path)
    assert left_edges(film) == [4, 5, 6]
    assert next(film.frames()).pixels().min() == 0
    assert len(film.warnings) == (low < 0)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(
    ("kind", "low", "high", "noted"),
    [
        (np.float32, 0.0, 1.0, False),
        (np.float32, 0.0, 255.0, False),
        (np.float32, -50.0, 9950.0, True),
        (np.float64, 0.0, 1.0, False),
        (np.int16, -1000, 29000, True),
        (np.int32, 0, 1_000_000, True),
    ],
)
def test_colours_of_any_kind_of_values_are_read_with_their_range(
    tmp_path: Path, kind: type, low: float, high: float, noted: bool, stack: bool
) -> None:
    """Pillow opens none of them."""
    pages = [(low + p[..., ::-1].astype(np.float64) / 230 * (high - low)).astype(kind) for p in moving(3)]
    place = tmp_path / "stack.tif" if stack else tmp_path
    if stack:
        assert cv2.imwritemulti(str(place), pages)
    else:
        assert all(cv2.imwrite(str(tmp_path / f"{i}.tif"), page) for i, page in enumerate(pages))
    film = Video(place)
    for frame, plain in zip(film.frames(), moving(3), strict=True):
        assert np.abs(frame.pixels().astype(float) - plain / 230.0 * 255).max() <= 1
    assert len(film.warnings) == noted
    with pytest.raises(DeixisError, match="6,912 pixels, more than the limit of 100"):
        Video(place, max_pixels=100)


@pytest.mark.parametrize("values", ["with nan", "four channels"])
def test_colours_of_floating_point_with_something_odd_are_read(tmp_path: Path, values: str) -> None:
    for i, picture in enumerate(moving(3)):
        page = picture[..., ::-1].astype(np.float32) / 230
        if values == "with nan":
            page[-1, -1] = np.nan
        else:
            page = np.dstack([page, np.ones_like(page[..., :1])])
        assert cv2.imwrite(str(tmp_path / f"{i}.tif"), page)
    film = Video(tmp_path)
    assert left_edges(film) == [4, 5, 6]
    assert film.warnings == []


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_stack_of_floating_point_that_is_cut_off_is_one_line_or_what_decodes(tmp_path: Path, share: float) -> None:
    path = tmp_path / "stack.tif"
    assert cv2.imwritemulti(str(path), [p.astype(np.float32) / 230 for p in moving(4)])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with contextlib.suppress(DeixisError):
        assert 1 <= len([f.pixels() for f in Video(path).frames()]) <= 4


# --- names and what is no file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["12:30.mp4", "2024-05-01T12:30:10.mp4", "-film.mp4", "file:x.mp4", "%03d.mp4", "a b.mp4", "x#1?.mp4", "é.mp4"],
)
def test_a_film_of_any_name_is_read_by_its_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_film(tmp_path / "plain.mp4", moving(4), tone=True).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    film = Video(name)
    with Output(tmp_path / "out") as output:  # the sound is opened by name too
        write(output, film, segment(film, "red", model=colours()), ["overlay"], model=ABOUT)
    assert Video(tmp_path / "out" / "overlay.mp4").has_audio


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "https://example.com/film.mp4",
            "https://example.com/film.mp4 is a URL; films are read from disk: download it",
        ),
        ("rtsp://camera/1", "is a URL"),
        ("s3://bucket/film.mp4", "is a URL"),
        ("file:///tmp/nowhere.mp4", "given by their path, not as a URL: /tmp/nowhere.mp4"),
        ("0", "cameras are not read"),
        ("/dev/video9", "cameras are not read"),
        ("frames/%05d.png", "a folder of frames is given by its own name: frames"),
        ("frames/*.jpg", "a folder of frames is given by its own name: frames"),
        ("-", "cannot come through a pipe"),
        ("nowhere.mp4", "no such file or folder: nowhere.mp4"),
        ("", "the name of the film is empty"),
        ("  ", "the name of the film is empty"),
    ],
)
def test_what_is_no_file_is_called_what_it_is(path: str, words: str) -> None:
    with pytest.raises(DeixisError, match=re.escape(words)):
        Video(path)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mp4", "mkv", "avi", "ts", "webm"])
def long(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # AVI has no times: it is read from the beginning. In MPEG-TS a seek may end at a key frame that lies too late.
    codec = {"avi": "mpeg4", "webm": "libvpx"}.get(request.param, "libx264")
    return write_film(
        tmp_path_factory.mktemp("long") / f"long.{request.param}",
        moving(60),
        codec=codec,
    )


@pytest.mark.parametrize(("start", "end", "every"), [(None, None, 1), (2.0, None, 10), (1.3, 3.9, 7), (4.9, None, 1)])
def test_frames_keep_their_number_in_the_film(long: Path, start: float | None, end: float | None, every: int) -> None:
    whole = {f.number: f.seconds for f in Video(long).frames()}
    assert list(whole) == list(range(60))
    film = Video(long, start=start, end=end, every=every)
    frames = list(film.frames())
    wanted = [n for n, s in whole.items() if (start or 0) <= round(s, 6) < (end or 99)][::every]
    assert [f.number for f in frames] == wanted
    assert [f.name for f in frames] == [f"{n:05d}" for n in wanted]
    assert [f.seconds for f in frames] == pytest.approx([whole[n] for n in wanted])
    assert left_edges(film) == [4 + n for n in wanted]


def test_a_film_of_uneven_times_keeps_its_numbers(tmp_path: Path) -> None:
    times = [0.0, 0.05, 0.3, 0.35, 1.0, 1.02, 1.5, 2.2]
    film = Video(write_film(tmp_path / "vfr.mkv", moving(8), times=times), start=0.32, every=2)
    assert [(f.number, round(f.seconds, 2)) for f in film.frames()] == [(3, 0.35), (5, 1.02), (7, 2.2)]


def test_masks_carry_the_frames_of_the_film_and_the_stretch(tmp_path: Path, long: Path) -> None:
    film = Video(long, start=2.0, end=4.0, every=10)
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "red", model=colours()), ["rle", "png"], model=ABOUT)
    found = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert found["frames"] == [24, 34, 44]
    assert found["names"] == ["00024", "00034", "00044"]
    assert found["times"] == pytest.approx([2.0, 34 / 12, 44 / 12], abs=2e-3)
    assert {key: found["film"][key] for key in ("start", "end", "every")} == {"start": 2.0, "end": 4.0, "every": 10}
    assert [p.stem for p in sorted((tmp_path / "out" / "masks" / "00_red").iterdir())] == found["names"]


def test_masks_of_the_old_form_are_read_as_ever(tmp_path: Path) -> None:
    film = Video(write_folder(tmp_path / "f", moving(3)))
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "red", model=colours()), ["rle"], model=ABOUT)
    path = tmp_path / "out" / "masks.json"
    found = json.loads(path.read_text())
    del found["frames"], found["film"]["start"], found["film"]["end"], found["tracks"][0]["threshold"]
    path.write_text(json.dumps(found))
    assert read_rle(path)[0].threshold is None


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(systems.PRESETS, "colours_debug", colours)
    return lambda *words: CliRunner().invoke(app, ["segment", *map(str, words), "--model", "colours_debug"])


def test_verdicts_come_as_lines_of_json_and_nothing_else(tmp_path: Path, run) -> None:
    film = write_film(tmp_path / "film.mp4", moving(12))
    done = run(film, "red one", "a blue one", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["expression"], first["present"], first["frames"], first["of"]) == ("red one", True, 12, 12)
    assert first["begin"] == 0
    assert first["end"] == pytest.approx(11 / 12, abs=1e-3)
    run = {key: second.pop(key) for key in ("device", "precision", "engine")}
    assert (run["device"], run["engine"]) == ("cpu", "PyTorch")
    assert second == {
        "expression": "a blue one", "present": False, "verdict": "not there", "presence": second["presence"],
        "threshold": 0.5, "sure": None, "begin": None,
        "end": None, "frames": 0, "of": 12, "share": 0.0,
    }  # fmt: skip
    assert done.stderr == ""


def test_quiet_prints_the_verdicts_alone_and_a_picture_has_no_times(tmp_path: Path, run) -> None:
    folder = write_folder(tmp_path / "one", moving(1))
    done = run(folder / "00000.png", "red", "-o", tmp_path / "out", "-q")
    assert (done.stdout, done.stderr) == ("red: there (presence 0.99), 8.3 % of the picture\n", "")


def test_the_folder_of_the_frames_is_no_place_for_results(tmp_path: Path, run) -> None:
    folder = write_folder(tmp_path / "one", moving(2))
    done = run(folder, "red", "-o", folder, "--overwrite")
    assert done.exit_code == 2
    assert "is the folder of the frames themselves" in done.stderr
    assert len(list(folder.iterdir())) == 2


def test_the_version_is_printed() -> None:
    assert re.fullmatch(r"deixis \d+\.\d+\.\d+\S*\n", CliRunner().invoke(app, ["--version"]).stdout)


def test_a_name_that_begins_with_a_dash_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run
) -> None:
    write_film(tmp_path / "plain.mp4", moving(3)).rename(tmp_path / "-film.mp4")
    monkeypatch.chdir(tmp_path)
    done = run("-film.mp4", "red", "-o", "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "deixis: -film.mp4 is taken for an option, since it begins with a dash; write ./-film.mp4\n"
    assert run("./-film.mp4", "red", "-o", "out", "-q").exit_code == 0


# --- odd inputs that nobody had reported ------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("suffix", [".avif", ".jpg", ".png", ".webp", ".tif"])
def test_a_picture_that_a_phone_turned_by_its_exif_stands_upright(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:24, :40], pixels[24:, 40:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x112] = orientation
    file = tmp_path / f"0{suffix}"
    Image.fromarray(pixels).save(file, exif=exif)
    with Image.open(file) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).astype(int)
    for path in (tmp_path, file):
        film = Video(path)
        (frame,) = film.frames()
        assert film.source_size == expected.shape[:2]
        assert np.abs(frame.pixels() - expected).mean() < 4


@pytest.mark.parametrize("kind", ["zip", "gztar"])
@pytest.mark.parametrize("suffix", [None, ".mp4"])
def test_an_archive_of_frames_is_called_one(tmp_path: Path, kind: str, suffix: str | None) -> None:
    """FFmpeg finds the first picture in a zip that was not compressed, and shows it as a film of one frame."""
    write_folder(tmp_path / "frames", moving(2))
    file = Path(shutil.make_archive(str(tmp_path / "film"), kind, tmp_path / "frames"))
    if suffix is not None:
        file = file.rename(tmp_path / f"film{suffix}")
    with pytest.raises(DeixisError, match="is an archive; unpack it"):
        Video(file)
