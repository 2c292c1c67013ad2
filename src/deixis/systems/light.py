"""light: the small bundled default, SOC's idea (per-frame queries clustered into video objects) with light encoders.

B clips, T frames, K expressions, Q queries, D width, L words; S cells at a sixteenth of the frame, h w a quarter.

What costs time is done without words, once a clip: two small pretrained encoders see the frames, a heat map finds the
middles of objects, each of the Q best middles brings a query and the dynamic kernel that paints its mask, and the
queries of successive frames are linked, so that one query index is one object of the clip. What a sentence costs is
small: the queries hear its words, are clustered over time into Q objects, and these are compared with one another, the
sentence and "none of them".

Bridges carry names, colours and ranks into the space of the words. The 1,000 names of an ImageNet classifier were read
by the text encoder once, so what the classifier says of an object becomes a vector among sentences; the eleven basic
colour words are counted over an object's pixels; and who is leftmost, largest or fastest is a soft rank that words
may wish for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deixis.blocks.attention import CrossAttention, FeedForward, SelfAttention
from deixis.blocks.mask_head import kernel_numbers, predict_masks
from deixis.encoders.efficientnet_lite import EfficientNetLite
from deixis.encoders.minilm import MiniLm, MiniLmConfig
from deixis.encoders.tiny_vit import TinyVit
from deixis.types import Batch, Expression, FeatureMaps, Prediction, SystemConfig, bounded

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


@dataclass(frozen=True, kw_only=True)
class LightConfig(SystemConfig):
    """Sizes of light. Every number is our choice (see shared/spec/default_model.md for what a prototype used)."""

    width: int = 192  # D, channels of a query
    queries: int = 16  # Q, objects looked for in a frame
    heads: int = 6  # of every attention
    pixel_layers: int = bounded(2, least=0)  # self-attention among the S cells of a frame, without words
    cluster_layers: int = bounded(2, least=0)  # attention among all queries of the clip, without words
    hear_layers: int = bounded(3, least=0)  # attention among the Q objects and the words
    mask_channels: int = 16  # features the dynamic kernels read
    mask_hidden: int = 16  # width of the dynamic network
    fine_channels: int = 64  # of the quarter-size map before the mask features
    vit_channels: tuple[int, ...] = (64, 128, 160, 320)  # TinyViT-5M (read)
    vit_depths: tuple[int, ...] = bounded((2, 2, 6, 2), least=0)  # read
    vit_heads: tuple[int, ...] = (2, 4, 5, 10)  # read
    vit_windows: tuple[int, ...] = (7, 7, 14, 7)  # cells (read)
    net_stages: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88), (4, 5, 1, 6, 120), (5, 5, 2, 6, 208),
        (1, 3, 1, 6, 352),
    )  # EfficientNet-lite2: repeats, kernel, stride, expansion, channels (read)  # fmt: skip
    net_head: int = 1280  # channels before its classifier (read)
    names: int = 1000  # of the classifier (read)
    semantic_scale: float = bounded(2.0, least=0.25, most=8)  # enlarges the frame for EfficientNet
    text: MiniLmConfig = field(default_factory=MiniLmConfig)
    train_vision: bool = False  # False: both encoders frozen (what a CPU can train); True: at a low rate
    short_side: int = 224  # pixels; fourteen rows of stride-16 cells fill TinyViT's windows exactly
    long_side: int = 448  # pixels
    window: int = 8  # frames decoded at once
    multiple: int = 32  # pixels; height and width are padded to it
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet (read)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # ImageNet (read)
    frame_floor: float = bounded(-3.0, least=-1e6, most=1e6)  # logit of a frame's score below which its mask fades out
    selection: Literal["official", "linked"] = "linked"
    presence_threshold: float | None = 0.5  # probability above which the object counts as there; calibrated
    presence_temperature: float = 1.0  # divides the presence logit; calibrated
    presence_shift: float = 0.0  # added to the presence logit after that; calibrated


@dataclass(frozen=True, eq=False)
class LightFeatures(FeatureMaps):
    """What light knows of a clip before any word. All queries are linked: index q is one object in every frame.

    cells: (B, T, S, D) the map the queries come from.  pixels: (B, T, C, h, w) what the kernels read.
    heat: (B, T, rows, columns) logits of "the middle of an object lies here".
    chosen: (B, T, Q) the cell each query comes from.  masks: (B, T, Q, h, w) logits.
    queries: (B, T, Q, D).  spare: (B, Q) bool, a query that repeats another.
    seen: (B, T, Q) logits of "this query shows an object, in this frame".
    names: (B, Q, names) probabilities.  colours: (B, Q, shades) shares.
    places: (B, Q, PLACES) where each object is and how it moves, as numbers that can be ranked.
    """

    cells: Tensor
    pixels: Tensor
    heat: Tensor
    chosen: Tensor
    masks: Tensor
    queries: Tensor
    spare: Tensor
    seen: Tensor
    names: Tensor
    colours: Tensor
    places: Tensor


# Maps at 4, 8, 16 of TinyViT; those at 16, 32 and the logits of names at 32 of EfficientNet.
Looked = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Tensor]


class Light(nn.Module):
    """Find, in every frame, the object an expression names: small enough for two CPU cores."""

    def __init__(self, config: LightConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.tiny_vit = TinyVit(config.vit_channels, config.vit_depths, config.vit_heads, config.vit_windows)
        self.efficient_net = EfficientNetLite(config.net_stages, config.net_head, config.names)
        if not config.train_vision:
            self.tiny_vit.requires_grad_(False)
            self.efficient_net.requires_grad_(False)
        self.text = MiniLm(config.text)
        _, half, quarter = self.efficient_net.widths
        self.map = CellMap(config, half, quarter)
        self.find = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, 1))
        nn.init.constant_(self.find[2].get_parameter("bias"), -4.0)  # few cells are the middle of an object
        self.kernel = KernelHead(d, config.mask_channels, config.mask_hidden)
        self.fine = FinePixels(config)
        self.describe = Describe(config, quarter)
        self.cluster = nn.ModuleList(QueryLayer(d, config.heads) for _ in range(config.cluster_layers))
        self.see = nn.Linear(d, 1)
        self.hear = Hear(config)
        self.name_vectors: Tensor
        self.register_buffer("name_vectors", torch.zeros(config.names, config.text.width))

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> LightFeatures:
        """frames: (B, T, 3, H, W), ImageNet-normalised, H and W multiples of 32; padding: (B, T, H, W)."""
        return self.propose(self.look(frames.flatten(0, 1)), frames, padding)

    def propose(self, looked: Looked, frames: Tensor, padding: Tensor) -> LightFeatures:
        """The rest of ``encode``, from what both encoders see in the B T frames (``look``)."""
        b, t = frames.shape[:2]
        fine, middle, deep, semantic, classes = looked
        nothing = F.max_pool2d(padding.flatten(0, 1).float(), 16) > 0
        cells = self.map(deep, semantic, classes.softmax(1), self.name_vectors, nothing)  # (BT, S, D)
        rows, columns = deep.shape[-2:]
        heat = self.find(cells).float().view(b * t, rows, columns).masked_fill(nothing, -20.0)
        pixels = self.fine(fine, middle, cells.transpose(1, 2).unflatten(2, (rows, columns)))
        chosen = peaks(heat, self.config.queries)  # (BT, Q)
        masks = self.paint_at(cells, pixels, chosen, columns)  # (BT, Q, h, w)
        evidence = self.describe.pool(
            masks, frames.flatten(0, 1), cells, semantic[1], classes, heat, chosen, self.config
        )
        order, spare = link(masks.unflatten(0, (b, t)), evidence, heat.flatten(1).gather(1, chosen).view(b, t, -1))
        masks, chosen = (reorder(x.unflatten(0, (b, t)), order) for x in (masks, chosen))
        evidence = {k: reorder(v.unflatten(0, (b, t)), order) for k, v in evidence.items()}
        queries = self.describe(evidence, cells.unflatten(0, (b, t)), chosen, self.name_vectors)  # (B, T, Q, D)
        unused = spare[:, None].expand(b, t, -1).flatten(1)
        for layer in self.cluster:
            queries = layer(queries.flatten(1, 2), unused).view_as(queries)
        names = evidence["classes"].mean(1).softmax(-1)
        return LightFeatures(
            levels=(deep.unflatten(0, (b, t)),), strides=(16,), padding=padding,
            size=(frames.shape[-2], frames.shape[-1]),
            cells=cells.unflatten(0, (b, t)), pixels=pixels.unflatten(0, (b, t)), heat=heat.unflatten(0, (b, t)),
            chosen=chosen, masks=masks, queries=queries, spare=spare, seen=self.see(queries).squeeze(-1).float(),
            names=names, colours=evidence["colours"].mean(1), places=rankable(evidence["geometry"]),
        )  # fmt: skip

    def decode(
        self, maps: LightFeatures, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """One clip may be asked any number of expressions; otherwise one a clip."""
        texts = [e.text for e in expressions]
        k, b = len(texts), len(maps.queries)
        which = torch.arange(b) if k == b else torch.zeros(k, dtype=torch.long)
        frame, similarity, none = self.hear_texts(maps, texts, which.to(maps.queries.device))
        similarity = similarity.masked_fill(maps.spare[which], -20.0)
        # The choice among the objects and "none of them" is one softmax of the clip; a query's logit says the same.
        chance = torch.cat([none[:, None], similarity], dim=1).log_softmax(1)[:, 1:].clamp(max=-1e-6)
        scores = (chance - torch.log(-torch.expm1(chance)))[:, None].expand_as(frame)
        # Where the frame itself says no, the object has left or has not come yet: its mask fades out.
        fade = 8 * (frame - self.config.frame_floor).clamp(max=0)
        masks = maps.masks[which] + fade[..., None, None]
        if wanted is not None:
            masks, scores = masks[:, list(wanted)], scores[:, list(wanted)]
        presence = similarity.logsumexp(1) - none
        return Prediction(masks, scores, similarity=similarity - none[:, None], presence=presence)

    def forward(self, batch: Batch) -> Prediction:
        return self.decode(self.encode(batch.frames, batch.padding), batch.expressions, batch.wanted)

    def look(self, frames: Tensor) -> Looked:
        """(N, 3, H, W) -> maps at 4, 8, 16 of TinyViT, maps at 16, 32 and name logits at 32 of EfficientNet."""
        layout = torch.channels_last if frames.device.type == "cpu" else torch.contiguous_format
        frames = frames.contiguous(memory_format=layout)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_vision):
            fine, middle, _, deep = self.tiny_vit(frames)
            std, mean = frames.new_tensor(self.config.std), frames.new_tensor(self.config.mean)
            # EfficientNet-lite was trained on (x - 127) / 128 for x in 0..255.
            scale, shift = std * (255 / 128), (mean * 255 - 127) / 128
            enlarged = frames * scale[:, None, None] + shift[:, None, None]
            if self.config.semantic_scale != 1:
                enlarged = F.interpolate(enlarged, scale_factor=self.config.semantic_scale, mode="bilinear")
            (_, half, quarter), classes = self.efficient_net(enlarged)
        return fine, middle, deep, (half, quarter), classes

    def paint_at(self, cells: Tensor, pixels: Tensor, chosen: Tensor, columns: int) -> Tensor:
        """Mask logits (N, Q, h, w) of the kernels that the chosen cells (N, Q) bring; cells (N, S, D)."""
        at = cells.gather(1, chosen[..., None].expand(-1, -1, cells.shape[-1]))
        centres = torch.stack([chosen % columns, chosen // columns], dim=-1).float() * 16 + 8
        kernels = self.kernel(at)
        return predict_masks(pixels[None], kernels[None], centres[None], 4, hidden=self.config.mask_hidden)[0]

    def hear_texts(self, maps: LightFeatures, texts: Sequence[str], which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (K, T, Q), object logits (K, Q), "none of them" logits (K,); ``which`` (K,) tells each text's clip."""
        heard, heads = self.text(texts), self.text([head_phrase(t) for t in texts])
        colours = colours_named(texts).to(maps.queries.device)
        return self.hear(maps, which, heard, heads.sentence, colours, self.name_vectors)


