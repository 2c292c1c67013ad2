"""Films of true object tracks: what a perfect frame-level network would hand on, as numbers, made in batches.

B films, T frames, K objects. Places are in 0..1; an object keeps its slot, and in each frame a query holds where it is,
what it looks like and whether it is there; nothing in a query states which frame it is of.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from claim_studies.grid import Films

LOOKS = 8  # numbers of an object's appearance
WAVES = (1.0, 2.0, 4.0)  # of the places' sines
EVENTS = ("the fastest", "the one that stands still for a while", "the one that was hidden for a while")


def uniform(draw: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=draw)


def event_films(count: int, draw: torch.Generator, frames: int = 10, objects: int = 4) -> Films:
    """Every film has one object of each of EVENTS and one to which nothing happens; the sentence is one of EVENTS.

    No event is in a frame and none needs an order: a film played backwards has the same events. The one that stands
    still goes faster before and after; every object is hidden in one frame, the hidden one in four on end.
    """
    kinds = torch.rand(count, objects, generator=draw).argsort(1)  # which event is an object's; 3: none
    speed = uniform(draw, 0.04, 0.06, count, objects)
    speed = torch.where(kinds == 0, speed * 2.5, torch.where(kinds == 1, speed * 1.6, speed))
    angle = uniform(draw, 0, 2 * math.pi, count, objects)
    ahead = torch.stack([angle.cos(), angle.sin()], -1) * speed[..., None]  # (B, K, 2) a frame
    time = torch.arange(frames)
    still = torch.randint(2, frames - 5, (count, 1, 1), generator=draw)
    moves = torch.ones(count, frames, objects)
    moves[((time[:, None] >= still) & (time[:, None] < still + 4)) & (kinds == 1)[:, None]] = 0.0
    start = uniform(draw, 0, 1, count, 1, objects, 2)
    places = start + (moves[..., None] * ahead[:, None]).cumsum(1)
    places = 1 - (places.remainder(2.0) - 1).abs()  # they bounce off the border
    once = torch.randint(1, frames - 1, (count, 1, objects), generator=draw)
    lasts = torch.where(kinds == 2, 4, 1)[:, None]
    first = torch.where(kinds[:, None] == 2, once.clamp(max=frames - 5), once)
    there = ~((time[None, :, None] >= first) & (time[None, :, None] < first + lasts))
    asked = torch.randint(len(EVENTS), (count,), generator=draw)
    return {
        "places": places + 0.01 * torch.randn(places.shape, generator=draw),
        "looks": torch.randn(count, 1, objects, LOOKS, generator=draw).expand(-1, frames, -1, -1).clone(),
        "there": there.float(), "asked": asked, "truth": (kinds == asked[:, None]).float().argmax(1),
    }  # fmt: skip


class Embed(nn.Module):
    """Frame queries and sentences as fixed random projections: what stands for the frozen rest of a network."""

    def __init__(self, width: int, sentences: int, looks: int = LOOKS) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        numbers = 4 * len(WAVES) + looks + 1
        self.register_buffer("project", torch.randn(numbers, width, generator=draw) / math.sqrt(numbers / 3))
        self.register_buffer("sentences", torch.randn(sentences, width, generator=draw))

    def queries(self, films: Films) -> Tensor:
        """(B, T, K, D); of an object that is not there, nothing but that is left."""
        there = films["there"][..., None]
        numbers = torch.cat([waves(films["places"]) * there, films["looks"] * there, there], dim=-1)
        return numbers @ self.project

    def sentence(self, films: Films) -> Tensor:
        """(B, D)."""
        return self.sentences[films["asked"]]


def waves(places: Tensor) -> Tensor:
    """(..., 4 WAVES) sines and cosines of places (..., 2)."""
    angle = places[..., None] * torch.tensor(WAVES, device=places.device) * math.pi  # (..., 2, WAVES)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def frame_code(frames: int, width: int, device: torch.device) -> Tensor:
    """(T, 1, D): sines of the frame's number, the control that gives the time and nothing else."""
    wavelength = 100.0 ** (torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(frames, device=device)[:, None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, None]
