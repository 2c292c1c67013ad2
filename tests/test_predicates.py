"""A sentence is used only if it is true of the stated things and definitely false of all others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deixis.synthetic.colours import COLOUR_NAMES, colour_shares
from deixis.synthetic.predicates import FALSE, TRUE, UNCERTAIN, Predicates
from deixis.synthetic.scene import Scene, Thing
from deixis.synthetic.sentences import SentenceMix, SentenceSampler, fill
from deixis.synthetic.vocabulary import COCO_NAMES, NOUNS, plural

T = 8


def thing(
    name: str,
    at: tuple[float, float] = (0.5, 0.5),
    to: tuple[float, float] | None = None,
    colour: str = "red",
    share: float = 0.02,
    grows: float = 1.0,
    camera: tuple[float, float] = (0.0, 0.0),
    known: bool = True,
    **rest: object,
) -> Thing:
    """A thing that goes straight from ``at`` to ``to`` (shares of a square picture) in T frames."""
    s = np.linspace(0, 1, T)[:, None]
    world = np.array(at) + (np.array(to or at) - np.array(at)) * s
    path = world + np.array(camera) * s
    scale = grows ** s[:, 0]
    certain = np.array([0.9 if c == colour else 0.0 for c in COLOUR_NAMES])
    return Thing(
        NOUNS[name], share * scale**2, path, path / np.sqrt(2), world / np.sqrt(2) if known else None,
        scale, scale if known else None, certain, certain, **rest,
    )  # fmt: skip


def judge(*things: Thing, **scene: object) -> Predicates:
    return Predicates(Scene(things, fixed=True, **scene))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rgb", "certain"),
    [
        ((200, 20, 20), "red"), ((15, 15, 15), "black"), ((250, 250, 250), "white"), ((128, 128, 128), "grey"),
        ((30, 80, 210), "blue"), ((30, 160, 60), "green"), ((240, 220, 40), "yellow"), ((245, 130, 10), "orange"),
        ((145, 40, 200), "purple"), ((245, 130, 180), "pink"), ((120, 72, 38), "brown"),
    ],
)  # fmt: skip
def test_a_clear_colour_is_certain_and_its_opposites_are_ruled_out(rgb: tuple[int, int, int], certain: str) -> None:
    sure, perhaps = colour_shares(np.full((50, 3), rgb, np.uint8))
    assert [c for c, share in zip(COLOUR_NAMES, sure, strict=True) if share > 0.5] == [certain]
    opposite = {"red": "green", "green": "red", "blue": "orange", "black": "white", "white": "black", "yellow": "blue"}
    assert perhaps[COLOUR_NAMES.index(opposite.get(certain, "green"))] == 0


@pytest.mark.parametrize("rgb", [(200, 160, 130), (90, 60, 70), (100, 140, 140), (70, 70, 70), (215, 84, 40)])
def test_a_colour_between_two_names_is_certainly_neither(rgb: tuple[int, int, int]) -> None:
    sure, perhaps = colour_shares(np.full((50, 3), rgb, np.uint8))
    assert not sure.any()
    assert perhaps.any()


def test_a_doubtful_noun_is_neither_true_nor_false() -> None:
    named = judge(thing("car"), thing("truck"), thing("dog")).named
    assert named("car").tolist() == [TRUE, UNCERTAIN, FALSE]
    assert named("vehicle").tolist() == [TRUE, TRUE, FALSE]
    assert named("poodle").tolist() == [FALSE, FALSE, UNCERTAIN]
    assert named("cat").tolist() == [FALSE, FALSE, FALSE]


def test_doubt_goes_both_ways() -> None:
    for noun in NOUNS.values():
        for word in (set(noun.true) | noun.maybe) & set(NOUNS):
            assert noun.name in NOUNS[word].true or noun.name in NOUNS[word].maybe, (noun.name, word)


def test_what_may_stand_there_without_a_label_is_not_spoken_of() -> None:
    scene = judge(thing("dog"), open_classes=frozenset({"cup"}))
    assert scene.closed("cat")
    assert not scene.closed("cup")
    assert not scene.closed("mug"), "a mug may be a cup"
    assert not scene.closed("tree"), "trees stand everywhere"


def test_leftmost_needs_a_margin_in_every_frame() -> None:
    clear = judge(thing("cup", (0.2, 0.5)), thing("cup", (0.7, 0.5)), thing("dog", (0.05, 0.5)))
    assert clear.placed("cup", "left").tolist() == [TRUE, FALSE, FALSE]
    near = judge(thing("cup", (0.48, 0.5)), thing("cup", (0.52, 0.5)))
    assert near.placed("cup", "left").tolist() == [UNCERTAIN, UNCERTAIN]
    crossing = judge(thing("cup", (0.2, 0.5), (0.9, 0.5)), thing("cup", (0.6, 0.5)))
    assert UNCERTAIN in crossing.placed("cup", "left")


def test_a_doubtful_rival_spoils_a_comparison() -> None:
    scene = judge(thing("car", (0.2, 0.5)), thing("truck", (0.7, 0.5)))
    assert UNCERTAIN in scene.placed("car", "left")


def test_the_middle_one_of_three_is_between_the_others() -> None:
    scene = judge(thing("cup", (0.8, 0.5)), thing("cup", (0.5, 0.2)), thing("cup", (0.2, 0.5)))
    assert scene.placed("cup", "middle").tolist() == [FALSE, TRUE, FALSE]
    two = judge(thing("cup", (0.8, 0.5)), thing("cup", (0.5, 0.2)))
    assert TRUE not in two.placed("cup", "middle")


def test_the_largest_is_larger_by_far() -> None:
    assert judge(thing("cup", share=0.05), thing("cup", share=0.02)).sized("cup", "largest").tolist() == [TRUE, FALSE]
    assert TRUE not in judge(thing("cup", share=0.025), thing("cup", share=0.02)).sized("cup", "largest")


@pytest.mark.parametrize(
    ("motion", "to", "grows", "answer"),
    [
        ("right", (0.7, 0.5), 1.0, TRUE), ("right", (0.3, 0.5), 1.0, FALSE), ("right", (0.5, 0.5), 1.0, FALSE),
        ("right", (0.55, 0.5), 1.0, UNCERTAIN), ("right", (0.6, 0.7), 1.0, UNCERTAIN), ("up", (0.5, 0.3), 1.0, TRUE),
        ("down", (0.5, 0.3), 1.0, FALSE), ("still", (0.5, 0.5), 1.0, TRUE), ("still", (0.7, 0.5), 1.0, FALSE),
        ("still", (0.52, 0.5), 1.0, UNCERTAIN), ("still", (0.5, 0.5), 1.5, UNCERTAIN),
        ("moving", (0.7, 0.5), 1.0, TRUE),
        ("closer", (0.5, 0.5), 1.5, TRUE), ("closer", (0.5, 0.5), 1.15, UNCERTAIN), ("closer", (0.5, 0.5), 0.7, FALSE),
        ("away", (0.5, 0.5), 0.7, TRUE), ("turns", (0.9, 0.5), 1.0, FALSE),
    ],
)  # fmt: skip
def test_motion_words_have_a_wide_zone_of_doubt(
    motion: str, to: tuple[float, float], grows: float, answer: int
) -> None:
    assert judge(thing("dog", (0.5, 0.5), to, grows=grows)).moved(motion).tolist() == [answer]


def test_a_moving_camera_makes_motion_doubtful_unless_picture_and_world_agree() -> None:
    still_but_panned = thing("dog", (0.5, 0.5), camera=(-0.3, 0.0))
    assert judge(still_but_panned).moved("left").tolist() == [UNCERTAIN]
    both = thing("dog", (0.8, 0.5), (0.4, 0.5), camera=(-0.2, 0.0))
    assert judge(both).moved("left").tolist() == [TRUE]
    filmed = thing("dog", (0.8, 0.5), (0.4, 0.5), known=False)
    assert judge(filmed).moved("left").tolist() == [UNCERTAIN]


def test_turning_is_a_bend_of_the_path() -> None:
    s = np.linspace(0, 1, T)
    corner = np.stack([np.minimum(s, 0.5), np.maximum(s - 0.5, 0)], axis=1) * 0.6
    turned = replace(thing("dog"), path=corner, world=corner)
    assert judge(turned, thing("dog", (0.1, 0.1), (0.9, 0.1))).moved("turns").tolist() == [TRUE, FALSE]


def test_the_faster_one_covers_clearly_more_way() -> None:
    slow, fast = thing("dog", (0.2, 0.2), (0.3, 0.2)), thing("dog", (0.2, 0.8), (0.8, 0.8))
    assert judge(slow, fast).fastest("dog").tolist() == [FALSE, TRUE]
    assert TRUE not in judge(slow, thing("dog", (0.2, 0.8), (0.33, 0.8))).fastest("dog")


@pytest.mark.parametrize(
    ("event", "inside", "answer"),
    [
        ("enters", [0, 0, 0.3, 0.8, 1, 1, 1, 1], TRUE), ("enters", [1] * 8, FALSE), ("leaves", [1] * 8, FALSE),
        ("leaves", [1, 1, 1, 0.8, 0.3, 0, 0, 0], TRUE), ("enters", [0.4, 0.5, 0.6, 0.8, 1, 1, 1, 1], UNCERTAIN),
    ],
)  # fmt: skip
def test_entering_and_leaving_follow_from_the_share_within_the_picture(
    event: str, inside: list[float], answer: int
) -> None:
    assert judge(thing("dog", inside=np.array(inside, float))).timed(event).tolist() == [answer]
    assert judge(thing("dog")).timed(event).tolist() == [UNCERTAIN], "nothing known of the edges"


def test_the_one_that_stops_moved_before_and_stands_at_the_end() -> None:
    s = np.minimum(np.linspace(0, 2, T), 1)[:, None]
    path = np.array([0.1, 0.5]) + np.array([0.5, 0.0]) * s
    stops = replace(thing("dog", inside=np.ones(T)), path=path, world=path)
    goes = thing("dog", (0.1, 0.2), (0.8, 0.2), inside=np.ones(T))
    stands = thing("dog", inside=np.ones(T))
    assert judge(stops, goes, stands).timed("stops").tolist() == [TRUE, FALSE, FALSE]
    backwards = replace(stops, path=path[::-1], world=path[::-1])
    assert judge(backwards, goes).timed("starts").tolist() == [TRUE, FALSE]


def test_behind_and_in_front_follow_from_what_hides_what() -> None:
    hidden = np.array([[0.0, 0.4, 0.0], [0.0, 0.0, 0.0], [0.0, 0.05, 0.0]])
    scene = judge(thing("dog"), thing("car"), thing("cup"), hidden=hidden)
    assert scene.related("behind", 1).tolist() == [TRUE, FALSE, UNCERTAIN]
    assert scene.related("before", 0).tolist() == [FALSE, TRUE, FALSE]
    assert judge(thing("dog"), thing("car")).related("behind", 1).tolist() == [UNCERTAIN, FALSE], "depth not known"


def test_a_follower_goes_the_same_way_behind_the_other() -> None:
    leader, follower = thing("dog", (0.4, 0.5), (0.8, 0.5)), thing("cat", (0.2, 0.5), (0.6, 0.5))
    scene = judge(leader, follower, thing("cup", (0.5, 0.9)), thing("bird", (0.9, 0.5), (0.4, 0.5)))
    assert scene.related("follows", 0).tolist() == [FALSE, TRUE, FALSE, FALSE]


def writer(scene: Predicates, seed: int = 0) -> SentenceSampler:
    return SentenceSampler(scene, np.random.default_rng(seed))


def test_no_sentence_singles_out_one_of_two_that_are_alike() -> None:
    scene = judge(thing("dog", (0.5, 0.5)), thing("dog", (0.5, 0.52)))
    for seed in range(20):
        sentences = writer(scene, seed).draw(SentenceMix(count=20))
        assert all(len(s.objects) != 1 for s in sentences), sentences


def test_too_small_or_doubtful_things_are_never_referred_to_but_still_count_as_rivals() -> None:
    scene = judge(thing("dog", (0.2, 0.5)), thing("dog", (0.8, 0.5), share=0.001))
    for seed in range(10):
        for sentence in writer(scene, seed).draw(SentenceMix(count=20)):
            assert 1 not in sentence.objects
            assert sentence.kind not in ("class", "several"), sentence


def test_what_is_said_to_be_absent_is_false_of_everything() -> None:
    scene = judge(thing("dog", (0.2, 0.5), colour="black"), thing("car", (0.8, 0.5), colour="blue"))
    words = {word for name in ("dog", "car") for word in (*NOUNS[name].true, *NOUNS[name].maybe)}
    seen = 0
    for seed in range(60):
        for sentence in writer(scene, seed).draw(SentenceMix(count=12)):
            if sentence.kind == "none":
                seen += 1
                text = sentence.text
                named = [w for w in words if f" {w} " in f" {text} "]
                coloured = [c for c in COLOUR_NAMES if c in text.replace("gray", "grey")]
                wrong_colour = bool(coloured) and coloured[0] not in ("black", "blue")
                black_car = any(c == "black" for c in coloured) and "dog" not in text and "canine" not in text
                blue_dog = any(c == "blue" for c in coloured) and "car" not in text and "auto" not in text
                motion = any(
                    w in text
                    for w in ("mov", "go", "com", "turn", "head", "motion", "ris", "sink", "get", "chang", "appr")
                )
                assert not named or wrong_colour or black_car or blue_dog or motion, text
    assert seen > 60


def test_kinds_come_in_the_asked_shares_and_texts_do_not_repeat() -> None:
    scene = judge(
        thing("dog", (0.2, 0.3), colour="black"), thing("dog", (0.8, 0.5), colour="white"),
        thing("cup", (0.5, 0.8), colour="blue"),
    )  # fmt: skip
    mix = SentenceMix(count=6, weights=(("colour", 0.5), ("place", 0.5)))
    drawn = [s for seed in range(40) for s in writer(scene, seed).draw(mix)]
    kinds = {s.kind for s in drawn}
    assert kinds == {"colour", "place"}
    for seed in range(10):
        texts = [s.text for s in writer(scene, seed).draw(SentenceMix(count=20))]
        assert len(texts) == len(set(texts))


@pytest.mark.parametrize(
    ("template", "noun", "colour", "text"),
    [
        ("a {}", "apple", "", "an apple"), ("a {}", "dog", "", "a dog"), ("a {}", "skis", "", "skis"),
        ("a {c} {}", "dog", "orange", "an orange dog"), ("a {c} {}", "scissors", "red", "red scissors"),
        ("{a} going left", "umbrella", "", "an umbrella going left"), ("there is a {}", "oven", "", "there is an oven"),
        ("{a} in motion", "one", "", "the one in motion"), ("the {} that is {c}", "cup", "red", "the cup that is red"),
        ("a {} in the video", "unicorn", "", "a unicorn in the video"),
    ],
)  # fmt: skip
def test_articles_fit_the_word_that_follows(template: str, noun: str, colour: str, text: str) -> None:
    assert fill(template, noun, colour) == text


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("person", "people"),
        ("bus", "buses"),
        ("knife", "knives"),
        ("sheep", "sheep"),
        ("cherry", "cherries"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_every_class_has_a_name_and_no_word_is_both_certain_and_doubtful() -> None:
    assert len(COCO_NAMES) == 80
    for noun in NOUNS.values():
        assert noun.true[0] == noun.name
        assert not set(noun.true) & noun.maybe, noun
