"""A system, an output format, a benchmark and a recipe are each added by one file and one line of ``tables.py``, and
every command and the web page offer them then."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.films import moving, write_film

PACKAGE = Path(__file__).parents[1] / "src" / "deixis"

FILES = {
    "systems/toy.py": '''
"""Toy: what is bright."""

from dataclasses import dataclass

import torch
from torch import nn

from deixis.types import FeatureMaps, Prediction, SystemConfig, bounded


@dataclass(frozen=True, kw_only=True)
class ToyConfig(SystemConfig):
    window: int = 4
    short_side: int = 48
    long_side: int = 96
    multiple: int = 4
    warmups: int = bounded(0, least=0)


class Toy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, frames, padding, wanted=None):
        level = frames.mean(2, keepdim=True)[..., ::4, ::4] * self.scale
        return FeatureMaps((level,), (4,), padding, tuple(frames.shape[-2:]))

    def decode(self, maps, expressions, wanted=None):
        masks = maps.levels[0].expand(len(expressions), -1, -1, -1, -1)
        scores = torch.full(masks.shape[:3], 3.0)
        return Prediction(masks, scores, presence=torch.full((len(expressions),), 3.0))

    def forward(self, batch):
        return self.decode(self.encode(batch.frames, batch.padding), batch.expressions, batch.wanted)


def toy_debug():
    return Toy(ToyConfig())


SYSTEM = Toy, ToyConfig
PRESETS = (toy_debug,)
''',
    "writers/areas.py": '''
"""The pixels of every mask, a line a track."""

from deixis.writers.format import Format


def write_areas(path, video, tracks, model, complete):
    path.write_text("".join(f"{track.expression.text}: {track.masks.areas().sum()}\\n" for track in tracks))


FORMAT = Format(item="areas.txt", choice="Areas as text", link="Areas", write=write_areas)
''',
    "benchmarks/toy_films.py": '''
"""Toy films: MeViS's layout under another name."""

from deixis.benchmarks.mevis_layout import open_layout, write_fixture
from deixis.benchmarks.opening import choose_split

SPLITS = ("valid_u", "train")


def open_split(root, split=None, skip_bad=False):
    return open_layout(root, choose_split(split, SPLITS, "toy-films"), skip_bad, "toy-films")
''',
    "training/recipes/toy.py": '''
"""A toy recipe: SOC on generated films, once more."""

from functools import partial

from deixis.systems.soc import SocConfig
from deixis.training.recipes.soc import SMALL_SOC, soc_world
from deixis.training.recipes.statement import Statement

RECIPES = {"toy_world": partial(soc_world, name="toy_world", model=SocConfig(**SMALL_SOC))}
STATEMENTS = {"toy_world": Statement(what="SOC, once more", needs=(), global_batch=8, steps=600)}
''',
}
LINES = {
    "SYSTEM_FILES = (": '    "toy",',
    "FORMAT_FILES = (": '    "areas",',
    "BENCHMARK_FILES = (": '    "toy-films",',
    "RECIPE_FILES = (": '    "toy",',
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with four files and four lines more; holds a film too."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, root / "deixis", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (root / "deixis" / "assets").symlink_to(PACKAGE / "assets")
    for name, text in FILES.items():
        (root / "deixis" / name).write_text(text.lstrip("\n"))
    table = root / "deixis" / "tables.py"
    lines = table.read_text().splitlines()
    for opening, line in LINES.items():
        lines.insert(lines.index(opening) + 1, line)
    table.write_text("\n".join(lines) + "\n")
    write_film(root / "film.mp4", moving(6))
    (root / "jobs.jsonl").write_text(
        json.dumps({"film": "film.mp4", "sentences": ["the square"], "options": {"as": "areas"}}) + "\n"
    )
    return root


def run(house: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": str(house), "COLUMNS": "300", "DEIXIS_CACHE": str(house / "cache")}
    env |= {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
    done = subprocess.run([sys.executable, *words], cwd=house, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


IN_TURN = """
import json, sys
from deixis.cli import app
for words in json.loads(sys.argv[1]):
    print(f"@@{' '.join(words)}", flush=True)
    status = app(words, standalone_mode=False)
    assert not status, status
"""


def deixis(house: Path, *commands: str) -> list[str]:
    """What each command prints; all in one process, which imports torch once."""
    said = run(house, "-c", IN_TURN, json.dumps([command.split() for command in commands]))
    return ["".join(part.splitlines(keepends=True)[1:]) for part in said.split("@@")[1:]]


@pytest.mark.slow
def test_a_system_and_a_format_are_known_to_segment_batch_and_models(house: Path) -> None:
    listed, helped, *_ = deixis(
        house,
        "models",
        "segment --help",
        "segment film.mp4 square --model toy_debug --as areas,rle -o out",
        "batch jobs.jsonl --model toy_debug --workers 1 -o many",
    )
    assert "toy, " in listed.splitlines()[0]
    assert "toy_debug" in listed
    assert "areas" in helped
    assert (house / "out" / "areas.txt").read_text().startswith("square: ")
    assert json.loads((house / "out" / "masks.json").read_text())["model"]["name"] == "toy_debug"
    assert len(list((house / "many").rglob("areas.txt"))) == 1


@pytest.mark.slow
def test_a_system_is_saved_and_loaded_and_a_recipe_and_the_page_know_the_new_names(house: Path) -> None:
    program = """
        from pathlib import Path
        from deixis import systems, weights
        weights.save(systems.PRESETS["toy_debug"](), Path("toy.safetensors"))
        print(type(weights.load("toy.safetensors")).__name__)
        from deixis.training.recipes import find_recipe
        print(find_recipe("toy_world")({}, overrides={}).name)
        from deixis.training.recipes import RECIPES
        from deixis.training.recipes.statements import describe_recipe, table
        print(sum(line.startswith("| `toy_world` | nothing |") for line in table(RECIPES)))
        print(len(describe_recipe("toy_world")))
        from deixis.web.jobs import RESULT_FILES
        print(RESULT_FILES["areas.txt"])
    """
    lines = [line.strip() for line in program.splitlines()]
    expected = ["Toy", "toy_world", "1", "7", "Areas"]
    if importlib.util.find_spec("gradio") is not None:
        lines.append("from deixis.web.app import FORMAT_WORDS; print(dict(FORMAT_WORDS)['Areas as text'])")
        expected.append("areas")
    assert run(house, "-c", "\n".join(lines)).split() == expected


@pytest.mark.slow
def test_a_benchmark_is_known_to_data_predict_score_and_pack(house: Path) -> None:
    helped, _, checked, _, scored, packed = deixis(
        house,
        "predict --help",
        "data fixture toy-films films",
        "data check toy-films films",
        "predict toy-films films --model toy_debug -o results",
        "score toy-films films results",
        "pack toy-films results -o results.zip",
    )
    assert "toy-films" in helped
    assert "valid_u" in checked
    assert "J&F" in scored
    assert "complete for toy-films valid_u" in packed
