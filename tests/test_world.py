"""Generated films: the same for a seed; exact masks and flow; sentences that the masks bear out; held-out splits."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.tiny_pictures import ABSENT_VIDEO, write_pictures
from pycocotools import mask as coco
from typer.testing import CliRunner

from deixis.cli import app
from deixis.synthetic.colours import COLOUR_NAMES
from deixis.synthetic.cutouts import HELD_OUT_VIDEOS, Library, held_out
from deixis.synthetic.mixture import Mixture, MixtureConfig, composites, davis, long_films, stills, twins
from deixis.synthetic.scene import KINDS, SyntheticVideo
from deixis.synthetic.shapes import HELD_OUT_SHAPES, PAINTS, held_out_pair
from deixis.synthetic.vocabulary import SHAPES
from deixis.synthetic.world import SPLITS, World, films_per_split, write_mevis
from deixis.synthetic.world_config import WorldConfig
from deixis.types import DeixisError

SMALL = WorldConfig(size=(96, 160), frames=9)


@pytest.fixture(scope="module")
def films() -> dict[str, list[SyntheticVideo]]:
    return {split: [World(split, SMALL).film(seed) for seed in range(24)] for split in SPLITS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def digest(film: SyntheticVideo) -> str:
    parts = (film.frames.tobytes(), film.masks.tobytes(), repr(film.sentences).encode())
    return hashlib.sha1(b"".join(parts)).hexdigest()


# ---- films of drawn shapes


@pytest.mark.slow
def test_a_film_is_the_same_in_another_process(films: dict[str, list[SyntheticVideo]]) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_world import *;"
        "print(digest(World('train', SMALL).film(3)), digest(World('valid', SMALL).film(4)))"
    )
    root = Path(__file__).parents[1]
    env = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root / "src")}
    out = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [digest(films["train"][3]), digest(films["valid"][4])]


@pytest.mark.slow
def test_films_have_the_promised_shapes_and_sentences(films: dict[str, list[SyntheticVideo]]) -> None:
    seen = set()
    for film in (f for split in films.values() for f in split):
        t, n, h, w = film.masks.shape
        assert film.frames.shape == (t, h, w, 3) == (9, 96, 160, 3)
        assert film.flow is not None
        assert film.flow.shape == (8, 96, 160, 2)
        assert (len(film.classes), len(film.times)) == (n, t)
        assert not (film.masks.sum(axis=1) > 1).any(), "visible masks do not overlap"
        assert film.sentences
        for s in film.sentences:
            seen.add(s.kind)
            assert s.kind in KINDS
            assert (s.objects == ()) == (s.kind == "none")
            assert len(set(s.objects)) == len(s.objects)
            assert all(0 <= i < n for i in s.objects)
            assert all(film.masks[:, i].any() for i in s.objects)
    assert seen >= {"class", "colour", "texture", "size", "place", "motion", "time", "relation", "several", "none"}


@pytest.mark.slow
def test_masks_cover_what_was_painted(films: dict[str, list[SyntheticVideo]]) -> None:
    for film in films["train"][:10]:
        for s in film.sentences:
            colour = next((c for c in COLOUR_NAMES if c in s.text.split()), None)
            if s.kind == "colour" and colour is not None:
                pixels = film.frames[film.masks[:, s.objects[0]]].astype(np.float32)
                mean, paint = pixels.mean(axis=0), np.array(PAINTS[colour], float)
                others = {c: np.abs(mean - p).sum() for c, p in PAINTS.items()}
                assert np.abs(np.median(pixels, axis=0) - paint).sum() < 120
                assert sorted(others, key=others.get).index(colour) <= 2  # type: ignore[arg-type]


def named(film: SyntheticVideo, text: str) -> list[int]:
    """Objects whose class a sentence's noun names, as read from the classes alone; all for object, thing and one."""
    words = text.replace("-", " ").split()
    if any(w in words for w in ("object", "thing", "one", "shape")):
        return list(range(len(film.classes)))
    classes = [
        n.name for n in SHAPES.values() if any(f" {w} " in f" {' '.join(words)} " for w in n.true if w != "shape")
    ]
    return [i for i, c in enumerate(film.classes) if c in classes]


def centroid(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)[::-1]


