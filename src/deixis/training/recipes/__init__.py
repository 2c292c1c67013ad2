"""Recipes: functions that return a whole ``Run``. The only file that knows both a system and a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from deixis.training.recipes.conv_clip_mevis import CONV_CLIP_MEVIS_RECIPES
from deixis.training.recipes.folder import light_folder, soc_folder
from deixis.training.recipes.light import LIGHT_RECIPES
from deixis.training.recipes.slvp import SLVP_RECIPES
from deixis.training.recipes.soc import SOC_RECIPES
from deixis.training.recipes.towers import tower_world
from deixis.training.recipes.vlp_rvos import VLP_RVOS_RECIPES
from deixis.training.run import Run
from deixis.types import DeixisError


class Recipe(Protocol):
    """data: names of datasets to their places.  overrides: "model.X", "train.X" or "data.X" to the value's text."""

    def __call__(self, data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run: ...


RECIPES: dict[str, Recipe] = {
    "light_folder": light_folder,
    "soc_folder": soc_folder,
    "tower_world": tower_world,
    **LIGHT_RECIPES,
    **CONV_CLIP_MEVIS_RECIPES,
    **SLVP_RECIPES,
    **SOC_RECIPES,
    **VLP_RVOS_RECIPES,
}


def find_recipe(name: str) -> Recipe:
    """Find a recipe by name.

    Args:
        name: Name listed by `deixis train --help`.

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
