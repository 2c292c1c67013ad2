"""SOC: semantic-assisted object cluster (NeurIPS 2023, arXiv:2305.17011).

B clips, T frames, L words, Q queries, D width; h, w are a quarter of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from deixis.blocks.deformable import DeformableTransformer
from deixis.blocks.fusion import CrossGate, gate_with_text, mean_of_words, split_expressions
from deixis.blocks.levels import ClipTokens, ProjectLevels, detect_in_frames
from deixis.blocks.pixel_decoder import FeaturePyramid
from deixis.blocks.query_heads import QueryHeads, join
from deixis.blocks.temporal import ClipDecoder, TokenEncoder
from deixis.encoders.conv_clip import ConvClip, ConvClipConfig
from deixis.encoders.roberta import TextConfig, TextEncoder
from deixis.encoders.video_swin import VideoSwin, VideoSwinConfig, video_swin_b, video_swin_t
from deixis.types import Batch, Expression, FeatureMaps, Prediction, SystemConfig, TextFeatures, bounded


@dataclass(frozen=True, kw_only=True)
class SocConfig(SystemConfig):
    """Sizes as published (read from the key lists and the fact sheet), where not said."""

    vision: VideoSwinConfig = field(default_factory=video_swin_t)
    text: TextConfig = field(default_factory=TextConfig)
    # A frozen ConvNeXt CLIP in place of both: ours, to compare SOC with systems that are built on such a tower.
    tower: ConvClipConfig | None = None
    width: int = 256  # D
    queries: int = 20  # Q, objects a frame, and objects a clip
    layers: int = bounded(3, least=0)  # of each encoder and decoder
    heads: int = 8  # of every attention
    points: int = 4  # sampled a head and level
    hidden: int = 2048  # width inside the two-layer networks
    dropout: float = 0.1
    mask_channels: int = 8  # of the features the kernels read, and inside the kernels
    norm_groups: int = 32  # of the projections' GroupNorm
    pixel_groups: int = 8  # of the pyramid's GroupNorm
    classes: int = 1  # outputs of the class head; the authors' README has 65 for Ref-YouTube-VOS from scratch
    cluster: bool = True  # False leaves the video-level cluster out (our ablation)
    # The authors' evaluation adds the clip queries of the last level to the frame queries of the first, and applies
    # the first level's heads: a pair that training never makes. "official" reproduces that, and with it published
    # figures; "last" takes everything from the last level.
    eval_level: Literal["last", "official"] = "last"
    kept_queries: int = 4  # queries returned with masks in evaluation, best first; A2D's mAP wants all (our choice)
    frames_at_once: int = 4  # frames that go through the frame-level part together in evaluation (our choice)
    short_side: int = 360  # pixels; A2D is trained and scored at 320/576
    long_side: int = 640  # pixels
    window: int = 36  # frames decoded at once at inference, as published for Ref-DAVIS17
    multiple: int = 4  # pixels; height and width are padded to it
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # ImageNet


class Soc(nn.Module):
    """Segment, in every frame, the object an expression names."""

    def __init__(self, config: SocConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.vision: VideoSwin | ConvClipVision
        self.text: TextEncoder | ConvClipText
        if config.tower is None:
            self.vision, self.text = VideoSwin(config.vision), TextEncoder(config.text, d)
        else:
            self.vision = ConvClipVision(config.tower)
            self.text = ConvClipText(self.vision.tower, d, config.dropout)
        self.project = ProjectLevels(self.vision.channels[1:], d, config.norm_groups)
        self.vision_gate, self.text_gate = CrossGate(d, config.heads), CrossGate(d, config.heads)  # the paper's MMF
        self.transformer = DeformableTransformer(
            d, config.queries, config.layers, 4, config.heads, config.hidden, config.points, config.dropout
        )
        self.cluster = QueryClusterer(config) if config.cluster else None  # the paper's VOC, half of SIM
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
        """Training predicts from every decoder level, evaluation from one; the mathematics is the same."""
        words = self.attend_text(text, scene)  # (B, L, D)
        frames = detect_in_frames(
            scene, lambda part: [gate_with_text(self.vision_gate, part, i, text) for i in range(4)],
            self.transformer, self.heads.box, self.pixel_decoder, self.config.frames_at_once,
        )  # fmt: skip
        sentence = mean_of_words(words, text.padding)  # (B, D)
        levels, kept = self.levels(), None if self.training else self.config.kept_queries
        with torch.autocast(sentence.device.type, enabled=False):  # scores, and the choice among queries, in fp32
            clips = self.clip_queries([frames.queries[read] for read, _ in levels], text.sentence.float())  # (B, Q, D)
            *aux, last = [
                self.heads(
                    i, self.add_clip_context(frames.queries[i], clip), clip, sentence, frames, scene.size_xy, kept
                )
                for (_, i), clip in zip(levels, clips, strict=True)
            ]
        return replace(last, aux=tuple(aux))

    def attend_text(self, text: TextFeatures, scene: ClipTokens) -> Tensor:
        """(B, L, D): text gated by attention to the unfused stride-32 features of the whole clip."""
        level = scene.tokens(2)
        keys = level + scene.clip_positions(2).to(level.dtype)
        return self.text_gate(text.words.to(level.dtype), keys, level, scene.clip_padding(2))

    def levels(self) -> list[tuple[int, int]]:
        """Pairs of decoder levels: the one that clip queries are made from, and the one that predicts."""
        if self.training:
            return [(i, i) for i in range(self.config.layers)]
        last = self.config.layers - 1
        return [(last, 0 if self.config.eval_level == "official" else last)]

    def clip_queries(self, queries: Sequence[Tensor], sentence: Tensor) -> Sequence[Tensor]:
        """Clip queries (B, Q, D) of each level's frame queries (B, T, Q, D)."""
        if self.cluster is None:
            return [x.mean(1) for x in queries]
        return self.cluster(torch.cat(list(queries)), sentence.repeat(len(queries), 1)).chunk(len(queries))

    def add_clip_context(self, queries: Tensor, clip: Tensor) -> Tensor:
        """(B, T, Q, D): frame queries plus the clip's; without the cluster, the frame queries alone."""
        return queries if self.cluster is None else queries + clip[:, None]


