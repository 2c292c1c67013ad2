"""light: the small bundled default. It finds objects without words and chooses among them with words.

B clips, T frames, N = B T frames, Q tracks of a clip, K expressions, D width, L words; h w cells at stride 4.

1. ``encode_frames``: two small pretrained image encoders (TinyViT, EfficientNet-lite2), frozen.
2. ``FramePixelDecoder``: their maps become features at strides 16, 8 and 4, and an objectness logit a cell at stride 8.
3. ``propose``: the best cells bring dynamic kernels (CondInst, arXiv:2003.05664) that predict masks; duplicates are
   suppressed; a proposal of one frame is linked to those of the next, so that one object is one track.
4. ``pool_tracks``: what the frozen maps hold under each track's masks, summarised over time (``TrackFeatures``).
5. ``TextScorer``: the tracks attend to the words and to one another; each gets a similarity to the expression, and so
   does "none of them". The scorer takes any tracks: its own, true ones, another tool's (``deixis.choose``).

Steps 1 to 4 cost most of the time and happen once a clip; a further expression costs step 5 alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deixis.blocks.attention import CrossAttention, FeedForward, SelfAttention
from deixis.blocks.paths import REACH, best_paths
from deixis.blocks.proposals import KernelHead, best_beside, features_at, masks_of_cells, peaks, suppress_duplicates
from deixis.encoders.efficientnet_lite import EfficientNetLite
from deixis.encoders.fast import FastNetwork, openvino_version
from deixis.encoders.minilm import MiniLm, MiniLmConfig
from deixis.encoders.tiny_vit import TinyVit
from deixis.types import Batch, Expression, FeatureMaps, Prediction, SystemConfig, TextFeatures, bounded

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
COLOUR_SYNONYMS = {"grey": "gray", "golden": "yellow", "violet": "purple", "silver": "gray", "beige": "brown",
                   "blonde": "yellow", "dark": "black", "tan": "brown"}  # fmt: skip
# sRGB prototypes whose nearest one names a pixel; several shades for colours that span a wide range (our choice).
SHADES = (
    ("red", 200, 30, 35), ("red", 120, 15, 20), ("orange", 240, 130, 30), ("yellow", 240, 215, 50),
    ("yellow", 190, 160, 40), ("green", 70, 150, 60), ("green", 35, 75, 35), ("green", 140, 190, 90),
    ("blue", 40, 80, 190), ("blue", 110, 165, 220), ("blue", 25, 35, 85), ("purple", 120, 60, 150),
    ("pink", 235, 130, 170), ("pink", 230, 60, 140), ("brown", 120, 75, 45), ("brown", 70, 45, 30),
    ("brown", 175, 130, 90), ("black", 25, 25, 25), ("white", 240, 240, 240), ("gray", 130, 130, 130),
    ("gray", 80, 80, 80), ("gray", 185, 185, 185),
)  # fmt: skip
# Words that never name an object: what is left of a sentence without them begins with its head noun (our choice).
NOT_NAMES = frozenset(
    """
    a an the this that these those one ones of on in at to by with from and or is are be being it its which who while
    left right top bottom upper lower middle center centre central side corner part picture image frame screen video
    big large small little tiny huge largest smallest biggest bigger smaller larger tall short leftmost rightmost
    nearest closest farthest front back behind under over above below near next between far away closer toward towards
    moves moving move going goes go walks walking runs running stands standing still staying stays turns turning comes
    coming enters entering leaves leaving stops stopping fast faster fastest slow slower slowest up down leftward
    rightward upward downward leftwards rightwards upwards downwards does not doesn't there some any object thing
    red orange yellow green blue purple pink brown black white gray grey golden dark bright silver violet
    first last second other same direction across along around through out into off
    """.split()  # noqa: SIM905  a table of words, to be read as words
)
DEAD = -20.0  # logit of a mask that is not there


@dataclass(frozen=True, kw_only=True)
class LightConfig(SystemConfig):
    """Sizes of light. Unmarked numbers are our choice."""

    width: int = 192  # D of the pixel decoder
    proposals: int = 48  # cells of a frame whose masks are predicted before duplicates are suppressed
    queries: int = 24  # Q, tracks of a clip
    heads: int = 6  # of every attention of the pixel decoder
    pixel_layers: int = bounded(1, least=0)  # self-attention among the cells of a frame at stride 16
    fine_layers: int = bounded(2, least=0)  # convolutions at stride 8
    mask_channels: int = 16  # features that the dynamic kernels read
    mask_hidden: int = 8  # width of the dynamic network
    fine_channels: int = 64  # of the stride-4 map before the mask features
    duplicate: float = bounded(0.6, least=0, most=1)  # mask IoU from which on the weaker of two proposals is suppressed
    least_score: float = bounded(0.08, least=0, most=1)  # of a proposal, 0..1
    scorer_width: int = 256  # D of the scorer
    scorer_heads: int = 8
    scorer_layers: int = bounded(4, least=0)  # attention among tracks and to words
    vit_channels: tuple[int, ...] = (64, 128, 160, 320)  # TinyViT-5M (read)
    vit_depths: tuple[int, ...] = bounded((2, 2, 6, 2), least=0)  # read
    vit_heads: tuple[int, ...] = (2, 4, 5, 10)  # read
    vit_windows: tuple[int, ...] = (7, 7, 14, 7)  # cells (read)
    net_stages: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88), (4, 5, 1, 6, 120), (5, 5, 2, 6, 208),
        (1, 3, 1, 6, 352),
    )  # EfficientNet-lite2: repeats, kernel, stride, expansion, channels (read)  # fmt: skip
    net_head: int = 1280  # channels before its classifier (read)
    classes: int = 1000  # of the classifier (read)
    names: int = 2100  # known names of the namer, at most
    semantic_scale: float = bounded(1.4, least=0.25, most=8)  # enlarges the frame for EfficientNet
    text: MiniLmConfig = field(default_factory=MiniLmConfig)
    train_vision: bool = False  # False: both encoders frozen (what a CPU can train); True: at a low rate
    short_side: int = 320  # pixels
    long_side: int = 576  # pixels
    window: int = 8  # frames decoded at once
    multiple: int = 32  # pixels; height and width are padded to it
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet (read)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # ImageNet (read)
    selection: Literal["official", "linked"] = "linked"
    presence_threshold: float | None = 0.5  # probability from which on the object counts as there; calibrated
    presence_temperature: float = 1.0  # divides the presence logit; calibrated
    presence_shift: float = 0.0  # added to the presence logit after that; calibrated


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Maps of the frozen encoders for N frames.

    fine, middle, deep: (N, C, ., .) of TinyViT at strides 4, 8, 16.
    semantic16, semantic32: (N, C, ., .) of EfficientNet at strides 16 and 32 of the enlarged frame.
    """

    fine: Tensor
    middle: Tensor
    deep: Tensor
    semantic16: Tensor
    semantic32: Tensor


