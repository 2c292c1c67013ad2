"""Sentences from predicates: templates for each kind, and the sampler that draws true ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deixis.synthetic.colours import COLOUR_NAMES
from deixis.synthetic.predicates import GENERIC, TEXTURES, TRUE, UNCERTAIN, Predicates
from deixis.synthetic.scene import Sentence
from deixis.synthetic.vocabulary import article, plural

# ---- words

PLACE_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": ("the {} on the left", "the leftmost {}", "the left {}", "the {} on the left side", "{} on the left"),
    "right": ("the {} on the right", "the rightmost {}", "the right {}", "the {} on the right side", "{} on the right"),
    "top": ("the {} at the top", "the topmost {}", "the upper {}", "the highest {}", "the top {}"),
    "bottom": ("the {} at the bottom", "the lower {}", "the lowest {}", "the bottom {}"),
    "middle": ("the {} in the middle", "the middle {}", "the {} between the two others", "the {} in the center"),
}
SIZE_WORDS: Mapping[str, tuple[str, ...]] = {
    "largest": ("the largest {}", "the biggest {}", "the big {}", "the larger {}"),
    "smallest": ("the smallest {}", "the small {}", "the little {}", "the smaller {}"),
}
MOTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": (
        "the {} moving to the left", "the {} that moves left", "{a} going left", "{a} moving left",
        "the {} heading left",
    ),
    "right": (
        "the {} moving to the right", "the {} that moves right", "{a} going right", "{a} moving right",
        "the {} heading right",
    ),
    "up": ("the {} moving up", "the {} that moves up", "{a} going up", "the {} rising"),
    "down": ("the {} moving down", "the {} that moves down", "{a} going down", "the {} sinking"),
    "still": ("the {} standing still", "the {} that does not move", "{a} that stays in place", "the still {}"),
    "moving": ("the moving {}", "the {} that moves", "{a} that is moving", "the {} in motion"),
    "closer": ("the {} coming closer", "the {} that comes closer", "{a} coming closer", "the approaching {}"),
    "away": ("the {} going away", "the {} that gets smaller", "{a} moving away", "the {} getting smaller"),
    "turns": ("the {} that turns", "the {} that changes direction", "{a} changing direction", "the {} turning"),
    "fastest": ("the faster {}", "the fastest {}", "the {} that moves faster", "the {} moving fastest", "the quick {}"),
}  # fmt: skip
TIME_WORDS: Mapping[str, tuple[str, ...]] = {
    "enters": (
        "the {} that enters",
        "the {} coming into the picture",
        "{a} that comes in later",
        "the {} that appears",
    ),
    "leaves": (
        "the {} that leaves",
        "the {} going out of the picture",
        "{a} that leaves the picture",
        "the {} that disappears",
    ),
    "stops": ("the {} that stops", "the {} that comes to a halt", "{a} that moves and then stops"),
    "starts": ("the {} that starts moving", "{a} that first stands still and then moves", "the {} that sets off"),
}
RELATION_WORDS: Mapping[str, tuple[str, ...]] = {
    "behind": ("the {} behind {r}", "the {} that passes behind {r}", "the {} partly hidden by {r}"),
    "before": ("the {} in front of {r}", "the {} that passes in front of {r}", "the {} that partly hides {r}"),
    "left of": ("the {} to the left of {r}", "the {} left of {r}"),
    "right of": ("the {} to the right of {r}", "the {} right of {r}"),
    "above": ("the {} above {r}", "the {} that is higher than {r}"),
    "below": ("the {} below {r}", "the {} under {r}"),
    "follows": ("the {} following {r}", "the {} that follows {r}", "the {} moving after {r}"),
}
TEXTURE_WORDS = ("the {c} {}", "a {c} {}", "the {} that is {c}", "{c} {}")
CLASS_WORDS = (
    "a {}",
    "a {}",
    "the {}",
    "the {}",
    "{}",
    "{}",
    "a {} in the video",
    "the {} in the picture",
    "there is a {}",
)
COLOUR_WORDS = ("the {c} {}", "the {c} {}", "a {c} {}", "{c} {}", "the {} that is {c}", "the {c}-coloured {}")
CLOTHES_WORDS = ("the {} in {c}", "{a} in {c}", "{a} wearing {c}", "the {} dressed in {c}", "{a} with {c} clothes")
COLOUR_TWINS = {"grey": "gray"}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
# "the small car", "the right one" say less than they should when only one thing bears the noun; they need two.
_NEEDS_RIVALS = ("place", "size")


def fill(template: str, noun: str, colour: str = "") -> str:
    """Put a noun (and a colour) into a template; "a" becomes "an" or falls as the next word wants it."""
    bare = article(noun) == ""
    text = template.replace("{a}", noun if bare else f"{article(noun)} {noun}").replace("{c}", colour)
    if text.startswith("a {}"):
        text = (noun if bare else f"{article(noun)} {noun}") + text[4:]
    elif "there is a {}" in text:
        text = f"there is {noun}" if bare else f"there is {article(noun)} {noun}"
    elif colour and text.startswith(f"a {colour}"):
        rest = text[2:]
        text = rest if bare else f"{article(colour)} {rest}"
    return text.replace("{}", noun)


@dataclass(frozen=True, kw_only=True)
class SentenceMix:
    """How many sentences a film gets and of what kinds (our choice: after the prototype's shares; kinds that few films
    can have weigh more than the share they should reach)."""

    count: int = 8
    most_none: float = 0.2  # share of sentences that name nothing, at most (in the mean over films)
    repeats: int = 2  # sentences of one kind for the same object, at most
    weights: tuple[tuple[str, float], ...] = (
        ("class", 0.27), ("colour", 0.34), ("place", 0.3), ("motion", 0.16), ("none", 0.13), ("size", 0.03),
        ("several", 0.03),
    )  # fmt: skip


class SentenceSampler:
    """Draws sentences for a scene: candidates of every kind, each checked by Predicates, then a draw by weights."""

    def __init__(
        self, predicates: Predicates, rng: np.random.Generator, motions: bool = True, times: bool = False
    ) -> None:
        """motions, times: whether a sentence that names nothing may be wrong in its motion, or in its event, only."""
        self.predicates, self.rng, self.motions, self.times = predicates, rng, motions, times
        self.words = self._words()

    def _words(self) -> list[str]:
        found = dict.fromkeys(
            word
            for i in np.flatnonzero(self.predicates.referable)
            for word in self.predicates.things[i].noun.true
            if self.predicates.closed(word)
        )
        return list(found)

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def _usual(self, i: int, word: str) -> float:
        """Weight of a word for a thing: its own name before its synonyms and the name of its group."""
        if word in GENERIC:
            return 0.5
        return 1.0 if word == self.predicates.things[i].noun.name else 0.35

    def _one(self, answer: np.ndarray) -> int | None:
        """The only thing that the predicate is true of, if nothing is uncertain and it may be referred to."""
        if (answer == UNCERTAIN).any() or (answer == TRUE).sum() != 1:
            return None
        i = int(np.argmax(answer))
        return i if self.predicates.referable[i] and self.predicates.things[i].single else None

    def candidates(self, kind: str) -> list[tuple[Sentence, float]]:
        """Sentences of a kind with a weight each (a word that the class alone would separate weighs less)."""
        return getattr(self, f"_{kind}")()

    def _class(self) -> list[tuple[Sentence, float]]:
        out = []
        for word in self.words:
            i = self._one(self.predicates.named(word))
            if i is not None:
                out.append((Sentence(fill(self._pick(CLASS_WORDS), word), "class", (i,)), self._usual(i, word)))
        return out

    def _colour_text(self, word: str, colour: str, person: bool) -> str:
        shown = COLOUR_TWINS[colour] if colour in COLOUR_TWINS and self.rng.random() < 0.5 else colour
        return fill(self._pick(CLOTHES_WORDS if person else COLOUR_WORDS), word, shown)

    def _colour(self) -> list[tuple[Sentence, float]]:
        out = []
        for colour in COLOUR_NAMES:
            is_colour = self.predicates.coloured(colour)
            if not (is_colour == TRUE).any():
                continue
            words = self.words
            if self.predicates.scene.background[COLOUR_NAMES.index(colour)] < 0.03:
                words = [*words, *GENERIC]
            for word in words:
                named = self.predicates.named(word)
                i = self._one(np.minimum(named, is_colour))
                if i is not None:
                    person = self.predicates.things[i].noun.name == "person"
                    if person and word in ("animal", *GENERIC):
                        continue
                    weight = 2.0 if (named == TRUE).sum() > 1 else 0.5
                    text = self._colour_text(word, colour, person)
                    out.append((Sentence(text, "colour", (i,)), weight * self._usual(i, word)))
        return out

    def _texture(self) -> list[tuple[Sentence, float]]:
        out = []
        for texture in TEXTURES:
            is_texture = self.predicates.textured(texture)
            for word in [*self.words, *GENERIC] if self.predicates.scene.plain else self.words:
                i = self._one(np.minimum(self.predicates.named(word), is_texture))
                if i is not None:
                    text = fill(self._pick(TEXTURE_WORDS), word, texture)
                    weight = (2.0 if self._rivals(word) else 0.5) * self._usual(i, word)
                    out.append((Sentence(text, "texture", (i,)), weight))
        return out

    def _time(self) -> list[tuple[Sentence, float]]:
        out = []
        for event, forms in TIME_WORDS.items():
            is_timed = self.predicates.timed(event)
            for word in [*self.words, *GENERIC] if self.predicates.scene.fixed else self.words:
                i = self._one(np.minimum(self.predicates.named(word), is_timed))
                if i is not None:
                    weight = (2.0 if self._rivals(word) else 0.4) * self._usual(i, word)
                    out.append((Sentence(fill(self._pick(forms), word), "time", (i,)), weight))
        return out

    def _descriptions(self) -> dict[int, list[str]]:
        """Words that are true of one thing only, by thing: by class, else by colour and class."""
        found: dict[int, list[str]] = defaultdict(list)
        for word in self.words:
            named = self.predicates.named(word)
            for colour in ("", *COLOUR_NAMES):
                answer = np.minimum(named, self.predicates.coloured(colour)) if colour else named
                i = self._one(answer)
                if i is not None and self._usual(i, word) == 1.0 and (colour == "" or self._rivals(word)):
                    found[i].append(f"the {colour} {word}" if colour else f"the {word}")
        return found

    def _relation(self) -> list[tuple[Sentence, float]]:
        out = []
        for j, references in self._descriptions().items():
            for relation, forms in RELATION_WORDS.items():
                is_related = self.predicates.related(relation, j)
                for word in [*self.words, *GENERIC] if self.predicates.scene.plain else self.words:
                    i = self._one(np.minimum(self.predicates.named(word), is_related))
                    if i is not None:
                        text = fill(self._pick(forms), word).replace("{r}", self._pick(references))
                        weight = 3.0 if relation in ("behind", "before", "follows") else 1.0
                        weight *= (2.0 if word in GENERIC or self._rivals(word) else 0.4) * self._usual(i, word)
                        out.append((Sentence(text, "relation", (i,)), weight))
        return out

    def _rivals(self, word: str) -> bool:
        return int((self.predicates.named(word) == TRUE).sum()) > 1

    def _compared(self, kind: str, table: Mapping[str, tuple[str, ...]]) -> list[tuple[Sentence, float]]:
        out = []
        words = [*self.words, *GENERIC] if self.predicates.scene.plain else self.words
        for word in words:
            if not self._rivals(word):
                continue
            for which, forms in table.items():
                answer = self.predicates.placed(word, which) if kind == "place" else self.predicates.sized(word, which)
                i = self._one(answer)
                if i is not None:
                    out.append((Sentence(fill(self._pick(forms), word), kind, (i,)), self._usual(i, word)))
        return out

    def _place(self) -> list[tuple[Sentence, float]]:
        return self._compared("place", PLACE_WORDS)

    def _size(self) -> list[tuple[Sentence, float]]:
        return self._compared("size", SIZE_WORDS)

    def _motion(self) -> list[tuple[Sentence, float]]:
        out = []
        for motion, forms in MOTION_WORDS.items():
            generic = self.predicates.scene.fixed and (
                motion not in ("still", "fastest") or self.predicates.scene.plain
            )
            is_motion = None if motion == "fastest" else self.predicates.moved(motion)
            for word in [*self.words, *GENERIC] if generic else self.words:
                named = self.predicates.named(word)
                answer = self.predicates.fastest(word) if is_motion is None else np.minimum(named, is_motion)
                i = self._one(answer)
                if i is not None:
                    weight = (2.0 if self._rivals(word) else 0.4) * self._usual(i, word)
                    out.append((Sentence(fill(self._pick(forms), word), "motion", (i,)), weight))
        return out

    def _several(self) -> list[tuple[Sentence, float]]:
        out = []
        for word in self.words:
            for colour in ("", *COLOUR_NAMES):
                named = self.predicates.named(word)
                answer = np.minimum(named, self.predicates.coloured(colour)) if colour else named
                chosen = np.flatnonzero(answer == TRUE)
                if (answer == UNCERTAIN).any() or not 2 <= len(chosen) <= 5:
                    continue
                whole = self.predicates.referable[chosen].all() and all(
                    self.predicates.things[i].single for i in chosen
                )
                person = any(self.predicates.things[i].noun.name == "person" for i in chosen)
                if not whole or (colour and person):
                    continue
                many = f"{colour} {plural(word)}".strip()
                forms = [f"the {NUMBERS[len(chosen)]} {many}", f"all the {many}", f"the {many}"]
                forms += [f"both {many}"] if len(chosen) == 2 else []
                out.append(
                    (
                        Sentence(self._pick(forms), "several", tuple(int(i) for i in chosen)),
                        self._usual(int(chosen[0]), word),
                    )
                )
        return out

    def _none(self) -> list[tuple[Sentence, float]]:
        """Near and wrong: a sibling of what is there, a wrong colour or motion of it; and any other class."""
        predicates, out = self.predicates, []

        def absent(answer: np.ndarray, word: str) -> bool:
            return predicates.closed(word) and not answer.any()

        present = {t.noun.name for t in predicates.things}
        groups = {group for t in predicates.things for group in t.noun.groups}
        everyday = self.rng.random(6) < 0.65  # before the rarer names of drawn objects
        for attempt, usual in enumerate(everyday):
            near = attempt < 4  # a sibling of what is there: another animal, another vessel
            nouns = predicates.scene.nouns
            names = [n for n in (predicates.scene.everyday if usual else nouns) if n not in present]
            names = sorted(n for n in names if not near or groups & set(nouns[n].groups))
            if not names:
                continue
            name = self._pick(names)
            word = name if self.rng.random() < 0.7 else self._pick(nouns[name].true)
            if absent(predicates.named(word), word):
                text = fill(self._pick(CLASS_WORDS), word)
                if self.rng.random() < 0.2:
                    text = self._colour_text(word, self._pick(COLOUR_NAMES), name == "person")
                out.append((Sentence(text, "none", ()), 1.2 if near else 0.6))
        for word in self.words:
            named = predicates.named(word)
            colour = self._pick(COLOUR_NAMES)
            person = bool((named == TRUE).any()) and predicates.things[int(np.argmax(named))].noun.name == "person"
            if absent(np.minimum(named, predicates.coloured(colour)), word):
                text = self._colour_text(word, colour, person)
                out.append((Sentence(text, "none", ()), 2.5 / len(self.words)))
            motion = self._pick(list(MOTION_WORDS)[:-1])
            if self.motions and absent(np.minimum(named, predicates.moved(motion)), word):
                text = fill(self._pick(MOTION_WORDS[motion]), word)
                out.append((Sentence(text, "none", ()), 1.5 / len(self.words)))
            event = self._pick(list(TIME_WORDS)) if self.times else ""
            if event and absent(np.minimum(named, predicates.timed(event)), word):
                out.append((Sentence(fill(self._pick(TIME_WORDS[event]), word), "none", ()), 1.5 / len(self.words)))
        return out

    def draw(self, mix: SentenceMix) -> tuple[Sentence, ...]:
        """Up to ``mix.count`` different sentences; kinds by weight, an object that has none yet before one that has."""
        pools = {kind: self.candidates(kind) for kind, weight in mix.weights if weight > 0}
        weights = dict(mix.weights)
        chosen: list[Sentence] = []
        used: dict[tuple[int, ...], int] = defaultdict(int)
        nothing = 0
        most_nothing = max(1, int(self.rng.binomial(mix.count, mix.most_none)))
        while len(chosen) < mix.count:
            if nothing >= most_nothing:
                pools["none"] = []
            kinds = [kind for kind, pool in pools.items() if pool]
            if not kinds:
                break
            share = np.array([weights[kind] for kind in kinds])
            kind = kinds[int(self.rng.choice(len(kinds), p=share / share.sum()))]
            pool = pools[kind]
            odds = np.array([w / (1 + 2 * used[s.objects]) if s.objects else w for s, w in pool])
            index = int(self.rng.choice(len(pool), p=odds / odds.sum()))
            sentence, _ = pool.pop(index)
            alike = sum(other.kind == kind and other.objects == sentence.objects for other in chosen)
            if sentence.objects and alike >= mix.repeats:
                continue
            if all(sentence.text != other.text for other in chosen):
                chosen.append(sentence)
                nothing += kind == "none"
                used[sentence.objects] += 1
        return tuple(chosen)
