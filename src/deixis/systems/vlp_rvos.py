"""VLP-RVOS: a frozen vision-language tower is taught time by prompts ("Driving Referring Video Object Segmentation with
Vision-Language Pre-trained Models", arXiv:2405.10610).

The paper's models were never published. What is public fixes the skeleton; what a number rests on stands beside it.
One dense mask a frame, so Q = 1; the image encoder attends to the words, so ``encode`` stops at patch embeddings.

B clips (or expressions of one clip), T frames, h w patches (N of them), L words, S tokens of a frame (CLS, then N
patches, then what is appended), C width of the tower, D width of what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.blocks.attention import Attention, FeedForward, SelfAttention, check_heads
from deixis.blocks.constants import constant
from deixis.blocks.query_heads import join
from deixis.encoders.clip_vit import ClipVit, ClipVitConfig, clip_vit_b, clip_vit_l
from deixis.encoders.frozen import CLIP_MEAN, CLIP_STD
from deixis.encoders.vlmo import Vlmo, VlmoConfig, vlmo_b, vlmo_l
from deixis.types import Batch, DeixisError, Expression, FeatureMaps, Prediction, SystemConfig, TextFeatures, bounded

CERTAIN = 20.0  # the logit of a score that is always 1
HALF = (0.5, 0.5, 0.5)  # VLMo's mean and deviation of RGB in 0..1 (from memory)


@dataclass(frozen=True, kw_only=True)
class VlpRvosConfig(SystemConfig):
    """(read): in the public repository.  (inferred): from names in it.  (our choice): not public."""

    clip: ClipVitConfig | None = field(default_factory=clip_vit_b)  # the tower, this one or the next
    vlmo: VlmoConfig | None = None
    width: int = 512  # D (read)
    heads: int = 8  # of the trained attentions (read)
    expand: int = 4  # hidden width of two-layer networks, in widths (read: 2048, weak evidence)
    dropout: float = 0.1  # (read)
    # prompts
    prompts: bool = True  # language and vision prompts; False leaves them out (ablation)
    language_prompts: int = bounded(37, least=0)  # (inferred)
    vision_prompts: int = bounded(10, least=0)  # a layer (inferred; at all layers: read)
    temporal_prompts: int = bounded(10, least=0)  # a frame (our choice)
    prompt_width: int = 512  # (our choice)
    prompt_heads: int = 8  # (our choice)
    prompt_layers: int = bounded(1, least=0)  # (our choice)
    # the tower's layers
    guidance: Literal["reuse", "own", "none"] = "reuse"  # words in vision layers: by whose projections (our choice)
    guidance_rank: int = 256  # width of "own" projections (our choice)
    capture: bool = True  # temporal prompts, and their capture after every layer; False leaves them out (ablation)
    capture_keys: Literal["all", "temporal"] = "all"  # "temporal" is cheaper: patches are no keys (our choice)
    history: bool = True  # what one clip passes to the next; False leaves it out (ablation)
    # fusion and reasoning
    taps: tuple[int, ...] = bounded((3, 7, 9, 11), least=0)  # tapped layers: skips, then what is fused (read)
    layers: int = bounded(1, least=0)  # of a reasoning stage (our choice)
    cube: bool = True  # attention in cubes of T x m x m patches; False leaves it out (ablation)
    frame: bool = True  # attention over the patches of a frame; False leaves it out (ablation)
    words_in_reasoning: bool = True  # False: skips are not fused with words (ablation)
    cube_side: int = bounded(7, most=1024)  # m, patches: a third of 21 (our choice)
    order: Literal["cube", "frame", "parallel"] = "cube"  # which of the two comes first, or both at once (our choice)
    frames: int = bounded(8, most=1024)  # T up to which positions in a cube differ (inferred)
    # heads
    mask_width: int = 256  # channels of the mask head, halved as it grows finer (read)
    norm_groups: int = 8  # of its GroupNorm (read)
    temperature: float = 0.07  # of the pixel-text similarity at the start (our choice)
    score: Literal["peak", "constant"] = "peak"  # a frame's surest cell (our choice), or always 1, as published
    expressions_at_once: int = 4  # expressions of one clip that go through the layers together (our choice)
    # frames
    square: bool = True  # frames become short_side x short_side, their shape is not kept (read)
    short_side: int = 336  # pixels (inferred)
    long_side: int = 336  # pixels; counts where ``square`` is False
    window: int = 6  # frames of a clip at inference (read)
    multiple: int = 16  # pixels; the tower's patch
    mean: tuple[float, float, float] = CLIP_MEAN  # the tower's own; published: ImageNet's, even for CLIP (our choice)
    std: tuple[float, float, float] = CLIP_STD

    @property
    def tower(self) -> ClipVitConfig | VlmoConfig:
        """The one that there is. Raises DeixisError where there are two, or none."""
        if self.clip is not None and self.vlmo is None:
            return self.clip
        if self.vlmo is not None and self.clip is None:
            return self.vlmo
        raise DeixisError(f"one of clip and vlmo must be none, got {'both' if self.clip else 'two of that'}")


def check_vlp_rvos(config: VlpRvosConfig) -> None:
    """Raise DeixisError for fields that do not agree. Not on construction: fields may be set one by one."""
    tower, taps = config.tower, config.taps
    if len(taps) < 2 or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] != tower.layers - 1:
        last = tower.layers - 1
        raise DeixisError(f"taps must be two or more that rise to the tower's last layer, {last}; got {taps}")
    if config.multiple % tower.patch:
        raise DeixisError(f"multiple must be a multiple of the tower's patch, {tower.patch}, got {config.multiple}")
    if config.prompts and config.clip and tower.positions - config.language_prompts < 3:
        raise DeixisError(f"{config.language_prompts} language prompts leave no word a place among {tower.positions}")


class VlpRvos(nn.Module):
    """Segment, in every frame, the object an expression names."""

    def __init__(self, config: VlpRvosConfig) -> None:
        super().__init__()
        check_vlp_rvos(config)
        self.config, tower = config, config.tower
        self.tower: ClipVit | Vlmo = Vlmo(tower) if isinstance(tower, VlmoConfig) else ClipVit(tower)
        self.prompts = PromptGenerator(config)
        self.guide = Guidance(config)
        self.capture = TemporalCapture(config) if config.capture else None
        self.history = HistoricalPrompt(config.width, tower.width) if config.history else None
        self.fuse = DualFusion(config)
        self.reason = nn.ModuleList(ReasoningStage(config) for _ in config.taps[:-1])
        self.mask_head = UpsamplingMaskHead(config.width, config.mask_width, config.norm_groups)
        self.pixel_text = PixelText(tower.joint, config.temperature)

    def encode(self, frames: Tensor, padding: Tensor, wanted: Sequence[int] | None = None) -> FeatureMaps:
        """frames: (B, T, 3, H, W), sides multiples of the patch; padding: (B, T, H, W).

        No words yet, and so only the patch embeddings (B, T, C, h, w): the tower's layers attend to the words. What is
        under padding is encoded like everything else. ``wanted`` is for ``decode``, since frames depend on each other.
        """
        with torch.no_grad():  # nothing that is trained comes before it
            patches = self.tower.patches(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return FeatureMaps((patches,), (self.config.tower.patch,), padding, (frames.shape[-2], frames.shape[-1]))

    def decode(
        self, maps: FeatureMaps, expressions: Sequence[Expression], wanted: Sequence[int] | None = None
    ) -> Prediction:
        """One clip takes any number of expressions (B is then that number); otherwise one a clip. A clip by
        itself: without a state of the clip before.
        """
        return self.step(maps, expressions, None, wanted)[0]

    def forward(self, batch: Batch) -> Prediction:
        return self.decode(self.encode(batch.frames, batch.padding), batch.expressions, batch.wanted)

    def step(
        self,
        maps: FeatureMaps,
        expressions: Sequence[Expression],
        memory: Tensor | None,
        wanted: Sequence[int] | None = None,
    ) -> tuple[Prediction, Tensor]:
        """The prediction for a clip, and the state for the next one: (B, T, D), without gradient.

        memory: what the previous clip passed on, for the same expressions; None for the first clip.
        """
        patches, texts = maps.levels[0], [e.text for e in expressions]
        if len(patches) > 1:
            if len(texts) != len(patches):
                raise DeixisError(f"{len(patches)} clips take {len(patches)} expressions, one each, got {len(texts)}")
            return self.predict_clip(patches, texts, memory, wanted)
        answers, carried = [], []
        for first in range(0, len(texts), self.config.expressions_at_once):
            part = slice(first, first + self.config.expressions_at_once)
            group, before = texts[part], None if memory is None else memory[part]
            prediction, state = self.predict_clip(patches.expand(len(group), -1, -1, -1, -1), group, before, wanted)
            answers.append(prediction)
            carried.append(state)
        return join(answers), torch.cat(carried)

    def predict_clip(
        self, patches: Tensor, texts: Sequence[str], memory: Tensor | None, wanted: Sequence[int] | None
    ) -> tuple[Prediction, Tensor]:
        """patches: (B, T, C, h, w); as many texts."""
        prompts = self.prompts()
        text = self.tower.encode_text(texts, prompts.language)
        before = None if self.history is None else self.history(memory, len(patches))  # (B, n, C)
        *skips, deepest = self.encode_with_text(patches, text, prompts, before)  # (B, T, h, w, C) each
        cells, language, padding = self.fuse(deepest, text)  # (B, T, h, w, D), (B, L + 1, D), (B, L + 1)
        for stage, skip in zip(self.reason, reversed(skips), strict=True):
            cells = stage(cells, skip, language, padding)
        masks = self.mask_head(cells)  # (B, T, 4 h, 4 w)
        with torch.autocast(masks.device.type, enabled=False):
            memory = pool_by_mask(cells.detach().float(), masks.detach())  # (B, T, D)
            similarity = self.pixel_text(
                self.tower.project_image(deepest.float()), self.tower.project_text(text.sentence.float())
            )  # (B, T, h, w)
        if wanted is not None:
            masks, similarity = masks[:, list(wanted)], similarity[:, list(wanted)]
        peak = masks.flatten(2).amax(-1, keepdim=True)  # (B, T, 1)
        scores = peak if self.config.score == "peak" else torch.full_like(peak, CERTAIN)
        return Prediction(masks[:, :, None], scores, extras={"pixel_text": similarity}), memory

    def encode_with_text(
        self, patches: Tensor, text: TextFeatures, prompts: Prompts, before: Tensor | None
    ) -> list[Tensor]:
        """The patches (B, T, h, w, C) that leave each of the tower's tapped layers, time and words in them.

        before: (B, n, C), historical tokens that every frame gets, or None.
        """
        b, t, c, h, w = patches.shape
        words = self.guide.words(text.words)
        cls = self.tower.start(h, w).to(patches.dtype).expand(b * t, 1, c)
        tokens = torch.cat([cls, rearrange(patches, "b t c h w -> (b t) (h w) c")], dim=1)  # (B T, 1 + N, C)
        past = None if before is None else repeat(before, "b n c -> (b t) n c", t=t)
        temporal = None if prompts.temporal is None else prompts.temporal.expand(b * t, -1, -1)
        left, last = [], self.config.taps[-1]
        for i, layer in enumerate(self.tower.layers(h, w)):
            deep = None if prompts.vision is None else prompts.vision[i].expand(b * t, -1, -1)
            appended = [extra.to(tokens.dtype) for extra in (past, deep, temporal) if extra is not None]
            x = self.guide(i, layer, torch.cat([tokens, *appended], dim=1), words, text.padding, 1 + h * w)
            tokens = x[:, : 1 + h * w]
            if self.capture is not None and temporal is not None and i < last:  # unused after the last
                temporal = self.capture(layer, x[:, -temporal.shape[1] :], tokens, t)
            if i in self.config.taps:
                left.append(rearrange(tokens[:, 1:], "(b t) (h w) c -> b t h w c", b=b, h=h))
        return left


# --- what is put into the tower --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prompts:
    """language: (n, C of the text tower).  vision: (layers, n, C).  temporal: (n, C). None where switched off."""

    language: Tensor | None
    vision: Tensor | None
    temporal: Tensor | None


class PromptGenerator(nn.Module):
    """Learnable tokens of all kinds go together through one small transformer, then apart to their towers (after UPT,
    arXiv:2210.07225)."""

    def __init__(self, config: VlpRvosConfig) -> None:
        super().__init__()
        tower, p = config.tower, config.prompt_width
        self.depth = tower.layers
        counts = {
            "language": config.language_prompts * config.prompts,
            "vision": config.vision_prompts * self.depth * config.prompts,
            "temporal": config.temporal_prompts * config.capture,
        }
        self.counts = {kind: count for kind, count in counts.items() if count}
        self.tokens = nn.ParameterDict({k: nn.Parameter(torch.randn(n, p) * 0.02) for k, n in self.counts.items()})
        kinds = set(self.counts)
        self.mix = nn.ModuleList(
            PromptLayer(p, config.prompt_heads) for _ in range(config.prompt_layers if kinds else 0)
        )
        self.to_vision = _small_linear(p, tower.width) if kinds & {"vision", "temporal"} else None
        self.to_text = _small_linear(p, tower.text_width) if "language" in kinds else None

    def forward(self) -> Prompts:
        if not self.counts:
            return Prompts(None, None, None)
        x = torch.cat([self.tokens[kind] for kind in self.counts])[None]
        for layer in self.mix:
            x = layer(x)
        split = dict(zip(self.counts, x[0].split(list(self.counts.values())), strict=True))
        language, vision, temporal = (split.get(kind) for kind in ("language", "vision", "temporal"))
        return Prompts(
            None if language is None or self.to_text is None else self.to_text(language),
            None if vision is None or self.to_vision is None else self.to_vision(vision).unflatten(0, (self.depth, -1)),
            None if temporal is None or self.to_vision is None else self.to_vision(temporal),
        )


class PromptLayer(nn.Module):
    """Attention among all prompts, then a two-layer network; pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention, self.feed_forward = SelfAttention(width, heads), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attention(x)
        return x + self.feed_forward(x)


