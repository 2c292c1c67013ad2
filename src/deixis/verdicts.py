"""What a track says in one line, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deixis.types import MaskTrack, Verdict, verdict_of


@dataclass(frozen=True, kw_only=True)
class TrackSummary:
    """A track in short.

    Attributes:
        expression: The words.
        present: Whether any frame holds a mask.
        verdict: "there"; "unsure": what is shown is a guess; or "not there".
        presence: Probability that the object is in the film at all, 0..1.
        threshold: Presence from which on masks are shown; None where none is stated.
        sure: Presence from which on they are no guess; None where none is stated.
        begin, end: Seconds of the first and the last frame with a mask; None without one.
        frames: How many frames hold a mask, and of how many.
        share: Of the picture, 0..1, mean over the frames with a mask.
    """

    expression: str
    present: bool
    verdict: Verdict
    presence: float
    threshold: float | None
    sure: float | None
    begin: float | None
    end: float | None
    frames: tuple[int, int]
    share: float

    @staticmethod
    def of(track: MaskTrack) -> TrackSummary:
        areas = track.masks.areas()
        held = areas.nonzero()[0]
        height, width = track.masks.size
        return TrackSummary(
            expression=track.expression.text,
            present=bool(len(held)),
            verdict=verdict_of(bool(len(held)), track.presence, track.sure),
            presence=track.presence,
            threshold=track.threshold,
            sure=track.sure,
            begin=float(track.times[held[0]]) if len(held) else None,
            end=float(track.times[held[-1]]) if len(held) else None,
            frames=(len(held), len(track)),
            share=float(areas[held].mean()) / (height * width) if len(held) else 0.0,
        )

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self) | {"frames": self.frames[0], "of": self.frames[1]}
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}

    def __str__(self) -> str:
        if self.verdict == "not there":
            return f"{self.expression}: not there ({self._why()})"
        stretch = f", {self.begin:.1f} to {self.end:.1f} s" if self.frames[1] > 1 else ""  # of a picture: no times
        share = f"{100 * self.share:.1f} % of the picture"
        if self.verdict == "unsure" and self.sure is not None:
            why = f"a guess is shown; presence {smaller_than(self.presence, self.sure)}"
        else:
            why = f"presence {self.presence:.2f}"
        return f"{self.expression}: {self.verdict} ({why}){stretch}, {share}"

    def _why(self) -> str:
        if self.threshold is None:
            return f"presence {self.presence:.2f}"
        if self.presence >= self.threshold:
            return f"presence {self.presence:.2f}, but no pixel of it is marked"
        return f"presence {smaller_than(self.presence, self.threshold)}"


def smaller_than(presence: float, bound: float) -> str:
    """Two numbers, with as many digits as it takes for the first to be the smaller one, and for 0.9999 not to be 1."""
    for digits in range(2, 7):
        first, second = f"{presence:.{digits}f}", f"{bound:.{digits}g}"
        if float(first) < float(second) and (float(second) < 1 or bound >= 1):
            break
    return f"{first}, below {second}"
