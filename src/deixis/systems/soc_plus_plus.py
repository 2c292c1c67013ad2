"""SOC++: multi-modal object clustering (TPAMI 2025, IEEE 11184493).

B clips, T frames, L words, Q queries, P proxies, D width; h, w are a quarter of the frame.

Beside SOC: proxies carry between words and pixels, so words no longer attend to every cell; a frame counts for the clip
as much as it is relevant; and frames learn from the clip by a random walk and an attention instead of a sum.
The paper speaks of entropy; the released code computes none, and this follows the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.attention import ResidualFeedForward
from deixis.blocks.deformable import DeformableTransformer
from deixis.blocks.fusion import CrossGate, gate_with_text, mean_of_words, split_expressions
from deixis.blocks.levels import ClipTokens, ProjectLevels, detect_in_frames
from deixis.blocks.pixel_decoder import FeaturePyramid
from deixis.blocks.query_heads import QueryHeads, join
from deixis.blocks.temporal import ClipDecoder, ResidualAttention, TokenEncoder
from deixis.encoders.roberta import TextConfig, TextEncoder
from deixis.encoders.video_swin import VideoSwin, VideoSwinConfig, video_swin_b, video_swin_t
from deixis.types import Batch, Expression, FeatureMaps, Prediction, SystemConfig, TextFeatures, bounded


@dataclass(frozen=True, kw_only=True)
class SocPlusPlusConfig(SystemConfig):
    """Sizes as published (read from the key list and the fact sheet), where not said."""

    vision: VideoSwinConfig = field(default_factory=video_swin_t)
    text: TextConfig = field(default_factory=TextConfig)
    width: int = 256  # D
    queries: int = 20  # Q, objects a frame, and objects a clip; the relevance heads are tied to their number and order
    proxies: int = 20  # P
    layers: int = bounded(3, least=0)  # of each encoder and decoder
    heads: int = 8  # of every attention
    points: int = 4  # sampled a head and level
    hidden: int = 2048  # width inside the two-layer networks
    dropout: float = 0.1
    mask_channels: int = 8  # of the features the kernels read, and inside the kernels
    norm_groups: int = 32  # of the projections' GroupNorm
    pixel_groups: int = 8  # of the pyramid's GroupNorm
    classes: int = 1  # outputs of the class head
    walk: float = 0.5  # share of a random walk that goes on at each step
    # To score how well a frame fits the sentence, the authors lay queries out by time, level and clip, but read them by
    # clip, level and time, so that a frame gets the value of another frame and level (with several clips, of another
    # clip). "official" reproduces that; published weights need it.
    score_order: Literal["aligned", "official"] = "aligned"
    # Where the proxies' keys were meant to be feature + position, the authors add the feature to itself. "official"
    # reproduces the doubled feature; published weights need it.
    proxy_key: Literal["position", "official"] = "position"
    kept_queries: int = 4  # queries painted and returned in evaluation, best first; A2D's mAP wants all (our choice)
    frames_at_once: int = 4  # frames that go through the frame-level part together in evaluation (our choice)
    short_side: int = 360  # pixels; A2D is trained and scored at 320/576
    long_side: int = 640  # pixels
    window: int = 36  # frames decoded at once at inference (our choice; officially 40 or 80, on MeViS)
    multiple: int = 4  # pixels; height and width are padded to it
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # ImageNet


class SocPlusPlus(nn.Module):
    """Segment, in every frame, the object an expression names."""

    def __init__(self, config: SocPlusPlusConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.vision, self.text = VideoSwin(config.vision), TextEncoder(config.text, d)
        self.project = ProjectLevels(self.vision.channels[1:], d, config.norm_groups)
        self.vision_gate, self.text_gate = CrossGate(d, config.heads), CrossGate(d, config.heads)
        self.proxy_gate, self.proxies = CrossGate(d, config.heads), nn.Parameter(torch.randn(config.proxies, d))
        self.transformer = DeformableTransformer(
            d, config.queries, config.layers, 4, config.heads, config.hidden, config.points, config.dropout
        )
        self.cluster = RelevanceClusterer(config)
        self.to_frames = ResidualAttention(d, config.heads, config.dropout)
        self.pixel_decoder = FeaturePyramid(d, self.vision.channels[0], config.mask_channels, config.pixel_groups)
        self.heads = QueryHeads(d, config.layers, config.classes, config.mask_channels)

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> FeatureMaps:
        """frames: (B, T, 3, H, W); padding: (B, T, H, W). No words yet: encode once, decode many.

        With ``wanted`` the backbone encodes all frames, and everything after it the wanted ones only (A2D, JHMDB).
        """
        levels = self.vision(frames)  # (B, T, C, h, w) each
        if wanted is not None:
            levels, padding = [level[:, list(wanted)] for level in levels], padding[:, list(wanted)]
        fine = self.pixel_decoder.fine(levels[0].flatten(0, 1)).unflatten(0, padding.shape[:2])
        return self.project(levels[1:], fine, padding, tuple(frames.shape[-2:]))

    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """One clip takes any number of expressions (B is then that number); otherwise one a clip."""
        scene, text = ClipTokens(maps, wanted), self.text([e.text for e in expressions])
        return join([self.predict_clip(scene, group) for group in split_expressions(scene.clips, text)])

    def forward(self, batch: Batch) -> Prediction:
        return self.decode(self.encode(batch.frames, batch.padding, batch.wanted), batch.expressions)

    def predict_clip(self, scene: ClipTokens, text: TextFeatures) -> Prediction:
        """Training predicts from every decoder level, evaluation from the last; the mathematics is the same."""
        fused = scene.with_grids([gate_with_text(self.vision_gate, scene, i, text) for i in range(4)])
        proxies = self.attend_levels(fused)  # (B, P, D)
        words = self.text_gate(text.words.to(proxies.dtype), proxies, proxies)  # (B, L, D)
        sentence = mean_of_words(words, text.padding)  # (B, D)
        frames = detect_in_frames(
            fused, lambda part: [part.grid(i) for i in range(4)],
            self.transformer, self.heads.box, self.pixel_decoder, self.config.frames_at_once, proxies.float().mean(1),
        )  # fmt: skip
        levels = range(self.config.layers) if self.training else [self.config.layers - 1]
        kept = None if self.training else self.config.kept_queries
        with torch.autocast(sentence.device.type, enabled=False):  # scores, and the choice among queries, in fp32
            clips = self.cluster(frames.queries, sentence, levels)  # (B, Q, D) a level
            *aux, last = [
                self.heads(
                    i, self.add_clip_context(frames.queries[i], clip), clip, sentence, frames, scene.size_xy, kept
                )
                for i, clip in zip(levels, clips, strict=True)
            ]
        return replace(last, aux=tuple(aux))

    def attend_levels(self, fused: ClipTokens) -> Tensor:
        """(B, P, D): proxies after cross-attention to the text-fused levels at strides 8, 16 and 32."""
        proxies = self.proxies.expand(fused.clips, -1, -1).to(fused.tokens(0).dtype)
        for i in range(3):
            level = fused.tokens(i)  # (B, T h w, D)
            added = level if self.config.proxy_key == "official" else fused.clip_positions(i).to(level.dtype)
            proxies = self.proxy_gate(proxies, level + added, level, fused.clip_padding(i)) + proxies
        return proxies

    def add_clip_context(self, queries: Tensor, clip: Tensor) -> Tensor:
        """(B, T, Q, D): frame queries with the clip's context: what a random walk spreads, read by an attention."""
        tokens = queries.flatten(1, 2)
        spread = random_walk(clip, tokens, self.config.walk)
        return self.to_frames(tokens, tokens, spread, spread).view_as(queries)


