# ruff: noqa: E501  (tables of hostile values read better in one line)
"""What ``fuzz.py`` feeds to the command line: real inputs, and what chance and malice make of them.

A case is a function of (seed, number): it draws a kind, writes its inputs into a folder of its own, and says which
words to give to ``deixis``. ``Stock`` holds the real inputs: small films in many containers, pictures, checkpoints,
every benchmark's fixture with results, and the demo film that ships.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from deixis import weights
from deixis.benchmarks import BENCHMARKS
from deixis.weights import DEMO_FILM

MODEL = "light_debug"
SMALL = ("--model", MODEL, "--size", "32", "--device", "cpu")
NUMBERS = (0, 1, 2, 3, 7, 255, 256, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 1000, 90000)


@dataclass(frozen=True, kw_only=True)
class Case:
    """argv: the words after ``deixis``.  resumes: OUT may stay after a refusal, the command takes it up again."""

    kind: str
    argv: list[str]
    resumes: bool = False


@dataclass(frozen=True, kw_only=True)
class Box:
    """A case's folders: inputs in ``given``, OUT comes into ``place`` (else empty), temporary files into ``temp``."""

    root: Path
    given: Path = field(init=False)
    place: Path = field(init=False)
    temp: Path = field(init=False)
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("given", "place", "temp", "cache"):
            object.__setattr__(self, name, self.root / name)
            (self.root / name).mkdir(parents=True)

    @property
    def out(self) -> str:
        return str(self.place / "out")


# --- real inputs ------------------------------------------------------------------------------------------------------


