"""Masks out, a file a format: overlay film, RLE JSON, PNG folders, COCO JSON, matte films; and a contact sheet.

T frames, H W pixels of the source. Pictures are RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deixis.types import DeixisError, MaskTrack
from deixis.writers.coco import write_coco
from deixis.writers.contact_sheet import ContactSheet
from deixis.writers.matte import mattes
from deixis.writers.output import Output, VideoSource
from deixis.writers.overlay import Overlay
from deixis.writers.painter import Painter, draw
from deixis.writers.png import write_pngs
from deixis.writers.rle import read_rle, write_rle

__all__ = ["FORMATS", "Output", "check_formats", "read_rle", "write"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write tracks.

    Attributes:
        item: The file or folder below OUT.
        choice: What the web page calls it where it is chosen.
        link: What the page calls it where it is downloaded (a folder as a zip).
        write: Writes it from the tracks alone.
        paint: Makes what draws it in the one pass over the frames.
    """

    item: str
    choice: str
    link: str
    write: Callable[[Path, VideoSource, Sequence[MaskTrack], Mapping[str, Any], bool], None] | None = None
    paint: Callable[[Path, VideoSource, Sequence[MaskTrack]], Sequence[Painter]] | None = None


FORMATS: dict[str, Format] = {  # one line a format
    "overlay": Format(
        item="overlay.mp4", choice="Overlay film", link="Overlay film",
        paint=lambda path, film, tracks: [Overlay(path, film, tracks)],
    ),
    "png": Format(
        item="masks", choice="Masks as pictures", link="Masks, PNG",
        write=lambda path, film, tracks, model, complete: write_pngs(path, tracks),
    ),
    "rle": Format(
        item="masks.json", choice="Masks as JSON", link="Masks, RLE",
        write=lambda path, film, tracks, model, complete: write_rle(path, film, tracks, model=model, complete=complete),
    ),
    "matte": Format(item="matte", choice="Film with alpha", link="Matte films", paint=mattes),
    "coco": Format(
        item="coco", choice="COCO and YouTube-VIS", link="COCO, YouTube-VIS",
        write=lambda path, film, tracks, model, complete: write_coco(path, film, tracks, model=model),
    ),
}  # fmt: skip
FIRST = "rle"  # is written before all others: small, and everything can be made of it again


def check_formats(text: str) -> tuple[str, ...]:
    """Parse a list of output formats.

    Args:
        text: Names with commas between, such as "overlay,rle".

    Returns:
        The names, each once.

    Raises:
        DeixisError: For an unknown name, or none.

    Example:
        >>> from deixis.writers import check_formats
        >>> check_formats("rle, png")
        ('rle', 'png')
    """
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise DeixisError(f"unknown format {(unknown or [text])[0]!r}; expected {', '.join(FORMATS)}, commas between")
    return formats


def write(
    output: Output,
    film: VideoSource,
    tracks: Sequence[MaskTrack],
    formats: Sequence[str],
    *,
    model: Mapping[str, Any],
    complete: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write tracks in some formats, and always a contact sheet.

    Args:
        output: An open `Output`.
        film: The video that the tracks are of.
        tracks: One track per expression.
        formats: Names of `FORMATS`.
        model: What the JSON states of the model.
        complete: False when the video was not processed to its end.
        progress: Called with the number of frames drawn.

    Example:
        >>> from pathlib import Path
        >>> import deixis
        >>> from deixis.writers import Output, write
        >>> video = deixis.Video("film.mp4")
        >>> tracks = deixis.segment(video, "the red square")
        >>> with Output(Path("out")) as output:
        ...     write(output, video, tracks, ["png", "rle"], model={"name": "light"})
        >>> sorted(path.name for path in output.paths)
        ['contact_sheet.png', 'masks', 'masks.json']
    """
    names = sorted((name for name in FORMATS if name in formats), key=lambda name: name != FIRST)
    chosen = [FORMATS[name] for name in names]
    for form in chosen:
        if form.write is not None:
            with output.item(form.item) as path:
                form.write(path, film, tracks, model, complete)
    with ExitStack() as items:  # one pass over the film serves every kind of picture
        painters: list[Painter] = [ContactSheet(items.enter_context(output.item("contact_sheet.png")), tracks)]
        for form in chosen:
            if form.paint is not None:
                painters += form.paint(items.enter_context(output.item(form.item)), film, tracks)
        draw(film, tracks, painters, progress)