def light() -> Light:
    """The preset of the bundled checkpoint."""
    return Light(LightConfig())


def light_debug() -> Light:
    """Random weights, two layers, 32 wide: for tests."""
    return Light(light_debug_config())


def light_debug_config() -> LightConfig:
    return LightConfig(
        width=32, queries=6, heads=2, pixel_layers=2, cluster_layers=1, hear_layers=2, mask_channels=8, mask_hidden=8,
        fine_channels=16, vit_channels=(16, 16, 32, 32), vit_depths=(1, 1, 1, 1), vit_heads=(2, 2, 2, 2),
        net_stages=((1, 3, 1, 1, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 16), (1, 3, 2, 2, 16), (1, 3, 1, 2, 16),
                    (1, 3, 2, 2, 16), (1, 3, 1, 2, 32)),
        net_head=32, names=20, short_side=64, long_side=128,
        text=MiniLmConfig(vocabulary=256, width=32, layers=2, heads=2, feed_forward=64, positions=64),
    )  # fmt: skip


def frequencies(x: Tensor, octaves: int) -> Tensor:
    """(..., n) numbers around -1..1 -> (..., n * (1 + 2 octaves)): themselves, then sines and cosines."""
    angle = (x[..., None] * (2.0 ** torch.arange(octaves, device=x.device) * torch.pi / 2)).flatten(-2)
    return torch.cat([x, angle.sin(), angle.cos()], dim=-1)


