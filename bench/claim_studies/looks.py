"""Films of objects that are named by their look, colour and shape; frames may be bad, or one object the odd one out.

B films, T frames, K objects, L words. Codes of colours, shapes and words are fixed random vectors.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from claim_studies.grid import Draw, Films

CODE = 8  # numbers of a colour's or a shape's code
COLOURS = SHAPES = 6
_DRAW = torch.Generator().manual_seed(11)
COLOUR_CODES = torch.randn(COLOURS, CODE, generator=_DRAW)
SHAPE_CODES = torch.randn(SHAPES, CODE, generator=_DRAW)


def codes(colour: Tensor, shape: Tensor) -> Tensor:
    """(..., 2 CODE) looks of colours and shapes (...) int."""
    return torch.cat([COLOUR_CODES[colour], SHAPE_CODES[shape]], dim=-1)


def pairs(count: int, objects: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B, K) colours and shapes: no two objects of a film have both the same."""
    pair = torch.rand(count, COLOURS * SHAPES, generator=draw).argsort(1)[:, :objects]
    return pair // SHAPES, pair % SHAPES


def named_films(
    count: int, draw: torch.Generator, frames: int = 8, objects: int = 4, bad: tuple[int, int] = (0, 6),
    noise: float = 0.7,
) -> Films:  # fmt: skip
    """The sentence names a colour and a shape. From ``bad[0]`` to ``bad[1]`` frames of each film are bad: blurred (much
    noise), covered (nothing is left), or of another film (other objects); which of the three is drawn a film."""
    colour, shape = pairs(count, objects, draw)
    truth = torch.randint(objects, (count,), generator=draw)
    rows = torch.arange(count)
    looks = codes(colour, shape)[:, None].expand(-1, frames, -1, -1)
    others = torch.stack([codes(*pairs(count, objects, draw)) for _ in range(frames)], dim=1)
    number = torch.randint(bad[0], bad[1] + 1, (count, 1), generator=draw)
    is_bad = torch.rand(count, frames, generator=draw).argsort(1) < number  # (B, T)
    kind = torch.randint(3, (count, 1), generator=draw)
    blurred, covered, other = (is_bad & (kind == i) for i in range(3))
    looks = torch.where(other[..., None, None], others, looks)
    amount = torch.where(blurred, 4 * noise, noise)[..., None, None]
    return {
        "places": torch.rand(count, 1, objects, 2, generator=draw).expand(-1, frames, -1, -1).clone(),
        "looks": looks + amount * torch.randn(looks.shape, generator=draw),
        "there": (~covered).float()[..., None].expand(-1, -1, objects).clone(),
        "bad": is_bad, "colour": colour[rows, truth], "shape": shape[rows, truth], "truth": truth,
    }  # fmt: skip


def with_bad(low: int, high: int) -> Draw:
    """``named_films`` with so many bad frames."""
    return partial(named_films, bad=(low, high))


def odd_films(count: int, draw: torch.Generator, frames: int = 2, objects: int = 5) -> Films:
    """The sentence names the odd one out, by colour (0) or by shape (1): the others share theirs, two and two. The
    object that is odd by the one is not odd by the other, but by chance."""

    def one_odd() -> tuple[Tensor, Tensor]:
        three = torch.rand(count, COLOURS, generator=draw).argsort(1)[:, :3]
        order = torch.rand(count, objects, generator=draw).argsort(1)
        value = three.gather(1, torch.tensor([0, 1, 1, 2, 2]).expand(count, -1)).gather(1, order)
        return value, (order == 0).float().argmax(1)

    (colour, odd_colour), (shape, odd_shape) = one_odd(), one_odd()
    asked = torch.randint(2, (count,), generator=draw)
    looks = codes(colour, shape)[:, None].expand(-1, frames, -1, -1)
    return {
        "places": torch.rand(count, frames, objects, 2, generator=draw),
        "looks": looks + 0.1 * torch.randn(looks.shape, generator=draw),
        "there": torch.ones(count, frames, objects), "asked": asked,
        "truth": torch.where(asked == 0, odd_colour, odd_shape),
    }  # fmt: skip