def _small_linear(width: int, out: int) -> nn.Linear:
    """Its output starts near nothing, so that prompts begin by disturbing little."""
    linear = nn.Linear(width, out)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


class Guidance(nn.Module):
    """A frozen vision layer with a second attention beside its own, on the words, behind a gate that starts at 0.

    "reuse": by the layer's own norm and projections, the words brought to its width by one map shared by all layers.
    "own": by projections of a smaller rank, a set a layer.
    """

    def __init__(self, config: VlpRvosConfig) -> None:
        super().__init__()
        tower, r = config.tower, config.guidance_rank
        self.kind = config.guidance
        if self.kind != "none":
            self.gate = nn.Parameter(torch.zeros(tower.layers))
        if self.kind == "reuse":
            same = config.vlmo is not None  # one tower for both
            self.text_to_vision = nn.Identity() if same else nn.Linear(tower.text_width, tower.width)
        if self.kind == "own":
            self.query = nn.ModuleList(nn.Linear(tower.width, r) for _ in range(tower.layers))
            self.key_value = nn.ModuleList(nn.Linear(tower.text_width, 2 * r) for _ in range(tower.layers))
            self.out = nn.ModuleList(nn.Linear(r, tower.width) for _ in range(tower.layers))
            self.heads = check_heads(r, config.heads)

    def words(self, words: Tensor) -> Tensor:
        """(B, L, C or C of the text tower), as the layers take them."""
        return self.text_to_vision(words) if self.kind == "reuse" else words

    def forward(self, i: int, layer: Any, x: Tensor, words: Tensor, padding: Tensor, own: int) -> Tensor:
        """(B T, S, C) through layer i, from tokens (B T, S, C), ``own`` of them the picture's; words (B, L, .)."""
        y = layer.norm(x)
        attended = layer.attend(y, y, layer.mask(x.shape[1] - own))
        if self.kind != "none":
            # Words are the same in all frames of a clip: one attention for all of them.
            queries = rearrange(y, "(b t) s c -> b (t s) c", b=len(words))
            carried = self.attend_words(i, layer, queries, words, ~padding[:, None, None])
            attended = attended + self.gate[i] * rearrange(carried, "b (t s) c -> (b t) s c", s=y.shape[1])
        x = x + attended
        return x + layer.feed(x)

    def attend_words(self, i: int, layer: Any, queries: Tensor, words: Tensor, there: Tensor) -> Tensor:
        """(B, M, C) from normed tokens (B, M, C); there: (B, 1, 1, L)."""
        if self.kind == "reuse":
            return layer.attend(queries, layer.norm(words), there)
        q = rearrange(self.query[i](queries), "b m (a d) -> b a m d", a=self.heads)
        k, v = rearrange(self.key_value[i](words), "b l (j a d) -> j b a l d", j=2, a=self.heads)
        return self.out[i](rearrange(F.scaled_dot_product_attention(q, k, v, there), "b a m d -> b m (a d)"))


