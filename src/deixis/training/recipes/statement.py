"""What a recipe says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A recipe in words.

    needs: names under ``--data`` that it cannot do without; ``a|b``: one of them.  takes: names it can use.
    row: the published figure of this run (J&F where not said); empty: none that could be read, or a recipe of our own.
    epochs: None where it is stated in steps.  differs: from the publication.
    """

    what: str
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    row: str = ""
    global_batch: int
    epochs: int | None = None
    steps: int | None = None
    hardware: str = ""
    differs: str = ""

    @property
    def length(self) -> str:
        return f"{self.epochs} epochs" if self.epochs is not None else f"{self.steps:,} steps"