class CellMap(nn.Module):
    """The map at stride 16 that queries come from: both encoders, the bridge of names, attention inside a frame."""

    def __init__(self, config: LightConfig, half: int, quarter: int) -> None:
        super().__init__()
        d = config.width
        self.deep, self.middle = projection(config.vit_channels[3], d), projection(half, d)
        self.coarse, self.bridge = projection(quarter, d), projection(config.text.width, d)
        self.place = nn.Linear(2 * 13, d)
        self.layers = nn.ModuleList(CellLayer(d, config.heads) for _ in range(config.pixel_layers))
        self.norm = nn.LayerNorm(d)

    def forward(
        self, deep: Tensor, semantic: tuple[Tensor, Tensor], classes: Tensor, names: Tensor, nothing: Tensor
    ) -> Tensor:
        """-> (N, S, D). classes: (N, names, rows/2, columns/2) probabilities; nothing: (N, rows, columns) padding."""
        rows, columns = deep.shape[-2:]
        spoken = torch.einsum("nkhw,kc->nchw", classes.to(names.dtype), names)
        x = self.deep(deep)
        for part, level in ((self.middle, semantic[0]), (self.coarse, semantic[1]), (self.bridge, spoken)):
            x = x + part(F.adaptive_avg_pool2d(level, (rows, columns)))
        x = x.flatten(2).transpose(1, 2)
        y, x_ = (torch.linspace(-1, 1, n, device=deep.device) for n in (rows, columns))
        grid = torch.stack(torch.meshgrid(y, x_, indexing="ij"), dim=-1)
        x = x + self.place(frequencies(grid, 6)).flatten(0, 1)
        empty = nothing.flatten(1) if bool(nothing.any()) else None
        for layer in self.layers:
            x = layer(x, (rows, columns), empty)
        return self.norm(x)