class TemporalCapture(nn.Module):
    """After a layer, the temporal tokens of all frames attend to all frames through that layer's own frozen weights.

    Only they change; in the next layer the patches of their frame attend to them.
    """

    def __init__(self, config: VlpRvosConfig) -> None:
        super().__init__()
        self.with_patches = config.capture_keys == "all"
        self.time = nn.Parameter(torch.tensor(0.1))  # how much of the frame's code is added (our choice)

    def forward(self, layer: Any, temporal: Tensor, tokens: Tensor, frames: int) -> Tensor:
        """(B T, n, C) from temporal tokens (B T, n, C) and the frames' own tokens (B T, 1 + N, C)."""
        code = self.time * frame_code(frames, tokens.shape[-1], tokens.device)[:, None]  # (T, 1, C)
        keys = torch.cat([temporal, tokens], dim=1) if self.with_patches else temporal
        placed = rearrange(keys, "(b t) s c -> b t s c", t=frames) + code.to(keys.dtype)
        y = layer.norm(placed)
        queries = rearrange(y[:, :, : temporal.shape[1]], "b t n c -> b (t n) c")
        attended = layer.attend(queries, rearrange(y, "b t s c -> b (t s) c"))
        x = temporal + rearrange(attended, "b (t n) c -> (b t) n c", t=frames)
        return x + layer.feed(x)


