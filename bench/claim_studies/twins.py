"""Films of twins on a torus of cells: alike in every frame, distinguished only by what happens between frames.

B films, T frames, h w cells, C width. Each twin keeps to a row of its own; one goes left, the other right, and who
leaves at one side comes in at the other, so that a place and a time hold nothing about the direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from claim_studies.grid import Films

ROWS, SIDE = 2, 4  # h and w, where a film does not say others
TWINS = 2
NOTHING, PLAIN, HAT = range(3)  # what is in a cell
LEFT, RIGHT = range(2)
LED = 0.85  # share of the sentences that name the one that goes left, where most do


def twin_films(
    count: int, draw: torch.Generator, frames: int = 6, jump: int = 1, height: int = ROWS, side: int = SIDE
) -> Films:
    """One twin goes ``jump`` cells to the left a frame, the other to the right; the sentence names a direction."""
    rows = torch.rand(count, height, generator=draw).argsort(1)[:, None, :TWINS].expand(-1, frames, -1)
    goes = torch.rand(count, TWINS, generator=draw).argsort(1)  # (B, K) LEFT or RIGHT
    step = torch.where(goes == LEFT, -jump, jump)
    start = torch.randint(side, (count, 1, TWINS), generator=draw)
    columns = (start + step[:, None] * torch.arange(frames)[:, None]) % side  # (B, T, K)
    asked = torch.randint(2, (count,), generator=draw)
    return {"at": rows * side + columns, "goes": goes, "asked": asked, "truth": named(goes, asked)}


def named(kinds: Tensor, asked: Tensor) -> Tensor:
    """(B,) which of the twins, of ``kinds`` (B, K), is of the kind that the sentence names, ``asked`` (B,)."""
    return (kinds == asked[:, None]).int().argmax(1)


def mostly_left(films: Films, draw: torch.Generator, share: float) -> Films:
    """The films with other sentences: of them such a share names the one that goes left. To train on where balanced
    films are too hard to begin with: a direction is learned before it is learned which is named."""
    asked = torch.where(torch.rand(len(films["goes"]), generator=draw) < share, LEFT, RIGHT)
    return films | {"asked": asked, "truth": named(films["goes"], asked)}


def told_before(count: int, draw: torch.Generator, frames: int = 4) -> Films:
    """Two clips one after the other. In the first one twin wears a hat; in the second both look alike, each in its row.
    The sentence is "the one that wore the hat" (1) or "the one that wore none" (0), and is asked in the second."""
    films = twin_films(count, draw, 2 * frames)
    hats = torch.rand(count, TWINS, generator=draw).argsort(1)  # (B, K): 1 wears one
    return {
        "before": films["at"][:, :frames], "at": films["at"][:, frames:], "hats": hats, "asked": films["asked"],
        "truth": named(hats, films["asked"]),
    }  # fmt: skip


class Cells(nn.Module):
    """Cells as a tower's first layer gets them: a fixed code of what is in each, one of its place, and some noise."""

    def __init__(self, width: int, height: int = ROWS, side: int = SIDE) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.shape = (height, side)
        self.register_buffer("content", torch.randn(3, width, generator=draw))
        angle = 2 * math.pi * torch.arange(side) / side
        column = torch.stack([angle.sin(), angle.cos()], dim=-1) @ torch.randn(2, width, generator=draw)
        row = torch.randn(height, width, generator=draw)
        self.register_buffer("place", (row[:, None] + column).flatten(0, 1))  # on a torus: its ends meet

    def forward(self, at: Tensor, kinds: Tensor | None = None) -> Tensor:
        """(B, T, C, h, w), twins at cells ``at`` (B, T, K); kinds: (B, K), PLAIN where None."""
        cells = torch.full((*at.shape[:2], len(self.place)), NOTHING, device=at.device)
        what = torch.full_like(at, PLAIN) if kinds is None else kinds[:, None].expand_as(at)
        x = self.content[cells.scatter(2, at, what)] + self.place  # (B, T, N, C)
        return x.movedim(-1, 2).unflatten(-1, self.shape)


def at_twins(cells: Tensor, at: Tensor) -> Tensor:
    """(B, T, K, C): what cells (B, T, h, w, C) hold at the twins' places (B, T, K)."""
    flat = cells.flatten(2, 3)
    return flat.gather(2, at[..., None].expand(-1, -1, -1, flat.shape[-1]))
