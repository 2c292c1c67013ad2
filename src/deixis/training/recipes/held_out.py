"""Train, select and measure on one's own machine: a split is held out, and judged by the path that users take.

``data.split`` names the split to train on, ``data.validate`` the one that is held out (``holdout``, where training is
on ``train_without_holdout``). Validation is ``predict`` and ``score`` of a small fixed part of it; what scores best is
kept, as ``best.safetensors`` to resume from and ``best_model.safetensors`` to use.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from deixis.benchmarks import open_benchmark, splits_of
from deixis.benchmarks.samples import Benchmark
from deixis.inference import finish_tracks, follow_film, prepare
from deixis.metrics.evaluate import score_opened
from deixis.predict import film_of, predict
from deixis.training.calibration import PresenceSample, calibrate_presence
from deixis.training.run import export_model
from deixis.training.sources import ClipSource, Selecting, opened_benchmark
from deixis.types import DeixisError, Expression
from deixis.weights import save

MAIN = {"expressions": "J&F", "davis": "J&F", "answers": "mAP"}  # the measure that picks the best, by protocol
WITHOUT = {"train_without_holdout": "holdout"}  # what is held out of a split, where it says so


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A split that is left out of training."""

    benchmark: str
    place: str
    split: str
    samples: int

    def opened(self) -> Benchmark:
        """The split, with the first ``samples`` expressions by the hash of their video."""
        whole = open_benchmark(self.benchmark, Path(self.place), self.split)
        videos = sorted(whole.by_video().items(), key=lambda item: hashlib.sha1(item[0].encode()).hexdigest())
        kept = [sample for _, samples in videos for sample in samples][: self.samples]
        return replace(whole, samples=tuple(kept), expected={}, counts={})


def with_split(sources: Sequence[Any], made: Selecting) -> tuple[Any, ...]:
    """The sources with ``data.split`` in place of the published one, where their benchmark has it."""
    if not made.split:
        return tuple(sources)
    own = sources[0].benchmark
    taken = (replace(s, split=made.split) if s.benchmark == own else s for s in sources)
    return tuple(dict.fromkeys(taken))  # of RefCOCO, RefCOCO+ and RefCOCOg one is left


def held_out_of(sources: Sequence[Any], data: Mapping[str, Path], made: Selecting) -> HeldOut | None:
    """The split to validate on, of the first source's benchmark; None where none is held out."""
    source = sources[0]
    split = made.validate or WITHOUT.get(made.split, "")
    place = data[source.data]
    known = splits_of(source.benchmark, place)
    for name in filter(None, (split, made.split)):
        if name not in known:
            raise DeixisError(f"{source.benchmark} has no split {name!r}; it has {', '.join(known)}")
    if not split:
        if made.calibrate:
            raise DeixisError("data.calibrate needs a split that is held out; set data.validate to its name")
        return None
    if split == (made.split or source.split):
        raise DeixisError(f"data.validate must be another split than the one trained on, got {split!r} for both")
    if split == "holdout" and (made.split or source.split) == "train":
        raise DeixisError("train holds the videos of holdout; set data.split=train_without_holdout")
    held = replace(source, split=split)
    for one in with_split(sources, made):
        if one.benchmark == source.benchmark:
            refuse_shared(held, one, str(place))
    return HeldOut(benchmark=source.benchmark, place=str(place), split=split, samples=made.validate_samples)


def refuse_shared(held: ClipSource, trained: ClipSource, place: str) -> None:
    """Raises DeixisError where a video or picture of the one split is in the other too."""
    own, others = (films_of(opened_benchmark(source, place)) for source in (held, trained))
    if own & others:
        raise DeixisError(
            f"{len(own & others)} of the {len(own)} videos or pictures of {held.split} are in {trained.split} too;"
            " set data.split to one that has none of them"
        )


def films_of(benchmark: Benchmark) -> set[tuple[str, ...]]:
    """The place of each video or picture of a split: the last two names of its path."""
    places = (s.video.frames for s in benchmark.samples)
    return {(place if isinstance(place, Path) else place[0]).parts[-2:] for place in places}


def held_out_validation(held: HeldOut | None, made: Selecting) -> dict[str, Any]:
    """What a ``Run`` needs to validate, to keep the best, and to end with a calibration."""
    if held is None:
        return {}
    export: Callable[..., None] = partial(export_with_presence, held) if made.calibrate else export_model
    return {"validate": partial(validate_held_out, held), "export_best": export_model, "export": export}


def validate_held_out(held: HeldOut, system: nn.Module) -> dict[str, float]:
    """Scores of ``predict`` and ``score`` on the held-out samples, the one that picks the best first."""
    benchmark = held.opened()
    device = str(next(system.parameters()).device)
    with tempfile.TemporaryDirectory(prefix="deixis-validate-") as folder:
        predict(benchmark, Path(folder) / "results", system, device=device)
        summary = score_opened(benchmark, Path(folder) / "results").summary
    main = MAIN[benchmark.protocol]
    found = {name: summary.get(name) for name in (main, "J", "F", "mIoU", "oIoU")}
    return {name: float(value) for name, value in found.items() if value is not None}


def export_with_presence(held: HeldOut, system: nn.Module, path: Path) -> None:
    """Calibrate presence on the held-out samples, then write the model. What is not there are other videos' objects."""
    model: Any = system
    model.config = calibrate_presence(model, f"{held.benchmark} {held.split}", partial(samples_of_benchmark, held))
    save(model, path)


def samples_of_benchmark(held: HeldOut, system: Any) -> list[PresenceSample]:
    """Presence of every held-out expression in its own video, and of one from another video that shares no word."""
    benchmark = held.opened()
    groups = list(benchmark.by_video().values())
    setup = prepare(system, device=str(next(system.parameters()).device), precision="fp32")
    found = []
    for number, samples in enumerate(groups):
        said = {word for sample in samples for word in sample.text.split()}
        others = [s.text for group in groups[number + 1 :] + groups[:number] for s in group]
        absent = [text for text in others if not said & {w for w in text.split() if len(w) > 3}][: len(samples)]
        texts = [sample.text for sample in samples] + absent
        with film_of(samples[0].video) as film:
            tracks = finish_tracks(follow_film(setup, film, [Expression(text) for text in texts]), setup)
        found += [
            PresenceSample(presence=track.presence, present=i < len(samples), half=number % 2)
            for i, track in enumerate(tracks)
        ]
    return found