class HistoricalPrompt(nn.Module):
    """Tokens pooled from the previous clip, for every frame of this one; a learned token for the first clip."""

    def __init__(self, width: int, tower_width: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.randn(1, tower_width) * 0.02)
        self.project = nn.Linear(width, tower_width)

    def forward(self, memory: Tensor | None, clips: int) -> Tensor:
        """(B, n, C): n is 1, or the number of frames of memory (B, n, D)."""
        return self.nothing.expand(clips, -1, -1) if memory is None else self.project(memory)


def pool_by_mask(cells: Tensor, masks: Tensor) -> Tensor:
    """(B, T, D): the mean of cells (B, T, h, w, D), weighed by how likely mask logits (B, T, 4 h, 4 w) hold them."""
    share = F.avg_pool2d(masks.float().sigmoid(), 4)  # (B, T, h, w)
    return torch.einsum("bthwd,bthw->btd", cells, share) / (share.sum((2, 3))[..., None] + 1e-6)


@constant
def frame_code(frames: int, width: int, device: torch.device) -> Tensor:
    """(T, width): sines and cosines of the frame's number (arXiv:1706.03762)."""
    wavelength = 10_000.0 ** (torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(frames, device=device)[:, None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]


# --- fusion and reasoning --------------------------------------------------------------------------------------------


class TextAttention(nn.Module):
    """x + attention(norm(x), norm(source))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.source_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.dropout = Attention(width, heads), nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, padding: Tensor | None = None) -> Tensor:
        return x + self.dropout(self.attend(self.norm(x), self.source_norm(source), padding))


class PreNormFeedForward(nn.Module):
    """x + the two-layer network."""

    def __init__(self, width: int, expand: int, dropout: float) -> None:
        super().__init__()
        self.feed_forward, self.dropout = FeedForward(width, expand), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.feed_forward(x))


class DualFusion(nn.Module):
    """Words attend to the whole cube of patches, then patches to those words; and the sentence multiplies them."""

    def __init__(self, config: VlpRvosConfig) -> None:
        super().__init__()
        d, tower = config.width, config.tower
        self.reduce, self.resizer = nn.Linear(tower.width, d), nn.Linear(tower.text_width, d)
        self.words_attend = TextAttention(d, config.heads, config.dropout)
        self.patches_attend = TextAttention(d, config.heads, config.dropout)
        self.mix = nn.Linear(2 * d, d)

    def forward(self, patches_of_tower: Tensor, text: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Fused cells (B, T, h, w, D), words and last the sentence (B, L + 1, D), their padding (B, L + 1).

        patches_of_tower: (B, T, h, w, C).
        """
        cells = self.reduce(patches_of_tower)
        patches = cells.flatten(1, 3)  # (B, T N, D)
        language = self.resizer(torch.cat([text.words, text.sentence[:, None]], dim=1))
        padding = F.pad(text.padding, (0, 1))
        language = self.words_attend(language, patches)
        patches = self.patches_attend(patches, language, padding)
        patches = self.mix(torch.cat([patches, patches * language[:, -1:]], dim=-1)) + patches
        return patches.view_as(cells), language, padding


class ReasoningStage(nn.Module):
    """Cells attend within cubes and frames; patches of a shallower layer attend to the words; then the sum."""

    def __init__(self, config: VlpRvosConfig) -> None:
        super().__init__()
        d, heads, dropout = config.width, config.heads, config.dropout
        self.encoder = nn.ModuleList(CubeFrameLayer(config) for _ in range(config.layers))
        self.skip = nn.Linear(config.tower.width, d)
        self.attend_text = nn.ModuleList(
            TextAttention(d, heads, dropout) for _ in range(config.layers if config.words_in_reasoning else 0)
        )
        self.feed_forward = nn.ModuleList(PreNormFeedForward(d, config.expand, dropout) for _ in range(config.layers))

    def forward(self, cells: Tensor, skip: Tensor, language: Tensor, padding: Tensor) -> Tensor:
        """(B, T, h, w, D) from cells (B, T, h, w, D), skip (B, T, h, w, C), language (B, L, D), padding (B, L)."""
        for layer in self.encoder:
            cells = layer(cells)
        x = self.skip(skip).flatten(1, 3)
        for i, feed_forward in enumerate(self.feed_forward):
            x = feed_forward(self.attend_text[i](x, language, padding) if len(self.attend_text) else x)
        return cells + x.view_as(cells)


class CubeFrameLayer(nn.Module):
    """Attention in cubes (all frames, m x m patches), attention in frames (one frame, all patches), a network."""

    def __init__(self, config: VlpRvosConfig) -> None:
        super().__init__()
        d, heads = config.width, config.heads
        self.order, self.dropout = config.order, nn.Dropout(config.dropout)
        self.cube_norm = nn.LayerNorm(d) if config.cube else None
        self.cube = CubeAttention(d, heads, config.cube_side, config.frames) if config.cube else None
        self.frame_norm = nn.LayerNorm(d) if config.frame else None
        self.frame = Attention(d, heads) if config.frame else None
        self.feed_forward = PreNormFeedForward(d, config.expand, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, h, w, D) -> (B, T, h, w, D)."""
        if self.order == "parallel":
            x = x + self.in_cubes(x) + self.in_frames(x)
        elif self.order == "cube":
            x = x + self.in_cubes(x)
            x = x + self.in_frames(x)
        else:
            x = x + self.in_frames(x)
            x = x + self.in_cubes(x)
        return self.feed_forward(x)

    def in_cubes(self, x: Tensor) -> Tensor | float:
        """The cubes' branch; 0 where it is left out."""
        if self.cube is None or self.cube_norm is None:
            return 0.0
        code = frame_code(x.shape[1], x.shape[-1], x.device)[:, None, None]
        return self.dropout(self.cube(self.cube_norm(x) + code.to(x.dtype)))

    def in_frames(self, x: Tensor) -> Tensor | float:
        if self.frame is None or self.frame_norm is None:
            return 0.0
        y = rearrange(self.frame_norm(x), "b t h w d -> (b t) (h w) d")
        return self.dropout(self.frame(y, y)).view_as(x)


class CubeAttention(nn.Module):
    """Attention inside cubes of all T frames and m x m patches, with a learned bias for every offset in time and place.

    Costs T m m keys a query instead of T h w.
    """

    def __init__(self, width: int, heads: int, side: int, frames: int) -> None:
        super().__init__()
        self.heads, self.side, self.frames = check_heads(width, heads), side, frames
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn((2 * frames - 1) * (2 * side - 1) ** 2, heads) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, h, w, D) -> (B, T, h, w, D); a last cube that is not full is filled up with nothing."""
        b, t, h, w, _ = x.shape
        m, below, right = self.side, -h % self.side, -w % self.side
        cubes = rearrange(F.pad(x, (0, 0, 0, right, 0, below)), "b t (i m) (j n) d -> (b i j) (t m n) d", m=m, n=m)
        q, k, v = rearrange(self.qkv(cubes), "c l (p a d) -> p c a l d", p=3, a=self.heads)
        bias = self.bias[cube_offsets(t, m, self.frames, x.device)].permute(2, 0, 1)[None].to(q.dtype)  # (1, A, l, l)
        if below or right:
            nothing = cube_padding(t, h, w, m, x.device)  # (cubes of a clip, l)
            bias = bias.masked_fill(nothing[:, None, None], float("-inf")).repeat(b, 1, 1, 1)
        attended = F.scaled_dot_product_attention(q, k, v, bias)
        y = self.out(rearrange(attended, "c a l d -> c l (a d)"))
        y = rearrange(y, "(b i j) (t m n) d -> b t (i m) (j n) d", b=b, t=t, m=m, i=(h + below) // m)
        return y[:, :, :h, :w]


@constant
def cube_offsets(t: int, side: int, frames: int, device: torch.device) -> Tensor:
    """(l, l) int: the row of the bias of each pair in a cube, l = T m m."""
    z, y, x = torch.meshgrid(torch.arange(t), torch.arange(side), torch.arange(side), indexing="ij")
    z, y, x = z.flatten(), y.flatten(), x.flatten()
    dz = (z[:, None] - z).clamp(1 - frames, frames - 1) + frames - 1
    dy, dx = y[:, None] - y + side - 1, x[:, None] - x + side - 1
    return ((dz * (2 * side - 1) + dy) * (2 * side - 1) + dx).to(device)


@constant
def cube_padding(t: int, h: int, w: int, side: int, device: torch.device) -> Tensor:
    """(cubes of a clip, l) bool: True where a cube reaches over the map's end."""
    nothing = F.pad(torch.zeros(h, w), (0, -w % side, 0, -h % side), value=1.0).bool()
    return repeat(rearrange(nothing, "(i m) (j n) -> (i j) (m n)", m=side, n=side), "c l -> c (t l)", t=t).to(device)


