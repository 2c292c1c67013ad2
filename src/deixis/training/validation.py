"""Validation while training, on generated videos that were held out: ``segment``, the path that users take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from deixis.synthetic.scene import SyntheticVideo
from deixis.training.calibration import PresenceSample, calibrate_presence
from deixis.training.generated import WorldData, generated_video
from deixis.training.measure import evaluate_films
from deixis.training.small_films import SmallFilms, small_film, spread
from deixis.weights import save


def validate_generated(
    data: WorldData,
    system: nn.Module,
    words: Callable[[int, SyntheticVideo], tuple[str, ...]] | None = None,
) -> dict[str, float]:
    """On held-out films, by ``segment``: share of right objects and mean overlap, in all and by kind of sentence.

    words: texts instead of a film's own (by its number), to find what the words are worth.
    """
    hits: dict[str, list[float]] = defaultdict(list)
    device = str(next(system.parameters()).device)
    films = (generated_video(data, "valid_u", index) for index in range(data.held_out_films))
    for one in evaluate_films(system, films, words=words, precision="fp32", device=device):
        for kind in ("", f"_{one.kind}"):
            hits[f"right{kind}"].append(float(one.right))
            hits[f"overlap{kind}"].append(one.overlap)
    return {name: float(np.mean(values)) for name, values in sorted(hits.items(), key=lambda item: item[0] != "right")}


# --- presence, at the end --------------------------------------------------------------------------------------------

CALIBRATION_FILMS = 1000  # number of the first held-out film of the calibration: none of the validation's


def export_world(data: WorldData, system: nn.Module, path: Path) -> None:
    """Calibrate presence on held-out films, of which half are used to check it, and write the model."""
    export_with_films(data.calibration_films, lambda i: generated_video(data, "valid_u", i, 0.5), system, path)


def export_small_films(films: SmallFilms, system: nn.Module, path: Path) -> None:
    """The same for the films of SLVP's small recipes."""

    def film(number: int) -> SyntheticVideo:
        return spread(small_film(films, "valid_u", number, 0.5), films.slow)

    export_with_films(films.calibration, film, system, path)


def export_with_films(count: int, film: Callable[[int], SyntheticVideo], system: nn.Module, path: Path) -> None:
    """count: of the films to calibrate on; 0: presence stays as it is.  film: the held-out film of a number."""
    model: Any = system
    if count:
        model.config = calibrate_presence(model, "held-out generated films", partial(samples_of_films, count, film))
    save(model, path)


def samples_of_films(count: int, film: Callable[[int], SyntheticVideo], system: Any) -> list[PresenceSample]:
    """Presence of sentences whose objects are, and are not, in films of their own; every second film checks."""
    found = []
    device = str(next(system.parameters()).device)
    for half in (0, 1):
        films = (film(CALIBRATION_FILMS + i) for i in range(half, count, 2))
        for one in evaluate_films(system, films, precision="fp32", device=device):
            found.append(PresenceSample(presence=one.presence, present=one.present, half=half))
    return found
