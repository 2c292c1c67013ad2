"""SLVP-style: language-video pre-training by optical flow (after Mei et al., WACV 2024 Workshops, "SLVP").

Only that paper's abstract is public. This is a system in its spirit, not its reproduction: its parts are our choice,
and no score of the paper is claimed. Pre-training predicts the optical flow of captioned films; then the flow head
gives way to a mask head and everything else is kept. Two fusions share one architecture. With *vision as query* the
pixels attend to the words and one dense mask is predicted; with *language as query* K queries, which start as the
sentence, attend to the pixels, and each yields the kernel of a mask.

B clips, T frames, L words, Q queries (1, or K), D width, P channels of a pixel; h, w are a quarter of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.attention import CrossAttention, FeedForward, Mlp, SelfAttention
from deixis.blocks.constants import constant
from deixis.blocks.fusion import split_expressions
from deixis.blocks.pixel_decoder import ConvNormReLU
from deixis.blocks.positions import map_positions, plain_map_positions
from deixis.blocks.query_heads import join
from deixis.encoders.roberta import TextConfig, TextEncoder
from deixis.encoders.video_swin import VideoSwin, VideoSwinConfig, video_swin_t
from deixis.types import Batch, DeixisError, Expression, FeatureMaps, Prediction, SystemConfig, TextFeatures, bounded

MAP_STRIDES = (4, 8, 16, 32)  # pixels a cell of the levels
# Parts that only pre-training has; a transfer leaves them behind, and begins ``mask_head.`` anew.
PRETRAINING = ("flow_head.", "contrast_head.", "word_head.", "queue.")
TRANSFER = ("mask_head.",)


@dataclass(frozen=True, kw_only=True)
class SlvpConfig(SystemConfig):
    """Every number is our choice: nothing but the abstract is public."""

    fusion: Literal["vision", "language"] = "vision"  # which of the two is the query
    head: Literal["mask", "flow"] = "mask"  # flow: for pre-training; such a model does not segment
    vision: VideoSwinConfig = field(default_factory=video_swin_t)
    text: TextConfig = field(default_factory=TextConfig)
    width: int = 256  # D
    heads: int = 8  # of every attention
    blocks: int = 2  # vision as query: fusion blocks a level
    space: tuple[int, ...] = (16, 32)  # strides at which the cells of a frame attend to each other; 8 is the dearest
    compared: tuple[int, ...] = (8,)  # strides at which cells are compared with those of the frames beside
    reach: int = 3  # cells each way that they are compared with
    signature: int = 32  # channels in which they are compared
    queries: int = 5  # language as query: K
    layers: int = bounded(3, least=0)  # language as query: decoder layers
    pixel_channels: int = 128  # P
    norm_groups: int = 32  # of the projections' GroupNorm
    pixel_groups: int = 8  # of the pixel decoder's GroupNorm
    contrast: int = 256  # pre-training: channels in which clips and sentences are compared
    queue: int = bounded(0, least=0)  # pre-training: earlier clips and sentences that are negatives too
    flow_unit: float = 0.02  # one unit of predicted flow, as a share of the frame's diagonal
    short_side: int = 360  # pixels
    long_side: int = 640  # pixels
    window: int = 36  # frames decoded at once at inference
    multiple: int = 4  # pixels; height and width are padded to it
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # ImageNet


@dataclass(frozen=True, eq=False)
class Fused:
    """Pixels and words after their fusion.

    pixels: (B, T, P, h, w).  tokens: (B, N, D), keys for the words; padding: (B, N) of them, or None.
    queries: (B, Q, D), the sentence itself where vision is the query.  layers: (B, T, Q, h, w), logits of the queries'
    kernels, or None where vision is the query.
    """

    pixels: Tensor
    tokens: Tensor
    padding: Tensor | None
    queries: Tensor
    layers: Tensor | None


class Slvp(nn.Module):
    """Segment, in every frame, the object an expression names; or, with the flow head, predict how the clip moves."""

    def __init__(self, config: SlvpConfig) -> None:
        super().__init__()
        self.config, d, p = config, config.width, config.pixel_channels
        self.vision, self.text = VideoSwin(config.vision), TextEncoder(config.text, d)
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 1), nn.GroupNorm(config.norm_groups, d)) for c in self.vision.channels[1:]
        )
        self.neighbours = nn.ModuleList(
            Neighbours(c, config.signature if stride in config.compared else 0, config.reach)
            for c, stride in zip((p, d, d, d), MAP_STRIDES, strict=True)
        )
        self.temporal_attention = SelfAttention(d, config.heads)  # at stride 16
        self.temporal_feed_forward = FeedForward(d)
        self.fine = nn.Conv2d(self.vision.channels[0], p, 1)
        self.fuse: VisionAsQuery | LanguageAsQuery = (
            VisionAsQuery(config) if config.fusion == "vision" else LanguageAsQuery(config)
        )
        self.pixel_decoder = PixelDecoder(d, p, config.pixel_groups)
        if config.head == "mask":
            self.mask_head = QueryMaskHead(config)
        else:
            self.flow_head = DenseFlow(p) if config.fusion == "vision" else LayeredFlow(p, d)
            self.contrast_head = ContrastHead(config)
            self.word_head = WordHead(config)
            if config.queue:
                self.queue = EarlierRows(config.queue, config.contrast)

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> FeatureMaps:
        """frames: (B, T, 3, H, W); padding: (B, T, H, W). No words yet: encode once, decode many.

        With ``wanted`` the backbone encodes all frames, and everything after it the wanted ones only. The first level
        is the pixel decoder's lateral, or, where language is the query, its finished pixels: they are not fused with
        words.
        """
        levels = self.vision(frames)  # (B, T, C, h, w) each
        if wanted is not None:
            levels, padding = [level[:, list(wanted)] for level in levels], padding[:, list(wanted)]
        b, t = padding.shape[:2]
        projected = [
            conv(level.flatten(0, 1)).unflatten(0, (b, t)) for level, conv in zip(levels[1:], self.project, strict=True)
        ]
        fine = self.fine(levels[0].flatten(0, 1)).unflatten(0, (b, t))
        hidden = [cell_padding(padding, (x.shape[-2], x.shape[-1])) for x in (fine, *projected)]
        fine, *projected = [near(x, h) for near, x, h in zip(self.neighbours, (fine, *projected), hidden, strict=True)]
        # Place and time are added once.
        projected = [x + position_codes(x, h) for x, h in zip(projected, hidden[1:], strict=True)]
        projected[1] = self.attend_over_time(projected[1])
        if self.config.fusion == "language":
            fine = self.pixel_decoder(fine, projected)
        return FeatureMaps((fine, *projected), MAP_STRIDES, padding, (frames.shape[-2], frames.shape[-1]))

    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """One clip takes any number of expressions (B is then that number); otherwise one a clip.

        Raises DeixisError for a model that has only been pre-trained.
        """
        if self.config.head != "mask":
            raise DeixisError(
                "this model was pre-trained on flow and has no mask head yet; give it one: "
                "`deixis train slvp_transfer -o OUT --data start=CHECKPOINT --data ref-youtube-vos=FOLDER`"
            )
        maps = maps if wanted is None else of_frames(maps, wanted)
        text = self.text([e.text for e in expressions])
        return join([self.predict_clip(maps, group) for group in split_expressions(len(maps.padding), text)])

    def forward(self, batch: Batch) -> Prediction:
        return self.decode(self.encode(batch.frames, batch.padding, batch.wanted), batch.expressions)

    def predict_clip(self, maps: FeatureMaps, text: TextFeatures) -> Prediction:
        """Masks and scores are fp32, also under autocast."""
        fused = self.fuse_text(maps, text)
        with torch.autocast(fused.pixels.device.type, enabled=False):
            return self.mask_head(fused)

    def fuse_text(self, maps: FeatureMaps, text: TextFeatures) -> Fused:
        """Features fused with the text: the one place in which the two fusions differ."""
        if isinstance(self.fuse, VisionAsQuery):
            return self.fuse(maps, text, self.pixel_decoder)
        return self.fuse(maps, text)

    def predict_flow(self, maps: FeatureMaps, text: TextFeatures) -> tuple[Tensor, Fused]:
        """Pre-training: the flow (B, T, 2, h, w) from each frame to the next, camera motion taken out, dx and dy in
        units of ``flow_unit`` times the frame's diagonal (of the last frame unsupervised: it has no successor)."""
        fused = self.fuse_text(maps, text)
        with torch.autocast(fused.pixels.device.type, enabled=False):
            return self.flow_head(fused), fused

    def attend_over_time(self, level: Tensor) -> Tensor:
        """(B, T, D, h, w): every cell attends to its own place in the other frames."""
        b, _, _, h, w = level.shape
        tokens = rearrange(level, "b t d h w -> (b h w) t d")
        tokens = self.temporal_attention(tokens)
        tokens = tokens + self.temporal_feed_forward(tokens)
        return rearrange(tokens, "(b h w) t d -> b t d h w", b=b, h=h, w=w)