# --- heads -----------------------------------------------------------------------------------------------------------


class UpsamplingMaskHead(nn.Module):
    """Convolutions, twice made finer (read); the published last step, to the size of the frames, is left to the
    caller, so that masks are resized once."""

    def __init__(self, width: int, channels: int, groups: int) -> None:
        super().__init__()
        half = channels // 2
        self.steps = nn.ModuleList([
            ConvNorm(width, channels, 1, groups), ConvNorm(channels, channels, 3, groups),
            ConvNorm(channels, half, 3, groups), ConvNorm(half, half, 3, groups),
        ])  # fmt: skip
        self.out = nn.Conv2d(half, 1, 1)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, cells: Tensor) -> Tensor:
        """Logits (B, T, 4 h, 4 w), fp32, from cells (B, T, h, w, D)."""
        x = rearrange(cells, "b t h w d -> (b t) d h w")
        for i, step in enumerate(self.steps):
            x = step(x)
            if i in (1, 2):
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.out(x)[:, 0].unflatten(0, cells.shape[:2]).float()


class ConvNorm(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, out, kernel, padding=kernel // 2), nn.GroupNorm(groups, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class PixelText(nn.Module):
    """How alike each patch and the sentence are in the tower's joint space; a mask that only training uses."""

    def __init__(self, joint: int, temperature: float) -> None:
        super().__init__()
        self.adapt = nn.Linear(joint, joint, bias=False)  # starts as nothing changed (our choice)
        nn.init.eye_(self.adapt.weight)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, patches: Tensor, sentences: Tensor) -> Tensor:
        """Logits (B, T, h, w) from patches (B, T, h, w, joint) and sentences (B, joint)."""
        a, b = F.normalize(self.adapt(patches), dim=-1), F.normalize(sentences, dim=-1)
        return torch.einsum("bthwj,bj->bthw", a, b) * torch.exp(-self.log_temperature) + self.shift


