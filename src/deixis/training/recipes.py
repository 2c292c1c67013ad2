"""Recipes: functions that return a whole ``Run``. The only file that knows both a system and a benchmark."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from deixis.training.conv_clip_mevis import CONV_CLIP_MEVIS_RECIPES
from deixis.training.folder import light_folder, soc_folder
from deixis.training.light import light
from deixis.training.loop import Run
from deixis.training.slvp import SLVP_RECIPES
from deixis.training.soc import SOC_RECIPES
from deixis.training.towers import tower_world
from deixis.training.vlp_rvos import VLP_RVOS_RECIPES
from deixis.types import DeixisError


class Recipe(Protocol):
    """data: names of datasets to their places.  overrides: "model.X", "train.X" or "data.X" to the value's text."""

    def __call__(self, data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run: ...


RECIPES: dict[str, Recipe] = {
    "light": light,
    "light_folder": light_folder,
    "soc_folder": soc_folder,
    "tower_world": tower_world,
    **CONV_CLIP_MEVIS_RECIPES,
    **SLVP_RECIPES,
    **SOC_RECIPES,
    **VLP_RVOS_RECIPES,
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; DeixisError with the known names otherwise."""
    if name not in RECIPES:
        raise DeixisError(f"no recipe {name!r}; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def apply_overrides(overrides: Mapping[str, str], **configs: Any) -> dict[str, Any]:
    """The frozen dataclasses ``configs`` with the named fields replaced, by the same names.

    ``apply_overrides({"model.queries": "10"}, model=..., train=...)["model"].queries == 10``. Fields of nested
    dataclasses are reached by further dots. The text is read by the field's type: numbers, bool (true/false), text,
    Path, Literal, "none" where None is allowed, tuples with commas. Raises DeixisError for an unknown field (with the
    list of those known) and for text that does not read as the type.
    """
    for key, text in overrides.items():
        section, _, field = key.partition(".")
        if section not in configs or not field:
            known = [name for part, config in configs.items() for name in field_names(config, f"{part}.")]
            raise DeixisError(f"unknown field {key!r}; known: {', '.join(known)}")
        configs[section] = _replaced(configs[section], field, text, f"{section}.")
    return configs


def field_names(config: Any, prefix: str = "") -> list[str]:
    """The settable fields of a dataclass, those of nested dataclasses with dots."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        names += field_names(value, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return names


def _replaced(config: Any, field: str, text: str, prefix: str) -> Any:
    name, _, rest = field.partition(".")
    known = {f.name for f in dataclasses.fields(config)}
    nested = name in known and dataclasses.is_dataclass(getattr(config, name))
    if name not in known or bool(rest) != nested:
        raise DeixisError(f"unknown field '{prefix}{field}'; known: {', '.join(field_names(config, prefix))}")
    if nested:
        return dataclasses.replace(config, **{name: _replaced(getattr(config, name), rest, text, f"{prefix}{name}.")})
    hint = typing.get_type_hints(type(config))[name]
    try:
        value = parse_value(text, hint)
    except ValueError as error:
        wanted = getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)
        raise DeixisError(f"{prefix}{name} must be {wanted}, got {text!r}") from error
    return dataclasses.replace(config, **{name: value})


def parse_value(text: str, hint: Any) -> Any:
    """``text`` as a value of the type ``hint``; ValueError where it is none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and text.lower() == "none":
            return None
        return _first_that_reads(text, [kind for kind in inner if kind is not type(None)])
    if origin is typing.Literal:
        return _first_that_reads(text, inner, read=_as_literal)
    if origin is tuple:
        items = [item for item in text.strip("()[] ").split(",") if item.strip()]
        kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(items):
            raise ValueError(f"{len(kinds)} values wanted, got {len(items)}")
        return tuple(parse_value(item.strip(), kind) for item, kind in zip(items, kinds, strict=True))
    if hint is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    if hint is int:
        return int(text.replace("_", ""))
    if hint in (float, str, Path):
        return hint(text)
    raise ValueError(f"a value of type {hint} cannot be given as text")


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _as_literal(text: str, value: Any) -> Any:
    return value if text == str(value) else _refuse(text)


def _first_that_reads(text: str, kinds: Any, read: Callable[[str, Any], Any] = parse_value) -> Any:
    for kind in kinds:
        try:
            return read(text, kind)
        except ValueError:
            continue
    raise ValueError(text)
