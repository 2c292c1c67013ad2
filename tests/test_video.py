"""Reading films: order, times, rotation, odd sizes, windows, and what is wrong with a film."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from helpers.films import moving, square, write_film, write_folder
from PIL import Image

import deixis
import deixis.video
from deixis.types import Clip, DeixisError
from deixis.video import Video, ahead, fit, natural, normalise, resize

SHAPE = (72, 96)


def left_edges(film: Video) -> list[int]:
    """Where the red square of ``moving`` stands in every frame."""
    return [int(np.flatnonzero((f.pixels()[..., 0] > 120).any(0))[0]) for f in film.frames()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "plain.mp4", moving(24))


def test_a_film_gives_every_frame_in_order_with_its_time(plain: Path) -> None:
    film = Video(plain)
    frames = list(film.frames())
    assert left_edges(film) == list(range(4, 28))
    assert [f.seconds for f in frames] == pytest.approx([i / 12 for i in range(24)], abs=1e-3)
    assert [f.name for f in frames] == [f"{i:05d}" for i in range(24)]
    assert (film.source_size, film.length, film.has_audio, film.warnings) == (SHAPE, 24, False, [])


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mov", "libx264", "yuv444p10le"),
        ("mkv", "ffv1", "bgra"),
        ("webm", "libvpx-vp9", "yuva420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("avi", "rawvideo", "gray"),
        ("gif", "gif", "rgb8"),
        ("mov", "prores_ks", "yuva444p10le"),
    ],
)
def test_every_container_and_pixel_format_is_read(tmp_path: Path, suffix: str, codec: str, pixels: str) -> None:
    film = Video(write_film(tmp_path / f"film.{suffix}", moving(6), codec=codec, pixels=pixels))
    first, *_, last = (f.pixels() for f in film.frames())
    assert first.shape == (*SHAPE, 3)
    assert first.dtype == np.uint8
    bright = (first.max(2) > 60) if pixels == "gray" else (first[..., 0] > 120)
    assert abs(bright.sum() - 24 * 24) < 80
    assert not np.array_equal(first, last)
    assert film.warnings == []


def test_uneven_times_of_a_variable_rate_film_survive(tmp_path: Path) -> None:
    times = [0.0, 0.05, 0.3, 0.35, 1.0, 1.02]
    film = Video(write_film(tmp_path / "vfr.mkv", moving(6), times=times))
    assert [f.seconds for f in film.frames()] == pytest.approx(times, abs=2e-3)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotation_tag_turns_the_pictures(tmp_path: Path, degrees: int) -> None:
    picture = square((64, 96), "red", top=2, left=2)
    film = Video(write_film(tmp_path / "turned.mp4", [picture] * 3, rotation=degrees))
    expected = np.rot90(picture, degrees // 90)
    shown = next(film.frames()).pixels()
    assert film.source_size == expected.shape[:2]
    assert np.abs(shown.astype(int) - expected).mean() < 8


def test_odd_sizes_keep_their_last_row_and_column(tmp_path: Path) -> None:
    film = Video(write_film(tmp_path / "odd.mkv", moving(3, (61, 83)), codec="ffv1", pixels="bgra"))
    assert film.source_size == (61, 83)
    assert [c.frames.shape[-2:] for c in film.windows(2)] == [(61, 83), (61, 83)]


def test_a_folder_is_read_in_natural_order_and_names_are_stems(tmp_path: Path) -> None:
    names = ["shot1", "shot2", "shot10", "shot9"]
    pictures = [square(SHAPE, "red", 4, 4 + 10 * i) for i in range(4)]
    film = Video(write_folder(tmp_path / "frames", pictures, names), fps=10)
    (tmp_path / "frames" / "notes.txt").write_text("not a frame")
    assert [f.name for f in film.frames()] == ["shot1", "shot2", "shot9", "shot10"]
    assert left_edges(film) == [4, 14, 34, 24]
    assert [f.seconds for f in film.frames()] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_natural_order_compares_numbers_as_numbers() -> None:
    assert sorted(["a10b2", "a2", "a10b1", "B1"], key=natural) == ["B1", "a2", "a10b1", "a10b2"]


def test_a_single_picture_is_a_film_of_one_frame(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", moving(1))
    assert [len(c) for c in Video(tmp_path / "one" / "00000.png").windows(8)] == [1]


def test_a_stretch_and_every_nth_frame_are_taken(plain: Path) -> None:
    film = Video(plain, start=0.5, end=1.5, every=3)
    frames = list(film.frames())
    assert [f.seconds for f in frames] == pytest.approx([0.5, 0.75, 1.0, 1.25], abs=1e-3)
    assert left_edges(film) == [10, 13, 16, 19]
    assert film.length == len(frames)
    assert [f.index for f in frames] == [0, 1, 2, 3]


def test_seeking_gives_the_same_frames_as_reading_from_the_beginning(tmp_path: Path) -> None:
    path = write_film(tmp_path / "long.mp4", moving(70))
    assert left_edges(Video(path, start=3.0)) == left_edges(Video(path))[36:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start": -1.0}, "start must be 0"),
        ({"start": 2.0, "end": 1.0}, "end must come after start"),
        ({"every": 0}, "every must be 1"),
        ({"start": 100.0}, "no frames between 100"),
        ({"fps": 0.0}, "fps must be above 0"),
        ({"start": float("nan")}, "start must be 0"),
    ],
)
def test_a_stretch_that_cannot_be_is_refused(plain: Path, arguments: dict, words: str) -> None:
    with pytest.raises(DeixisError, match=words):
        Video(plain, **arguments)


def test_windows_cover_every_frame_and_the_last_is_filled_from_the_front(plain: Path) -> None:
    clips = list(Video(plain, end=19 / 12).windows(8))
    assert [(c.start, len(c)) for c in clips] == [(0, 8), (8, 8), (11, 8)]
    assert clips[-1].names == tuple(f"{i:05d}" for i in range(11, 19))
    assert clips[0].frames.shape == (8, 3, *SHAPE)


def test_windows_can_share_frames_with_their_neighbours(plain: Path) -> None:
    assert [c.start for c in Video(plain).windows(8, overlap=2)] == [0, 6, 12, 16]
    with pytest.raises(DeixisError, match="cannot share"):
        next(Video(plain).windows(4, overlap=4))


def test_windows_are_resized_on_the_way_and_remember_the_source(plain: Path) -> None:
    clip = next(Video(plain).windows(4, size=(36, 48)))
    assert clip.frames.shape == (4, 3, 36, 48)
    assert clip.source_size == SHAPE
    assert (clip.frames[0, 0] > 120).sum() == pytest.approx(12 * 12, abs=8)


def test_a_short_film_is_one_short_window(tmp_path: Path) -> None:
    film = Video(write_film(tmp_path / "short.mp4", moving(3)))
    assert [(c.start, len(c)) for c in film.windows(8)] == [(0, 3)]


@pytest.mark.parametrize(("suffix", "options"), [("mp4", {"movflags": "+faststart"}), ("mkv", {}), ("avi", {})])
def test_a_film_cut_off_in_the_middle_gives_what_decodes_and_says_so(
    tmp_path: Path, suffix: str, options: dict
) -> None:
    rng = np.random.default_rng(0)  # noise, so that half of the bytes is about half of the frames
    pictures = [rng.integers(0, 255, (*SHAPE, 3), np.uint8) for _ in range(48)]
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = write_film(tmp_path / f"cut.{suffix}", pictures, codec=codec, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    film = Video(path)
    frames = sum(len(c) - max(0, 5 * i - c.start) for i, c in enumerate(film.windows(5)))
    assert 8 < frames < 40
    assert any("cut off" in w or "damaged" in w for w in film.warnings)


def test_a_damaged_middle_is_passed_over_and_noted(tmp_path: Path) -> None:
    path = write_film(tmp_path / "hurt.avi", moving(40), codec="mjpeg", pixels="yuvj420p")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    film = Video(path)
    assert sum(1 for _ in film.frames()) >= 30
    assert film.warnings


def test_a_frame_of_a_folder_that_does_not_decode_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", moving(4))
    (folder / "00002.png").write_bytes(b"no picture")
    film = Video(folder)
    assert [f.name for f in film.frames()] == ["00000", "00001", "00003"]
    assert film.warnings == ["00002.png is not a picture that decodes; left out"]


def test_frames_of_another_size_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    film = Video(write_folder(tmp_path / "frames", [*moving(2), *moving(1, (144, 192))]))
    assert [f.pixels().shape for f in film.frames()] == [(*SHAPE, 3)] * 3
    assert "change size" in film.warnings[0]


def test_a_bomb_is_refused_before_it_is_decoded_and_the_limit_can_be_raised(tmp_path: Path) -> None:
    folder = tmp_path / "bomb"
    folder.mkdir()
    Image.new("1", (6000, 4000)).save(folder / "0.png")
    with pytest.raises(DeixisError, match=r"24,000,000 pixels, more than the limit.*--max-pixels 24000000"):
        Video(folder, max_pixels=1_000_000)
    assert Video(folder, max_pixels=24_000_000).source_size == (4000, 6000)
    film = write_film(tmp_path / "large.mp4", moving(2, (200, 300)))
    with pytest.raises(DeixisError, match="60,000 pixels"):
        Video(film, max_pixels=50_000)


def test_a_frame_that_was_read_is_freed_at_once(tmp_path: Path) -> None:
    """A circle of references would keep it until Python searches for such: hundreds of frames, 12 MB each in 4K."""
    film = Video(write_film(tmp_path / "long.mp4", moving(200)))
    gc.collect()
    gc.disable()
    try:
        for frame in film.frames():
            frame.pixels()
        alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
        assert alive < 100, f"{alive} of 200 frames are still in memory"  # the decoder holds a few per thread
    finally:
        gc.enable()


def test_pictures_are_rgb(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 0] = 200
    film = Video(write_folder(tmp_path / "red", [picture]))
    assert next(film.frames()).pixels()[0, 0].tolist() == [200, 0, 0]


def test_fit_keeps_the_shape_and_rounds_only_when_it_bends_little() -> None:
    assert fit((480, 854), 256, 480, 32) == (256, 448)  # 455 bent by 1.7 %
    assert fit((480, 750), 256, 480, 32) == (256, 400)  # 384 and 416 would both bend it by 4 %
    assert fit((854, 480), 256, 480, 32) == (448, 256)
    assert fit((100, 1000), 256, 480, 32) == (48, 480)  # the long side decides
    assert fit((10, 10_000), 224, 448, 32) == (1, 448)


def test_normalise_scales_and_pads_with_the_mean_colour() -> None:
    frames = torch.full((2, 3, 10, 13), 255, dtype=torch.uint8)
    clip = Clip(frames, ("a", "b"), (0.0, 1.0), (10, 13))
    pixels, padding = normalise(clip, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), multiple=8)
    assert pixels.shape == (1, 2, 3, 16, 16)
    assert torch.allclose(pixels[0, 0, :, 0, 0], torch.tensor([1.0, 3.0, 1.0]))
    assert pixels[..., 10:, :].abs().max() == 0
    assert not padding[..., :10, :13].any()
    assert padding[..., 10:, :].all()
    assert padding[..., 13:].all()


def test_resize_shrinks_by_area_so_that_thin_things_do_not_vanish() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[::8] = 255
    assert resize(picture, (8, 8)).min() == pytest.approx(255 / 8, abs=1)


def test_ahead_keeps_the_order_and_hands_over_errors() -> None:
    def items():
        yield from range(5)
        raise DeixisError("broken film")

    seen = []
    with pytest.raises(DeixisError, match="broken film"):
        seen.extend(ahead(items()))
    assert seen == list(range(5))


def test_ahead_runs_no_further_than_it_may_and_stops_when_closed() -> None:
    made = []

    def items():
        for i in range(1000):
            made.append(i)
            yield i

    threads = threading.active_count()
    reader = ahead(items(), depth=3)
    assert next(reader) == 0
    time.sleep(0.2)
    assert len(made) <= 6
    reader.close()
    assert threading.active_count() == threads


@pytest.mark.parametrize("module", [deixis, deixis.video], ids=lambda module: module.__name__)
def test_film_is_a_name_of_video_for_one_release(module: ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match="Film is now called deixis"):
        assert module.Film is Video
    assert "Film" not in module.__all__
    with pytest.raises(AttributeError, match="Films"):
        module.Films  # noqa: B018
