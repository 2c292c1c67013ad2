"""Masks on disk: what is written, in what form, and what is left when the work is interrupted."""

from __future__ import annotations

import errno
import json
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from helpers.films import colours, moving, write_film, write_folder
from pycocotools import mask as coco

from deixis.inference import segment
from deixis.types import DeixisError, Expression, MaskTrack
from deixis.video import Video
from deixis.writers import FORMATS, check_formats, write
from deixis.writers.output import Output, slug
from deixis.writers.png import encode_png
from deixis.writers.rle import read_rle, write_rle

ABOUT = {"name": "colours", "checkpoint": None, "sha256": None}
WORDS = ["the red square", "a green one", "something blue"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(
        tmp_path_factory.mktemp("film") / "two.mp4", moving(14, (73, 97), ("red", "green")), tone=True, pixels="yuv444p"
    )


@pytest.fixture(scope="module")
def film(path: Path) -> Video:
    return Video(path)


@pytest.fixture(scope="module")
def tracks(film: Video) -> list[MaskTrack]:
    return segment(film, WORDS, model=colours())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, film: Video, tracks: list[MaskTrack]) -> Path:
    folder = tmp_path_factory.mktemp("results") / "out"
    with Output(folder) as output:
        write(output, film, tracks, FORMATS, model=ABOUT)
    return folder


def decode(path: Path, layout: str = "rgb24") -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format=layout) for frame in container.decode(video=0)]


def test_everything_asked_for_is_there_and_nothing_else(out: Path) -> None:
    assert sorted(p.name for p in out.iterdir()) == [
        "coco", "contact_sheet.png", "masks", "masks.json", "matte", "overlay.mp4",
    ]  # fmt: skip
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def test_pngs_are_0_255_at_source_size_one_folder_per_expression(out: Path, tracks: list[MaskTrack]) -> None:
    folders = sorted((out / "masks").iterdir())
    assert [f.name for f in folders] == ["00_the_red_square", "01_a_green_one", "02_something_blue"]
    for folder, track in zip(folders, tracks, strict=True):
        files = sorted(folder.iterdir())
        assert [f.stem for f in files] == [f"{i:05d}" for i in range(14)]
        for file, mask in zip(files, track.masks, strict=True):
            picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            assert picture.dtype == np.uint8
            assert np.array_equal(picture, mask * 255)


def test_the_json_holds_times_scores_presence_and_the_model(out: Path, tracks: list[MaskTrack]) -> None:
    found = json.loads((out / "masks.json").read_text())
    assert found["schema"] == "deixis.masks/1"
    assert found["film"] == {"name": "two.mp4", "height": 73, "width": 97, "start": 0.0, "end": None, "every": 1}
    assert found["frames"] == list(range(14))
    assert found["model"] == ABOUT
    assert found["complete"] is True
    assert found["times"] == pytest.approx([i / 12 for i in range(14)], abs=1e-3)
    assert [t["expression"] for t in found["tracks"]] == WORDS
    assert [t["present"] for t in found["tracks"]] == [True, True, False]
    first = found["tracks"][0]
    assert len(first["masks"]) == len(first["scores"]) == len(found["names"]) == 14
    assert np.array_equal(coco.decode(first["masks"][5]), tracks[0].masks[5])


def test_the_json_reads_back_as_the_tracks_that_were_written(out: Path, tracks: list[MaskTrack]) -> None:
    for written, read in zip(tracks, read_rle(out / "masks.json"), strict=True):
        assert read.expression == written.expression
        assert np.array_equal(np.asarray(read.masks), np.asarray(written.masks))
        assert read.scores == pytest.approx(written.scores, abs=1e-4)
        assert read.presence == pytest.approx(written.presence, abs=1e-5)
        assert list(read.names) == list(written.names)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": "deixis.masks/99"}', '{"schema": "deixis.masks/1"}'])
def test_a_json_of_another_kind_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DeixisError):
        read_rle(tmp_path / "x.json")


