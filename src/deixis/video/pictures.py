"""Pictures as a source of frames: a folder of them, one, or one that moves (animated WebP, PNG, AVIF, a TIFF stack).

Colour is RGB in 8 bits. Deeper pictures are scaled by the range that their values use: a camera's 12 bits in a file of
16 would otherwise be nearly black.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deixis.files import natural
from deixis.types import DeixisError, Size, reason_of
from deixis.video.colour import PICTURE, Colours
from deixis.video.frames import Frame, check_pixels

log = logging.getLogger(__name__)

PICTURE_KINDS = {  # suffix -> what it is called, one name for the spellings of one kind
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG", ".webp": "WebP",
    ".bmp": "BMP", ".dib": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM",
    ".pnm": "PPM", ".avif": "AVIF", ".avifs": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC",
    ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".tga": "TGA",
}  # fmt: skip
PICTURES = frozenset(PICTURE_KINDS)
FILM_SUFFIXES = frozenset(  # what files of films are mostly called; any name is read
    {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".gif"}
)
MOVING = frozenset({"WEBP", "PNG", "AVIF", "TIFF"})  # Pillow's formats whose many pictures are frames
ONLY_PILLOW = frozenset({"AVIF", "HEIC", "TGA"})
BESIDE = re.compile(  # what tools append to a frame's name for what belongs to it
    r"[._\- ]?(mask|masks|seg|segm|segmentation|semantic|instance|instances|instanceids|labelids|panoptic|label|labels"
    r"|gt|groundtruth|anno|annotation|matte|alpha|depth|disp|disparity|normal|flow|overlay|vis|color|colour|thumb"
    r"|thumbnail|preview)s?(\d{0,3})$", re.IGNORECASE,
)  # fmt: skip
TIFF_WIDTH, TIFF_HEIGHT, TIFF_SHORT = 256, 257, 3  # TIFF's tags of a page's size, and the number of its kind of 16 bits
MOST_PAGES = 20_000  # of a TIFF that Pillow does not open (our choice: the list of its pages is walked from the front)
SUBSAMPLED = 254  # TIFF's tag NewSubfileType, whose lowest bit marks a smaller copy
RANGE_SAMPLES = 5  # pictures of a folder from which the range of deep values is taken (our choice)
DEPTHS = (8, 10, 12, 14, 16)  # bits a value that cameras and scanners use
UNREADABLE = (  # what decoders raise for files that are damaged
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error,
    cv2.error, MemoryError,
)  # fmt: skip
FORMAT_HINT = "HEIC pictures are read where `pip install pillow-heif` is done"


def ordered(files: Sequence[Path]) -> list[Path]:
    """In natural order; names that are decimal numbers all through (2.25, 2.5) in the order of the numbers."""
    stems = [file.stem for file in files]
    if all(re.fullmatch(r"\d+(\.\d+)?", stem, re.ASCII) for stem in stems):
        ends = [stem.partition(".")[2] for stem in stems]
        # 1.9, 1.10: two counters. A writer of decimals writes no zero at the end, or the same number of digits.
        counters = len({len(end) for end in ends if end}) > 1 and any(len(e) > 1 and e.endswith("0") for e in ends)
        if any(ends) and not counters:
            return sorted(files, key=lambda file: (Fraction(file.stem), file.name))
    return sorted(files, key=lambda file: natural(file.name))


class Pictures:
    """A folder of pictures, or one picture that may move, as a source of frames.

    names: of all frames, whether they decode or not.  rate: frames per second.  colours: of what it gives.
    """

    has_audio = False
    pixel_aspect = Fraction(1)
    stream = 0
    colours: Colours = PICTURE

    def __init__(self, path: Path, max_pixels: int, fps: float, warn: Callable[..., None]) -> None:
        self.path, self.max_pixels, self.rate, self.warn = path, max_pixels, fps, warn
        self.files = self._files() if path.is_dir() else [path]
        self.pages: list[int] | None = None  # of one file that moves
        self._starts: list[float] | None = None
        if path.is_dir():
            self.names = [f.stem for f in self.files]  # each once: ``_without_beside`` refuses others
        else:
            self._find_pages()
            self.names = [path.stem] if self.pages is None else [f"{i:05d}" for i in range(len(self.pages))]
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.seconds: float | None = len(self.names) / self.rate
        self._range = lru_cache(maxsize=1)(self._find_range)

    # --- what lies there ---

    def _files(self) -> list[Path]:
        try:
            found = list(self.path.iterdir())
        except OSError as error:
            raise DeixisError(f"{self.path} cannot be read: {reason_of(error)}") from error
        pictures = [f for f in found if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
        if not pictures:
            kinds = " ".join(sorted(PICTURES))
            raise DeixisError(
                f"{self.path} is a folder without frames; expected pictures ({kinds}){nested(self.path, found)}"
            )
        return ordered(self._without_beside(pictures))

    def _without_beside(self, pictures: list[Path]) -> list[Path]:
        """Frames alone: what tools lay beside them is left out, and what is ambiguous is refused."""
        stems = {f.stem for f in pictures}
        beside = [f for f in pictures if belongs_to_another(f.stem, stems)]
        for file in sorted(beside):
            self.warn(
                f"{file.name} lies beside a frame of that name, and is taken for its mask or label; left out",
                kind="beside", which=file.name,
            )  # fmt: skip
        left = set(beside)
        frames = [f for f in pictures if f not in left]
        by_stem: dict[str, list[Path]] = {}
        for file in frames:
            by_stem.setdefault(file.stem, []).append(file)
        twice = [sorted(files) for files in by_stem.values() if len(files) > 1]
        if twice:
            names = " and ".join(f.name for f in min(twice))
            more = f" ({len(twice)} such pairs)" if len(twice) > 1 else ""
            raise DeixisError(
                f"{self.path} holds {names}{more}: which are the frames? Put one kind into a folder of its own"
            )
        kinds = Counter(PICTURE_KINDS[f.suffix.lower()] for f in frames)
        if len(kinds) > 1:
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            self.warn(f"the folder mixes pictures of several kinds ({counts}); all are read as frames")
        return frames

    def _find_pages(self) -> None:
        """The frames of one file that moves, and their times."""
        pages: list[int] = []
        durations: list[float] = []
        try:
            with open_picture(self.path) as picture:
                if picture.format not in MOVING:
                    return
                count, size = getattr(picture, "n_frames", 1), picture.size
                if count > 1:
                    check_pixels(picture.width * picture.height, self.max_pixels, self.path)
                for page in range(count if count > 1 else 0):
                    picture.seek(page)
                    if page == 0 and picture.info.get("default_image"):
                        continue  # of an animated PNG: what programs without animation show
                    if getattr(picture, "tag_v2", {}).get(SUBSAMPLED, 0) & 1 or picture.size != size:
                        self.warn("pages of another size, as of a preview, are left out", kind="pages", which=str(page))
                        continue
                    if picture.format in ("AVIF", "WEBP"):
                        picture.load()  # only then the frame's duration is known
                    pages.append(page)
                    durations.append(float(picture.info.get("duration") or 0) / 1000)
        except UNREADABLE as error:
            if isinstance(error, DeixisError):
                raise
            log.debug("%s: pages: %s", self.path, error)
            if pages:
                self.warn(f"the file is cut off or damaged after page {pages[-1]}; the rest is left out")
            else:
                pages = self._pages_of_a_tiff()
        if len(pages) < 2:
            return
        self.pages = pages
        if durations and all(duration > 0 for duration in durations):
            self.rate = len(pages) / sum(durations)
            self._starts = np.concatenate([[0.0], np.cumsum(durations)[:-1]]).tolist()

    def _pages_of_a_tiff(self) -> list[int]:
        """The pages of a stack whose kind of values Pillow does not know; its previews are left out."""
        sizes = tiff_sizes(self.path)
        for height, width in sizes[:1]:
            check_pixels(width * height, self.max_pixels, self.path)
        pages = [page for page, size in enumerate(sizes) if size == sizes[0]]
        if len(pages) < len(sizes):
            self.warn("pages of another size, as of a preview, are left out", kind="pages")
        return pages

    def number_of(self, name: str) -> int:
        """A frame's number among all, from 0."""
        return self.numbers[name]

    def file_name(self, name: str) -> str:
        """The file of a frame; of one that moves, what its pictures would be called."""
        return f"{name}.jpg" if self.pages is not None else self.files[self.numbers[name]].name

    # --- reading ---

    def frames(self, start: float, end: float) -> Iterator[Frame]:
        """Those at or after ``start`` and before ``end`` seconds that decode."""
        with Reader(self.path) as reader:
            for number, name in enumerate(self.names):
                seconds = number / self.rate if self._starts is None else self._starts[number]
                if start <= seconds < end and (picture := self._read(number, reader)) is not None:
                    yield Frame(number, name, seconds, partial(np.copy, picture), number)

    def _read(self, number: int, reader: Reader) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB, or None (and a note) for a picture that does not decode."""
        try:
            picture = self._values(number, reader)
            if picture is not None:
                return self._in_8_bits(picture)
        except UNREADABLE as error:
            if isinstance(error, DeixisError):
                raise
            log.debug("%s, frame %d: %s", self.path, number, error)
        if self.pages is not None:
            page = self.pages[number]
            self.warn(f"page {page} does not decode; left out", kind="does not decode", which=str(page))
            return None
        file = self.files[number]
        hint = f" ({FORMAT_HINT})" if PICTURE_KINDS[file.suffix.lower()] == "HEIC" and not has_heic() else ""
        self.warn(f"{file.name} is not a picture that decodes; left out{hint}", kind="does not decode", which=file.name)
        return None

    def _values(self, number: int, reader: Reader) -> np.ndarray | None:
        """(H, W, 3) RGB of any depth; None for what is no picture."""
        if self.pages is not None:
            return reader.page(self.pages[number])
        file = self.files[number]
        return self._decoded(file) if file.is_file() else None  # a pipe would be waited for, a device read for ever

    def _decoded(self, file: Path) -> np.ndarray | None:
        """(H, W, 3) RGB of any depth; None where neither Pillow nor OpenCV decodes it."""
        size, pages, plain = header(file)
        if size is None:
            return None
        check_pixels(size[0] * size[1], self.max_pixels, file)
        if pages > 1:
            self.warn(
                f"{file.name} holds {pages} pictures; of each such file of a folder the first is used",
                kind="many pages", which=file.name,
            )  # fmt: skip
        if PICTURE_KINDS[file.suffix.lower()] not in ONLY_PILLOW:
            flags = cv2.IMREAD_COLOR if plain else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
            data = np.fromfile(file, np.uint8)
            picture = cv2.imdecode(data, flags)
            if picture is None and not plain:
                picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)  # four channels of floating point
            if picture is not None:
                return three_channels(picture)
        with open_picture(file) as image:
            return values_of(image)

    # --- deep pictures ---

    def _in_8_bits(self, picture: np.ndarray) -> np.ndarray:
        if picture.dtype == np.uint8:
            return picture
        low, high = self._range(picture.dtype.kind)
        scaled = (np.nan_to_num(picture.astype(np.float32), nan=low, posinf=high, neginf=low) - low) * (
            255 / max(high - low, 1e-12)
        )
        return np.clip(scaled + 0.5, 0, 255).astype(np.uint8)

    def _find_range(self, kind: str) -> tuple[float, float]:
        """(value shown black, value shown white) of deep pictures: from a few of them, spread over the film."""
        wanted = np.unique(np.linspace(0, len(self.names) - 1, RANGE_SAMPLES).round().astype(int)).tolist()
        low, high, whole = np.inf, -np.inf, True
        with Reader(self.path) as reader:
            for number in wanted:
                try:
                    picture = self._values(number, reader)
                except UNREADABLE:
                    continue
                if picture is None or picture.dtype == np.uint8 or not np.isfinite(picture).any():
                    continue
                values = picture[np.isfinite(picture)]
                low, high = min(low, float(values.min())), max(high, float(values.max()))
                whole = whole and picture.dtype == np.uint16
        if not np.isfinite(low + high):
            return 0.0, 1.0
        if whole:  # 16 bits, of which a camera may use fewer
            depth = next((bits for bits in DEPTHS if high < 1 << bits), 16)
            if depth < 16:
                self.warn(f"values of 16 bits that reach {high:,.0f} only: taken for {depth} bits")
            return 0.0, float((1 << depth) - 1)
        if kind == "f" and low >= 0 and high <= 1:
            return 0.0, 1.0
        if kind == "f" and low >= 0 and 1 < high <= 255:
            return 0.0, 255.0
        self.warn(f"values from {low:g} to {high:g}: shown as black to white")
        return low, high


class Reader(AbstractContextManager["Reader"]):
    """The pages of one file, one after the other, as ``values_of`` gives them."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self.image: Any = None

    def page(self, page: int) -> np.ndarray:
        try:
            if self.image is None or self.at > page:
                self.__exit__()
                self.image = open_picture(self.path)
            self.at = page
            self.image.seek(page)
            return values_of(self.image)
        except UNREADABLE as error:  # colours of 16 bits or of floating point, which Pillow does not read
            if isinstance(error, DeixisError):
                raise
            for flags in (cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, cv2.IMREAD_UNCHANGED):
                done, found = cv2.imreadmulti(str(self.path), start=page, count=1, flags=flags)
                if done and len(found):
                    return three_channels(found[0])
            raise

    def __exit__(self, *_: object) -> None:
        if self.image is not None:
            self.image.close()
            self.image = None


