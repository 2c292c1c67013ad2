"""What ``deixis recipes`` states of a recipe is what its code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.recipe_places import OWN, PUBLISHED, places_for
from typer.testing import CliRunner

from deixis.cli import app
from deixis.training.recipes import RECIPES, find_recipe
from deixis.training.recipes.light import LIGHT_STAGES
from deixis.training.recipes.statements import STATEMENTS, table
from deixis.training.sources import list_clips
from deixis.types import DeixisError

DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"
EAGER = ("tower_world", "light_folder", "soc_folder", *LIGHT_STAGES)  # these read their data at once
GENERATED = [name for name in RECIPES if name.endswith("world")]


def test_every_recipe_is_stated_and_listed() -> None:
    assert set(STATEMENTS) == set(RECIPES)
    done = CliRunner().invoke(app, ["recipes"])
    assert done.exit_code == 0
    assert all(f"`{name}`" in done.output for name in RECIPES)
    for name in RECIPES:
        said = CliRunner().invoke(app, ["recipes", name]).output
        assert STATEMENTS[name].what in said
        assert f"global batch  {STATEMENTS[name].global_batch}" in said
    assert CliRunner().invoke(app, ["recipes", "nonesuch"]).exit_code == 2


def test_the_page_holds_the_table_that_the_command_prints() -> None:
    assert "\n".join(table(RECIPES)) in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*PUBLISHED, *GENERATED])
def test_batch_length_and_needs_are_those_of_the_code(name: str) -> None:
    one, places = STATEMENTS[name], places_for(name)
    needed = [alternative for need in one.needs for alternative in need.split("|")]
    assert set(needed) | set(one.takes) <= {*places, "roberta", "tower", "visor", "kinetics", "start", "flow"}
    run = find_recipe(name)({key: places[key] for key in needed if key in places}, overrides={})
    assert run.train.samples_a_step == one.global_batch
    if one.steps is not None:
        assert run.train.steps == one.steps
    else:
        assert one.epochs is not None
        clips = sum(len(list_clips(source, place, run.samples.args[2].frames)) for source, place in run.samples.args[0])
        assert run.train.steps == one.epochs * max(1, clips // one.global_batch)
    for need in one.needs:
        without = {key: places[key] for key in needed if key in places and key not in need.split("|")}
        with pytest.raises(DeixisError, match="needs --data"):
            find_recipe(name)(without, overrides={})


@pytest.mark.parametrize("name", [name for name in OWN if name not in EAGER])
def test_the_bundled_models_recipe_too(name: str, tmp_path: Path) -> None:
    one = STATEMENTS[name]
    train = find_recipe(name)(dict.fromkeys(one.needs, tmp_path), overrides={}).train
    assert (train.samples_a_step, train.steps) == (one.global_batch, one.steps)


@pytest.mark.parametrize("name", LIGHT_STAGES)
def test_the_stages_of_the_bundled_model_are_stated_as_they_are(name: str, tmp_path: Path) -> None:
    one, train = STATEMENTS[name], LIGHT_STAGES[name]
    assert (train.samples_a_step, train.steps) == (one.global_batch, one.steps)
    for need in one.needs:
        with pytest.raises(DeixisError, match=f"needs --data {need}="):
            find_recipe(name)(dict.fromkeys(set(one.needs) - {need}, tmp_path), overrides={})
