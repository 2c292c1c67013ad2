"""Recipes: functions that return a whole ``Run``. The only files that name both a system and a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

from deixis.tables import RECIPE_FILES
from deixis.training.run import Run
from deixis.types import DeixisError


class Recipe(Protocol):
    """data: names of datasets to their places.  overrides: "model.X", "train.X" or "data.X" to the value's text."""

    def __call__(self, data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run: ...


RECIPES: dict[str, Recipe] = {
    name: recipe
    for file in RECIPE_FILES
    for name, recipe in import_module(f"deixis.training.recipes.{file}").RECIPES.items()
}


def find_recipe(name: str) -> Recipe:
    """Find a recipe by name.

    Args:
        name: Name listed by `deixis recipes`.

    Returns:
        A function of the data's places and the overrides that returns a `Run`.

    Raises:
        DeixisError: For an unknown name, with the known ones.

    Example:
        >>> from deixis.training.recipes import find_recipe
        >>> run = find_recipe("soc_world")({}, overrides={"train.steps": "10"})
        >>> run.name, run.train.steps
        ('soc_world', 10)
    """
    if name not in RECIPES:
        raise DeixisError(f"no recipe {name!r}; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
