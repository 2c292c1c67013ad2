"""The font that an expression's words are written in: the package's, the system's for other scripts, else a number."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL import ImageFont

FONT = Path(__file__).parents[1] / "assets" / "fonts" / "DejaVuSans-subset.ttf"  # its licence lies beside it
FONT_FILES = frozenset({".ttf", ".otf", ".ttc", ".otc"})
MOST_FONTS = 3000  # files of the system that are tried (our choice)
SIGNS = frozenset({"So", "Sk", "Cf", "Co", "Cn", "Cs"})  # emoji and their kin, marks of direction, private letters
NO_FONTS = ("lastresort", "blank")  # fonts that draw a frame or nothing for every letter
ABSENT = "\uffff"  # no font has a glyph for it, so every font draws its box


def legible(text: str, number: int, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """The words that can be drawn for an expression, and the font for them.

    Args:
        text: The expression.
        number: Its number among the expressions, from 0.
        size: Height of the letters, pixels.

    Returns:
        The text with the font that has all its letters; or, where neither the package nor the system has one, the
        expression's number, counted from 1, as ``#2``.

    Example:
        >>> legible("собака", 0, 20)[0]
        'собака'
    """
    plain = "".join(c for c in text if unicodedata.category(c) not in SIGNS)  # a picture of a dog says no word
    for words in dict.fromkeys((text, " ".join(plain.split()))):
        file = font_of("".join(sorted({c for c in words if not c.isspace()})))
        if words and file is not None:
            return words, font(file, size)
    return f"#{number + 1}", font(FONT, size)


@lru_cache(maxsize=64)
def font(file: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


@lru_cache(maxsize=256)
def font_of(letters: str) -> Path | None:
    """The first font that has all the letters: the package's, then the system's."""
    if has_letters(FONT, letters):
        return FONT
    return next((file for file in system_fonts() if has_letters(file, letters)), None)


def has_letters(file: Path, letters: str) -> bool:
    """Whether a font file has a glyph for every letter; False for a file that is no font."""
    try:
        face = ImageFont.truetype(str(file), 16)
        box = drawn(face, ABSENT)
        return all((glyph := drawn(face, letter)) != box and any(glyph[1]) for letter in letters)
    except (OSError, ValueError):
        return False


def drawn(face: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = face.getmask(letter)
    return mask.size, bytes(mask)


@lru_cache(maxsize=1)
def system_fonts() -> tuple[Path, ...]:
    """Font files of the system, in a fixed order: upright ones of usual weight first."""
    found = islice((file for folder in font_folders() for file in below(folder)), MOST_FONTS)
    odd = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")
    return tuple(sorted(found, key=lambda f: (sum(word in f.stem.lower() for word in odd), f.name, str(f))))


def font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft" / "Windows" / "Fonts"
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", local]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
    own = Path(os.environ.get("XDG_DATA_HOME", home / ".local" / "share"))
    return [*(Path(place) / "fonts" for place in shared if place), own / "fonts", home / ".fonts"]


def below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if Path(name).suffix.lower() in FONT_FILES and not any(word in name.lower() for word in NO_FONTS):
                yield Path(place) / name