def pictures(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """A bright square that walks over noise."""
    rng = np.random.default_rng(0)
    shown = []
    for t in range(count):
        picture = rng.integers(40, 90, (height, width, 3)).astype(np.uint8)
        picture[height // 4 : height // 2 + 1, (2 * t) % width : (2 * t) % width + max(1, width // 4)] = (220, 40, 40)
        shown.append(picture)
    return shown


def encode(
    path: Path, shown: Iterable[np.ndarray], codec: str = "libx264", pixels: str = "yuv420p", *, fps: Any = 12,
    times: Sequence[int] | None = None, rotation: int | None = None, tone: bool = False, aspect: Any = None,
    streams: int = 1, mux: dict[str, str] | None = None, options: dict[str, str] | None = None,
    colours: tuple[int, int, int] | None = None, metadata: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """A film. times: milliseconds of each frame.  colours: primaries, transfer, matrix (HDR: 9, 16, 9)."""
    with av.open(str(path), "w", options=mux or {}) as film:
        film.metadata.update(metadata or {})
        made: list[Any] = []
        sound: Any = film.add_stream("aac", rate=16000, layout="mono") if tone else None
        for index, picture in enumerate(shown):
            for number in range(streams):
                if index == 0:
                    stream: Any = film.add_stream(codec, rate=fps, options=options or {})
                    stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pixels
                    stream.time_base = stream.codec_context.time_base = (
                        Fraction(1, 1000) if times is not None else 1 / Fraction(fps)
                    )
                    stream.codec_context.thread_count = 1
                    if rotation is not None:
                        stream.set_display_rotation(rotation)
                    if aspect is not None:
                        stream.codec_context.sample_aspect_ratio = aspect
                    if colours is not None:
                        context = stream.codec_context
                        context.color_primaries, context.color_trc, context.colorspace = colours
                    made.append(stream)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = index if times is None else times[index]
                film.mux(made[number].encode(frame))
        for stream in made:
            film.mux(stream.encode())
        if sound is not None:
            wave = (8000 * np.sin(np.arange(16 * 1024) / 10)).astype(np.int16)
            for start in range(0, len(wave), 1024):
                heard = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = 16000, start, Fraction(1, 16000)
                film.mux(sound.encode(heard))
            film.mux(sound.encode())
    return path


FILMS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"tone": True},
    "h264.mkv": {"tone": True},
    "fragments.mp4": {"mux": {"movflags": "frag_keyframe+empty_moov"}},
    "fast.mp4": {"mux": {"movflags": "faststart"}, "rotation": 90},
    "mpeg4.mov": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "hevc10.mp4": {
        "codec": "libx265", "pixels": "yuv420p10le", "colours": (9, 16, 9),
        "options": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"},
    },
    "h264_10.mkv": {"pixels": "yuv420p10le", "colours": (9, 18, 9)},
    "mpeg2.ts": {"codec": "mpeg2video", "fps": 25},
    "h264.ts": {},
    "mpeg1.mpg": {"codec": "mpeg1video", "fps": 25},
    "flv1.flv": {"codec": "flv"},
    "ffv1.mkv": {"codec": "ffv1", "pixels": "bgr0"},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuva444p10le", "options": {"profile": "4444"}},
    "shown.gif": {"codec": "gif", "pixels": "rgb8"},
    "raw.nut": {"codec": "rawvideo"},
    "png.mov": {"codec": "png", "pixels": "rgb24"},
    "variable.mkv": {"times": (0, 10, 400, 401, 2000, 2500)},
}  # fmt: skip
PICTURE_KINDS = (".png", ".jpg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jpeg")


class Stock:
    """Real inputs under ``root``, made once; the same wherever the libraries are the same."""

    def __init__(self, root: Path, deixis: Callable[[Sequence[str]], object]) -> None:
        """deixis: runs the command line with some words."""
        self.root = root
        (root / "films").mkdir(parents=True)
        self.films = []
        for name, settings in FILMS.items():
            # Below 64 pixels this FFmpeg's x265 overruns its own memory.
            shown = pictures(6, 64, 96) if name.startswith("hevc") else pictures(6)
            try:
                self.films.append(encode(root / "films" / name, shown, **settings))
            except (ValueError, av.error.FFmpegError):  # a codec that this build of FFmpeg lacks
                (root / "films" / name).unlink(missing_ok=True)
        luma = b"".join(b"FRAME\n" + bytes([90]) * (32 * 48 * 3 // 2) for _ in range(6))
        self.films.append(root / "films" / "raw.y4m")
        self.films[-1].write_bytes(b"YUV4MPEG2 W48 H32 F12:1 Ip A1:1 C420jpeg\n" + luma)
        self.demo = root / "films" / "demo.mp4"
        shutil.copyfile(DEMO_FILM, self.demo)
        self.huge = encode(root / "films" / "8k.mp4", pictures(2, 4320, 7680), options={"preset": "ultrafast"})
        self.pictures = list(self._pictures(root / "pictures"))
        self.checkpoint = root / "light_debug.safetensors"
        weights.save(weights.load(MODEL), self.checkpoint)
        self.small_checkpoint = root / "small.safetensors"
        weights.save(weights.load(MODEL), self.small_checkpoint, int8=("",))
        self.published = root / "published.pth"
        torch.save({"model_state_dict": {"a.weight": torch.ones(2, 3)}, "epoch": 3}, self.published)
        self.old_published = root / "old.pth"
        torch.save({"model": {"a": torch.ones(2, 3)}}, self.old_published, _use_new_zipfile_serialization=False)
        self._benchmarks(deixis)
        self._masks(root / "masks")
        self._bomb(root / "bomb.zip")

    def _pictures(self, folder: Path) -> Iterator[Path]:
        folder.mkdir()
        shown = Image.fromarray(pictures(1)[0])
        for suffix in PICTURE_KINDS:
            (shown.convert("L") if suffix == ".pgm" else shown).save(folder / f"rgb{suffix}")
            yield folder / f"rgb{suffix}"
        for mode in ("L", "1", "P", "RGBA", "LA", "I;16"):
            small = Image.fromarray(np.arange(32 * 48, dtype=np.uint16).reshape(32, 48) * 40)
            (small if mode == "I;16" else shown.convert(mode)).save(folder / f"{mode.replace(';', '')}.png")
            yield folder / f"{mode.replace(';', '')}.png"
        shown.convert("CMYK").save(folder / "cmyk.jpg")
        turned = Image.Exif()
        turned[0x0112] = 6
        shown.save(folder / "turned.jpg", exif=turned)
        shown.save(folder / "progressive.jpg", progressive=True)
        shown.convert("RGBA").save(folder / "lossless.webp", lossless=True)
        shown.save(folder / "packed.tif", compression="tiff_lzw")
        shown.save(folder / "moving.webp", save_all=True, append_images=[shown.rotate(90)] * 2)
        for name in ("cmyk.jpg", "turned.jpg", "progressive.jpg", "lossless.webp", "packed.tif", "moving.webp"):
            yield folder / name

    def _benchmarks(self, deixis: Callable[[Sequence[str]], object]) -> None:
        self.benchmarks, self.results, self.zips = {}, {}, {}
        for name in BENCHMARKS:
            root, results, packed = (self.root / f"{name}{end}" for end in ("", "-results", ".zip"))
            deixis(["data", "fixture", name, str(root)])
            deixis(["predict", name, str(root), "-o", str(results), "--model", MODEL, "--device", "cpu"])
            deixis(["pack", name, str(results), "-o", str(packed)])
            self.benchmarks[name], self.results[name], self.zips[name] = root, results, packed

    def _masks(self, folder: Path) -> None:
        self.masks = folder
        for kind in ("results", "truth"):
            for video in ("a", "b"):
                (folder / kind / video).mkdir(parents=True)
                for t in range(4):
                    mask = np.zeros((32, 48), np.uint8)
                    mask[5:20, 4 + t : 20 + t] = 255 if video == "a" else 1
                    Image.fromarray(mask).save(folder / kind / video / f"{t:05d}.png")

    def _bomb(self, path: Path) -> None:
        """A zip of 40 MB that would unpack to 400 files of 100 MB, all zeros."""
        self.bomb = path
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.writestr("a/00000.png", bytes(100 << 20))
        one = zipfile.ZipFile(path).infolist()[0]
        data = path.read_bytes()
        body = data[one.header_offset : one.header_offset + 30 + len(one.filename) + one.compress_size]
        body = body[:6] + b"\0\0" + struct.pack("<HHHIII", 8, 0, 33, one.CRC, one.compress_size, one.file_size) + body[26:]
        parts, central = [], []
        for number in range(400):
            name = f"a/{number:05d}.png".encode()
            at = sum(map(len, parts)) if number == 0 else number * len(body)
            parts.append(body[:30] + name + body[30 + len(name) :])
            central.append(
                b"PK\1\2" + struct.pack("<6H3I5H2I", 20, 20, 0, 8, 0, 33, one.CRC, one.compress_size,
                                        one.file_size, len(name), 0, 0, 0, 0, 0, at) + name
            )  # fmt: skip
        start, table = len(body) * 400, b"".join(central)
        end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 400, 400, len(table), start, 0)
        path.write_bytes(b"".join(parts) + table + end)


# --- chance and malice ------------------------------------------------------------------------------------------------


def mutate(r: Random, data: bytes, other: bytes = b"") -> bytes:
    """One to four of: bits flipped, spans cut, doubled, zeroed, randomised, swapped or grafted, numbers overwritten."""
    body = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 2, 3, 4))):
        if not body:
            return bytes(body)
        where = r.choice(("all", "all", "head", "tail"))
        low, high = {"all": (0, len(body)), "head": (0, min(len(body), 2048)), "tail": (max(0, len(body) - 2048), len(body))}[where]
        at = r.randrange(low, high)
        span = min(len(body) - at, r.choice((1, 2, 4, 8, 16, 64, 256, 1024, 4096)))
        match r.randrange(10):
            case 0 | 1:
                for _ in range(r.choice((1, 2, 5, 20, 100))):
                    body[r.randrange(low, high)] ^= 1 << r.randrange(8)
            case 2:
                del body[at:]
            case 3:
                del body[at : at + span]
            case 4:
                body[at:at] = body[at : at + span] * r.choice((1, 2, 50))
            case 5:
                body[at : at + span] = bytes(span)
            case 6:
                body[at : at + span] = r.randbytes(span)
            case 7:
                to = r.randrange(len(body))
                body[at : at + span], body[to : to + span] = body[to : to + span], body[at : at + span]
            case 8:
                start = r.randrange(len(other)) if other else 0
                graft = other[start : start + r.choice((16, 256, 4096, 100_000))]
                body[at : at + (len(graft) if r.random() < 0.5 else 0)] = graft
            case 9:
                number = r.choice(NUMBERS)
                packed = struct.pack(r.choice("<>") + "I", number)[r.choice((0, 0, 2)) :]
                body[at : at + len(packed)] = packed
    return bytes(body)


CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"mvex", b"moof", b"traf", b"dinf"}


def mp4_boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte, end) of every box of an MP4 that holds no boxes itself."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        stop = end if size == 0 else start + size
        if size == 1 or stop > end or stop < start + 8:
            return
        if kind in CONTAINERS:
            yield from mp4_boxes(data, start + 8, stop)
        elif kind != b"mdat":
            yield kind, start, stop
        start = stop


def lie_in_mp4(r: Random, data: bytes) -> bytes:
    """Fields of boxes overwritten, boxes renamed, lengthened or taken away."""
    boxes = list(mp4_boxes(data))
    body = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 3))):
        kind, start, stop = r.choice(boxes)
        match r.randrange(6):
            case 0:
                body[start : start + 4] = struct.pack(">I", r.choice((*NUMBERS, stop - start + r.randrange(-8, 64))) & 0xFFFFFFFF)
            case 1:
                body[start + 4 : start + 8] = r.choice((b"free", b"moov", b"stts", b"stsd", b"elst", kind[::-1]))
            case 2:
                body[start + 8 : stop] = r.randbytes(stop - start - 8)
            case _:
                if stop - start > 12:
                    at = start + 8 + 4 * r.randrange((stop - start - 8) // 4)
                    body[at : at + 4] = struct.pack(">I", r.choice((*NUMBERS, r.getrandbits(32))))
    return bytes(body)


EBML = {  # element of a Matroska header: its id
    "width": b"\xb0", "height": b"\xba", "frame": b"\x23\xe3\x83", "scale": b"\x2a\xd7\xb1", "duration": b"\x44\x89",
    "shown_width": b"\x54\xb0", "shown_height": b"\x54\xba", "codec": b"\x86", "tag": b"DURATION",
}  # fmt: skip


def lie_in_matroska(r: Random, data: bytes) -> bytes:
    body = bytearray(data)
    for _ in range(r.choice((1, 1, 2))):
        sign = EBML[r.choice(list(EBML))]
        at = body.find(sign, r.choice((0, 0, len(body) // 2)))
        if at < 0:
            continue
        at += len(sign) + (3 if sign == b"DURATION" else 1)
        span = r.choice((1, 2, 4, 8, 18))
        body[at : at + span] = r.choice((r.randbytes(span), b"\xff" * span, bytes(span), b"::" * span, b"9" * span))[:span]
    return bytes(body)


HOSTILE = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 2**31, 2**53, 2**64, -(2**63), "", " ", ".", "..", "../../escaped",
    "/tmp/deixis-fuzz-escaped", "C:\\x", "a/b", "\0", "\n", "\ud800", "日本語", "🦏", "\u202eabc", "a" * 300, "1", "00000",
    [], {}, [[]], [None], {"a": 1}, [1e308] * 3, [0, 0, 0, 0], [-1, 5], ["../../escaped"],
)  # fmt: skip


def paths_in(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths_in(value, (*path, key))


def lie_in_json(r: Random, tree: Any, values: Sequence[Any] = HOSTILE) -> Any:
    """Some values of a JSON tree replaced, taken away or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        path = r.choice(list(paths_in(tree)))
        value = copy.deepcopy(r.choice(values))  # one that stood in the tree twice would change the next case, too
        if not path:
            if r.random() < 0.1:
                return value
            continue
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        if not isinstance(holder, dict):
            if r.random() < 0.2:
                del holder[path[-1]]
            else:
                holder[path[-1]] = value
            continue
        match r.randrange(5):
            case 0:
                del holder[path[-1]]
            case 1:
                holder[value if isinstance(value, str) else str(value)] = holder.pop(path[-1])
            case _:
                holder[path[-1]] = value
    return tree


def json_bytes(r: Random, tree: Any) -> bytes:
    text = json.dumps(tree)
    match r.randrange(12):
        case 0:
            text = text.replace(": 1", ": NaN", 1).replace(": 0", ": -Infinity", 1)
        case 1:
            text = text.replace("{", '{"x": 1, "x": 2, ', 1)
        case 2:
            text = "[" * 100_000 + text
        case 3:
            text = text.replace('"', "'", r.randrange(1, 9))
        case 4:
            text = text.replace(": 1", ": " + "1" * 5000, 1)
        case 5:
            return text.encode("utf-16")
        case 6:
            return mutate(r, text.encode())
    return text.encode()


WORDS = (
    "the red square", "a dog", "🦏🦏🦏", "والكلب الأسود", "שלום עולם", "\u202eright to left\u202c", "e\u0301" * 40, "\u200b", "ﷺ" * 50,
    "a\tb\nc\rd", "\x1b[31mred\x1b[0m", "'; drop table films; --", "$(touch escaped)", "../../escaped", "%s%n%x", "-", "--", "-o",
    "--help", "<script>", "\udcff", "犬", "\U0001f469\u200d\U0001f680", "𝔡𝔬𝔤", "\ufeff", "NUL", "a" * 1000, "a" * 1001, "word " * 10_000,
    "word " * 199, "\u0301", "İ", "ß" * 999, "Z̸̛̮a̴l̶g̵o" * 20,
)  # fmt: skip


def sentence(r: Random) -> str:
    match r.randrange(4):
        case 0:
            return "".join(chr(r.choice((r.randrange(1, 128), r.randrange(1, 0xD800), r.randrange(0xE000, 0x110000)))) for _ in range(r.choice((1, 3, 20, 400))))
        case 1:
            return " ".join(r.choice(WORDS) for _ in range(r.randrange(1, 6)))
    return r.choice(WORDS)


# --- the kinds of cases -----------------------------------------------------------------------------------------------


def formats(r: Random) -> list[str]:
    return ["--as", r.choice(("rle", "rle", "rle", "rle,png", "overlay", "matte", "overlay,png,rle,matte"))]


def segment(r: Random, box: Box, film: Path, *more: str) -> Case:
    return Case(kind="", argv=["segment", str(film), "the red square", "-o", box.out, *SMALL, *(formats(r)), *more])


def stretch(r: Random, path: Path) -> list[str]:
    if path.stem.startswith("demo"):
        return ["--end", "0.09", "--as", "rle"]
    return [] if r.random() < 0.7 else r.choice((["--start", "0.2"], ["--end", "0.3"], ["--every", "2"], ["--start", "0.1", "--end", "0.4"]))


def film_bytes(r: Random, box: Box, stock: Stock) -> Case:
    """Bytes of a film changed without knowing what they mean."""
    source = stock.demo if r.random() < 0.04 else r.choice(stock.films)
    name = source.name
    if r.random() < 0.06:
        name = source.stem + r.choice((".mkv", ".mp4", ".txt", "", ".png", ".MOV", ".avi", ".m3u8", ".jpg", ".ts"))
    film = box.given / name
    film.write_bytes(mutate(r, source.read_bytes(), r.choice(stock.films).read_bytes()))
    return segment(r, box, film, *stretch(r, source))


def film_headers(r: Random, box: Box, stock: Stock) -> Case:
    """Headers that lie: lengths, counts, sizes, clocks, codecs."""
    source = r.choice([f for f in stock.films if f.suffix in (".mp4", ".mov", ".mkv", ".webm", ".avi")])
    data = source.read_bytes()
    if source.suffix in (".mp4", ".mov"):
        data = lie_in_mp4(r, data)
    elif source.suffix in (".mkv", ".webm"):
        data = lie_in_matroska(r, data)
    else:
        body = bytearray(data)
        for _ in range(r.choice((1, 2, 3))):
            sign = r.choice((b"avih", b"strh", b"strf", b"movi", b"idx1", b"LIST", b"00dc"))
            at = body.find(sign) + 4 * r.randrange(1, 16)
            body[at : at + 4] = struct.pack("<I", r.choice((*NUMBERS, r.getrandbits(32))))
        data = bytes(body)
    film = box.given / source.name
    film.write_bytes(data)
    return segment(r, box, film, *stretch(r, source))


def film_splices(r: Random, box: Box, stock: Stock) -> Case:
    """Films in one: the front of one and the back of another, or several after each other."""
    first, second = r.choice(stock.films), r.choice(stock.films)
    if r.random() < 0.5:
        first = r.choice([f for f in stock.films if f.suffix in (".ts", ".mpg", ".avi", ".mkv")])
    one, other = first.read_bytes(), second.read_bytes()
    match r.randrange(3):
        case 0:
            data = one + other
        case 1:
            data = one[: r.randrange(len(one))] + other[r.randrange(len(other)) :]
        case _:
            cut = r.randrange(len(one))
            data = one[:cut] + other + one[cut:]
    film = box.given / first.name
    film.write_bytes(data)
    return segment(r, box, film)


def film_strange(r: Random, box: Box, stock: Stock) -> Case:
    """Well-formed films of strange form: clocks, turns, sizes, aspects, colours, no frame, one frame, several streams."""
    count = r.choice((0, 1, 1, 2, 5, 6))
    height, width = r.choice(((32, 48), (32, 48), (2, 2), (2, 600), (600, 2), (16, 16), (34, 50), (128, 16), (2, 1000), (1000, 2)))
    settings: dict[str, Any] = {"fps": r.choice((12, 1, 240, 60, Fraction(30000, 1001), Fraction(1, 10), 1000))}
    suffix = ".mkv"
    match r.randrange(9):
        case 0:
            shift = r.choice((0, 0, 5_000, 3_600_000_000))
            steps = [r.choice((1, 1, 40, 41, 1000, 50_000_000)) for _ in range(count)]
            settings["times"] = [shift + sum(steps[:i]) for i in range(count)]
        case 1:
            settings["rotation"], suffix = r.choice((0, 1, 45, 90, 180, 270, -90, 89)), ".mp4"
        case 2:
            settings["aspect"] = Fraction(r.choice((1, 2, 255, 65535)), r.choice((1, 3, 255, 65535)))
        case 3:
            settings |= {"pixels": r.choice(("yuv420p10le", "yuv444p10le", "yuv422p10le")), "colours": r.choice(((9, 16, 9), (9, 18, 9), (1, 1, 1), (2, 13, 2)))}
        case 4:
            codec, pixels = r.choice((("ffv1", "gray"), ("ffv1", "gray16le"), ("ffv1", "yuva420p"), ("ffv1", "rgb48le"), ("ffv1", "gbrp12le"), ("ffv1", "bgra"), ("rawvideo", "pal8"), ("rawvideo", "monow"), ("png", "monob"), ("png", "rgba64be"), ("ffv1", "yuv410p"), ("huffyuv", "rgb24"), ("ffv1", "gbrpf32le")))
            settings |= {"codec": codec, "pixels": pixels}
            if codec != "libx264":
                height, width = r.choice(((1, 1), (1, 500), (500, 1), (33, 51), (32, 48), (3, 4000), (4000, 3)))
        case 5:
            settings |= {"streams": r.choice((2, 3)), "tone": True}
        case 6:
            settings["metadata"] = {r.choice(("title", "DURATION", "rotate", "encoder", "comment")): r.choice(("x" * 5000, "a:b:c", "90", "\n", "00:00:99999999999", "-1:-1:-1", "nan:inf:1"))}
        case 7:
            settings |= {"tone": True, "mux": {}}
            suffix = r.choice((".mp4", ".mkv", ".mov"))
        case 8:  # the size changes on the way
            parts = []
            for size in ((32, 48), r.choice(((64, 32), (16, 16), (32, 50), (240, 320)))):
                part = encode(box.temp / "part.ts", pictures(3, *size), "mpeg2video", fps=25)
                parts.append(part.read_bytes())
                part.unlink()
            (box.given / "change.ts").write_bytes(b"".join(parts))
            return segment(r, box, box.given / "change.ts")
    film = box.given / f"strange{suffix}"
    try:
        encode(film, pictures(count, height, width), **settings)
    except (ValueError, av.error.FFmpegError, OverflowError):  # not even FFmpeg writes it: what is there must do
        film.touch()
    if r.random() < 0.1:
        film.write_bytes(mutate(r, (film.read_bytes() if film.exists() else b"") or b"x"))
    return segment(r, box, film, *stretch(r, film))


def film_huge(r: Random, box: Box, stock: Stock) -> Case:
    """8K, whole, and with a changed byte or two."""
    film = box.given / "8k.mp4"
    data = bytearray(stock.huge.read_bytes())
    for _ in range(r.choice((0, 1, 3))):
        data[r.randrange(len(data))] = r.randrange(256)
    film.write_bytes(data)
    more = ["--max-pixels", str(r.choice((1, 33_000_000, 40_000_000, 10**30, -1)))] if r.random() < 0.4 else []
    return Case(kind="", argv=["segment", str(film), "a dog", "-o", box.out, *SMALL, "--as", "rle", "--end", "0.1", *more])


def picture_film(r: Random, box: Box, stock: Stock) -> Case:
    """One picture or a folder of them: bytes changed, headers that lie, names and things that are no pictures."""
    if r.random() < 0.3:
        source = r.choice(stock.pictures)
        path = box.given / (source.name if r.random() < 0.9 else source.stem + r.choice(PICTURE_KINDS))
        path.write_bytes(mutate(r, source.read_bytes(), r.choice(stock.pictures).read_bytes()))
        return segment(r, box, path)
    folder = box.given / "frames"
    folder.mkdir()
    good = r.choice(stock.pictures)
    for number in range(r.choice((1, 3, 6))):
        shutil.copyfile(good, folder / f"{number}{good.suffix}")
    for _ in range(r.choice((1, 1, 2, 4))):
        source = r.choice(stock.pictures)
        name = r.choice(("2", "a.b", "x" * 240, "\udcff\udcfe", "日本", " ", "..x", "-o", "²", "00", "0", "a\nb", "\u202e", "0.0")) + source.suffix
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.exists() or path.is_symlink():
            path.unlink()
        match r.randrange(9):
            case 0:
                path.symlink_to(path)
            case 1:
                os.mkfifo(path)
            case 2:
                path.mkdir()
            case 3:
                path.touch()
            case 4:
                path.symlink_to(r.choice(("/dev/zero", "/dev/null", "/etc/passwd", "/dev/tty")))
            case 5:
                path.write_bytes(lie_in_picture(r, source.read_bytes()))
            case 6:
                shutil.copyfile(r.choice(stock.pictures), path)
            case _:
                path.write_bytes(mutate(r, source.read_bytes(), good.read_bytes()))
        if path.is_dir() and r.random() < 0.5:
            break
    fps = ["--fps", r.choice(("1", "0.001", "1000", "1e9", "1e-9", "25.5"))] if r.random() < 0.3 else []
    return segment(r, box, folder, *fps)


def lie_in_picture(r: Random, data: bytes) -> bytes:
    """A picture whose header states another size."""
    body = bytearray(data)
    at = {b"\x89PNG": 16, b"BM": 18}.get(bytes(body[:4]) if body[:1] == b"\x89" else bytes(body[:2]))
    big = r.choice((1, 0, 6000, 7000, 12_000, 60_000, 0x7FFFFFFF, 0xFFFFFFFF, 65_535))
    if at is None:
        return mutate(r, data)
    packed = struct.pack(">I" if at == 16 else "<I", big)
    start = at + 4 * r.randrange(2)
    body[start : start + 4] = packed
    if at == 16 and r.random() < 0.8:  # with a checksum that is right
        body[29:33] = struct.pack(">I", zlib.crc32(bytes(body[12:29])))
    return bytes(body)


def words(r: Random, box: Box, stock: Stock) -> Case:
    """Sentences."""
    given = [sentence(r).replace("\0", "") for _ in range(r.choice((1, 1, 1, 2, 5, 40)))]
    film = stock.films[0] if r.random() < 0.8 else stock.films[r.randrange(len(stock.films))]
    end = ["--end", "0.2"]
    dashes = ["--"] if r.random() < 0.8 else []
    return Case(kind="", argv=["segment", *SMALL, *formats(r), *end, "-o", box.out, *dashes, str(film), *given])


VALUES = ("0", "-1", "1", "nan", "inf", "-inf", "1e308", "1e-308", "2147483648", "99999999999999999999", "", " ", "0x10", "١", "²", "1_0", "abc", "0.5", "🦏", "--", "1,2")


def options(r: Random, box: Box, stock: Stock) -> Case:
    """Values of options."""
    film = str(r.choice(stock.films))
    names = ("--start", "--end", "--every", "--size", "--threshold", "--fps", "--max-pixels", "--as", "--device", "--precision", "--model")
    match r.randrange(5):
        case 0 | 1:
            argv = ["segment", film, "a dog", "-o", box.out, *SMALL, "--as", "rle"]
            for name in r.sample(names, r.choice((1, 1, 2))):
                argv += [f"{name}={r.choice(VALUES)}"]
        case 2:
            out = r.choice(("", ".", "..", "x" * 300, "a/" * 200, film, "/dev/null/x", "/proc/x/y", "\udcff", "a\nb", box.out + "/../../place/out"))
            argv = ["segment", r.choice((film, film, "x" * 300, "\udcff", "/", "/dev/null", "/dev/zero", "a" * 5000, "http://localhost/x", "concat:a|b", "-")), "a dog", "-o", str(box.place / out) if r.random() < 0.7 else out, *SMALL, "--as", "rle"]
            if not argv[4].startswith(str(box.place)):
                argv[4] = str(box.place / "out")
        case 3:
            argv = ["world", box.out, "--films", r.choice(("0", "-1", "1", "2", "x")), "--frames", r.choice(("0", "-1", "1", "2", "3")), "--seed", r.choice(("0", "-1", str(2**70))), "--size", r.choice(("0x0", "²x³", "1x1", "16x16", "64x1", "32x48", "x", "999999x999999", "-1x5", "32x48x3"))]
        case _:
            argv = ["train", r.choice(("light", "soc", "x", "")), "-o", box.out, "--set", r.choice(("train.steps=0", "model.x=1", "train=1", "=", "train.lr=nan", "train.batch=-5", "data.sizes=1,2", "x")), "--data", r.choice(("pictures=/nowhere", "x", "=", "a=b"))]
    return Case(kind="", argv=argv)


def lie_in_checkpoint(r: Random, data: bytes) -> bytes:
    """A safetensors file whose header or config lies."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    facts = json.loads(header["__metadata__"]["deixis"])
    match r.randrange(8):
        case 0 | 1 | 2:  # a number of the config
            numbers = [p for p in paths_in(facts["config"]) if p and not isinstance(_at(facts["config"], p), dict | list)]
            for _ in range(r.choice((1, 1, 2))):
                path = r.choice(numbers)
                old = _at(facts["config"], path)
                new = [0, 1, -1, 2, 3, 1 << 19, 1 << 20, 1 << 40, 0.0, -1.0, 1e-30, 1e30, 0.5, None, "x", True, 33]
                if isinstance(old, bool | str) or r.random() < 0.2:
                    value = r.choice(new)
                else:
                    value = type(old)(r.choice([v for v in new if isinstance(v, int | float)])) if old is not None else 1
                _at(facts["config"], path[:-1])[path[-1]] = value
        case 3:
            facts = lie_in_json(r, facts)
        case 4:
            header = lie_in_json(r, header)
        case 5:
            key = r.choice([k for k in header if k != "__metadata__"])
            header[key] = lie_in_json(r, header[key], (*HOSTILE, [2**40], [0], "F64", "F4", "I8", "BOOL", [0, 4]))
        case 6:
            body = mutate(r, body)
        case 7:
            packed = json.dumps(header).encode()
            length = r.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, len(packed) - 1, len(packed) + 1, 10**8))
            return struct.pack("<Q", length) + packed + body
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["deixis"] = json.dumps(facts)
    packed = json_bytes(r, header) if r.random() < 0.1 else json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + body


def _at(tree: Any, path: Iterable[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def checkpoints(r: Random, box: Box, stock: Stock) -> Case:
    """Checkpoints of ours: wrong, cut, with lying headers and configs, or pickles."""
    source = r.choice((stock.checkpoint, stock.small_checkpoint))
    path = box.given / r.choice(("m.safetensors", "m.safetensors", "m.pth", "m"))
    match r.randrange(6):
        case 0:
            path.write_bytes(mutate(r, source.read_bytes(), stock.demo.read_bytes()))
        case 1:
            path.write_bytes(hostile_pickle(r, box))
        case _:
            path.write_bytes(lie_in_checkpoint(r, source.read_bytes()))
    return Case(kind="", argv=["segment", str(stock.films[0]), "a dog", "-o", box.out, "--model", str(path), "--as", "rle", "--end", "0.3", *(("--size", "32") if r.random() < 0.5 else ())])


class _Runs:
    """A pickle that makes a file when it is opened."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def hostile_pickle(r: Random, box: Box) -> bytes:
    canary = str(box.root / "escaped")
    held = r.choice((_Runs(os.system, f"touch {canary}"), _Runs(open, canary, "w"), _Runs(os.mkdir, canary), _Runs(eval, f"open({canary!r}, 'w')")))
    tree = r.choice((held, {"model_state_dict": held}, {"model_state_dict": {"a": torch.ones(1), "b": held}}, [held]))
    match r.randrange(4):
        case 0:
            return pickle.dumps(tree, protocol=r.randrange(6))
        case 1:
            file = io.BytesIO()
            torch.save(tree, file, _use_new_zipfile_serialization=r.random() < 0.5)
            return file.getvalue()
        case 2:  # a zip in torch's form with a pickle of another hand
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(tree, protocol=2))
                archive.writestr("archive/version", "3\n")
                archive.writestr("archive/byteorder", "little")
            return file.getvalue()
    return mutate(r, pickle.dumps(tree, protocol=2))


def imports(r: Random, box: Box, stock: Stock) -> Case:
    """Files of others for ``weights import``: wrong, cut, hostile, with tensors that are none."""
    path = box.given / "published.pth"
    match r.randrange(5):
        case 0:
            path.write_bytes(mutate(r, stock.published.read_bytes(), stock.checkpoint.read_bytes()[:5000]))
        case 1:
            path.write_bytes(mutate(r, stock.old_published.read_bytes(), stock.published.read_bytes()))
        case 2:
            path.write_bytes(hostile_pickle(r, box))
        case 3:
            path.write_bytes(lie_in_checkpoint(r, stock.small_checkpoint.read_bytes())[: r.choice((5000, 10**7))])
        case _:
            odd = (torch.ones(()), torch.ones(0), torch.ones(96, 3, 4, 4), torch.ones(1).expand(50265, 768), torch.ones(1, 5), torch.zeros(2, dtype=torch.complex64), torch.ones(3).to_sparse(), torch.empty(3, device="meta"), 5, None, "x", [1])
            names = ("backbone.0.body.patch_embed.proj.weight", "class_embed.0.weight", "proxy_embed.weight", "text_encoder.embeddings.word_embeddings.weight", 7, "a")
            torch.save({r.choice(("model_state_dict", "model", "x")): {n: r.choice(odd) for n in r.sample(names, 5)}}, path)
    more = r.choice(([], [], ["--set", r.choice(("window=x", "eval_level=y", "window", "kept_queries=1" + "0" * 5000))], ["--tokenizer", str(box.given)]))
    return Case(kind="", argv=["weights", "import", str(path), "--system", r.choice(("soc", "soc_plus_plus", "light")), "-o", box.out + ".safetensors", *more])


def _reads(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def spoil(r: Random, file: Path, others: Sequence[Path]) -> None:
    """One file of a benchmark or of results, changed by what it is; or gone, or something else in its place."""
    roll = r.random()
    if roll < 0.12:
        file.unlink()
        match r.randrange(5):
            case 0:
                file.mkdir()
            case 1:
                file.symlink_to(file)
            case 2:
                os.mkfifo(file)
            case 3:
                file.touch()
        return
    data = file.read_bytes()
    if file.suffix == ".json" and roll < 0.9 and data.startswith((b"{", b"[")) and _reads(data):
        file.write_bytes(json_bytes(r, lie_in_json(r, json.loads(data))))
    elif file.suffix in (".txt", ".csv") and roll < 0.7:
        lines = data.decode("utf-8", "replace").splitlines() or [""]
        line = r.randrange(len(lines))
        cells = lines[line].split(",")
        cells[r.randrange(len(cells))] = str(r.choice(HOSTILE))
        lines[line] = r.choice((",".join(cells), ",".join(cells), "", "a,b,c,d,e,f,g", '"', "\0"))
        file.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    elif file.suffix == ".png" and roll < 0.5:
        file.write_bytes(lie_in_picture(r, data))
    else:
        file.write_bytes(mutate(r, data, r.choice(others).read_bytes()))


def copied(r: Random, source: Path, to: Path, times: int, suffixes: tuple[str, ...] = ()) -> Path:
    """A copy of a folder with some files spoiled; json and txt first of all, for they are few and carry most."""
    shutil.copytree(source, to, symlinks=True)
    files = sorted(f for f in to.rglob("*") if f.is_file())
    few = [f for f in files if f.suffix not in (".jpg", ".png")]
    for _ in range(times):
        file = r.choice(few if few and r.random() < 0.6 else files)
        if file.is_file():
            spoil(r, file, [f for f in files if f.is_file()] or [Path(__file__)])
    return to


def benchmarks(r: Random, box: Box, stock: Stock) -> Case:
    """A benchmark on disk with something wrong, checked, scored, packed or predicted."""
    name = r.choice(list(stock.benchmarks))
    root = copied(r, stock.benchmarks[name], box.given / "root", r.choice((1, 1, 2, 3)))
    results, command = str(stock.results[name]), r.choice(("check", "check", "check", "score", "score", "pack", "predict"))
    skip = ["--skip-bad"] if r.random() < 0.3 else []
    match command:
        case "check":
            argv = ["data", "check", name, str(root)]
        case "score":
            argv = ["score", name, str(root), results, "-o", box.out, *skip]
        case "pack":
            argv = ["pack", name, results, "-o", box.out, "--root", str(root), *skip]
        case _:
            argv = ["predict", name, str(root), "-o", box.out, "--model", MODEL, "--device", "cpu", *skip]
    return Case(kind="", argv=argv, resumes=command == "predict")


def results(r: Random, box: Box, stock: Stock) -> Case:
    """Results with something wrong, scored, packed, or taken up again by predict."""
    name = r.choice(list(stock.results))
    root = str(stock.benchmarks[name])
    command = r.choice(("score", "score", "pack", "predict"))
    resumes = command == "predict"
    folder = copied(r, stock.results[name], Path(box.out) if resumes else box.given / "results", r.choice((1, 1, 2, 3)))
    if command == "predict":
        argv = ["predict", name, root, "-o", str(folder), "--model", MODEL, "--device", "cpu"]
    elif command == "score":
        argv = ["score", name, root, str(folder), "-o", box.out]
    else:
        argv = ["pack", name, str(folder), "-o", box.out, *(["--root", root] if r.random() < 0.5 else [])]
    return Case(kind="", argv=argv, resumes=resumes)


def masks(r: Random, box: Box, stock: Stock) -> Case:
    """Folders of masks against each other, one with something wrong."""
    which = r.choice(("results", "truth"))
    spoiled = copied(r, stock.masks / which, box.given / which, r.choice((1, 1, 2, 4)))
    other = stock.masks / ("truth" if which == "results" else "results")
    pair = (spoiled, other) if which == "results" else (other, spoiled)
    more = r.choice(([], [], ["--drop-ends"], ["--json", box.out]))
    return Case(kind="", argv=["score", "masks", *map(str, pair), *more])


NAMES = ("../../escaped", "../escaped", "/tmp/deixis-fuzz-escaped", "a/../../../escaped", "..\\escaped", "C:escaped", "a//b.png", "./a/b.png", "a/./b", "\x00", "x" * 300, "a/" * 120 + "b", "é", "a", "a/", "", "con/nul", "\u202e")


def zips(r: Random, box: Box, stock: Stock) -> Case:
    """Zips of results: paths that leave, links, doubles, lies about sizes, bombs, bytes changed."""
    name = r.choice([n for n in stock.zips if n != "ref-youtube-vos"])
    path = box.given / "results.zip"
    source = stock.zips[name].read_bytes()
    roll = r.randrange(10)
    if roll == 0 and r.random() < 0.1:
        path.symlink_to(stock.bomb)
    elif roll < 5:
        path.write_bytes(mutate(r, source, stock.published.read_bytes()))
    else:
        with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(path, "w") as new:
            members = old.namelist()
            for member in members:
                if r.random() < 0.9:
                    new.writestr(member, old.read(member), r.choice((0, 8, 8, 12, 14)))
            for _ in range(r.choice((1, 1, 3))):
                info = zipfile.ZipInfo(r.choice((*NAMES, r.choice(members))))
                info.filename = r.choice((*NAMES, r.choice(members), r.choice(members) + "/x"))
                if r.random() < 0.2:
                    info.external_attr = 0o120777 << 16
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    new.writestr(info, r.choice((b"/etc/passwd", b"", bytes(100_000), b"x")))
        if roll > 7:
            data = bytearray(path.read_bytes())
            sign = r.choice((b"PK\1\2", b"PK\3\4", b"PK\5\6"))
            at = data.find(sign, r.randrange(len(data)))
            if at >= 0:
                start = at + 4 + 2 * r.randrange(9)
                data[start : start + 4] = struct.pack("<I", r.choice((*NUMBERS, 1, 8, 9, 12, 14, 99)))
            path.write_bytes(data)
    argv = ["score", name, str(stock.benchmarks[name]), str(path), "-o", box.out]
    if r.random() < 0.2:
        argv = ["score", "masks", str(path), str(stock.masks / "truth")]
    return Case(kind="", argv=argv)


KINDS: dict[str, tuple[int, Callable[[Random, Box, Stock], Case]]] = {  # name: (weight, function)
    "film, bytes": (26, film_bytes),
    "film, lying headers": (13, film_headers),
    "film, spliced": (5, film_splices),
    "film, strange": (9, film_strange),
    "film, 8K": (0.3, film_huge),  # type: ignore[dict-item]
    "pictures": (9, picture_film),
    "sentences": (6, words),
    "options": (4, options),
    "checkpoints": (9, checkpoints),
    "published weights": (4, imports),
    "benchmarks": (7, benchmarks),
    "results": (4, results),
    "masks": (4, masks),
    "zips": (5, zips),
}


def make(seed: int, number: int, box: Box, stock: Stock, kinds: Sequence[str] = ()) -> Case:
    """Case ``number``: its inputs are written, its words returned."""
    r = Random(f"{seed}:{number}")
    names = list(kinds or KINDS)
    name = r.choices(names, [KINDS[n][0] for n in names])[0]
    made = KINDS[name][1](r, box, stock)
    return Case(kind=name, argv=made.argv, resumes=made.resumes)
