"""THE PATH: a film and expressions in, one mask track per expression out, window by window.

film --video.windows--> Clip --encode--> features --decode(features, expressions)--> Prediction --> MaskTrack

Predictions become tracks by the rule of the system's paper (``selection``), or linked over the whole film (``tracks``).

A thread decodes ahead, the network predicts, another thread stores; a window is encoded once, whatever the number
of expressions, and nothing but the tracks' RLE grows with the film's length.

A system that carries something through a film has, beside ``decode``, one or three methods. Nothing is changed in
place; the memory is the system's own affair, None at the film's start, one for each group of expressions:

    step(maps, expressions, memory) -> (Prediction, memory)   instead of decode, window after window
    collect(maps, expressions, memory) -> memory                window after window, in a first pass; each frame once
    finalize(memory, expressions) -> memory                     after that pass; step then answers in a second one
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from deixis import weights
from deixis.devices import choose_device, choose_precision
from deixis.linking import Linking, Presence
from deixis.selection import SELECTIONS, Enlarge, PublishedTracks, choose_queries, probabilities
from deixis.sentences import as_expressions, as_list, as_read, remarks
from deixis.tracks import TrackBuilder, select
from deixis.types import (
    Accelerated,
    Clip,
    DeixisError,
    EncodingSystem,
    Expression,
    MaskTrack,
    Prediction,
    RecurrentSystem,
    Size,
    System,
    SystemConfig,
    TwoPassSystem,
)
from deixis.video import Video, ahead, fit, normalise
from deixis.waiting import check_room, require_room

LARGEST_SIZE = 4096  # pixels of the short side that a model may get (our choice)
AT_ONCE = 16  # expressions decoded together (our choice: bounds the memory of their masks)
Read = Callable[[Prediction, Size, Size, int], Sequence[Any]]  # see ``predict_video``


def segment(
    video: str | Path | Video,
    expressions: str | Expression | Sequence[str | Expression],
    *,
    model: str | Path | nn.Module = "light",
    device: str = "auto",
    precision: str = "auto",
    size: int | None = None,
    threshold: float | None = None,
    selection: str | None = None,
    linking: Linking | None = None,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[MaskTrack]:
    """Segment, in every frame of a video, the object that each expression refers to.

    Args:
        video: Path of a video or of a folder of frames, or an open `Video`, which can begin late, end early or skip
            frames.
        expressions: One expression or several; each yields one track.
        model: Name listed by `deixis models`, path of a checkpoint, or a system.
        device: "auto", "cpu", "cuda" (or "cuda:1") or "mps".
        precision: "fp32", "bf16", or "auto": bf16 where the device has it.
        size: Short side in pixels at which frames are encoded. Default: the one that the model was trained for.
        threshold: Presence probability below which a track is left empty. Default: the model's own; a model whose
            presence was never calibrated always answers.
        selection: "official", the rule of the model's paper, or "linked", one path over the whole video. Default: the
            model's own.
        linking: The numbers of the linked selection. Default: `Linking()`.
        folder: Where masks and scores are spooled while they grow. None keeps the finished RLE in memory.
        progress: Called with the number of frames processed so far.
        stop: Checked after every window; return True to end the video there.

    Returns:
        One `MaskTrack` per expression, in order.

    Raises:
        DeixisError: For anything the caller can fix: a missing file, an unknown model, an empty expression.

    Example:
        >>> import deixis
        >>> tracks = deixis.segment("film.mp4", ["the red square", "the person on the left"])
        >>> len(tracks), len(tracks[0])  # expressions, frames
        (2, 12)
        >>> tracks[0].masks[3].shape  # (H, W) bool, at source size
        (96, 160)
    """
    typed = as_list(expressions)
    wanted = as_expressions(typed)
    source = video if isinstance(video, Video) else Video(video)
    setup = prepare(
        model, device=device, precision=precision, threshold=threshold, selection=selection, linking=linking, size=size
    )
    tracks = follow_film(setup, source, as_read(typed, wanted), folder=folder, progress=progress, stop=stop)
    return [replace(track, expression=e) for track, e in zip(finish_tracks(tracks, setup), wanted, strict=True)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """Which model predicts, where, and by which rule its queries become masks.

    presence_rule: when an object counts as present.  linking: how candidates are linked over the film; None: the
    published rule (``deixis.selection``).  several: show every query above the threshold.  over: what the published
    rule ranks queries over.  size: pixels of the short side that the model gets; None: the model's own.
    """

    system: System
    device: torch.device
    reduced: bool
    presence_rule: Presence
    linking: Linking | None = None
    several: bool = False
    over: Literal["window", "film"] = "window"
    size: int | None = None

    @property
    def selection(self) -> str:
        return "official" if self.linking is None else "linked"

    @property
    def how(self) -> Enlarge:
        return self.system.config.enlarge


def prepare(
    model: str | Path | nn.Module,
    *,
    device: str = "auto",
    precision: str = "auto",
    threshold: float | None = None,
    selection: str | None = None,
    linking: Linking | None = None,
    size: int | None = None,
) -> Setup:
    """The setup that these choices mean; see ``segment``. Raises DeixisError for a choice that cannot be had."""
    check_choices(device=device, precision=precision, threshold=threshold, selection=selection, size=size)
    where = choose_device(device)
    reduced = choose_precision(precision, where)
    module = model if isinstance(model, nn.Module) else weights.load(model)
    system = cast(System, module.to(where).eval())
    if where.type == "cpu" and isinstance(system, Accelerated):
        system.accelerate()
    several = system.config.several
    linked = (selection or ("linked" if linking is not None else system.config.selection)) == "linked"
    return Setup(
        system=system,
        device=where,
        reduced=reduced,
        presence_rule=Presence.of(system.config, threshold),
        linking=(linking or Linking(several=several)) if linked else None,
        several=several,
        size=size,
    )


def check_choices(
    *,
    device: str = "auto",
    precision: str = "auto",
    threshold: float | None = None,
    selection: str | None = None,
    size: int | None = None,
    model: str | Path | None = None,
) -> None:
    """Raise DeixisError for a choice that cannot be had on this machine, before a model or a film is read.

    model: a name or a checkpoint file, whose header alone is read.
    """
    choose_precision(precision, choose_device(device))
    if threshold is not None:
        Presence(threshold=threshold)
    if selection not in (None, *SELECTIONS):
        raise DeixisError(f"unknown selection {selection!r}; expected one of {', '.join(SELECTIONS)}")
    file = None if model is None else weights.find(model)
    stated = {} if file is None else weights.read_header(file)[0].get("config", {})
    check_size(size, stated.get("multiple", 1) if isinstance(stated, dict) else 1)


def check_size(size: int | None, multiple: Any = 1) -> None:
    """Raise DeixisError unless a film can be encoded at this short side."""
    least = multiple if isinstance(multiple, int) else 1
    if size is not None and not least <= size <= LARGEST_SIZE:
        raise DeixisError(f"the size must lie between {least} and {LARGEST_SIZE} pixels of short side, got {size}")


def follow_film(
    setup: Setup,
    film: Video,
    expressions: Sequence[Expression],
    *,
    folder: Path | None = None,
    soft: bool = False,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrackBuilder | PublishedTracks:
    """All windows of a film, kept by a builder of tracks; ``soft``: with what its ``soft`` needs."""
    config = setup.system.config
    shape = model_size(film.source_size, config, setup.size)
    builder: Any
    if setup.linking is None:
        rule = setup.presence_rule
        builder = PublishedTracks(expressions, film.source_size, rule, how=setup.how, soft=soft, folder=folder)
    else:
        builder = TrackBuilder(expressions, film.source_size, setup.linking, folder, soft)
    check_room(film.length, builder.masks_that_wait, shape, builder.waiting[1])

    def windows(overlap: int) -> Iterator[Clip]:
        return film.windows(config.window, size=shape, overlap=overlap, fill=setup.linking is not None)

    ranked = None
    if setup.linking is None and setup.over == "film" and not (film.length and film.length <= config.window):
        ranked = rank_over_film(setup, windows, expressions)

    def read(prediction: Prediction, size: Size, padded: Size, first: int) -> Sequence[Any]:
        if setup.linking is not None:
            return select(prediction, setup.linking, size, padded)
        queries = None if ranked is None else ranked[first : first + len(prediction.scores)]
        return choose_queries(prediction, setup.presence_rule, size, padded, several=setup.several, queries=queries)

    context = nullcontext() if ranked is None else every_query(setup.system)
    answers = predict_video(setup.system, windows, expressions, read, setup.device, setup.reduced, stop,
                           overlap=setup.linking.overlap if setup.linking else 0)  # fmt: skip
    with context, ThreadPoolExecutor(1, "deixis-store") as memory, closing(answers):
        pending: deque[Future] = deque()
        for clip, found in answers:
            pending.append(memory.submit(builder.add, found, clip.names, clip.times, clip.start))
            if len(pending) > 2 or clip.start == 0:
                pending.popleft().result()
            if clip.start == 0:
                require_room(builder.waiting[0], len(clip), film.length, builder.waiting[1])
            if progress is not None:
                progress(clip.start + len(clip))
            if stop is not None and stop():
                break
        for future in pending:
            future.result()
    return builder


def finish_tracks(builder: TrackBuilder | PublishedTracks, setup: Setup) -> list[MaskTrack]:
    """The tracks of a film whose windows are all there."""
    return builder.finish(setup.presence_rule) if isinstance(builder, TrackBuilder) else builder.finish()


def rank_over_film(
    setup: Setup, windows: Callable[[int], Iterator[Clip]], expressions: Sequence[Expression]
) -> list[int] | None:
    """For each expression, the query with the greatest mean probability over a film's frames: a first pass.

    None where there is nothing to rank: the system has one query, or has gone through the whole film before it answers.
    """
    if isinstance(setup.system, TwoPassSystem) or setup.several:
        return None
    sums: list[Any] = [0.0] * len(expressions)

    def read(prediction: Prediction, size: Size, padded: Size, first: int) -> Sequence[Any]:
        return list(probabilities(prediction).cpu().double().sum(1).numpy())  # (Q,) each

    with every_query(setup.system):
        clips = predict_video(setup.system, windows, expressions, read, setup.device, setup.reduced)
        with closing(clips):
            for _, found in clips:
                if len(found[0]) == 1:
                    return None
                sums = [total + own for total, own in zip(sums, found, strict=True)]
    return [int(total.argmax()) for total in sums]


@contextmanager
def every_query(system: System) -> Iterator[None]:
    """Within it the system returns all its queries in their order, where its config keeps the best few only."""
    config = system.config
    if getattr(config, "kept_queries", None) is not None:
        system.config = replace(config, kept_queries=None)
    try:
        yield
    finally:
        system.config = config


def predict_video(
    system: System,
    windows: Callable[[int], Iterator[Clip]],
    expressions: Sequence[Expression],
    read: Read,
    device: torch.device,
    reduced: bool = False,
    stop: Callable[[], bool] | None = None,
    overlap: int = 0,
) -> Generator[tuple[Clip, list[Any]]]:
    """Every window of a film, in order, with what ``read`` makes of its predictions: an entry an expression.

    windows: opens the film anew, its windows overlapping by so many frames.  read: a prediction, the size of the
    picture without and with padding, and the number of the first expression -> entries.  stop: called after every
    window of a first pass; True ends that one there.
    """
    groups = in_groups(expressions)
    carried: list[Any] = [None] * len(groups)
    if isinstance(system, TwoPassSystem):
        done = 0  # frames; a film's last window may be filled up with some that are done, which must not count twice
        with closing(ahead(windows(0))) as clips:
            for clip in clips:
                carried = _collect(system, without_first(clip, done - clip.start), groups, carried, device, reduced)
                done = clip.start + len(clip)
                if stop is not None and stop():
                    break
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            carried = [system.finalize(memory, group) for group, memory in zip(groups, carried, strict=True)]
    with closing(ahead(windows(overlap))) as clips:
        for clip in clips:
            found, carried = _step(system, clip, groups, carried, read, device, reduced)
            yield clip, found


def without_first(clip: Clip, count: int) -> Clip:
    return replace(
        clip, frames=clip.frames[count:], names=clip.names[count:], times=clip.times[count:], start=clip.start + count
    )


def in_groups(expressions: Sequence[Expression]) -> list[Sequence[Expression]]:
    return [expressions[first : first + AT_ONCE] for first in range(0, len(expressions), AT_ONCE)]


@torch.inference_mode()
def predict_clip(
    system: System, clip: Clip, expressions: Sequence[Expression], read: Read, device: torch.device,
    reduced: bool = False, wanted: Sequence[int] | None = None,
) -> list[Any]:  # fmt: skip
    """What ``read`` makes of one clip by itself, for every expression; the clip is encoded once.

    reduced: compute in bf16.  wanted: the frames that masks are wanted of (A2D, JHMDB), in 0..T-1; None: all.
    """
    found: list[Any] = []
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        maps, size, padded = _encode(system, clip, device, wanted)
        rest = wanted if wanted is not None and frames_of(maps) != len(wanted) else None
        for group in in_groups(expressions):
            found += read(system.decode(maps, group, rest), size, padded, len(found))
    return found


def frames_of(maps: Any) -> int | None:
    """How many frames a system's maps hold: all of the clip, or, where its backbone alone gets all, the wanted ones."""
    padding = getattr(maps, "padding", None)
    return None if padding is None else padding.shape[1]


