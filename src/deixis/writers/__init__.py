"""Masks out, a file a format: overlay film, RLE JSON, PNG folders, COCO JSON, matte films; and a contact sheet.

T frames, H W pixels of the source. Pictures are RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from deixis.tables import FORMAT_FILES
from deixis.types import DeixisError, MaskTrack
from deixis.writers.coco_reader import read_coco
from deixis.writers.contact_sheet import ContactSheet
from deixis.writers.format import Format
from deixis.writers.output import Output, VideoSource
from deixis.writers.painter import Painter, draw
from deixis.writers.rle import read_rle

__all__ = ["FORMATS", "Format", "Output", "check_formats", "read_coco", "read_rle", "write"]


FORMATS: dict[str, Format] = {name: import_module(f"deixis.writers.{name}").FORMAT for name in FORMAT_FILES}
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