# --- what both fusions share ------------------------------------------------------------------------------------------


def of_frames(maps: FeatureMaps, wanted: Sequence[int]) -> FeatureMaps:
    """The maps of the frames ``wanted`` only."""
    index = list(wanted)
    return FeatureMaps(tuple(x[:, index] for x in maps.levels), maps.strides, maps.padding[:, index], maps.size)


def cell_padding(padding: Tensor, size: tuple[int, int]) -> Tensor | None:
    """(B, T, h, w) of pixels' padding (B, T, H, W), or None where nothing is padded."""
    if not bool(padding.any()):
        return None
    return F.interpolate(padding.float(), size=size).bool()


def position_codes(level: Tensor, hidden: Tensor | None) -> Tensor:
    """(B or 1, T, D, h, w): sine codes of place and time for a level (B, T, D, h, w). hidden: (B, T, h, w), the cells'
    padding, or None."""
    _, t, d, h, w = level.shape
    if hidden is None:
        place = plain_map_positions(h, w, d, level.device)[None]  # (1, 1, h, w, D)
    else:
        place = map_positions(hidden.flatten(0, 1), d).unflatten(0, hidden.shape[:2])
    return (place + frame_positions(t, d, level.device)[:, None, None]).permute(0, 1, 4, 2, 3).to(level.dtype)