@torch.inference_mode()
def _step(
    system: System, clip: Clip, groups: Sequence[Sequence[Expression]], carried: Sequence[Any], read: Read,
    device: torch.device, reduced: bool,
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """As ``predict_clip``, and what each group's memory has become, where the system has one."""
    if not isinstance(system, RecurrentSystem):
        return predict_clip(system, clip, [e for group in groups for e in group], read, device, reduced), list(carried)
    found, kept = list[Any](), list[Any]()
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        maps, size, padded = _encode(system, clip, device)
        for group, before in zip(groups, carried, strict=True):
            prediction, memory = system.step(maps, group, before)
            found += read(prediction, size, padded, len(found))
            kept.append(memory)
    return found, kept


@torch.inference_mode()
def _collect(
    system: TwoPassSystem, clip: Clip, groups: Sequence[Sequence[Expression]], carried: Sequence[Any],
    device: torch.device, reduced: bool,
) -> list[Any]:  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        maps, _, _ = _encode(system, clip, device)
        return [system.collect(maps, group, memory) for group, memory in zip(groups, carried, strict=True)]


def _encode(
    system: EncodingSystem, clip: Clip, device: torch.device, wanted: Sequence[int] | None = None
) -> tuple[Any, Size, Size]:
    """(the system's maps of a clip, the picture's size, the same with its padding)."""
    config = system.config
    frames, padding = normalise(clip, mean=config.mean, std=config.std, multiple=config.multiple, device=device)
    size, padded = (clip.frames.shape[-2], clip.frames.shape[-1]), (frames.shape[-2], frames.shape[-1])
    maps = system.encode(frames, padding) if wanted is None else system.encode(frames, padding, wanted)
    return maps, size, padded


def remarks_on(sentences: Iterable[str], model: str | Path, several: bool = False) -> list[str]:
    """How a model takes sentences, as notes for its user, a line each; see ``sentences.remarks``."""
    known, file = weights.KNOWN.get(str(model)), weights.find(model)
    language = None if known is None else known.language
    if file is not None:
        several = several or bool(weights.read_header(file)[0].get("config", {}).get("several", False))
    return [line for text in sentences for line in remarks(text, language=language, several=several)]


def model_size(source: Size, config: SystemConfig, short_side: int | None = None) -> Size:
    """(height, width) at which a film of ``source`` size is encoded; ``short_side`` replaces the config's.

    A system whose config says ``square`` encodes every film as a square of a multiple of its ``multiple``.
    """
    check_size(short_side, config.multiple)
    if config.square:
        side = round((short_side or config.short_side) / config.multiple) * config.multiple
        return side, side
    if short_side is None:
        return fit(source, config.short_side, config.long_side, config.multiple)
    long_side = math.ceil(config.long_side * short_side / config.short_side)
    return fit(source, short_side, long_side, config.multiple)