class RelevanceClusterer(nn.Module):
    """Clip queries from frames that count as much as they are relevant."""

    def __init__(self, config: SocPlusPlusConfig) -> None:
        super().__init__()
        shape = (config.heads, config.hidden, config.layers, config.dropout)
        self.presence = RelevanceHead(config.width * config.queries, config.hidden)
        self.change = RelevanceHead(config.width * config.queries, config.hidden)
        self.encoder = TokenEncoder(config.width, *shape)
        self.decoder = ClipDecoder(config.width, config.queries, *shape)
        self.start = nn.Parameter(torch.randn(config.queries, config.width))
        self.score_order = config.score_order

    def forward(self, queries: Sequence[Tensor], sentence: Tensor, levels: Sequence[int]) -> Sequence[Tensor]:
        """(B, Q, D) for each of ``levels``, from frame queries (B, T, Q, D) of all levels and sentences (B, D)."""
        matches = self.match(queries, sentence)  # (levels, B, T)
        x = torch.cat([queries[i] for i in levels])  # (levels B, T, Q, D)
        match = torch.cat([matches[i] for i in levels])  # (levels B, T)
        frames = x.flatten(2)  # (levels B, T, Q D)
        so_far = frames.cumsum(1) / torch.arange(1, frames.shape[1] + 1, device=x.device)[:, None]
        relevance = self.presence(frames) + match + 0.5 * self.change(frames - so_far)  # (levels B, T)
        tokens = x.flatten(1, 2)
        tokens = self.encoder(tokens, context=(x * relevance[..., None, None]).flatten(1, 2))
        start = sentence[:, None] + self.start  # (B, Q, D)
        return self.decoder(start.repeat(len(levels), 1, 1), tokens).chunk(len(levels))

    def match(self, queries: Sequence[Tensor], sentence: Tensor) -> Tensor:
        """(all levels, B, T) in 0..1: how well a frame's queries, together, fit the sentence."""
        x = torch.stack(list(queries))  # (levels, B, T, Q, D)
        if self.score_order == "official":  # laid out by time, level, clip, but read by clip, level, time
            count, b, t = x.shape[:3]
            x = x.permute(2, 0, 1, 3, 4).reshape(b, count, t, *x.shape[3:]).transpose(0, 1)
        return F.cosine_similarity(x, sentence[:, None, None], dim=-1).mean(-1).sigmoid()


