"""The run for a GPU machine (``tools/gpu_train.py``), tried on the CPU on generated pictures: pack, train, fetch."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file

import deixis
from deixis import weights
from deixis.synthetic.cutouts import split_of
from deixis.systems.light import light_debug

TOOLS = Path(__file__).parents[1] / "tools"
SIZE = (96, 160)  # pixels; the tiny model works at a short side of 64
SQUARES = {1: (10, 12, (30, 30, 200)), 2: (30, 100, (200, 40, 20))}  # top, left, BGR


def run(*words: str | Path) -> str:
    """What a command prints; its one line where it cannot be done."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "path", [str(TOOLS), *sys.path])
        patch.setattr(sys, "argv", ["gpu_train.py", *map(str, words)])
        patch.setenv("PYTHONPATH", str(TOOLS.parent / "src"))
        try:
            importlib.import_module("gpu_train").main()
        except SystemExit as end:
            return str(end.code)
    return said.getvalue()


def images_of(split: str, count: int) -> list[str]:
    names = (f"images/{n:012d}.jpg" for n in range(1000))
    return [name for name in names if split_of("coco_small", name) == split][:count]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` with eleven pictures of two squares and their expressions, ``objects``, and ``start.safetensors``."""
    place = tmp_path_factory.mktemp("gpu")
    folder, objects = place / "data" / "coco_small", place / "objects" / "coco_small"
    for path in (folder / "images", folder / "masks", objects, place / "data" / "sentences"):
        path.mkdir(parents=True)
    rng, entries, written = np.random.default_rng(0), [], {}
    for name in images_of("train", 7) + images_of("development", 2) + images_of("held_out", 2):
        rgb, labels = rng.integers(90, 120, (*SIZE, 3), dtype=np.uint8), np.zeros(SIZE, np.uint8)
        instances, found = [], []
        for number, (top, left, colour) in SQUARES.items():
            rgb[top : top + 40, left : left + 44] = colour
            labels[top : top + 40, left : left + 44] = number
            instances.append(
                {"id": number, "class": "car", "kind": "instance", "box": [left, top, 44, 40], "area": 1760}
            )
            rle = coco_mask.encode(np.asfortranarray((labels == number).astype(np.uint8)))
            found.append({"rle": {"size": rle["size"], "counts": rle["counts"].decode()}, "box": [left, top, 44, 40],
                          "source": "truth", "id": number, "kind": "instance", "class": "car",
                          "names": {}})  # fmt: skip
        stem = Path(name).stem
        cv2.imwrite(str(folder / name), rgb)
        cv2.imwrite(str(folder / "masks" / f"{stem}.png"), labels)
        entries.append({"image": name, "mask": f"masks/{stem}.png", "height": SIZE[0], "width": SIZE[1],
                        "instances": instances})  # fmt: skip
        facts = {"set": "coco_small", "image": name, "size": list(SIZE), "surroundings": "x" * 5000, "objects": found}
        (objects / f"{stem}.json").write_text(json.dumps(facts))
        written[name] = {"objects": {"1": ["the red one", "the left car"], "2": ["the blue one"]}, "absent": ["a dog"]}
    (folder / "index.json").write_text(json.dumps({"meta": {}, "images": entries}))
    (place / "data" / "sentences" / "train.json").write_text(json.dumps({"coco_small": written}))
    (place / "data" / "sentences" / "test.json").write_text(json.dumps({"coco_small": written}))
    torch.manual_seed(0)
    weights.save(light_debug(), place / "start.safetensors")
    return place


@pytest.fixture(scope="module")
def packed(place: Path) -> Path:
    limit = ((place / "start.safetensors").stat().st_size + 2000) / 1e6
    said = run("pack", "--data", place / "data", "--objects", place / "objects", "--start", place / "start.safetensors",
               "--megabytes", str(limit), "-o", place / "archives")  # fmt: skip
    assert "archives" in said, said
    assert all(path.stat().st_size <= limit * 1e6 for path in (place / "archives").iterdir())
    return place / "archives"


@pytest.mark.slow
def test_archives_hold_what_is_trained_on_at_the_models_size_and_nothing_that_is_held_out(packed: Path) -> None:
    contents = {}
    for path in packed.glob("archive_*.zip"):
        with zipfile.ZipFile(path) as archive:
            contents |= {name: archive.read(name) for name in archive.namelist()}
    stems = {Path(name).stem for name in contents if name.startswith("data/coco_small/images")}
    assert stems == {Path(name).stem for name in images_of("train", 7) + images_of("development", 2)}
    assert "data/sentences/test.json" not in contents
    index = json.loads(contents["data/coco_small/index.json"])["images"]
    assert len(index) == 9
    for entry in index:
        stem = Path(entry["image"]).stem
        picture = cv2.imdecode(np.frombuffer(contents[f"data/coco_small/{entry['image']}"], np.uint8), cv2.IMREAD_COLOR)
        facts = json.loads(contents[f"objects/coco_small/{stem}.json"])
        assert picture.shape[:2] == (entry["height"], entry["width"]) == tuple(facts["size"]) == (64, 107)
        assert "surroundings" not in facts
        red = coco_mask.decode(facts["objects"][0]["rle"]).astype(bool)
        assert picture[red].mean(0) == pytest.approx(SQUARES[1][2], abs=12)


@pytest.mark.slow
def test_a_run_goes_on_from_call_to_call_and_its_model_comes_back(place: Path, packed: Path) -> None:
    work, out = place / "work", place / "out"
    train = ("train", "--archives", packed, "--work", work, "--device", "cpu", "--minutes", "0.16", "--workers", "0",
             "--kinds", "pictures,films", "--films", "1", "--out", out)  # fmt: skip
    first = run(*train, "--call-minutes", "0.08")
    assert "not whole yet" in first
    assert (out / "state.json").exists()
    for _ in range(3):
        said = run(*train, "--call-minutes", "5")
        if "the run is whole" in said:
            break
    else:
        pytest.fail(said)
    counts = [len(list((work / "tokens" / part / "v0").rglob("*.safetensors"))) for part in ("train", "development")]
    assert min(counts) >= 1
    before, after = (
        deixis.load(p).state_dict() for p in (place / "start.safetensors", work / "proposals/model.safetensors")
    )
    trained = load_file(work / "proposals" / "last.safetensors")
    own = {name.removeprefix("model/"): value for name, value in trained.items()}
    changed = {
        name.split(".")[0] for name, value in own.items() if name in before and not torch.equal(value, before[name])
    }
    assert {"tiny_vit", "pixel_decoder", "kernels"} <= changed, sorted(trained)[:5]
    assert not changed & {"efficient_net", "text", "namer", "scorer"}
    assert set(before) == set(after)
    assert "presence is that of the start" in run("fetch", "--parts", out, "-o", place / "fetched.safetensors")
    model = deixis.load(place / "fetched.safetensors")
    assert not model.config.train_vision
    facts = weights.read_header(place / "fetched.safetensors")[0]
    assert facts["config"] == weights.read_header(work / "scorer" / "model.safetensors")[0]["config"]
    written = deixis.load(work / "scorer" / "model.safetensors").state_dict()
    assert all(torch.equal(value, written[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_done_is_one_line(place: Path, tmp_path: Path) -> None:
    few = run("pack", "--data", place / "data", "--objects", place / "objects", "--start", place / "start.safetensors",
              "--megabytes", "0.01", "-o", tmp_path / "archives")  # fmt: skip
    assert few.startswith("error: start.safetensors holds")
    assert "\n" not in few
    empty = run("fetch", "--parts", tmp_path, "-o", tmp_path / "x.safetensors")
    assert empty == f"error: {tmp_path} holds no part of a model (model.0, model.1, ...)"
    nothing = run("train", "--archives", tmp_path, "--work", tmp_path / "work", "--device", "cpu")
    assert "holds no start.safetensors; all archives of pack must have come" in nothing
