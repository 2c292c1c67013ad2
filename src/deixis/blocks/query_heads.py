"""Heads on queries: a score, a box, and the kernel of a dynamic mask head.

B clips, T frames, Q queries, D width, K classes; h w a quarter of the frame.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from deixis.blocks.attention import Mlp
from deixis.blocks.deformable import refine_box
from deixis.blocks.levels import FrameDetections
from deixis.blocks.mask_head import kernel_numbers, predict_masks
from deixis.types import Prediction


class QueryHeads(nn.Module):
    """Scores, boxes and masks. Scores and boxes have weights for each decoder layer, kernels share theirs."""

    def __init__(self, width: int, layers: int, classes: int, mask_channels: int) -> None:
        super().__init__()
        self.score = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.box = nn.ModuleList(Mlp(width, width, width, 4) for _ in range(layers))
        self.kernel = Mlp(width, width, width, kernel_numbers(mask_channels, mask_channels))
        self.mask_channels = mask_channels
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.score.children():
            assert isinstance(layer, nn.Linear)
            nn.init.constant_(layer.bias, -math.log(99))  # at first, one query in a hundred is positive
        for i, mlp in enumerate(self.box.children()):
            assert isinstance(mlp, Mlp)
            nn.init.zeros_(mlp.last.weight)
            nn.init.zeros_(mlp.last.bias)
            if i == 0:
                nn.init.constant_(mlp.last.bias[2:], -2.0)  # the first boxes are small
        for layer in self.kernel.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        layer: int,
        queries: Tensor,
        clip_queries: Tensor,
        sentence: Tensor,
        frames: FrameDetections,
        size_xy: Tensor,
        kept: int | None = None,
    ) -> Prediction:
        """The prediction of a decoder layer.

        queries: (B, T, Q, D), with the clip's context.  clip_queries: (B, Q, D).  sentence: (B, D).
        size_xy: (B, 1, 1, 2) pixels.  kept: how many queries to keep, best first; None keeps all, in their order.
        """
        classes = self.score[layer](queries)  # (B, T, Q, K)
        scores = score_logits(classes)  # (B, T, Q)
        references, centres = frames.references[layer], frames.boxes[layer][..., :2]
        similarity = torch.einsum("bqd,bd->bq", clip_queries, sentence) / sentence.shape[-1]  # the scale as published
        if kept is not None and kept < scores.shape[2]:
            best = scores.sigmoid().mean(1).topk(kept, dim=1).indices  # (B, Q) of the kept
            queries, scores, references, centres = (pick(x, best, 2) for x in (queries, scores, references, centres))
            clip_queries, similarity = pick(clip_queries, best, 1), similarity.gather(1, best)
        boxes = refine_box(self.box[layer](queries), references)  # (B, T, Q, 4)
        masks = predict_masks(frames.pixels, self.kernel(queries), centres * size_xy, 4, self.mask_channels)
        extras = {"clip_queries": clip_queries, "sentence": sentence}
        if self.training and classes.shape[-1] > 1:
            extras["classes"] = classes  # the loss reads them all
        return Prediction(masks, scores, boxes, similarity, extras=extras)


def score_logits(classes: Tensor) -> Tensor:
    """(B, T, Q) from class logits (B, T, Q, K): those of the class that a query is surest of over the clip."""
    if classes.shape[-1] == 1:
        return classes[..., 0]
    surest = classes.sigmoid().mean(1, keepdim=True).argmax(-1, keepdim=True)  # (B, 1, Q, 1)
    return classes.gather(-1, surest.expand(*classes.shape[:-1], 1))[..., 0]


def pick(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Entries ``index`` (B, Q') along ``axis`` of x, which is (B, ..., Q, ...)."""
    shape = [len(x), *[1] * (axis - 1), index.shape[1], *[1] * (x.ndim - axis - 1)]
    return x.gather(axis, index.view(shape).expand(*x.shape[:axis], index.shape[1], *x.shape[axis + 1 :]))


def join(predictions: list[Prediction]) -> Prediction:
    """Predictions of several expressions as one, along the first axis."""
    if len(predictions) == 1:
        return predictions[0]
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(Prediction)):
        values = [getattr(p, name) for p in predictions]
        if name == "aux":
            joined[name] = tuple(join(list(layer)) for layer in zip(*values, strict=True))
        elif name == "extras":
            joined[name] = {key: torch.cat([v[key] for v in values]) for key in values[0]}
        else:
            joined[name] = None if values[0] is None else torch.cat(values)
    return Prediction(**joined)
