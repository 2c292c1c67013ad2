"""Stage 3 of light: the scorer, on stored tokens. Words choose among tracks, or none of them.

B clips, K sentences of all clips together, Q tracks, N objects.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deixis.losses.proposals import choice_loss
from deixis.systems.light import COLOURS, Light, Namer, TrackFeatures
from deixis.training.tokens import Said, Tokens, batch_tracks, read_tokens
from deixis.training.views import fold_of
from deixis.types import DeixisError

UNIQUE = ("class", "colour", "written", "typed")  # kinds that stay false of the others when their object is taken away
A_WORD = re.compile(r"[\w'-]+")


@dataclass(frozen=True, kw_only=True)
class ScorerData:
    """What the stage is trained on."""

    fits: float = 0.5  # overlap from which on a track shows an object
    nearly: float = 0.8  # share of the best overlap from which on a track also does
    doubtful: float = 0.15  # a track whose overlap lies between this and ``fits`` is neither right nor wrong
    sentences: int = 16  # of a clip in a step
    pictures: float = 0.45  # share of clips with written expressions
    stills: float = 0.25  # share of pictures with generated sentences or typed phrases; the rest are films
    removed: float = 0.15  # chance that the thing of a sentence is taken away, which then refers to nothing
    swapped: float = 0.12  # chance that one word of a sentence is exchanged, which then refers to nothing
    borrowed: float = 0.08  # sentences of another clip, of the number of a clip's own
    mirrored: float = 0.5  # chance that a clip is mirrored, its words left and right exchanged
    upturned: float = 0.3  # chance that a clip with generated sentences is turned upside down, and so are its words
    thinned: float = 0.9  # greatest share of the tracks that no sentence needs which is left out of a clip; half of the
    # clips keep all. What is chosen must not depend on how many other tracks there are (``deixis.choose`` gives few)
    noise: float = 0.05  # of features, in units of their spread


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """tracks: B clips.  which: (K,) clip of each text.  right, doubtful: (K, Q) bool.  absent: (K,) bool.
    weights: (K,)."""

    tracks: TrackFeatures
    texts: tuple[str, ...]
    which: Tensor
    right: Tensor
    doubtful: Tensor
    absent: Tensor
    weights: Tensor
    removed: Tensor  # (K, Q) bool: tracks that this sentence's clip does not have
    folds: Tensor  # (B,) 0 or 1 (``fold_of``)

    def to(self, device: torch.device | str) -> TokenBatch:
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name not in ("tracks", "texts")}
        return replace(self, tracks=moved(self.tracks, device), **tensors)


def moved(tracks: TrackFeatures, device: torch.device | str) -> TrackFeatures:
    return TrackFeatures(*(getattr(tracks, f.name).to(device) for f in fields(TrackFeatures)))


class TokenFolder:
    """All token files below some folders, in a fixed order; "written" ones apart from the others."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.files = [path for folder in folders for path in sorted(folder.rglob("*.safetensors"))]
        if not self.files:
            raise DeixisError(f"no tokens below {', '.join(map(str, folders))}; see tools/make_tokens.py")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tokens:
        return read_tokens(self.files[index])


def token_sample(
    folders: Mapping[str, TokenFolder], data: ScorerData, seed: int, index: int
) -> tuple[Tokens, list[tuple[Said, float, bool]]]:
    """A clip and the sentences of a step: (sentence, weight, its thing is taken away).

    folders: "pictures", "stills" and "films", those that there are; they share the clips as ``data`` says.
    """
    rng = np.random.default_rng([seed, index])
    shares = {"pictures": data.pictures, "stills": data.stills, "films": 1 - data.pictures - data.stills}
    there = [name for name in shares if name in folders]
    chances = np.array([shares[name] for name in there])
    folder = folders[there[int(rng.choice(len(there), p=chances / chances.sum()))]]
    tokens = folder[int(rng.integers(len(folder)))]
    if rng.random() < data.mirrored:
        tokens = mirror_tokens(tokens)
    if rng.random() < data.upturned and all(can_turn(said) for said in tokens.sentences):
        tokens = upturn_tokens(tokens)
    tokens = with_noise(tokens, rng, data.noise)
    order = rng.permutation(len(tokens.sentences))[: data.sentences]
    chosen: list[tuple[Said, float, bool]] = []
    for i in order:
        said = tokens.sentences[int(i)]
        draw = rng.random()
        if said.objects and said.kind in UNIQUE and draw < data.removed:
            chosen.append((said, 1.0, True))
        elif said.objects and draw < data.removed + data.swapped:
            other = one_word_changed(said.text, rng)
            chosen.append((Said(other, "none", ()), 0.6, False) if other else (said, 1.0, False))
        else:
            chosen.append((said, 1.0, False))
    if rng.random() < 0.5:
        tokens = thin(tokens, [said for said, _, _ in chosen], data, rng)
    return tokens, chosen