@constant
def frame_positions(frames: int, width: int, device: torch.device) -> Tensor:
    """(T, D) sine codes of the frame numbers; not scaled by T, so that a step means the same in clips of any length."""
    wavelength = 10_000 ** (torch.arange(0, width, 2, device=device) / width)  # (D/2,)
    angle = torch.arange(frames, device=device)[:, None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def pooled(pixels: Tensor, weights: Tensor) -> Tensor:
    """(B, T, Q, P): the mean of pixels (B, T, P, h, w) under each query's weights (B, T, Q, h, w) of 0 and more."""
    sums = torch.einsum("btphw,btqhw->btqp", pixels, weights)
    return sums / (weights.sum((-2, -1))[..., None] + 1e-3)


class Neighbours(nn.Module):
    """A convolution over time, of every cell with its own place in the frame before and in the one after; with a
    signature, also the local correlation with the cells around that place: the nearest evidence of motion."""

    def __init__(self, channels: int, signature: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.mix = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.signature = nn.Conv2d(channels, signature, 1, bias=False) if signature else None
        self.project_correlation = nn.Conv2d(2 * (2 * reach + 1) ** 2, channels, 1) if signature else None

    def forward(self, level: Tensor, hidden: Tensor | None) -> Tensor:
        """(B, T, C, h, w) -> (B, T, C, h, w). hidden: (B, T, h, w), the cells' padding, or None."""
        mixed = self.mix(level.transpose(1, 2)).transpose(1, 2)
        if self.signature is not None and self.project_correlation is not None:
            frames = level.shape[:2]
            signs = self.signature(level.flatten(0, 1)).unflatten(0, frames)
            correlation = local_correlation(signs, hidden, self.reach).flatten(0, 1)
            mixed = mixed + self.project_correlation(correlation).unflatten(0, frames)
        return level + F.gelu(mixed)


def local_correlation(level: Tensor, hidden: Tensor | None, reach: int) -> Tensor:
    """(B, T, 2 (2 reach + 1)^2, h, w): each cell's cosines with the cells up to ``reach`` away in the next frame, then
    in the one before; 0 beyond the picture and the clip. Of features (B, T, C, h, w), less their mean over the clip:
    what all cells have in common distinguishes none. hidden: (B, T, h, w), the cells' padding, or None."""
    h, w = level.shape[-2:]
    there = torch.ones_like(level[:, :, :1]) if hidden is None else (~hidden)[:, :, None].to(level.dtype)
    mean = (level * there).sum((1, 3, 4), keepdim=True) / there.sum((1, 3, 4), keepdim=True).clamp(min=1)
    unit = F.normalize((level - mean) * there, dim=2)
    around = (reach, reach, reach, reach)
    steps = [(slice(y, y + h), slice(x, x + w)) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    here, beside = unit[:, :-1], F.pad(unit[:, 1:], around)
    after = torch.stack([(here * beside[..., y, x]).sum(2) for y, x in steps], dim=2)  # (B, T-1, steps, h, w)
    back = F.pad(after, around).flip(2)  # a step back leads to the cell from which the same step leads here
    before = torch.stack([back[:, :, k, y, x] for k, (y, x) in enumerate(steps)], dim=2)
    return torch.cat([F.pad(after, (0, 0) * 3 + (0, 1)), F.pad(before, (0, 0) * 3 + (1, 0))], dim=2)


class PixelDecoder(nn.Module):
    """Coarse to fine at one width: each step adds a level's lateral and smoothes."""

    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, out, 1) for _ in MAP_STRIDES[1:])
        self.smooth = nn.ModuleList(ConvNormReLU(out, out, groups) for _ in MAP_STRIDES)

    def forward(self, fine: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """(B, T, P, h, w) from fine (B, T, P, h, w) at stride 4 and levels (B, T, D, ., .) at 8, 16, 32."""
        b, t = fine.shape[:2]
        sides = [lateral(x.flatten(0, 1)) for lateral, x in zip(self.laterals, levels, strict=True)]
        x = self.smooth[3](sides[2])
        for i, side in ((2, sides[1]), (1, sides[0]), (0, fine.flatten(0, 1))):
            x = self.smooth[i](side + F.interpolate(x, size=side.shape[-2:], mode="nearest"))
        return x.unflatten(0, (b, t))


# --- vision as query --------------------------------------------------------------------------------------------------


class VisionAsQuery(nn.Module):
    """The cells of every level attend to the words, then to each other; the layout stays."""

    def __init__(self, config: SlvpConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(FusionBlock(config, space=stride in config.space) for _ in range(config.blocks))
            for stride in MAP_STRIDES[1:]
        )

    def forward(self, maps: FeatureMaps, text: TextFeatures, decoder: PixelDecoder) -> Fused:
        fused = []
        for level, blocks in zip(maps.levels[1:], self.levels.children(), strict=True):
            hidden = cell_padding(maps.padding, (level.shape[-2], level.shape[-1]))
            for block in blocks.children():
                level = block(level, text, hidden)
            fused.append(level)
        tokens, padding = level_tokens(fused[1:], maps.padding)
        pixels = decoder(maps.levels[0], fused).float()
        return Fused(pixels, tokens, padding, text.sentence[:, None].float(), None)


class FusionBlock(nn.Module):
    """Cells attend to the words, to their own place over time, and (where affordable) to their frame; pre-norm."""

    def __init__(self, config: SlvpConfig, space: bool) -> None:
        super().__init__()
        d, heads = config.width, config.heads
        self.text_attention, self.temporal_attention = CrossAttention(d, heads), SelfAttention(d, heads)
        self.feed_forward = FeedForward(d)
        self.spatial_attention = SelfAttention(d, heads) if space else None

    def forward(self, level: Tensor, text: TextFeatures, hidden: Tensor | None) -> Tensor:
        """(B, T, D, h, w); hidden: (B, T, h, w), the cells' padding, or None."""
        b, t, _, h, w = level.shape
        x = self.text_attention(rearrange(level, "b t d h w -> b (t h w) d"), text.words.to(level.dtype), text.padding)
        x = self.temporal_attention(rearrange(x, "b (t h w) d -> (b h w) t d", t=t, h=h, w=w))
        x = rearrange(x, "(b h w) t d -> (b t) (h w) d", b=b, h=h, w=w)
        if self.spatial_attention is not None:
            x = self.spatial_attention(x, never_all_masked(hidden))
        x = x + self.feed_forward(x)
        return rearrange(x, "(b t) (h w) d -> b t d h w", b=b, t=t, h=h, w=w)


def never_all_masked(hidden: Tensor | None) -> Tensor | None:
    """(B T, h w) from (B, T, h, w); a frame that is padding throughout is left unmasked, to avoid an
    empty softmax."""
    if hidden is None:
        return None
    flat = hidden.flatten(0, 1).flatten(1)
    return flat & ~flat.all(1, keepdim=True)


def level_tokens(levels: Sequence[Tensor], padding: Tensor) -> tuple[Tensor, Tensor | None]:
    """Levels (B, T, D, h, w) as tokens (B, N, D) and their padding (B, N) or None."""
    tokens = torch.cat([rearrange(x, "b t d h w -> b (t h w) d") for x in levels], dim=1)
    hidden = [cell_padding(padding, (x.shape[-2], x.shape[-1])) for x in levels]
    if hidden[0] is None:
        return tokens, None
    return tokens, torch.cat([x.flatten(1) for x in hidden if x is not None], dim=1)


# --- language as query ------------------------------------------------------------------------------------------------


class LanguageAsQuery(nn.Module):
    """K queries, the sentence plus K learned offsets, attend to the words and the pixels of all frames."""

    def __init__(self, config: SlvpConfig) -> None:
        super().__init__()
        d, heads = config.width, config.heads
        self.offsets = nn.Parameter(torch.randn(config.queries, d))
        self.norm_tokens, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.layers = nn.ModuleList(LanguageQueryLayer(d, heads) for _ in range(config.layers))
        self.kernel = Mlp(d, d, d, config.pixel_channels + 1)  # the last number is a bias

    def forward(self, maps: FeatureMaps, text: TextFeatures) -> Fused:
        tokens, padding = level_tokens(maps.levels[2:], maps.padding)
        tokens = self.norm_tokens(tokens)
        queries = text.sentence[:, None].to(tokens.dtype) + self.offsets  # (B, K, D)
        for layer in self.layers.children():
            queries = layer(queries, text, tokens, padding)
        queries = self.norm(queries).float()
        pixels = maps.levels[0].float()
        with torch.autocast(pixels.device.type, enabled=False):
            kernel = self.kernel(queries)  # (B, K, P + 1)
            scale = pixels.shape[2] ** -0.5
            layers = torch.einsum("bkp,btphw->btkhw", kernel[..., :-1] * scale, pixels) + kernel[:, None, :, -1:, None]
        return Fused(pixels, tokens, padding, queries, layers)


class LanguageQueryLayer(nn.Module):
    """Queries attend to the words, then to the pixels, then to each other; pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.text_attention, self.pixel_attention = CrossAttention(width, heads), CrossAttention(width, heads)
        self.self_attention, self.feed_forward = SelfAttention(width, heads), FeedForward(width)

    def forward(self, queries: Tensor, text: TextFeatures, tokens: Tensor, padding: Tensor | None) -> Tensor:
        queries = self.text_attention(queries, text.words.to(queries.dtype), text.padding)
        queries = self.self_attention(self.pixel_attention(queries, tokens, padding))
        return queries + self.feed_forward(queries)


# --- heads ------------------------------------------------------------------------------------------------------------


class QueryMaskHead(nn.Module):
    """The transfer's head: masks, and a score of each from the mean of its pixels."""

    def __init__(self, config: SlvpConfig) -> None:
        super().__init__()
        d, p = config.width, config.pixel_channels
        self.conv = nn.Conv2d(p, 1, 1) if config.fusion == "vision" else None
        self.score = Mlp(p + d, d, 1)
        if self.conv is not None:
            nn.init.constant_(self.conv.bias, -2.0)  # type: ignore[arg-type]  # at first, an eighth of the picture

    def forward(self, fused: Fused) -> Prediction:
        if self.conv is not None:
            masks = self.conv(fused.pixels.flatten(0, 1)).unflatten(0, fused.pixels.shape[:2])  # (B, T, 1, h, w)
        else:
            assert fused.layers is not None
            masks = fused.layers
        features = pooled(fused.pixels, masks.sigmoid())  # (B, T, Q, P)
        queries = fused.queries[:, None].expand(-1, features.shape[1], -1, -1)
        return Prediction(masks, self.score(torch.cat([features, queries], dim=-1))[..., 0])


class DenseFlow(nn.Module):
    """Vision as query: a convolution of the pixels to two channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3, padding=1)
        nn.init.zeros_(self.conv.weight)  # at first, nothing moves
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, fused: Fused) -> Tensor:
        return self.conv(fused.pixels.flatten(0, 1)).unflatten(0, fused.pixels.shape[:2])


class LayeredFlow(nn.Module):
    """Language as query: the flow of the pixels by themselves, and what each query's second kernel adds to it where
    the query holds its share of the picture (softmax).

    Motion by shares alone would be the purer layers, but learns nothing: as long as all shares are alike, the best
    motion of each is none, and as long as none moves, no gradient sets the shares apart.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.dense = DenseFlow(channels)
        self.kernel = Mlp(channels + width, width, 2 * (channels + 1))  # the last number of each is a bias
        nn.init.zeros_(self.kernel.last.weight)  # at first, nothing is added
        nn.init.zeros_(self.kernel.last.bias)

    def forward(self, fused: Fused) -> Tensor:
        assert fused.layers is not None
        share = fused.layers.softmax(2)  # (B, T, K, h, w)
        features = pooled(fused.pixels, share)  # (B, T, K, P)
        queries = fused.queries[:, None].expand(-1, features.shape[1], -1, -1)
        kernel = self.kernel(torch.cat([features, queries], dim=-1)).unflatten(-1, (2, -1))  # (B, T, K, 2, P + 1)
        kernel = kernel / kernel.shape[-1] ** 0.5
        added = torch.einsum("btkcp,btphw->btkchw", kernel[..., :-1], fused.pixels) + kernel[..., -1:, None]
        return self.dense(fused) + (share[:, :, :, None] * added).sum(2)


class ContrastHead(nn.Module):
    """Clip and sentence in one space. Clip features are taken before fusion with words, at cells that move."""

    def __init__(self, config: SlvpConfig) -> None:
        super().__init__()
        d, e = config.width, config.contrast
        self.clip, self.sentence = Mlp(d, d, e), nn.Linear(d, e)

    def forward(self, maps: FeatureMaps, flow: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, E) of clips and sentences. flow: (B, T, 2, h, w), weighs only (its gradient is cut)."""
        level = maps.levels[2].float()  # stride 16
        speed = flow.detach().square().sum(2, keepdim=True).sqrt()  # (B, T, 1, h, w)
        speed = F.interpolate(speed.flatten(0, 1), size=level.shape[-2:], mode="area").unflatten(0, level.shape[:2])
        hidden = cell_padding(maps.padding, (level.shape[-2], level.shape[-1]))
        weight = speed + 0.1 * speed.mean((1, 2, 3, 4), keepdim=True) + 1e-3  # a little of everything
        weight = weight if hidden is None else weight.masked_fill(hidden[:, :, None], 0.0)
        clip = (level * weight).sum((1, 3, 4)) / weight.sum((1, 3, 4))  # (B, D)
        return F.normalize(self.clip(clip), dim=-1), F.normalize(self.sentence(sentence.float()), dim=-1)


class EarlierRows(nn.Module):
    """The last N clips and sentences that were compared, with numbers of their captions (MoCo's queue,
    arXiv:1911.05722, without its slow encoder). Part of the checkpoint, so that a resumed run equals an uncut one."""

    clips: Tensor
    sentences: Tensor
    captions: Tensor
    added: Tensor

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("clips", torch.zeros(length, channels))
        self.register_buffer("sentences", torch.zeros(length, channels))
        self.register_buffer("captions", torch.zeros(length, dtype=torch.int64))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))  # in all

    def kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of the (clips, sentences, captions) that are held."""
        count = min(int(self.added), len(self.clips))
        return self.clips[:count].clone(), self.sentences[:count].clone(), self.captions[:count].clone()

    @torch.no_grad()
    def add(self, clips: Tensor, sentences: Tensor, captions: Tensor) -> None:
        """Take rows in, the oldest ones' places first."""
        size, first = len(self.clips), int(self.added)
        places = torch.arange(first, first + len(clips), device=self.clips.device)[-size:] % size
        for held, rows in ((self.clips, clips), (self.sentences, sentences), (self.captions, captions)):
            held[places] = rows[-size:].to(held.dtype)
        self.added += len(clips)


class WordHead(nn.Module):
    """Masked words, predicted from the other words and from pixels fused with no more than those."""

    def __init__(self, config: SlvpConfig) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(config.width)
        self.cross_attention, self.feed_forward = CrossAttention(config.width, config.heads), FeedForward(config.width)
        self.out = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.text.width))
        self.bias = nn.Parameter(torch.zeros(config.text.vocabulary))

    def forward(self, words: Tensor, fused: Fused, table: Tensor) -> Tensor:
        """(B, L, V) logits for words (B, L, D); table: (V, C), the text encoder's own word embeddings."""
        x = self.cross_attention(words, self.norm_tokens(fused.tokens), fused.padding)
        x = x + self.feed_forward(x)
        return F.linear(self.out(x), table, self.bias)


