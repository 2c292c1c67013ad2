"""The labelled frames of a folder of one's own, as videos with masks and sentences."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from deixis.benchmarks.folder import FolderTruth, open_split
from deixis.benchmarks.frames import read_frames
from deixis.benchmarks.samples import Sample, VideoEntry
from deixis.files import cache_path
from deixis.synthetic.scene import Sentence, SyntheticVideo
from deixis.training.augment import resize_video
from deixis.types import DeixisError, reason_of
from deixis.video import Video

log = logging.getLogger(__name__)

VALID_SIDE = 360  # pixels of short side at which held-out films are judged while training (our choice)


# --- films with their labelled frames --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LabelledVideos:
    """A split, each film cut down to its labelled frames, as pictures, with its sentences."""

    truth: FolderTruth
    films: tuple[tuple[VideoEntry, tuple[Sample, ...]], ...]


@lru_cache(maxsize=4)  # once a process
def labelled_videos(place: str, split: str, skip_bad: bool = False) -> LabelledVideos:
    benchmark = open_split(Path(place), split, skip_bad)
    assert isinstance(benchmark.truth, FolderTruth)
    films = []
    for video_id, samples in benchmark.by_video().items():
        names = tuple(benchmark.truth.labels[video_id].files)
        whole = samples[0].video
        video = VideoEntry(id=video_id, names=names, frames=_pictures(whole, names))
        films.append((video, tuple(replace(sample, video=video, scored=None) for sample in samples)))
    return LabelledVideos(benchmark.truth, tuple(films))


def _pictures(video: VideoEntry, names: Sequence[str]) -> tuple[Path, ...]:
    """The picture of each named frame; those of a film file are unpacked to the cache, once."""
    if isinstance(video.frames, tuple):
        of_name = dict(zip(video.names, video.frames, strict=True))
        return tuple(of_name[name] for name in names)
    key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]
    folder = cache_path(video.frames, f"frames-{key}")
    if not folder.is_dir():
        log.info("unpacking %d frames of %s to %s", len(names), video.frames, folder)
        _unpack(video.frames, {int(name): name for name in names}, folder)
    return tuple(folder / f"{name}.jpg" for name in names)


def _unpack(film: Path, wanted: Mapping[int, str], folder: Path) -> None:
    half = folder.with_name(f"{folder.name}.{os.getpid()}.half")
    try:
        half.mkdir(parents=True, exist_ok=True)
        for frame in Video(film).frames():
            if frame.index in wanted:
                picture = cv2.cvtColor(frame.pixels(), cv2.COLOR_RGB2BGR)
                whole, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
                assert whole
                (half / f"{wanted[frame.index]}.jpg").write_bytes(data.tobytes())
        if not folder.is_dir():  # another process may have been quicker
            half.rename(folder)
    except OSError as error:
        raise DeixisError(
            f"frames of {film} cannot be kept in {folder.parent} ({reason_of(error)}); name another place in"
            " DEIXIS_CACHE"
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def labelled_video(
    truth: FolderTruth, video: VideoEntry, samples: Sequence[Sample], indices: Sequence[int]
) -> tuple[SyntheticVideo, tuple[str, ...]]:
    """Labelled frames of a film with every labelled object, and the objects' numbers.

    A sentence whose objects do not all show in these frames is left out; one that names nothing stays.
    """
    truths = [truth(video, index) for index in indices]
    ids = tuple(sorted({key for one in truths for key in one.masks}, key=int))
    masks = np.zeros((len(truths), len(ids), *truths[0].size), bool)
    void = np.zeros((len(truths), *truths[0].size), bool)
    for t, one in enumerate(truths):
        for key, mask in one.masks.items():
            masks[t, ids.index(key)] = mask
        if one.void is not None:
            void[t] = one.void
    sentences = tuple(
        Sentence(s.text, s.tags[0] if s.tags else "written", tuple(ids.index(key) for key in s.objects or ()))
        for s in samples
        if set(s.objects or ()) <= set(ids)
    )
    return SyntheticVideo(read_frames(video, indices), masks, sentences, ignore=void, name=video.id), ids


def held_out_videos(place: str, frames: int, skip_bad: bool) -> Iterator[SyntheticVideo]:
    """The first labelled frames of every held-out film."""
    source = labelled_videos(place, "valid", skip_bad)
    for video, samples in source.films:
        film, _ = labelled_video(source.truth, video, samples, range(min(frames, len(video.names))))
        height, width = film.frames.shape[1:3]
        scale = VALID_SIDE / min(height, width)
        yield resize_video(film, (round(height * scale), round(width * scale))) if scale < 1 else film
