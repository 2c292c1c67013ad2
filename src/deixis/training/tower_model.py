"""A small frozen-to-be tower pair, trained on generated pictures, for runs where no pretrained one is at hand.

The systems that live on a vision-language space say nothing with towers of random weights. So a small pair learns such
a space first, as CLIP does (arXiv:2103.00020), from pictures of drawn shapes: which sentence belongs to which picture,
and, because masks are wanted later, which phrase belongs to which region of the patches or pixels.

All our choice. N pictures, R objects of all pictures together (one phrase each), E width of the joint space; H, W
pixels, h, w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.config import config_from
from deixis.encoders.clip_vit import ClipVit, ClipVitConfig
from deixis.encoders.conv_clip import CONV_CLIP_STRIDES, ConvClip, ConvClipConfig
from deixis.encoders.frozen import FrozenTower, save_tower, tower_facts
from deixis.encoders.tokenizers import ids_of, word_tokenizer
from deixis.training.tower_pictures import TowerBatch, TowerData, world_words
from deixis.types import DeixisError, TextFeatures


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Which pair is trained, and the sizes of each."""

    kind: Literal["vit", "conv"] = "vit"
    vit: ClipVitConfig = field(
        default_factory=lambda: ClipVitConfig(
            place="", width=64, layers=4, heads=4, patch=8, image=96, text_width=64, text_layers=2, text_heads=4,
            positions=48, vocabulary=512, joint=64,
        )
    )  # fmt: skip
    conv: ConvClipConfig = field(
        default_factory=lambda: ConvClipConfig(
            place="", channels=(24, 48, 64, 96), depths=(1, 1, 2, 1), head="linear", joint=64, vocabulary=512,
            positions=48, text_width=64, text_layers=2, text_heads=4,
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, place in (("vit", self.vit.place), ("conv", self.conv.place)):
            if place:
                raise DeixisError(f"model.{name}.place must be empty, got {place!r}: the tower is trained from scratch")

    @property
    def multiple(self) -> int:
        """Pixels; the sides of a picture are multiples of it."""
        return self.vit.patch if self.kind == "vit" else CONV_CLIP_STRIDES[-1]


C = TypeVar("C")


def tower_at(place: Path, kind: str, config: type[C]) -> tuple[str, C | None]:
    """What ``--data tower=PLACE`` names: where it lies, and the config (its place is "") of one of our tower files;
    None for weights of others. Raises DeixisError for a tower file of another kind.
    """
    place = place.absolute() if place.exists() else place
    facts = tower_facts(place) if place.is_file() else None
    if facts is None:
        return str(place), None
    if facts["kind"] != kind:
        raise DeixisError(f"{place} holds a tower of kind {facts['kind']}; expected one of {kind}")
    return str(place), config_from(config, facts["config"], str(place))


def export_tower(system: nn.Module, path: Path) -> None:
    """Write the tower alone, to be the place of other systems' towers."""
    assert isinstance(system, LearningTower)
    save_tower(system.tower, path)


# --- the tower and what only its training needs -----------------------------------------------------------------------


class LearningTower(nn.Module):
    """A tower pair that trains, and, for the convolutional one, what brings each level into the joint space."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.tower: FrozenTower = ClipVit(config.vit) if config.kind == "vit" else ConvClip(config.conv)
        self.tower.tokenizer = word_tokenizer(world_words(), getattr(config, config.kind).vocabulary)
        body: nn.Module = self.tower.module
        body.requires_grad_(True)
        # Of a ViT the patches go where its CLS goes. A ConvNeXt's own way into the joint space starts at stride 32, too
        # coarse for small objects, so each level has a map of its own here; it is not kept.
        joint: int = getattr(config, config.kind).joint
        self.levels = nn.ModuleList()
        if config.kind == "conv":
            start_from_scratch(body)
            self.levels.extend(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, joint)) for c in config.conv.channels)

        # Stills give the text encoder no reason to separate left from right in motion; predicting its words does.
        width = config.vit.text_width if config.kind == "vit" else joint
        self.name_word = nn.Linear(width, self.tower.config.vocabulary)

    def encode_image(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps (N, E, h, w), one a level, and the whole pictures (N, E), from (N, 3, H, W). Unit vectors."""
        if isinstance(self.tower, ClipVit):
            patch = self.tower.config.patch
            (tokens,) = self.tower.encode_image(frames)
            joint = F.normalize(self.tower.project_image(tokens), dim=-1)  # (N, 1 + h w, E)
            grid = (frames.shape[-2] // patch, frames.shape[-1] // patch)
            return [joint[:, 1:].mT.unflatten(-1, grid)], joint[:, 0]
        assert isinstance(self.tower, ConvClip)
        levels = [level[:, 0] for level in self.tower.encode_image(frames[:, None])]  # (N, C, h, w)
        body = self.tower.module
        whole = body.picture_head(body.vision.layernorm(levels[-1].mean((-2, -1))))
        maps = [
            F.normalize(bring(level.permute(0, 2, 3, 1)), dim=-1).permute(0, 3, 1, 2)
            for bring, level in zip(self.levels, levels, strict=True)
        ]
        return maps, F.normalize(whole, dim=-1)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(B, E), unit vectors."""
        return self.in_joint(self.encode_text(texts))

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """What other systems get of texts."""
        if isinstance(self.tower, ClipVit):
            return self.tower.encode_text(texts)
        assert isinstance(self.tower, ConvClip)
        return self.tower.encode_text(texts)

    def in_joint(self, text: TextFeatures) -> Tensor:
        """(B, E), unit vectors."""
        sentence = text.sentence
        return F.normalize(self.tower.project_text(sentence) if isinstance(self.tower, ClipVit) else sentence, dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied by; at most 100, as in CLIP."""
        return self.tower.module.logit_scale.exp().clamp(max=100.0)


@torch.no_grad()
def start_from_scratch(body: nn.Module) -> None:
    """Give a small ConvNeXt a start that it learns from in minutes: its published one (deviation 0.02, branches scaled
    by 1e-6) is for long runs."""
    for part in body.vision.modules():  # type: ignore[union-attr]
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.reset_parameters()
    for name, parameter in body.named_parameters():
        if name.endswith("layer_scale_parameter"):
            parameter.fill_(1.0)


# --- losses -----------------------------------------------------------------------------------------------------------


def tower_losses(config: TowerData, system: nn.Module, batch: TowerBatch) -> dict[str, Tensor]:
    """Regions and their phrases; pictures and all their phrases as one sentence. Negatives are those of the batch."""
    assert isinstance(system, LearningTower)
    maps, whole = system.encode_image(batch.frames)
    text = system.encode_text(batch.phrases)
    phrases = system.in_joint(text)
    per_level = [
        region_loss(regions_of(x, batch), backgrounds_of(x, batch), phrases, batch.fits, system.scale()) for x in maps
    ]
    sentences = [
        " and ".join(text for text, i in zip(batch.phrases, batch.which.tolist(), strict=True) if i == n)
        for n in range(len(batch.frames))
    ]
    logits = system.scale() * whole @ system.embed_text(sentences).t()
    index = torch.arange(len(logits), device=logits.device)
    picture = (F.cross_entropy(logits, index) + F.cross_entropy(logits.t(), index)) / 2
    return {
        "region": config.region * torch.stack(per_level).mean(), "picture": config.picture * picture,
        "words": config.words * words_loss(system, batch.phrases, text),
    }  # fmt: skip


def named_words(system: LearningTower, texts: Sequence[str]) -> Tensor:
    """(n,): 1 for every word of the texts, start and end included, that is read off its own feature, else 0."""
    text = system.encode_text(texts)
    tokens, there = tokens_of(system, texts, text)
    return (system.name_word(text.words).argmax(-1) == tokens)[there].float()


def words_loss(system: LearningTower, texts: Sequence[str], text: TextFeatures) -> Tensor:
    """(): how badly the words are read off their own features, in nats a word."""
    tokens, there = tokens_of(system, texts, text)
    return F.cross_entropy(system.name_word(text.words)[there], tokens[there])


def regions_of(cells: Tensor, batch: TowerBatch) -> Tensor:
    """(R, E): the mean of each object's cells (N, E, h, w), by the share that it has of each; unit vectors."""
    shares = F.adaptive_avg_pool2d(batch.masks.float(), grid_of(cells))  # (R, h, w)
    return F.normalize(torch.einsum("rehw,rhw->re", cells[batch.which], shares), dim=-1)


def grid_of(cells: Tensor) -> tuple[int, int]:
    return cells.shape[-2], cells.shape[-1]


def backgrounds_of(cells: Tensor, batch: TowerBatch) -> Tensor:
    """(N, E): the mean of the cells without any object; unit vectors, or 0 where there is no such cell."""
    covered = torch.zeros(len(batch.frames), *batch.masks.shape[1:], device=cells.device)
    covered.index_add_(0, batch.which, batch.masks.float())
    empty = (F.adaptive_avg_pool2d(covered, grid_of(cells)) < 0.05).to(cells.dtype)
    return F.normalize(torch.einsum("nehw,nhw->ne", cells, empty), dim=-1)


def region_loss(regions: Tensor, backgrounds: Tensor, phrases: Tensor, fits: Tensor, scale: Tensor) -> Tensor:
    """(): symmetric InfoNCE (arXiv:1807.03748) of unit vectors: regions (R, E), and phrase r (R, E) of region r.

    backgrounds: (N, E), what no phrase speaks of.  fits: (R, R) bool, region by phrase: pairs that are no negatives.
    """
    own = torch.eye(len(regions), dtype=torch.bool, device=regions.device)
    logits = (scale * regions @ phrases.t()).masked_fill(fits & ~own, float("-inf"))
    others = scale * backgrounds @ phrases.t()  # (N, R)
    index = torch.arange(len(regions), device=regions.device)
    to_phrase, to_region = F.cross_entropy(logits, index), F.cross_entropy(torch.cat([logits, others]).t(), index)
    return (to_phrase + to_region) / 2


def tokens_of(system: LearningTower, texts: Sequence[str], text: TextFeatures) -> tuple[Tensor, Tensor]:
    """Token ids (B, L), and where there are any (B, L), of the encoded texts."""
    tokenizer = system.tower.tokenizer
    assert tokenizer is not None
    tokens, padding = ids_of(tokenizer, texts, text.words.shape[1])
    return tokens.to(text.words.device), ~padding.to(text.words.device)
