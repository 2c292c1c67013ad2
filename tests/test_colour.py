"""Colours and turns as players show them: in what is read, and in the overlay and mattes that are written."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.films import colours, write_film

from deixis.inference import segment
from deixis.video import Video
from deixis.video.colour import BT709, HLG, PQ, SMPTE170M, UNSTATED, Colours, light_of, mobius, tone_map, turn_by
from deixis.writers import Output, write

PATCHES = np.array(
    [(220, 30, 30), (30, 200, 40), (30, 40, 220), (230, 220, 30), (200, 40, 200), (40, 200, 210), (128, 128, 128),
     (250, 250, 250)]
)  # fmt: skip
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # of red and blue, by matrix
ABOUT = {"name": "colours", "checkpoint": None, "sha256": None}


def patches(height: int, width: int) -> np.ndarray:
    return np.repeat(PATCHES[np.arange(width) * 8 // width][None], height, 0).astype(np.uint8)


def medians(picture: np.ndarray) -> np.ndarray:
    """Of the middle of each patch."""
    height, width = picture.shape[:2]
    rows = slice(height // 4, 3 * height // 4)
    middles = [picture[rows, int((i + 0.3) * width / 8) : int((i + 0.7) * width / 8)] for i in range(8)]
    return np.array([np.median(middle.reshape(-1, picture.shape[2]), 0) for middle in middles])


def as_a_player_shows(path: Path) -> tuple[np.ndarray, Colours]:
    """(medians of the patches, tags) of a film's first frame, by the equations of H.273 in floating point.

    What a stream does not state is BT.709 from 720 lines on, BT.601 below, limited range.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        context = stream.codec_context
        tags = Colours(
            int(context.colorspace), int(context.color_primaries), int(context.color_trc), int(context.color_range),
            frame.height,
        )  # fmt: skip
        deep = frame.reformat(format="yuv444p16le" if "10" in frame.format.name else "yuv444p")
        planes = [
            np.frombuffer(plane, np.uint8 if deep.format.name == "yuv444p" else np.uint16)
            .reshape(frame.height, -1)[:, : frame.width]
            for plane in deep.planes
        ]  # fmt: skip
    top = 255.0 if deep.format.name == "yuv444p" else 65535.0
    y, cb, cr = (medians(plane[..., None])[:, 0] / (top + 1) * 256 for plane in planes)
    full = tags.span == 2 or frame.format.name.startswith("yuvj")
    y, cb, cr = (y / 255, (cb - 128) / 255, (cr - 128) / 255) if full else (
        (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    )  # fmt: skip
    red, blue = LUMA[tags.matrix if tags.matrix != UNSTATED else (1 if frame.height >= 720 else 5)]
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return 255 * np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], 1), tags


def film_of_patches(
    path: Path, size: tuple[int, int], layout: str, matrix: int, span: int, *, tagged: bool, codec: str = "libx264"
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"crf": "4"} if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *size, layout
        if tagged:
            context = stream.codec_context
            context.colorspace, context.color_range = matrix, span
            context.color_primaries = context.color_trc = matrix
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(patches(*size), format="rgb24")
            made = frame.reformat(format=layout, dst_colorspace={6: 5}.get(matrix, matrix), dst_color_range=span)
            made.colorspace, made.color_range = (matrix, span) if tagged else (UNSTATED, 0)
            container.mux(stream.encode(made))
        container.mux(stream.encode())
    return path


FILMS = {  # (height, width), pixel format, matrix, range, tagged
    "SD tagged": ((360, 320), "yuv420p", SMPTE170M, 1, True),
    "SD untagged": ((360, 320), "yuv420p", SMPTE170M, 1, False),
    "HD tagged": ((720, 320), "yuv420p", BT709, 1, True),
    "HD untagged": ((720, 320), "yuv420p", BT709, 1, False),
    "full range": ((360, 320), "yuvj420p", SMPTE170M, 2, True),
    "10 bit": ((720, 320), "yuv420p10le", BT709, 1, True),
    "4:4:4": ((360, 320), "yuv444p", SMPTE170M, 1, True),
    "SD in BT.709": ((360, 320), "yuv420p", BT709, 1, True),
    "HD in BT.601": ((720, 320), "yuv420p", SMPTE170M, 1, True),
    "HD in BT.2020": ((720, 320), "yuv422p10le", 9, 1, True),
    "HD full range": ((720, 320), "yuvj420p", BT709, 2, True),
}


