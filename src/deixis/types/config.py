"""What the data path reads of any system's config, with the bounds of its fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def bounded(default: Any, least: float = 1, most: float | None = None) -> Any:
    """A config's field that a checkpoint may only state within ``least..most`` (None: no bound but least).

    An unmarked whole number must be 1 or more, or as low as its default where that is lower (``warmups: int = 0``).
    """
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """What the data path reads of any system. A system's config inherits these fields and adds its own sizes.
    A field that a system gives another default keeps its bounds.

    Presence is stated, never guessed: a threshold stands here only where a paper gives one or a calibration on held-out
    data found it. None: the system's score does not say whether an object is there, so every expression is answered.
    """

    window: int = bounded(36, most=1024)  # frames decoded at once at inference
    short_side: int = bounded(360, most=4096)  # pixels
    long_side: int = bounded(640, most=16384)  # pixels
    multiple: int = bounded(4, most=1024)  # pixels; height and width are padded to it
    square: bool = False  # frames become short_side x short_side, their shape is not kept
    several: bool = False  # an expression may refer to several objects
    mean: tuple[float, float, float] = bounded((0.485, 0.456, 0.406), least=-1e6, most=1e6)  # ImageNet
    std: tuple[float, float, float] = bounded((0.229, 0.224, 0.225), least=1e-6, most=1e6)  # ImageNet
    # official: the query with the greatest mean probability, its raw logits at source size compared with 0.
    # linked: one path over the whole film, which may leave a query for one that continues its mask.
    selection: Literal["official", "linked"] = "official"
    # How official masks grow to source size: at once, or through the size that the model got.
    enlarge: Literal["at_once", "through_input"] = "at_once"
    presence_threshold: float | None = None  # probability from which on an object counts as present; None: always
    presence_sure: float | None = bounded(None, least=0, most=1)  # below it masks are a guess ("unsure"); None: never
    presence_temperature: float = bounded(1.0, least=1e-6, most=1e6)  # divides the presence logit
    presence_shift: float = bounded(0.0, least=-1e6, most=1e6)  # added to the presence logit after that
    presence_from: str = ""  # what a calibration on held-out data found; empty: none was made