def test_place_sentences_are_borne_out_by_the_masks(films: dict[str, list[SyntheticVideo]]) -> None:
    checked = 0
    for film in (f for split in films.values() for f in split):
        for s in film.sentences:
            side = next(
                (
                    w
                    for w in ("left", "right", "upper", "topmost", "highest", "top")
                    if w in s.text.replace("most", "").split()
                ),
                None,
            )
            if s.kind != "place" or side is None:
                continue
            axis, sign = (0, 1) if side == "left" else (0, -1) if side == "right" else (1, 1)
            rivals = [i for i in named(film, s.text) if i != s.objects[0]]
            assert rivals
            for t in range(len(film.frames)):
                if film.masks[t, s.objects[0]].any():
                    mine = centroid(film.masks[t, s.objects[0]])[axis] * sign
                    assert all(mine < centroid(film.masks[t, i])[axis] * sign for i in rivals if film.masks[t, i].any())
                    checked += 1
    assert checked > 100


def test_motion_sentences_are_borne_out_by_the_masks(films: dict[str, list[SyntheticVideo]]) -> None:
    checked = 0
    for film in (f for split in films.values() for f in split):
        for s in film.sentences:
            way = next((w for w in ("left", "right") if w in s.text.split()), None)
            if s.kind != "motion" or way is None:
                continue
            seen = [t for t in range(len(film.frames)) if film.masks[t, s.objects[0]].any()]
            start, end = (centroid(film.masks[t, s.objects[0]])[0] for t in (seen[0], seen[-1]))
            assert (end < start) == (way == "left"), (film.name, s)
            checked += 1
    assert checked > 10


def test_time_sentences_are_borne_out_by_the_masks(films: dict[str, list[SyntheticVideo]]) -> None:
    enters = leaves = 0
    for film in (f for split in films.values() for f in split):
        areas = film.masks.sum(axis=(2, 3))
        for s in film.sentences:
            if s.kind == "time" and any(w in s.text for w in ("enters", "coming into", "comes in", " appears")):
                assert areas[0, s.objects[0]] == 0
                enters += 1
            if s.kind == "time" and any(w in s.text for w in ("leaves", "going out", "disappears")):
                assert areas[-1, s.objects[0]] == 0
                leaves += 1
    assert min(enters, leaves) > 3


def test_what_is_named_but_absent_is_no_class_of_the_film_or_wrong_in_colour_motion_or_time(
    films: dict[str, list[SyntheticVideo]],
) -> None:
    plain = 0
    for film in (f for split in films.values() for f in split):
        for s in film.sentences:
            words = s.text.split()
            if s.kind == "none" and words[0] in ("a", "an", "the", "there") and len(words) <= 2:
                assert not named(film, s.text), (film.name, s.text, film.classes)
                plain += 1
    assert plain > 10


def test_flow_carries_every_frame_to_the_next() -> None:
    config = WorldConfig(size=(96, 160), frames=5, camera_moves=1.0, objects=(2, 4))
    y, x = np.mgrid[0:96, 0:160].astype(np.float32)
    for seed in range(4):
        film = World("train", config).film(seed)
        assert film.flow is not None
        for t in range(4):
            ahead = film.flow[t]
            carried = cv2.remap(film.frames[t + 1], x + ahead[..., 0], y + ahead[..., 1], cv2.INTER_LINEAR)
            here, there = (film.masks[i].argmax(axis=0) + film.masks[i].any(axis=0) for i in (t, t + 1))
            there = cv2.remap(
                there.astype(np.float32),
                x + ahead[..., 0],
                y + ahead[..., 1],
                cv2.INTER_LINEAR,
                None,
                cv2.BORDER_CONSTANT,
                -1,
            )
            same = there == here  # still visible, and no edge between
            wrong = np.abs(carried.astype(float) - film.frames[t]).mean(axis=-1)[same]
            assert same.mean() > 0.75
            assert np.median(wrong) < 6
            assert (wrong > 25).mean() < 0.03