@pytest.mark.parametrize("kind", FILMS)
def test_overlay_and_matte_show_the_colours_of_the_film(tmp_path: Path, kind: str) -> None:
    size, layout, matrix, span, tagged = FILMS[kind]
    path = film_of_patches(tmp_path / "film.mp4", size, layout, matrix, span, tagged=tagged)
    source, _ = as_a_player_shows(path)
    # FFmpeg converts to full range by way of limited range and rounds twice: up to 1.97 levels by arithmetic, where
    # limited range has 1.34; with what x264 adds, 2.07 and 1.57 were measured.
    assert np.abs(source - PATCHES).max() <= (2.5 if span == 2 else 2), "the film of the test is right"
    film = Video(path)
    assert np.abs(medians(next(film.frames()).pixels()) - PATCHES).max() <= 3
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "nothing", model=colours()), ["overlay", "matte"], model=ABOUT)
    for name in ("overlay.mp4", "matte/00_nothing.mov"):
        shown, tags = as_a_player_shows(tmp_path / "out" / name)
        assert np.abs(shown - source).max() <= 3, (name, shown, source)
        assert (tags.matrix, tags.primaries, tags.transfer) == ((matrix,) * 3 if tagged else (UNSTATED,) * 3), name
    _, overlay = as_a_player_shows(tmp_path / "out" / "overlay.mp4")
    assert overlay.span == (span if tagged else 0)


def as_ffmpeg_shows(path: Path) -> np.ndarray:
    """Medians of the patches of a film's first frame, as FFmpeg's own program decodes and converts it."""
    with av.open(str(path)) as container:
        width, height = container.streams.video[0].width, container.streams.video[0].height
    words = ["-frames:v", "1", "-sws_flags", "accurate_rnd+full_chroma_int", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    made = subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), *words], capture_output=True, check=True).stdout
    return medians(np.frombuffer(made, np.uint8).reshape(height, width, 3))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("kind", list(FILMS)[:7])
def test_an_overlay_has_the_colours_of_the_film_in_ffmpegs_decoding(tmp_path: Path, kind: str) -> None:
    size, layout, matrix, span, tagged = FILMS[kind]
    path = film_of_patches(tmp_path / "film.mp4", size, layout, matrix, span, tagged=tagged)
    film = Video(path)
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "nothing", model=colours()), ["overlay"], model=ABOUT)
    assert np.abs(as_ffmpeg_shows(tmp_path / "out" / "overlay.mp4") - as_ffmpeg_shows(path)).max() <= 3


def test_an_overlay_whose_height_would_change_what_players_take_says_it(tmp_path: Path) -> None:
    path = film_of_patches(tmp_path / "film.mkv", (719, 1280), "yuv444p", SMPTE170M, 1, tagged=False)
    film = Video(path)
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "nothing", model=colours()), ["overlay"], model=ABOUT)
    shown, tags = as_a_player_shows(tmp_path / "out" / "overlay.mp4")
    assert (tags.lines, tags.matrix) == (720, SMPTE170M)
    assert np.abs(shown - PATCHES).max() <= 3


# --- HDR --------------------------------------------------------------------------------------------------------------


def test_a_sheet_of_paper_in_hdr_is_as_bright_as_the_standard_says() -> None:
    assert light_of(HLG)[round(0.75 * 65535)] == pytest.approx(2.03, abs=0.01)  # BT.2408: 203 cd/m2
    assert light_of(PQ)[round(0.5806889 * 65535)] == pytest.approx(2.03, abs=0.01)
    assert light_of(PQ)[65535] == pytest.approx(100)
    assert light_of(HLG)[65535] == pytest.approx(10, rel=1e-3)


def test_the_curve_leaves_the_dark_half_and_never_clips() -> None:
    light = np.linspace(0, 10, 1000, dtype=np.float32)
    bent = mobius(light)
    assert np.array_equal(bent[light <= 0.3], light[light <= 0.3])
    assert (np.diff(bent) > 0).all()
    assert bent[-1] == pytest.approx(1)


@pytest.mark.parametrize(("transfer", "word"), [(HLG, "HLG"), (PQ, "PQ")])
def test_hdr_is_brought_to_sdr_and_noted_once(tmp_path: Path, transfer: int, word: str) -> None:
    table = light_of(transfer)
    sdr = np.array([(60, 60, 60), (20, 90, 30), (110, 40, 40), (128, 128, 128)], float)
    to_709 = [(1.660491, -0.587641, -0.07285), (-0.12455, 1.1329, -0.008349), (-0.018151, -0.100579, 1.11873)]
    to_2020 = np.linalg.inv(to_709)
    codes = np.searchsorted(table, (sdr / 255) ** 2.4 @ to_2020.T).astype(np.uint16)  # light of 100 cd/m2 is white
    picture = np.repeat(np.repeat(codes[None], 64, 0), 32, 1)
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = 9, 1, 9, transfer
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb48le")
            made = frame.reformat(format="yuv444p10le", dst_colorspace=9, dst_color_range=1)
            made.colorspace, made.color_range, made.color_primaries, made.color_trc = 9, 1, 9, transfer
            container.mux(stream.encode(made))
        container.mux(stream.encode())
    film = Video(path)
    shown = next(film.frames()).pixels()[32, 16::32].astype(float)
    assert np.abs(shown - sdr).max() <= 3
    list(film.frames())
    assert len(film.warnings) == 1
    assert f"HDR ({word})" in film.warnings[0]
    assert film.colours.written(64, full=True) == Colours(1, 1, 1, 1, 64)
    assert np.abs(tone_map(codes[None], film.colours)[0].astype(float) - sdr).max() <= 2