@dataclass(frozen=True, eq=False)
class Proposals:
    """Objects found in N frames without words, best first.

    cells: (N, Q) the stride-8 cell that each comes from.  masks: (N, Q, h, w) logits.  scores: (N, Q) 0..1, 0 where
    there are fewer than Q.
    """

    cells: Tensor
    masks: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class TrackFeatures:
    """What the scorer reads of the Q tracks of B clips; it comes from the frozen maps, the pixels and the masks alone.

    deep, semantic16, semantic32: (B, Q, C) means under the masks, over time.  head: (B, Q, net_head) likewise, of the
    layer before EfficientNet's classifier.  ring_deep, ring_semantic: (B, Q, C) of the surroundings of each mask.
    upper, lower: (B, Q, C) of ``semantic16`` in the upper and the lower half of the mask.
    colours: (B, Q, 3 shades) shares of shades in the mask, its upper and its lower half.
    scene: (B, C) mean of ``semantic32`` over the frames.
    geometry: (B, T, Q, 5) centre, spread and area (``moments``).  alive: (B, T, Q) bool, a mask is there.
    touch: (B, Q, Q) share of the ring of the first that the second covers.  inside: (B, Q, Q) share of the first that
    lies in the second.  score: (B, Q) mean score of the proposals, 1 for given tracks.
    """

    deep: Tensor
    semantic16: Tensor
    semantic32: Tensor
    head: Tensor
    ring_deep: Tensor
    ring_semantic: Tensor
    upper: Tensor
    lower: Tensor
    colours: Tensor
    scene: Tensor
    geometry: Tensor
    alive: Tensor
    touch: Tensor
    inside: Tensor
    score: Tensor

    def select(self, which: Tensor) -> TrackFeatures:
        """The features of clips ``which`` (K,), one a row."""
        return TrackFeatures(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    @property
    def absent(self) -> Tensor:
        """(B, Q) bool: the track has no mask in any frame."""
        return ~self.alive.any(1)


@dataclass(frozen=True, eq=False)
class LightFeatures(FeatureMaps):
    """A clip before any word. masks: (B, T, Q, h, w) logits, index q one object in every frame.

    embedding: (B, Q, C) what each track is, in the space of the text encoder (``Namer``).
    """

    masks: Tensor
    tracks: TrackFeatures
    embedding: Tensor


class Light(nn.Module):
    """Segment, in every frame, the object that an expression refers to: small enough for two CPU cores."""

    def __init__(self, config: LightConfig) -> None:
        super().__init__()
        self.config = config
        self.tiny_vit = TinyVit(config.vit_channels, config.vit_depths, config.vit_heads, config.vit_windows)
        self.efficient_net = EfficientNetLite(config.net_stages, config.net_head, config.classes)
        if not config.train_vision:
            self.tiny_vit.requires_grad_(False)
            self.efficient_net.requires_grad_(False)
        self.text = MiniLm(config.text)
        self.fast: tuple[FastNetwork, FastNetwork] | None = None  # of TinyViT, of EfficientNet
        _, semantic16, semantic32 = self.efficient_net.widths
        self.pixel_decoder = FramePixelDecoder(config, semantic16, semantic32)
        self.kernels = KernelHead(config.width, config.mask_channels, config.mask_hidden)
        self.namer = Namer(config, semantic16, semantic32)
        self.scorer = TextScorer(config, semantic16, semantic32)

    def accelerate(self) -> str | None:
        """Run the frozen encoders through OpenVINO from now on where it is installed; return its version, or None.

        Only frames on a CPU are concerned, and only while no gradient is wanted.
        """
        version = openvino_version()
        if version is not None and self.fast is None and not self.config.train_vision:
            self.fast = FastNetwork(SpatialMaps(self.tiny_vit)), FastNetwork(SemanticMaps(self))
        return version if self.fast is not None and all(one.usable for one in self.fast) else None

    # ---- the two halves that every system has

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> LightFeatures:
        """frames: (B, T, 3, H, W), ImageNet-normalised, H and W multiples of 32; padding: (B, T, H, W)."""
        b, t = frames.shape[:2]
        features = self.encode_frames(frames.flatten(0, 1))
        proposals = self.propose(features, frames.flatten(0, 1), padding.flatten(0, 1))
        masks, scores = link(proposals, features.deep, b)
        tracks = self.pool_tracks(features, frames, masks.sigmoid(), scores)
        return LightFeatures(
            levels=(features.deep.unflatten(0, (b, t)),), strides=(16,), padding=padding,
            size=(frames.shape[-2], frames.shape[-1]), masks=masks, tracks=tracks, embedding=self.namer(tracks),
        )  # fmt: skip

    def decode(
        self, maps: LightFeatures, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """Any number of expressions for one clip; otherwise one a clip."""
        k, b = len(expressions), len(maps.masks)
        which = torch.arange(b) if k == b else torch.zeros(k, dtype=torch.long)
        which = which.to(maps.masks.device)
        similarity, none = self.score_texts(maps.tracks, maps.embedding, [e.text for e in expressions], which)
        # The choice among the tracks and "none of them" is one softmax of the clip; a track's logit says the same.
        chance = torch.cat([none[:, None], similarity], dim=1).log_softmax(1)[:, 1:].clamp(max=-1e-6)
        masks = maps.masks[which] if b > 1 else maps.masks.expand(k, -1, -1, -1, -1)  # a view: they are large
        scores = (chance - torch.log(-torch.expm1(chance)))[:, None].expand(-1, masks.shape[1], -1)
        if wanted is not None:
            masks, scores = masks[:, list(wanted)], scores[:, list(wanted)]
        presence = similarity.logsumexp(1) - none
        return Prediction(masks, scores, similarity=similarity - none[:, None], presence=presence)

    def forward(self, batch: Batch) -> Prediction:
        return self.decode(self.encode(batch.frames, batch.padding), batch.expressions, batch.wanted)

    # ---- what they are made of

    def encode_frames(self, frames: Tensor) -> FrameFeatures:
        """Maps of both image encoders for frames (N, 3, H, W).

        EfficientNet computes in fp32 also under autocast. What an object is called rests on its maps, and 21 blocks in
        bf16 are off by 4 % at their end: enough for another object to be chosen where two have nearly equal scores.
        """
        if self.fast is not None and frames.device.type == "cpu" and not self.training:
            spatial, semantic = self.fast
            return FrameFeatures(*spatial(frames, bf16=torch.is_autocast_enabled("cpu")), *semantic(frames, bf16=False))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_vision):
            spatial_maps = SpatialMaps(self.tiny_vit)(frames)
            with torch.autocast(frames.device.type, enabled=False):
                return FrameFeatures(*spatial_maps, *SemanticMaps(self)(frames.float()))

    def propose(self, features: FrameFeatures, frames: Tensor, padding: Tensor) -> Proposals:
        """The Q best objects of each frame (N, 3, H, W), each once; padding (N, H, W) holds none."""
        cells, pixels, objectness = self.pixel_decoder(features, frames, padding)
        c, columns = self.config, objectness.shape[-1]
        flat = cells.flatten(2).transpose(1, 2)  # (N, rows columns, D)
        quality = self.kernels.fit(flat).sigmoid().view_as(objectness)
        scores = (objectness.sigmoid().sqrt() * quality).masked_fill(objectness <= DEAD, 0.0)
        at = peaks(scores, c.proposals)  # (N, P)
        kernels = self.kernels.numbers(features_at(flat, at))
        coarse = masks_of_cells(F.avg_pool2d(pixels, 2), kernels, at, columns, 8, c.mask_hidden)
        kept, kept_scores = suppress_duplicates(
            coarse, scores.flatten(1).gather(1, at), c.queries, c.duplicate, c.least_score
        )
        at, kernels = at.gather(1, kept), features_at(kernels, kept)
        count = c.queries
        if kept_scores.device.type == "cpu":  # best first, so the rest is empty; a GPU would have to wait for the count
            count = max(1, int((kept_scores > 0).sum(1).max()))
        masks = masks_of_cells(pixels, kernels[:, :count], at[:, :count], columns, 4, c.mask_hidden)
        beside, weight = best_beside(scores, at[:, :count])
        others = self.kernels.numbers(features_at(flat, beside))
        other_masks = masks_of_cells(pixels, others, beside, columns, 4, c.mask_hidden)
        masks = torch.lerp(masks, other_masks, weight[..., None, None])
        masks = masks.masked_fill((kept_scores[:, :count] == 0)[..., None, None], DEAD)
        return Proposals(at, F.pad(masks, (0, 0, 0, 0, 0, c.queries - count), value=DEAD), kept_scores)

    def pool_tracks(self, features: FrameFeatures, frames: Tensor, masks: Tensor, scores: Tensor) -> TrackFeatures:
        """Summarise what lies under each track's masks.

        Args:
            features: Of the B T frames.
            frames: (B, T, 3, H, W), ImageNet-normalised.
            masks: (B, T, Q, h, w) 0..1, how much of each stride-4 cell is covered.
            scores: (B, T, Q) 0..1; 0 where a track is not in a frame.
        """
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            head = F.relu6(self.efficient_net.head(features.semantic32.float()))
            return pool_tracks(features, head, rgb_of(frames, self.config), masks.float(), scores.float())

    def score_texts(
        self, tracks: TrackFeatures, embedding: Tensor, texts: Sequence[str], which: Tensor,
        removed: Tensor | None = None, names: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Similarities (K, Q) and "none of them" logits (K,).

        Args:
            tracks: Of B clips.
            embedding: (B, Q, C) of the namer.
            texts: K expressions.
            which: (K,) the clip of each.
            removed: (K, Q) bool, tracks that an expression's clip is taken not to have.
            names: (B, Q, names) log-probabilities; by default the namer's own of the embedding.
        """
        words, heads = self.text(texts), self.text([head_phrase(t) for t in texts])
        colours = colours_named(texts).to(which.device)
        clip = self.scorer.encode(
            tracks, embedding, self.namer.log_probabilities(embedding) if names is None else names
        )
        clip = clip.select(which)
        if removed is not None:
            clip = replace(clip, absent=clip.absent | removed)
        return self.scorer(clip, self.namer.vectors, words, heads.sentence, colours)


def light() -> Light:
    """The preset of the bundled checkpoint."""
    return Light(LightConfig())


def light_debug() -> Light:
    """Random weights, two layers, 32 wide: for tests."""
    return Light(light_debug_config())


def light_debug_config() -> LightConfig:
    return LightConfig(
        width=32, queries=6, proposals=12, heads=2, pixel_layers=1, fine_layers=1, mask_channels=8, mask_hidden=8,
        fine_channels=16, scorer_width=32, scorer_heads=2, scorer_layers=2,
        vit_channels=(16, 16, 32, 32), vit_depths=(1, 1, 1, 1), vit_heads=(2, 2, 2, 2),
        net_stages=((1, 3, 1, 1, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 16), (1, 3, 2, 2, 16), (1, 3, 1, 2, 16),
                    (1, 3, 2, 2, 16), (1, 3, 1, 2, 32)),
        net_head=32, classes=20, names=20, short_side=64, long_side=128, least_score=0.0,
        text=MiniLmConfig(vocabulary=256, width=32, layers=2, heads=2, feed_forward=64, positions=64),
    )  # fmt: skip


class SpatialMaps(nn.Module):
    """TinyViT: frames (N, 3, H, W) -> the first three maps of ``FrameFeatures``."""

    def __init__(self, tiny_vit: TinyVit) -> None:
        super().__init__()
        self.tiny_vit = tiny_vit

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        fine, middle, _, deep = self.tiny_vit(in_layout(frames))
        return fine, middle, deep


class SemanticMaps(nn.Module):
    """EfficientNet-lite2: frames (N, 3, H, W) -> the last two maps of ``FrameFeatures``."""

    def __init__(self, system: Light) -> None:
        super().__init__()
        self.efficient_net, self.config = system.efficient_net, system.config

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        (_, *semantic), _ = self.efficient_net(in_layout(enlarged(frames, self.config)))
        return tuple(semantic)


def in_layout(frames: Tensor) -> Tensor:
    """As convolutions of the device are fastest with."""
    layout = torch.channels_last if frames.device.type == "cpu" else torch.contiguous_format
    return frames.contiguous(memory_format=layout)


def enlarged(frames: Tensor, config: LightConfig) -> Tensor:
    """Frames (N, 3, H, W) as EfficientNet-lite was trained: (x - 127) / 128 of 0..255, and larger."""
    std, mean = frames.new_tensor(config.std), frames.new_tensor(config.mean)
    scale, shift = std * (255 / 128), (mean * 255 - 127) / 128
    pixels = frames * scale[:, None, None] + shift[:, None, None]
    size = [max(32, round(int(n) * config.semantic_scale / 32) * 32) for n in frames.shape[-2:]]  # int: for traces
    return resize_to(pixels, size)


# ---- proposals


class FramePixelDecoder(nn.Module):
    """Frozen maps -> features at stride 8 (where proposals come from) and stride 4 (what their kernels read)."""

    def __init__(self, config: LightConfig, semantic16: int, semantic32: int) -> None:
        super().__init__()
        d, c = config.width, config.fine_channels
        self.deep, self.semantic16, self.semantic32 = (
            projection(n, d) for n in (config.vit_channels[3], semantic16, semantic32)
        )
        self.position = nn.Linear(2 * 13, d)
        self.layers = nn.ModuleList(CellLayer(d, config.heads) for _ in range(config.pixel_layers))
        self.norm = nn.LayerNorm(d)
        self.middle, self.semantic8, self.up16 = (
            projection(config.vit_channels[1], d),
            projection(semantic16, d),
            projection(d, d),
        )
        self.blocks = nn.ModuleList(ConvBlock(d) for _ in range(config.fine_layers))
        self.objectness = nn.Sequential(ConvBlock(d), nn.GroupNorm(8, d), nn.Conv2d(d, 1, 1))
        nn.init.constant_(self.objectness[2].get_parameter("bias"), -4.0)  # few cells are the centre of an object
        self.fine, self.up8 = projection(config.vit_channels[0], c), projection(d, c)
        self.colour = nn.Conv2d(3, c, 4, stride=4)  # edges of the pixels themselves
        self.mix = nn.Sequential(
            nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1), nn.GroupNorm(8, c), nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1), nn.GroupNorm(8, c), nn.ReLU(),
            nn.Conv2d(c, config.mask_channels, 1),
        )  # fmt: skip

    def forward(self, features: FrameFeatures, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Merge the maps.

        Args:
            features: Of N frames.
            frames: (N, 3, H, W), normalised.
            padding: (N, H, W) bool.

        Returns:
            cells (N, D, rows, columns) at stride 8, pixels (N, C, h, w) at stride 4, logits of
            objectness (N, rows, columns).
        """
        rows, columns = features.deep.shape[-2:]
        x = self.deep(features.deep)
        for part, level in ((self.semantic16, features.semantic16), (self.semantic32, features.semantic32)):
            x = x + part(pool_to(level, features.deep))
        x = x.flatten(2).transpose(1, 2)
        y, x_ = (torch.linspace(-1, 1, n, device=x.device) for n in (rows, columns))
        grid = torch.stack(torch.meshgrid(y, x_, indexing="ij"), dim=-1)
        x = x + self.position(frequencies(grid, 6)).flatten(0, 1)
        padded = bool(padding.any())
        empty = (F.max_pool2d(padding.float()[:, None], 16)[:, 0] > 0).flatten(1) if padded else None
        for layer in self.layers:
            x = layer(x, (rows, columns), empty)
        x = self.norm(x).transpose(1, 2).unflatten(2, (rows, columns))
        size = features.middle.shape[-2:]
        cells = (
            self.middle(features.middle)
            + resize_to(self.semantic8(features.semantic16), size)
            + resize_to(self.up16(x), size)
        )
        for block in self.blocks:
            cells = block(cells)
        objectness = self.objectness(cells)[:, 0].float()
        if padded:
            objectness = objectness.masked_fill(F.max_pool2d(padding.float()[:, None], 8)[:, 0] > 0, DEAD)
        pixels = self.fine(features.fine) + resize_to(self.up8(cells), features.fine.shape[-2:]) + self.colour(frames)
        return cells, self.mix(pixels), objectness


def projection(channels: int, width: int) -> nn.Sequential:
    # GroupNorm, not BatchNorm: a batch is a few clips, each a single scene.
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(8, width))


def pool_to(x: Tensor, like: Tensor) -> Tensor:
    """Mean over cells of maps (N, C, ., .) down to the grid of ``like``."""
    return F.adaptive_avg_pool2d(x, (like.shape[-2], like.shape[-1]))


def resize_to(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class ConvBlock(nn.Module):
    """A residual block: depthwise 3x3, norm, widen twofold, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GroupNorm(8, width)
        self.widen, self.narrow = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x)))))


class CellLayer(nn.Module):
    """Depthwise convolution, self-attention over the frame, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.attention, self.feed_forward = SelfAttention(width, heads), FeedForward(width, 3)

    def forward(self, x: Tensor, size: tuple[int, int], padding: Tensor | None) -> Tensor:
        near = self.depthwise(x.transpose(1, 2).unflatten(2, size))
        x = self.attention(x + near.flatten(2).transpose(1, 2), padding)
        return x + self.feed_forward(x)


# ---- tracks

# Weights of what makes a proposal continue another, and the sum from which on it may (our choice; tried on films of the
# development split, see docs/results/linking.md).
OVERLAP, LIKENESS, NEARNESS, ENOUGH = 1.0, 2.0, 1.5, 2.0


@torch.no_grad()
def link(proposals: Proposals, deep: Tensor, clips: int) -> tuple[Tensor, Tensor]:
    """Give one index to one object.

    Proposals of up to three frames apart continue one another by the overlap of their masks, the likeness of the
    features under them, and nearness; ``best_paths`` then takes the best track first.

    Args:
        proposals: Of B T frames.
        deep: (B T, C, ., .) the map whose features under a mask say whether it is the same thing.
        clips: B.

    Returns:
        Mask logits (B, T, Q, h, w), ``DEAD`` where a track has no proposal, and scores (B, T, Q), 0 there.
    """
    masks, scores = proposals.masks.unflatten(0, (clips, -1)), proposals.scores.unflatten(0, (clips, -1))
    b, t, q = scores.shape
    if t == 1:
        return masks, scores
    soft = masks.flatten(0, 1).float().sigmoid()
    flat = F.avg_pool2d((soft > 0.5).float(), 2).flatten(2).unflatten(0, (b, t))
    weights = pool_to(soft, deep).flatten(2)
    likeness = weights / weights.sum(-1, keepdim=True).clamp(min=1e-3) @ deep.float().flatten(2).transpose(1, 2)
    likeness = likeness.unflatten(0, (b, t))
    likeness = F.normalize(likeness - likeness.mean((1, 2), keepdim=True), dim=-1)  # what all share says nothing
    centres = moments(soft)[..., :2].unflatten(0, (b, t))
    order = torch.full((b, t, q), -1, dtype=torch.long)
    for clip in range(b):
        order[clip] = torch.from_numpy(_link_clip(
            *(x[clip].float().cpu().numpy() for x in (flat, likeness, centres, scores))
        ))  # fmt: skip
    order = order.to(masks.device)
    there = order >= 0
    linked = masks.gather(2, order.clamp(min=0)[..., None, None].expand_as(masks))
    linked_scores = scores.gather(2, order.clamp(min=0))
    return linked.masked_fill(~there[..., None, None], DEAD), linked_scores * there


def _link_clip(flat: np.ndarray, likeness: np.ndarray, centres: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(T, Q) the proposal of each track in each frame, or -1. flat: (T, Q, n).  likeness: (T, Q, C).
    centres: (T, Q, 2).  scores: (T, Q)."""
    t, q = scores.shape
    affinity = np.zeros((REACH, t, q, q), np.float32)
    areas = flat.sum(-1)
    for back in range(1, min(REACH, t - 1) + 1):
        both = flat[:-back] @ flat[back:].swapaxes(1, 2)
        overlap = both / np.maximum(areas[:-back, :, None] + areas[back:, None] - both, 1e-3)
        near = np.exp(-((centres[:-back, :, None] - centres[back:, None]) ** 2).sum(-1) / 0.18)
        alike = likeness[:-back] @ likeness[back:].swapaxes(1, 2)
        affinity[back - 1, back:] = OVERLAP * overlap + LIKENESS * alike + NEARNESS * near - ENOUGH
    return best_paths(np.nan_to_num(affinity), scores)


def rgb_of(frames: Tensor, config: LightConfig) -> Tensor:
    """Frames (B, T, 3, H, W) as sRGB 0..1 at stride 4, (B T, 3, h, w)."""
    rgb = F.avg_pool2d(frames.flatten(0, 1).float(), 4)
    std, mean = (rgb.new_tensor(v).view(3, 1, 1) for v in (config.std, config.mean))
    return (rgb * std + mean).clamp(0, 1)


def pool_tracks(features: FrameFeatures, head: Tensor, rgb: Tensor, masks: Tensor, scores: Tensor) -> TrackFeatures:
    """See ``Light.pool_tracks``. head: (N, C, ., .) beside ``semantic32``.  rgb: (N, 3, h, w) 0..1."""
    b, t = scores.shape[:2]
    soft = masks.flatten(0, 1)  # (N, Q, h, w)
    alive = (scores > 0) & (masks.sum((-1, -2)) > 0.5)
    geometry = moments(soft)
    # Frames count by the size of the mask in them, softly.
    weight = alive.flatten(0, 1) * soft.sum((-1, -2)).clamp(min=1).sqrt()
    weight = weight.unflatten(0, (b, t))
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)  # (B, T, Q)

    def over_time(x: Tensor) -> Tensor:
        return (x.unflatten(0, (b, t)) * weight[..., None]).sum(1)

    def under(level: Tensor, region: Tensor) -> Tensor:
        """(B, Q, C) mean of a level (N, C, ., .) under regions (N, Q, ., .)."""
        share = pool_to(region, level).flatten(2)
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-4)
        return over_time(share @ level.float().flatten(2).transpose(1, 2))

    small = pool_to(soft, features.deep)
    ring = (F.max_pool2d(small, 5, stride=1, padding=2) - small).clamp(min=0)
    y = torch.linspace(-1, 1, soft.shape[-2], device=soft.device)
    above = (y < geometry[..., 1:2]).float()[..., None]  # (N, Q, h, 1)
    upper, lower = soft * above, soft * (1 - above)
    apart = torch.cdist(lab(rgb.permute(0, 2, 3, 1)).flatten(1, 2), lab(shade_values(rgb)))  # (N, hw, shades)
    named = (-apart / 8.0).softmax(-1)  # 8 units of Lab: just distinguishable at a glance
    shades = [
        over_time((hard / hard.sum(-1, keepdim=True)) @ named)
        for hard in ((part.flatten(2) > 0.5).float() + 1e-4 for part in (soft, upper, lower))
    ]
    flat, around = small.flatten(2), ring.flatten(2)
    touch = around @ flat.transpose(1, 2) / around.sum(-1)[..., None].clamp(min=1e-3)
    inside = flat @ flat.transpose(1, 2) / flat.sum(-1)[..., None].clamp(min=1e-3)
    return TrackFeatures(
        deep=under(features.deep, soft), semantic16=under(features.semantic16, soft),
        semantic32=under(features.semantic32, soft), head=under(head, soft),
        ring_deep=under(features.deep, ring), ring_semantic=under(features.semantic32, ring),
        upper=under(features.semantic16, upper), lower=under(features.semantic16, lower),
        colours=torch.cat(shades, dim=-1),
        scene=features.semantic32.float().mean((-1, -2)).unflatten(0, (b, t)).mean(1),
        geometry=geometry.unflatten(0, (b, t)), alive=alive,
        touch=over_time(touch), inside=over_time(inside),
        score=scores.sum(1) / alive.sum(1).clamp(min=1),
    )  # fmt: skip


def shade_values(like: Tensor) -> Tensor:
    return like.new_tensor([s[1:] for s in SHADES]) / 255


def lab(rgb: Tensor) -> Tensor:
    """(..., 3) sRGB in 0..1 -> CIE Lab (D65)."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = rgb.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / rgb.new_tensor([0.9505, 1.0, 1.089])
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], dim=-1)


def moments(soft: Tensor) -> Tensor:
    """(..., h, w) soft masks -> (..., 5): centre x, y in -1..1, spread x, y, log of the area, all about -1..1."""
    h, w = soft.shape[-2:]
    y, x = (torch.linspace(-1, 1, n, device=soft.device) for n in (h, w))
    area = soft.sum((-2, -1)).clamp(min=1e-3)
    along_x, along_y = soft.sum(-2) / area[..., None], soft.sum(-1) / area[..., None]
    cx, cy = (along_x * x).sum(-1), (along_y * y).sum(-1)
    sx = (along_x * (x - cx[..., None]) ** 2).sum(-1).sqrt()
    sy = (along_y * (y - cy[..., None]) ** 2).sum(-1).sqrt()
    return torch.stack([cx, cy, sx, sy, 1 + (area / (h * w)).clamp(min=1e-4).log() / 4.6], dim=-1)


def frequencies(x: Tensor, octaves: int) -> Tensor:
    """(..., n) numbers around -1..1 -> (..., n * (1 + 2 octaves)): themselves, then sines and cosines."""
    angle = (x[..., None] * (2.0 ** torch.arange(octaves, device=x.device) * torch.pi / 2)).flatten(-2)
    return torch.cat([x, angle.sin(), angle.cos()], dim=-1)


PLACES = 8  # numbers by which tracks can be ranked


def filled(geometry: Tensor, alive: Tensor) -> Tensor:
    """Geometry (B, T, Q, 5) with the frames where a track is not there filled from the nearest one before, or after."""
    frames = torch.arange(geometry.shape[1], device=geometry.device).view(1, -1, 1)
    last = torch.where(alive, frames, -1).cummax(1).values
    first = torch.where(alive, frames, geometry.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    index = torch.where(last >= 0, last, first)
    return geometry.gather(1, index[..., None].expand_as(geometry))


def trajectories(geometry: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Q, 5 + PLACES) what a track does over time, and (B, Q, PLACES) what it can be ranked by.

    Means of the geometry; mean x, y, size; change of x, y, size over the clip; length of the path; share of the clip.
    """
    path = filled(geometry, alive)
    place = path[..., [0, 1, 4]]  # centre x, y, size
    steps = place[:, 1:, :, :2] - place[:, :-1, :, :2]
    length = steps.norm(dim=-1).sum(1)[..., None] if geometry.shape[1] > 1 else torch.zeros_like(place[:, 0, :, :1])
    share = alive.float().mean(1)[..., None]
    ranked = torch.cat([place.mean(1), place[:, -1] - place[:, 0], length, share], dim=-1)
    return torch.cat([path.mean(1), ranked], dim=-1), ranked


# ---- names and words


class Namer(nn.Module):
    """What a track is, as a vector in the space of the text encoder, and as probabilities of the known names."""

    def __init__(self, config: LightConfig, semantic16: int, semantic32: int) -> None:
        super().__init__()
        inputs, width = config.net_head + semantic16 + semantic32, config.text.width
        self.norm = nn.LayerNorm(inputs)
        self.linear = nn.Linear(inputs, width)
        self.deep = nn.Sequential(nn.Linear(inputs, 512), nn.GELU(), nn.Dropout(0.3), nn.Linear(512, width))
        self.align = nn.Linear(width, width, bias=False)  # of the words' side; begins as the identity
        nn.init.eye_(self.align.weight)
        self.scale, self.bias = nn.Parameter(torch.tensor(20.0)), nn.Parameter(torch.zeros(config.names))
        self.vectors: Tensor
        self.centre: Tensor
        self.register_buffer("vectors", torch.zeros(config.names, width))  # known names, read by the text encoder
        self.register_buffer("centre", torch.zeros(width))  # their mean
        self.names: tuple[str, ...] = ()

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray("\n".join(self.names).encode() or b" "), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.names = tuple(bytes(state.cpu().to(torch.uint8).tolist()).decode().strip().split("\n"))

    def learn_names(self, names: Sequence[str], text: MiniLm) -> None:
        """Take ``names`` as the known ones; what is left of the table stays unused."""
        self.names = tuple(names)
        vectors = torch.cat([text(names[i : i + 64]).sentence for i in range(0, len(names), 64)])
        self.vectors.zero_()[: len(names)] = vectors
        self.centre.copy_(vectors.mean(0))
        with torch.no_grad():
            self.bias.fill_(-1e4)[: len(names)] = 0.0

    def forward(self, tracks: TrackFeatures) -> Tensor:
        """(B, Q, C) of length one."""
        return self.embed(self.inputs(tracks))

    @staticmethod
    def inputs(tracks: TrackFeatures) -> Tensor:
        """(B, Q, inputs) what is read of each track; roots, since few channels are large."""
        x = torch.cat([tracks.head, tracks.semantic16, tracks.semantic32], dim=-1)
        return x.sign() * x.abs().sqrt()

    def embed(self, inputs: Tensor) -> Tensor:
        """(..., inputs) -> (..., C) of length one."""
        x = self.norm(inputs)
        return F.normalize(self.linear(x) + self.deep(x), dim=-1)

    def text_side(self, vectors: Tensor) -> Tensor:
        """Sentence vectors (..., C) of the text encoder, in the space of the embeddings, of length one."""
        return F.normalize(self.align(vectors - self.centre), dim=-1)

    def log_probabilities(self, embedding: Tensor) -> Tensor:
        """(B, Q, names)"""
        return (embedding @ self.text_side(self.vectors).T * self.scale + self.bias).log_softmax(-1)


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """What the expressions of a clip share. tracks: (B, Q, D).  pairs: (B, heads, 1 + Q, 1 + Q) attention biases.
    places: (B, Q, PLACES).  scene: (B, D).  names: (B, Q, names) log probabilities.  colours: (B, Q, 3 shades).
    absent: (B, Q) bool."""

    tracks: Tensor
    pairs: Tensor
    places: Tensor
    scene: Tensor
    names: Tensor
    colours: Tensor
    absent: Tensor

    def select(self, which: Tensor) -> SharedTokens:
        return SharedTokens(*(getattr(self, f.name)[which] for f in fields(self)))


class TextScorer(nn.Module):
    """Tracks attend to words and to one another; each is compared with the expression, and so is "none of them"."""

    def __init__(self, config: LightConfig, semantic16: int, semantic32: int) -> None:
        super().__init__()
        d, c = config.scorer_width, config.text.width
        self.tracks = TrackEncoder(config, semantic16, semantic32)
        self.words, self.sentence, self.head = nn.Linear(2 * c, d), nn.Linear(c, d), nn.Linear(c, d)
        self.named_colours = nn.Linear(len(COLOURS), d)
        self.scene = nn.Sequential(nn.LayerNorm(semantic32), nn.Linear(semantic32, d))
        self.evidence = nn.Sequential(nn.Linear(BRIDGES, d), nn.GELU(), nn.Linear(d, d))
        self.none = nn.Parameter(torch.zeros(1, 1, d))
        self.layers = nn.ModuleList(ScorerLayer(d, config.scorer_heads) for _ in range(config.scorer_layers))
        self.ranks = nn.ModuleList(Rank(d) for _ in range(config.scorer_layers))
        self.dropout = nn.Dropout(0.1)
        self.rank_weights = nn.Linear(c, PLACES * (1 + len(Rank.GAINS)))
        nn.init.zeros_(self.rank_weights.weight)
        self.norm = nn.LayerNorm(d)
        self.match, self.absent, self.compare = nn.Linear(d, 1), nn.Linear(d, 1), nn.Linear(d, d)
        self.direct = nn.Linear(BRIDGES, 1)  # names and colours also count as they are
        nn.init.zeros_(self.direct.weight)
        self.shade_of: Tensor
        shade_of = torch.tensor([[float(s[0] == c) for c in COLOURS] for s in SHADES])
        self.register_buffer("shade_of", shade_of, persistent=False)

    def encode(self, tracks: TrackFeatures, embedding: Tensor, names: Tensor) -> SharedTokens:
        """What all expressions of B clips share. embedding: (B, Q, C) and names: (B, Q, names) of the namer."""
        facts, places = trajectories(tracks.geometry, tracks.alive)
        return SharedTokens(
            self.tracks(tracks, embedding, facts), self.tracks.pairs(tracks, facts), places, self.scene(tracks.scene),
            names, tracks.colours.float(), tracks.absent,
        )  # fmt: skip

    def forward(
        self, clip: SharedTokens, vectors: Tensor, text: TextFeatures, heads: Tensor, colours: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Similarities (K, Q) and "none of them" logits (K,).

        Args:
            clip: Of K clips, one an expression.
            vectors: (names, C) the names' sentence vectors.
            text: The K expressions.
            heads: (K, C) sentence vectors of their head phrases.
            colours: (K, 11) the colours that they name.
        """
        sentence, head = self.sentence(text.sentence), self.head(heads)
        extra = torch.stack([sentence, head, self.named_colours(colours)], dim=1)
        words = torch.cat([extra, self.words(self.dropout(text.words))], dim=1)  # (K, 3 + L, D)
        padding = F.pad(text.padding, (3, 0), value=False)
        bridges = self.bridges(clip, vectors, text.sentence, heads, colours)
        none = self.none + (sentence + head + clip.scene)[:, None]
        x = torch.cat([none, clip.tracks + self.evidence(bridges)], dim=1)
        padded = F.pad(clip.absent, (1, 0), value=False)
        for layer, rank in zip(self.layers, self.ranks, strict=True):
            x = layer(x, clip.pairs, padded, words, padding)
            worth, ranks = rank(x[:, 1:], clip.places, clip.absent)
            x = torch.cat([x[:, :1], x[:, 1:] + worth], dim=1)
        x = self.norm(x).float()
        likeness = torch.einsum("kqd,kd->kq", self.compare(x[:, 1:]).float(), (sentence + head).float())
        similarity = self.match(x[:, 1:]).squeeze(-1) + likeness / x.shape[-1] ** 0.5 + self.direct(bridges).squeeze(-1)
        # Which ranks the words mean: linear in the words, so that "left" is soon the opposite of "right".
        spelt = text.words[..., text.sentence.shape[-1] :] * ~text.padding[..., None]
        similarity = similarity + torch.einsum("kqf,kf->kq", ranks.float(), self.rank_weights(spelt.sum(1) / 4).float())
        return similarity.float().masked_fill(clip.absent, DEAD), self.absent(x[:, 0]).squeeze(-1).float()

    def bridges(self, clip: SharedTokens, vectors: Tensor, sentence: Tensor, heads: Tensor, colours: Tensor) -> Tensor:
        """(K, Q, BRIDGES): how well each track's names and colours agree with the words, before anything is learned."""
        names, known = clip.names, clip.names.exp()
        facts = []
        for vector in (sentence, heads):
            alike = vector @ vectors.T  # (K, names) cosines
            chosen = (alike * 25).softmax(-1)  # 25: the nearest handful of names
            facts.append(torch.einsum("kqn,kn->kq", known, alike) * 2 - 0.5)
            facts.append((torch.einsum("kqn,kn->kq", known, chosen) * known.shape[-1] + 1e-2).log() / 4)
            nearest = alike > alike.amax(-1, keepdim=True) - 0.1
            facts.append((known * nearest[:, None]).sum(-1))
            facts.append(names.masked_fill(~nearest[:, None], -20).amax(-1).clamp(min=-12) / 6 + 1)
        for shades in clip.colours.unflatten(-1, (3, len(SHADES))).unbind(2):
            facts.append((shades @ self.shade_of * colours[:, None]).sum(-1))
        return torch.stack(facts, dim=-1)


BRIDGES = 11  # numbers of ``TextScorer.bridges``


class TrackEncoder(nn.Module):
    """Track features -> tokens (K, Q, D), and what each pair of tracks has to do with one another."""

    def __init__(self, config: LightConfig, semantic16: int, semantic32: int) -> None:
        super().__init__()
        d, deep, heads = config.scorer_width, config.vit_channels[3], config.scorer_heads
        sizes = {"deep": deep, "semantic16": semantic16, "semantic32": semantic32, "ring_deep": deep,
                 "ring_semantic": semantic32, "upper": semantic16, "lower": semantic16}  # fmt: skip
        self.norms = nn.ModuleDict({name: nn.LayerNorm(size) for name, size in sizes.items()})
        self.parts = nn.ModuleDict({name: nn.Linear(size, d) for name, size in sizes.items()})
        self.embedding, self.colours = nn.Linear(config.text.width, d), nn.Linear(3 * len(SHADES), d)
        self.geometry = nn.Sequential(nn.Linear((5 + PLACES) * 13, d), nn.GELU(), nn.Linear(d, d))
        self.score = nn.Linear(1, d)
        self.dropout = nn.Dropout(0.1)
        self.pair = nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.Linear(64, heads))

    def forward(self, tracks: TrackFeatures, embedding: Tensor, facts: Tensor) -> Tensor:
        x = self.embedding(embedding) + self.colours(tracks.colours) + self.score(tracks.score[..., None])
        x = x + self.geometry(frequencies(facts, 6))
        for name, norm in self.norms.items():
            value = getattr(tracks, name)
            x = x + self.parts[name](self.dropout(norm(value.sign() * value.abs().sqrt())))
        return x

    def pairs(self, tracks: TrackFeatures, facts: Tensor) -> Tensor:
        """(K, heads, 1 + Q, 1 + Q) to add to the attention of each track to each; 0 with "none of them"."""
        place = facts[..., [0, 1, 4]]
        apart = place[:, :, None] - place[:, None]  # (K, Q, Q, 3)
        relations = torch.stack([tracks.touch, tracks.touch.transpose(1, 2), tracks.inside,
                                 tracks.inside.transpose(1, 2)], dim=-1)  # fmt: skip
        bias = self.pair(torch.cat([apart, (4 * apart).tanh(), relations], dim=-1))
        return F.pad(bias.permute(0, 3, 1, 2), (1, 0, 1, 0))


class ScorerLayer(nn.Module):
    """Cross-attention to the words, self-attention among tracks with a bias a pair, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.words = CrossAttention(width, heads)
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward, self.dropout = FeedForward(width, 2), nn.Dropout(0.1)

    def forward(self, x: Tensor, pairs: Tensor, absent: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        x = self.words(x, words, padding)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = pairs.to(q.dtype).masked_fill(absent[:, None, None], -1e4)
        # Few tokens: plain products are twice as fast here as the fused kernel, whose backward pass needs many.
        y = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v
        x = x + self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed_forward(x))


class Rank(nn.Module):
    """How each track ranks among those that may be meant: the leftmost, the largest, the fastest of them.

    Superlatives compare, and attention over tokens learns to compare slowly; here the comparison is a soft rank, and
    what is learned is which tracks take part and what a rank is worth.
    """

    GAINS = (4.0, 20.0)  # a difference of a semantic32, or of a twentieth, of semantic16 the frame is clear

    def __init__(self, width: int) -> None:
        super().__init__()
        self.takes_part = nn.Linear(width, 1)
        numbers = PLACES * (1 + len(self.GAINS))
        self.worth = nn.Sequential(nn.Linear(numbers, width), nn.GELU(), nn.Linear(width, width))
        nn.init.zeros_(self.worth[2].get_parameter("weight"))

    def forward(self, tracks: Tensor, places: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
        """tracks: (K, Q, D).  places: (K, Q, PLACES).  absent: (K, Q) bool.  -> (K, Q, D) to add, and the ranks."""
        part = self.takes_part(tracks).float().sigmoid() * ~absent[..., None]  # (K, Q, 1)
        apart = places[:, :, None] - places[:, None]  # (K, Q, Q, PLACES): mine minus theirs
        soft = [(part[:, None] * (apart * gain).tanh()).sum(2) for gain in self.GAINS]
        among = part.sum(1, keepdim=True) + 0.1
        ranks = torch.cat([places, *(rank / among for rank in soft)], dim=-1)
        return self.worth(ranks), ranks


def head_phrase(text: str) -> str:
    """The first run of words that may name an object: "the black dog on the left" -> "dog"; the text where none may."""
    run: list[str] = []
    for word in re.findall(r"[\w'-]+", text.lower()):
        if word in NOT_NAMES:
            if run:
                break
        else:
            run.append(word)
    return " ".join(run[:3]) or text


def colours_named(texts: Sequence[str]) -> Tensor:
    """(K, 11) 1.0 where a text names the colour."""
    rows = []
    for text in texts:
        words = {COLOUR_SYNONYMS.get(w, w) for w in re.findall(r"\w+", text.lower())}
        rows.append([float(colour in words) for colour in COLOURS])
    return torch.tensor(rows)


SYSTEM = Light, LightConfig
PRESETS = light, light_debug