def test_the_documented_schema_names_every_field_that_is_written(out: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "rle.md").read_text()
    found = json.loads((out / "masks.json").read_text())
    assert f"`{found['schema']}`" in page
    for key in [*found, *found["film"], *found["model"], *found["tracks"][0]]:
        assert f"`{key}`" in page, key


def test_the_overlay_tints_the_object_in_its_colour_and_nothing_else(out: Path, film: Video) -> None:
    shown = decode(out / "overlay.mp4")
    assert len(shown) == 14
    assert shown[0].shape == (74, 98, 3)  # H.264 wants even sides
    source = next(film.frames()).pixels().astype(int)
    change = np.abs(shown[0][:73, :97].astype(int) - source).sum(2)
    assert change[60, 20] > 100  # inside the green square, tinted blue
    assert change[36, 90] < 40  # bare ground


def test_the_overlay_keeps_times_and_sound(out: Path, path: Path) -> None:
    with av.open(str(out / "overlay.mp4")) as written, av.open(str(path)) as source:
        assert written.streams.video[0].codec_context.name == "h264"
        assert written.streams.audio[0].codec_context.name == "aac"
        before = sum(p.size for p in source.demux(source.streams.audio[0]))
        assert sum(p.size for p in written.demux(written.streams.audio[0])) == pytest.approx(before, rel=0.1)
    assert [f.seconds for f in Video(out / "overlay.mp4").frames()] == pytest.approx(
        [i / 12 for i in range(14)], abs=2e-3
    )


def test_uneven_times_and_a_late_start_survive_in_the_overlay(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.6, 0.7, 1.2, 1.25]
    source = write_film(tmp_path / "vfr.mkv", moving(7), times=times, tone=True)
    film = Video(source, start=0.12)
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "red", model=colours()), ["overlay"], model=ABOUT)
    shown = Video(tmp_path / "out" / "overlay.mp4")
    assert [f.seconds for f in shown.frames()] == pytest.approx([t - 0.15 for t in times[2:]], abs=2e-3)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        sound = [p.pts * p.time_base for p in container.demux(audio=0) if p.pts is not None]
    assert 0 <= sound[0] < Fraction(1, 10)


def test_sound_that_mp4_does_not_take_is_encoded_again(tmp_path: Path) -> None:
    source = tmp_path / "pcm.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=12)
        audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        video.height, video.width, video.pix_fmt = 72, 96, "yuv420p"
        for picture in moving(12):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        wave = (8000 * np.sin(np.arange(16000) / 10)).astype(np.int16)
        for start in range(0, 16000, 1000):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1000], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(audio.encode(frame))
    film = Video(source)
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "red", model=colours()), ["overlay"], model=ABOUT)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "aac"
        sounding = sum(f.samples for f in container.decode(sound)) / sound.codec_context.sample_rate
    assert sounding == pytest.approx(1.0, abs=0.1)


def test_the_matte_is_a_film_with_the_mask_as_its_alpha_channel(out: Path, tracks: list[MaskTrack]) -> None:
    files = sorted((out / "matte").iterdir())
    assert [f.name for f in files] == ["00_the_red_square.mov", "01_a_green_one.mov", "02_something_blue.mov"]
    with av.open(str(files[0])) as container:
        assert container.streams.video[0].codec_context.name == "prores"
        assert "a" in container.streams.video[0].codec_context.pix_fmt
    shown = decode(files[0], "rgba")
    assert len(shown) == 14
    for picture, mask in zip(shown, tracks[0].masks, strict=True):
        assert picture.shape == (73, 97, 4)
        assert ((picture[..., 3] > 127) == mask).mean() > 0.995
    assert max(p[..., 3].max() for p in decode(files[2], "rgba")) < 10


def test_the_contact_sheet_has_a_row_per_expression_and_six_frames_a_row(out: Path) -> None:
    sheet = cv2.imread(str(out / "contact_sheet.png"))
    tile = round(256 * 73 / 97)
    assert sheet.shape == (3 * (tile + 24), 6 * 256, 3)
    pictures = sheet.reshape(3, tile + 24, 6, 256, 3)[:, 24:].astype(int)
    assert np.abs(np.diff(pictures, axis=2)).mean() > 0.1  # other frames
    reds = [(row[..., 2] - row[..., 1] > 120).mean() for row in pictures]
    assert reds[0] > 0.05


