"""Masks out: overlay film, PNG folders, RLE JSON, matte films, contact sheet.

Everything is made in a hidden folder beside OUT and moved into place when it is whole (``Output``). T frames, H W
pixels of the source. Pictures are RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from deixis.types import DeixisError, MaskTrack
from deixis.writers.contact_sheet import ContactSheet
from deixis.writers.matte import Matte
from deixis.writers.output import Output, Source, slug
from deixis.writers.overlay import Overlay
from deixis.writers.painter import Painter, draw
from deixis.writers.png import write_pngs
from deixis.writers.rle import read_rle, write_rle

__all__ = ["FORMATS", "Output", "check_formats", "read_rle", "write"]

FORMATS = ("overlay", "png", "rle", "matte")


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
    film: Source,
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
        >>> video = deixis.Film("film.mp4")
        >>> tracks = deixis.segment(video, "the red square")
        >>> with Output(Path("out")) as output:
        ...     write(output, video, tracks, ["png", "rle"], model={"name": "light"})
        >>> sorted(path.name for path in output.paths)
        ['contact_sheet.png', 'masks', 'masks.json']
    """
    if "rle" in formats:
        with output.item("masks.json") as path:
            write_rle(path, film, tracks, model=model, complete=complete)
    if "png" in formats:
        with output.item("masks") as path:
            write_pngs(path, tracks)
    with ExitStack() as items:  # one pass over the film serves every kind of picture
        painters: list[Painter] = [ContactSheet(items.enter_context(output.item("contact_sheet.png")), tracks)]
        if "overlay" in formats:
            painters.append(Overlay(items.enter_context(output.item("overlay.mp4")), film, tracks))
        if "matte" in formats:
            folder = items.enter_context(output.item("matte"))
            folder.mkdir()
            painters += [Matte(folder / f"{slug(t.expression, i)}.mov", film, i) for i, t in enumerate(tracks)]
        draw(film, tracks, painters, progress)