# --- presets ---------------------------------------------------------------------------------------------------------


def vlp_rvos_clip_b() -> VlpRvos:
    """On CLIP ViT-B/16, which is read from its place when a checkpoint is loaded or a training begins."""
    return VlpRvos(VlpRvosConfig())


def vlp_rvos_clip_l() -> VlpRvos:
    """On CLIP ViT-L/14."""
    return VlpRvos(clip_l_config())


def clip_l_config() -> VlpRvosConfig:
    return VlpRvosConfig(clip=clip_vit_l(), taps=(7, 15, 19, 23), cube_side=8, multiple=14)


def vlp_rvos_vlmo_b() -> VlpRvos:
    """On VLMo base, whose published weights may not be had any more."""
    return VlpRvos(vlmo_b_config())


def vlmo_b_config() -> VlpRvosConfig:
    return VlpRvosConfig(
        clip=None, vlmo=vlmo_b(), language_prompts=10, cube_side=8, short_side=384, long_side=384, mean=HALF, std=HALF,
    )  # fmt: skip


def vlp_rvos_vlmo_l() -> VlpRvos:
    """On VLMo large, the published system with the best figures; its weights may not be had any more."""
    return VlpRvos(vlmo_l_config())


def vlmo_l_config() -> VlpRvosConfig:
    """As base, at the same shares of the tower's depth as CLIP ViT-L (inferred)."""
    return VlpRvosConfig(
        clip=None, vlmo=vlmo_l(), taps=(7, 15, 19, 23), language_prompts=10, cube_side=8, short_side=384,
        long_side=384, mean=HALF, std=HALF,
    )  # fmt: skip


