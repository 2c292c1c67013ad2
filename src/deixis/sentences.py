"""Sentences as people type them: questions and requests are unwrapped, and what a model cannot obey is noted.

Systems are trained on phrases that name an object ("the dog on the left"). A person writes "Where is the dog on the
left?" or "please segment the dog". ``plain`` takes the phrase out; ``remarks`` says, a line each, that a sentence is in
another language than the model's, names several objects, or holds a negation. Both are for English only, by tables of
frequent words; a table is an aid, not a parser.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from deixis.types import DeixisError, Expression

# What leads to the object, longest first where one begins another. Each must be followed by words.
_POLITE = r"(?:(?:hey|hi|hello|ok|okay|well|so|now|please|pls|kindly|just)[,!]?\s+)*"
_CAN = r"(?:(?:can|could|would|will)\s+(?:you|we|u|i)\s+(?:(?:please|kindly|also|just)\s+)?)?"
_WANT = (
    r"(?:(?:i|we)(?:\s+(?:would|'d)\s+like|'d\s+like|\s+want|\s+need|\s+wish)(?:\s+you)?\s+to\s+"
    r"|(?:i|we)\s+(?:want|need)\s+(?=(?:the|a|an|all|every|each|any|this|that|my)\b)"
    r"|(?:let's|lets|let\s+us|try\s+to|help\s+(?:me|us)\s+(?:to\s+)?)\s*)?"
)
_FIND = (  # verbs that no film shows an object by
    r"(?:segment(?:\s+out)?|find(?:\s+out)?|locate|detect|identify|highlight|pick\s+out|point\s+(?:at|to|out)"
    r"|look\s+for|search\s+for|cut\s+out|crop\s+out|extract|isolate|outline|spot"
    r"|(?:i\s+am|i'm|im|we\s+are|we're)\s+looking\s+for|looking\s+for)"
)
# Verbs that are nouns too ("the show dog"): a determiner must follow.
_SHOW = r"(?:show|track|follow|mark|mask(?:\s+out)?|select|get|give|tell|see|draw|label|trace|tag)"
_ME = r"(?:me|us)\s+"
_DETERMINER = r"(?=(?:the|a|an|all|every|each|any|this|that|these|those|my|where|which|who|what|only|both|some|one)\b)"
_MASK_OF = r"(?:(?:the\s+|a\s+)?(?:masks?|segmentation|outline|position|location|silhouette)\s+(?:of|for)\s+)?"
_REQUEST = re.compile(
    rf"^{_POLITE}{_CAN}{_POLITE}{_WANT}(?:{_FIND}(?:\s+{_ME.strip()})?\s+|{_SHOW}\s+(?:{_ME})?{_DETERMINER})"
    rf"(?:{_ME})?{_MASK_OF}(?=\S)",
    re.IGNORECASE,
)
_WHERE = re.compile(
    rf"^{_POLITE}(?:where(?:'s|\s+is|\s+are|\s+was|\s+were|s)|can\s+you\s+see|do\s+you\s+see|do\s+you\s+know\s+where"
    r"|(?:i|we)\s+(?:want|need|would\s+like|'d\s+like)|(?:i|we)'d\s+like|is\s+there|are\s+there|is\s+it|which\s+(?:one\s+)?(?:is|are)|what\s+(?:is|are)|what's|who\s+(?:is|are)|who's)\s+"
    r"(?:the\s+location\s+of\s+)?(?=(?:the|a|an|any|all|this|that|these|those|my)\b)",
    re.IGNORECASE,
)
_WHO = re.compile(r"^(?:who(?:'s|\s+is|\s+are)?|what(?:'s|\s+is|\s+are)?)\s+(?=\w+ing\b)", re.IGNORECASE)
_WHICH = re.compile(
    r"^(?:which|what)\s+((?:\w+\s+){0,2}?\w+)\s+(is|are|has|have|was|were|wears?|holds?|stands?|walks?)\s+",
    re.IGNORECASE,
)
_WHERE_INSIDE = re.compile(r"^(?:where|which|who|what)\s+(.+?)\s+(?:is|are)$", re.IGNORECASE)
_END = re.compile(
    r"(?:[,\s]+(?:please|pls|thanks|thank\s+you|for\s+me|for\s+us|right\s+now|if\s+you\s+can))+\s*$"
    r"|\s+(?:in|on|from|throughout|during)\s+(?:the|this|that|my)"
    r"\s+(?:video|film|clip|movie|image|picture|photo|frame|footage|scene)s?\s*$",
    re.IGNORECASE,
)
_QUOTES = "\"'`´‘’‚“”„«»‹›「」『』"
_POINTS = " \t.,;:!?…。！？؟"

_NEGATIONS = re.compile(
    r"\b(not|no|without|never|nobody|none|nothing|neither|nor|except|excluding|but\s+not|other\s+than|isn't|aren't"
    r"|doesn't|don't|didn't|wasn't|weren't|hasn't|haven't|cannot|can't|non)\b|\b\w+n[’']t\b",
    re.IGNORECASE,
)
_NEGATION_IN_NAMES = re.compile(r"\bno\.?\s*\d|\bnumber\s+no\b", re.IGNORECASE)  # "no. 7" is a number


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_SEVERAL = _words(
    "two three four five six seven eight nine ten eleven twelve both all several many some few multiple various these",
    "those every everything pair couple group crowd people women men children kids persons mice geese cattle wolves",
    "knives leaves feet teeth others they them",
)
_GROUPS = _words("pair couple group crowd")  # after "a" they may be one thing
_ONE = _words("a an one each another this that")
_NO_PLURAL = _words(  # words that end like plurals
    "bus glass dress grass class cross bass boss moss mess access canvas gas lens atlas cactus octopus campus circus",
    "walrus hippopotamus platypus iris tennis compass mattress waitress actress princess goddess hostess fortress",
    "wilderness darkness series species glasses pants jeans shorts trousers scissors sunglasses leggings overalls",
    "pyjamas pajamas headphones binoculars goggles tights its his is was has this us always towards upwards downwards",
    "forwards backwards sideways besides perhaps yes plus across less christmas rhinoceros process news chess address",
    "business moves walks runs stands sits jumps plays rides holds goes comes turns eats looks flies swims",
)
_STOPS = _words(  # what ends the noun of a phrase
    "in on at of with by near under over behind beside next to from into through between among along across around",
    "above below that which who whose where wearing holding standing sitting walking running riding moving being",
    "and or is are was were has have while as for against inside outside toward towards carrying playing doing going",
    "coming looking eating jumping swimming flying lying driving pushing pulling dancing wears holds stands sits walks",
    "runs rides moves goes comes turns eats looks flies swims jumps plays everyone everybody",
)
_ENGLISH = _words(  # frequent ones
    "the a an of in on at with and or is are was who that which this these those his her their its to from by near",
    "next left right front back behind over under up down man woman person people boy girl dog cat car bus bike horse",
    "bird red blue green black white yellow brown grey gray orange pink purple big small large little tall young old",
    "wearing holding standing sitting walking running riding moving facing looking playing not no without all both two",
    "three first second third one other it he she they child kid baby ball table chair bench tree sky road water boat",
    "truck van train plane elephant zebra giraffe cow sheep rabbit turtle monkey bear lion tiger panda fish duck goat",
    "camel hat shirt dress coat jacket bag trousers jeans shoes everything something anything thing object animal",
    "vehicle swan fox deer pig snake frog lizard skateboard surfboard motorcycle bicycle scooter umbrella box cup",
    "bottle book phone laptop guitar flag kite rope door window wall house building grass sand snow rock hand head",
    "face leg arm foot hair middle center centre top bottom side far close away crossing camera player rider driver",
)
# The most frequent little words, colours and objects of other languages in Latin letters, without accents.
_FOREIGN = (
    _words(  # German, Dutch
        "der das ein eine einen einem einer und ist mit auf im den dem des nicht wo zeig zeige bitte finde hund katze",
        "frau mann kind auto hunde junge madchen pferd vogel fahrrad baum rot roter rote schwarz schwarze weisse blau",
        "grun braun brauner braune gelb links rechts neben hinter vor unter uber kleid schwarzen",
        "de het een en met op naast achter waar hond kat vrouw jongen meisje paard vogel fiets boom rode zwarte witte",
        "blauwe bruine gele",
    )
    | _words(  # French
        "le la les un une du et est sur dans avec qui ou au aux chien chat femme homme enfant voiture garcon fille",
        "cheval oiseau velo arbre rouge noir noire blanc blanche bleu verte vert brun jaune gauche droite montre robe",
    )
    | _words(  # Spanish, Portuguese, Italian
        "el los las una y es con en por del que perro gato mujer hombre nino nina coche caballo pajaro bicicleta arbol",
        "rojo roja negro negra blanco blanca azul marron amarillo izquierda derecha donde esta vestido muchacho",
        "o os um uma com na da dos das cachorro cao gata mulher homem menino menina carro cavalo passaro vermelho",
        "vermelha preto preta branca esquerda direita onde il lo gli di e nel nella della sul sulla cane gatto donna",
        "uomo bambino bambina macchina ragazzo ragazza cavallo uccello albero rosso rossa nero nera bianco bianca blu",
        "marrone giallo sinistra destra dove",
    )
    | _words(  # Polish, Czech, Swedish, Danish, Finnish, Turkish, Indonesian, Vietnamese, Romanian, Hungarian
        "pies kobieta mezczyzna samochod dziecko czarny czerwony zena muz pes kocka kvinna hunden katten bil mannen",
        "kvinden manden koira kissa nainen mies bir kadin adam kopek kedi araba anjing kucing perempuan laki mobil",
        "orang cho nguoi meo xe caine femeie barbat masina kutya macska ferfi egy",
    )
) - _ENGLISH


def plain(sentence: str) -> str:
    """The phrase that names the object, without the question or the request around it.

    Args:
        sentence: As typed.

    Returns:
        The phrase; the sentence itself where there is nothing around one.

    Example:
        >>> plain("Could you please show me the dog on the left?")
        'the dog on the left'
        >>> plain("the show dog")
        'the show dog'
    """
    text = _trim(" ".join(sentence.split()))
    before = None
    while text != before:
        before = text
        for pattern, made in ((_END, ""), (_REQUEST, ""), (_WHERE, ""), (_WHERE_INSIDE, r"\1")):
            shorter = _trim(pattern.sub(made, text, count=1))
            text = shorter if re.search(r"\w", shorter) else text
        question = _WHICH.match(text)
        if question:
            text = f"the {question[1]} that {question[2]} {text[question.end() :]}"
        elif _WHO.match(text):
            text = _WHO.sub(lambda m: "the person " if m[0].lower().startswith("who") else "the thing ", text)
    return text or sentence


def _trim(text: str) -> str:
    """Without quotation marks around it and points after it."""
    while True:
        text = text.strip()
        quoted = len(text) > 1 and text[0] in _QUOTES and text.rstrip(_POINTS)[-1:] in _QUOTES
        if quoted and text.strip(_QUOTES + _POINTS):
            text = text.rstrip(_POINTS)[1:-1]
            continue
        shorter = text.rstrip(_POINTS)
        if shorter == text or not shorter:
            return text
        text = shorter


def remarks(sentence: str, *, language: str | None = "English", several: bool = False) -> list[str]:
    """How a sentence is taken, as notes for its writer, a line each.

    Args:
        sentence: As typed.
        language: The model's, where it is known; others are remarked on. Only "English" is checked.
        several: Whether the model shows several objects for one sentence.

    Returns:
        Lines about another language, a negation, several objects, and what was left out.

    Example:
        >>> remarks("no woman")
        ['"no woman": the negation ("no") is not obeyed, its words are matched as they stand']
    """
    phrase = plain(sentence)
    lines = []
    if phrase.casefold() != _trim(" ".join(sentence.split())).casefold():
        lines.append(f'"{sentence}": read as "{phrase}"')
    if language == "English" and (why := _not_english(phrase)):
        return [*lines, f'"{sentence}": {why}; this model knows English only, and its answer is chance']
    if (found := _NEGATIONS.search(phrase)) and not _NEGATION_IN_NAMES.search(phrase):
        lines.append(f'"{sentence}": the negation ("{found[0]}") is not obeyed, its words are matched as they stand')
    if not several and names_several(phrase):
        lines.append(f'"{sentence}": names several objects; this model marks one of them')
    return lines


def names_several(phrase: str) -> bool:
    """Whether a phrase names more than one object, by its number words and the noun before its first preposition."""
    words = re.findall(r"[a-z0-9'’\-]+", phrase.casefold())
    head: list[str] = []
    for word in words:
        if word in _STOPS and head:
            break
        head.append(word)
    if not head:
        return False
    if head[0] in _ONE and not (set(head[1:]) & (_SEVERAL - _GROUPS)):
        return False
    if set(head) & _SEVERAL or any(word.isdecimal() and 1 < int(word) < 100 for word in head[:-1]):
        return True
    joined = re.split(r"\band\b", phrase.casefold(), maxsplit=1)
    if (
        len(joined) == 2
        and re.match(r"\s*(?:the|a|an|another)\s+\w", joined[1])
        and not set(re.findall(r"[a-z]+", joined[0])) & _STOPS
    ):
        return True  # the man and the dog
    noun = head[-1].removesuffix("'s").removesuffix("’s")
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in _NO_PLURAL and len(noun) > 3


def _not_english(phrase: str) -> str | None:
    """Why a phrase is taken for another language than English; None where it may be English."""
    letters = [c for c in phrase if c.isalpha()]
    other = [c for c in letters if not unicodedata.name(c, "").startswith(("LATIN", "FULLWIDTH LATIN"))]
    if letters and len(other) > len(letters) / 2:
        return "not in Latin letters"
    words = [_bare(word) for word in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", phrase.casefold())]
    known, foreign = sum(word in _ENGLISH for word in words), [word for word in words if word in _FOREIGN]
    if foreign and len(foreign) > known:
        return f'does not look English ("{foreign[0]}")'
    accents = [c for c in letters if ord(c) > 0x24F or (ord(c) > 0x7F and not known)]
    if accents and not known:
        return f'does not look English ("{accents[0]}")'
    return None


def _bare(word: str) -> str:
    """Without accents: niño, nino."""
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c)).replace("ß", "ss")


def as_list(expressions: str | Expression | Iterable[str | Expression]) -> list[str | Expression]:
    """One or many as a list; what can be gone through once is gone through here. Raises DeixisError for neither."""
    if isinstance(expressions, str | Expression):
        return [expressions]
    if not isinstance(expressions, Iterable):
        raise DeixisError(f"expressions must be text or a list of texts, got {type(expressions).__name__}")
    return list(expressions)


def as_expressions(expressions: str | Expression | Sequence[str | Expression]) -> list[Expression]:
    """One or many, text or Expression, as a list of Expressions. Raises DeixisError when there is none."""
    many = as_list(expressions)
    if not many:
        raise DeixisError("at least one expression is needed; say what to look for")
    return [e if isinstance(e, Expression) else Expression(e) for e in many]


def as_read(given: Sequence[str | Expression], expressions: Sequence[Expression]) -> list[Expression]:
    """What the model reads: of text that a person typed the phrase alone; an Expression as it stands."""
    return [
        replace(e, text=plain(e.text)) if isinstance(typed, str) else e
        for typed, e in zip(given, expressions, strict=True)
    ]
