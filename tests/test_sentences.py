"""Sentences as people type them: what is unwrapped, what is left alone, and what is remarked on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.films import Colours, colours, moving, write_folder
from PIL import ImageFont

from deixis.inference import remarks_on, segment
from deixis.linking import Presence
from deixis.sentences import names_several, plain, remarks
from deixis.types import DeixisError, Expression, MaskTrack, RleMasks, encode_rle
from deixis.verdicts import TrackSummary
from deixis.video import Video
from deixis.writers import Output, lettering, read_rle, write
from deixis.writers.lettering import FONT, font_of, legible
from deixis.writers.overlay import Label

UNWRAPPED = {
    "Where is the woman in the black dress?": "the woman in the black dress",
    "please segment the woman who walks": "the woman who walks",
    "Can you find the red car for me?": "the red car",
    "hey, could you highlight the elephant please?": "the elephant",
    "show me a dog": "a dog",
    "Show the black swan in the video.": "the black swan",
    "track the car": "the car",
    "which person is walking?": "the person that is walking",
    "Who is wearing a black dress?": "the person wearing a black dress",
    "What is moving?": "the thing moving",
    "Is there a dog in this video?": "a dog",
    "I'm looking for the man with a hat": "the man with a hat",
    "I want the dog": "the dog",
    "give me the mask of the cat": "the cat",
    "Please show me where the dog is": "the dog",
    "find dog": "dog",
    "Where's my phone?": "my phone",
    "select all cars": "all cars",
    '"a dog".': "a dog",
    "the woman.": "the woman",
}
LEFT_ALONE = [
    "show dog",
    "the show dog",
    "track on the left",
    "mask on the face",
    "the mask on the face",
    "the man who shows the dog",
    "the person who is not walking",
    "thewoman",
    "wman in blak dress",
    "A WOMAN IN A BLACK DRESS",
    "please",
    "Segment",
    "the woman in the picture frame",
    "the third dog from the left",
    "the car that the man is looking for",
    "?",
    "what",
    "the person who can find the ball",
    "player no. 7",
]


@pytest.mark.parametrize("typed", UNWRAPPED)
def test_questions_and_requests_are_unwrapped(typed: str) -> None:
    assert plain(typed) == UNWRAPPED[typed]
    if typed.strip('".').casefold() != UNWRAPPED[typed].casefold() and not typed.endswith("."):
        assert f'read as "{UNWRAPPED[typed]}"' in remarks(typed)[0]


@pytest.mark.parametrize("typed", LEFT_ALONE)
def test_what_names_an_object_is_left_alone(typed: str) -> None:
    assert plain(typed) == typed
    assert not [line for line in remarks(typed) if "read as" in line]


@pytest.mark.parametrize(
    ("typed", "word"),
    [
        ("the person who is not walking", "not"),
        ("the woman without a backpack", "without"),
        ("no woman", "no"),
        ("the bird that doesn't fly", "doesn't"),
        ("everyone except the man", "except"),
        ("a dog, never a cat", "never"),
    ],
)
def test_a_negation_is_remarked_on(typed: str, word: str) -> None:
    assert any(f'the negation ("{word}") is not obeyed' in line for line in remarks(typed))


@pytest.mark.parametrize("typed", ["player no. 7", "the knot", "a notebook", "the north side", "nobleman"])
def test_what_looks_like_a_negation_is_none(typed: str) -> None:
    assert not [line for line in remarks(typed) if "negation" in line]


@pytest.mark.parametrize(
    "typed",
    [
        "the two women",
        "the dogs",
        "2 cats",
        "people on the bench",
        "all cars",
        "the man and the dog",
        "both of them",
        "everything",
        "three dogs that run",
        "the children",
    ],
)
def test_several_objects_are_remarked_on_unless_the_model_shows_several(typed: str) -> None:
    assert names_several(typed)
    assert any("names several objects" in line for line in remarks(typed))
    assert not [line for line in remarks(typed, several=True) if "several" in line]


@pytest.mark.parametrize(
    "typed",
    [
        "the woman in black jeans",
        "a man with glasses",
        "the bus",
        "a black and white dog",
        "the dress",
        "number 7",
        "the third dog from the left",
        "the man with a dog and a hat",
        "a pair of shoes",
        "the sheep",
        "the lens",
        "the bench",
        "a person wearing all black",
        "the man who walks",
    ],
)
def test_one_object_is_not_taken_for_several(typed: str) -> None:
    assert not names_several(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "穿黑裙子的女人",
        "ein brauner Hund",
        "el perro",
        "un chien marron",
        "le chat noir",
        "собака",
        "o cachorro",
        "犬",
        "die Frau",
        "il cane nero",
        "de hond",
        "kvinnan i rött",
        "τὸ σκυλί",
        "المرأة",
        "여자",
        "het meisje",
    ],
)
def test_another_language_is_remarked_on_where_the_model_knows_english_only(typed: str) -> None:
    assert "this model knows English only" in remarks(typed)[-1]
    assert remarks(typed, language=None) == []
    assert remarks_on([typed], "light")
    assert remarks_on([typed], "light_debug") == []


@pytest.mark.parametrize(
    "typed",
    [
        "a café table",
        "the man next to the piñata",
        "woman é",
        "man",
        "bench",
        "she",
        "kayak",
        "thewoman",
        "a jalapeño",
        "Der Spiegel on the table",
        "the woman in the sari",
        "wman in blak dress",
        "señor with hat",
    ],
)
def test_english_with_a_foreign_word_is_english(typed: str) -> None:
    assert not [line for line in remarks(typed) if "English" in line]


def test_the_model_reads_the_phrase_and_results_carry_what_was_typed(tmp_path: Path) -> None:
    read: list[str] = []

    class Listening(Colours):
        def decode(self, maps, expressions, wanted=None):
            read.extend(e.text for e in expressions)
            return super().decode(maps, expressions, wanted)

    film = Video(write_folder(tmp_path / "f", moving(3)))
    tracks = segment(
        film, ["Where is the red one?", Expression("Where is the red one?")], model=Listening(colours().config)
    )
    assert read == ["the red one", "Where is the red one?"]  # an Expression is taken as it stands, as benchmarks need
    assert [t.expression.text for t in tracks] == ["Where is the red one?"] * 2


# --- the verdict ------------------------------------------------------------------------------------------------------


def track(presence: float, threshold: float | None, filled: bool = False, sure: float | None = None) -> MaskTrack:
    masks = RleMasks([encode_rle(np.full((4, 4), filled))] * 2, (4, 4))
    scores = np.zeros(2, np.float32)
    return MaskTrack(Expression("she"), masks, scores, presence, ["0", "1"], [0.0, 0.5], threshold, sure)


@pytest.mark.parametrize(
    ("presence", "threshold", "line"),
    [
        (0.75, 0.76, "she: not there (presence 0.75, below 0.76)"),
        (0.7574, 0.76, "she: not there (presence 0.757, below 0.76)"),
        (0.75996, 0.76, "she: not there (presence 0.75996, below 0.76)"),
        (0.1, 0.5, "she: not there (presence 0.10, below 0.5)"),
        (0.71, 0.9999, "she: not there (presence 0.7100, below 0.9999)"),
        (0.88, 0.5, "she: not there (presence 0.88, but no pixel of it is marked)"),
        (0.88, None, "she: not there (presence 0.88)"),
    ],
)
def test_the_verdict_names_the_threshold(presence: float, threshold: float | None, line: str) -> None:
    assert str(TrackSummary.of(track(presence, threshold))) == line


def test_the_verdict_of_what_is_there() -> None:
    found = TrackSummary.of(track(0.9, 0.5, filled=True))
    assert str(found) == "she: there (presence 0.90), 0.0 to 0.5 s, 100.0 % of the picture"
    assert json.loads(json.dumps(found.facts()))["frames"] == 2
    assert found.facts()["verdict"] == "there"


def test_what_is_shown_below_the_sure_bound_is_called_a_guess() -> None:
    found = TrackSummary.of(track(0.949, 0.85, filled=True, sure=0.95))
    why = "a guess is shown; presence 0.949, below 0.95"
    assert str(found) == f"she: unsure ({why}), 0.0 to 0.5 s, 100.0 % of the picture"
    assert (found.facts()["verdict"], found.facts()["sure"], found.facts()["present"]) == ("unsure", 0.95, True)


@pytest.mark.parametrize(
    ("presence", "filled", "sure", "word"),
    [
        (0.95, True, 0.95, "there"),
        (0.94, True, 0.95, "unsure"),
        (0.94, True, None, "there"),  # a model that states no bound has two words
        (0.94, False, 0.95, "not there"),
        (0.99, False, 0.95, "not there"),
    ],
)
def test_the_verdict_is_one_of_three_words(presence: float, filled: bool, sure: float | None, word: str) -> None:
    assert track(presence, 0.85, filled, sure).verdict == word


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0, float("nan")])
def test_a_sure_bound_that_is_no_probability_is_refused(bound: float) -> None:
    with pytest.raises(DeixisError, match="sure"):
        Presence(sure=bound)


@pytest.mark.parametrize("selection", ["official", "linked"])
def test_a_guess_is_marked_wherever_its_words_stand(tmp_path: Path, selection: str) -> None:
    film = Video(write_folder(tmp_path / "f", moving(3)))
    presence = segment(film, ["red"], model=colours(), selection=selection)[0].presence
    words = ["red", "a blue one"]
    unsure = Colours(replace(colours().config, presence_sure=presence + 0.001))
    tracks = segment(film, words, model=unsure, selection=selection)
    assert [t.verdict for t in tracks] == ["unsure", "not there"]
    with Output(tmp_path / "out") as output:
        write(output, film, tracks, ["rle"], model={"name": "x"})
    again = read_rle(tmp_path / "out" / "masks.json")
    assert [t.verdict for t in again] == ["unsure", "not there"]
    found = json.loads((tmp_path / "out" / "masks.json").read_text())["tracks"]
    assert [(t["verdict"], t["present"]) for t in found] == [("unsure", True), ("not there", False)]


def test_the_overlay_says_that_it_shows_a_guess() -> None:
    sure, guess = (Label("red", 0, (255, 0, 0), (360, 640), note) for note in ("", " (a guess)"))
    assert guess._patch.shape[1] > 2 * sure._patch.shape[1]
    wide = Label("red " * 100, 0, (255, 0, 0), (120, 160), " (a guess)")  # the words are cut, the note is not
    cut = Label("red " * 100, 0, (255, 0, 0), (120, 160))
    assert wide._patch.shape[1] <= 160
    assert not np.array_equal(wide._patch[:, -20:], cut._patch[:, -20:])


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["woman é ü ñ ø ß", "собака", "ἄνθρωπος", "γυναίκα", "Łódź", "naïve “quotes” – …", "שלום", "სახლი"]
)
def test_latin_greek_and_cyrillic_labels_need_no_font_of_the_system(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(lettering, "system_fonts", lambda: ())
    font_of.cache_clear()
    words, font = legible(text, 0, 20)
    assert (words, Path(font.path)) == (text, FONT)
    font_of.cache_clear()


def test_letters_that_no_font_has_become_the_number_and_signs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "system_fonts", lambda: ())
    font_of.cache_clear()
    assert legible("穿黑裙子的女人", 1, 20)[0] == "#2"
    assert legible("हिन्दी", 0, 20)[0] == "#1"
    assert legible("the dog 🐕", 0, 20)[0] == "the dog"
    assert legible("🐕", 2, 20)[0] == "#3"
    font_of.cache_clear()


def test_other_scripts_are_written_in_a_font_of_the_system_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "LastResort.ttf").write_bytes(FONT.read_bytes())
    other = tmp_path / "other.ttf"
    other.write_bytes(FONT.read_bytes())
    monkeypatch.setattr(lettering, "FONT", tmp_path / "nothing.ttf")
    monkeypatch.setattr(lettering, "font_folders", lambda: [tmp_path])
    lettering.system_fonts.cache_clear()
    font_of.cache_clear()
    assert font_of("собак") == other
    lettering.system_fonts.cache_clear()
    font_of.cache_clear()


def test_no_letter_of_the_package_font_is_a_box() -> None:
    face = ImageFont.truetype(str(FONT), 16)
    box = lettering.drawn(face, lettering.ABSENT)
    letters = [
        chr(c)
        for block in ((0x21, 0x7F), (0xC0, 0x180), (0x391, 0x3A2), (0x3B1, 0x3CA), (0x410, 0x450))
        for c in range(*block)
    ]
    assert [c for c in letters if lettering.drawn(face, c) == box] == []


def test_labels_of_every_script_are_drawn_on_overlay_and_sheet(tmp_path: Path) -> None:
    film = Video(write_folder(tmp_path / "f", moving(2)))
    words = ["red 穿黑裙子的女人", "red собака", "red 🐕", "red é"]
    with Output(tmp_path / "out") as output:
        write(output, film, segment(film, words, model=colours()), ["overlay", "png"], model={"name": "x"})
    assert [p.name for p in sorted((tmp_path / "out" / "masks").iterdir())][:2] == [
        "00_red_穿黑裙子的女人",
        "01_red_собака",
    ]