def belongs_to_another(stem: str, stems: set[str]) -> bool:
    """Whether a name is another frame's with a word appended: 00000_mask beside 00000."""
    found = BESIDE.search(stem)
    return found is not None and found.start() > 0 and stem[: found.start()] in stems


def nested(path: Path, found: Sequence[Path]) -> str:
    """What lies there instead: films; or the frames, one or two folders further down."""
    films = sorted(f.name for f in found if f.suffix.lower() in FILM_SUFFIXES and f.is_file())
    if films:
        many = f"{films[0]} and {len(films) - 1} more films lie" if len(films) > 1 else f"{films[0]} lies"
        return f"; {many} in it: give one of them, or list them for `deixis batch`"
    for below in sorted(f for f in found if f.is_dir() and not f.name.startswith(".")):
        try:
            inside = list(below.iterdir())
        except OSError:
            continue
        if any(f.suffix.lower() in PICTURES for f in inside):
            return f"; there are some in {below}"
        if (further := nested(below, [f for f in inside if f.is_dir()])) and below.parent == path:
            return further
    return ""


@lru_cache(maxsize=1)
def has_heic() -> bool:
    """Whether Pillow reads HEIC here: by the package pillow-heif, which is used where it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def open_picture(file: Path) -> Any:
    """A picture, its header read, by Pillow."""
    from PIL import Image

    if PICTURE_KINDS.get(file.suffix.lower()) == "HEIC":
        has_heic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(file)
        except Image.DecompressionBombError as error:
            raise DeixisError(f"{file}: a picture bomb, refused ({error})") from error


def header(file: Path) -> tuple[Size | None, int, bool]:
    """((height, width), pictures in it, whether it holds 8 bits a value) from a header; a size of None without one."""
    try:
        with open_picture(file) as picture:
            pages = getattr(picture, "n_frames", 1) if picture.format in MOVING else 1
            return (picture.height, picture.width), pages, picture.format in ("JPEG", "WEBP", "BMP")
    except DeixisError:
        raise
    except UNREADABLE:
        sizes = tiff_sizes(file)
        return (sizes[0], len(sizes), False) if sizes else (None, 1, True)


def tiff_sizes(file: Path) -> list[Size]:
    """(height, width) of each page that a TIFF's headers state, whatever its values are; [] for what is no TIFF."""
    sizes: list[Size] = []
    try:
        with open(file, "rb") as stream:
            head = stream.read(8)
            order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
            if order is None:
                return []
            places = [struct.unpack(f"{order}I", head[4:])[0]]
            while places[-1] and places[-1] not in places[:-1] and len(sizes) < MOST_PAGES:
                stream.seek(places[-1])
                count = struct.unpack(f"{order}H", stream.read(2))[0]
                entries = stream.read(12 * count + 4)
                found = {}
                for at in range(0, 12 * count, 12):
                    tag, kind = struct.unpack_from(f"{order}HH", entries, at)
                    found[tag] = struct.unpack_from(f"{order}{'H' if kind == TIFF_SHORT else 'I'}", entries, at + 8)[0]
                sizes.append((found[TIFF_HEIGHT], found[TIFF_WIDTH]))
                places.append(struct.unpack(f"{order}I", entries[-4:])[0])
    except UNREADABLE as error:
        log.debug("%s: pages: %s", file, error)
    return sizes


def three_channels(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB of what OpenCV decoded, in its own depth."""
    if picture.ndim == 2 or picture.shape[2] < 3:
        return np.repeat(picture.reshape(*picture.shape[:2], -1)[..., :1], 3, 2)
    return np.ascontiguousarray(picture[..., 2::-1])


def values_of(image: Any) -> np.ndarray:
    """(H, W, 3) RGB of a Pillow picture, upright, in its own depth where that is more than 8 bits."""
    from PIL import ExifTags, ImageOps

    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = np.asarray(image)
        return np.repeat(grey[..., None], 3, 2)
    return np.asarray(image.convert("RGB"))