# --- turns ------------------------------------------------------------------------------------------------------------

ONE = 1 << 16
# The display matrix (a, b, c, d), and what ffmpeg does by it: its 5.1 was run on all eight, and gave these pictures.
TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "as it is": ((1, 0, 0, 1), lambda p: p),
    "hflip": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "vflip": ((1, 0, 0, -1), lambda p: p[::-1]),
    "rotate 180": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "transpose=clock": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "transpose=cclock": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transpose=cclock_flip": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transpose=clock_flip": ((0, -1, -1, 0), lambda p: np.rot90(p, -1)[::-1]),
}


def with_matrix(path: Path, abcd: tuple[int, int, int, int]) -> Path:
    """Put a display matrix into the first track's header of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4
    at += 4 + (32 if data[at] else 20) + 16
    a, b, c, d = (ONE * value for value in abcd)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def corner() -> np.ndarray:
    """A picture that no turn leaves as it is."""
    picture = np.full((64, 96, 3), 128, np.uint8)
    picture[:24, :24] = (230, 20, 20)
    picture[:24, -24:] = (20, 20, 230)
    return picture


@pytest.mark.parametrize("name", TURNS)
def test_all_eight_display_matrices_are_obeyed_as_ffmpeg_does(tmp_path: Path, name: str) -> None:
    abcd, expected = TURNS[name]
    path = with_matrix(write_film(tmp_path / "film.mp4", [corner()] * 3), abcd)
    film = Video(path)
    wanted = expected(corner()).astype(int)
    shown = next(film.frames()).pixels().astype(int)
    assert film.source_size == wanted.shape[:2]
    assert np.abs(shown - wanted).mean() < 8
    assert film.warnings == []


def test_a_turn_by_no_right_angle_is_noted() -> None:
    half = round(ONE * 0.7071)
    assert not turn_by((half, half, 0, -half, half, 0, 0, 0, 1 << 30)).exact
    assert turn_by((ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)).exact
    assert turn_by((0,) * 9).exact


@pytest.mark.parametrize(
    ("abcd", "expected"),
    [
        ((1, 0, 0, 1), Fraction(4, 3)),
        ((0, 1, -1, 0), Fraction(3, 4)),
        ((-1, 0, 0, 1), Fraction(4, 3)),
        ((0, 1, 1, 0), Fraction(3, 4)),
    ],
)
def test_pixels_that_are_not_square_turn_with_the_film(
    tmp_path: Path, abcd: tuple[int, int, int, int], expected: Fraction
) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner(), format="rgb24")))
        container.mux(stream.encode())
    film = Video(with_matrix(path, abcd))
    assert film.pixel_aspect == expected
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, "red", model=colours()), ["overlay"], model=ABOUT)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        written = container.streams.video[0]
        assert written.sample_aspect_ratio == expected
        assert (written.height, written.width) == film.source_size


# --- which stream -----------------------------------------------------------------------------------------------------


def two_streams(
    path: Path, sizes: list[tuple[int, int]], default: int | None, frames: tuple[int, int] = (1, 8)
) -> Path:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=12) for _ in sizes]
        for stream, (height, width) in zip(streams, sizes, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if index == default else av.stream.Disposition(0)
        for stream, (height, width), count in zip(streams, sizes, frames, strict=True):
            for _ in range(count):
                picture = np.full((height, width, 3), 90, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("sizes", "default", "frames", "taken"),
    [
        ([(64, 96), (128, 192)], 1, (1, 8), 1),  # a thumbnail first, the film marked
        ([(128, 192), (64, 96)], 1, (8, 8), 1),  # the marked one is the smaller
        ([(64, 96), (128, 192)], None, (8, 8), 1),  # none is marked: the larger
        ([(64, 96), (64, 96)], None, (8, 8), 0),  # equals: the first
    ],
)
def test_the_stream_that_players_show_is_read(
    tmp_path: Path, sizes: list[tuple[int, int]], default: int | None, frames: tuple[int, int], taken: int
) -> None:
    film = Video(two_streams(tmp_path / "film.mkv", sizes, default, frames))
    assert film.stream == taken
    assert film.source_size == sizes[taken]
    assert len(list(film.frames())) == frames[taken]
    assert film.warnings == [
        f"the film holds 2 video streams; stream {taken} is used ({sizes[taken][1]}x{sizes[taken][0]}, h264)"
    ]
