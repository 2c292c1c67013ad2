"""Validation while training, on generated videos that were held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.metrics.choice import right_object
from deixis.synthetic.scene import SyntheticVideo
from deixis.training.calibration import PresenceSample, calibrate_presence
from deixis.training.clips import TrainingClip, collate
from deixis.training.generated import WorldData, generated_video
from deixis.training.measure import answers
from deixis.training.small_films import SmallFilms, small_film, spread
from deixis.types import Batch, Expression, Target
from deixis.weights import save


def best_masks(model: Any, batch: Batch, expressions: Sequence[Expression]) -> Tensor:
    """Logits (K, T, h, w): of each expression of one clip, the masks of the query with the best score."""
    prediction = model.decode(model.encode(batch.frames, batch.padding), expressions)
    best = prediction.scores.sigmoid().mean(1).argmax(1)  # (K,)
    return prediction.masks[torch.arange(len(best)), :, best]


def validate_generated(
    data: WorldData,
    system: nn.Module,
    predict: Callable[[Any, Batch, Sequence[Expression]], Tensor] = best_masks,
) -> dict[str, float]:
    """On held-out films: share of right objects and mean overlap, in all and by kind of sentence.

    predict: logits (K, T, h, w) of K expressions of one clip.
    """
    hits: dict[str, list[float]] = defaultdict(list)
    model: Any = system
    device = next(system.parameters()).device
    for index in range(data.held_out_films):
        film = generated_video(data, "valid_u", index)
        frames = torch.from_numpy(np.ascontiguousarray(film.frames)).permute(0, 3, 1, 2)
        nothing = Target(
            torch.zeros(len(frames), 1, *data.size, dtype=torch.bool), torch.zeros(len(frames), 1, 4),
            torch.zeros(len(frames), 1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool),
        )  # fmt: skip
        batch = collate(model.config, [(TrainingClip(frames, Expression("-"), nothing), data.size)]).to(device)
        chosen = predict(model, batch, [Expression(s.text) for s in film.sentences])  # (K, T, h, w)
        masks = (F.interpolate(chosen, size=data.size, mode="bilinear") > 0).cpu().numpy()
        for mask, sentence in zip(masks, film.sentences, strict=True):
            right, overlap = right_object(mask, film.masks, sentence.objects)
            for kind in ("", f"_{sentence.kind}"):
                hits[f"right{kind}"].append(float(right))
                hits[f"overlap{kind}"].append(overlap)
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
        for one in answers(system, films, precision="fp32", device=device):
            found.append(PresenceSample(presence=one.presence, there=one.there, half=half))
    return found