def projection(channels: int, width: int) -> nn.Sequential:
    # GroupNorm, not BatchNorm: a batch is a few clips, each a single scene.
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(8, width))


class CellLayer(nn.Module):
    """Look at the neighbours, attend to the whole frame, think."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.neighbours = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.attend, self.think = SelfAttention(width, heads), FeedForward(width, 3)

    def forward(self, x: Tensor, size: tuple[int, int], padding: Tensor | None) -> Tensor:
        near = self.neighbours(x.transpose(1, 2).unflatten(2, size))
        x = self.attend(x + near.flatten(2).transpose(1, 2), padding)
        return x + self.think(x)


class FinePixels(nn.Module):
    """Mask features at stride 4 from the fine, the middle and the query map."""

    def __init__(self, config: LightConfig) -> None:
        super().__init__()
        c = config.fine_channels
        self.fine, self.middle, self.deep = (
            projection(n, c) for n in (config.vit_channels[0], config.vit_channels[1], config.width)
        )
        self.mix = nn.Sequential(
            nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1), nn.GroupNorm(8, c), nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1), nn.GroupNorm(8, c), nn.ReLU(),
            nn.Conv2d(c, config.mask_channels, 1),
        )  # fmt: skip

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        def grow(x: Tensor, size: torch.Size) -> Tensor:
            return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

        x = self.middle(middle) + grow(self.deep(deep), middle.shape[-2:])
        return self.mix(self.fine(fine) + grow(x, fine.shape[-2:]))


class KernelHead(nn.Module):
    """The dynamic network of each query; the weights of the two coordinates are scaled from pixels to a share."""

    def __init__(self, width: int, channels: int, hidden: int) -> None:
        super().__init__()
        numbers = kernel_numbers(channels, hidden)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, numbers))
        self.scale: Tensor
        scale = torch.ones(numbers)
        first = scale[: hidden * (channels + 2)].view(hidden, channels + 2)
        first[:, channels:] = 1 / 64  # 64 pixels: about the radius of an object (our choice)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, queries: Tensor) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):  # bf16 would blur the weights of the coordinates
            return self.layers(queries.float()) * self.scale


def peaks(heat: Tensor, count: int) -> Tensor:
    """(N, Q) cell numbers of the highest local maxima of (N, rows, columns) heat."""
    highest = F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0]
    ranked = torch.where(heat >= highest, heat, heat - 30.0).flatten(1)
    if ranked.shape[1] < count:  # a tiny frame has fewer cells than queries: the last cell stands in
        found = ranked.topk(ranked.shape[1], dim=1).indices
        return F.pad(found, (0, count - found.shape[1]), mode="replicate")
    return ranked.topk(count, dim=1).indices


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """(B, T, Q, ...) with its queries in the order (B, T, Q) says."""
    index = order.view(*order.shape, *(1,) * (x.ndim - 3)).expand(*order.shape, *x.shape[3:])
    return x.gather(2, index)


class Describe(nn.Module):
    """What is known of each query: its cell, and what lies under its mask (features, names, colours, geometry)."""

    def __init__(self, config: LightConfig, semantic: int) -> None:
        super().__init__()
        d = config.width
        self.cell, self.inside = nn.Linear(d, d), nn.Linear(d, d)
        self.semantic, self.bridge = nn.Linear(semantic, d), nn.Linear(config.text.width, d)
        self.semantic_norm = nn.LayerNorm(semantic)
        self.colour = nn.Linear(len(SHADES), d)
        self.geometry = nn.Sequential(nn.Linear(5 * 13 + 1, d), nn.GELU(), nn.Linear(d, d))
        self.motion = nn.Sequential(nn.Linear(10 * 9 + 1, d), nn.GELU(), nn.Linear(d, d))
        self.norm = nn.LayerNorm(d)
        shades = torch.tensor([s[1:] for s in SHADES]) / 255
        self.shades: Tensor
        self.register_buffer("shades", lab(shades), persistent=False)

    @torch.no_grad()
    def pool(
        self, masks: Tensor, frames: Tensor, cells: Tensor, semantic: Tensor, classes: Tensor, heat: Tensor,
        chosen: Tensor, config: LightConfig,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What lies under each of (N, Q, h, w) masks; no gradient, so that words do not bend masks."""
        soft = masks.sigmoid()
        grids = (F.avg_pool2d(soft, 4), F.adaptive_avg_pool2d(soft, (classes.shape[-2], classes.shape[-1])))
        w16, named_at = (m.flatten(2) / m.flatten(2).sum(-1, keepdim=True).clamp(min=1e-3) for m in grids)
        rgb = F.avg_pool2d(frames.float(), 4) * cells.new_tensor(config.std).view(3, 1, 1).float()
        rgb = (rgb + cells.new_tensor(config.mean).view(3, 1, 1).float()).clamp(0, 1)
        apart = torch.cdist(lab(rgb.permute(0, 2, 3, 1)).flatten(1, 2), self.shades)  # (N, hw, shades)
        named = (-apart / 8.0).softmax(-1)  # 8 units of Lab: just told apart at a glance (our choice)
        hard = (soft.flatten(2) > 0.5).float() + 1e-4
        colours = (hard / hard.sum(-1, keepdim=True)) @ named
        return {
            "inside": w16 @ cells.float(), "semantic": named_at @ semantic.float().flatten(2).transpose(1, 2),
            "classes": named_at @ classes.float().flatten(2).transpose(1, 2), "colours": colours,
            "geometry": moments(soft), "heat": heat.flatten(1).gather(1, chosen),
        }  # fmt: skip

    def forward(self, evidence: dict[str, Tensor], cells: Tensor, chosen: Tensor, names: Tensor) -> Tensor:
        """(B, T, Q, D)"""
        at = cells.gather(2, chosen[..., None].expand(-1, -1, -1, cells.shape[-1]))
        geometry, heat = evidence["geometry"], evidence["heat"][..., None].clamp(-8, 4) / 4
        spoken = evidence["classes"].softmax(-1) @ names
        x = self.cell(at) + self.inside(evidence["inside"]) + self.semantic(self.semantic_norm(evidence["semantic"]))
        x = x + self.bridge(spoken) + self.colour(evidence["colours"])
        x = x + self.geometry(torch.cat([frequencies(geometry, 6), heat], dim=-1))
        return self.norm(x + self.motion(trajectory(geometry)))


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