def test_a_film_of_one_frame_is_written_too(tmp_path: Path) -> None:
    film = Video(write_folder(tmp_path / "one", moving(1)))
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "red", model=colours()), FORMATS, model=ABOUT)
    assert len(decode(tmp_path / "out" / "overlay.mp4")) == 1
    assert cv2.imread(str(tmp_path / "out" / "contact_sheet.png")) is not None


def test_the_smallest_film_is_written_too(tmp_path: Path) -> None:
    film = Video(write_folder(tmp_path / "tiny", [np.full((1, 3, 3), 99, np.uint8)] * 2))
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "red", model=colours()), FORMATS, model=ABOUT)
    assert len(decode(tmp_path / "out" / "overlay.mp4")) == 2


def test_names_of_files_are_safe_and_keep_expressions_apart() -> None:
    assert slug(Expression("../../The Man's hat?"), 3) == "03_the_man_s_hat"
    assert slug(Expression("红色的车"), 0) == "00_红色的车"
    assert len(slug(Expression("long " * 199), 0).encode()) <= 83
    assert slug(Expression("same"), 0) != slug(Expression("same"), 1)


def test_formats_are_checked_by_name() -> None:
    assert check_formats("overlay, rle,rle") == ("overlay", "rle")
    for wrong in ("gif", "overlay,gif", "", " , "):
        with pytest.raises(DeixisError, match="unknown format"):
            check_formats(wrong)


def test_png_bytes_are_those_of_the_mask() -> None:
    mask = np.zeros((5, 9), bool)
    mask[2, 3:7] = True
    assert np.array_equal(cv2.imdecode(np.frombuffer(encode_png(mask), np.uint8), cv2.IMREAD_UNCHANGED), mask * 255)


# --- what is left behind ----------------------------------------------------------------------------------------------


def work(output: Output, error: BaseException) -> None:
    """One item that is whole, and one during which ``error`` comes."""
    with output:
        with output.item("masks.json") as place:
            place.write_text("whole")
        with output.item("overlay.mp4") as place:
            place.write_text("half")
            raise error


def test_an_error_leaves_nothing_not_even_the_folders_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        work(Output(tmp_path / "a" / "b" / "out"), RuntimeError("boom"))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_is_whole_and_drops_what_is_not(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        work(output, KeyboardInterrupt())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["masks.json"]
    assert output.paths == [tmp_path / "out" / "masks.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_before_anything_is_whole_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Output(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_no_debris(tmp_path: Path, number: int) -> None:
    with pytest.raises(DeixisError, match="no room left on the disk"):
        work(Output(tmp_path / "out"), OSError(number, "full"))
    assert list(tmp_path.iterdir()) == []


def test_what_was_whole_before_an_error_is_kept_where_that_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match=r"no room left .*; what was finished is kept: .*out/masks.json"):
        work(Output(tmp_path / "out", keep=True), OSError(errno.ENOSPC, "full"))
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/masks.json"]


def test_a_folder_that_holds_something_is_not_touched_unless_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "old.png").write_text("old")
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DeixisError, match="not empty; give another folder, or --overwrite"), Output(out):
        pass
    with Output(out, overwrite=True) as output, output.item("masks") as place:
        place.mkdir()
        (place / "new.png").write_text("new")
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*")) == ["masks", "masks/new.png", "mine.txt"]


def test_an_out_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for wrong in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(DeixisError), Output(wrong):
            pass
    assert (tmp_path / "file").read_text() == "x"


def test_a_track_that_was_stopped_early_says_that_it_is_not_complete(tmp_path: Path, film: Video) -> None:
    (track,) = segment(film, "red", model=colours(), stop=lambda: True)
    write_rle(tmp_path / "masks.json", film, [track], model=ABOUT, complete=False)
    found = json.loads((tmp_path / "masks.json").read_text())
    assert found["complete"] is False
    assert len(found["times"]) == 5
