"""Generated pictures of shapes with phrases, for a small CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from deixis.encoders.frozen import CLIP_MEAN, CLIP_STD
from deixis.synthetic.colours import COLOUR_NAMES
from deixis.synthetic.compositing import Canvas, paste, scale_for
from deixis.synthetic.motions import Motion
from deixis.synthetic.predicates import GENERIC, TEXTURES
from deixis.synthetic.sentences import (
    CLASS_WORDS,
    COLOUR_TWINS,
    COLOUR_WORDS,
    MOTION_WORDS,
    PLACE_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    TIME_WORDS,
    fill,
)
from deixis.synthetic.shapes import (
    BACKGROUNDS,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_SHAPES,
    draw_background,
    draw_shape,
    held_out_pair,
)
from deixis.synthetic.vocabulary import SHAPES, plural
from deixis.video import normalise_pixels

KNOWN_SHAPES = tuple(shape for shape in SHAPES if shape not in HELD_OUT_SHAPES)


@dataclass(frozen=True, kw_only=True)
class TowerData:
    """A batch of pictures and phrases."""

    size: tuple[int, int] = (64, 96)  # H, W in pixels
    pictures: int = 4000  # different pictures; their phrases are drawn anew every time
    objects: tuple[int, int] = (2, 4)  # least and most a picture
    areas: tuple[float, float] = (0.04, 0.16)  # share of the picture that an object covers, least and most
    held_out_pictures: int = 150  # of the validation: known shapes in new pairs with colours, on new backgrounds
    region: float = 1.0  # weights of the terms
    picture: float = 0.5
    words: float = 0.5


@dataclass(frozen=True)
class PlacedShape:
    """What can be said of an object."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Phrase:
    """A text, and what it says: a colour or "", and a noun or ""."""

    text: str
    colour: str
    word: str

    def fits(self, thing: PlacedShape) -> bool:
        """Whether it is, or may be, true of the thing."""
        noun = SHAPES[thing.shape]
        named = not self.word or self.word in noun.true or self.word in noun.maybe
        return named and self.colour in ("", thing.colour)


@dataclass(frozen=True, eq=False)
class TowerPicture:
    """frame: (H, W, 3) uint8.  masks: (n, H, W) bool, the visible part of each thing.  phrases: n, or none."""

    frame: np.ndarray
    masks: np.ndarray
    things: tuple[PlacedShape, ...]
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
        thing = placed_shape(rng, held_out)
        patch = draw_shape(thing.shape, thing.colour, TEXTURES[int(rng.choice(4, p=(0.55, 0.15, 0.15, 0.15)))], rng)
        scale = scale_for(rng, patch, data.size, data.areas)
        centre = _place(rng, canvas.labels[0], 64 * scale)
        paste(canvas, patch, Motion(centre[None], np.array([scale]), rng.normal(0, 8, 1)), None, 1.0, False)
        things.append(thing)
    masks = np.stack([canvas.labels[0] == i + 1 for i in range(len(things))])
    visible = [i for i, mask in enumerate(masks) if mask.sum() >= 12]  # pixels
    return TowerPicture(canvas.frames[0], masks[visible], tuple(things[i] for i in visible))


def placed_shape(rng: np.random.Generator, held_out: bool) -> PlacedShape:
    while True:
        thing = PlacedShape(str(rng.choice(COLOUR_NAMES)), str(rng.choice(KNOWN_SHAPES)))
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


def phrase_of(thing: PlacedShape, rng: np.random.Generator) -> Phrase:
    """A phrase that is true of the thing: its class, its colour, both, or its class in words of motion.

    A still shows no motion: such words are only there so that the text encoder has met them and learns to
    read the rest; it is trained to predict them (``words_loss``).
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
    colours = [*COLOUR_NAMES, *COLOUR_TWINS.values()]
    return (*texts, *nouns, *(plural(n) for n in nouns), *colours, *TEXTURES, *GENERIC, "an all both two three and")


def sample_picture(data: TowerData, seed: int, index: int) -> TowerPicture:
    """A picture with a phrase for each object; successive passes over the pictures take other phrases."""
    turn, place = divmod(index, data.pictures)
    number = int(np.random.default_rng([seed, turn]).permutation(data.pictures)[place])
    picture = picture_of(data, False, number)
    rng = np.random.default_rng([seed, index])
    return replace(picture, phrases=tuple(phrase_of(thing, rng) for thing in picture.things))


def collate_pictures(pictures: Sequence[TowerPicture]) -> TowerBatch:
    """Pictures of one size as a batch."""
    phrases = [phrase for picture in pictures for phrase in picture.phrases]
    things = [thing for picture in pictures for thing in picture.things]
    fits = torch.tensor([[phrase.fits(thing) for phrase in phrases] for thing in things])
    which = torch.tensor([i for i, picture in enumerate(pictures) for _ in picture.things])
    masks = torch.from_numpy(np.concatenate([picture.masks for picture in pictures]))
    return TowerBatch(normalised([p.frame for p in pictures]), masks, which, tuple(p.text for p in phrases), fits)


def normalised(frames: Sequence[np.ndarray]) -> Tensor:
    """(N, 3, H, W) from (H, W, 3) uint8 each."""
    return normalise_pixels(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), CLIP_MEAN, CLIP_STD)