def trajectory(geometry: Tensor) -> Tensor:
    """(B, T, Q, 5) geometry -> (B, T, Q, 91): where in time, and how each object moves, small movements enlarged."""
    b, t, q, _ = geometry.shape
    place = geometry[..., [0, 1, 4]]  # centre x, y, and size
    total = (place[:, -1:] - place[:, :1]).expand(-1, t, -1, -1)
    step = (
        F.pad(place[:, 1:] - place[:, :-1], (0, 0, 0, 0, 0, 1), mode="replicate") if t > 1 else torch.zeros_like(place)
    )
    moved = (place - place.mean(1, keepdim=True))[..., :2]
    path = step[..., :2].norm(dim=-1).sum(1, keepdim=True).expand(-1, t, -1)[..., None]
    fastest = path.amax(2, keepdim=True).clamp(min=0.02)
    facts = torch.cat([total, step, moved, path, path / fastest], dim=-1)  # (B, T, Q, 10)
    facts = torch.cat([(facts * gain).tanh() for gain in (1.0, 4.0, 16.0)], dim=-1)
    facts = torch.cat([facts, (facts * torch.pi / 2).sin(), (facts * torch.pi).sin()], dim=-1)
    when = torch.linspace(-1, 1, t, device=geometry.device).view(1, t, 1, 1).expand(b, t, q, 1)
    return torch.cat([facts, when], dim=-1)


