"""A small frozen-to-be tower pair, trained on generated pictures, for runs where no pretrained one is at hand.

The systems that live on a vision-language space say nothing with towers of random weights. So a small pair learns such
a space first, as CLIP does (arXiv:2103.00020), from pictures of drawn shapes: which sentence belongs to which picture,
and, because masks are wanted later, which phrase belongs to which region of the patches or pixels.

All our choice. N pictures, R objects of all pictures together (one phrase each), E width of the joint space; H, W
pixels, h, w cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deixis.benchmarks.painting import Canvas, Motion, paste, scale_for
from deixis.benchmarks.predicates import (
    CLASS_WORDS,
    COLOUR_TWINS,
    COLOUR_WORDS,
    COLOURS,
    GENERIC,
    MOTION_WORDS,
    PLACE_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    TEXTURES,
    TIME_WORDS,
    fill,
)
from deixis.benchmarks.vocabulary import SHAPES, plural
from deixis.benchmarks.world import (
    BACKGROUNDS,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_SHAPES,
    draw_background,
    draw_shape,
    held_out_pair,
)
from deixis.config import apply_overrides, config_from
from deixis.encoders.clip_tokens import ids_of
from deixis.encoders.clip_vit import CLIP_MEAN, CLIP_STD, ClipVit, ClipVitConfig
from deixis.encoders.conv_clip import STRIDES, ConvClip, ConvClipConfig
from deixis.encoders.frozen import FrozenTower, save_tower, tower_facts
from deixis.encoders.text import word_tokenizer
from deixis.training.loop import Run, TrainConfig
from deixis.training.optimizer import parameter_groups
from deixis.types import DeixisError, TextFeatures

KNOWN_SHAPES = tuple(shape for shape in SHAPES if shape not in HELD_OUT_SHAPES)


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
        return self.vit.patch if self.kind == "vit" else STRIDES[-1]


@dataclass(frozen=True, kw_only=True)
class TowerData:
    """What the towers see and hear."""

    size: tuple[int, int] = (64, 96)  # H, W in pixels
    pictures: int = 4000  # different pictures; their phrases are drawn anew every time
    objects: tuple[int, int] = (2, 4)  # least and most a picture
    areas: tuple[float, float] = (0.04, 0.16)  # share of the picture that an object covers, least and most
    held_out_pictures: int = 150  # of the validation: known shapes in new pairs with colours, on new backgrounds
    region: float = 1.0  # weights of the terms
    picture: float = 0.5
    words: float = 0.5


@dataclass(frozen=True)
class Thing:
    """What can be said of an object."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Phrase:
    """A text, and what it says: a colour or "", and a noun or ""."""

    text: str
    colour: str
    word: str

    def fits(self, thing: Thing) -> bool:
        """Whether it is, or may be, true of the thing."""
        noun = SHAPES[thing.shape]
        named = not self.word or self.word in noun.true or self.word in noun.maybe
        return named and self.colour in ("", thing.colour)


@dataclass(frozen=True, eq=False)
class TowerPicture:
    """frame: (H, W, 3) uint8.  masks: (n, H, W) bool, what is seen of each thing.  phrases: n, or none."""

    frame: np.ndarray
    masks: np.ndarray
    things: tuple[Thing, ...]
    phrases: tuple[Phrase, ...] = ()


@dataclass(frozen=True, eq=False)
class TowerBatch:
    """frames: (N, 3, H, W) normalised.  masks: (R, H, W) bool.  which: (R,) the picture of each object.
    phrases: R.  fits: (R, R) bool, object by phrase."""

    frames: Tensor
    masks: Tensor
    which: Tensor
    phrases: tuple[str, ...]
    fits: Tensor

    def to(self, device: torch.device | str) -> TowerBatch:
        moved = (x.to(device) for x in (self.frames, self.masks, self.which, self.fits))
        frames, masks, which, fits = moved
        return TowerBatch(frames, masks, which, self.phrases, fits)


