"""A frozen convolutional CLIP for MeViS (Pan, Fang, Lu, arXiv:2406.04842; third place, PVUW 2024).

The report has no public code. Its skeleton is known (words and pixels are fused in the encoder, the frame decoder and
the video decoder; video queries are initialised from frame queries); sizes are those of its parents, LMPM
(arXiv:2308.08544), VITA (arXiv:2206.04403), DsHmp (arXiv:2404.03645), LBVQ (IEEE TCSVT 2024) and Mask2Former
(arXiv:2112.01527).

B clips, T frames, N = B T, L words, Q queries of a frame and of a clip, D width, S tokens of three levels; h, w are a
quarter of the frame; G frame decoder layers that the video decoder reads, V layers of the video decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.attention import Mlp, ResidualFeedForward, check_heads
from deixis.blocks.deformable import EncoderLayer, references_of, valid_share
from deixis.blocks.fusion import one_by_one, split_expressions
from deixis.blocks.levels import ClipTokens
from deixis.blocks.pixel_decoder import ConvNormReLU
from deixis.blocks.query_heads import join
from deixis.blocks.temporal import ResidualAttention
from deixis.encoders.conv_clip import (
    CONV_CLIP_STRIDES,
    ConvClip,
    ConvClipConfig,
    convnext_base_w_320,
    convnext_large_d_320,
    small_conv_clip,
)
from deixis.encoders.frozen import CLIP_MEAN, CLIP_STD
from deixis.types import Batch, Expression, FeatureMaps, Prediction, SystemConfig, TextFeatures, bounded


@dataclass(frozen=True, kw_only=True)
class ConvClipMevisConfig(SystemConfig):
    """Sizes of the parents where not said: the report gives none that we could read."""

    tower: ConvClipConfig = field(default_factory=convnext_large_d_320)  # FC-CLIP's size (our choice)
    width: int = 256  # D (read)
    queries: int = 20  # Q (read: LMPM, DsHmp)
    heads: int = 8  # (read)
    fusion_layers: int = bounded(6, least=0)  # of the cross-modal encoder (read: Mask2Former's pixel decoder)
    fusion_hidden: int = 1024  # inside its two-layer networks (read)
    points: int = 4  # sampled a head and level (read)
    bi_attention_width: int = 1024  # inside the attention between pixels and words (read: DsHmp)
    bi_attention_heads: int = 4  # of it, and of the words' own attention (read)
    bi_attention_scale: float = 1e-4  # of its residuals at first (read)
    bi_attention_dropout: float = 0.1  # (read)
    bi_attention_drop_path: float = 0.1  # chance that a clip's frame does without it, in training (read)
    frame_layers: int = bounded(9, least=0)  # of the frame decoder (read)
    read_layers: int = bounded(3, least=0)  # G: its last layers, which the video decoder reads in training (read)
    window_layers: int = bounded(6, least=0)  # of the frame queries' own attention in windows of frames (read: LMPM)
    window_frames: int = bounded(6, most=1024)  # (read: LMPM; DsHmp 8)
    video_layers: int = bounded(3, least=0)  # V (read)
    hidden: int = 2048  # inside the decoders' two-layer networks (read)
    dropout: float = 0.0  # of the decoders and of deformable attention (from memory)
    text_dropout: float = 0.1  # after the words' projection (read)
    norm_groups: int = 32  # of GroupNorms (read)
    # The report's claims, each with its other side. Words "start": the sentence is what queries start from, as in LMPM,
    # and no pixel or query attends to words elsewhere (the class heads read the sentence either way, as in LMPM).
    words: Literal["everywhere", "start"] = "everywhere"
    video_start: Literal["initialised", "learned"] = "initialised"  # video queries: from the frames', or parameters
    align: bool = True  # bring a slot to the same object in all frames first (our choice; the report may not)
    several: bool = True  # show every query above the threshold; False: the best one (single-target benchmarks)
    presence_threshold: float | None = 0.5  # of a query; the published rule (read: DsHmp; LMPM 0.8)
    enlarge: Literal["at_once", "through_input"] = "through_input"  # (read: LMPM)
    frames_at_once: int = 4  # frames that go through the encoder together in evaluation (our choice)
    short_side: int = 448  # pixels (read)
    long_side: int = 768  # pixels (read of training; our choice here)
    window: int = 18  # frames decoded at once at inference (read: LMPM)
    multiple: int = 32  # pixels; height and width are padded to it
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


@dataclass(frozen=True, eq=False)
class FilmMemory:
    """What is kept of a film: the words of K expressions; frame queries (K, t, Q, D) of every window so far; and, after
    the first pass, the video queries' kernels (K, Q, D) and scores (K, Q)."""

    text: TextFeatures
    queries: tuple[Tensor, ...] = ()
    kernels: Tensor | None = None
    scores: Tensor | None = None