class ConvClipVision(nn.Module):
    """The four levels of a frozen ConvNeXt CLIP."""

    def __init__(self, config: ConvClipConfig) -> None:
        super().__init__()
        self.tower, self.channels = ConvClip(config), config.channels

    def forward(self, frames: Tensor) -> Sequence[Tensor]:
        return self.tower.encode_image(frames)


class ConvClipText(nn.Module):
    """A frozen tower's words and sentence, brought to the width as RoBERTa's are."""

    def __init__(self, tower: ConvClip, out: int, dropout: float) -> None:
        super().__init__()
        self.encode_text = tower.encode_text  # the tower itself belongs to the image encoder
        self.project = nn.Sequential(
            nn.Linear(tower.config.joint, out), nn.LayerNorm(out, eps=1e-12), nn.Dropout(dropout)
        )

    def forward(self, texts: Sequence[str]) -> TextFeatures:
        text = self.encode_text(texts)
        return TextFeatures(self.project(text.words), text.padding, self.project(text.sentence))


class QueryClusterer(nn.Module):
    """The paper's video-level object cluster: frame queries attend to each other, then Q clip
    queries, which start as the sentence, attend to them."""

    def __init__(self, config: SocConfig) -> None:
        super().__init__()
        shape = (config.heads, config.hidden, config.layers, config.dropout)
        self.encoder = TokenEncoder(config.width, *shape)
        self.decoder = ClipDecoder(config.width, config.queries, *shape)

    def forward(self, queries: Tensor, sentence: Tensor) -> Tensor:
        """(B, Q, D) from frame queries (B, T, Q, D) and sentences (B, D)."""
        tokens = self.encoder(queries.flatten(1, 2))
        return self.decoder(sentence[:, None].expand(-1, queries.shape[2], -1), tokens)


def soc_swin_t() -> Soc:
    """The published system with the smaller backbone."""
    return Soc(SocConfig())


def soc_swin_b() -> Soc:
    """The published system with the larger backbone."""
    return Soc(SocConfig(vision=video_swin_b()))


def soc_debug() -> Soc:
    """Random weights, small: for tests."""
    return Soc(
        SocConfig(
            vision=VideoSwinConfig(dim=8, depths=(2, 1, 1, 1), heads=(1, 1, 2, 2), window=(4, 4, 4)),
            text=TextConfig(
                vocabulary=64, width=32, layers=2, heads=2, hidden=64, positions=130, tokenizer="letters", frozen=False
            ),
            width=32,
            queries=5,
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


SYSTEM = Soc, SocConfig
PRESETS = soc_swin_t, soc_swin_b, soc_debug