def debug_config() -> VlpRvosConfig:
    """Random weights, small: for tests."""
    return VlpRvosConfig(
        clip=ClipVitConfig(
            place="", width=32, layers=4, heads=4, patch=16, image=64, text_width=32, text_layers=2, text_heads=4,
            positions=77, vocabulary=64, joint=16,
        ),
        width=32, heads=4, expand=2, language_prompts=4, vision_prompts=2, temporal_prompts=2, prompt_width=32,
        prompt_heads=4, guidance_rank=16, taps=(0, 1, 2, 3), cube_side=2, frames=4, mask_width=16, norm_groups=4,
        short_side=64, long_side=64, window=4,
    )  # fmt: skip


def vlp_rvos_debug() -> VlpRvos:
    """Random weights, small: for tests."""
    return VlpRvos(debug_config())


SYSTEM = VlpRvos, VlpRvosConfig
PRESETS = vlp_rvos_clip_b, vlp_rvos_clip_l, vlp_rvos_vlmo_b, vlp_rvos_vlmo_l, vlp_rvos_debug
NEEDS = {
    "vlp_rvos_clip_b": "openai/clip-vit-base-patch16, from the hub (or its cache) or a folder; frozen",
    "vlp_rvos_clip_l": "openai/clip-vit-large-patch14, from the hub (or its cache) or a folder; frozen",
    "vlp_rvos_vlmo_b": "vlmo_base_patch16_384_coco.pt, a file that may not be obtainable any more; frozen",
    "vlp_rvos_vlmo_l": "vlmo_large_patch16_384_coco.pt, a file that may not be obtainable any more; frozen",
}
