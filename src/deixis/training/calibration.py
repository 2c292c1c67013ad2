"""Presence, calibrated on held-out data at the end of a training, and what the checkpoint then states.

Half of the held-out films fit temperature, shift and threshold; the other half, used for nothing else, says what they
are worth. A threshold is stated only where it is worth something: else the system always answers, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deixis.linking import sigmoid
from deixis.training.measure import fit_presence, raw_presence
from deixis.types import SystemConfig

log = logging.getLogger(__name__)

SHOWN = 0.97  # share of present objects that the threshold must show, where it is fitted (our choice)
SHOWN_AGAIN = 0.95  # and on the films that it was not fitted on
LEFT_EMPTY_AGAIN = 0.70  # share of absent objects that it must leave empty there, or no threshold is stated
LEAST = 20  # present and absent ones, each, in each half


@dataclass(frozen=True, kw_only=True)
class PresenceSample:
    """A probability that a system gave, uncalibrated. present: whether the object is.  half: 0 fits, 1 checks."""

    presence: float
    present: bool
    half: int


def calibrate_presence(system: Any, data: str, run: Callable[[Any], Sequence[PresenceSample]]) -> Any:
    """The system's config with presence as held-out data has it.

    Args:
        system: Its config is put aside meanwhile, so that it always answers and gives plain probabilities.
        data: The name of the held-out data, for the checkpoint.
        run: Runs the system over that data.

    Returns:
        The config, with ``presence_from`` saying on what it rests and what it is worth.

    Example:
        >>> calibrate_presence(system, "held-out films", run).presence_threshold  # doctest: +SKIP
        0.41
    """
    config = system.config
    try:
        system.config = replace(config, presence_threshold=None, presence_temperature=1.0, presence_shift=0.0)
        samples = list(run(system))
    finally:
        system.config = config
    return fitted(config, data, samples)


def fitted(config: SystemConfig, data: str, samples: Sequence[PresenceSample]) -> SystemConfig:
    """The config with temperature, shift and threshold of the first half, if the second half bears them out."""
    config = replace(config, presence_sure=None)  # it was of the calibration before
    # Where several objects are shown together, the threshold also says which: the stated one stays.
    stated = config.presence_threshold if config.several else None
    answer = "always answers" if stated is None else f"keeps its stated threshold of {stated}"
    always = replace(config, presence_threshold=stated, presence_temperature=1.0, presence_shift=0.0)
    counts = [sum((t.present, t.half) == (p, half) for t in samples) for p in (True, False) for half in (0, 1)]
    if min(counts) < LEAST:
        return replace(always, presence_from=f"{answer}: {data} holds too few to calibrate on {counts}")
    first = [t for t in samples if t.half == 0]
    temperature, shift = fit_presence(
        np.array([t.presence for t in first]), np.array([t.present for t in first]), 1.0, 0.0
    )

    def probability(t: PresenceSample) -> float:
        return float(sigmoid(raw_presence(t.presence) / temperature + shift))

    threshold = float(np.quantile([probability(t) for t in first if t.present], 1 - SHOWN))
    threshold = min(max(threshold, 1e-6), 1 - 1e-6)
    shown, empty = (
        float(np.mean([(probability(t) >= threshold) == p for t in samples if t.half == 1 and t.present == p]))
        for p in (True, False)
    )
    worth = f"shows {shown:.2f} of present objects, leaves {empty:.2f} of absent ones empty"
    if shown < SHOWN_AGAIN or empty < LEFT_EMPTY_AGAIN:
        log.info("presence: %s; the best threshold %s", answer, worth)
        return replace(always, presence_from=f"{answer}: on {data} the best threshold {worth}")
    log.info("presence: temperature %.3f, shift %.3f, threshold %.3f; %s", temperature, shift, threshold, worth)
    return replace(
        config, presence_temperature=temperature, presence_shift=shift, presence_threshold=threshold,
        presence_from=f"{data}: {worth}",
    )  # fmt: skip