@pytest.mark.slow
def test_training_never_shows_or_names_held_out_shapes_and_pairs(films: dict[str, list[SyntheticVideo]]) -> None:
    for film in films["train"]:
        assert not set(film.classes) & set(HELD_OUT_SHAPES)
        for s in film.sentences:
            words = s.text.split()
            assert not any(w in words for h in HELD_OUT_SHAPES for w in SHAPES[h].true if w != "shape")
            spoken = [(c, n) for c in COLOUR_NAMES for n in SHAPES if c in words and n in words]
            assert not any(held_out_pair(*pair) for pair in spoken)
    assert any(set(film.classes) & set(HELD_OUT_SHAPES) for film in films["valid"])
    assert not any(set(film.classes) & set(HELD_OUT_SHAPES) for film in films["valid_u"])
    pairs = {(c, n) for c in COLOUR_NAMES for n in SHAPES if held_out_pair(c, n)}
    texts = [s.text.split() for film in films["valid_u"] for s in film.sentences if s.kind == "colour"]
    new_pairs = [pair for pair in pairs for words in texts if set(pair) <= set(words)]
    assert new_pairs
    share = np.mean([held_out_pair(c, n) for c in COLOUR_NAMES for n in SHAPES])
    assert 0.1 < share < 0.3


@pytest.mark.parametrize("changes", [{"objects": (0, 3)}, {"objects": (4, 2)}, {"frames": 1}, {"size": (16, 64)}])
def test_an_impossible_world_is_refused_with_what_came(changes: dict[str, object]) -> None:
    with pytest.raises(DeixisError, match="got"):
        WorldConfig(**changes)  # type: ignore[arg-type]


# ---- on disk


def test_the_written_benchmark_reads_back_as_it_was_made(tmp_path: Path) -> None:
    counts = write_mevis(tmp_path / "world", 6, seed=2, config=SMALL)
    assert counts == films_per_split(6) == {"train": 4, "valid_u": 1, "valid": 1}
    for split, count in counts.items():
        folder = tmp_path / "world" / split
        videos = json.loads((folder / "meta_expressions.json").read_text())["videos"]
        masks = json.loads((folder / "mask_dict.json").read_text())
        assert len(videos) == count
        used: list[int] = []
        for number, (video, entry) in enumerate(videos.items()):
            film = World(split, SMALL).film(2 * 1_000_003 + number)
            assert video == film.name
            assert sorted(p.stem for p in (folder / "JPEGImages" / video).iterdir()) == entry["frames"]
            assert [e["exp"] for e in entry["expressions"].values()] == [s.text for s in film.sentences]
            assert list(entry["expressions"]) == [str(i) for i in range(len(film.sentences))]
            for sentence, expression in zip(film.sentences, entry["expressions"].values(), strict=True):
                assert expression["obj_id"] == list(sentence.objects)
                assert len(expression["anno_id"]) == len(sentence.objects)
                assert expression["kind"] == sentence.kind
                for k, anno in zip(sentence.objects, expression["anno_id"], strict=True):
                    used.append(anno)
                    for t, rle in enumerate(masks[str(anno)]):
                        truth = film.masks[t, k]
                        assert (rle is None) == (not truth.any())
                        if rle is not None:
                            np.testing.assert_array_equal(coco.decode(rle).astype(bool), truth)
        assert 0 <= max(used) < len(masks)


