"""The plain textbook rendering of SOC that ``bench/soc_speed.py`` measures against: the same mathematics and weights.

Windows are padded, rolled, cut and put back, attention is product, softmax, product with every bias and mask written
out, deformable samples are stacked before they are summed, the mask head is one convolution with B T Q groups over a
copy of the features for each query, every decoder level and query is predicted, all text gates are computed, positions
are computed for every frame, and the backbone runs once an expression. fp32 only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.attention import PackedAttention, ResidualFeedForward
from deixis.blocks.deformable import DeformableAttention, refine_box
from deixis.blocks.fusion import gate_with_text, mean_of_words, split_expressions
from deixis.blocks.levels import ClipTokens, FrameDetections, detect_in_frames
from deixis.blocks.mask_head import _split, _widths
from deixis.blocks.positions import map_positions
from deixis.blocks.query_heads import QueryHeads, join, score_logits
from deixis.encoders.video_swin import SwinBlock, SwinWindowAttention, WindowPlan
from deixis.systems.soc import Soc
from deixis.types import Expression, FeatureMaps, Prediction, TextFeatures


def plainly(soc: Soc) -> Soc:
    """The same model, its parts replaced by plain ones (in place); weights and outputs stay."""
    for module in list(soc.modules()):
        module.__class__ = PLAIN.get(type(module), type(module))
    return soc


class PlainBlock(SwinBlock):
    def forward(self, tokens: Tensor, plan: WindowPlan) -> Tensor:
        b, _, c = tokens.shape
        size = plan.size
        window = tuple(min(s, w) for s, w in zip(size, self.window, strict=True))
        shift = tuple(w // 2 if self.shifted and s > w else 0 for s, w in zip(size, self.window, strict=True))
        x = self.norm1(tokens).view(b, *size, c)
        pads = [-s % w for s, w in zip(size, window, strict=True)]
        x = F.pad(x, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
        padded = x.shape[1:4]
        mask = None
        if any(shift):
            x = x.roll([-s for s in shift], dims=(1, 2, 3))
            mask = _shift_mask(padded, window, shift, x.device)
        windows = _to_windows(x, window)  # (B W, n, C)
        windows = self.attn(windows, mask)
        x = _from_windows(windows, window, b, padded)
        if any(shift):
            x = x.roll(shift, dims=(1, 2, 3))
        x = x[:, : size[0], : size[1], : size[2]].reshape(b, -1, c)
        tokens = tokens + self._sometimes(x)
        return tokens + self._sometimes(self.mlp(self.norm2(tokens)))


class PlainFeedForward(ResidualFeedForward):
    def forward(self, x: Tensor) -> Tensor:
        return self._rows(x)


class PlainWindowAttention(SwinWindowAttention):
    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        count, n, c = windows.shape
        qkv = self.qkv(windows).reshape(count, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (c // self.heads) ** -0.5, qkv[1], qkv[2]
        weights = q @ k.transpose(-2, -1)  # (B W, A, n, n)
        index = self.relative_places[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table[index].reshape(n, n, -1).permute(2, 0, 1).contiguous()
        weights = weights + bias[None]
        if mask is not None:
            weights = (weights.view(-1, len(mask), self.heads, n, n) + mask[None, :, None]).view(-1, self.heads, n, n)
        return self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(count, n, c))


def _to_windows(x: Tensor, w: Sequence[int]) -> Tensor:
    b, t, h, wd, c = x.shape
    x = x.view(b, t // w[0], w[0], h // w[1], w[1], wd // w[2], w[2], c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, w[0] * w[1] * w[2], c)


def _from_windows(x: Tensor, w: Sequence[int], b: int, size: Sequence[int]) -> Tensor:
    t, h, wd = size
    x = x.view(b, t // w[0], h // w[1], wd // w[2], w[0], w[1], w[2], -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t, h, wd, -1)


_masks: dict[tuple, Tensor] = {}


def _shift_mask(size: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """(W, n, n): -100 between tokens of different regions; kept for each size."""
    key = (tuple(size), tuple(window), tuple(shift), str(device))
    if key not in _masks:
        regions = torch.zeros(1, *size, 1, device=device)
        axes = [
            (slice(0, -w), slice(-w, -s), slice(-s, None)) if s else (slice(None),)
            for w, s in zip(window, shift, strict=True)
        ]
        number = 0
        for t in axes[0]:
            for h in axes[1]:
                for w in axes[2]:
                    regions[:, t, h, w] = number
                    number += 1
        flat = _to_windows(regions, window).squeeze(-1)
        _masks[key] = (flat[:, None] != flat[:, :, None]) * -100.0
    return _masks[key]


class PlainAttention(PackedAttention):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        d = query.shape[-1]
        parts = [self.in_proj_weight[i * d : (i + 1) * d] for i in range(3)]
        biases = [self.in_proj_bias[i * d : (i + 1) * d] for i in range(3)]
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), parts, biases, strict=True)
        )
        weights = (q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1)
        if padding is not None:
            weights = weights.masked_fill(padding[:, None, None], -math.inf)
        weights = F.dropout(weights.softmax(-1), self.dropout, self.training)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class PlainDeformableAttention(DeformableAttention):
    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        n, length, _ = query.shape
        form = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(n, length, *form, 2)
        weights = self.attention_weights(query).view(n, length, self.heads, -1).softmax(-1).view(n, length, *form)
        size = torch.tensor([[w, h] for h, w in shapes], dtype=query.dtype, device=query.device)
        if reference.shape[-1] == 2:
            places = reference[:, :, None, :, None] + offsets / size[None, None, None, :, None]
        else:
            box = reference[:, :, None, :, None, 2:]
            places = reference[:, :, None, :, None, :2] + offsets / self.points * box * 0.5
        grids = 2 * places - 1
        sampled = []
        for i, (level, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)):
            image = level.flatten(2).transpose(1, 2).reshape(n * self.heads, -1, h, w)
            grid = grids[:, :, :, i].transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        weights = weights.transpose(1, 2).reshape(n * self.heads, 1, length, self.levels * self.points)
        out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
        return self.output_proj(out.view(n, -1, length).transpose(1, 2).contiguous())


class PlainQueryHeads(QueryHeads):
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
        scores = score_logits(self.score[layer](queries))
        boxes = refine_box(self.box[layer](queries), frames.references[layer])
        masks = self.paint_in_groups(frames.pixels, self.kernel(queries), frames.boxes[layer][..., :2] * size_xy)
        similarity = torch.einsum("bqd,bd->bq", clip_queries, sentence) / sentence.shape[-1]
        extras = {"clip_queries": clip_queries, "sentence": sentence}
        return Prediction(masks, scores, boxes, similarity, extras=extras)

    def paint_in_groups(self, pixels: Tensor, kernels: Tensor, centres: Tensor) -> Tensor:
        """Every query gets its own copy of the features, with its own two coordinate channels."""
        b, t, c, h, w = pixels.shape
        q = kernels.shape[2]
        y, x = torch.meshgrid(torch.arange(h) * 4 + 2, torch.arange(w) * 4 + 2, indexing="ij")
        places = torch.stack([x, y]).to(pixels)  # (2, h, w)
        offsets = centres[..., None, None] - places  # (B, T, Q, 2, h, w)
        copies = pixels[:, :, None].expand(-1, -1, q, -1, -1, -1)
        z = torch.cat([copies, offsets], dim=3).reshape(1, -1, h, w)
        widths = _widths(c, self.mask_channels, 3)
        weights, biases = _split(kernels.flatten(0, 2), widths)
        groups = b * t * q
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = F.conv2d(z, weight.flatten(0, 1)[..., None, None], bias.flatten(), groups=groups)
            z = z.relu() if i < 2 else z
        return z.view(b, t, q, h, w)


class PlainScene(ClipTokens):
    def positions(self, level: int) -> Tensor:
        padding = self.padding(level)
        if padding is None:
            n = self.clips * self.frames
            padding = torch.zeros(n, *self.shape(level), dtype=torch.bool, device=self.maps.padding.device)
        return map_positions(padding, self.width)

    def clip_positions(self, level: int) -> Tensor:
        return self.positions(level).reshape(self.clips, -1, self.width)

    def parts(self, frames_at_once: int):  # type: ignore[no-untyped-def]
        yield self


class PlainSoc(Soc):
    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        scene, text = PlainScene(maps, wanted), self.text([e.text for e in expressions])
        return join([self.predict_clip(scene, group) for group in split_expressions(scene.clips, text)])

    def predict_clip(self, scene: ClipTokens, text: TextFeatures) -> Prediction:
        words = [self.attend_text(text, scene, level) for level in range(3)][-1]  # only the last is used
        frames = detect_in_frames(
            scene,
            lambda part: [gate_with_text(self.vision_gate, part, i, text) for i in range(4)],
            self.transformer,
            self.heads.box,
            self.pixel_decoder,
            self.config.frames_at_once,
        )
        layers = range(self.config.layers)
        read = layers if self.training else [self.config.layers - 1] * len(layers)
        clips = self.clip_queries([frames.queries[i] for i in sorted(set(read))], text.sentence)
        clips = clips if self.training else [clips[0]] * len(layers)
        sentence = mean_of_words(words, text.padding)
        levels = [
            self.heads(i, self.add_clip_context(frames.queries[i], clip), clip, sentence, frames, scene.size_xy)
            for i, clip in zip(layers, clips, strict=True)
        ]
        if self.training:
            return replace(levels[-1], aux=tuple(levels[:-1]))
        return levels[0] if self.config.eval_level == "official" else levels[-1]

    def attend_text(self, text: TextFeatures, scene: ClipTokens, level: int = 2) -> Tensor:
        tokens = scene.tokens(level)
        return self.text_gate(text.words, tokens + scene.clip_positions(level), tokens, scene.clip_padding(level))


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    Soc: PlainSoc,
    SwinBlock: PlainBlock,
    SwinWindowAttention: PlainWindowAttention,
    PackedAttention: PlainAttention,
    ResidualFeedForward: PlainFeedForward,
    DeformableAttention: PlainDeformableAttention,
    QueryHeads: PlainQueryHeads,
}
