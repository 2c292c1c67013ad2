"""The tools that make the bundled model's training data: what can be checked without the data itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from deixis.training.views import view_of

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(autouse=True)
def tools_on_the_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])


def corners(affine, height, width):
    points = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], float).T
    return affine @ points


@pytest.mark.parametrize("size", [(256, 341), (480, 270), (208, 500), (100, 100)])
def test_view_0_is_the_whole_picture_at_a_size_of_the_model(size):
    affine, shape = view_of(size, 0, "images/a.jpg", 320)
    assert min(shape) == 320
    assert all(side % 32 == 0 for side in shape)
    np.testing.assert_allclose(corners(affine, *size).max(1), shape[::-1])
    np.testing.assert_allclose(corners(affine, *size).min(1), 0)


@pytest.mark.parametrize("number", range(1, 7))
def test_other_views_are_crops_and_the_odd_ones_are_mirrored(number):
    affine, shape = view_of((256, 341), number, "images/a.jpg", 320)
    found = corners(affine, 256, 341)
    assert (affine[0, 0] < 0) == (number % 2 == 1)
    assert (found.min(1) <= 1e-6).all()
    assert (found.max(1) >= np.array(shape[::-1]) - 1e-6).all()  # the view holds nothing but picture
    again, _ = view_of((256, 341), number, "images/a.jpg", 320)
    np.testing.assert_array_equal(affine, again)


def test_a_teachers_mask_that_repeats_a_true_one_or_is_a_part_of_it_is_dropped():
    pytest.importorskip("ncnn", reason="the teachers' runtimes are not installed")
    pytest.importorskip("ai_edge_litert", reason="the teachers' runtimes are not installed")
    from data_engine import Found, without_repeats

    def found(top, left, bottom, right, name="dog"):
        mask = np.zeros((100, 100), bool)
        mask[top:bottom, left:right] = True
        return Found(mask, {"score": 0.5, "overlap": 0.9, "names": {"nanodet": [[name, 0.5]] if name else []}})

    truth = [found(10, 10, 50, 50)]
    same, part, new, tiny = found(12, 10, 50, 52), found(20, 20, 40, 40), found(60, 60, 90, 90), found(0, 0, 3, 3)
    assert without_repeats(truth, [same, part, new, tiny]) == [new]


def test_an_object_of_a_film_keeps_its_number_and_a_new_one_gets_another():
    pytest.importorskip("ncnn", reason="the teachers' runtimes are not installed")
    pytest.importorskip("ai_edge_litert", reason="the teachers' runtimes are not installed")
    from data_engine import Found, follow

    def at(left):
        mask = np.zeros((20, 60), bool)
        mask[5:15, left : left + 10] = True
        return Found(mask, {})

    tracks: dict[int, np.ndarray] = {}
    frames = [[at(0), at(40)], [at(42), at(2)], [at(4), at(20)]]
    for objects in frames:
        follow(tracks, objects)
    assert [o.facts["track"] for objects in frames for o in objects] == [2, 3, 3, 2, 2, 4]


def test_a_typed_phrase_is_used_where_something_sets_its_target_apart(tmp_path):
    from make_tokens import typed_scenes

    def row(text, *items):
        rows = [{"image": f"images/{name}.webp", **({"size": size} if size else {})} for name, size in items]
        return {"expression": text, "target": rows[0], "distractors": rows[1:]}

    names = ("belt", "cup", "lamp")
    (tmp_path / "index.json").write_text(
        json.dumps({"images": [{"image": f"images/{n}.webp", "class": n} for n in names]})
    )
    rows = [
        row("the belt", ("belt", ""), ("cup", "")), row("belt", ("belt", ""), ("cup", "")),
        row("small one", ("lamp", "small"), ("lamp", "big")),
        row("lamp", ("lamp", ""), ("lamp", "")),
        row("either", ("lamp", "big"), ("lamp", "big")),
    ]  # fmt: skip
    (tmp_path / "expressions.json").write_text(json.dumps({"expressions": rows}))
    found = {scene.texts: scene for scene in typed_scenes(tmp_path)}
    assert set(found) == {("the belt", "belt"), ("small one",)}
    belt = found[("the belt", "belt")]
    assert belt.items[0] == ("images/belt.webp", "")
    assert [belt.may_be(name) for name in ("black belt", "cup", "lamp")] == [True, True, False]