class ConvClipMevis(nn.Module):
    """Segment, in every frame, all objects that an expression names."""

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.tower, channels = ConvClip(config.tower), config.tower.channels
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 1), nn.GroupNorm(config.norm_groups, d)) for c in channels
        )
        self.project_words = nn.Sequential(
            nn.Linear(config.tower.joint, d), nn.LayerNorm(d), nn.Dropout(config.text_dropout)
        )
        self.fuse = CrossModalEncoder(config)
        self.pixel_decoder = MaskFeatures(d, config.norm_groups)
        self.frame_decoder = FrameDecoder(config)
        self.frame_heads, self.video_heads = Heads(d), Heads(d)
        self.video_pixels = nn.Conv2d(d, d, 1)
        self.video_decoder = VideoDecoder(config)

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> FeatureMaps:
        """frames: (B, T, 3, H, W); padding: (B, T, H, W). Frame by frame, without words: encode once, decode many.

        ``wanted`` is for ``decode``, since all frames of a clip are used.
        """
        step = frames.shape[1] if torch.is_grad_enabled() else self.config.frames_at_once
        parts = [self.project_levels(part) for part in frames.split(step, dim=1)]
        levels = tuple(torch.cat(same, dim=1) for same in zip(*parts, strict=True))
        return FeatureMaps(levels, CONV_CLIP_STRIDES, padding, (frames.shape[-2], frames.shape[-1]))

    def project_levels(self, frames: Tensor) -> tuple[Tensor, ...]:
        """(B, T, D, h, w) of frames (B, T, 3, H, W) at strides 4, 8, 16, 32."""
        levels = zip(self.project, self.tower.encode_image(frames), strict=True)
        return tuple(project(level.flatten(0, 1)).unflatten(0, level.shape[:2]) for project, level in levels)

    def encode_text(self, expressions: Sequence[Expression]) -> TextFeatures:
        """Words (B, L, D) and sentences (B, D) from the space that words share with pixels."""
        text = self.tower.encode_text([e.text for e in expressions])
        return TextFeatures(self.project_words(text.words), text.padding, self.project_words(text.sentence))

    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """One clip takes any number of expressions (B is then that number); otherwise one a clip.

        All frames of the clip are used; masks are given of the ``wanted`` ones.
        """
        scene, text = ClipTokens(maps), self.encode_text(expressions)
        return join([self.predict_clip(scene, group, wanted) for group in split_expressions(scene.clips, text)])

    def forward(self, batch: Batch) -> Prediction:
        return self.decode(self.encode(batch.frames, batch.padding), batch.expressions, batch.wanted)

    def predict_clip(self, scene: ClipTokens, text: TextFeatures, wanted: Sequence[int] | None = None) -> Prediction:
        """In training with everything that the losses read, in ``extras``; the mathematics is the same."""
        queries, pixels = self.decode_frames(scene, text)
        with torch.autocast(pixels.device.type, enabled=False):  # few tokens; scores and masks in fp32
            read = self.config.read_layers if self.training else 1
            videos = self.video_decoder(queries[-read:], text)  # (G, V, B, Q, D)
            kernels, scores = self.video_heads.kernel(videos), self.video_heads.score(videos, text.sentence)
            if wanted is not None:
                queries, pixels = queries[:, :, list(wanted)], pixels[:, list(wanted)]
            video_pixels = self.map_video_pixels(pixels)  # (B, T, D, h, w)
            answer = predict_masks_of_film(kernels[-1, -1], scores[-1, -1], video_pixels)
            if not self.training:
                return answer
            extras = {
                "frame_scores": self.frame_heads.score(queries, text.sentence[:, None]),  # (F, B, T, Q)
                "frame_kernels": self.frame_heads.kernel(queries),
                "frame_embeddings": self.frame_heads.embedding(queries[-read:]),
                "video_scores": scores, "video_kernels": kernels,
                "video_embeddings": self.video_heads.embedding(videos),
            }  # fmt: skip
        front = {name: x.movedim(1 if name.startswith("frame") else 2, 0) for name, x in extras.items()}  # B first
        return replace(answer, extras={**front, "frame_pixels": pixels, "video_pixels": video_pixels})

    def decode_frames(self, scene: ClipTokens, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """(frame queries (F, B, T, Q, D), mask features (B, T, D, h, w)).

        F: the decoder's start and all its layers in training, else the last layer alone. Frames are independent
        here, so a part of them goes at a time.
        """
        done = []
        for part in scene.parts(self.config.frames_at_once):
            fused, words, pixels = self.fuse_part(part, text)
            states = self.frame_decoder(part, fused, words, pixels, self.frame_heads)
            kept = torch.stack(states if self.training else states[-1:]).float()  # (F, N, Q, D)
            done.append((kept.unflatten(1, (part.clips, -1)), pixels.unflatten(0, (part.clips, -1)).float()))
        return torch.cat([q for q, _ in done], dim=2), torch.cat([p for _, p in done], dim=1)

    def fuse_part(self, part: ClipTokens, text: TextFeatures) -> tuple[tuple[Tensor, ...], TextFeatures, Tensor]:
        """(three levels (N, h, w, D), words (N, L, D), pixels (N, D, h, w)) of some frames, words and pixels fused."""
        words = TextFeatures(*(x.repeat_interleave(part.frames, 0) for x in (text.words, text.padding, text.sentence)))
        fused, words = self.fuse(part, words)
        return fused, words, self.pixel_decoder(fused[0], part.fine)

    def map_video_pixels(self, pixels: Tensor) -> Tensor:
        return self.video_pixels(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    # A film is encoded twice: the video queries attend to all frames, and their mask features are too large to keep.

    def collect(self, maps: FeatureMaps, expressions: Sequence[Expression], memory: FilmMemory | None) -> FilmMemory:
        """First pass: a window's frame queries, which are all that the video queries need."""
        memory = memory or FilmMemory(self.encode_text(expressions))
        scene = ClipTokens(maps)
        found = [self.decode_frames(scene, text)[0][-1] for text in one_by_one(memory.text)]  # (1, T, Q, D) each
        return replace(memory, queries=(*memory.queries, torch.cat(found)))

    def finalize(self, memory: FilmMemory, expressions: Sequence[Expression]) -> FilmMemory:
        """After it: the video module, once over the whole film."""
        queries = torch.cat(memory.queries, dim=1)  # (K, T, Q, D)
        kernels, scores = [], []
        with torch.autocast(queries.device.type, enabled=False):
            for own, text in zip(queries, one_by_one(memory.text), strict=True):
                video = self.video_decoder(own[None, None], text)[-1, -1]  # (1, Q, D)
                kernels.append(self.video_heads.kernel(video))
                scores.append(self.video_heads.score(video, text.sentence))
        return FilmMemory(memory.text, (), torch.cat(kernels), torch.cat(scores))

    def step(
        self, maps: FeatureMaps, expressions: Sequence[Expression], memory: FilmMemory
    ) -> tuple[Prediction, FilmMemory]:
        """Second pass: the masks of the film's video queries in a window."""
        assert memory.kernels is not None and memory.scores is not None  # noqa: PT018
        scene, answers = ClipTokens(maps), []
        for text, kernels, scores in zip(one_by_one(memory.text), memory.kernels, memory.scores, strict=True):
            painted = []
            for part in scene.parts(self.config.frames_at_once):
                pixels = self.fuse_part(part, text)[2].unflatten(0, (1, -1)).float()
                with torch.autocast(pixels.device.type, enabled=False):
                    painted.append(predict_masks_of_film(kernels[None], scores[None], self.map_video_pixels(pixels)))
            answers.append(
                Prediction(torch.cat([p.masks for p in painted], 1), torch.cat([p.scores for p in painted], 1))
            )
        return join(answers), memory


def predict_masks_of_film(kernels: Tensor, scores: Tensor, pixels: Tensor) -> Prediction:
    """Kernels (B, Q, D) and scores (B, Q) of video queries on pixels (B, T, D, h, w): a query has one score a film."""
    masks = torch.einsum("bqd,btdhw->btqhw", kernels, pixels)
    return Prediction(masks, scores[:, None].expand(masks.shape[:3]))


class Heads(nn.Module):
    """Heads on queries: a score against the sentence, the kernel of a mask, and an embedding to associate frames by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(2 * width, 2)  # of query and sentence: something else, or what is named
        self.kernel, self.embedding = Mlp(width, width, width, width), nn.Linear(width, width)

    def score(self, queries: Tensor, sentence: Tensor) -> Tensor:
        """(..., Q): log odds of being named, from queries (..., B, [T,] Q, D) and sentences (B, [1,] D)."""
        beside = sentence.float()[..., None, :].expand_as(queries)
        logits = self.classes(torch.cat([queries, beside], dim=-1))
        return logits[..., 1] - logits[..., 0]


class BiAttention(nn.Module):
    """Pixels attend to words and words to pixels, by one similarity (GLIP, arXiv:2112.03857; sizes of DsHmp).

    The residual is not normalised: DsHmp adds to the normalised input, which cuts the path past the block (our choice).
    PyTorch's softmax subtracts the largest score itself, so the published shift and clamp are not needed.
    """

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        d, inner = config.width, config.bi_attention_width
        self.heads = check_heads(inner, config.bi_attention_heads)
        self.dropout, self.drop_path = config.bi_attention_dropout, config.bi_attention_drop_path
        self.pixel_norm, self.word_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.pixel_query, self.word_query = nn.Linear(d, inner), nn.Linear(d, inner)
        self.pixel_value, self.word_value = nn.Linear(d, inner), nn.Linear(d, inner)
        self.pixel_out, self.word_out = nn.Linear(inner, d), nn.Linear(inner, d)
        scale = torch.full((d,), config.bi_attention_scale)
        self.pixel_scale, self.word_scale = nn.Parameter(scale.clone()), nn.Parameter(scale)

    def forward(
        self, pixels: Tensor, words: Tensor, pixel_padding: Tensor | None, word_padding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, S, D) and (N, L, D) from the same; paddings (N, S) or None, and (N, L)."""
        p, w = self.pixel_norm(pixels), self.word_norm(words)
        queries, keys = self._heads(self.pixel_query(p)), self._heads(self.word_query(w))
        attended_words = self._attend(queries, keys, self._heads(self.word_value(w)), word_padding)
        attended_pixels = self._attend(keys, queries, self._heads(self.pixel_value(p)), pixel_padding)
        pixels = pixels + self._drop(self.pixel_scale * self.pixel_out(attended_words))
        return pixels, words + self._drop(self.word_scale * self.word_out(attended_pixels))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "n s (g d) -> n g s d", g=self.heads)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
        there = None if padding is None else ~padding[:, None, None]
        dropout = self.dropout if self.training else 0.0
        return rearrange(F.scaled_dot_product_attention(query, key, value, there, dropout), "n g s d -> n s (g d)")

    def _drop(self, change: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return change
        kept = torch.rand(len(change), 1, 1, device=change.device) >= self.drop_path
        return change * kept / (1 - self.drop_path)


class FusionLayer(nn.Module):
    """Pixels and words are fused, words attend to each other, pixels sample each other (arXiv:2303.05499)."""

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        d = config.width
        self.with_words = config.words == "everywhere"
        if self.with_words:
            self.bi_attention = BiAttention(config)
            self.self_attention = ResidualAttention(d, config.bi_attention_heads, config.bi_attention_dropout)
            self.feed_forward = ResidualFeedForward(d, config.fusion_hidden, config.bi_attention_dropout)
        self.deformable = EncoderLayer(d, config.heads, 3, config.points, config.fusion_hidden, config.dropout)

    def forward(
        self, tokens: Tensor, words: Tensor, word_padding: Tensor, places: Tensor, points: Tensor,
        shapes: Sequence[tuple[int, int]], padding: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(N, S, D) and (N, L, D) from the same."""
        if self.with_words:
            tokens, words = self.bi_attention(tokens, words, padding, word_padding)
            words = self.feed_forward(self.self_attention(words, words, words, words, word_padding))
        return self.deformable(tokens, places, points, shapes, padding), words


class CrossModalEncoder(nn.Module):
    """Three levels of every frame and the words, layer by layer; each frame's words then attend to that frame."""

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.fusion_layers))
        self.level = nn.Parameter(torch.randn(3, config.width))

    def forward(self, scene: ClipTokens, words: TextFeatures) -> tuple[tuple[Tensor, ...], TextFeatures]:
        """(levels (N, h, w, D), coarse ones last; words (N, L, D)) from a scene and its words, repeated over frames."""
        grids = [scene.grid(i) for i in range(3)]
        shapes = tuple((g.shape[1], g.shape[2]) for g in grids)
        paddings = [scene.padding(i) for i in range(3)]
        tokens, device = torch.cat([g.flatten(1, 2) for g in grids], dim=1), grids[0].device
        places = torch.cat([scene.positions(i).flatten(1, 2) + self.level[i] for i in range(3)], dim=1)
        padding = valid = None
        if scene.padded:
            there = [p for p in paddings if p is not None]
            padding = torch.cat([p.flatten(1) for p in there], dim=1)
            valid = torch.stack([valid_share(p) for p in there], dim=1)
        points, tokens_of_words = references_of(shapes, valid, device), words.words.to(tokens.dtype)
        for layer in self.layers:
            tokens, tokens_of_words = layer(
                tokens, tokens_of_words, words.padding, places.to(tokens.dtype), points, shapes, padding
            )
        split = tokens.split([h * w for h, w in shapes], dim=1)
        levels = tuple(level.unflatten(1, shape) for level, shape in zip(split, shapes, strict=True))
        return levels, TextFeatures(tokens_of_words, words.padding, words.sentence)


class MaskFeatures(nn.Module):
    """Mask features: the finest fused level, doubled in size, with the tower's level at stride 4."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.mix, self.out = ConvNormReLU(width, width, groups), nn.Conv2d(width, width, 1)

    def forward(self, level: Tensor, fine: Tensor) -> Tensor:
        """(N, D, h, w) from a level (N, ., ., D) at stride 8 and the projected one (N, D, h, w) at stride 4."""
        coarse = level.permute(0, 3, 1, 2).to(fine.dtype)
        return self.out(self.mix(fine + F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")))


class FrameQueryLayer(nn.Module):
    """Queries attend to tokens, to words, and to each other; a two-layer network; all post-norm."""

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        shape = (config.width, config.heads, config.dropout)
        self.cross_attention, self.self_attention = ResidualAttention(*shape), ResidualAttention(*shape)
        self.attend_text = ResidualAttention(*shape) if config.words == "everywhere" else None
        self.feed_forward = ResidualFeedForward(config.width, config.hidden, config.dropout)

    def forward(
        self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None, text: TextFeatures
    ) -> Tensor:
        """(N, Q, D) from x (N, Q, D), its positions, keys and values (N, S, D), padding (N, S) or (N, Q, S) of them."""
        x = self.cross_attention(x, x + position, keys, values, padding)
        if self.attend_text is not None:
            words = text.words.to(x.dtype)
            x = self.attend_text(x, x + position, words, words, text.padding)
        placed = x + position
        return self.feed_forward(self.self_attention(x, placed, placed, x))


class FrameDecoder(nn.Module):
    """Q queries of every frame attend to one level after the other, masked by their own masks so far (Mask2Former)."""

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        q, d = config.queries, config.width
        self.layers = nn.ModuleList(FrameQueryLayer(config) for _ in range(config.frame_layers))
        self.start = nn.Parameter(torch.randn(q, d)) if config.words == "everywhere" else None
        self.position, self.level = nn.Parameter(torch.randn(q, d)), nn.Parameter(torch.randn(3, d))
        self.norm = nn.LayerNorm(d)

    def forward(
        self, scene: ClipTokens, levels: Sequence[Tensor], text: TextFeatures, pixels: Tensor, heads: Heads
    ) -> list[Tensor]:
        """The normalised queries (N, Q, D) before and after every layer; levels (N, h, w, D), pixels (N, D, h, w)."""
        n, q = len(pixels), len(self.position)
        position = self.position.expand(n, -1, -1)
        x = text.sentence[:, None].expand(-1, q, -1) if self.start is None else self.start.expand(n, -1, -1)
        x = x.to(levels[0].dtype)
        values = [level.flatten(1, 2) + self.level[i] for i, level in enumerate(levels)]
        keys = [value + scene.positions(i).flatten(1, 2).to(value.dtype) for i, value in enumerate(values)]
        # A kernel on shrunken pixels is the shrunken mask, at a fraction of the cost: both are linear.
        shrunk = [F.interpolate(pixels.detach(), size=level.shape[1:3], mode="bilinear") for level in levels]
        paddings = [None if p is None else p.flatten(1) for p in (scene.padding(i) for i in range(3))]
        states = [self.norm(x)]
        for number, layer in enumerate(self.layers):
            i = 2 - number % 3  # coarse to fine, in turn
            blocked = attention_mask(heads.kernel(states[-1].detach()), shrunk[i], paddings[i])
            x = layer(x, position, keys[i], values[i], blocked, text)
            states.append(self.norm(x))
        return states


@torch.no_grad()
def attention_mask(kernels: Tensor, pixels: Tensor, padding: Tensor | None) -> Tensor:
    """(N, Q, S) bool, True where a query's mask is not; a query without a mask attends everywhere but to padding."""
    blocked = torch.einsum("nqd,ndhw->nqhw", kernels.to(pixels.dtype), pixels).flatten(2) < 0
    blocked = blocked & ~blocked.all(-1, keepdim=True)
    if padding is None:
        return blocked
    blocked = blocked | padding[:, None]
    return torch.where(blocked.all(-1, keepdim=True), padding[:, None], blocked)


class WindowEncoder(nn.Module):
    """Frame queries attend to each other in windows of frames; every other layer's windows are shifted by half of one.

    VITA shifts in evaluation only; here whenever the clip is longer than a window, so that training does what
    evaluation does (our choice).
    """

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        self.frames, layers = config.window_frames, range(config.window_layers)
        d, p = config.width, config.dropout
        self.self_attention = nn.ModuleList(ResidualAttention(d, config.heads, p) for _ in layers)
        self.feed_forward = nn.ModuleList(ResidualFeedForward(d, config.hidden, p) for _ in layers)

    def forward(self, queries: Tensor) -> Tensor:
        """(B, T, Q, D) -> (B, T, Q, D)."""
        b, t, q, _ = queries.shape
        for number, (attention, feed_forward) in enumerate(zip(self.self_attention, self.feed_forward, strict=True)):
            before = self.frames // 2 if number % 2 and t > self.frames else 0
            after = -(before + t) % self.frames
            padded = F.pad(queries, (0, 0, 0, 0, before, after))
            x = rearrange(padded, "b (n f) q d -> (b n) (f q) d", f=self.frames)
            padding = None
            if before + after:
                none = F.pad(torch.zeros(t, dtype=torch.bool, device=x.device), (before, after), value=True)
                padding = none.view(-1, self.frames).repeat_interleave(q, 1).repeat(b, 1)
            x = feed_forward(attention(x, x, x, x, padding))
            queries = rearrange(x, "(b n) (f q) d -> b (n f) q d", b=b, f=self.frames)[:, before : before + t]
        return queries


class VideoDecoder(nn.Module):
    """Video queries, initialised from the frames' queries, attend to all of them and to the words."""

    def __init__(self, config: ConvClipMevisConfig) -> None:
        super().__init__()
        q, d = config.queries, config.width
        self.align = config.align
        self.project, self.windows = nn.Linear(d, d), WindowEncoder(config)
        self.frame_weight = nn.Linear(d, 1) if config.video_start == "initialised" else None  # LBVQ's weights over time
        learned = config.video_start == "learned" and config.words == "everywhere"
        self.start = nn.Parameter(torch.randn(q, d)) if learned else None
        self.layers = nn.ModuleList(FrameQueryLayer(config) for _ in range(config.video_layers))
        self.position, self.slot = nn.Parameter(torch.randn(q, d)), nn.Parameter(torch.randn(q, d))
        self.norm = nn.LayerNorm(d)

    def forward(self, queries: Tensor, text: TextFeatures) -> Tensor:
        """(G, V, B, Q, D), of every layer, from frame queries (G, B, T, Q, D) of G decoder layers."""
        g = len(queries)
        own = TextFeatures(
            text.words.float().repeat(g, 1, 1), text.padding.repeat(g, 1), text.sentence.float().repeat(g, 1)
        )
        flat = queries.flatten(0, 1)  # (G B, T, Q, D)
        if self.align:
            order = aligned_slots(flat)
            flat = flat.gather(2, order[..., None].expand_as(flat))
        tokens = self.project(flat)
        x = self.initial_queries(tokens, own)
        tokens = self.windows(tokens)
        keys, values = (tokens + self.slot).flatten(1, 2), tokens.flatten(1, 2)
        states = []
        for layer in self.layers:
            x = layer(x, self.position.expand_as(x), keys, values, None, own)
            states.append(self.norm(x).unflatten(0, (g, -1)))
        return torch.stack(states, dim=1)

    def initial_queries(self, tokens: Tensor, text: TextFeatures) -> Tensor:
        """(N, Q, D): what the video queries start from, of tokens (N, T, Q, D) whose slots are aligned."""
        if self.frame_weight is not None:
            return (self.frame_weight(tokens).softmax(1) * tokens).sum(1)
        if self.start is not None:
            return self.start.expand(len(tokens), -1, -1)
        return text.sentence[:, None].expand(-1, tokens.shape[2], -1)


@torch.no_grad()
def aligned_slots(queries: Tensor) -> Tensor:
    """(N, T, Q) int: which query of each frame continues slot k of the first, for queries (N, T, Q, D).

    Each frame is assigned to the one before it, at the greatest sum of cosines (Hungarian).
    """
    n, t, q, _ = queries.shape
    unit = F.normalize(queries.detach().float(), dim=-1)
    alike = torch.einsum("ntqd,ntkd->ntqk", unit[:, :-1], unit[:, 1:])
    costs = -np.nan_to_num(alike.cpu().numpy())
    order = np.empty((n, t, q), np.int64)
    order[:, 0] = np.arange(q)
    for i, j in np.ndindex(n, t - 1):
        order[i, j + 1] = linear_sum_assignment(costs[i, j])[1][order[i, j]]
    return torch.from_numpy(order).to(queries.device)


def conv_clip_mevis_l() -> ConvClipMevis:
    """With the larger published tower, as FC-CLIP."""
    return ConvClipMevis(ConvClipMevisConfig())


def conv_clip_mevis_b() -> ConvClipMevis:
    """With the smaller published tower."""
    return ConvClipMevis(ConvClipMevisConfig(tower=convnext_base_w_320()))


DEBUG_SIZES = {
    "tower": small_conv_clip(), "width": 32, "queries": 5, "heads": 4, "fusion_layers": 2, "fusion_hidden": 64,
    "points": 2, "bi_attention_width": 32, "bi_attention_heads": 2, "frame_layers": 3, "read_layers": 2,
    "window_layers": 2, "window_frames": 2, "video_layers": 2, "hidden": 64, "norm_groups": 4, "short_side": 64,
    "long_side": 128, "window": 4,
}  # fmt: skip


def conv_clip_mevis_debug() -> ConvClipMevis:
    """Random weights, small: for tests."""
    return ConvClipMevis(ConvClipMevisConfig(**DEBUG_SIZES))  # type: ignore[arg-type]


SYSTEM = ConvClipMevis, ConvClipMevisConfig
PRESETS = conv_clip_mevis_l, conv_clip_mevis_b, conv_clip_mevis_debug
NEEDS = {
    "conv_clip_mevis_l": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup, from the hub (or its cache) or a "
    "folder with its file and vocabulary; frozen",
    "conv_clip_mevis_b": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg, from the hub (or its cache) "
    "or a folder with its file and vocabulary; frozen",
}
