"""SOC: does the video-level cluster understand what happens over time, and does the contrast align?"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from claim_studies.grid import Chooser, Comparison, Films, Study
from claim_studies.tracks import EVENTS, Embed, event_films, frame_code
from deixis.blocks.attention import Mlp
from deixis.losses.terms import contrastive
from deixis.systems.soc import QueryClusterer, SocConfig

WIDTH, OBJECTS = 32, 4
CONFIG = SocConfig(width=WIDTH, queries=OBJECTS, heads=4, hidden=64, layers=2, dropout=0.0)


class SocArm(Chooser):
    """SOC after its frame level: frame queries, the clip's context, and a score a frame and query, averaged over time.

    context: "cluster" (SOC), "none", "mean" (each slot's mean over time) or "time" (a code of the frame's number).
    contrast: whether clip queries and sentence are pulled together by the paper's loss.
    """

    def __init__(self, context: str, contrast: bool = False) -> None:
        super().__init__()
        self.context, self.contrast = context, contrast
        self.embed = Embed(WIDTH, len(EVENTS))
        self.cluster = QueryClusterer(CONFIG) if context == "cluster" else None
        self.score = Mlp(2 * WIDTH, 64, 1)

    def logits(self, films: Films) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, K), clip queries (B, K, D) and sentences (B, D)."""
        queries, sentence = self.embed.queries(films), self.embed.sentence(films)
        clip = queries.mean(1) if self.cluster is None else self.cluster(queries, sentence)  # as Soc.clip_queries
        if self.context in ("cluster", "mean"):
            queries = queries + clip[:, None]  # as Soc.add_clip_context
        if self.context == "time":
            queries = queries + frame_code(queries.shape[1], WIDTH, queries.device)
        beside = sentence[:, None, None].expand_as(queries)
        return self.score(torch.cat([queries, beside], dim=-1))[..., 0].mean(1), clip, sentence

    def forward(self, films: Films) -> Tensor:
        return self.logits(films)[0]

    def loss(self, films: Films) -> Tensor:
        scores, clip, sentence = self.logits(films)
        loss = F.cross_entropy(scores, films["truth"])
        if self.contrast:  # weight and scale as published
            loss = loss + contrastive(clip, sentence, films["truth"], 1 / WIDTH).mean()
        return loss

    @torch.no_grad()
    def facts(self, films: Films) -> dict[str, float]:
        right = self.right(films)
        return {event: float(right[films["asked"] == i].mean()) for i, event in enumerate(EVENTS)}


class Alignment(SocArm):
    """The same, read by similarity: the clip query most alike to the sentence is the answer."""

    def right(self, films: Films) -> Tensor:
        _, clip, sentence = self.logits(films)
        return (torch.einsum("bqd,bd->bq", clip, sentence).argmax(-1) == films["truth"]).float()

    @torch.no_grad()
    def facts(self, films: Films) -> dict[str, float]:
        return {"right by score": float((self.logits(films)[0].argmax(-1) == films["truth"]).float().mean())}


CLUSTER = Study(
    name="soc_cluster",
    arms={
        "cluster": partial(SocArm, "cluster"),
        "without": partial(SocArm, "none"),
        "plain mean": partial(SocArm, "mean"),
        "time code": partial(SocArm, "time"),
        "cluster and contrast": partial(SocArm, "cluster", True),
    },
    draw=event_films,
    most=4000,
    comparisons=(
        Comparison(claim="SOC: the video-level cluster understands temporal change", arm="cluster",
                   controls=("without", "plain mean", "time code"), chance=1 / OBJECTS),
        Comparison(claim="SOC: the contrast helps the answer", arm="cluster and contrast", controls=("cluster",),
                   chance=1 / OBJECTS),
    ),
)  # fmt: skip
CONTRAST = Study(
    name="soc_contrast",
    arms={"contrast": partial(Alignment, "cluster", True), "no contrast": partial(Alignment, "cluster", False)},
    draw=event_films,
    most=4000,
    comparisons=(
        Comparison(claim="SOC: the contrast aligns clip queries and sentence (retrieval of the query)", arm="contrast",
                   controls=("no contrast",), chance=1 / OBJECTS),
    ),
)  # fmt: skip
STUDIES = (CLUSTER, CONTRAST)