def test_a_folder_that_holds_something_is_not_overwritten_and_no_debris_is_left(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "mine.txt").write_text("keep")
    with pytest.raises(DeixisError, match="is not empty; name a new one"):
        write_mevis(tmp_path / "world", 3, config=SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mevis(tmp_path / "other", 3, config=SMALL, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_the_command_line_writes_a_world_and_says_what_is_wrong(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["world", str(tmp_path / "w"), "--films", "3", "--size", "64x96", "--frames", "4"])
    assert run.exit_code == 0, run.output
    assert "1 films in train" in run.output
    image = cv2.imread(str(next((tmp_path / "w" / "valid" / "JPEGImages").rglob("*.jpg"))))
    assert image.shape == (64, 96, 3)
    for wrong, words in (
        (["--size", "64"], "HEIGHTxWIDTH"),
        (["--films", "0"], "1 or more"),
        (["--frames", "1"], "2 frames"),
    ):
        run = CliRunner().invoke(app, ["world", str(tmp_path / "v"), *wrong])
        assert run.exit_code == 2
        assert words in run.output
        assert not (tmp_path / "v").exists()


# ---- films from pictures


def test_the_two_splits_share_no_picture_drawing_or_video(pictures: Path) -> None:
    train, test = (Library(pictures, split) for split in ("train", "held_out"))
    for mine in ("pictures", "drawn", "videos"):
        left = {str(getattr(p, "image", None) or getattr(p, "name", None) or p[0]) for p in getattr(train, mine)}
        right = {str(getattr(p, "image", None) or getattr(p, "name", None) or p[0]) for p in getattr(test, mine)}
        assert left
        assert right
        assert not left & right
    assert [v.name for v in test.videos] == [ABSENT_VIDEO]
    assert all(held_out("coco_small", f"images/{p.image.name}") for p in test.pictures)


def test_the_hold_out_rule_is_the_written_one() -> None:
    name = "images/000000391895.jpg"
    number = int(hashlib.sha1(name.encode()).hexdigest(), 16)
    assert held_out("coco_small", name) == (number % 4 == 0)
    assert held_out("voc_animals", name) == (number % 10 == 0)
    assert HELD_OUT_VIDEOS == ("car-turn", "lucia", "rhino")


@pytest.mark.parametrize("kind", ["stills", "composites", "twins", "davis"])
def test_every_kind_of_film_has_true_masks_and_sentences(pictures: Path, kind: str) -> None:
    shares = {k: float(k == kind) for k in ("stills", "composites", "twins", "davis")}
    mix = Mixture(pictures, config=MixtureConfig(size=(72, 120), frames=4, **shares))
    kinds = set()
    for seed in range(12):
        film = mix.film(seed)
        assert film.frames.shape == (4, 72, 120, 3)
        assert film.ignore is not None
        assert film.ignore.shape == (4, 72, 120)
        assert len(film.classes) == film.masks.shape[1]
        for s in film.sentences:
            kinds.add(s.kind)
            assert all(0 <= i < film.masks.shape[1] for i in s.objects)
            assert all(film.masks[:, i].mean(axis=(1, 2)).max() >= 0.003 for i in s.objects)
            if s.kind == "class":
                assert len({film.classes[i] for i in s.objects}) == 1
    assert "none" in kinds
    assert kinds & {"class", "place", "colour", "twin_place", "written"}
    again = Mixture(pictures, config=MixtureConfig(size=(72, 120), frames=4, **shares))
    assert digest(again.film(5)) == digest(mix.film(5))


def test_twins_are_of_one_class_and_their_sentences_name_one_of_them(pictures: Path) -> None:
    for film in twins(pictures, films=10, size=(72, 120), frames=4):
        for s in film.sentences:
            assert s.kind in ("twin_place", "twin_motion")
            assert len(s.objects) == 1
            assert film.classes.count(film.classes[s.objects[0]]) >= 2


def test_evaluation_sets_are_made_of_held_out_pictures_only(pictures: Path) -> None:
    known = {p.image.stem for p in Library(pictures, "held_out").pictures}
    for film in (*composites(pictures, films=6, size=(72, 120), frames=4), *stills(pictures)):
        assert film.name.partition(":")[2] in known
    still = next(iter(stills(pictures)))
    assert (still.frames == still.frames[:1]).all()
    assert {s.kind for s in still.sentences} <= {"class", "colour", "place", "none"}
    long = next(iter(long_films(pictures, films=1, size=(72, 120), frames=20)))
    assert len(long.frames) == 20
    clip = next(iter(davis(pictures, (ABSENT_VIDEO,))))
    assert clip.masks.shape == (8, 1, 96, 160)
    assert [s.kind for s in clip.sentences] == ["written"] * 4


def test_a_mirrored_clip_is_not_said_to_go_the_other_way(pictures: Path) -> None:
    mix = Mixture(pictures, config=MixtureConfig(size=(72, 120), frames=4, stills=0, composites=0, twins=0, davis=1))
    texts = {s.text for seed in range(20) for s in mix.film(seed).sentences if s.kind == "written"}
    assert texts
    assert not any("right" in text.split() for text in texts)


def test_world_pastes_real_cutouts_with_exact_flow(pictures: Path) -> None:
    config = WorldConfig(size=(72, 120), frames=4, cutouts=pictures, cutout_share=1.0)
    film = World("train", config).film(1)
    assert film.flow is not None
    assert film.flow.shape == (3, 72, 120, 2)
    assert not set(film.classes) & set(SHAPES)


def test_a_folder_without_pictures_and_an_unknown_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match="holds none of"):
        Library(tmp_path)
    with pytest.raises(DeixisError, match="unknown split 'test'"):
        Library(tmp_path, "test")
    with pytest.raises(DeixisError, match="unknown split 'test'"):
        World("test")
