"""THE PATH: a film and expressions in, one mask track per expression out, window by window.

film --video.windows--> Clip --encode--> features --decode(features, expressions)--> Prediction --tracks--> MaskTrack

A thread decodes ahead, the network answers, another thread remembers; a window is encoded once, whatever the number
of expressions, and nothing but the tracks' RLE grows with the film's length.

A system that carries something through a film has, beside ``decode``, one or three methods. Nothing is changed in
place; the memory is the system's own affair, None at the film's start, one for each group of expressions:

    follow(maps, expressions, memory) -> (Prediction, memory)   instead of decode, window after window
    gather(maps, expressions, memory) -> memory                 window after window, in a first pass; each frame once
    conclude(memory, expressions) -> memory                     after that pass; follow then answers in a second one
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deixis import weights
from deixis.linking import Linking, Presence
from deixis.tracks import Candidates, TrackBuilder, select
from deixis.types import Clip, DeixisError, Expression, MaskTrack
from deixis.video import Film, Size, ahead, fit, normalise

AT_ONCE = 16  # expressions decoded together (our choice: bounds the memory of their masks)
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


def segment(
    film: str | Path | Film,
    expressions: str | Expression | Sequence[str | Expression],
    *,
    model: str | Path | nn.Module = "light",
    device: str = "auto",
    precision: str = "auto",
    size: int | None = None,
    threshold: float | None = None,
    linking: Linking | None = None,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[MaskTrack]:
    """The object that each expression names, in every frame of the film: one MaskTrack per expression, in order.

    film: a path, a folder of frames, or a Film (which can begin late, end early, or skip frames).
    model: a name that ``deixis models`` lists, a checkpoint file, or a system.  device: auto, cpu, cuda or mps.
    precision: fp32, bf16, or auto (bf16 where the device has it).  size: pixels of the short side that the model sees
    (default: what it was trained for).  threshold: presence below which a track stays empty (default: the model's own).
    folder: where masks and scores are kept while they grow; None keeps the finished RLE in memory.
    progress: called with the number of frames answered so far.  stop: asked after every window; True ends the film
    there. Raises DeixisError for everything that the caller can set right.
    """
    asked = as_expressions(expressions)
    source = film if isinstance(film, Film) else Film(film)
    where = choose_device(device)
    reduced = choose_precision(precision, where)
    system = model if isinstance(model, nn.Module) else weights.load(model)
    system = system.to(where).eval()
    config: Any = system.config
    linking = linking or Linking(several=getattr(config, "several", False))
    judge = Presence(
        threshold=getattr(config, "presence_threshold", 0.5) if threshold is None else threshold,
        temperature=getattr(config, "presence_temperature", 1.0),
        shift=getattr(config, "presence_shift", 0.0),
    )
    builder = TrackBuilder(asked, source.source_size, linking, folder)
    seen = model_size(source.source_size, config, size)

    def windows(overlap: int) -> Iterator[Clip]:
        return source.windows(config.window, size=seen, overlap=overlap)

    answers = film_answers(system, windows, asked, linking, where, reduced, stop)
    with ThreadPoolExecutor(1, "deixis-remember") as memory, closing(answers):
        pending: deque[Future] = deque()
        for clip, found in answers:
            pending.append(memory.submit(builder.add, found, clip.names, clip.times, clip.start))
            if len(pending) > 2:
                pending.popleft().result()
            if progress is not None:
                progress(clip.start + len(clip))
            if stop is not None and stop():
                break
        for future in pending:
            future.result()
    return builder.finish(judge)


def film_answers(
    system: Any,
    windows: Callable[[int], Iterator[Clip]],
    expressions: Sequence[Expression],
    linking: Linking,
    device: torch.device,
    reduced: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Generator[tuple[Clip, list[Candidates]]]:
    """Every window of a film, in order, with the candidates of every expression.

    windows: opens the film anew, its windows overlapping by so many frames.  stop: asked after every window of a first
    pass; True ends that one there.
    """
    groups = in_groups(expressions)
    carried: list[Any] = [None] * len(groups)
    if hasattr(system, "gather"):
        seen = 0  # frames; a film's last window is filled up with some that were seen, which must not count twice
        with closing(ahead(windows(0))) as clips:
            for clip in clips:
                carried = _gather(system, without_first(clip, seen - clip.start), groups, carried, device, reduced)
                seen = clip.start + len(clip)
                if stop is not None and stop():
                    break
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            carried = [system.conclude(memory, group) for group, memory in zip(groups, carried, strict=True)]
    with closing(ahead(windows(linking.overlap))) as clips:
        for clip in clips:
            found, carried = _follow(system, clip, groups, carried, linking, device, reduced)
            yield clip, found


def without_first(clip: Clip, count: int) -> Clip:
    return replace(
        clip, frames=clip.frames[count:], names=clip.names[count:], times=clip.times[count:], start=clip.start + count
    )


def in_groups(expressions: Sequence[Expression]) -> list[Sequence[Expression]]:
    return [expressions[first : first + AT_ONCE] for first in range(0, len(expressions), AT_ONCE)]


@torch.inference_mode()
def answer(
    system: Any,
    clip: Clip,
    expressions: Sequence[Expression],
    linking: Linking,
    device: torch.device,
    reduced: bool = False,
) -> list[Candidates]:
    """The candidates of one clip by itself for every expression; it is encoded once. reduced: compute in bf16."""
    found: list[Candidates] = []
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        maps, size, padded = _encode(system, clip, device)
        for group in in_groups(expressions):
            found += select(system.decode(maps, group), linking, size, padded)
    return found


@torch.inference_mode()
def _follow(
    system: Any, clip: Clip, groups: Sequence[Sequence[Expression]], carried: Sequence[Any], linking: Linking,
    device: torch.device, reduced: bool,
) -> tuple[list[Candidates], list[Any]]:  # fmt: skip
    """As ``answer``, and what each group's memory has become, where the system has one."""
    if not hasattr(system, "follow"):
        return answer(system, clip, [e for group in groups for e in group], linking, device, reduced), list(carried)
    found: list[Candidates] = []
    kept = []
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        maps, size, padded = _encode(system, clip, device)
        for group, before in zip(groups, carried, strict=True):
            prediction, memory = system.follow(maps, group, before)
            found += select(prediction, linking, size, padded)
            kept.append(memory)
    return found, kept


@torch.inference_mode()
def _gather(
    system: Any, clip: Clip, groups: Sequence[Sequence[Expression]], carried: Sequence[Any], device: torch.device,
    reduced: bool,
) -> list[Any]:  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        maps, _, _ = _encode(system, clip, device)
        return [system.gather(maps, group, memory) for group, memory in zip(groups, carried, strict=True)]


def _encode(system: Any, clip: Clip, device: torch.device) -> tuple[Any, Size, Size]:
    """(the system's maps of a clip, the picture's size, the same with its padding)."""
    config = system.config
    frames, padding = normalise(clip, mean=config.mean, std=config.std, multiple=config.multiple, device=device)
    size, padded = (clip.frames.shape[-2], clip.frames.shape[-1]), (frames.shape[-2], frames.shape[-1])
    return system.encode(frames, padding), size, padded


def as_expressions(expressions: str | Expression | Sequence[str | Expression]) -> list[Expression]:
    """One or many, text or Expression, as a list of Expressions. Raises DeixisError when there is none."""
    many = [expressions] if isinstance(expressions, str | Expression) else list(expressions)
    if not many:
        raise DeixisError("at least one expression is needed; say what to look for")
    return [e if isinstance(e, Expression) else Expression(e) for e in many]


def model_size(source: Size, config: Any, short_side: int | None = None) -> Size:
    """(height, width) at which the model sees a film of ``source`` size; ``short_side`` replaces the config's.

    A system whose config says ``square`` sees every film as a square of a multiple of its ``multiple``.
    """
    if short_side is not None and not config.multiple <= short_side <= 4096:
        raise DeixisError(
            f"the size must lie between {config.multiple} and 4096 pixels of short side, got {short_side}"
        )
    if getattr(config, "square", False):
        side = round((short_side or config.short_side) / config.multiple) * config.multiple
        return side, side
    if short_side is None:
        return fit(source, config.short_side, config.long_side, config.multiple)
    long_side = math.ceil(config.long_side * short_side / config.short_side)
    return fit(source, short_side, long_side, config.multiple)


def choose_device(name: str) -> torch.device:
    """auto: cuda, else mps, else cpu. Raises DeixisError for an unknown or absent device."""
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise DeixisError(f"unknown device {name!r}; expected one of {', '.join(DEVICES)}")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(device for device, is_there in there.items() if is_there))
    if not there[kind]:
        raise DeixisError(f"this machine has no {kind} device that PyTorch can use; choose --device cpu or auto")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise DeixisError(f"unknown device {name!r}; expected one of {', '.join(DEVICES)}, or cuda:N") from error


def choose_precision(name: str, device: torch.device) -> bool:
    """Whether to compute in bf16. auto: on a GPU, and on a CPU that multiplies bf16 itself (elsewhere it is slower)."""
    if name not in PRECISIONS:
        raise DeixisError(f"unknown precision {name!r}; expected one of {', '.join(PRECISIONS)}")
    return name == "bf16" or (name == "auto" and (device.type == "cuda" or (device.type == "cpu" and cpu_has_bf16())))


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products; False where this PyTorch cannot tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    can = ask() if ask is not None else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