def thin(tokens: Tokens, sentences: Sequence[Said], data: ScorerData, rng: np.random.Generator) -> Tokens:
    """The clip without some of the tracks that show nothing that the sentences refer to."""
    needed = sorted({n for said in sentences for n in said.objects})
    idle = (tokens.overlap[:, needed] <= data.doubtful).all(1)
    gone = idle & torch.from_numpy(rng.random(len(idle)) < rng.uniform(0, data.thinned))
    tracks = replace(tokens.tracks, alive=tokens.tracks.alive & ~gone, score=tokens.tracks.score * ~gone)
    return replace(tokens, tracks=tracks, overlap=tokens.overlap * ~gone[:, None])


NOUN_SWAPS = (
    ("man", "woman", "boy", "girl", "child"), ("dog", "cat", "horse", "sheep", "cow", "bird"),
    ("car", "bus", "truck", "van", "motorcycle", "bicycle", "train", "boat"),
    ("chair", "couch", "table", "bed", "bench"), ("cup", "bottle", "bowl", "plate", "glass"),
    ("umbrella", "bag", "backpack", "suitcase"), ("shirt", "jacket", "coat", "dress", "hat", "trousers"),
    ("pizza", "cake", "sandwich", "banana", "apple", "orange"), ("laptop", "phone", "keyboard", "tv", "book"),
)  # fmt: skip
SWAPS = {word: group for group in (*NOUN_SWAPS, COLOURS) for word in group}


def one_word_changed(text: str, rng: np.random.Generator) -> str | None:
    """The sentence with one noun or colour exchanged for another of its kind; None where it has none."""
    places = [m for m in A_WORD.finditer(text) if m.group().lower() in SWAPS]
    if not places:
        return None
    place = places[int(rng.integers(len(places)))]
    others = [w for w in SWAPS[place.group().lower()] if w != place.group().lower() and w not in text.lower()]
    if not others:
        return None
    return text[: place.start()] + str(rng.choice(others)) + text[place.end() :]


SIDES = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost", "leftward": "rightward",
         "rightward": "leftward", "leftwards": "rightwards", "rightwards": "leftwards"}  # fmt: skip


def sides_exchanged(text: str) -> str:
    return A_WORD.sub(lambda m: SIDES.get(m.group().lower(), m.group()), text)


def mirror_tokens(tokens: Tokens) -> Tokens:
    """The clip in a mirror: places and words change sides. What lies under a mask is taken to stay the same."""
    return turned(tokens, (-1, 1, 1, 1, 1), sides_exchanged)


GENERATED = (
    "class", "colour", "place", "motion", "size", "several", "twin_place", "twin_motion", "twin_colour", "none"
)  # fmt: skip
HEIGHTS = {
    "top": "bottom", "bottom": "top", "topmost": "lowest", "upper": "lower", "lower": "upper", "highest": "lowest",
    "lowest": "highest", "higher": "lower", "up": "down", "down": "up", "rising": "sinking", "sinking": "rising",
    "above": "below", "below": "above", "under": "above",
}  # fmt: skip


def can_turn(said: Said) -> bool:
    """Whether the words that name heights are known; a top hat stays one upside down."""
    return said.kind in GENERATED and "top hat" not in said.text


def heights_exchanged(text: str) -> str:
    return A_WORD.sub(lambda m: HEIGHTS.get(m.group().lower(), m.group()), text)


def upturn_tokens(tokens: Tokens) -> Tokens:
    """The clip upside down: as many clips again in which top and bottom matter."""
    return turned(tokens, (1, -1, 1, 1, 1), heights_exchanged)


def turned(tokens: Tokens, signs: Sequence[int], exchanged: Callable[[str], str]) -> Tokens:
    tracks = replace(tokens.tracks, geometry=tokens.tracks.geometry * tokens.tracks.geometry.new_tensor(signs))
    sentences = tuple(Said(exchanged(s.text), s.kind, s.objects) for s in tokens.sentences)
    return Tokens(tracks, tokens.overlap, sentences, tokens.name)


NOISY = ("deep", "semantic16", "semantic32", "head", "ring_deep", "ring_semantic", "upper", "lower", "scene")


def with_noise(tokens: Tokens, rng: np.random.Generator, amount: float) -> Tokens:
    if amount <= 0:
        return tokens
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    changes = {}
    for name in NOISY:
        x = getattr(tokens.tracks, name)
        changes[name] = x + amount * x.std() * torch.randn(x.shape, generator=generator)
    return replace(tokens, tracks=replace(tokens.tracks, **changes))


def right_tracks(overlap: Tensor, objects: Sequence[int], data: ScorerData) -> tuple[Tensor, Tensor]:
    """(Q,) right and (Q,) doubtful tracks for the objects of a sentence, from overlaps (Q, N)."""
    right, doubtful = torch.zeros(len(overlap), dtype=torch.bool), torch.zeros(len(overlap), dtype=torch.bool)
    for n in objects:
        with_it = overlap[:, n]
        best = with_it.max()
        mine = overlap.argmax(1) == n
        right |= mine & (with_it >= data.fits) & (with_it >= data.nearly * best)
        doubtful |= with_it > data.doubtful
    return right, doubtful & ~right