# --- presets ----------------------------------------------------------------------------------------------------------


def slvp_vision() -> Slvp:
    """Vision as query, Video Swin T and RoBERTa."""
    return Slvp(SlvpConfig(fusion="vision"))


def slvp_language() -> Slvp:
    """Language as query, Video Swin T and RoBERTa."""
    return Slvp(SlvpConfig(fusion="language"))


DEBUG = SlvpConfig(
    vision=VideoSwinConfig(dim=8, depths=(2, 1, 1, 1), heads=(1, 1, 2, 2), window=(4, 4, 4)),
    text=TextConfig(
        vocabulary=64, width=32, layers=2, heads=2, hidden=64, positions=130, tokenizer="letters", frozen=False
    ),
    width=32, heads=4, blocks=1, queries=3, layers=2, pixel_channels=16, norm_groups=4, pixel_groups=2, contrast=16,
    short_side=64, long_side=128, window=8,
)  # fmt: skip


def slvp_debug() -> Slvp:
    """Random weights, small: for tests."""
    return Slvp(DEBUG)


def slvp_language_debug() -> Slvp:
    """The same, language as query."""
    return Slvp(replace(DEBUG, fusion="language"))


SYSTEM = Slvp, SlvpConfig
PRESETS = slvp_vision, slvp_language, slvp_debug, slvp_language_debug
