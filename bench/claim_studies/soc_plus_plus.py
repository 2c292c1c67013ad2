"""SOC++: do relevance weights resist bad frames, does the random walk help, and do proxies?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from claim_studies.grid import Chooser, Comparison, Films, Study
from claim_studies.looks import CODE, COLOURS, SHAPES, named_films, odd_films, with_bad
from claim_studies.tracks import Embed
from deixis.blocks.attention import Mlp
from deixis.blocks.fusion import CrossGate
from deixis.blocks.temporal import ResidualAttention
from deixis.systems.soc import QueryClusterer, SocConfig
from deixis.systems.soc_plus_plus import RelevanceClusterer, SocPlusPlus, SocPlusPlusConfig

WIDTH, OBJECTS = 32, 4
CONFIG = SocPlusPlusConfig(width=WIDTH, queries=OBJECTS, proxies=6, heads=4, hidden=64, layers=2, dropout=0.0)
SOC = SocConfig(width=WIDTH, queries=OBJECTS, heads=4, hidden=64, layers=2, dropout=0.0)


class Constant(nn.Module):
    """In place of a relevance head: the same number for every frame."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, frames: Tensor) -> Tensor:
        return torch.full_like(frames[..., 0], self.value)


class EvenClusterer(RelevanceClusterer):
    """SOC++'s clusterer, every frame as relevant as any other: its weight is 1."""

    def __init__(self, config: SocPlusPlusConfig) -> None:
        super().__init__(config)
        self.presence, self.change = Constant(1.0), Constant(0.0)  # type: ignore[assignment]

    def match(self, queries: object, sentence: Tensor) -> Tensor:
        return super().match(queries, sentence) * 0.0  # type: ignore[arg-type]


class BadFrames(Chooser):
    """SOC++ after its frame level, or SOC: clip queries, given back to the frames, and a score averaged over them."""

    def __init__(self, relevance: bool = True, walk: bool = True, soc: bool = False) -> None:
        super().__init__()
        self.config = replace(CONFIG, walk=CONFIG.walk if walk else 0.0)
        self.embed, self.soc = Embed(WIDTH, 1, 2 * CODE), soc
        self.colours, self.shapes = nn.Embedding(COLOURS, WIDTH), nn.Embedding(SHAPES, WIDTH)  # the text encoder
        kind = RelevanceClusterer if relevance else EvenClusterer
        self.cluster = QueryClusterer(SOC) if soc else kind(self.config)
        self.to_frames = None if soc else ResidualAttention(WIDTH, 4, 0.0)
        self.score = Mlp(2 * WIDTH, 64, 1)

    def forward(self, films: Films) -> Tensor:
        queries = self.embed.queries(films)
        sentence = self.colours(films["colour"]) + self.shapes(films["shape"])
        if isinstance(self.cluster, QueryClusterer):
            queries = queries + self.cluster(queries, sentence)[:, None]
        else:
            clip = self.cluster([queries], sentence, [0])[0]
            queries = SocPlusPlus.add_clip_context(self, queries, clip)  # type: ignore[arg-type]
        beside = sentence[:, None, None].expand_as(queries)
        return self.score(torch.cat([queries, beside], dim=-1))[..., 0].mean(1)

    @torch.no_grad()
    def facts(self, films: Films) -> dict[str, float]:
        """The mean relevance of good and of bad frames."""
        if isinstance(self.cluster, QueryClusterer):
            return {}
        queries, heads = self.embed.queries(films), self.cluster
        sentence = self.colours(films["colour"]) + self.shapes(films["shape"])
        frames = queries.flatten(2)
        so_far = frames.cumsum(1) / torch.arange(1, frames.shape[1] + 1, device=frames.device)[:, None]
        weight = heads.presence(frames) + heads.match([queries], sentence)[0] + 0.5 * heads.change(frames - so_far)
        bad = films["bad"]
        return {"weight of good frames": float(weight[~bad].mean()), "of bad ones": float(weight[bad].mean())}


class Proxies(Chooser):
    """The sentence refined by what is in the film: through proxies (SOC++), from the cells themselves (SOC), or not."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.embed = way, Embed(WIDTH, 1, 2 * CODE)
        self.words = nn.Embedding(3, WIDTH)  # "odd one out", "colour", "shape"
        self.proxies = nn.Parameter(torch.randn(CONFIG.proxies, WIDTH))
        self.proxy_gate, self.text_gate = CrossGate(WIDTH, 4), CrossGate(WIDTH, 4)
        self.score = Mlp(2 * WIDTH, 64, 1)

    def forward(self, films: Films) -> Tensor:
        queries = self.embed.queries(films)  # (B, T, K, D)
        cells = queries.flatten(1, 2)
        words = self.words(torch.stack([torch.zeros_like(films["asked"]), 1 + films["asked"]], dim=1))  # (B, L, D)
        if self.way == "proxies":  # as SocPlusPlus.attend_levels, at one level; places are in the cells already
            proxies = self.proxies.expand(len(cells), -1, -1)
            proxies = self.proxy_gate(proxies, cells, cells) + proxies
            words = self.text_gate(words, proxies, proxies)
        elif self.way == "cells":  # as Soc.attend_text
            words = self.text_gate(words, cells, cells)
        sentence = words.mean(1)
        beside = sentence[:, None, None].expand_as(queries)
        return self.score(torch.cat([queries, beside], dim=-1))[..., 0].mean(1)


MANY = "4 to 6 of 8 bad"
FRAMES = Study(
    name="soc_plus_plus_frames",
    arms={
        "SOC++": BadFrames,
        "even weights": partial(BadFrames, relevance=False),
        "no random walk": partial(BadFrames, walk=False),
        "SOC": partial(BadFrames, soc=True),
    },
    draw=named_films,
    tests={"none bad": with_bad(0, 0), "2 of 8 bad": with_bad(2, 2), MANY: with_bad(4, 6)},
    comparisons=(
        Comparison(
            claim="SOC++: relevance-weighted aggregation resists bad frames",
            arm="SOC++", controls=("even weights", "SOC"), test=MANY, chance=1 / OBJECTS,
        ),
        Comparison(claim="SOC++: the random walk helps", arm="SOC++", controls=("no random walk",)),
    ),
)  # fmt: skip
PROXIES = Study(
    name="soc_plus_plus_proxies",
    arms={
        "proxies": partial(Proxies, "proxies"), "words at the cells": partial(Proxies, "cells"),
        "words as they are": partial(Proxies, "none"),
    },
    draw=odd_films,
    comparisons=(
        Comparison(
            claim="SOC++: proxies between words and pixels help",
            arm="proxies", controls=("words at the cells", "words as they are"), chance=1 / 3,
        ),
    ),
)  # fmt: skip
STUDIES = (FRAMES, PROXIES)