def collate_tokens(data: ScorerData, samples: Sequence[tuple[Tokens, list[tuple[Said, float, bool]]]]) -> TokenBatch:
    """Samples as a batch; each clip also gets sentences of the next one, which refer to nothing in it."""
    rows: dict[str, list] = defaultdict(list)
    for number, (tokens, chosen) in enumerate(samples):
        strange = [(Said(s.text, "none", ()), 0.7, False) for s, _, _ in samples[number - 1][1] if s.objects]
        count = math.ceil(data.borrowed * len(chosen)) if len(samples) > 1 else 0
        several = chosen + strange[:count]
        for said, weight, removed in several:
            right, doubtful = right_tracks(tokens.overlap, said.objects, data)
            gone = torch.zeros_like(right)
            if removed:
                gone = right | doubtful
                right, doubtful = torch.zeros_like(right), torch.zeros_like(right)
            absent = removed or not said.objects
            if not absent and not right.any():
                continue  # nothing was proposed for it: there is nothing right to choose
            for name, value in (("texts", said.text), ("which", number), ("right", right), ("doubtful", doubtful),
                                ("absent", absent), ("weights", weight), ("removed", gone)):  # fmt: skip
                rows[name].append(value)
    return TokenBatch(
        batch_tracks([tokens.tracks for tokens, _ in samples]), tuple(rows["texts"]), torch.tensor(rows["which"]),
        torch.stack(rows["right"]), torch.stack(rows["doubtful"]), torch.tensor(rows["absent"]),
        torch.tensor(rows["weights"]), torch.stack(rows["removed"]),
        torch.tensor([fold_of(tokens.name) for tokens, _ in samples]),
    )  # fmt: skip


def named(namer: Namer, tracks: TrackFeatures) -> tuple[Tensor, Tensor]:
    """A namer's embedding of the tracks and its log-probabilities; it is moved to where they are."""
    embedding = namer.to(tracks.score.device)(tracks)
    return embedding, namer.log_probabilities(embedding)


def scorer_losses(others: tuple[Namer, Namer] | None, system: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
    """The entropy of the choice among the tracks and none of them.

    others: the namers for clips of fold 0 and 1, trained on the other fold. A namer is surer of regions that it was
    trained on than it will ever be of new ones, and a scorer that learns from it trusts names too much.
    """
    assert isinstance(system, Light)
    with torch.no_grad():
        embedding, names = named(system.namer if others is None else others[0], batch.tracks)
        if others is not None:
            second = (batch.folds == 1)[:, None, None]
            pairs = zip((embedding, names), named(others[1], batch.tracks), strict=True)
            embedding, names = (torch.where(second, of_second, of_first) for of_first, of_second in pairs)
    # Few tokens and many rows: on a CPU the backward pass of the fused kernel takes a quarter of the step.
    with sdpa_kernel(SDPBackend.MATH):
        similarity, none = system.score_texts(batch.tracks, embedding, batch.texts, batch.which, batch.removed, names)
    ignored = batch.doubtful | batch.removed
    return {"choice": choice_loss(similarity, none, batch.right, ignored, batch.absent, batch.weights)}


@torch.no_grad()
def validate_scorer(folders: dict[str, TokenFolder], data: ScorerData, system: nn.Module) -> dict[str, float]:
    """On development tokens, of things with a fitting track: the share chosen right, by kind; absent ones refused at
    even odds; the area under the curve of presence."""
    assert isinstance(system, Light)
    hits: dict[str, list[float]] = defaultdict(list)
    presence: dict[bool, list[float]] = {True: [], False: []}
    for folder_name, folder in folders.items():
        for index in range(len(folder)):
            tokens = folder[index]
            if not tokens.sentences:
                continue
            device = next(system.parameters()).device
            rows = torch.zeros(len(tokens.sentences), dtype=torch.long, device=device)
            tracks = moved(tokens.tracks, device)
            embedding = system.namer(tracks)
            similarity, none = system.score_texts(tracks, embedding, [s.text for s in tokens.sentences], rows)
            similarity, sure = similarity.cpu(), (similarity.logsumexp(1) - none).cpu()
            for said, row, p in zip(tokens.sentences, similarity, sure.tolist(), strict=True):
                if not said.objects:
                    hits[f"{folder_name}_absent"].append(float(p < 0))
                    presence[False].append(p)
                    continue
                right, _ = right_tracks(tokens.overlap, said.objects, data)
                hits[f"{folder_name}_found"].append(float(right.any()))
                if right.any():
                    hits[f"{folder_name}_{said.kind}"].append(float(right[row.argmax()]))
                    presence[True].append(p)
    scores = {name: float(np.mean(values)) for name, values in sorted(hits.items())}
    chosen = [v for k, v in scores.items() if not k.endswith("_found")]
    there, away = np.array(presence[True]), np.array(presence[False])
    auc = float((there[:, None] > away[None]).mean()) if len(there) and len(away) else 0.0
    return {"mean": float(np.mean(chosen)), "auc": auc, **scores}
