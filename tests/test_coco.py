"""COCO and YouTube-VIS JSON: what pycocotools, and in an environment of its own Datumaro, read of ours; and what
``read_coco`` reads of ours and of other tools', for words to choose among."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.films import colours, moving, write_film, write_folder
from PIL import Image
from pycocotools import mask as rle_of
from pycocotools.coco import COCO

import deixis
from deixis.inference import segment
from deixis.systems.light import light_debug
from deixis.types import DeixisError, MaskTrack
from deixis.video import Video
from deixis.writers import Output, read_coco, write
from deixis.writers.coco_reader import unpacked

ABOUT = {"name": "colours", "checkpoint": None, "sha256": None}
WORDS = ["the red square", "a green one", "something blue", "собака red"]


@pytest.fixture(scope="module", params=["film", "folder"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Video, list[MaskTrack]]:
    place = tmp_path_factory.mktemp("coco")
    pictures = moving(8, (73, 97), ("red", "green"))
    pictures[3][:] = 0  # nothing is there
    if request.param == "film":
        source = write_film(place / "film.mp4", pictures, pixels="yuv444p")
    else:
        source = write_folder(place / "film", pictures, [f"shot{i}" for i in range(8)])
    film = Video(source, start=0.1)
    tracks = segment(film, WORDS, model=colours())
    with Output(place / "out") as output:
        write(output, film, tracks, ["coco"], model=ABOUT)
    return place / "out" / "coco", film, tracks


def test_pycocotools_reads_every_mask_of_every_frame(made: tuple[Path, Video, list[MaskTrack]]) -> None:
    folder, film, tracks = made
    found = COCO(str(folder / "annotations" / "instances_default.json"))
    assert [category["name"] for category in found.loadCats(found.getCatIds())] == WORDS
    images = found.loadImgs(found.getImgIds())
    frames = list(film.frames())
    assert [image["frame"] for image in images] == [frame.number for frame in frames]
    assert [image["file_name"] for image in images] == [film.file_name(frame.name) for frame in frames]
    assert (images[0]["height"], images[0]["width"]) == (73, 97)
    for index, image in enumerate(images):
        here = {a["category_id"]: a for a in found.loadAnns(found.getAnnIds(imgIds=[image["id"]]))}
        for number, track in enumerate(tracks, 1):
            assert (number in here) == bool(track.masks[index].any())
            if number in here:
                assert np.array_equal(found.annToMask(here[number]), track.masks[index])
                rows, columns = np.nonzero(track.masks[index])
                x, y, width, height = here[number]["bbox"]
                assert (x, y, x + width, y + height) == (
                    columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
                )  # fmt: skip
                assert here[number]["area"] == len(rows)


def test_youtube_vis_has_a_list_entry_a_frame_and_null_where_nothing_is(
    made: tuple[Path, Video, list[MaskTrack]],
) -> None:
    folder, _, tracks = made
    found = json.loads((folder / "youtube_vis.json").read_text())
    (video,) = found["videos"]
    assert video["length"] == len(video["file_names"]) == len(tracks[0])
    shown = {a["category_id"]: a for a in found["annotations"]}
    assert sorted(shown) == [number for number, track in enumerate(tracks, 1) if track.present]
    for number, annotation in shown.items():
        track = tracks[number - 1]
        assert {len(annotation[key]) for key in ("segmentations", "bboxes", "areas")} == {video["length"]}
        for index, rle in enumerate(annotation["segmentations"]):
            assert (rle is None) == (not track.masks[index].any())
            assert (annotation["areas"][index] or 0) == track.masks[index].sum()


def test_datumaro_imports_it(made: tuple[Path, Video, list[MaskTrack]], tmp_path: Path) -> None:
    """DEIXIS_DATUMARO names the python of an environment in which `pip install datumaro` was done."""
    python = os.environ.get("DEIXIS_DATUMARO") or shutil.which("datumaro-python")
    if python is None:
        pytest.skip("no Datumaro: name the python of an environment that has it in DEIXIS_DATUMARO")
    folder, film, tracks = made
    shutil.copytree(folder, tmp_path / "coco")
    (tmp_path / "coco" / "youtube_vis.json").unlink()
    images = tmp_path / "coco" / "images" / "default"
    images.mkdir(parents=True)
    for frame in film.frames():
        Image.fromarray(frame.pixels()).save(images / film.file_name(frame.name))
    code = (
        "import json, sys; from datumaro.components.dataset import Dataset\n"
        "found = Dataset.import_from(sys.argv[1], 'coco')\n"
        "print(json.dumps([[item.id, item.attributes.get('id'), sorted((a.label, int(a.image.sum())) for a in"
        " item.annotations if hasattr(a, 'image'))] for item in found]))"
    )
    done = subprocess.run([python, "-c", code, tmp_path / "coco"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    read = {Path(name).name: annotations for name, _, annotations in json.loads(done.stdout.splitlines()[-1])}
    for index, frame in enumerate(film.frames()):
        expected = [[n, int(t.masks[index].sum())] for n, t in enumerate(tracks) if t.masks[index].any()]
        assert read[frame.name] == expected


# --- read back --------------------------------------------------------------------------------------------------------

SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]  # x and y in turn: 6 pixels of a frame of 4 x 6


def is_same(read: MaskTrack, written: MaskTrack) -> bool:
    return read.expression.text == written.expression.text and np.array_equal(
        np.asarray(read.masks), np.asarray(written.masks)
    )


@pytest.mark.parametrize("file", ["youtube_vis.json", "annotations/instances_default.json"])
def test_tracks_read_back_are_those_that_were_written(made: tuple[Path, Video, list[MaskTrack]], file: str) -> None:
    out, _, tracks = made
    written = [t for t in tracks if t.present]  # an object without any mask has no annotation
    read = read_coco(out / file)
    assert len(written) == 3
    assert all(is_same(one, other) for one, other in zip(read, written, strict=True))
    for one, other in zip(read, written, strict=True):
        shown = other.masks.areas() > 0
        expected = other.scores * shown if "instances" in file else other.presence * shown
        assert one.scores == pytest.approx(expected, abs=1e-4)
        assert one.presence == pytest.approx(max(expected), abs=1e-4)
        assert [Path(n).stem for n in one.names] == [Path(n).stem for n in other.names]


@pytest.mark.parametrize("file", ["youtube_vis.json", "annotations/instances_default.json"])
def test_words_choose_among_tracks_that_were_read(made: tuple[Path, Video, list[MaskTrack]], file: str) -> None:
    out, film, _ = made
    torch.manual_seed(0)
    read = read_coco(out / file)
    choices = deixis.choose(film, read, ["the red square", "a dog"], model=light_debug().eval())
    assert [len(choice.probabilities) for choice in choices] == [3, 3]
    assert all(sum(choice.probabilities) == pytest.approx(choice.presence, abs=1e-5) for choice in choices)
    with pytest.raises(DeixisError, match=r"the tracks have \d frames, but the video has \d; give"):
        deixis.choose(Video(film.path, every=3), read, "the red square", model=light_debug())


def youtube_vis(place: Path, segmentations: list, **more: object) -> Path:
    """A YouTube-VIS JSON as another tool writes it: 3 frames of 4 x 6 pixels."""
    found = {
        "videos": [{"id": 7, "height": 4, "width": 6, "file_names": [f"v/{i:05d}.jpg" for i in range(3)]}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [{"id": 1, "video_id": 7, "category_id": 3, "segmentations": segmentations}],
    }
    (place / "labels.json").write_text(json.dumps(found | more))
    return place / "labels.json"


def images(place: Path, annotations: list[dict], names: tuple[str, ...] = ("10.jpg", "9.jpg"), **more: object) -> Path:
    """A COCO JSON as another tool writes it: frames of 4 x 6 pixels, numbered from 1 as they are listed."""
    found = {
        "images": [{"id": i, "height": 4, "width": 6, "file_name": name} for i, name in enumerate(names, 1)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [{"id": i, "category_id": 3, "segmentation": [SQUARE]} | a for i, a in enumerate(annotations)],
    }
    (place / "labels.json").write_text(json.dumps(found | more))
    return place / "labels.json"


def test_polygons_runs_compressed_runs_and_empty_masks_are_read(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), bool)
    mask[:, 1:3] = True
    packed = rle_of.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    runs, counts = {"size": [4, 6], "counts": [4, 8, 12]}, {"size": [4, 6], "counts": packed}
    for segmentation in ([[SQUARE], runs, None], [None, counts, [SQUARE]]):
        (track,) = read_coco(youtube_vis(tmp_path, segmentation))
        masks = np.asarray(track.masks)
        square = masks[segmentation.index([SQUARE])]
        assert square.sum() == square[1:3, 1:4].sum() == 6
        assert np.array_equal(masks[1], mask)
        assert not masks[segmentation.index(None)].any()
        assert (track.expression.text, track.presence, list(track.names)) == ("dog", 1.0, ["00000", "00001", "00002"])


def test_compressed_runs_are_unpacked_as_pycocotools_packs_them() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = np.asfortranarray(rng.random((90, 70)) < share)
        mask[10:60, 20:50] ^= True
        packed = rle_of.encode(mask.astype(np.uint8))
        runs = unpacked(packed["counts"].decode())
        assert rle_of.frPyObjects({"size": [90, 70], "counts": runs}, 90, 70) == packed
        assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(70, 90).T.astype(bool), mask)


def test_annotations_of_one_track_are_joined_and_frames_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    shape = {"size": [4, 6], "counts": [0, 4, 20]}
    given = [
        {"image_id": 1, "track_id": 5},
        {"image_id": 2, "attributes": {"track_id": 6}, "category_id": 4, "score": 0.25},
        {"image_id": 2, "track_id": 5, "score": 0.5},
        {"image_id": 2, "track_id": 5, "segmentation": shape},  # a second part of it
    ]
    dog, cat = read_coco(images(tmp_path, given))
    assert (dog.expression.text, cat.expression.text, dog.presence, cat.presence) == ("dog", "cat", 1.0, 0.25)
    assert list(dog.names) == ["9", "10"]
    assert dog.masks.areas().tolist() == [10, 6]
    assert cat.masks.areas().tolist() == [6, 0]
    numbered = [{"id": i, "height": 4, "width": 6, "file_name": f"{9 - i}.jpg", "frame_index": i} for i in (2, 1)]
    dog, _ = read_coco(images(tmp_path, given, images=numbered))
    assert list(dog.names) == ["8", "7"]
    assert dog.masks.areas().tolist() == [6, 10]


def test_every_annotation_of_a_single_image_is_an_object(tmp_path: Path) -> None:
    tracks = read_coco(images(tmp_path, [{"image_id": 1}, {"image_id": 1, "category_id": 4}], ("a.jpg",)))
    assert [(t.expression.text, t.expression.id, len(t)) for t in tracks] == [("dog", "0", 1), ("cat", "1", 1)]
    several = images(tmp_path, [{"image_id": 1}, {"image_id": 2, "category_id": 4}])
    for name in ("9.jpg", 2):
        (track,) = read_coco(several, name)
        assert (track.expression.text, list(track.names)) == ("cat", ["9"])


def test_a_video_of_several_is_named(tmp_path: Path) -> None:
    two = [{"id": i, "height": 4, "width": 6, "name": f"v{i}", "file_names": ["a.jpg"] * 3} for i in (7, 8)]
    place = youtube_vis(tmp_path, [None] * 3, videos=two)
    with pytest.raises(DeixisError, match=r"holds 2 videos; name one with video=: v7, v8"):
        read_coco(place)
    with pytest.raises(DeixisError, match="has no video 'v9'; it has v7, v8"):
        read_coco(place, "v9")
    assert len(read_coco(place, "v7")) == 1
    assert read_coco(place, 8) == []
    folders = images(tmp_path, [{"image_id": 1, "track_id": 1}], ("one/1.jpg", "two/1.jpg", "two/2.jpg"))
    with pytest.raises(DeixisError, match="holds 2 videos; name one with video=: one, two"):
        read_coco(folders)
    assert [len(track) for track in read_coco(folders, "one")] == [1]
    assert read_coco(folders, "two") == []
    linked = [{"id": i, "height": 4, "width": 6, "file_name": f"{i}.jpg", "video_id": 1 + i // 2} for i in (1, 2, 3)]
    place = images(tmp_path, [{"image_id": 2, "track_id": 1}], images=linked, videos=[{"id": 2, "name": "second"}])
    assert [list(track.names) for track in read_coco(place, "second")] == [["2", "3"]]
    assert [list(track.names) for track in read_coco(place, 2)] == [["2", "3"]]


@pytest.mark.parametrize(
    ("segmentations", "more", "message"),
    [
        ([None] * 2, {}, "annotation 1 has 2 masks, its video has 3 frames"),
        ([{"size": [6, 4], "counts": [24]}] * 3, {}, r"frame 0: a mask of \(6, 4\), the frames are of \(4, 6\)"),
        ([{"size": [4, 6], "counts": [4, 8]}] * 3, {}, "its runs do not sum to the 24 pixels of a frame"),
        ([{"size": [4, 6], "counts": [4, -8, 28]}] * 3, {}, "its runs do not sum"),
        ([{"size": [4, 6], "counts": [4.5, 19.5]}] * 3, {}, "its runs do not sum"),
        ([{"size": [4, 6], "counts": "0Z"}] * 3, {}, "its runs do not sum"),
        ([{"size": [4, 6], "counts": "ooooooooo0"}] * 3, {}, "its runs do not sum"),
        ([{"size": [4, 6], "counts": "48\U0001f98f"}] * 3, {}, "is no COCO or YouTube-VIS JSON"),
        ([[[1, 1, 2, 2]]] * 3, {}, "a polygon of 4 numbers; expected x and y of three points or more"),
        ([[[1, 1, 2, 2, 1e12, 3]]] * 3, {}, r"a polygon that goes to 1e\+12, the frames are of \(4, 6\)"),
        ([[[1, 1, 2, 2, float("nan"), 3]]] * 3, {}, "a polygon that goes to nan"),
        ([None] * 3, {"videos": []}, "holds 0 videos"),
        ([None] * 3, {"videos": 3}, "is no COCO or YouTube-VIS JSON"),
        ([None] * 3, {"categories": []}, "is no COCO or YouTube-VIS JSON"),
        ([None] * 3, {"categories": [{"id": 3, "name": ""}]}, "an expression must hold words"),
        ([None] * 3, {"videos": [{"id": 7, "height": 0, "width": 6, "file_names": ["a"] * 3}]}, "0 x 6 pixels"),
        ([None] * 3, {"videos": [{"id": 7, "height": 10**9, "width": 6, "file_names": ["a"] * 3}]}, "at most 50,000"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_tracks_are_one_line(tmp_path, segmentations, more, message) -> None:
    with pytest.raises(DeixisError, match=message) as caught:
        read_coco(youtube_vis(tmp_path, segmentations, **more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("annotations", "more", "message"),
    [
        ([{"image_id": 1}], {}, "annotation 0 has no track_id, and nothing else joins the objects of 2 images"),
        ([{"image_id": 1, "track_id": 1, "segmentation": []}], {}, "annotation 0 has no segmentation; a box alone"),
        ([{"image_id": 1, "track_id": 1, "segmentation": 3}], {}, "is no COCO or YouTube-VIS JSON"),
        ([{"image_id": 1, "track_id": [1]}], {}, "is no COCO or YouTube-VIS JSON"),
        ([], {"images": []}, "holds 0 videos"),
        (
            [],
            {"images": [{"id": i, "height": i, "width": 6, "file_name": f"{i}.jpg"} for i in (4, 5)]},
            "its images are of several sizes and no video; name one of them with video=",
        ),
    ],
)
def test_images_that_cannot_be_tracks_are_one_line(tmp_path, annotations, more, message) -> None:
    with pytest.raises(DeixisError, match=message) as caught:
        read_coco(images(tmp_path, annotations, **more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "holds a list; expected videos or images beside annotations"),
        (b"{}", "is no COCO or YouTube-VIS JSON"),
        (b"{", "is no COCO or YouTube-VIS JSON"),
        (b"\xff\xd8", "is no COCO or YouTube-VIS JSON"),
        (b"[" * 100000, "is no COCO or YouTube-VIS JSON"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_of_anything_else_is_one_line(tmp_path, content, message) -> None:
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeixisError, match=message) as caught:
        read_coco(path)
    assert "\n" not in str(caught.value)
