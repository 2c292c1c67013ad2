"""Docstrings of the public functions: their Args are the parameters, and every Example runs as it stands.

An example runs in a folder of its own that holds a tiny film (``film.mp4``), a tiny benchmark (``mevis``) with results
(``results``) and the masks of a film (``masks.json``). The name "light" stands for an untrained model of the same kind,
for which everything asked is there.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.films import moving, write_film
from helpers.present import present_model

import deixis
from deixis import weights
from deixis.benchmarks import open_benchmark, write_fixture
from deixis.predict import predict
from deixis.writers import Output, write

# What a user calls, by module. The front door comes first; of its classes also the methods.
PUBLIC = {
    "deixis": tuple(name for name in deixis.__all__ if name != "__version__"),
    "deixis.video": ("Frame", "fit", "normalise", "resize"),
    "deixis.types": ("RleMasks", "decode_rle", "encode_rle"),
    "deixis.weights": ("describe", "find", "save"),
    "deixis.writers": ("Output", "check_formats", "read_coco", "read_rle", "write"),
    "deixis.writers.rle": ("write_rle",),
    "deixis.benchmarks": ("open_benchmark", "splits_of", "write_fixture"),
    "deixis.predict": ("predict",),
    "deixis.metrics.evaluate": ("score_benchmark",),
    "deixis.metrics.folders": ("score_masks",),
    "deixis.metrics.summary": ("Scores",),
    "deixis.metrics.region_contour": ("score_frame", "score_track"),
    "deixis.training.recipes": ("find_recipe",),
    "deixis.training.loop": ("train",),
    "deixis.synthetic.world": ("World", "write_mevis"),
    "deixis.batch.manifest": ("read_manifest",),
    "deixis.batch.run": ("batch", "plan"),
}
SLOW = {"deixis.batch.run.batch", "deixis.training.loop.train"}


def public_objects() -> dict[str, Any]:
    """The functions and classes of PUBLIC, and the methods of the front door's classes, by name."""
    found: dict[str, Any] = {}
    for module, names in PUBLIC.items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            found[f"{module}.{name}"] = value
            if inspect.isclass(value) and module == "deixis":
                own = {key: part for key, part in vars(value).items() if not key.startswith("_")}
                found |= {f"{module}.{name}.{key}": part for key, part in own.items() if inspect.isfunction(part)}
    return {name: value for name, value in found.items() if value.__doc__}


OBJECTS = public_objects()
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in OBJECTS]


def section(text: str, title: str) -> str:
    """The indented lines below ``title:`` of a docstring."""
    found = re.search(rf"^{title}:\n((?:(?: {{4}}.*)?\n?)*)", inspect.cleandoc(text) + "\n", flags=re.MULTILINE)
    return found[1] if found else ""


def entries(text: str, title: str) -> list[str]:
    return re.findall(r"^ {4}(\w+):", section(text, title), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_film(folder / "film.mp4", moving(12, (96, 160)))
    shutil.copy(present_model(), folder / "light.safetensors")
    write_fixture("mevis", folder / "mevis")
    predict(open_benchmark("mevis", folder / "mevis"), folder / "results", "light_debug")
    video = deixis.Video(folder / "film.mp4")
    tracks = deixis.segment(video, ["the red square", "a dog"], model="light_debug")
    with Output(folder / "written") as output:
        write(output, video, tracks, ["rle"], model={"name": "light"})
    (folder / "masks.json").symlink_to(folder / "written" / "masks.json")
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("film.mp4", "light.safetensors", "masks.json", "mevis", "results"):
        (tmp_path / name).symlink_to(inputs / name)
    monkeypatch.setitem(weights.KNOWN, "light", replace(weights.KNOWN["light"], place=inputs / "light.safetensors"))
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_the_example_of_a_public_function_runs_as_it_stands(name: str, place: Path) -> None:
    text = inspect.cleandoc(OBJECTS[name].__doc__)
    example = section(text, "Example")
    assert ">>> " in example, f"{name} has no Example"
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(example), {}, name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert said == []


@pytest.mark.parametrize("name", OBJECTS)
def test_the_args_of_a_public_function_are_its_parameters(name: str) -> None:
    value = OBJECTS[name]
    text = value.__doc__
    if inspect.isclass(value) and not entries(text, "Args"):
        attributes = {*dir(value), *getattr(value, "__annotations__", {})}
        assert set(entries(text, "Attributes")) <= attributes
        return
    parameters = [p for p in inspect.signature(value).parameters if p != "self"]
    assert entries(text, "Args") == parameters
