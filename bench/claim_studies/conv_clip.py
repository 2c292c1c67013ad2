"""The frozen conv-CLIP solution: words at every layer, and video queries that start from the frames' queries."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from claim_studies.grid import Chooser, Comparison, Films, Study
from claim_studies.looks import CODE, COLOURS, SHAPES, named_films
from claim_studies.tracks import Embed
from deixis.systems.conv_clip_mevis import DEBUG_SIZES, ConvClipMevisConfig, Heads, VideoDecoder
from deixis.types import TextFeatures

WIDTH, OBJECTS = 32, 4
CONFIG = ConvClipMevisConfig(**{
    **DEBUG_SIZES, "width": WIDTH, "queries": OBJECTS, "window_layers": 1, "window_frames": 6, "video_layers": 2,
    "align": False,
})  # type: ignore[arg-type]  # fmt: skip


class VideoArm(Chooser):
    """The video module on true frame queries, and its heads; the words are two, a colour and a shape."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.embed = Embed(WIDTH, 1, 2 * CODE)
        self.colours, self.shapes = nn.Embedding(COLOURS, WIDTH), nn.Embedding(SHAPES, WIDTH)  # the text encoder
        self.watch = VideoDecoder(replace(CONFIG, **changes))  # type: ignore[arg-type]
        self.heads = Heads(WIDTH)

    def text(self, films: Films) -> TextFeatures:
        words = torch.stack([self.colours(films["colour"]), self.shapes(films["shape"])], dim=1)
        return TextFeatures(words, torch.zeros_like(words[..., 0], dtype=torch.bool), words.mean(1))

    def forward(self, films: Films) -> Tensor:
        """Every object has a slot, the same in all frames: the score of its video query is its own."""
        text = self.text(films)
        video = self.watch(self.embed.queries(films)[None], text)[0, -1]  # (B, Q, D)
        return self.heads.score(video, text.sentence)


class PermutedArm(VideoArm):
    """Slots are permuted in every frame; each video query's kernel picks an object a frame, its score weighs it."""

    def logits(self, films: Films) -> Tensor:
        """(B, T, K) log-probabilities of the objects of each frame."""
        text, queries = self.text(films), self.embed.queries(films)
        order = films["order"][..., None].expand_as(queries)
        video = self.watch(queries.gather(2, order)[None], text)[0, -1]  # (B, Q, D)
        share = self.heads.score(video, text.sentence).log_softmax(-1)  # (B, Q)
        masks = torch.einsum("bqd,btkd->btqk", self.heads.kernel(video), queries) / WIDTH**0.5
        return (masks.log_softmax(-1) + share[:, None, :, None]).logsumexp(2)

    def loss(self, films: Films) -> Tensor:
        own = films["truth"][:, None, None].expand(-1, films["order"].shape[1], 1)
        return -self.logits(films).gather(2, own).mean()

    def right(self, films: Films) -> Tensor:
        """The share of a film's frames in which the right object is picked."""
        return (self.logits(films).argmax(-1) == films["truth"][:, None]).float().mean(1)


def words_of_others(count: int, draw: torch.Generator, noise: float) -> Films:
    """Films asked with the words of the film before, as if those had been right."""
    films = appearance(count, draw, noise=noise)
    return films | {"colour": films["colour"].roll(1), "shape": films["shape"].roll(1)}


def permuted(count: int, draw: torch.Generator, frames: int = 6) -> Films:
    films = named_films(count, draw, frames, OBJECTS, (0, 0), noise=0.3)
    return films | {"order": torch.rand(count, frames, OBJECTS, generator=draw).argsort(-1)}


appearance = partial(named_films, frames=4, bad=(0, 0))
LONG = "24 frames"


def words_study(name: str, noise: float) -> Study:
    """Words in every layer against the sentence as a start, under so much noise."""
    return Study(
        name=name,
        arms={
            "words everywhere": VideoArm,
            "words as the start": partial(VideoArm, words="start", video_start="learned"),
        },
        draw=partial(appearance, noise=noise),
        tests={"words of another film": partial(words_of_others, noise=noise)},
        comparisons=(
            Comparison(
                claim="conv-CLIP: words everywhere", arm="words everywhere", controls=("words as the start",),
                chance=1 / OBJECTS,
            ),
        ),
    )  # fmt: skip


QUERIES = Study(
    name="conv_clip_queries",
    arms={
        "initialised, aligned": partial(PermutedArm, align=True),
        "initialised": PermutedArm,
        "learned, aligned": partial(PermutedArm, video_start="learned", align=True),
        "learned": partial(PermutedArm, video_start="learned"),
    },
    draw=permuted,
    tests={LONG: partial(permuted, frames=24)},
    comparisons=(
        Comparison(
            claim="conv-CLIP: video queries initialised from frame queries", arm="initialised, aligned",
            controls=("learned, aligned", "learned"), test=LONG, chance=1 / OBJECTS,
        ),
        Comparison(
            claim="conv-CLIP: slots aligned first (our choice)", arm="initialised, aligned", controls=("initialised",),
            test=LONG, chance=1 / OBJECTS,
        ),
    ),
)  # fmt: skip
STUDIES = (words_study("conv_clip_words", 0.7), words_study("conv_clip_words_hard", 2.0), QUERIES)
