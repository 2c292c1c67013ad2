"""Presence of the bundled model: fitted on development films, so that its threshold and its verdicts hold there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from deixis.linking import sigmoid
from deixis.synthetic.mixture import composites, stills, written_stills
from deixis.synthetic.scene import SyntheticVideo
from deixis.systems.light import Light, LightConfig
from deixis.training.measure import (
    SentenceScore,
    chosen_threshold,
    evaluate_films,
    fit_presence,
    raw_presence,
    sure_bound,
)

log = logging.getLogger(__name__)

LEFT_EMPTY = 0.9  # share of absent objects that the threshold should leave empty (our choice)
SURE = 0.9  # share of the answers with the verdict "there" that should show the right thing (our choice)


def calibrated(pictures: str, system: Light, films: int = 60) -> LightConfig:
    """The config with presence fitted on development films and stills, generated and written sentences.

    Temperature and shift make the predicted probability agree with the facts; the threshold is ``chosen_threshold``'s,
    and what is shown below ``sure_bound`` counts as a guess.
    """

    def films_of() -> Iterator[SyntheticVideo]:
        yield from written_stills(pictures, "development")
        yield from stills(pictures, "development")
        yield from composites(pictures, "development", seed=1, films=films)

    # Everything is shown, so that what would be is known.
    return with_fitted_presence(system.config, list(evaluate_films(system, films_of(), threshold=1e-6)))


def with_fitted_presence(config: LightConfig, found: Sequence[SentenceScore]) -> LightConfig:
    """The config with temperature, shift, threshold and sure bound fitted on answers of which none was kept back."""
    present = np.array([a.present for a in found])
    temperature, shift = fit_presence(
        np.array([a.presence for a in found]), present, config.presence_temperature, config.presence_shift
    )

    def again(p: float) -> float:
        raw = raw_presence(p, config.presence_temperature, config.presence_shift)
        return float(sigmoid(raw / temperature + shift))

    shown = [(again(a.presence), a.right) for a in found if a.present]
    absent = [again(a.presence) for a in found if not a.present]
    threshold = round(chosen_threshold(shown, absent, LEFT_EMPTY), 3)
    sure = round(sure_bound([(again(a.presence), a.present and a.right) for a in found], threshold, SURE), 3)
    log.info(
        "presence: temperature %.3f, shift %.3f, threshold %.3f, sure from %.3f", temperature, shift, threshold, sure
    )
    return replace(
        config, presence_temperature=temperature, presence_shift=shift, presence_threshold=threshold,
        presence_sure=sure,
    )  # fmt: skip
