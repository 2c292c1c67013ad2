"""COCO and YouTube-VIS JSON: what pycocotools, and in an environment of its own Datumaro, read of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.films import colours, moving, write_film, write_folder
from PIL import Image
from pycocotools.coco import COCO

from deixis.inference import segment
from deixis.types import MaskTrack
from deixis.video import Video
from deixis.writers import Output, write

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