def tower_world(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Train a small tower pair on pictures made as it goes; needs no data. ``--set model.kind=vit`` or ``conv``."""
    configs = apply_overrides(
        overrides,
        model=TowerConfig(),
        data=TowerData(),
        train=TrainConfig(
            steps=2000, batch=16, lr=2e-3, warmup_steps=100, weight_decay=0.05, clip_norm=1.0, log_every=50
        ),
    )
    model, made = configs["model"], configs["data"]
    if any(side % model.multiple for side in made.size):
        raise DeixisError(f"data.size must be multiples of {model.multiple} for this tower, got {made.size}")
    return Run(
        name="tower_world",
        system=partial(LearningTower, model),
        samples=partial(sample, made, configs["train"].seed),
        collate=collate,
        losses=partial(losses, made),
        groups=parameter_groups,
        validate=partial(validate, made),
        train=configs["train"],
        config=model,
        export=export,
    )


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


def export(system: nn.Module, path: Path) -> None:
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
        body: nn.Module = self.tower.whole
        body.requires_grad_(True)
        # Of a ViT the patches go where its CLS goes. A ConvNeXt's own way into the joint space starts at stride 32, too
        # coarse for small objects, so each level has a map of its own here; it is not kept.
        joint: int = getattr(config, config.kind).joint
        self.levels = nn.ModuleList()
        if config.kind == "conv":
            start_from_scratch(body)
            self.levels.extend(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, joint)) for c in config.conv.channels)

        # Stills give the ears no reason to tell what moves left from what moves right; being asked for its words does.
        heard = config.vit.text_width if config.kind == "vit" else joint
        self.name_word = nn.Linear(heard, self.tower.config.vocabulary)

    def look(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps (N, E, h, w), one a level, and the whole pictures (N, E), from (N, 3, H, W). Unit vectors."""
        if isinstance(self.tower, ClipVit):
            patch = self.tower.config.patch
            (tokens,) = self.tower.see(frames)
            joint = F.normalize(self.tower.pictures_in_joint(tokens), dim=-1)  # (N, 1 + h w, E)
            grid = (frames.shape[-2] // patch, frames.shape[-1] // patch)
            return [joint[:, 1:].mT.unflatten(-1, grid)], joint[:, 0]
        assert isinstance(self.tower, ConvClip)
        levels = [level[:, 0] for level in self.tower.see(frames[:, None])]  # (N, C, h, w)
        body = self.tower.whole
        whole = body.picture_head(body.eyes.layernorm(levels[-1].mean((-2, -1))))
        maps = [
            F.normalize(bring(level.permute(0, 2, 3, 1)), dim=-1).permute(0, 3, 1, 2)
            for bring, level in zip(self.levels, levels, strict=True)
        ]
        return maps, F.normalize(whole, dim=-1)

    def hear(self, texts: Sequence[str]) -> Tensor:
        """(B, E), unit vectors."""
        return self.in_joint(self.listen(texts))

    def listen(self, texts: Sequence[str]) -> TextFeatures:
        """What other systems get of texts."""
        if isinstance(self.tower, ClipVit):
            return self.tower.hear(texts)
        assert isinstance(self.tower, ConvClip)
        return self.tower.listen(texts)

    def in_joint(self, heard: TextFeatures) -> Tensor:
        """(B, E), unit vectors."""
        sentence = heard.sentence
        return F.normalize(self.tower.texts_in_joint(sentence) if isinstance(self.tower, ClipVit) else sentence, dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied by; at most 100, as in CLIP."""
        return self.tower.whole.logit_scale.exp().clamp(max=100.0)


@torch.no_grad()
def start_from_scratch(body: nn.Module) -> None:
    """Give a small ConvNeXt a start that it learns from in minutes: its published one (deviation 0.02, branches scaled
    by 1e-6) is for long runs."""
    for part in body.eyes.modules():  # type: ignore[union-attr]
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.reset_parameters()
    for name, parameter in body.named_parameters():
        if name.endswith("layer_scale_parameter"):
            parameter.fill_(1.0)


# --- losses -----------------------------------------------------------------------------------------------------------


def losses(config: TowerData, system: nn.Module, batch: TowerBatch) -> dict[str, Tensor]:
    """Regions and their phrases; pictures and all their phrases as one sentence. Negatives are those of the batch."""
    assert isinstance(system, LearningTower)
    maps, whole = system.look(batch.frames)
    heard = system.listen(batch.phrases)
    phrases = system.in_joint(heard)
    per_level = [
        region_loss(regions_of(x, batch), backgrounds_of(x, batch), phrases, batch.fits, system.scale()) for x in maps
    ]
    sentences = [
        " and ".join(text for text, i in zip(batch.phrases, batch.which.tolist(), strict=True) if i == n)
        for n in range(len(batch.frames))
    ]
    logits = system.scale() * whole @ system.hear(sentences).t()
    index = torch.arange(len(logits), device=logits.device)
    picture = (F.cross_entropy(logits, index) + F.cross_entropy(logits.t(), index)) / 2
    return {
        "region": config.region * torch.stack(per_level).mean(), "picture": config.picture * picture,
        "words": config.words * words_loss(system, batch.phrases, heard),
    }  # fmt: skip


def named_words(system: LearningTower, texts: Sequence[str]) -> Tensor:
    """(n,): 1 for every word of the texts, start and end included, that is read off its own feature, else 0."""
    heard = system.listen(texts)
    tokens, there = tokens_of(system, texts, heard)
    return (system.name_word(heard.words).argmax(-1) == tokens)[there].float()


def words_loss(system: LearningTower, texts: Sequence[str], heard: TextFeatures) -> Tensor:
    """(): how badly the words are read off their own features, in nats a word."""
    tokens, there = tokens_of(system, texts, heard)
    return F.cross_entropy(system.name_word(heard.words)[there], tokens[there])


def regions_of(cells: Tensor, batch: TowerBatch) -> Tensor:
    """(R, E): the mean of each object's cells (N, E, h, w), by the share that it has of each; unit vectors."""
    shares = F.adaptive_avg_pool2d(batch.masks.float(), grid_of(cells))  # (R, h, w)
    return F.normalize(torch.einsum("rehw,rhw->re", cells[batch.which], shares), dim=-1)


def grid_of(cells: Tensor) -> tuple[int, int]:
    return cells.shape[-2], cells.shape[-1]


def backgrounds_of(cells: Tensor, batch: TowerBatch) -> Tensor:
    """(N, E): the mean of the cells without any object; unit vectors, or 0 where there is no such cell."""
    seen = torch.zeros(len(batch.frames), *batch.masks.shape[1:], device=cells.device)
    seen.index_add_(0, batch.which, batch.masks.float())
    empty = (F.adaptive_avg_pool2d(seen, grid_of(cells)) < 0.05).to(cells.dtype)
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


def tokens_of(system: LearningTower, texts: Sequence[str], heard: TextFeatures) -> tuple[Tensor, Tensor]:
    """Token ids (B, L), and where there are any (B, L), of what was heard."""
    tokenizer = system.tower.tokenizer
    assert tokenizer is not None
    tokens, padding = ids_of(tokenizer, texts, heard.words.shape[1])
    return tokens.to(heard.words.device), ~padding.to(heard.words.device)


# --- pictures and phrases ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=8000)  # about 40 kB a picture at the default size
def picture_of(data: TowerData, held_out: bool, index: int) -> TowerPicture:
    """The picture of an index. Held out: new backgrounds, and pairs of colour and shape that training never shows."""
    rng = np.random.default_rng([index, int(held_out)])
    h, w = data.size
    kinds = HELD_OUT_BACKGROUNDS if held_out else [b for b in BACKGROUNDS if b not in HELD_OUT_BACKGROUNDS]
    canvas = Canvas(draw_background(str(rng.choice(kinds)), data.size, rng)[None], np.zeros((1, h, w), np.uint8))
    things = []
    for _ in range(int(rng.integers(data.objects[0], data.objects[1] + 1))):
        thing = _thing(rng, held_out)
        patch = draw_shape(thing.shape, thing.colour, TEXTURES[int(rng.choice(4, p=(0.55, 0.15, 0.15, 0.15)))], rng)
        scale = scale_for(rng, patch, data.size, data.areas)
        centre = _place(rng, canvas.labels[0], 64 * scale)
        paste(canvas, patch, Motion(centre[None], np.array([scale]), rng.normal(0, 8, 1)), None, 1.0, False)
        things.append(thing)
    masks = np.stack([canvas.labels[0] == i + 1 for i in range(len(things))])
    seen = [i for i, mask in enumerate(masks) if mask.sum() >= 12]  # pixels
    return TowerPicture(canvas.frames[0], masks[seen], tuple(things[i] for i in seen))


def _thing(rng: np.random.Generator, held_out: bool) -> Thing:
    while True:
        thing = Thing(str(rng.choice(COLOURS)), str(rng.choice(KNOWN_SHAPES)))
        if held_out_pair(thing.colour, thing.shape) == held_out:
            return thing


def _place(rng: np.random.Generator, labels: np.ndarray, reach: float) -> np.ndarray:
    """(x, y), where an object of this reach in pixels hides little of what is there."""
    h, w = labels.shape
    low, high = np.array([min(reach, w / 2), min(reach, h / 2)]), np.array([w, h])
    tries = [rng.uniform(low, np.maximum(high - low, low + 1e-6)) for _ in range(8)]

    def hidden(at: np.ndarray) -> int:
        (x0, y0), (x1, y1) = np.maximum(at - reach, 0).astype(int), (at + reach).astype(int) + 1
        return int((labels[y0:y1, x0:x1] > 0).sum())

    return min(tries, key=hidden)


def phrase_of(thing: Thing, rng: np.random.Generator) -> Phrase:
    """A phrase that is true of the thing: its class, its colour, both, or its class in words of motion.

    A still shows no motion: such words are only there so that the ears have met them, learn to hear the rest, and are
    asked for them (``words_loss``).
    """
    noun = SHAPES[thing.shape]
    words = [word for word in noun.true if word != "shape"]
    word = noun.name if rng.random() < 0.7 else str(rng.choice(words))
    kind = str(rng.choice(["class", "colour", "thing", "motion"], p=[0.35, 0.3, 0.1, 0.25]))
    if kind == "class":
        return Phrase(fill(str(rng.choice(CLASS_WORDS)), word), "", word)
    if kind == "motion":
        forms = MOTION_WORDS[str(rng.choice(list(MOTION_WORDS)))]
        return Phrase(fill(str(rng.choice(forms)), word), "", word)
    shown = COLOUR_TWINS.get(thing.colour, thing.colour) if rng.random() < 0.5 else thing.colour
    named = str(rng.choice([*GENERIC, "shape"])) if kind == "thing" else word
    return Phrase(fill(str(rng.choice(COLOUR_WORDS)), named, shown), thing.colour, "" if kind == "thing" else word)


@lru_cache(maxsize=1)
def world_words() -> tuple[str, ...]:
    """Texts that hold every word that a generated film of drawn shapes may be described with."""
    forms = [*CLASS_WORDS, *COLOUR_WORDS]
    for table in (PLACE_WORDS, SIZE_WORDS, MOTION_WORDS, TIME_WORDS, RELATION_WORDS):
        forms += [form for forms_of_one in table.values() for form in forms_of_one]
    texts = [fill(form, "thing").replace("{r}", "") for form in (*forms, *TEXTURE_WORDS)]
    nouns = [word for noun in SHAPES.values() for word in noun.true]
    colours = [*COLOURS, *COLOUR_TWINS.values()]
    return (*texts, *nouns, *(plural(n) for n in nouns), *colours, *TEXTURES, *GENERIC, "an all both two three and")


def sample(data: TowerData, seed: int, index: int) -> TowerPicture:
    """A picture with a phrase for each object; successive passes over the pictures take other phrases."""
    turn, place = divmod(index, data.pictures)
    number = int(np.random.default_rng([seed, turn]).permutation(data.pictures)[place])
    picture = picture_of(data, False, number)
    rng = np.random.default_rng([seed, index])
    return replace(picture, phrases=tuple(phrase_of(thing, rng) for thing in picture.things))


def collate(pictures: Sequence[TowerPicture]) -> TowerBatch:
    """Pictures of one size as a batch."""
    phrases = [phrase for picture in pictures for phrase in picture.phrases]
    things = [thing for picture in pictures for thing in picture.things]
    fits = torch.tensor([[phrase.fits(thing) for phrase in phrases] for thing in things])
    which = torch.tensor([i for i, picture in enumerate(pictures) for _ in picture.things])
    masks = torch.from_numpy(np.concatenate([picture.masks for picture in pictures]))
    return TowerBatch(normalised([p.frame for p in pictures]), masks, which, tuple(p.text for p in phrases), fits)


def normalised(frames: Sequence[np.ndarray]) -> Tensor:
    """(N, 3, H, W) from (H, W, 3) uint8 each."""
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


# --- validation -------------------------------------------------------------------------------------------------------


def validate(data: TowerData, system: nn.Module) -> dict[str, float]:
    """On held-out pictures, by the likeness of regions and phrases: the share of objects whose "the COLOUR SHAPE" is
    found among all such phrases (``retrieval``), whose "the SHAPE" is, and whose "the COLOUR object" is, each with its
    chance; and the share of phrases whose most similar cell lies in their object (``pointing``), against the objects'
    share of the picture. Training never paired these colours and shapes, which tells most against ``retrieval``.
    ``named``: the share of the words of motion phrases that are read off their own features."""
    assert isinstance(system, LearningTower)
    pairs = [Thing(colour, shape) for colour in COLOURS for shape in KNOWN_SHAPES]
    device = next(system.parameters()).device
    tables = {
        "retrieval": ([f"the {pair.colour} {pair.shape}" for pair in pairs], lambda thing: pairs.index(thing)),
        "shape": ([f"the {shape}" for shape in KNOWN_SHAPES], lambda thing: KNOWN_SHAPES.index(thing.shape)),
        "colour": ([f"the {colour} object" for colour in COLOURS], lambda thing: COLOURS.index(thing.colour)),
    }
    heard = {name: system.hear(texts) for name, (texts, _) in tables.items()}
    hits: dict[str, list[float]] = {name: [] for name in (*tables, "pointing", "pointing_chance")}
    for start in range(0, data.held_out_pictures, 25):
        chosen = range(start, min(start + 25, data.held_out_pictures))
        pictures = [picture_of(data, True, index) for index in chosen]
        batch = collate(
            [replace(p, phrases=tuple(Phrase(f"the {t.colour} {t.shape}", "", "") for t in p.things)) for p in pictures]
        ).to(device)
        things = [thing for picture in pictures for thing in picture.things]
        maps, _ = system.look(batch.frames)
        regions = [regions_of(x, batch) for x in maps]
        for name, (_, right) in tables.items():
            best = torch.stack([x @ heard[name].t() for x in regions]).mean(0).argmax(1).tolist()
            hits[name] += [float(found == right(thing)) for found, thing in zip(best, things, strict=True)]
        size = grid_of(maps[0])
        phrases = system.hear(batch.phrases)
        alike = torch.stack(
            [F.interpolate(torch.einsum("rehw,re->rhw", x[batch.which], phrases)[:, None], size=size) for x in maps]
        ).mean(0)  # (R, 1, h, w)
        covered = F.adaptive_avg_pool2d(batch.masks.float(), size)  # (R, h, w)
        at = covered.flatten(1).gather(1, alike.flatten(1).argmax(1)[:, None])[:, 0] > 0.5
        hits["pointing"] += at.float().tolist()
        hits["pointing_chance"] += (covered > 0.5).float().mean((1, 2)).tolist()
    texts = [fill(form, "star") for forms in MOTION_WORDS.values() for form in forms]
    hits["named"] = named_words(system, texts).tolist()
    chances = {f"{name}_chance": 1 / len(texts) for name, (texts, _) in tables.items()}
    return {name: float(np.mean(values)) for name, values in hits.items()} | chances