PLACES = 7


def rankable(geometry: Tensor) -> Tensor:
    """(B, T, Q, 5) geometry -> (B, Q, PLACES): mean x, y, size; how far it went in x, y, size; length of its path."""
    place = geometry[..., [0, 1, 4]]
    steps = place[:, 1:, :, :2] - place[:, :-1, :, :2]
    path = steps.norm(dim=-1).sum(1)[..., None]
    return torch.cat([place.mean(1), place[:, -1] - place[:, 0], path], dim=-1)


@torch.no_grad()
def link(masks: Tensor, evidence: dict[str, Tensor], heat: Tensor) -> tuple[Tensor, Tensor]:
    """Give one index to one object: the order (B, T, Q) of each frame's queries, and (B, Q) bool of the spare ones.

    Successive frames are assigned by mask overlap, likeness and nearness (Hungarian); a query is spare where it repeats
    the mask of a hotter one in every frame.
    """
    b, t, q = heat.shape
    inside = evidence["inside"].unflatten(0, (b, t))
    inside = F.normalize(inside - inside.mean((1, 2), keepdim=True), dim=-1)  # what all queries share tells nothing
    centres = evidence["geometry"].unflatten(0, (b, t))[..., :2]
    flat = (F.avg_pool2d(masks.sigmoid().flatten(0, 1), 2) > 0.5).float().flatten(2).unflatten(0, (b, t))
    repeats = repeated(flat.flatten(0, 1), heat.flatten(0, 1)).unflatten(0, (b, t))  # (B, T, Q)
    order = torch.arange(q, device=masks.device).expand(b, t, q).clone()
    if t > 1:
        likeness = torch.einsum("btqd,btpd->btqp", inside[:, :-1], inside[:, 1:])
        near = (-torch.cdist(centres[:, :-1], centres[:, 1:]).square() / 0.18).exp()
        overlap = iou(flat[:, :-1], flat[:, 1:])
        idle = (repeats[:, :-1, :, None] != repeats[:, 1:, None, :]).float()
        affinity = (overlap + likeness + near - idle).float().cpu().numpy()
        if not np.isfinite(affinity).all():
            return order, repeats.all(1)  # a diverged model: the trainer names it, linking need not
        for clip in range(b):
            current = np.arange(q)
            for i in range(t - 1):
                rows, columns = linear_sum_assignment(-affinity[clip, i])
                successor = np.empty(q, dtype=np.int64)
                successor[rows] = columns
                current = successor[current]
                order[clip, i + 1] = torch.from_numpy(current).to(order.device)
    return order, reorder(repeats, order).all(1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., Q, P) overlaps of two sets of flat 0/1 masks (..., Q, n), (..., P, n)."""
    both = a @ b.transpose(-1, -2)
    return both / (a.sum(-1)[..., None] + b.sum(-1)[..., None, :] - both).clamp(min=1)


def repeated(flat: Tensor, heat: Tensor, limit: float = 0.6) -> Tensor:
    """(N, Q) bool: some hotter query's mask overlaps this one's by more than ``limit``."""
    hotter = heat[:, None, :] > heat[:, :, None]
    return ((iou(flat, flat) > limit) & hotter).any(-1)


class QueryLayer(nn.Module):
    """Attention among queries, and thought; ``padding`` marks queries nobody should attend to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend, self.think = SelfAttention(width, heads), FeedForward(width, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.attend(x, padding)
        return x + self.think(x)


class HearLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.words, self.others = CrossAttention(width, heads), SelfAttention(width, heads)
        self.think = FeedForward(width, 2)

    def forward(self, x: Tensor, spare: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        x = self.others(self.words(x, words, padding), spare)
        return x + self.think(x)


class Rank(nn.Module):
    """Tell each object how it ranks among those that may be meant: the leftmost, the largest, the fastest of them.

    Superlatives compare, and attention over tokens learns to compare slowly; here the comparison is a soft rank, and
    what is learned is who takes part and what a rank is worth.
    """

    GAINS = (4.0, 20.0)  # a difference of a quarter, or of a twentieth, of half the frame is clear (our choice)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.takes_part = nn.Linear(width, 1)
        numbers = PLACES * (1 + len(self.GAINS))
        self.worth = nn.Sequential(nn.Linear(numbers, width), nn.GELU(), nn.Linear(width, width))
        nn.init.zeros_(self.worth[2].get_parameter("weight"))

    def forward(self, objects: Tensor, places: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
        """objects: (K, Q, D).  places: (K, Q, PLACES).  spare: (K, Q) bool.  -> (K, Q, D) to add, and the ranks."""
        part = self.takes_part(objects).float().sigmoid() * ~spare[..., None]  # (K, Q, 1)
        apart = places[:, :, None] - places[:, None]  # (K, Q, Q, PLACES): mine minus theirs
        soft = [(part[:, None] * (apart * gain).tanh()).sum(2) for gain in self.GAINS]
        among = part.sum(1, keepdim=True) + 0.1
        ranks = torch.cat([places, *(rank / among for rank in soft)], dim=-1)
        return self.worth(ranks), ranks


class Hear(nn.Module):
    """Queries hear the words, are clustered over time into objects, and the objects are weighed against each other."""

    def __init__(self, config: LightConfig) -> None:
        super().__init__()
        d = config.width
        self.words = nn.Linear(2 * config.text.width, d)
        self.sentence, self.head = nn.Linear(config.text.width, d), nn.Linear(config.text.width, d)
        self.wish = nn.Linear(config.text.width, PLACES * (1 + len(Rank.GAINS)))
        nn.init.zeros_(self.wish.weight)
        self.named_colours = nn.Linear(len(COLOURS), d)
        self.frame_words, self.frame_think = CrossAttention(d, config.heads), FeedForward(d, 2)
        self.weight = nn.Linear(d, 1)
        self.evidence = nn.Sequential(nn.Linear(7, d), nn.GELU(), nn.Linear(d, d))
        self.none = nn.Parameter(torch.zeros(1, 1, d))
        self.layers = nn.ModuleList(HearLayer(d, config.heads) for _ in range(config.hear_layers))
        self.ranks = nn.ModuleList(Rank(d) for _ in range(config.hear_layers))
        self.norm = nn.LayerNorm(d)
        self.match, self.absent = nn.Linear(d, 1), nn.Linear(d, 1)
        self.compare = nn.Linear(d, d)
        self.frame = nn.Linear(d, 1)
        self.shade_of: Tensor
        shade_of = torch.tensor([[float(s[0] == c) for c in COLOURS] for s in SHADES])
        self.register_buffer("shade_of", shade_of, persistent=False)

    def forward(
        self, maps: LightFeatures, which: Tensor, heard, heads: Tensor, colours: Tensor, names: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, spare = maps.queries[which], maps.spare[which]  # (K, T, Q, D), (K, Q)
        k, t, q, _ = queries.shape
        sentence, head = self.sentence(heard.sentence), self.head(heads)
        extra = torch.stack([sentence, head, self.named_colours(colours)], dim=1)
        words = torch.cat([extra, self.words(heard.words)], dim=1)  # (K, 3 + L, D)
        padding = F.pad(heard.padding, (3, 0), value=False)
        frames = self.frame_words(queries.flatten(1, 2), words, padding)
        frames = (frames + self.frame_think(frames)).view(k, t, q, -1)
        share = (self.weight(frames) + maps.seen[which][..., None].clamp(-8, 8)).float().softmax(1)
        objects = (share * frames).sum(1)  # (K, Q, D), clustered over time
        objects = objects + self.evidence(self.bridges(maps, which, heard.sentence, heads, colours, names))
        x = torch.cat([self.none.expand(k, -1, -1) + (sentence + head)[:, None], objects], dim=1)
        spare = F.pad(spare, (1, 0), value=False)
        places = maps.places[which]
        for layer, rank in zip(self.layers, self.ranks, strict=True):
            x = layer(x, spare, words, padding)
            worth, ranks = rank(x[:, 1:], places, spare[:, 1:])
            x = torch.cat([x[:, :1], x[:, 1:] + worth], dim=1)
        x = self.norm(x).float()
        none, objects = x[:, 0], x[:, 1:]
        likeness = torch.einsum("kqd,kd->kq", self.compare(objects).float(), (sentence + head).float())
        similarity = self.match(objects).squeeze(-1) + likeness / objects.shape[-1] ** 0.5
        # Which ranks the words wish for: linear in the words, so that "left" is soon the opposite of "right".
        spelt = heard.words[..., heard.sentence.shape[-1] :] * ~heard.padding[..., None]
        similarity = similarity + torch.einsum("kqf,kf->kq", ranks.float(), self.wish(spelt.sum(1) / 4).float())
        scores = self.frame(F.gelu(frames + objects[:, None])).squeeze(-1)
        return scores.float(), similarity.float(), self.absent(none).squeeze(-1).float()

    def bridges(
        self, maps: LightFeatures, which: Tensor, sentence: Tensor, heads: Tensor, colours: Tensor, names: Tensor
    ) -> Tensor:
        """(K, Q, 7): how well each object's names and colours agree with the words, before anything is learned."""
        seen = maps.names[which]  # (K, Q, names)
        facts = []
        for vector in (sentence, heads):
            alike = vector @ names.T  # (K, names) cosines
            chosen = (alike * 25).softmax(-1)  # 25: the nearest handful of names (our choice)
            facts += [torch.einsum("kqn,kn->kq", seen, alike) * 2 - 0.5]
            facts += [(torch.einsum("kqn,kn->kq", seen, chosen) * seen.shape[-1] + 1e-2).log() / 4]
            facts += [(seen * (alike > alike.amax(-1, keepdim=True) - 0.15)[:, None]).sum(-1)]
        share = maps.colours[which] @ self.shade_of  # (K, Q, colours)
        facts.append((share * colours[:, None]).sum(-1))
        return torch.stack(facts, dim=-1)


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