class RelevanceHead(nn.Module):
    """One number in 0..1 from all queries of a frame, in their order."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mix, self.out = ResidualFeedForward(width, hidden), nn.Linear(width, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.out(self.mix(frames))[..., 0].sigmoid()


def random_walk(objects: Tensor, tokens: Tensor, share: float) -> Tensor:
    """(B, Q, D): where walks between objects (B, Q, D) and tokens (B, M, D) lead in the end, in closed form.

    A walk goes on with probability ``share``: X' = (1 - w) (I - w^2 A)^-1 (w Z Y + X), with Z how an object spreads
    over the tokens, and A the way there and back. In fp32: an inverse is taken.
    """
    x, y = objects.float(), tokens.float()
    similarity = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).transpose(1, 2)
    spread = (5 * similarity).softmax(-1)  # (B, Q, M), over tokens; 5 as published
    back = spread / (spread.sum(1, keepdim=True) + 1e-9)  # (B, Q, M), over objects
    there_and_back = spread @ back.transpose(1, 2)  # (B, Q, Q)
    start = share * spread @ y + x
    identity = torch.eye(x.shape[1], device=x.device)
    return (1 - share) * torch.linalg.solve(identity - share**2 * there_and_back, start)


def soc_plus_plus_swin_t() -> SocPlusPlus:
    """The published system with the smaller backbone."""
    return SocPlusPlus(SocPlusPlusConfig())


def soc_plus_plus_swin_b() -> SocPlusPlus:
    """The system with the larger backbone (no published figures)."""
    return SocPlusPlus(SocPlusPlusConfig(vision=video_swin_b()))


def soc_plus_plus_debug() -> SocPlusPlus:
    """Random weights, small: for tests."""
    return SocPlusPlus(
        SocPlusPlusConfig(
            vision=VideoSwinConfig(dim=8, depths=(2, 1, 1, 1), heads=(1, 1, 2, 2), window=(4, 4, 4)),
            text=TextConfig(
                vocabulary=64, width=32, layers=2, heads=2, hidden=64, positions=130, tokenizer="letters", frozen=False
            ),
            width=32,
            queries=5,
            proxies=4,
            layers=2,
            heads=4,
            points=2,
            hidden=64,
            norm_groups=4,
            pixel_groups=2,
            short_side=64,
            long_side=128,
            window=8,
        )
    )


SYSTEM = SocPlusPlus, SocPlusPlusConfig
PRESETS = soc_plus_plus_swin_t, soc_plus_plus_swin_b, soc_plus_plus_debug
